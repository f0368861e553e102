//! What a cluster promises of what it was told: that it stays, that it is told to nobody else, and that services go on.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::{
    lab::{TestLab, get, program, text},
    wait,
};

use crate::stack::{answers, demo_file};

/// What no disk and no wire may show.
const NEEDLE: &str = "needle-5f1c9a7be3";
/// Credentials for a registry as clients send them: the base64 of `{"username":"somebody","password":"key-80d2e6b1c479"}`.
const CREDENTIALS: &str =
    "eyJ1c2VybmFtZSI6InNvbWVib2R5IiwicGFzc3dvcmQiOiJrZXktODBkMmU2YjFjNDc5In0=";
/// Their password, and the middle of its base64 there.
const PASSWORD: [&str; 2] = ["key-80d2e6b1c479", "tODBkMmU2YjFjNDc5"];

/// A listener on a host. Ended when dropped, at the latest with the lab.
struct Wiretap {
    tcpdump: Child,
    /// What it complains by, open for as long as it lives: it would end by the first word that nobody can hear.
    _said: ChildStderr,
    heard: tempfile::NamedTempFile,
}

impl Drop for Wiretap {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill(); // it may have ended
        let _ = self.tcpdump.wait();
    }
}

impl Wiretap {
    /// Listens to what managers are told and say on a host.
    fn on(lab: &TestLab, host: &str) -> Result<Self> {
        let heard = tempfile::NamedTempFile::new()?;
        let to = heard.path().to_string_lossy().into_owned();
        let mut tcpdump = Command::new(program())
            .args(["lab", "exec", "--name", lab.name(), host, "--", "tcpdump"])
            .args(["-i", "any", "-Z", "root", "-U", "-s", "0", "-w", &to])
            .arg("tcp port 2377")
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump does not start")?;
        // It says when it listens.
        let mut said = tcpdump.stderr.take().context("it is piped")?;
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("listening on") {
            let mut byte = [0];
            ensure!(
                said.read(&mut byte)? == 1,
                "{}",
                String::from_utf8_lossy(&text)
            );
            text.push(byte[0]);
        }
        Ok(Self {
            tcpdump,
            _said: said,
            heard,
        })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.heard.path())?)
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// The answer of a host's API to `POST path` with this JSON, and further headers, each with the end of its line.
fn post(lab: &TestLab, host: &str, path: &str, headers: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(lab.docker_host(host).replace("unix://", ""))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Files of the lab's hosts in which the needle lies open, or the password of the credentials.
fn found_on_disk(lab: &TestLab) -> Result<String> {
    let mut found = String::new();
    for host in ["n1", "n2", "n3"] {
        let grep = Command::new("grep")
            .args(["-r", "-l", "-s", "--devices=skip", "-e", NEEDLE])
            .args(["-e", PASSWORD[0], "-e", PASSWORD[1]])
            .arg(lab.folder(host))
            .output()?;
        found.push_str(&String::from_utf8_lossy(&grep.stdout));
    }
    Ok(found)
}

#[test]
fn what_a_cluster_was_told_stays_and_is_told_to_nobody_else() -> Result<()> {
    let lab = TestLab::up(3, 2)?;
    let tap = Wiretap::on(&lab, "n2")?;

    // A secret is on no disk, neither of managers nor of the node whose task has it, and on no wire.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret");
    std::fs::write(&file, NEEDLE)?;
    lab.on("n1", &["secret", "create", "top", &file.to_string_lossy()])?;
    let words = [
        "service", "create", "--detach", "--name", "keeper", "--secret", "top",
    ];
    let place = [
        "--constraint",
        "node.hostname==n3",
        "shoal-demo:latest",
        "idle",
    ];
    lab.on("n1", &[&words[..], &place[..]].concat())?;
    lab.wait_running("keeper", 1)?;
    let container = lab.on("n3", &["ps", "-q"])?;
    let pid = lab.on(
        "n3",
        &["inspect", "--format", "{{.State.Pid}}", container.trim()],
    )?;
    let inside = format!("/proc/{}/root/run/secrets/top", pid.trim());
    let told = text(&lab.output("n3", &["cat", &inside])?)?;
    assert_eq!(told, NEEDLE, "the task has it");
    // Nor are the credentials of a service whose image is of a registry.
    let spec = r#"{"Name": "paid", "TaskTemplate": {
        "ContainerSpec": {"Image": "shoal-demo:latest", "Args": ["idle"]},
        "Placement": {"Constraints": ["node.hostname==n3"]}}}"#;
    let header = format!("X-Registry-Auth: {CREDENTIALS}\r\n");
    let said = post(&lab, "n1", "/services/create", &header, spec)?;
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    lab.wait_running("paid", 1)?;
    assert_eq!(found_on_disk(&lab)?, "");
    for host in ["n1", "n2", "n3"] {
        let swarm = lab.folder(host).join("lib/swarm");
        let mode = std::fs::metadata(&swarm)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", swarm.display());
    }

    // Two managers are worse than one, which both say.
    for host in ["n1", "n2"] {
        let warnings = lab.on(host, &["info", "--format", "{{.Warnings}}"])?;
        let warning = "Running Swarm in a two-manager configuration";
        assert!(warnings.contains(warning), "{host}: {warnings}");
    }

    // Of two changes of what was read once, one is refused.
    let inspect = ["service", "inspect", "--format"];
    let id = lab.on("n1", &[&inspect[..], &["{{.ID}}", "keeper"]].concat())?;
    let version = lab.on(
        "n1",
        &[&inspect[..], &["{{.Version.Index}}", "keeper"]].concat(),
    )?;
    let spec = lab.on(
        "n1",
        &[&inspect[..], &["{{json .Spec}}", "keeper"]].concat(),
    )?;
    let path = format!("/services/{}/update?version={}", id.trim(), version.trim());
    let both = thread::scope(|scope| {
        let both = ["n1", "n2"].map(|host| {
            let (lab, path, spec) = (&lab, &path, &spec);
            scope.spawn(move || post(lab, host, path, "", spec.trim()))
        });
        both.map(|one| one.join().expect("it does not panic"))
    });
    let [first, second] = both;
    let (first, second) = (first?, second?);
    let (well, ill) = if first.starts_with("HTTP/1.1 200") {
        (first, second)
    } else {
        (second, first)
    };
    assert!(well.starts_with("HTTP/1.1 200"), "{well}");
    assert!(ill.contains("update out of sequence"), "{ill}");

    // All managers die at once and come back with what they had.
    let before = lab.on("n1", &["service", "ls"])?;
    for verb in [&["kill", "--daemon"][..], &["start"][..]] {
        for host in ["n1", "n2"] {
            lab.lab(verb[0], &[&verb[1..], &[host]].concat())?;
        }
    }
    wait("the same services", || {
        let now = lab.on("n2", &["service", "ls"])?;
        Ok(if now == before { Ok(()) } else { Err(now) })
    })?;
    assert_eq!(found_on_disk(&lab)?, "");

    // A rotated token admits, the one before it does not; both name the root certificate.
    let old = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    lab.on("n3", &["swarm", "leave"])?;
    assert_eq!(found_on_disk(&lab)?, "");
    let gone = text(&lab.output("n3", &["cat", "/proc/self/mounts"])?)?;
    assert!(!gone.contains("/run/secrets"), "{gone}");
    let new = lab.on("n1", &["swarm", "join-token", "-q", "--rotate", "worker"])?;
    let digest = |token: &str| token.split('-').nth(2).map(str::to_owned);
    assert_eq!(digest(&old), digest(&new));
    let manager = format!("{}:2377", lab.addr("n1"));
    let (_, said) = lab.refused("n3", &["swarm", "join", "--token", old.trim(), &manager])?;
    assert!(said.contains("token"), "{said}");
    lab.on("n3", &["swarm", "join", "--token", new.trim(), &manager])?;
    // A worker is nobody to join at, and says so.
    lab.on("n2", &["swarm", "leave", "--force"])?;
    let worker = format!("{}:2377", lab.addr("n3"));
    let (_, said) = lab.refused("n2", &["swarm", "join", "--token", new.trim(), &worker])?;
    assert!(said.contains(&worker), "{said}");

    let heard = tap.bytes()?;
    if heard.len() < 10_000 {
        bail!("only {} bytes were heard", heard.len());
    }
    for open in [NEEDLE, PASSWORD[0], PASSWORD[1], "/shoal.v1.", "keeper"] {
        assert!(!contains(&heard, open), "{open:?} was heard on the wire");
    }
    Ok(())
}

