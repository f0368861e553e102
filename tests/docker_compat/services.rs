//! Services and stacks.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use shoal_tests::{lab::TestLab, wait};

use crate::{Docker, IMAGE, there_is_a_client};

#[test]
fn services_and_stacks() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    let said = docker.run(&["service", "ls"]).unwrap_err();
    assert!(
        format!("{said:#}").contains("This node is not a swarm manager."),
        "{said:#}"
    );
    let said = docker.run(&["swarm", "init", "--advertise-addr", &lab.addr("n1")])?;
    assert!(
        said.contains("docker swarm join --token SWMTKN-1-"),
        "{said}"
    );
    assert!(docker.run(&["node", "ls"])?.contains("Leader"));
    assert!(
        docker
            .run(&["swarm", "join-token", "-q", "manager"])?
            .starts_with("SWMTKN-1-")
    );

    docker.run(&["network", "create", "-d", "overlay", "net"])?;
    docker.run(&[
        "service",
        "create",
        "-q",
        "--name",
        "web",
        "--network",
        "net",
        "--replicas",
        "2",
        "-p",
        "8080:80",
        IMAGE,
    ])?;
    assert_eq!(
        docker.run(&[
            "service",
            "ls",
            "--format",
            "{{.Name}} {{.Mode}} {{.Replicas}} {{.Ports}}"
        ])?,
        "web replicated 2/2 *:8080->80/tcp\n"
    );
    docker.run(&["service", "scale", "web=3"])?;
    docker.run(&["service", "update", "-q", "--env-add", "A=b", "web"])?;
    assert!(
        docker
            .run(&["service", "inspect", "--pretty", "web"])?
            .contains("Replicas:\t3")
    );
    let tasks = docker.run(&[
        "service",
        "ps",
        "-f",
        "desired-state=running",
        "--format",
        "{{.Name}} {{.CurrentState}}",
        "web",
    ])?;
    assert_eq!(
        tasks
            .lines()
            .filter(|line| line.contains("Running"))
            .count(),
        3,
        "{tasks}"
    );
    assert!(
        docker
            .run(&["service", "logs", "web"])?
            .contains("listening on port 80")
    );
    docker.run(&["service", "rm", "web"])?;
    wait("the network to be unused", || {
        Ok(docker
            .run(&["network", "rm", "net"])
            .map_err(|e| format!("{e:#}")))
    })?;

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/demo.yml");
    // Docker's own loader wants a version only in files older than this.
    docker.run(&["stack", "deploy", "-d", "-c", file, "demo"])?;
    lab.wait_running("demo_web", 3)?;
    assert!(
        docker
            .run(&["stack", "services", "demo"])?
            .contains("demo_backend")
    );
    assert!(
        docker
            .run(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"])?
            .contains("demo 2")
    );
    docker.run(&["stack", "rm", "demo"])?;
    assert_eq!(docker.run(&["service", "ls", "-q"])?, "");
    docker.run(&["swarm", "leave", "--force"])?;
    Ok(())
}

/// A child that is ended when dropped.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[test]
fn events_of_tasks_on_all_nodes_reach_dockers_client() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(2, 1)?;
    let docker = Docker { lab: &lab };
    let mut child = Command::new("docker")
        .env("DOCKER_HOST", lab.docker_host("n1"))
        .args(["events", "--filter", "type=task", "--filter", "type=network", "--format"])
        .arg("{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{index .Actor.Attributes \"node.id\"}}")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("it is piped")?;
    let _listener = Listener(child);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&heard);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
    let hears = |what: &str, is_it: &dyn Fn(&str) -> bool| {
        wait(what, || {
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let found = heard.iter().any(|line| is_it(line));
            Ok(if found { Ok(()) } else { Err(heard.join("\n")) })
        })
    };
    // It listens when it hears of something that is made again and again.
    wait("the client to listen", || {
        docker.run(&["network", "create", "-d", "overlay", "probe"])?;
        docker.run(&["network", "rm", "probe"])?;
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(if heard.is_empty() {
            Err("nothing")
        } else {
            Ok(())
        }
        .map_err(str::to_owned))
    })?;
    docker.run(&[
        "service", "create", "-q", "--detach", "--name", "web", "--mode", "global", IMAGE, "idle",
    ])?;
    lab.wait_running("web", 2)?;
    for host in ["n1", "n2"] {
        let id = docker.run(&["node", "inspect", "--format", "{{.ID}}", host])?;
        let id = id.trim();
        for state in ["assigned", "running"] {
            let begins = format!("task {state} web.");
            hears(&format!("{state} on {host}"), &|line| {
                line.starts_with(&begins) && line.ends_with(id)
            })?;
        }
    }
    docker.run(&["service", "rm", "web"])?;
    for host in ["n1", "n2"] {
        let id = docker.run(&["node", "inspect", "--format", "{{.ID}}", host])?;
        hears(&format!("shutdown on {host}"), &|line| {
            line.starts_with("task shutdown web.") && line.ends_with(id.trim())
        })?;
    }
    Ok(())
}
