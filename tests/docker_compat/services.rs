//! Services and stacks.

use anyhow::Result;
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
