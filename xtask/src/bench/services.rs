//! Services: against docker's swarm mode, and by themselves on labs of several hosts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    Bench, Pair,
    api::Api,
    docker::{IMAGE, OURS, Sides, THEIRS},
    tell, until,
};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "service",
        about: "a service of 50 replicas, created to running and removed to gone, against docker's swarm mode",
        run: replicas,
    },
    Pair {
        name: "powercut",
        about: "a host loses power: until its tasks run elsewhere, on a lab of three",
        run: power_cut,
    },
    Pair {
        name: "replicas300",
        about: "300 replicas on a lab of three, created to running and removed to gone",
        run: three_hundred,
    },
];

const LAB: &str = "bench3";
/// Power cuts that are measured; the slowest is the 99th percentile.
const POWER_CUTS: usize = 20;
/// Within this time replacements run, in 99 of 100 cases.
const POWER_CUT_MAX: Duration = Duration::from_secs(4);

/// How many times sooner than docker's 50 replicas run, and are gone.
const RATIO_MIN: f64 = 10.0;
/// Within this time 300 replicas run on a lab of three whose hosts share the machine, and within this they are gone.
const THREE_HUNDRED_MAX: Duration = Duration::from_secs(30);

/// Time from `service create` to all tasks running, docker's own way to wait left out, and from `service rm` to the last
/// container gone.
fn replicas(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    sides.ours(&["swarm", "init", "--advertise-addr", OURS])?;
    sides.theirs(&["swarm", "init", "--advertise-addr", THEIRS])?;
    // What is asked meanwhile is asked of the API: a client program each time would take a processor from what is measured.
    let round = |who: &str,
                 side: &dyn Fn(&[&str]) -> Result<String>,
                 api: &Api|
     -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let words = [
            "service",
            "create",
            "--detach",
            "--quiet",
            "--name",
            "idle",
            "--replicas",
            "50",
        ];
        // It ends when it is asked to, so that no side waits for its grace.
        let ends = "trap 'exit 0' TERM; sleep 100000 & wait";
        let rest = [IMAGE, "sh", "-c", ends];
        side(&[words.as_slice(), rest.as_slice()].concat())?;
        until(&format!("50 tasks of {who}"), || {
            let listed = api.call("GET", "/v1.41/services?status=true", "")?;
            Ok(listed.contains(r#""RunningTasks":50"#))
        })?;
        let up = began.elapsed();
        let began = Instant::now();
        side(&["service", "rm", "idle"])?;
        until(&format!("no containers of {who}"), || {
            Ok(api.call("GET", "/v1.41/containers/json?all=1", "")?.trim() == "[]")
        })?;
        Ok((up, began.elapsed()))
    };
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let ours = round("shoal", &|words| sides.ours(words), &sides.our_api())?;
        let theirs = match round("docker", &|words| sides.theirs(words), &sides.their_api()) {
            Ok(theirs) => theirs,
            // Seen with docker 20.10: one of its tasks is neither started nor given up. It would not be better next time.
            Err(error) if !up.is_empty() => {
                println!("  no more rounds, because docker {error:#}");
                break;
            }
            Err(error) => return Err(error),
        };
        up.push((ours.0, theirs.0));
        down.push((ours.1, theirs.1));
    }
    let mut missed = Vec::new();
    for (what, times) in [("created to running", &up), ("removed to gone", &down)] {
        let ratio = tell(&format!("service of 50 replicas, {what}"), "docker", times);
        if ratio < RATIO_MIN {
            missed.push(format!("{what}: {ratio:.1} times sooner"));
        }
    }
    ensure!(
        missed.is_empty(),
        "less than {RATIO_MIN} times sooner than docker: {}",
        missed.join(", ")
    );
    Ok(())
}

/// A lab of three hosts, the first of them the manager. Gone when dropped.
struct Hosts<'a> {
    bench: &'a Bench,
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        let _ = self.bench.machine(&["lab", "down", "--name", LAB]);
    }
}

impl<'a> Hosts<'a> {
    fn up(bench: &'a Bench) -> Result<Self> {
        let there = bench.machine(&["lab", "ls", "-q"])?;
        if there.lines().any(|name| name == LAB) {
            bench.machine(&["lab", "down", "--name", LAB])?;
        }
        bench.machine(&[
            "lab",
            "up",
            "--name",
            LAB,
            "--nodes",
            "3",
            "--managers",
            "1",
        ])?;
        Ok(Self { bench })
    }

    fn lab(&self, verb: &str, host: &str) -> Result<String> {
        self.bench.machine(&["lab", verb, "--name", LAB, host])
    }

