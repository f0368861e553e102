//! Names: queries per second against docker's embedded server and Podman's aardvark-dns, and from ten names to 100,000.
//!
//! On a machine of few processors it is the asking program that a good server waits for, and the rate says nothing of the
//! server. So every server in turn also gets the same small share of one processor (a control group's bandwidth), which all
//! of them use up while as many queries as before wait for their answers. What the kernel does to send an answer counts
//! as the server's, since it happens in its call; what it does to send a question counts as the client's. Both then run on
//! the same processor: across two, each answer may have to wake the client by an interrupt, which in a virtual machine costs
//! more than the answer, and whether it has to depends on where the scheduler has put the two: the same server gave from
//! 250,000 to 560,000 answers per second of its time. Docker's server is compared with ours as a container has it, packets
//! led to another port included; aardvark-dns with ours at port 53.

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

/// The processor on which a server with a share runs, and its client.
const PROCESSOR: &str = "0";
/// The share of it that a server has.
const SHARE: f64 = 0.1;
/// Over how long it is counted, in microseconds; short, so that no query waits for long.
const SHARE_PERIOD_US: u32 = 10_000;

/// A control group by whose bandwidth servers are limited. To be dropped after they have ended.
struct Share(PathBuf);

impl Drop for Share {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl Share {
    fn new() -> Result<Self> {
        let controller = Path::new("/sys/fs/cgroup/cpu");
        let version_1 = controller.join("cpu.cfs_quota_us").exists();
        let parent = if version_1 {
            controller
        } else {
            Path::new("/sys/fs/cgroup")
        };
        if !version_1 {
            fs::write(parent.join("cgroup.subtree_control"), "+cpu")?;
        }
        let folder = parent.join("shoal-bench-dns");
        fs::create_dir_all(&folder)?;
        let share = Self(folder);
        let quota = SHARE * f64::from(SHARE_PERIOD_US);
        if version_1 {
            share.say("cpu.cfs_period_us", &SHARE_PERIOD_US.to_string())?;
            share.say("cpu.cfs_quota_us", &format!("{quota:.0}"))?;
        } else {
            share.say("cpu.max", &format!("{quota:.0} {SHARE_PERIOD_US}"))?;
        }
        Ok(share)
    }

    fn say(&self, file: &str, value: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).with_context(|| path.display().to_string())
    }

    /// Puts a process under the limit and on its processor, or back to where it is under none.
    fn limit(&self, pid: u32, limited: bool) -> Result<()> {
        let pid = pid.to_string();
        let processors = match limited {
            true => PROCESSOR.to_owned(),
            false => fs::read_to_string("/sys/devices/system/cpu/online")?,
        };
        let words = [
            "--all-tasks",
            "--cpu-list",
            "--pid",
            processors.trim(),
            &pid,
        ];
        shell::read("taskset", &words)?;
        if limited {
            return self.say("cgroup.procs", &pid);
        }
        let parent = self.0.parent().context("a folder has a parent")?;
        fs::write(parent.join("cgroup.procs"), pid).context("cgroup.procs")
    }
}

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

/// What a server did in one round.
#[derive(Clone, Copy, Default)]
struct Rate {
    /// Queries per second with all the processors that it could have.
    free: f64,
    /// With the same share of one as every other.
    limited: f64,
    /// Per second of its processor time under that limit.
    per_processor: f64,
}

