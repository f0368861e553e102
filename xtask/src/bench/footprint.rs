//! What the daemon and its helpers weigh, and how soon they answer.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Bench, PATIENCE, Pair,
    api::{Api, together},
    containers::crowd,
    docker::{OURS, Sides},
    tell,
};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "footprint",
        about: "memory of an idle daemon, alone, with 100 containers and in a cluster, and size of the programs, beside docker's",
        run: footprint,
    },
    Pair {
        name: "ping",
        about: "a daemon from its start to its first answer, against docker's",
        run: ping,
    },
];

const CONTAINERS: u64 = 100;
/// Removals under way at a time.
const AT_ONCE: usize = 8;
const PING_ROUNDS: usize = 5;
/// Between two attempts to reach a daemon that starts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(1);
/// Programs that docker needs to run a container.
const DOCKERS: [&str; 5] = [
    "/usr/sbin/dockerd",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/sbin/runc",
    "/usr/bin/docker-proxy",
];

/// Memory of some processes in kB.
#[derive(Default, Clone, Copy)]
struct Memory {
    processes: u64,
    rss: u64,
    pss: u64,
    private_dirty: u64,
}

fn footprint(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let (ours, theirs) = (sides.our_api(), sides.their_api());
    let size = |path: &str| fs::metadata(path).map_or(0, |file| file.len());
    println!(
        "programs: shoal {} MB, docker {} MB",
        size(&bench.shoal.to_string_lossy()) >> 20,
        DOCKERS.iter().map(|path| size(path)).sum::<u64>() >> 20,
    );
    let daemon = |host: &str| weigh(&[sides.daemon_pid(host)?]);
    let shims = || weigh(&below(sides.daemon_pid("n1")?, &["shoal-shim"]));
    let dockers = || weigh(&below(sides.above_dockerd()?, &["dockerd", "containerd"]));

    say("idle daemon: shoal", daemon("n1")?);
    say("idle daemon: dockerd and containerd", dockers()?);
    let alone = shims()?;
    let up = crowd(&ours, usize::try_from(CONTAINERS)?)?;
    say("with 100 containers: shoal", daemon("n1")?);
    each("an idle container: shoal", shims()?, alone);
    clear(&ours, &up)?;
    let up = crowd(&theirs, usize::try_from(CONTAINERS)?)?;
    say("with 100 containers: dockerd and containerd", dockers()?);
    // They belong to process 1 of their host.
    let shims = weigh(&below(sides.init_pid("n2")?, &["containerd-shim"]))?;
    each("an idle container: docker", shims, Memory::default());
    clear(&theirs, &up)?;

    sides.ours(&["swarm", "init", "--advertise-addr", OURS])?;
    let token = sides.ours(&["swarm", "join-token", "-q", "worker"])?;
    let manager = format!("{OURS}:2377");
    sides.on(
        "n2",
        &["shoal", "swarm", "join", "--token", token.trim(), &manager],
    )?;
    say("idle manager: shoal", daemon("n1")?);
    say("idle worker: shoal", daemon("n2")?);
    Ok(())
}

fn clear(api: &Api, containers: &[String]) -> Result<()> {
    together(containers, AT_ONCE, |id| api.remove(id)).map(drop)
}

fn say(what: &str, memory: Memory) {
    println!(
        "{what}: RSS {:.1} MB, PSS {:.1} MB, private {:.1} MB in {} processes",
        mega(memory.rss),
        mega(memory.pss),
        mega(memory.private_dirty),
        memory.processes,
    );
}

/// What each of the containers adds to what was there `before`.
fn each(what: &str, with: Memory, before: Memory) {
    println!(
        "{what}: PSS {} kB, private {} kB in {} processes",
        with.pss.saturating_sub(before.pss) / CONTAINERS,
        with.private_dirty.saturating_sub(before.private_dirty) / CONTAINERS,
        (with.processes - before.processes) / CONTAINERS,
    );
}

