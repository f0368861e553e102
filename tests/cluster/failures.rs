//! Hosts without power, daemons that are killed, containers that end.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

use crate::stack::{answers, demo_file};

#[test]
fn the_tasks_of_a_host_without_power_move_to_the_others() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    lab.on(
        "n1",
        &["stack", "deploy", "--detach", "-c", &demo_file(), "demo"],
    )?;
    let before = lab.wait_running("demo_web", 3)?;
    lab.wait_running("demo_backend", 1)?;
    lab.lab("kill", &["n3"])?;
    let moved = wait("no task on n3", || {
        let now = lab.wait_running("demo_web", 3)?;
        Ok(if now.iter().all(|(_, node)| node != "n3") {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        })
    })?;
    // Those that ran elsewhere were left alone.
    let stayed = before
        .iter()
        .filter(|(_, node)| node != "n3")
        .collect::<BTreeSet<_>>();
    assert!(
        stayed.iter().all(|task| moved.contains(task)),
        "{before:?} {moved:?}"
    );
    for host in ["n1", "n2"] {
        answers(&lab, host, 3)?;
    }
    wait("n3 to be down", || {
        let nodes = lab.on("n1", &["node", "ls"])?;
        let down = nodes
            .lines()
            .any(|line| line.contains(" n3 ") && line.contains("Down"));
        Ok(if down { Ok(()) } else { Err(nodes) })
    })?;

    lab.lab("start", &["n3"])?;
    wait("n3 to be ready", || {
        let nodes = lab.on("n1", &["node", "ls"])?;
        let ready = nodes
            .lines()
            .any(|line| line.contains(" n3 ") && line.contains("Ready"));
        Ok(if ready { Ok(()) } else { Err(nodes) })
    })?;
    answers(&lab, "n3", 3)?;
    Ok(())
}

/// Process ids of a host's running containers, by container.
fn pids(lab: &TestLab, host: &str) -> Result<BTreeMap<String, String>> {
    let ids = lab.on(host, &["ps", "-q", "--no-trunc"])?;
    ids.lines()
        .map(|id| {
            let pid = lab.on(host, &["inspect", "--format", "{{.State.Pid}}", id])?;
            Ok((id.to_owned(), pid.trim().to_owned()))
        })
        .collect()
}

#[test]
fn containers_outlive_the_daemon_with_the_same_processes() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    lab.on(
        "n1",
        &["stack", "deploy", "--detach", "-c", &demo_file(), "demo"],
    )?;
    lab.wait_running("demo_web", 3)?;
    lab.wait_running("demo_backend", 1)?;
    let before = (pids(&lab, "n1")?, pids(&lab, "n2")?);
    assert_eq!(before.0.len() + before.1.len(), 4);
    let tasks = lab.wait_running("demo_web", 3)?;

    for host in ["n2", "n1"] {
        lab.lab("kill", &["--daemon", host])?;
        lab.lab("start", &[host])?;
    }
    wait("both nodes to be ready", || {
        let nodes = lab.on("n1", &["node", "ls"])?;
        Ok(if nodes.matches(" Ready ").count() == 2 {
            Ok(())
        } else {
            Err(nodes)
        })
    })?;
    assert_eq!((pids(&lab, "n1")?, pids(&lab, "n2")?), before);
    assert_eq!(lab.wait_running("demo_web", 3)?, tasks);
    for host in ["n1", "n2"] {
        answers(&lab, host, 3)?;
    }
    Ok(())
}

#[test]
fn a_killed_container_is_replaced_in_its_slot() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "idle",
        "--restart-delay",
        "0s",
        "--replicas",
        "2",
    ];
    lab.on(
        "n1",
        &[words.as_slice(), &["shoal-demo:latest", "idle"]].concat(),
    )?;
    let before = lab.wait_running("idle", 2)?;
    let victim = lab.on("n1", &["ps", "-lq"])?;
    lab.on("n1", &["kill", victim.trim()])?;
    let after = wait("another task", || {
        let now = lab.wait_running("idle", 2)?;
        Ok(if now != before {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        })
    })?;
    assert_eq!(after.iter().filter(|task| before.contains(task)).count(), 1);
    let history = lab.on("n1", &["service", "ps", "idle"])?;
    assert!(history.contains("non-zero exit (137)"), "{history}");
    Ok(())
}

#[test]
fn an_ended_task_is_replaced_in_its_slot_after_the_delay_that_nobody_named() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let words = ["service", "create", "--detach", "--name", "idle"];
    let rest = ["--replicas", "2", "shoal-demo:latest", "idle"];
    lab.on("n1", &[&words[..], &rest].concat())?;
    lab.wait_running("idle", 2)?;
    let id = lab.on("n1", &["ps", "-lq", "--no-trunc"])?;
    let inspect = |id: &str, format: &str| -> Result<String> {
        let said = lab.on("n1", &["inspect", "--format", format, id])?;
        Ok(said.trim().to_owned())
    };
    let name = "{{index .Config.Labels \"com.docker.swarm.task.name\"}}";
    let old = inspect(id.trim(), name)?;
    let slot = old.rsplit_once('.').map(|(slot, _)| slot.to_owned());
    let slot = slot.context("service.slot.id")?;
    lab.on("n1", &["kill", id.trim()])?;
    // Only one of the slot's tasks runs again.
    let filter = format!("name={slot}.");
    let new = wait("the replacement", || {
        let ids = lab.on("n1", &["ps", "-q", "--no-trunc", "--filter", &filter])?;
        let other = ids.lines().find(|found| *found != id.trim());
        Ok(other.map(str::to_owned).ok_or(ids.clone()))
    })?;
    lab.wait_running("idle", 2)?;
    let seconds = |time: &str| -> Result<f64> {
        let said = lab.output("n1", &["date", "-d", time, "+%s.%N"])?;
        Ok(text(&said)?.trim().parse()?)
    };
    let ended = seconds(&inspect(id.trim(), "{{.State.FinishedAt}}")?)?;
    let began = seconds(&inspect(&new, "{{.State.StartedAt}}")?)?;
    // Swarm's delay; no more than a busy machine adds.
    let waited = began - ended;
    assert!((5.0..10.0).contains(&waited), "{waited} s");
    Ok(())
}
