//! A lab for network benchmarks, traffic between its namespaces, and the table of what was measured.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Bench, until};

/// Rounds of every pair.
pub(super) const ROUNDS: usize = 11;
/// Length of one measurement, in seconds.
const MEASURE_S: &str = "0.4";
/// Port of the traffic's server.
pub(super) const PORT: u16 = 7000;

/// A lab of so many hosts, gone when dropped, with what was started on it.
pub(super) struct Net<'a> {
    bench: &'a Bench,
    name: &'static str,
    started: Vec<Child>,
    /// Processes between the two ends, whose processor time counts as well.
    between: Vec<u32>,
    /// Namespaces that were made on hosts; their files stay when a host goes.
    made: Vec<String>,
    /// Whether the ends of traffic, and what is between, share one processor. On two of them what decides about a request
    /// is where the scheduler wakes its other end, and one way differs from itself by a third between two rounds; on one,
    /// what the way costs.
    pub(super) on_one_processor: bool,
}

impl Drop for Net<'_> {
    fn drop(&mut self) {
        for mut child in self.started.drain(..).rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.bench.machine(&["lab", "down", "--name", self.name]);
        for name in &self.made {
            let _ = fs::remove_file(format!("/run/netns/{name}"));
        }
    }
}

/// Where traffic starts or ends: a host, and the network namespace of a container on it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) host: &'static str,
    pub(super) netns: Option<String>,
}

impl<'a> Net<'a> {
    /// Brings a lab of hosts up, no cluster on it yet.
    pub(super) fn up(
        bench: &'a Bench,
        name: &'static str,
        nodes: u8,
        subnet: &str,
    ) -> Result<Self> {
        let there = bench.machine(&["lab", "ls", "-q"])?;
        if there.lines().any(|other| other == name) {
            bench.machine(&["lab", "down", "--name", name])?;
        }
        let nodes = nodes.to_string();
        let words = [
            "lab", "up", "--name", name, "--nodes", &nodes, "--subnet", subnet,
        ];
        bench.machine(&words)?;
        Ok(Self {
            bench,
            name,
            started: Vec::new(),
            between: Vec::new(),
            made: Vec::new(),
            on_one_processor: false,
        })
    }

