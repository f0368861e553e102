//! Clusters that are formed with docker's client alone.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result};
use shoal_tests::{
    images,
    lab::{TestLab, text},
    wait,
};

use crate::{sdk::scripts, there_is_a_client};

/// Runs docker's client against a host.
fn docker(lab: &TestLab, host: &str, words: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(["-H", &lab.docker_host(host)])
        .args(words)
        .output()?;
    text(&output).with_context(|| format!("{host}: docker {}", words.join(" ")))
}

/// Waits until the cluster has so many nodes that are ready, and so many managers among them.
fn wait_nodes(lab: &TestLab, nodes: usize, managers: usize) -> Result<()> {
    wait(&format!("{nodes} nodes, {managers} managers"), || {
        let words = ["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"];
        let listed = docker(lab, "n1", &words)?;
        let ready = listed.lines().filter(|line| line.starts_with("Ready"));
        let manage = listed
            .lines()
            .filter(|line| line.ends_with(" Leader") || line.ends_with(" Reachable"));
        let seen = (ready.count(), manage.count());
        Ok(if seen == (nodes, managers) {
            Ok(())
        } else {
            Err(listed)
        })
    })
}

#[test]
fn three_managers_and_three_workers_come_together_and_roles_change_under_their_tasks() -> Result<()>
{
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(6, 0)?;
    let began = Instant::now();
    let manager = lab.addr("n1");
    docker(&lab, "n1", &["swarm", "init", "--advertise-addr", &manager])?;
    let remote = format!("{manager}:2377");
    for (host, role) in [
        ("n2", "manager"),
        ("n3", "manager"),
        ("n4", "worker"),
        ("n5", "worker"),
        ("n6", "worker"),
    ] {
        let token = docker(&lab, "n1", &["swarm", "join-token", "-q", role])?;
        let said = docker(
            &lab,
            host,
            &["swarm", "join", "--token", token.trim(), &remote],
        )?;
        assert_eq!(
            said.trim(),
            format!("This node joined a swarm as a {role}.")
        );
    }
    wait_nodes(&lab, 6, 3)?;
    println!("six nodes after {:.1} s", began.elapsed().as_secs_f32());

    let words = [
        "service", "create", "--detach", "--quiet", "--name", "idle", "--mode", "global",
    ];
    docker(
        &lab,
        "n2",
        &[&words[..], &["shoal-demo:latest", "idle"]].concat(),
    )?;
    let tasks = lab.wait_running("idle", 6)?;
    for _ in 0..2 {
        docker(&lab, "n1", &["node", "promote", "n4"])?;
        wait_nodes(&lab, 6, 4)?;
        docker(&lab, "n4", &["node", "demote", "n4"])?;
        wait_nodes(&lab, 6, 3)?;
    }
    assert_eq!(lab.wait_running("idle", 6)?, tasks);
    // Who leaves is told in docker's words, and a worker is no place to ask.
    let said = docker(&lab, "n6", &["swarm", "leave"])?;
    assert_eq!(said.trim(), "Node left the swarm.");
    let refused = docker(&lab, "n5", &["node", "ls"]).unwrap_err();
    assert!(
        format!("{refused:#}").contains("This node is not a swarm manager."),
        "{refused:#}"
    );
    Ok(())
}

/// What became of services and their tasks with Docker 20.10 is in `golden/updates.json`, as `scripts/updates.py` recorded it.
#[test]
fn updates_and_rollbacks_go_as_swarms() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let folder = tempfile::tempdir()?;
    let output = Command::new("python3")
        .arg(scripts().join("updates.py"))
        .arg(lab.folder("n1").join("run/shoal.sock"))
        .arg(images::busybox(folder.path())?)
        .arg(scripts().join("../golden/updates.json"))
        .output()?;
    text(&output)
        .map(drop)
        .map_err(|error| error.context(String::from_utf8_lossy(&output.stdout).into_owned()))
}
