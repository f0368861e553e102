//! A seed is a story: told twice, by two processes, it is the same to the last event.

use std::process::Command;

fn story(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_shoal-sim"))
        .args(["--seed", &seed.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains(" hash ")).unwrap();
    line.to_owned()
}

#[test]
fn two_processes_tell_the_same_story_of_a_seed() {
    let mut stories = Vec::new();
    for seed in [3, 7, 44, 77] {
        let first = story(seed);
        assert_eq!(first, story(seed));
        stories.push(first);
    }
    stories.dedup();
    assert_eq!(stories.len(), 4, "each seed has its own: {stories:?}");
}