#[test]
fn services_go_on_without_managers_and_without_a_host() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    // Names are answered by the host's daemon, so that tasks beside the manager's would lose them with it.
    lab.on("n1", &["node", "update", "--availability", "drain", "n1"])?;
    lab.on(
        "n1",
        &["stack", "deploy", "--detach", "-c", &demo_file(), "demo"],
    )?;
    lab.wait_running("demo_web", 3)?;
    lab.wait_running("demo_backend", 1)?;
    for host in ["n2", "n3"] {
        answers(&lab, host, 3)?;
    }
    // Every manager's daemon is gone: published ports answer, names resolve.
    lab.lab("kill", &["--daemon", "n1"])?;
    for host in ["n2", "n3"] {
        answers(&lab, host, 3)?;
        let body = get(&lab.addr(host), 8080, "/")?;
        assert!(
            body.contains(&format!(" client={} ", lab.machine())),
            "{body}"
        );
    }
    lab.lab("start", &["n1"])?;

    // A host without power: its task moves, also where the policy is never to start anything again.
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "once",
        "--restart-condition",
        "none",
    ];
    let place = ["--constraint", "node.hostname!=n1", "--replicas", "2"];
    let rest = ["shoal-demo:latest", "idle"];
    wait("the manager", || {
        Ok(lab.on("n1", &["node", "ls"]).map_err(|e| e.to_string()))
    })?;
    lab.on("n1", &[&words[..], &place[..], &rest[..]].concat())?;
    lab.wait_running("once", 2)?;
    lab.lab("kill", &["n3"])?;
    wait("both on n2", || {
        let now = lab.wait_running("once", 2)?;
        Ok(if now.iter().all(|(_, node)| node == "n2") {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        })
    })
}
