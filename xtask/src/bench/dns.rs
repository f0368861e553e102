//! Names: queries per second against docker's embedded server and Podman's aardvark-dns, and from ten names to 100,000.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    Bench, Pair,
    docker::{IMAGE, Sides},
    network::{goal, median, processor},
    until,
};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "dns",
    about: "queries per second against docker's embedded server and aardvark-dns, and from 10 to 100,000 names",
    run: dns,
}];

const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";
/// Where aardvark listens, and the container that asks it.
const AARDVARK_AT: &str = "10.89.0.1";
const AARDVARK_CLIENT: &str = "10.89.0.2";
const ROUNDS: usize = 7;
/// Length of one measurement, in seconds.
const MEASURE_S: &str = "1";
/// Queries that wait for their answers at a time.
const OUTSTANDING: &str = "100";
/// Names that are asked for.
const ASKED: u32 = 10;
const NAMES: [u32; 3] = [10, 1_000, 100_000];
/// What must be reached of a peer's rate; and with 100,000 names, of that with ten.
const OF_PEER_MIN: f64 = 5.0;
const FLAT_MIN: f64 = 0.9;

/// A server, and how to ask it.
struct Server {
    name: String,
    /// Words that enter the client's namespace.
    enter: Vec<String>,
    at: &'static str,
    from: Option<&'static str>,
    questions: PathBuf,
    /// Its process.
    pid: u32,
}

/// A namespace with a resolver in it. Both are gone when dropped.
struct Served {
    netns: String,
    child: Option<Child>,
    /// Where a server that goes on by itself has written its number.
    pid_file: Option<PathBuf>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(Ok(pid)) = self.pid_file.take().map(fs::read_to_string) {
            let _ = shell::read("kill", &[pid.trim()]);
        }
        let _ = shell::read("ip", &["netns", "delete", &self.netns]);
    }
}

impl Served {
    fn namespace(name: &str) -> Result<Self> {
        let netns = format!("shoal-bench-{name}");
        let _ = shell::read("ip", &["netns", "delete", &netns]);
        shell::read("ip", &["netns", "add", &netns])?;
        let served = Self {
            netns,
            child: None,
            pid_file: None,
        };
        served.inside("ip link set lo up")?;
        Ok(served)
    }

    fn inside(&self, line: &str) -> Result<String> {
        let enter = ["netns", "exec", &self.netns];
        let words: Vec<&str> = line.split(' ').collect();
        shell::read("ip", &[&enter[..], &words].concat())
    }

    fn enter(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.netns]
            .map(str::to_owned)
            .to_vec()
    }
}

fn dns(bench: &Bench) -> Result<()> {
    let folder = shell::target().join("bench-dns");
    fs::create_dir_all(&folder)?;
    let mut held = Vec::new();
    let mut servers = Vec::new();
    for names in NAMES {
        let (served, server) = ours(&folder, names)?;
        held.push(served);
        servers.push(server);
    }
    let (served, server) = aardvark(&folder)?;
    held.push(served);
    servers.push(server);
    let sides = Sides::up(bench)?;
    servers.push(dockers(&sides, &folder)?);

    let mut rounds: Vec<Vec<(f64, f64)>> = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = vec![(0.0, 0.0); servers.len()];
        for step in 0..servers.len() {
            let at = (round + step) % servers.len();
            measured[at] = measure(&servers[at])?;
        }
        rounds.push(measured);
    }
    println!("names:");
    for (at, server) in servers.iter().enumerate() {
        let rate = median(rounds.iter().map(|round| round[at].0));
        let per_processor = median(rounds.iter().map(|round| round[at].1));
        println!(
            "  {:24} {rate:>9.0} queries/s {per_processor:>9.0} per processor second",
            server.name
        );
    }
    let ratio = |of: usize, to: usize, pick: fn(&(f64, f64)) -> f64| {
        median(
            rounds
                .iter()
                .map(|round| pick(&round[of]) / pick(&round[to])),
        )
    };
    for peer in [NAMES.len(), NAMES.len() + 1] {
        let name = &servers[peer].name;
        goal(
            &format!("queries of {name}'s"),
            ratio(0, peer, |one| one.0),
            OF_PEER_MIN,
        );
        let by_processor = ratio(0, peer, |one| one.1);
        goal(
            &format!("queries per processor second of {name}'s"),
            by_processor,
            OF_PEER_MIN,
        );
    }
    let flat = ratio(NAMES.len() - 1, 0, |one| one.1);
    goal("100,000 names of ten, per processor second", flat, FLAT_MIN);
    drop(sides);
    drop(held);
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A file of questions for `dnsperf`.
fn questions(folder: &Path, name: &str, names: impl Iterator<Item = String>) -> Result<PathBuf> {
    let path = folder.join(name);
    let lines: Vec<String> = names.map(|name| format!("{name} A\n")).collect();
    fs::write(&path, lines.concat())?;
    Ok(path)
}

