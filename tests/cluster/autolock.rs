//! Managers whose disks are sealed: nothing works until somebody brings the key, and containers do not mind.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Command, Output, Stdio},
};

use anyhow::{Result, bail, ensure};
use shoal_tests::{
    lab::{TestLab, program, text},
    wait,
};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to \
                      unlock it.";
const NODE_PEM: &str = "/var/lib/shoal/swarm/certificates/swarm-node.pem";
const DATA_KEY: &str = "/var/lib/shoal/swarm/manager/raft.key";

/// Status line and body of the answer to `GET path` at a host's API.
fn ask(lab: &TestLab, host: &str, path: &str) -> Result<String> {
    let socket = lab.docker_host(host).replace("unix://", "");
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Gives a host the key on standard input.
fn unlock(lab: &TestLab, host: &str, key: &str) -> Result<Output> {
    let socket = lab.docker_host(host);
    let mut client = Command::new(program())
        .args(["-H", &socket, "swarm", "unlock"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = client.stdin.take().expect("it is piped");
    writeln!(stdin, "{key}")?;
    drop(stdin);
    Ok(client.wait_with_output()?)
}

/// Restarts a host's daemon as a crash would.
fn restart(lab: &TestLab, host: &str) -> Result<()> {
    lab.lab("kill", &["--daemon", host])?;
    lab.lab("start", &[host]).map(drop)
}

fn is_sealed(lab: &TestLab, host: &str) -> Result<bool> {
    let pem = text(&lab.output(host, &["cat", NODE_PEM])?)?;
    let key = lab.output(host, &["cat", DATA_KEY])?.stdout;
    let is_named_plain = pem.contains("BEGIN PRIVATE KEY");
    match (is_named_plain, key.get(9)) {
        (true, Some(0)) => Ok(false),
        (false, Some(1)) => Ok(true),
        _ => bail!("half sealed"),
    }
}

/// What names the data key that the first host's log is sealed with, in the header of each of its files.
fn key_of_the_log(lab: &TestLab) -> Result<String> {
    let header =
        "cat /var/lib/shoal/swarm/manager/raft/wal-* | head -c 16 | tail -c 4 | od -An -tx1";
    let key = text(&lab.output("n1", &["sh", "-c", header])?)?;
    ensure!(key.split_whitespace().count() == 4, "no header: {key:?}");
    Ok(key)
}

fn wait_sealed(lab: &TestLab, host: &str, wanted: bool) -> Result<()> {
    wait("the keys to be sealed as wanted", || {
        let now = is_sealed(lab, host)?;
        Ok(if now == wanted {
            Ok(())
        } else {
            Err(format!("sealed: {now}"))
        })
    })
}

fn wait_ready(lab: &TestLab, host: &str, nodes: usize) -> Result<()> {
    wait("all nodes to be ready", || {
        let listed = lab.on(host, &["node", "ls"])?;
        Ok(if listed.matches(" Ready ").count() == nodes {
            Ok(())
        } else {
            Err(listed)
        })
    })
}

#[test]
fn a_locked_manager_opens_with_its_key_alone_and_its_tasks_run_on() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "idle",
        "shoal-demo:latest",
        "idle",
    ];
    lab.on("n1", &words)?;
    let tasks = lab.wait_running("idle", 1)?;
    let container = lab.on("n1", &["ps", "-q", "--no-trunc"])?;
    let (code, said) = lab.refused("n1", &["swarm", "unlock-key"])?;
    assert!(code == 1 && said.contains("no unlock key is set"), "{said}");
    let plain_key = lab.output("n1", &["cat", DATA_KEY])?.stdout;
    assert_eq!(plain_key.len(), 10 + 32);
    let used_before = key_of_the_log(&lab)?;

    let said = lab.on("n1", &["swarm", "update", "--autolock"])?;
    assert!(
        said.starts_with("Swarm updated.\nTo unlock a swarm manager after it restarts,"),
        "{said}"
    );
    let key = lab
        .on("n1", &["swarm", "unlock-key", "-q"])?
        .trim()
        .to_owned();
    assert!(
        key.starts_with("SWMKEY-1-") && said.contains(&key),
        "{key} {said}"
    );
    wait_sealed(&lab, "n1", true)?;
    let (_, said) = lab.refused("n1", &["swarm", "unlock"])?;
    assert!(said.contains("swarm is not locked"), "{said}");

    restart(&lab, "n1")?;
    for words in [
        &["node", "ls"][..],
        &["service", "ls"],
        &["swarm", "join-token", "worker"],
        &["swarm", "init"],
        &["swarm", "leave"],
    ] {
        let (code, said) = lab.refused("n1", words)?;
        assert!(code == 1 && said.contains(LOCKED), "{words:?}: {said}");
    }
    let answer = ask(&lab, "n1", "/v1.51/nodes")?;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let info = lab.on("n1", &["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    assert_eq!(info.trim(), "locked");
    assert_eq!(lab.on("n1", &["ps", "-q", "--no-trunc"])?, container);
    // The key that once was plain on this disk is of no use for what is on it now.
    assert_ne!(key_of_the_log(&lab)?, used_before);

    let (start, last) = key.split_at(key.len() - 1);
    for wrong in [
        format!("{start}{}", if last == "A" { "E" } else { "A" }),
        "SWMKEY-1-nonsense".to_owned(),
    ] {
        let said = text(&unlock(&lab, "n1", &wrong)?).unwrap_err().to_string();
        let wanted = [
            "swarm could not be unlocked: invalid key provided",
            "invalid key string",
        ];
        assert!(wanted.iter().any(|wanted| said.contains(wanted)), "{said}");
    }
    text(&unlock(&lab, "n1", &key)?)?;
    wait_ready(&lab, "n1", 1)?;
    assert_eq!(lab.wait_running("idle", 1)?, tasks);
    assert_eq!(lab.on("n1", &["ps", "-q", "--no-trunc"])?, container);

    // Another key, and then none.
    let said = lab.on("n1", &["swarm", "unlock-key", "--rotate"])?;
    assert!(
        said.starts_with("Successfully rotated manager unlock key.\n"),
        "{said}"
    );
    let next = lab
        .on("n1", &["swarm", "unlock-key", "-q"])?
        .trim()
        .to_owned();
    assert!(next != key && said.contains(&next), "{said}");
    wait("the new key to be the one that opens", || {
        restart(&lab, "n1")?;
        Ok(match text(&unlock(&lab, "n1", &next)?) {
            Ok(_) => Ok(()),
            Err(refused) => {
                text(&unlock(&lab, "n1", &key)?)?; // it was quicker than the rotation
                Err(refused.to_string())
            }
        })
    })?;
    wait_ready(&lab, "n1", 1)?;
    lab.on("n1", &["swarm", "update", "--autolock=false"])?;
    wait_sealed(&lab, "n1", false)?;
    restart(&lab, "n1")?;
    wait_ready(&lab, "n1", 1)?;
    assert_eq!(lab.wait_running("idle", 1)?, tasks);
    Ok(())
}

#[test]
fn every_manager_is_locked_from_the_first_moment_and_may_be_left_by_force() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    lab.on("n2", &["swarm", "leave"])?;
    lab.on("n1", &["swarm", "leave", "--force"])?;
    let said = lab.on(
        "n1",
        &[
            "swarm",
            "init",
            "--autolock",
            "--advertise-addr",
            &lab.addr("n1"),
        ],
    )?;
    let key = lab
        .on("n1", &["swarm", "unlock-key", "-q"])?
        .trim()
        .to_owned();
    assert!(said.contains(&key), "{said}");
    assert!(is_sealed(&lab, "n1")?);

    let token = lab.on("n1", &["swarm", "join-token", "-q", "manager"])?;
    let remote = format!("{}:2377", lab.addr("n1"));
    lab.on("n2", &["swarm", "join", "--token", token.trim(), &remote])?;
    wait_sealed(&lab, "n2", true)?;
    restart(&lab, "n2")?;
    let (_, said) = lab.refused("n2", &["node", "ls"])?;
    assert!(said.contains(LOCKED), "{said}");
    text(&unlock(&lab, "n2", &key)?)?;
    wait_ready(&lab, "n2", 2)?;

    restart(&lab, "n2")?;
    lab.on("n2", &["swarm", "leave", "--force"])?;
    let info = lab.on("n2", &["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    assert_eq!(info.trim(), "inactive");
    Ok(())
}
