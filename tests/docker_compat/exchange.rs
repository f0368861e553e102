//! Images that travel between this engine and Docker's own keep their identity.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{program, text},
    skipped, wait,
};

use super::{cli::host, there_is_a_client};

/// Docker's daemon, which ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is saved by one side is loaded by the other: `from` and `to` are sockets.
fn carry(from: &str, to: &str, names: &[&str]) -> Result<()> {
    let mut saved = Command::new("docker")
        .args(["-H", from, "save"])
        .args(names)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let archive = saved.stdout.take().context("the pipe was asked for")?;
    let loaded = Command::new("docker")
        .args(["-H", to, "load", "-q"])
        .stdin(archive)
        .output()?;
    text(&loaded).with_context(|| format!("load at {to}"))?;
    anyhow::ensure!(saved.wait()?.success(), "save at {from}");
    Ok(())
}

#[test]
fn images_keep_their_identity_to_docker_and_back() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    if Command::new("dockerd").arg("--version").output().is_err() {
        skipped("docker's daemon is not on PATH");
        return Ok(());
    }
    let lab = host(&[])?;
    let ours = lab.docker_host("n1");
    let theirs = ours.replace("/shoal.sock", "/docker.sock");
    let mut dockerd = Command::new(program());
    dockerd
        .args(["lab", "exec", "--name", lab.name(), "n1", "--", "dockerd"])
        .args(["-H", "unix:///run/shoal/docker.sock", "--bridge=none"])
        .args([
            "--iptables=false",
            "--ip6tables=false",
            "--storage-driver=vfs",
        ])
        .args([
            "--data-root=/run/shoal/docker",
            "--exec-root=/run/shoal/docker-run",
        ])
        .args(["--pidfile=/run/shoal/docker.pid"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _dockerd = Ends(dockerd.spawn()?);
    let docker = |socket: &str, words: &[&str], input: &str| -> Result<String> {
        let mut docker = Command::new("docker")
            .args(["-H", socket])
            .args(words)
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = docker.stdin.take().context("the pipe was asked for")?;
        std::io::Write::write_all(&mut stdin, input.as_bytes())?;
        drop(stdin);
        text(&docker.wait_with_output()?).with_context(|| format!("docker {}", words.join(" ")))
    };
    wait("docker's daemon", || {
        let asked = docker(&theirs, &["version"], "");
        Ok(asked.map(drop).map_err(|error| format!("{error:#}")))
    })?;
    let id = |socket: &str, name: &str| docker(socket, &["inspect", "-f", "{{.Id}}", name], "");

    // Built here, of layers and of what changes the configuration alone.
    let built = "FROM busybox:test\nRUN echo one > /one\nENV A=b\nRUN rm /one && mkdir /two\nLABEL l=m\nCMD [\"true\"]\n";
    docker(
        &ours,
        &["build", "-q", "-t", "here:1", "-t", "here:2", "-"],
        built,
    )?;
    carry(&ours, &theirs, &["here:1", "here:2", "busybox:test"])?;
    for name in ["here:1", "here:2", "busybox:test"] {
        assert_eq!(id(&theirs, name)?, id(&ours, name)?, "{name}");
    }
    // And imported there, since its steps would need a network of its own.
    let made = docker(&theirs, &["create", "here:1"], "")?;
    docker(
        &theirs,
        &[
            "commit",
            "-m",
            "there",
            "-c",
            "ENV C=d",
            made.trim(),
            "there:1",
        ],
        "",
    )?;
    carry(&theirs, &ours, &["there:1", "here:2"])?;
    for name in ["there:1", "here:2"] {
        assert_eq!(id(&ours, name)?, id(&theirs, name)?, "{name}");
    }
    let inside =
        |command: &str| docker(&ours, &["run", "--rm", "there:1", "sh", "-c", command], "");
    let seen = inside("echo $A$C; ls -d /two /one");
    assert!(seen.is_err(), "/one was removed: {seen:?}");
    let seen = inside("echo $A$C; ls -d /two")?;
    assert_eq!(seen, "bd\n/two\n");
    Ok(())
}
