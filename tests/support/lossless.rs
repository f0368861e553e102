//! The story of a service that is updated, drained and scaled while it is asked all the time, inside and outside.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    lab::TestLab,
    load::{Load, Seen},
    wait, wait_within,
};

/// Whoever is asked says when he can answer, and whoever asks waits for that.
const STACK: &str = "
services:
  web:
    image: shoal-demo:latest
    ports: ['8080:80']
    healthcheck: {test: [CMD, /demo, get, 127.0.0.1], interval: 10s, timeout: 30s, start_interval: 200ms, start_period: 60s}
    deploy: {replicas: 6, update_config: {parallelism: 2}}
  client:
    image: shoal-demo:latest
    command: [load, web, '200', '0']
    depends_on: {web: {condition: service_healthy}}
    deploy: {restart_policy: {condition: none}, placement: {constraints: [node.hostname==n3]}}
";
/// Requests per second through each of the two ways.
const RATE: u64 = 200;
/// The published port.
const PORT: u16 = 8080;
/// Time after which an update is thought to hang.
const UPDATE_MAX: Duration = Duration::from_secs(300);
/// Tasks of the service.
const REPLICAS: usize = 6;
/// Share of the requests that were due which must have been made, for the rest to say anything.
const ASKED_MIN: f64 = 0.9;

/// What became of the requests of one way.
#[derive(Debug)]
pub struct Asked {
    /// The requests.
    pub seen: Seen,
    /// How long they were made.
    pub lasted: Duration,
}

/// What was asked through the virtual address, and through the published port of all hosts in turn.
#[derive(Debug)]
pub struct Told {
    /// By a task of the cluster.
    pub inside: Asked,
    /// By the machine.
    pub outside: Asked,
}

impl Told {
    /// Fails when a request was lost, with the first of them.
    ///
    /// # Errors
    /// If a request failed, or if there were not enough of them to say anything.
    pub fn check(&self) -> Result<()> {
        for (way, asked) in [
            ("virtual address", &self.inside),
            ("published port", &self.outside),
        ] {
            let Seen {
                requests, failed, ..
            } = &asked.seen;
            if !failed.is_empty() {
                let some: Vec<&str> = failed.iter().take(20).map(String::as_str).collect();
                bail!(
                    "{way}: {} of {requests} requests failed:\n{}",
                    failed.len(),
                    some.join("\n")
                );
            }
            let due = RATE as f64 * asked.lasted.as_secs_f64();
            if (*requests as f64) < ASKED_MIN * due {
                bail!(
                    "{way}: only {requests} requests in {:.1} s, {due:.0} were due",
                    asked.lasted.as_secs_f64()
                );
            }
        }
        Ok(())
    }
}

/// Forces `rounds` rolling updates, in turn stop-first and start-first, drains a host with `drained` tasks, stop-first, and
/// scales down, on a lab of three hosts, while the service is asked.
///
/// # Errors
/// If a step does not come to its end; lost requests are in the answer.
pub fn story(lab: &TestLab, rounds: usize, drained: usize) -> Result<Told> {
    let file = tempfile::Builder::new().suffix(".yml").tempfile()?;
    std::fs::write(file.path(), STACK)?;
    let file = file.path().to_string_lossy();
    lab.on("n1", &["stack", "deploy", "-c", &file, "s"])?;
    lab.wait_running("s_web", REPLICAS)?;
    lab.wait_running("s_client", 1)?;
    let asked_inside = Instant::now();
    let hosts: Vec<SocketAddr> = ["n1", "n2", "n3"]
        .iter()
        .map(|host| Ok(SocketAddr::new(lab.addr(host).parse()?, PORT)))
        .collect::<Result<_>>()?;
    let outside = Load::begin(&hosts, RATE);
    let asked_outside = Instant::now();

    let told = trouble(lab, rounds, drained);
    let lasted = asked_outside.elapsed();
    let seen = outside.end();
    told.with_context(|| {
        let Seen {
            requests, failed, ..
        } = &seen;
        let first = failed.iter().take(5).cloned().collect::<Vec<_>>();
        let (lost, first) = (failed.len(), first.join("\n"));
        format!("{lost} of {requests} requests from outside were lost so far:\n{first}")
    })?;
    let filter = "label=com.docker.swarm.service.name=s_client";
    let client = lab.on("n3", &["ps", "-q", "-f", filter])?;
    lab.on("n3", &["kill", "-s", "TERM", client.trim()])?;
    let inside = said_inside(lab, asked_inside.elapsed())?;
    Ok(Told {
        inside,
        outside: Asked { seen, lasted },
    })
}

