//! Plans of stacks, and what files are filled in with.

use std::fs;

use anyhow::Result;
use shoal_tests::lab::TestLab;

use crate::stacks::write;

const FILE: &str = "
services:
  web: {image: 'shoal-demo:${TAG}', command: idle, secrets: [key]}
  debug: {image: 'shoal-demo:${TAG}', command: idle, profiles: [debug]}
secrets: {key: {file: key.txt}}
";

#[test]
fn plans_and_deployments_read_the_same_and_agree_on_what_cannot_change() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("key.txt"), "one")?;
    fs::write(folder.path().join(".env"), "# the tag\nTAG=latest\n")?;
    let file = write(folder.path(), "stack.yml", FILE)?;
    let stack = |verb: &[&str], rest: &[&str]| {
        lab.on("n1", &[&["stack"], verb, &["-c", &file], rest].concat())
    };

    // Variables of `.env` beside the file, and profiles, in everything that reads it.
    let config = stack(&["config"], &[])?;
    assert!(config.contains("shoal-demo:latest"), "{config}");
    assert!(!config.contains("debug"), "{config}");
    let config = stack(&["config", "--profile", "debug"], &[])?;
    assert!(config.contains("debug:"), "{config}");
    let plan = stack(&["plan"], &["s"])?;
    let made = "Stack s\n+ network s_default\n+ secret s_key\n";
    assert_eq!(
        plan,
        format!(
            "{made}+ service s_web\nPlan: 3 to create, 0 to update, 0 to remove, 0 unchanged\n"
        )
    );
    let plan = stack(&["plan", "--profile", "debug"], &["s"])?;
    assert!(
        plan.starts_with(&format!("{made}+ service s_debug\n")),
        "{plan}"
    );
    // Another file of variables in its place.
    let other = folder.path().join("other");
    fs::write(&other, "TAG=other\n")?;
    let config = stack(&["config", "--env-file", &other.to_string_lossy()], &[])?;
    assert!(config.contains("shoal-demo:other"), "{config}");
    stack(&["deploy"], &["s"])?;

    // Other data under the same name: both refuse it, and nothing is touched.
    fs::write(folder.path().join("key.txt"), "two")?;
    let before = lab.on("n1", &["service", "inspect", "s_web"])?;
    let secret = lab.on("n1", &["secret", "inspect", "s_key"])?;
    for verb in ["plan", "deploy"] {
        let (_, said) = lab.refused("n1", &["stack", verb, "-c", &file, "s"])?;
        let problem = "failed to update secret s_key: only updates to Labels are allowed; give changed data another name";
        assert!(said.contains(problem), "{verb}: {said}");
    }
    assert_eq!(lab.on("n1", &["service", "inspect", "s_web"])?, before);
    assert_eq!(lab.on("n1", &["secret", "inspect", "s_key"])?, secret);
    fs::write(folder.path().join("key.txt"), "one")?;

    // A network with another definition stays as it is, and both say so.
    let attachable = format!("{FILE}networks: {{default: {{attachable: true}}}}\n");
    write(folder.path(), "stack.yml", &attachable)?;
    for verb in ["plan", "deploy"] {
        let output = lab.output("n1", &["shoal", "stack", verb, "-c", &file, "s"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let warning = "network s_default is there with another definition and stays as it is (Attachable: false → true)";
        assert!(said.contains(warning), "{verb}: {said}");
    }
    lab.on("n1", &["stack", "rm", "s"])?;
    Ok(())
}
