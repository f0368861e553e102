//! Logs of a service's tasks on several hosts: all of them, in the order of their time, for as long as one listens.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::TestLab,
    wait,
};

/// Seconds that a line may be behind one that was shown before it.
const WINDOW: f64 = 1.0;

/// A line of `service logs -t --raw`: its time, in seconds of the day, and what was said.
fn taken_apart(line: &str) -> Result<(f64, &str)> {
    let (time, said) = line.split_once(' ').context("a line without a time")?;
    let (_, of_day) = time.split_once('T').with_context(|| line.to_owned())?;
    let mut seconds = 0.0;
    for part in of_day.trim_end_matches('Z').split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>()?;
    }
    Ok((seconds, said))
}

#[test]
fn logs_of_three_hosts_come_as_one_in_the_order_of_time() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    busybox::load(&lab, &["n1", "n2", "n3"])?;
    let script = "i=0; while true; do i=$((i+1)); echo $TASK says $i; sleep 0.1; done";
    let words = [
        "service",
        "create",
        "-q",
        "--detach",
        "--name",
        "talk",
        "--replicas",
        "3",
        "--restart-delay",
        "0s",
        "--stop-grace-period",
        "0s",
        "--env",
        "TASK={{.Task.Slot}}@{{.Node.Hostname}}",
        BUSYBOX,
        "sh",
        "-c",
        script,
    ];
    lab.on("n1", &words)?;
    let tasks = lab.wait_running("talk", 3)?;
    let hosts: BTreeSet<&str> = tasks.iter().map(|(_, host)| host.as_str()).collect();
    assert_eq!(hosts.len(), 3, "{tasks:?}");

    // Someone listens, and meanwhile one of the tasks ends and is replaced.
    let listen = "timeout 6 shoal service logs -f -t --raw talk";
    let heard = std::thread::scope(|scope| -> Result<String> {
        let listening = scope.spawn(|| lab.output("n1", &["sh", "-c", listen]));
        let container = wait("the listener's first lines", || {
            let (_, host) = &tasks[0];
            let id = lab.on(host, &["ps", "-q", "--filter", "name=talk."])?;
            Ok(id.lines().next().map(str::to_owned).ok_or(id.clone()))
        })?;
        lab.on(&tasks[0].1, &["kill", &container])?;
        let output = listening.join().expect("no panic")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?;
    let mut latest = f64::MIN;
    let mut said: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for line in heard.lines() {
        let (time, text) = taken_apart(line)?;
        assert!(
            time > latest - WINDOW,
            "{line} comes more than a second too late"
        );
        latest = latest.max(time);
        let (task, number) = text.split_once(" says ").context("what a task says")?;
        said.entry(task).or_default().push(number.parse()?);
    }
    let heard_of: BTreeSet<&str> = said
        .keys()
        .filter_map(|task| task.split_once('@'))
        .map(|(_, host)| host)
        .collect();
    assert_eq!(heard_of, hosts, "{said:?}");
    let slots: BTreeSet<&str> = said.keys().map(|task| &task[..1]).collect();
    assert_eq!(slots, BTreeSet::from(["1", "2", "3"]));
    let mut restarts = 0;
    for numbers in said.values() {
        // Nothing twice and nothing left out; a replacement begins anew.
        for pair in numbers.windows(2) {
            if pair[1] == 1 {
                restarts += 1;
            } else {
                assert_eq!(pair[1], pair[0] + 1, "{numbers:?}");
            }
        }
    }
    assert!(restarts <= 1, "{said:?}");

    // Where a line is from, in docker's form; and less of it on request.
    let count = |words: &[&str]| -> Result<usize> { Ok(lab.on("n1", words)?.lines().count()) };
    let tail = ["service", "logs", "--tail", "2", "talk"];
    let lines = lab.on("n1", &tail)?;
    assert!(
        lines
            .lines()
            .all(|line| line.starts_with("talk.") && line.contains("    | ")),
        "{lines}"
    );
    assert!(lines.lines().count() >= 2 * 3, "two of each task: {lines}");
    let (task, host) = lab.wait_running("talk", 3)?.remove(0);
    let of_task = lab.on("n1", &["service", "logs", "--tail", "1", &task])?;
    assert_eq!(of_task.lines().count(), 1, "{of_task}");
    assert!(of_task.contains(&format!("@{host}")), "{of_task}");
    assert_eq!(
        count(&["service", "logs", "--since", "2099-01-01T00:00:00Z", "talk"])?,
        0
    );
    let short = lab.on(
        "n1",
        &["service", "logs", "--no-task-ids", "--tail", "1", "talk"],
    )?;
    let named = short.lines().next().context("a line")?;
    assert!(
        named.contains(&format!("talk.{}@", &named[5..6])),
        "{short}"
    );
    let (_, said) = lab.refused("n1", &["service", "logs", "nobody"])?;
    assert!(said.contains("no such task or service: nobody"), "{said}");

    // What nobody keeps nobody can read.
    let none = "service create -q --detach --log-driver none --name quiet shoal-demo:latest idle";
    lab.on("n1", &none.split(' ').collect::<Vec<_>>())?;
    lab.wait_running("quiet", 1)?;
    let (_, said) = lab.refused("n1", &["service", "logs", "quiet"])?;
    assert!(
        said.contains("configured logging driver does not support reading"),
        "{said}"
    );

    // A node that is away takes its lines along: the others' are shown, and that some are missing.
    let id = lab.on("n1", &["node", "inspect", "--format", "{{.ID}}", "n3"])?;
    lab.lab("kill", &["n3"])?;
    let warning = format!(
        "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node {} is not \
         available",
        id.trim()
    );
    wait("a warning of what is missing", || {
        let words = ["shoal", "service", "logs", "--raw", "--tail", "1", "talk"];
        let output = lab.output("n1", &words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let others = ["@n1 says", "@n2 says"];
        let all = said.contains(&warning) && others.iter().all(|other| shown.contains(other));
        Ok(if all {
            Ok(())
        } else {
            Err(format!("{shown}\n{said}"))
        })
    })
}
