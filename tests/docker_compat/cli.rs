//! Our client beside docker's own: the same words, outputs and exit codes.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    images,
    lab::{Place, TestLab, program, text},
};

use super::{
    sdk::{python_sdk, scripts},
    there_is_a_client,
};

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

/// Runs a line of words by our client at the host.
pub(super) fn said(lab: &TestLab, line: &str) -> Result<String> {
    let socket = lab.docker_host("n1");
    let words: Vec<&str> = ["-H", &socket].into_iter().chain(line.split(' ')).collect();
    Ok(lab.shoal(&words)?.trim().to_owned())
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
    let drive = |client: &Path| -> Result<()> {
        drive(&lab, "commands.py", &[client, &commands])?;
        // What they made they have removed.
        let socket = lab.docker_host("n1");
        let row = "{{.Names}} {{.Image}} {{.Command}} {{.Status}}";
        let words = ["-H", &socket, "ps", "-a", "--no-trunc", "--format", row];
        assert_eq!(lab.shoal(&words)?, "", "{}", client.display());
        Ok(())
    };
    drive(&program())?;
    // The file tells the truth about docker, too.
    if there_is_a_client() {
        drive(Path::new("docker"))?;
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

/// What a registry tells of an image to those who may know.
const REGISTRY_DATA: &str = "
import sys, docker
from docker.errors import APIError
client, (name, user, password) = docker.from_env(), sys.argv[1:]
try:
    client.images.get_registry_data(name)
    sys.exit('told without a password')
except APIError as error:
    assert error.status_code in (401, 403), error
data = client.images.get_registry_data(name, auth_config={'username': user, 'password': password})
digests = [name.split('@')[1] for name in client.images.get(name).attrs['RepoDigests']]
assert data.id in digests, (data.id, digests)
assert data.attrs['Platforms'][0]['os'] == 'linux', data.attrs
";

/// A daemon is reached by way of ssh, of which there is one here that goes nowhere.
fn reached_by_ssh(clients: &[&Path], socket: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ssh, log) = (folder.path().join("ssh"), folder.path().join("log"));
    fs::write(
        &ssh,
        format!(
            "#!/bin/sh\necho \"$*\" >> {}\nexec {} -H {socket} system dial-stdio\n",
            log.display(),
            program().display()
        ),
    )?;
    fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    for client in clients {
        let mut child = Command::new(client)
            .args([
                "-H",
                "ssh://someone@far:2222",
                "run",
                "--rm",
                "-i",
                "busybox:test",
                "cat",
            ])
            .env("PATH", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("the pipe was asked for")?;
        std::io::Write::write_all(&mut stdin, b"by ssh\n")?;
        drop(stdin);
        let said =
            text(&child.wait_with_output()?).with_context(|| client.display().to_string())?;
        assert_eq!(said, "by ssh\n", "{}", client.display());
        let log = fs::read_to_string(&log)?;
        let last = log.lines().last().unwrap_or_default();
        assert!(
            last.contains("-l someone")
                && last.contains("-p 2222")
                && last.contains("-- far ")
                && last.ends_with("system dial-stdio"),
            "{log}"
        );
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
        // It logs out and in by itself, too.
        let (code, said) = shoal(docker, &["logout", &registry.addr], "")?;
        assert!(
            code == 0 && said.starts_with("Removing login credentials"),
            "{said}"
        );
        assert_eq!(shoal(docker, &["push", "-q", &name], "")?.0, 1);
        let (code, said) = shoal(docker, &login, "wrong")?;
        assert!(
            code == 1 && said.to_lowercase().contains("unauthorized"),
            "{code} {said}"
        );
        let (code, said) = shoal(docker, &login, images::PASSWORD)?;
        assert!(
            code == 0 && said.contains("Login Succeeded"),
            "{code} {said}"
        );
        // All tags of a name at once, out and in.
        let many = format!("{}/many", registry.addr);
        let tags = ["1", "2"].map(|tag| format!("{many}:{tag}"));
        for client in [docker, &ours] {
            for tag in &tags {
                assert_eq!(shoal(client, &["tag", "busybox:test", tag], "")?.0, 0);
            }
            let (code, said) = shoal(client, &["push", "-q", "-a", &many], "")?;
            assert_eq!(code, 0, "{said}");
            assert_eq!(shoal(client, &["rmi", &tags[0], &tags[1]], "")?.0, 0);
            let (code, said) = shoal(client, &["pull", "-q", "-a", &many], "")?;
            assert_eq!(code, 0, "{said}");
            let (_, said) = shoal(client, &["images", "--format", "{{.Tag}}", &many], "")?;
            let mut said: Vec<&str> = said.lines().collect();
            said.sort_unstable();
            assert_eq!(said, ["1", "2"], "{}", client.display());
        }
        reached_by_ssh(&[&ours, docker], &socket)?;
    }
    // A container may use the API with its user's credentials.
    let mut clients = vec!["shoal"];
    if there_is_a_client() {
        clients.push("docker");
    }
    let config = format!("DOCKER_CONFIG={}", folder.path().display());
    for client in clients {
        let inside = "test -S /var/run/docker.sock && cat $DOCKER_CONFIG/config.json";
        let mut words = vec![
            "env",
            &config,
            "DOCKER_HOST=unix:///run/shoal/shoal.sock",
            client,
        ];
        words.extend([
            "run",
            "--rm",
            "--use-api-socket",
            "busybox:test",
            "sh",
            "-c",
            inside,
        ]);
        let said = text(&lab.output("n1", &words)?).with_context(|| client.to_owned())?;
        assert!(said.contains(&registry.addr), "{client}: {said}");
    }
    if let Some(python) = python_sdk()? {
        let mut python = Command::new(python);
        python
            .args(["-c", REGISTRY_DATA, &name, images::USER, images::PASSWORD])
            .env("DOCKER_HOST", &socket)
            .env("DOCKER_CONFIG", folder.path().join("nothing"));
        text(&python.stdin(Stdio::null()).output()?)?;
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
