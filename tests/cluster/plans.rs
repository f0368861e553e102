//! Plans of stacks, and what files are filled in with.

use std::fs;

use anyhow::Result;
use shoal_tests::{lab::TestLab, wait};

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
            "{made}+ service s_web\n    places: 1 of 1, 1 on n1\nPlan: 3 to create, 0 to update, 0 to remove, 0 unchanged\n"
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

const PLACES: &str = "
x-common: &common {image: 'shoal-demo:latest', command: idle}
services:
  web: {<<: *common, deploy: {replicas: 3}}
  far: {<<: *common, deploy: {replicas: 2, placement: {constraints: [node.hostname==n9]}}}
  vast: {<<: *common, deploy: {resources: {reservations: {memory: 1000t}}}}
  one-each: {<<: *common, deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}}
  agent: {<<: *common, deploy: {mode: global}}
";

#[test]
fn a_plan_says_where_the_tasks_of_new_services_will_go_and_why_some_go_nowhere() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    lab.on("n1", &["node", "update", "--availability", "pause", "n2"])?;
    let folder = tempfile::tempdir()?;
    let file = write(folder.path(), "stack.yml", PLACES)?;
    let plan = lab.on("n1", &["stack", "plan", "-c", &file, "s"])?;
    // As it is said of tasks that wait, each node counts once.
    let paused = "1 node not available for new tasks";
    let nowhere = [
        (
            "s_far",
            format!("{paused}; scheduling constraints not satisfied on 1 node"),
        ),
        (
            "s_vast",
            format!("{paused}; insufficient resources on 1 node"),
        ),
        (
            "s_one-each",
            format!("{paused}; max replicas per node limit exceed on 1 node"),
        ),
    ];
    let [far, vast, one_each] = nowhere.each_ref().map(|(_, why)| why);
    assert_eq!(
        plan,
        format!(
            "Stack s\n+ network s_default\n\
             + service s_agent\n    places: 1 of 2, 1 on n1 ({paused})\n\
             + service s_far\n    places: 0 of 2 ({far})\n\
             + service s_one-each\n    places: 1 of 2, 1 on n1 ({one_each})\n\
             + service s_vast\n    places: 0 of 1 ({vast})\n\
             + service s_web\n    places: 3 of 3, 3 on n1\n\
             Plan: 6 to create, 0 to update, 0 to remove, 0 unchanged\n"
        )
    );

    // That is what comes of it.
    lab.on("n1", &["stack", "deploy", "-c", &file, "s"])?;
    lab.wait_running("s_web", 3)?;
    lab.wait_running("s_agent", 1)?;
    for (service, why) in nowhere {
        wait("a task that waits to say why", || {
            let format = "{{.CurrentState}} {{.Error}}";
            let words = ["service", "ps", "--no-trunc", "--format", format, service];
            let seen = lab.on("n1", &words)?;
            let is_it = |line: &str| {
                line.starts_with("Pending") && line.contains(&format!("no suitable node ({why})"))
            };
            Ok(if seen.lines().any(is_it) {
                Ok(())
            } else {
                Err(seen)
            })
        })?;
    }
    let plan = lab.on("n1", &["stack", "plan", "-c", &file, "s"])?;
    let unchanged = "Stack s\nPlan: 0 to create, 0 to update, 0 to remove, 6 unchanged\n";
    assert_eq!(plan, unchanged);
    lab.on("n1", &["stack", "rm", "s"])?;
    Ok(())
}
