//! Docker's own client, unmodified, against our socket.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, text},
    skipped, wait,
};

/// Docker's client pointed at one host.
struct Docker<'a> {
    lab: &'a TestLab,
}

impl Docker<'_> {
    fn run(&self, words: &[&str]) -> Result<String> {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", self.lab.docker_host("n1"))
            .args(words)
            .stdin(Stdio::null());
        text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
    }

    fn code(&self, words: &[&str]) -> Result<i32> {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", self.lab.docker_host("n1"))
            .args(words);
        docker
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(docker.status()?.code().unwrap_or(-1))
    }
}

fn there_is_a_client() -> bool {
    let there = Command::new("docker")
        .arg("--version")
        .output()
        .is_ok_and(|said| said.status.success());
    if !there {
        skipped("docker's client is not on PATH");
    }
    there
}

const IMAGE: &str = "shoal-demo:latest";

#[test]
fn containers() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    docker.run(&["version"])?;
    assert!(docker.run(&["info"])?.contains("Swarm: inactive"));
    assert!(docker.run(&["images"])?.contains("shoal-demo"));

    assert_eq!(docker.code(&["run", "--rm", IMAGE, "get"])?, 2);
    assert_eq!(
        docker.code(&["run", "--rm", "--entrypoint", "/nothing", IMAGE])?,
        127
    );
    assert_eq!(docker.code(&["run", "--rm", "127.0.0.1:1/nothing:1"])?, 125);

    let id = docker.run(&["run", "-d", "--name", "web", "--label", "a=b", IMAGE])?;
    assert_eq!(id.trim().len(), 64);
    let listed = docker.run(&["ps", "--format", "{{.Names}} {{.Image}} {{.Status}}"])?;
    assert!(listed.starts_with("web shoal-demo:latest Up "), "{listed}");
    wait("a line in the log", || {
        let logs = docker.run(&["logs", "web"])?;
        Ok(if logs == "listening on port 80\n" {
            Ok(())
        } else {
            Err(logs)
        })
    })?;
    let answer = docker.run(&["exec", "web", "/demo", "get", "127.0.0.1"])?;
    assert!(answer.contains("client=127.0.0.1"), "{answer}");
    assert_eq!(
        docker.run(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{.Config.Labels.a}}",
            "web"
        ])?,
        "running b\n"
    );
    docker.run(&["stop", "web"])?;
    assert_eq!(
        docker.run(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}}",
            "web"
        ])?,
        "exited 0\n"
    );
    docker.run(&["start", "web"])?;
    docker.run(&["rm", "-f", "web"])?;
    assert_eq!(docker.run(&["ps", "-aq"])?, "");
    Ok(())
}

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
