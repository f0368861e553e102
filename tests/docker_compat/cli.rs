//! Our client beside docker's own: the same words, outputs and exit codes.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    images,
    lab::{Place, TestLab, program},
};

use super::{sdk::scripts, there_is_a_client};

/// A host that has `busybox:test`, its daemon with these flags.
pub(super) fn host(daemon: &[&str]) -> Result<TestLab> {
    host_in(Place::take(), daemon)
}

/// The same, where the machine's address had to be known before.
pub(super) fn host_in(place: Place, daemon: &[&str]) -> Result<TestLab> {
    let words: Vec<String> = daemon
        .iter()
        .map(|word| format!("--daemon-arg={word}"))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let lab = TestLab::up_in(place, program(), (1, 0), &words)?;
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let archive = archive.to_str().context("a path that is not UTF-8")?;
    lab.shoal(&["-H", &lab.docker_host("n1"), "load", "-q", "-i", archive])?;
    Ok(lab)
}

/// Runs a script against a host with a configuration folder of its own, and fails with what it said if it does.
fn drive(lab: &TestLab, script: &str, words: &[&Path]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = Command::new("python3")
        .arg(scripts().join(script))
        .args(words)
        .env("DOCKER_HOST", lab.docker_host("n1"))
        .env("DOCKER_CONFIG", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[test]
fn a_hundred_commands_do_what_they_do_with_docker() -> Result<()> {
    let lab = host(&[])?;
    let commands = scripts().join("commands.txt");
    drive(&lab, "commands.py", &[&program(), &commands])?;
    // The file tells the truth about docker, too.
    if there_is_a_client() {
        drive(&lab, "commands.py", &[Path::new("docker"), &commands])?;
    }
    Ok(())
}

#[test]
fn people_at_terminals_are_served_as_by_docker() -> Result<()> {
    let lab = host(&[])?;
    drive(&lab, "terminal.py", &[&program()])?;
    if there_is_a_client() {
        drive(&lab, "terminal.py", &[Path::new("docker")])?;
    }
    Ok(())
}

#[test]
fn credentials_and_contexts_are_dockers() -> Result<()> {
    let place = Place::take();
    let addr = format!("{}:5001", place.machine());
    let lab = host_in(place, &[&format!("--insecure-registry={addr}")])?;
    let registry = images::Registry::start(&addr)?;
    let folder = tempfile::tempdir()?;
    let socket = lab.docker_host("n1");
    let shoal = |program: &Path, words: &[&str], input: &str| {
        use std::io::Write as _;
        let mut child = Command::new(program)
            .args(words)
            .env("DOCKER_CONFIG", folder.path())
            .env_remove("DOCKER_HOST")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("the pipe was asked for")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        anyhow::Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&said).into_owned(),
        ))
    };
    let ours = program();
    let near = format!("host={socket}");
    let (code, said) = shoal(&ours, &["context", "create", "near", "--docker", &near], "")?;
    assert_eq!(code, 0, "{said}");
    assert_eq!(shoal(&ours, &["context", "use", "near"], "")?.0, 0);
    let (code, said) = shoal(&ours, &["images", "-q", "busybox:test"], "")?;
    assert!(code == 0 && said.lines().count() == 1, "{said}");
    assert_eq!(shoal(&ours, &["context", "rm", "near"], "")?.0, 1);

    // Docker's registry on the machine speaks http, which the host must be told of.
    let login = [
        "login",
        "-u",
        images::USER,
        "--password-stdin",
        &registry.addr,
    ];
    let (code, said) = shoal(&ours, &login, "wrong")?;
    assert!(
        code == 1 && said.to_lowercase().contains("unauthorized"),
        "{code} {said}"
    );
    let (code, said) = shoal(&ours, &login, images::PASSWORD)?;
    assert!(
        code == 0 && said.contains("Login Succeeded"),
        "{code} {said}"
    );
    let config = fs::read_to_string(folder.path().join("config.json"))?;
    assert!(
        config.contains(&registry.addr) && config.contains("near"),
        "{config}"
    );
    let name = format!("{}/busybox:test", registry.addr);
    assert_eq!(shoal(&ours, &["tag", "busybox:test", &name], "")?.0, 0);
    let (code, said) = shoal(&ours, &["push", "-q", &name], "")?;
    assert_eq!(code, 0, "{said}");

    // Docker's client finds context and credentials where ours put them.
    if there_is_a_client() {
        let docker = Path::new("docker");
        let (code, said) = shoal(docker, &["context", "show"], "")?;
        assert_eq!((code, said.as_str()), (0, "near\n"));
        assert_eq!(shoal(docker, &["rmi", &name], "")?.0, 0);
        let (code, said) = shoal(docker, &["pull", "-q", &name], "")?;
        assert_eq!(code, 0, "{said}");
    }
    let (code, said) = shoal(&ours, &["logout", &registry.addr], "")?;
    assert!(
        code == 0 && said.starts_with("Removing login credentials"),
        "{said}"
    );
    let (code, said) = shoal(&ours, &["push", "-q", &name], "")?;
    assert_eq!(code, 1, "{said}");
    assert_eq!(shoal(&ours, &["context", "use", "default"], "")?.0, 0);
    assert_eq!(
        shoal(&ours, &["context", "rm", "near"], "")?,
        (0, "near\n".to_owned())
    );
    Ok(())
}