    /// Runs a command on a host and returns what it printed.
    pub(super) fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["lab", "exec", "--name", self.name, host, "--"];
        all.extend(words);
        self.bench.machine(&all)
    }

    /// The same with one line of words.
    pub(super) fn line(&self, host: &str, line: &str) -> Result<String> {
        self.on(host, &line.split(' ').collect::<Vec<_>>())
    }

    /// Starts a command on a host that runs until the lab goes; returns its first line where one is waited for.
    pub(super) fn start(&mut self, host: &str, words: &[&str], wait: bool) -> Result<()> {
        let mut command = Command::new(&self.bench.shoal);
        command.args(["lab", "exec", "--name", self.name, host, "--"]);
        let stdout = if wait { Stdio::piped() } else { Stdio::null() };
        let mut child = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take();
        self.started.push(child);
        if let Some(stdout) = stdout {
            let mut first = String::new();
            BufReader::new(stdout).read_line(&mut first)?;
            ensure!(
                !first.is_empty(),
                "`{}` on {host} ended at once",
                words.join(" ")
            );
        }
        Ok(())
    }

    /// Counts the processor time of what was started last, a program of this name, with that of the two ends.
    pub(super) fn count_last(&mut self, name: &str) -> Result<()> {
        let last = self.started.last().context("nothing was started")?.id();
        self.between.push(below(last, name)?);
        Ok(())
    }

    fn spent_between(&self) -> Result<f64> {
        self.between.iter().map(|pid| processor(*pid)).sum()
    }

    /// Makes a further namespace on a host.
    pub(super) fn namespace(&mut self, host: &str, name: &str) -> Result<()> {
        self.made.push(name.to_owned());
        self.line(host, &format!("ip netns add {name}")).map(drop)
    }

    /// Starts a server of traffic.
    pub(super) fn serve(&mut self, at: &Place, port: u16) -> Result<()> {
        let traffic = traffic();
        let address = format!("0.0.0.0:{port}");
        let serve = vec![&traffic, "traffic", "serve", &address];
        let words = [enter(at), self.processors(), serve].concat();
        self.start(at.host, &words, true)
    }

    /// Words that keep one end of traffic, or what is between, where it belongs.
    pub(super) fn processors(&self) -> Vec<&'static str> {
        match self.on_one_processor {
            true => vec!["taskset", "--cpu-list", "0"],
            false => Vec::new(),
        }
    }

    /// Measures one kind of traffic: operations per second, and per second of processor time of both ends
    /// and of what is between them.
    pub(super) fn measure(&self, from: &Place, kind: &str, to: &str) -> Result<(f64, f64)> {
        let traffic = traffic();
        let ask = vec![&traffic, "traffic", kind, to, MEASURE_S];
        let words = [enter(from), self.processors(), ask].concat();
        let before = self.spent_between()?;
        let told = self.on(from.host, &words)?;
        let numbers: Vec<f64> = told
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [operations, took, processor] = numbers[..] else {
            bail!("unexpected {told:?}");
        };
        let processor = processor + self.spent_between()? - before;
        Ok((operations / took, operations / processor))
    }

    /// Measures one kind of traffic on several ways in turn, and returns the ratios of the first to each other.
    pub(super) fn compare(&self, kind: &str, ways: &[(&str, &Place, String)]) -> Result<Vec<f64>> {
        let mut rounds: Vec<Vec<(f64, f64)>> = Vec::new();
        for round in 0..ROUNDS {
            let mut measured = vec![(0.0, 0.0); ways.len()];
            // Each round begins with another way: what the one before left in caches and queues favours nobody.
            for step in 0..ways.len() {
                let at = (round + step) % ways.len();
                let (name, from, to) = &ways[at];
                let one = self.measure(from, kind, to);
                measured[at] = one.with_context(|| format!("{kind} {name}"))?;
            }
            rounds.push(measured);
        }
        let unit = match kind {
            "stream" => "MB/s",
            "rr" => "requests/s",
            _ => "connections/s",
        };
        for (at, (name, _, _)) in ways.iter().enumerate() {
            let rate = median(rounds.iter().map(|round| round[at].0));
            let per_processor = median(rounds.iter().map(|round| round[at].1));
            println!(
                "  {name:32} {rate:>10.0} {unit:14} {per_processor:>10.0} per processor second"
            );
        }
        let mut ratios = Vec::new();
        for (at, (name, _, _)) in ways.iter().enumerate().skip(1) {
            let of = |pick: fn(&(f64, f64)) -> f64| {
                let mut all: Vec<f64> = rounds.iter().map(|r| pick(&r[0]) / pick(&r[at])).collect();
                all.sort_by(f64::total_cmp);
                all
            };
            let (rate, processor) = (of(|one| one.0), of(|one| one.1));
            println!(
                "  {} / {name}: {:.2} ({:.2} to {:.2}) by time, {:.2} ({:.2} to {:.2}) by processor",
                ways[0].0,
                rate[ROUNDS / 2],
                rate[0],
                rate[ROUNDS - 1],
                processor[ROUNDS / 2],
                processor[0],
                processor[ROUNDS - 1],
            );
            ratios.push(rate[ROUNDS / 2]);
        }
        Ok(ratios)
    }
}

/// Processor time of a process, in seconds.
pub(super) fn processor(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ended meanwhile has nothing more to tell.
        let told = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += told.split(' ').next().unwrap_or("0").parse().unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e9)
}

/// The process of this name below another one, which is that of `lab exec`; `lab exec` itself enters first.
pub(super) fn below(pid: u32, name: &str) -> Result<u32> {
    let mut found = pid;
    until(name, || {
        let children = fs::read_to_string(format!("/proc/{found}/task/{found}/children"))?;
        if fs::read_to_string(format!("/proc/{found}/comm"))?.trim() == name {
            return Ok(true);
        }
        if let Some(child) = children.split_whitespace().next() {
            found = child.parse()?;
        }
        Ok(false)
    })?;
    Ok(found)
}

/// Goals that were missed, for the end of the run.
static MISSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says whether a goal is met; what is measured is printed in any case.
pub(super) fn goal(what: &str, value: f64, least: f64) {
    let verdict = if value >= least { "met" } else { "NOT met" };
    println!("  {what}: {value:.2}, goal at least {least}: {verdict}");
    if value < least {
        let mut missed = MISSED.lock().unwrap_or_else(PoisonError::into_inner);
        missed.push(format!("{what}: {value:.2}, not {least}"));
    }
}

/// The goals that were missed so far.
pub(super) fn missed() -> Vec<String> {
    let missed = MISSED.lock().unwrap_or_else(PoisonError::into_inner);
    missed.clone()
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// This very program, which makes the traffic.
pub(super) fn traffic() -> String {
    let own = std::env::current_exe().expect("a program has a path while it runs");
    own.to_string_lossy().into_owned()
}

/// Words that enter a place on its host.
fn enter(place: &Place) -> Vec<&str> {
    match &place.netns {
        Some(netns) => vec!["nsenter", netns],
        None => Vec::new(),
    }
}