fn trouble(lab: &TestLab, rounds: usize, drained: usize) -> Result<()> {
    for round in 0..rounds {
        let order = if round.is_multiple_of(2) {
            "stop-first"
        } else {
            "start-first"
        };
        let update = ["service", "update", "--detach", "-q", "--force"];
        lab.on(
            "n1",
            &[&update[..], &["--update-order", order, "s_web"]].concat(),
        )?;
        wait_within(UPDATE_MAX, &format!("update {round}, {order}"), || {
            let format = "{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ForceUpdate}}";
            let seen = lab.on("n1", &["service", "inspect", "--format", format, "s_web"])?;
            let done = seen.trim() == format!("completed {}", round + 1);
            Ok(if done { Ok(()) } else { Err(seen) })
        })?;
    }
    // An order of its own, not that of the last update; this restarts nothing.
    let order = ["service", "update", "--detach", "-q", "--update-order"];
    lab.on("n1", &[&order[..], &["stop-first", "s_web"]].concat())?;
    let all = 3 * drained;
    let scale = format!("s_web={all}");
    lab.on("n1", &["service", "scale", "--detach", &scale])?;
    let placed = lab.wait_running("s_web", all)?;
    let there = placed.iter().filter(|(_, node)| node == "n2").count();
    ensure!(there == drained, "{there} tasks on n2: {placed:?}");
    let availability = |what: &str| lab.on("n1", &["node", "update", "--availability", what, "n2"]);
    availability("drain")?;
    wait("no task on the drained host", || {
        let running = lab.wait_running("s_web", all)?;
        let moved = running.iter().all(|(_, node)| node != "n2");
        Ok(if moved {
            Ok(())
        } else {
            Err(format!("{running:?}"))
        })
    })?;
    availability("active")?;
    lab.on("n1", &["service", "scale", "--detach", "s_web=2"])?;
    lab.wait_running("s_web", 2)?;
    wait("the containers of those that are gone to be gone", || {
        let filter = "label=com.docker.swarm.service.name=s_web";
        let mut left = 0;
        for host in ["n1", "n2", "n3"] {
            left += lab.on(host, &["ps", "-q", "-f", filter])?.lines().count();
        }
        Ok(if left == 2 {
            Ok(())
        } else {
            Err(left.to_string())
        })
    })
}

/// What the task that asked says at its end.
fn said_inside(lab: &TestLab, lasted: Duration) -> Result<Asked> {
    let said = wait("the client's last word", || {
        let logs = lab.on("n1", &["service", "logs", "--raw", "s_client"])?;
        let done = logs.lines().any(|line| line.starts_with("requests="));
        Ok(if done { Ok(logs) } else { Err(logs) })
    })?;
    let last = said.lines().rfind(|line| line.starts_with("requests="));
    let requests = last
        .and_then(|line| line.strip_prefix("requests=")?.split_once(' '))
        .and_then(|(requests, _)| requests.parse().ok());
    let lines = |what: &str| {
        said.lines()
            .filter(|line| line.starts_with("request ") && line.contains(what))
            .map(str::to_owned)
            .collect()
    };
    let seen = Seen {
        requests: requests.context("a number of requests")?,
        failed: lines(" failed: "),
        slow: lines(" took "),
    };
    Ok(Asked { seen, lasted })
}
