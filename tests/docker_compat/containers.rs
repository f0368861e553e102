//! Containers on one host.

use std::process::Command;

use anyhow::Result;
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

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

#[test]
fn files_travel_with_docker_cp() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir_all(at("tree/deep"))?;
    std::fs::write(at("tree/deep/file"), "from the host")?;
    std::os::unix::fs::symlink("deep/file", at("tree/link"))?;
    docker.run(&["run", "-d", "--name", "web", "-v", "kept:/vol", IMAGE])?;
    for _ in ["running", "stopped"] {
        docker.run(&["cp", "-q", &at("tree"), "web:/vol/"])?;
        docker.run(&["cp", "-q", &format!("{}/.", at("tree")), "web:/copy"])?;
        let out = at("out");
        docker.run(&["cp", "-q", "web:/vol/tree", &out])?;
        assert_eq!(
            std::fs::read_to_string(at("out/deep/file"))?,
            "from the host"
        );
        assert_eq!(
            std::fs::read_link(at("out/link"))?.to_string_lossy(),
            "deep/file"
        );
        docker.run(&["cp", "-q", "-L", "web:/copy/link", &at("followed")])?;
        assert_eq!(std::fs::read_to_string(at("followed"))?, "from the host");
        std::fs::remove_dir_all(out)?;
        let said = docker.run(&["cp", "web:/nowhere", "-"]).unwrap_err();
        assert!(
            format!("{said:#}").contains("Could not find the file /nowhere in container web"),
            "{said:#}"
        );
        assert!(
            docker
                .run(&["diff", "web"])?
                .contains("A /copy/deep/file\n")
        );
        docker.run(&["export", "-o", &at("root.tar"), "web"])?;
        let listed = Command::new("tar").args(["tf", &at("root.tar")]).output()?;
        assert!(text(&listed)?.lines().any(|line| line == "copy/deep/file"));
        docker.run(&["kill", "web"]).ok();
        docker.run(&["wait", "web"])?;
    }
    docker.run(&["rm", "-v", "web"])?;
    Ok(())
}

#[test]
fn options_of_run_reach_the_container() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    docker.run(&["run", "-d", "--init", "--name", "web", "-m", "64m", IMAGE])?;
    let top = docker.run(&["top", "web"])?;
    assert!(top.starts_with("UID ") && top.contains("/demo"), "{top}");
    let top = docker.run(&["top", "web", "-o", "pid,comm"])?;
    assert!(top.contains("shoal-init"), "{top}");
    docker.run(&["update", "-m", "96m", "--restart", "on-failure:3", "web"])?;
    let said = docker.run(&[
        "inspect",
        "-f",
        "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Init}}",
        "web",
    ])?;
    assert_eq!(said, "100663296 on-failure true\n");
    docker.run(&["run", "-d", "--link", "web:db", "--name", "app", IMAGE])?;
    let hosts = docker.run(&["cp", "app:/etc/hosts", "-"])?;
    assert!(
        hosts
            .lines()
            .any(|line| line.contains("\tdb ") && line.ends_with(" web")),
        "{hosts}"
    );
    // Who is linked to is named so as well.
    let names = docker.run(&["ps", "--no-trunc", "--format", "{{.Names}}"])?;
    assert_eq!(names, "app\nweb,app/db\n");
    assert_eq!(docker.run(&["ps", "--format", "{{.Names}}"])?, "app\nweb\n");
    let refused = |words: &[&str], what: &str| -> Result<()> {
        let said = format!("{:#}", docker.run(words).unwrap_err());
        assert!(said.contains(what), "{said}");
        Ok(())
    };
    refused(
        &["rm", "--link", "app"],
        "Conflict, cannot remove the default link name of the container",
    )?;
    refused(&["rm", "--link", "app/web"], "No such container: app/web")?;
    docker.run(&["rm", "--link", "app/db"])?;
    let hosts = docker.run(&["cp", "app:/etc/hosts", "-"])?;
    assert!(!hosts.contains("\tdb "), "{hosts}");
    let links = docker.run(&["inspect", "-f", "{{.HostConfig.Links}}", "app"])?;
    assert_eq!(links, "[]\n");
    refused(
        &["run", "--rm", "--storage-opt", "size=1g", IMAGE],
        "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
    )?;
    refused(
        &["run", "--rm", "--device", "/dev/none", IMAGE],
        "error gathering device information while adding custom device \"/dev/none\": no such file or directory",
    )?;
    refused(
        &[
            "run",
            "--rm",
            "--ipc",
            "host",
            "--sysctl",
            "kernel.shmmax=1",
            IMAGE,
        ],
        "sysctl \"kernel.shmmax\" is not in a separate kernel namespace",
    )?;
    refused(
        &["run", "--rm", "--pid", "container:nobody", IMAGE],
        "No such container: nobody",
    )?;
    docker.run(&["rm", "-f", "web", "app"])?;
    Ok(())
}