#[allow(clippy::cast_precision_loss)]
fn mega(kilobytes: u64) -> f64 {
    kilobytes as f64 / 1024.0
}

/// All processes of these names that descend from one; without names, all.
fn below(root: u32, names: &[&str]) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    let mut named = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_string_lossy().parse::<u32>();
        let stat = fs::read_to_string(process.path().join("stat"));
        let (Ok(pid), Ok(stat)) = (pid, stat) else {
            continue;
        };
        let (Some((head, tail)), Some(start)) = (stat.rsplit_once(')'), stat.find('(')) else {
            continue;
        };
        let parent = tail.split_whitespace().nth(1);
        parents.insert(pid, parent.and_then(|pid| pid.parse().ok()).unwrap_or(0));
        if names.is_empty() || names.contains(&&head[start + 1..]) {
            named.push(pid);
        }
    }
    let descends = |pid: &u32| {
        let mut at = *pid;
        while at > 1 && at != root {
            at = parents.get(&at).copied().unwrap_or(0);
        }
        at == root
    };
    named.retain(descends);
    named
}

fn weigh(processes: &[u32]) -> Result<Memory> {
    let mut memory = Memory::default();
    for pid in processes {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .with_context(|| format!("process {pid} has ended"))?;
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number
                .and_then(|number| number.parse::<u64>().ok())
                .unwrap_or(0)
        };
        memory.processes += 1;
        memory.rss += field("Rss:");
        memory.pss += field("Pss:");
        memory.private_dirty += field("Private_Dirty:");
    }
    if memory.processes == 0 {
        bail!("no such process");
    }
    Ok(memory)
}

/// A daemon that ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // What entered the host is not what runs there; asked, that takes back what it has made.
        let all = below(self.0.id(), &[]);
        for pid in all.iter().filter(|pid| **pid != self.0.id()) {
            let mut kill = Command::new("kill");
            let _ = kill.arg(pid.to_string()).stderr(Stdio::null()).status();
        }
        let _ = self.0.wait();
    }
}

/// Both start on folders of their own on a lab host each, after a first start that made what only the first one makes.
fn ping(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let shoal = ["shoal", "daemon", "-H", "unix:///run/shoal/second.sock"];
    let folders = [
        "--data-root",
        "/var/lib/shoal/second",
        "--exec-root",
        "/run/shoal/second",
    ];
    let apart = [
        "--interface-prefix",
        "second",
        "--cgroup-parent",
        "shoal-bench-second",
    ];
    let shoal = [&shoal[..], &folders, &apart].concat();
    let dockerd = [
        "dockerd",
        "-H",
        "unix:///run/shoal/second.sock",
        "--bridge",
        "none",
    ];
    let pid = [
        "--pidfile",
        "/run/shoal/second.pid",
        "--iptables=false",
        "--ip-forward=false",
    ];
    let dockerd = [&dockerd[..], &folders, &pid].concat();
    let once = |host: &str, words: &[&str]| -> Result<Duration> {
        let socket = sides.run_folder(host).join("second.sock");
        let _ = fs::remove_file(&socket);
        let api = Api::at(socket);
        let began = Instant::now();
        let mut command = Command::new(&bench.shoal);
        command.args(sides.entering(host)).args(words);
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut daemon = Daemon(quiet.spawn()?);
        while api.call("GET", "/_ping", "").is_err() {
            if began.elapsed() > PATIENCE || daemon.0.try_wait()?.is_some() {
                bail!("{} does not answer", words[0]);
            }
            thread::sleep(ATTEMPT_PAUSE);
        }
        Ok(began.elapsed())
    };
    once("n1", &shoal)?;
    once("n2", &dockerd)?;
    let mut times = Vec::new();
    for _ in 0..PING_ROUNDS {
        times.push((once("n1", &shoal)?, once("n2", &dockerd)?));
    }
    tell("a daemon's start to its first answer", "docker", &times);
    Ok(())
}
