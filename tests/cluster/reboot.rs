//! Hosts that lost power and daemons that were away while things changed: networks come back, and nothing stale remains.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    lab::{TestLab, get},
    wait,
};

use crate::names::{eyes, line, program, rounds, running, told};

/// Once the node is ready and its task runs, everything is reached within this time.
const REACHED_WITHIN: Duration = Duration::from_secs(3);

/// The service of these tests: one task per host.
const SERVICE: &str = "service create --detach --name web --network ov --publish 8088:80 --restart-delay 0s --mode global shoal-demo:latest";

/// What a host holds of networks: interfaces and rules of its own namespace, and the handles of its routers.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    links: BTreeSet<String>,
    /// All words of them, since elements of sets are listed in any order.
    rules: Vec<String>,
    routers: Vec<String>,
}

impl Held {
    fn on(lab: &TestLab, host: &str) -> Result<Self> {
        let links = program(lab, host, &["ip", "-o", "link"])?;
        let name = |line: &str| {
            let name = line.split_whitespace().nth(1)?;
            name.split(['@', ':']).next().map(str::to_owned)
        };
        let rules = program(lab, host, &["nft", "list", "ruleset"])?;
        let words = rules.split([' ', ',', '\t', '\n']);
        let words = words.filter(|word| !word.is_empty());
        let mut rules: Vec<String> = words.map(str::to_owned).collect();
        rules.sort_unstable();
        let routers = routers(lab, host)?;
        let kinds = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self {
            links: links.lines().filter_map(name).collect(),
            rules,
            routers: routers.iter().map(kinds).collect(),
        })
    }

    /// How many routers have an uplink.
    fn uplinks(&self) -> usize {
        let links = self.links.iter();
        links.filter(|link| link.starts_with("shoalu")).count()
    }
}

/// Handles of a host's routers.
fn routers(lab: &TestLab, host: &str) -> Result<Vec<String>> {
    let words = ["find", "/run/shoal", "-path", "*/netns/router-*"];
    let found = program(lab, host, &words)?;
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    Ok(found)
}

