//! Containers on one host.

use anyhow::Result;
use shoal_tests::{lab::TestLab, wait};

use crate::{Docker, IMAGE, there_is_a_client};

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