    /// Runs our client on the manager.
    fn shoal(&self, words: &[&str]) -> Result<String> {
        let all = [&["lab", "exec", "--name", LAB, "n1", "--", "shoal"], words].concat();
        self.bench.machine(&all)
    }

    /// Hosts of the tasks of a service that run.
    fn running(&self, service: &str) -> Result<Vec<String>> {
        let wanted = ["--filter", "desired-state=running"];
        let format = ["--format", "{{.Node}} {{.CurrentState}}", service];
        let listed = self.shoal(&[&["service", "ps"], &wanted[..], &format[..]].concat())?;
        let tasks = listed.lines().filter_map(|line| line.split_once(' '));
        let tasks = tasks.filter(|(_, state)| state.starts_with("Running"));
        Ok(tasks.map(|(host, _)| host.to_owned()).collect())
    }
}

/// Time from the end of a host's power to the last replacement running.
fn power_cut(bench: &Bench) -> Result<()> {
    let hosts = Hosts::up(bench)?;
    let create = ["service", "create", "--detach", "--quiet", "--name", "idle"];
    let rest = ["--replicas", "6", "shoal-demo:latest", "idle"];
    hosts.shoal(&[&create[..], &rest[..]].concat())?;
    let mut times = Vec::new();
    for round in 0..POWER_CUTS {
        let victim = if round % 2 == 0 { "n2" } else { "n3" };
        // All hosts carry their share again.
        until("all hosts to be ready", || {
            let nodes = hosts.shoal(&["node", "ls", "--format", "{{.Status}}"])?;
            Ok(nodes.lines().filter(|status| *status == "Ready").count() == 3)
        })?;
        if round > 0 {
            let update = ["service", "update", "--detach", "--quiet", "--force"];
            let all_at_once = ["--update-parallelism", "0", "idle"];
            // The managers may be writing something down about it meanwhile.
            until("the update to be taken", || {
                let updated = hosts.shoal(&[&update[..], &all_at_once[..]].concat());
                Ok(updated.is_ok())
            })?;
        }
        until("tasks on the host", || {
            let running = hosts.running("idle")?;
            let there = running.iter().filter(|host| *host == victim).count();
            Ok(running.len() == 6 && there == 2)
        })?;
        let began = Instant::now();
        hosts.lab("kill", victim)?;
        until("replacements", || {
            let running = hosts.running("idle")?;
            Ok(running.len() == 6 && !running.iter().any(|host| host == victim))
        })?;
        times.push(began.elapsed());
        hosts.lab("start", victim)?;
    }
    times.sort();
    let worst = times[times.len() - 1];
    println!(
        "power cut to replacements running: median {:.2} s, 90 % {:.2} s, slowest of {POWER_CUTS} {:.2} s",
        times[times.len() / 2].as_secs_f64(),
        times[times.len() * 9 / 10].as_secs_f64(),
        worst.as_secs_f64(),
    );
    ensure!(
        worst <= POWER_CUT_MAX,
        "the slowest took longer than {POWER_CUT_MAX:?}"
    );
    Ok(())
}

/// 300 replicas on three hosts.
fn three_hundred(bench: &Bench) -> Result<()> {
    let hosts = Hosts::up(bench)?;
    let began = Instant::now();
    let create = ["service", "create", "--detach", "--quiet", "--name", "idle"];
    let grace = ["--replicas", "300", "--stop-grace-period", "0s"];
    let rest = ["shoal-demo:latest", "idle"];
    hosts.shoal(&[&create[..], &grace[..], &rest[..]].concat())?;
    until("300 tasks", || {
        let replicas = hosts.shoal(&["service", "ls", "--format", "{{.Replicas}}"])?;
        Ok(replicas.starts_with("300/300"))
    })?;
    let up = began.elapsed();
    let began = Instant::now();
    hosts.shoal(&["service", "rm", "idle"])?;
    for host in ["n1", "n2", "n3"] {
        until("no containers", || {
            let words = [
                "lab", "exec", "--name", LAB, host, "--", "shoal", "ps", "-aq",
            ];
            Ok(bench.machine(&words)?.is_empty())
        })?;
    }
    let down = began.elapsed();
    println!(
        "300 replicas on three hosts: {:.2} s to running, {:.2} s to gone",
        up.as_secs_f64(),
        down.as_secs_f64(),
    );
    ensure!(
        up.max(down) <= THREE_HUNDRED_MAX,
        "one of the two took longer than {THREE_HUNDRED_MAX:?}"
    );
    Ok(())
}