/// Runs a program in every router of a host.
fn in_routers(lab: &TestLab, host: &str, command: &str) -> Result<()> {
    for router in routers(lab, host)? {
        let net = format!("--net={router}");
        let words = ["nsenter", &net, "--"].into_iter();
        program(
            lab,
            host,
            &words.chain(command.split(' ')).collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

/// Waits until both tasks are known by name on n1 and answer there, and the port answers on both hosts; fails where that is
/// later than it may be.
fn all_reached(lab: &TestLab) -> Result<()> {
    let (mut began, mut now) = (Instant::now(), running(lab, "ov", "web")?);
    wait("both tasks to be reached by name", || {
        // One that was there when the host was back may be replaced yet; the time runs from then.
        let later = running(lab, "ov", "web")?;
        if later != now {
            (began, now) = (Instant::now(), later);
        }
        let told = told(lab, "n1", "eye", "tasks.web");
        if told != now {
            return Ok(Err(format!("{told:?}, not {now:?}")));
        }
        let reached = told
            .iter()
            .all(|task| lab.on("n1", &["exec", "eye", "/demo", "get", task]).is_ok());
        Ok(if reached {
            Ok(())
        } else {
            Err(format!("not all of {told:?} answer"))
        })
    })?;
    for host in ["n1", "n2"] {
        wait("the published port", || {
            Ok(get(&lab.addr(host), 8088, "/").map_err(|error| error.to_string()))
        })?;
    }
    let took = began.elapsed();
    ensure!(took < REACHED_WITHIN, "reached only after {took:?}");
    Ok(())
}

fn wait_ready(lab: &TestLab) -> Result<()> {
    wait("the host to be ready", || {
        let nodes = line(lab, "n1", "node ls")?;
        Ok(if nodes.matches("Ready").count() == 2 {
            Ok(())
        } else {
            Err(nodes)
        })
    })
}

/// Waits until a host holds this, no more and no less.
fn wait_held(lab: &TestLab, host: &str, expected: &Held) -> Result<()> {
    wait(&format!("{host} to hold what it held before"), || {
        let held = Held::on(lab, host)?;
        Ok(if held == *expected {
            Ok(())
        } else {
            Err(format!("{held:#?}, not {expected:#?}"))
        })
    })
}

#[test]
fn a_host_that_lost_power_carries_its_networks_again_and_nothing_stale() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let (first, second) = (lab.addr("n1"), lab.addr("n2"));
    let nothing = [("n1", &second), ("n2", &first)].map(|(host, other)| {
        wait("ingress with both hosts", || {
            let held = Held::on(&lab, host)?;
            let is_there = held.uplinks() == 1 && held.rules.contains(other);
            Ok(if is_there {
                Ok(held)
            } else {
                Err(format!("{held:#?}"))
            })
        })
    });
    let nothing: Vec<Held> = nothing.into_iter().collect::<Result<_>>()?;
    eyes(&lab, &["n1"])?;
    line(&lab, "n1", SERVICE)?;
    lab.wait_running("web", 2)?;
    all_reached(&lab)?;
    let before = [Held::on(&lab, "n1")?, Held::on(&lab, "n2")?];
    ensure!(
        before
            .iter()
            .all(|held| (held.uplinks(), held.routers.len()) == (2, 2)),
        "{before:#?}"
    );
    for _ in 0..rounds("SHOAL_TEST_REBOOTS", 2) {
        lab.lab("kill", &["n2"])?;
        lab.lab("start", &["n2"])?;
        wait_ready(&lab)?;
        lab.wait_running("web", 2)?;
        all_reached(&lab)?;
        for (host, before) in ["n1", "n2"].iter().zip(&before) {
            wait_held(&lab, host, before)?;
        }
    }
    line(&lab, "n1", "service rm web")?;
    line(&lab, "n1", "rm -f eye")?;
    for (host, nothing) in ["n1", "n2"].iter().zip(&nothing) {
        wait_held(&lab, host, nothing)?;
    }
    Ok(())
}

#[test]
fn a_daemon_that_was_away_brings_about_what_changed_and_repairs_what_was_damaged() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    eyes(&lab, &["n1", "n2"])?;
    line(&lab, "n1", SERVICE)?;
    lab.wait_running("web", 2)?;
    all_reached(&lab)?;
    for (number, damage) in [
        "nft flush ruleset",
        "ip link del vx0",
        "ip route flush table main",
    ]
    .into_iter()
    .enumerate()
    {
        lab.lab("kill", &["--daemon", "n2"])?;
        in_routers(&lab, "n2", damage)?;
        program(&lab, "n2", &["nft", "flush", "ruleset"])?;
        // Meanwhile there is another service, of which n2 knows nothing.
        let late = format!("late{number}");
        let place = "--network ov --constraint node.hostname==n1";
        let create = format!("service create --detach --name {late} {place} shoal-demo:latest");
        line(&lab, "n1", &create)?;
        lab.wait_running(&late, 1)?;
        lab.lab("start", &["n2"])?;
        wait_ready(&lab)?;
        lab.wait_running("web", 2)?;
        all_reached(&lab).with_context(|| format!("after {damage}"))?;
        for service in ["web", &late] {
            let now = running(&lab, "ov", service)?;
            let name = format!("tasks.{service}");
            wait(&format!("n2 to tell of the tasks of {service}"), || {
                let told = told(&lab, "n2", "eye", &name);
                Ok(if told == now {
                    Ok(())
                } else {
                    Err(format!("{told:?}, not {now:?}"))
                })
            })?;
            for task in &now {
                lab.on("n2", &["exec", "eye", "/demo", "get", task])?;
            }
            // By the virtual address, too.
            lab.on("n2", &["exec", "eye", "/demo", "get", service])?;
        }
    }
    Ok(())
}