fn dns(bench: &Bench) -> Result<()> {
    let folder = shell::target().join("bench-dns");
    fs::create_dir_all(&folder)?;
    // Before all that it limits, and so dropped after it.
    let share = Share::new()?;
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
    servers.push(of_a_container(&sides, Side::Ours, &folder)?);
    servers.push(of_a_container(&sides, Side::Dockers, &folder)?);

    let mut rounds: Vec<Vec<Rate>> = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = vec![Rate::default(); servers.len()];
        for step in 0..servers.len() {
            let at = (round + step) % servers.len();
            let server = &servers[at];
            let (free, _) = measure(server, false)?;
            share.limit(server.pid, true)?;
            let (limited, per_processor) = measure(server, true)?;
            share.limit(server.pid, false)?;
            measured[at] = Rate {
                free,
                limited,
                per_processor,
            };
        }
        rounds.push(measured);
    }
    println!("names (queries/s; with {SHARE} of a processor; per processor second then):");
    for (at, server) in servers.iter().enumerate() {
        let of = |pick: fn(&Rate) -> f64| median(rounds.iter().map(|round| pick(&round[at])));
        let (free, limited) = (of(|rate| rate.free), of(|rate| rate.limited));
        let per_processor = of(|rate| rate.per_processor);
        println!(
            "  {:24} {free:>9.0} {limited:>9.0} {per_processor:>9.0}",
            server.name
        );
    }
    let ratio = |of: usize, to: usize, pick: fn(&Rate) -> f64| {
        let ratios = rounds
            .iter()
            .map(|round| pick(&round[of]) / pick(&round[to]));
        median(ratios)
    };
    let (peer, container) = (NAMES.len(), NAMES.len() + 1);
    for (ours, theirs) in [(0, peer), (container, container + 1)] {
        let name = &servers[theirs].name;
        println!("  without a limit {:.2} of {name}'s", {
            ratio(ours, theirs, |rate| rate.free)
        });
        goal(
            &format!("queries of {name}'s, with the same share of a processor"),
            ratio(ours, theirs, |rate| rate.limited),
            OF_PEER_MIN,
        );
        goal(
            &format!("queries per processor second of {name}'s"),
            ratio(ours, theirs, |rate| rate.per_processor),
            OF_PEER_MIN,
        );
    }
    let most = NAMES.len() - 1;
    let flat = ratio(most, 0, |rate| rate.free);
    goal("100,000 names of ten, without a limit", flat, FLAT_MIN);
    // What the processor's caches do not hold is read from memory, which a rate that the client limits does not show.
    println!("  and per processor second {:.2}", {
        ratio(most, 0, |rate| rate.per_processor)
    });
    goal(
        "queries with 100,000 names of aardvark-dns's with ten, with the same share of a processor",
        ratio(most, peer, |rate| rate.limited),
        OF_PEER_MIN,
    );
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
    until("aardvark-dns", || Ok(measure(&server, false).is_ok()))?;
    Ok((served, server))
}

/// Whose container asks.
#[derive(Clone, Copy)]
enum Side {
    Ours,
    Dockers,
}

/// A container on a network with as many others as are asked for.
fn of_a_container(sides: &Sides<'_>, side: Side, folder: &Path) -> Result<Server> {
    let run = |words: &[&str]| match side {
        Side::Ours => sides.ours(words),
        Side::Dockers => sides.theirs(words),
    };
    let (name, host, pid) = match side {
        Side::Ours => ("shoal, a container", "n1", sides.daemon_pid("n1")?),
        Side::Dockers => ("docker", "n2", sides.dockerd_pid()?),
    };
    run(&["network", "create", "bench"])?;
    for n in 0..ASKED {
        let name = format!("web{n}");
        let words = ["run", "-d", "--name", &name, "--network", "bench"];
        run(&[&words[..], &[IMAGE, "sleep", "100000"]].concat())?;
    }
    let key = run(&["inspect", "--format", "{{.State.Pid}}", "web0"])?;
    let netns = format!("--net=/proc/{}/ns/net", key.trim());
    let mut enter = sides.words(host);
    enter.extend(["nsenter".to_owned(), netns]);
    Ok(Server {
        name: name.to_owned(),
        enter,
        at: "127.0.0.11",
        from: None,
        questions: questions(folder, name, (0..ASKED).map(|n| format!("web{n}")))?,
        pid,
    })
}

/// Queries per second, and per second of the server's processor time, with the client on the server's processor if that
/// has a share. Lost queries are a failure.
fn measure(server: &Server, limited: bool) -> Result<(f64, f64)> {
    let before = processor(server.pid)?;
    let questions = server.questions.to_string_lossy();
    let mut words: Vec<&str> = server.enter.iter().skip(1).map(String::as_str).collect();
    if limited {
        words.extend(["taskset", "--cpu-list", PROCESSOR]);
    }
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
