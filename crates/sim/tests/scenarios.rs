//! The stories of `tests/scenarios`, acted out on virtual time. A lab of real hosts acts them out in `tests/cluster`.

use std::{fs, path::Path};

use shoal_sim::script::{parse, play};

#[test]
fn every_story_comes_to_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let steps = parse(&fs::read_to_string(&path).unwrap()).unwrap();
        for seed in 1..=5 {
            play(&steps, seed).unwrap_or_else(|what| panic!("{}: {what}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 20, "{count} stories");
}

#[test]
fn a_story_that_does_not_come_to_pass_says_so() {
    let steps = parse("hosts 1 managers 1\ncreate web 2\nrunning web 3").unwrap();
    assert!(
        play(&steps, 1)
            .unwrap_err()
            .contains("Running(\"web\", 3, None) did not come to pass")
    );
    assert_eq!(
        parse("hosts 1 managers 1\ndance"),
        Err("line 2: dance".to_owned())
    );
    assert!(parse("create web 2").is_err());
}