fn ours(folder: &Path, names: u32) -> Result<(Served, Server)> {
    let mut served = Served::namespace(&format!("dns{names}"))?;
    let program = shell::example("resolver")?;
    let netns = format!("/run/netns/{}", served.netns);
    let mut child = Command::new(program)
        .args([&netns, &names.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let pid = child.id();
    served.child = Some(child);
    let mut first = String::new();
    BufReader::new(stdout).read_line(&mut first)?;
    ensure!(
        !first.is_empty(),
        "the resolver of {names} names ended at once"
    );
    // All over the table, in an order that no cache foresees.
    let asked =
        (0..names.min(5_000)).map(|n| format!("web{}", n.wrapping_mul(0x9e37_79b1) % names));
    let server = Server {
        name: format!("shoal, {names} names"),
        enter: served.enter(),
        at: "127.0.0.11",
        from: None,
        questions: questions(folder, &format!("shoal{names}"), asked)?,
        pid,
    };
    Ok((served, server))
}

fn aardvark(folder: &Path) -> Result<(Served, Server)> {
    let mut served = Served::namespace("aardvark")?;
    for address in [AARDVARK_AT, AARDVARK_CLIENT] {
        served.inside(&format!("ip address add {address}/24 dev lo"))?;
    }
    let config = folder.join("aardvark");
    fs::create_dir_all(&config)?;
    let container = |n: u32| format!("{n:064x} 10.89.0.{}  web{n}\n", n + 2);
    let containers: Vec<String> = (0..ASKED).map(container).collect();
    fs::write(
        config.join("bench"),
        format!("{AARDVARK_AT}\n{}", containers.concat()),
    )?;
    let started = Command::new("ip")
        .args(["netns", "exec", &served.netns, AARDVARK, "--config"])
        .arg(&config)
        .args(["--port", "53", "run"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(started.success(), "aardvark-dns ended with {started}");
    // The program that was started has left another one behind.
    let pid_file = config.join("aardvark.pid");
    let mut pid = 0;
    until("aardvark-dns to write its number", || {
        let written = fs::read_to_string(&pid_file).unwrap_or_default();
        pid = written.trim().parse().unwrap_or(0);
        Ok(pid > 0)
    })?;
    served.pid_file = Some(pid_file);
    let server = Server {
        name: "aardvark-dns".to_owned(),
        enter: served.enter(),
        at: AARDVARK_AT,
        from: Some(AARDVARK_CLIENT),
        questions: questions(
            folder,
            "aardvark-questions",
            (0..ASKED).map(|n| format!("web{n}")),
        )?,
        pid,
    };
    until("aardvark-dns", || Ok(measure(&server).is_ok()))?;
    Ok((served, server))
}

fn dockers(sides: &Sides<'_>, folder: &Path) -> Result<Server> {
    sides.theirs(&["network", "create", "bench"])?;
    for n in 0..ASKED {
        let name = format!("web{n}");
        sides.theirs(&[
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "bench",
            IMAGE,
            "sleep",
            "100000",
        ])?;
    }
    let key = sides.theirs(&["inspect", "--format", "{{.State.Pid}}", "web0"])?;
    let netns = format!("--net=/proc/{}/ns/net", key.trim());
    let mut enter = sides.words("n2");
    enter.extend(["nsenter".to_owned(), netns]);
    Ok(Server {
        name: "docker".to_owned(),
        enter,
        at: "127.0.0.11",
        from: None,
        questions: questions(folder, "docker", (0..ASKED).map(|n| format!("web{n}")))?,
        pid: sides.dockerd_pid()?,
    })
}

/// Queries per second, and per second of the server's processor time. Lost queries are a failure.
fn measure(server: &Server) -> Result<(f64, f64)> {
    let before = processor(server.pid)?;
    let questions = server.questions.to_string_lossy();
    let mut words: Vec<&str> = server.enter.iter().skip(1).map(String::as_str).collect();
    words.extend([
        "dnsperf",
        "-s",
        server.at,
        "-d",
        &questions,
        "-l",
        MEASURE_S,
        "-q",
        OUTSTANDING,
    ]);
    words.extend(["-c", "4", "-T", "1"]);
    if let Some(from) = server.from {
        words.extend(["-a", from]);
    }
    let said = shell::read(&server.enter[0], &words)?;
    let number = |of: &str| -> Result<f64> {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(of));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.with_context(|| format!("no {of:?} in {said}"))?
            .parse()
            .context("a number")
    };
    let answered = number("Queries completed:")?;
    ensure!(
        said.contains("NOERROR") && answered > 0.0,
        "{} does not answer: {said}",
        server.name
    );
    let spent = processor(server.pid)? - before;
    Ok((number("Queries per second:")?, answered / spent))
}
