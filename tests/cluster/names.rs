//! Names and networks while tasks come and go and hosts lose power: what is told is true, and nothing stale remains.
//!
//! The complaints about Swarm's networks that FEATURES.md ranks 1, 2, 3, 5, 16, 18, 19 and 20, and the tests that show that
//! they do not hold here:
//!
//! | rank | complaint | shown by |
//! |---|---|---|
//! | 1 | the client's address is lost in the mesh | `stack::a_stack_answers_on_every_host_with_the_clients_address`, overlay's `net::a_published_port_answers_on_every_host_and_keeps_the_client`, `ipv6::a_published_port_answers_on_every_host_and_keeps_the_client` |
//! | 2 | names and virtual addresses lead to dead tasks | [`names_tell_the_truth_through_kills_and_scaling`], overlay's `net::an_endpoint_that_stops_serving_gets_no_new_connection`, `heal::every_kind_of_damage_is_repaired_by_itself` |
//! | 3 | updates cut connections; UDP flows stay with a task that is gone | overlay's `isolation::a_thousand_connections_are_spread_evenly_and_running_ones_are_kept`, `net::a_datagram_flow_leaves_a_backend_that_stops_serving` |
//! | 5 | addresses run out without a word, and leak | [`a_full_subnet_is_said_and_addresses_come_back`], `churn::five_hundred_networks_come_and_go_and_leave_nothing`, overlay's `isolation::networks_that_come_and_go_leave_nothing` |
//! | 16 | no IPv6 in overlays and in the mesh | overlay's `ipv6`, all of it |
//! | 18 | encryption that fails open | nothing is sent in clear text, with and without the tunnel: overlay's `tests/encrypted.rs` |
//! | 19 | networks are broken after a reboot | `reboot::a_host_that_lost_power_carries_its_networks_again_and_nothing_stale`, overlay's `net::a_restarted_daemon_adopts_what_it_finds` |
//! | 20 | a wrong MTU, a blocked port | [`the_doctor_names_the_way_that_is_blocked_and_the_one_that_is_narrow`], overlay's `isolation::the_mtu_follows_the_underlay_and_full_packets_pass`, `heal::interfaces_follow_when_the_underlay_becomes_narrow_or_wide` |

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write,
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::{
    lab::{TestLab, program as shoal_program},
    wait,
};

/// Within this time of a change every host tells of it.
const FRESH_MS: u128 = 1_000;

/// Rounds of a test, more of them by an environment variable.
pub(crate) fn rounds(variable: &str, usual: usize) -> usize {
    env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

pub(crate) fn line(lab: &TestLab, host: &str, words: &str) -> Result<String> {
    lab.on(host, &words.split(' ').collect::<Vec<_>>())
}

/// Runs another program than `shoal` on a host.
pub(crate) fn program(lab: &TestLab, host: &str, words: &[&str]) -> Result<String> {
    shoal_tests::lab::text(&lab.output(host, words)?).with_context(|| format!("{host}: {words:?}"))
}

/// A network as `inspect --verbose` shows it.
pub(crate) fn verbose(lab: &TestLab, network: &str) -> Result<Value> {
    let shown = lab.on("n1", &["network", "inspect", "--verbose", network])?;
    Ok(serde_json::from_str::<Value>(&shown)?[0].take())
}

/// Addresses of a service's running tasks.
pub(crate) fn running(lab: &TestLab, network: &str, service: &str) -> Result<BTreeSet<String>> {
    let shown = verbose(lab, network)?;
    let tasks = shown["Services"][service]["Tasks"].as_array().cloned();
    let tasks = tasks.unwrap_or_default().into_iter();
    let running = tasks.filter(|task| task["Info"]["State"] == "running");
    Ok(running
        .filter_map(|task| task["EndpointIP"].as_str().map(str::to_owned))
        .collect())
}

/// What a name resolves to inside a container; nothing if it is unknown.
pub(crate) fn told(lab: &TestLab, host: &str, container: &str, name: &str) -> BTreeSet<String> {
    let said = lab.on(host, &["exec", container, "/demo", "resolve", name]);
    said.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// What a name resolves to inside a container: every change of it, with the time.
struct Telling {
    said: tempfile::NamedTempFile,
    program: Child,
}

impl Telling {
    fn begin(lab: &TestLab, host: &str, container: &str, name: &str) -> Result<Self> {
        let said = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(shoal_program());
        command
            .args(["lab", "exec", "--name", lab.name(), host, "--"])
            .args(["shoal", "exec", container, "/demo", "watch", name])
            .stdin(Stdio::null())
            .stdout(said.reopen()?);
        let program = command.spawn()?;
        Ok(Self { said, program })
    }

    /// Since when, in milliseconds of the era, it is told these addresses; what it is told instead as an error.
    fn since(&self, addresses: &BTreeSet<String>) -> Result<std::result::Result<u128, String>> {
        let said = fs::read_to_string(self.said.path())?;
        // The last line may be half written.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut words = whole.lines().last().unwrap_or_default().split(' ');
        let since = words.next().unwrap_or_default();
        let told: BTreeSet<String> = words.map(str::to_owned).collect();
        Ok(if told == *addresses && !since.is_empty() {
            Ok(since.parse()?)
        } else {
            Err(format!("{told:?}, not {addresses:?}"))
        })
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let _ = self.program.kill(); // it may have ended
        let _ = self.program.wait();
    }
}

/// When the last of a service's running tasks came to run, in milliseconds of the era.
fn last_started(lab: &TestLab, tasks: &[(String, String)]) -> Result<u128> {
    let ids = tasks.iter().map(|(id, _)| id.as_str());
    let words = ["inspect", "--format", "{{.Status.Timestamp}}"];
    let times = lab.on("n1", &words.into_iter().chain(ids).collect::<Vec<_>>())?;
    let mut last = 0;
    for time in times.lines() {
        let output = Command::new("date")
            .args(["-ud", time, "+%s%3N"])
            .output()?;
        let since = shoal_tests::lab::text(&output)?;
        last = last.max(since.trim().parse()?);
    }
    Ok(last)
}

fn now_ms() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}

/// A container on each host that looks around in the network `ov`.
pub(crate) fn eyes(lab: &TestLab, hosts: &[&str]) -> Result<()> {
    line(lab, "n1", "network create -d overlay --attachable ov")?;
    for host in hosts {
        line(
            lab,
            host,
            "run -d --name eye --network ov shoal-demo:latest",
        )?;
    }
    Ok(())
}

#[test]
fn names_tell_the_truth_through_kills_and_scaling() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    let hosts = ["n1", "n2", "n3"];
    eyes(&lab, &hosts)?;
    line(
        &lab,
        "n1",
        "service create --detach --name web --network ov --restart-delay 0s --replicas 3 shoal-demo:latest",
    )?;
    lab.wait_running("web", 3)?;
    let vip = verbose(&lab, "ov")?["Services"]["web"]["VIP"].clone();
    let vip = BTreeSet::from([vip.as_str().context("a virtual address")?.to_owned()]);
    let tellings = hosts.map(|host| Telling::begin(&lab, host, "eye", "tasks.web"));
    let tellings: Vec<Telling> = tellings.into_iter().collect::<Result<_>>()?;
    let (mut before, mut latest) = (BTreeSet::new(), 0);
    for round in 0..rounds("SHOAL_TEST_CYCLES", 4) {
        let replicas = [5, 2, 4, 3][round % 4];
        if round % 2 == 1 {
            // One is killed while the number changes.
            let (_, host) = lab
                .wait_running("web", [5, 2, 4, 3][(round + 3) % 4])?
                .remove(0);
            let task = line(&lab, &host, "ps -q --filter name=web.")?;
            let task = task.lines().next().context("a task on its host")?;
            line(&lab, &host, &format!("kill {task}"))?;
        }
        let scale = format!("service scale --detach web={replicas}");
        line(&lab, "n1", &scale)?;
        let accepted = now_ms();
        let tasks = lab.wait_running("web", replicas)?;
        let changed = accepted.max(last_started(&lab, &tasks)?);
        let now = wait("tasks that run with addresses", || {
            let now = running(&lab, "ov", "web")?;
            Ok(if now.len() == replicas {
                Ok(now)
            } else {
                Err(format!("{now:?}"))
            })
        })?;
        for (host, telling) in hosts.iter().zip(&tellings) {
            let what = format!("{host} to tell of the tasks that run");
            let since = wait(&what, || telling.since(&now))?;
            let late = since.saturating_sub(changed);
            ensure!(late < FRESH_MS, "{host} told it {late} ms after the change");
            latest = latest.max(late);
            ensure!(
                told(&lab, host, "eye", "web") == vip,
                "the virtual address stays"
            );
            ensure!(told(&lab, host, "eye", "WEB.ov") == vip, "in any spelling");
        }
        ensure!(now != before, "{now:?} as before");
        before = now;
    }
    line(&lab, "n1", "service rm web")?;
    let accepted = now_ms();
    for (host, telling) in hosts.iter().zip(&tellings) {
        let since = wait("the name to go", || telling.since(&BTreeSet::new()))?;
        let late = since.saturating_sub(accepted);
        ensure!(
            late < FRESH_MS,
            "{host} told of it for {late} ms after it went"
        );
        latest = latest.max(late);
        ensure!(told(&lab, host, "eye", "web").is_empty());
    }
    let _ = writeln!(
        std::io::stderr(),
        "names were right on every host within {latest} ms of each change"
    );
    Ok(())
}

#[test]
fn a_full_subnet_is_said_and_addresses_come_back() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    line(
        &lab,
        "n1",
        "network create -d overlay --attachable --subnet 10.78.0.0/28 small",
    )?;
    let shown = verbose(&lab, "small")?;
    let subnet = &shown["Status"]["IPAM"]["Subnets"]["10.78.0.0/28"];
    ensure!(
        subnet["IPsInUse"] == 0 && subnet["DynamicIPsAvailable"] == 13,
        "{shown}"
    );
    line(
        &lab,
        "n1",
        "service create --detach --name crowd --network small --publish 8088:80 --replicas 14 shoal-demo:latest idle",
    )?;
    let said = wait("a task that says that its subnet is full", || {
        let tasks = line(&lab, "n1", "service ps --no-trunc crowd")?;
        let full = tasks.contains("no address left in 10.78.0.0/28 (13/13)");
        Ok(if full { Ok(tasks) } else { Err(tasks) })
    })?;
    ensure!(
        said.matches("no address left").count() == 2,
        "twelve have one: {said}"
    );
    let shown = verbose(&lab, "small")?;
    let service = &shown["Services"]["crowd"];
    ensure!(
        service["Tasks"]
            .as_array()
            .is_some_and(|tasks| tasks.len() == 12),
        "{shown}"
    );
    ensure!(
        service["Ports"][0] == "Target: 80, Publish: 8088",
        "{shown}"
    );
    ensure!(
        service["Tasks"][0]["Info"]["Host IP"] == lab.addr("n1").as_str(),
        "{shown}"
    );
    let subnet = &shown["Status"]["IPAM"]["Subnets"]["10.78.0.0/28"];
    ensure!(
        subnet["IPsInUse"] == 13 && subnet["DynamicIPsAvailable"] == 0,
        "{shown}"
    );
    // Fewer replicas: what was given back serves those that wait.
    line(&lab, "n1", "service scale --detach crowd=3")?;
    lab.wait_running("crowd", 3)?;
    wait("addresses to come back", || {
        let shown = verbose(&lab, "small")?;
        let used = shown["Status"]["IPAM"]["Subnets"]["10.78.0.0/28"]["IPsInUse"].clone();
        Ok(if used == 4 {
            Ok(())
        } else {
            Err(shown.to_string())
        })
    })?;
    // An address outside, and a network that is in use.
    let outside = [
        "run",
        "--rm",
        "--network",
        "small",
        "--ip",
        "10.79.0.9",
        "shoal-demo:latest",
        "idle",
    ];
    let (_, said) = lab.refused("n1", &outside)?;
    ensure!(said.contains("10.79.0.9"), "{said}");
    let (_, said) = lab.refused("n1", &["network", "rm", "small"])?;
    ensure!(said.contains("in use"), "{said}");
    let (_, said) = lab.refused(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.78.0.300/28",
            "odd",
        ],
    )?;
    ensure!(said.contains("10.78.0.300/28"), "{said}");
    ensure!(
        !line(&lab, "n1", "network ls")?.contains("odd"),
        "nothing of it is left"
    );
    line(&lab, "n1", "service rm crowd")?;
    wait("the network to be free", || {
        Ok(line(&lab, "n1", "network rm small").map_err(|error| format!("{error:#}")))
    })?;
    Ok(())
}

/// What the doctor says, and whether it is content.
fn doctor(lab: &TestLab, host: &str) -> Result<(Value, bool)> {
    let output = lab.output(host, &["shoal", "doctor", "network", "--format", "json"])?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((report, output.status.success()))
}

#[test]
fn the_doctor_names_the_way_that_is_blocked_and_the_one_that_is_narrow() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    // A node that has just joined may have no tunnel yet.
    let (report, well) = wait("every node to have looked", || {
        let (report, well) = doctor(&lab, "n1")?;
        let nodes = report["Nodes"].as_array().context("nodes")?;
        Ok(if nodes.iter().all(|node| node["Error"] == "") {
            Ok((report, well))
        } else {
            Err(report.to_string())
        })
    })?;
    ensure!(
        well && report["Ways"]
            .as_array()
            .is_some_and(|ways| ways.len() == 6),
        "{report}"
    );
    ensure!(
        report["Nodes"][0]["MTU"] == 1500 && report["Nodes"][0]["Kernel"]["nftables"] == true,
        "{report}"
    );

    // A firewall between two hosts, one way.
    for rule in [
        "add table inet wall",
        "add chain inet wall in { type filter hook prerouting priority -400 ; }",
        &format!(
            "add rule inet wall in ip saddr {} udp dport 4789 drop",
            lab.addr("n2")
        ),
    ] {
        program(&lab, "n3", &["nft", rule])?;
    }
    let (report, well) = doctor(&lab, "n1")?;
    let (second, third) = (lab.addr("n2"), lab.addr("n3"));
    let expected = format!("4789/udp is blocked from n2 ({second}) to n3 ({third})");
    ensure!(
        !well && report["Problems"] == serde_json::json!([expected]),
        "{report}"
    );
    let (code, said) = lab.refused("n1", &["doctor", "network"])?;
    ensure!(code == 1 && said.contains(&expected), "{said}");
    // One that takes datagrams alone, as a network card does that makes wrong checksums: the type of the frame inside,
    // after the headers of UDP and VXLAN and two addresses, is that of IPv6.
    program(&lab, "n3", &["nft", "flush chain inet wall in"])?;
    let datagrams = format!(
        "add rule inet wall in ip saddr {} udp dport 4789 @th,224,16 0x86dd drop",
        lab.addr("n2")
    );
    program(&lab, "n3", &["nft", &datagrams])?;
    let (report, well) = doctor(&lab, "n1")?;
    let expected = format!("datagrams are damaged or lost from n2 ({second}) to n3 ({third})");
    let problems = report["Problems"].as_array().context("a list")?;
    ensure!(!well && problems.len() == 1, "{report}");
    ensure!(
        problems[0]
            .as_str()
            .is_some_and(|said| said.starts_with(&expected)),
        "{report}"
    );
    program(&lab, "n3", &["nft", "delete table inet wall"])?;

    // A host whose own link is narrower than that of the others.
    let link = program(
        &lab,
        "n2",
        &["ip", "-o", "-4", "addr", "show", "to", &second],
    )?;
    let link = link
        .split_whitespace()
        .nth(1)
        .context("an interface")?
        .to_owned();
    program(&lab, "n2", &["ip", "link", "set", &link, "mtu", "1300"])?;
    let report = wait("the narrow link to be named", || {
        let (report, _) = doctor(&lab, "n1")?;
        let problems = report["Problems"].to_string();
        let lost = format!("are lost from n1 ({}) to n2 ({second})", lab.addr("n1"));
        Ok(if problems.contains(&lost) {
            Ok(report)
        } else {
            Err(report.to_string())
        })
    })?;
    ensure!(
        !report["Problems"].to_string().contains("blocked"),
        "{report}"
    );
    // A worker cannot ask for it.
    let (_, said) = lab.refused("n2", &["doctor", "network"])?;
    ensure!(said.contains("manager"), "{said}");
    Ok(())
}

#[test]
fn ports_are_chosen_and_shown_and_names_follow_the_endpoint_mode() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    eyes(&lab, &["n1", "n2"])?;
    line(
        &lab,
        "n1",
        "network create -d overlay --attachable --internal closed",
    )?;
    line(
        &lab,
        "n1",
        "run -d --name shut --network closed shoal-demo:latest",
    )?;

    // A port of the host that nobody named: shown by the task, and open on its host alone.
    line(
        &lab,
        "n1",
        "service create --detach --name near --publish target=80,mode=host --constraint node.hostname==n2 shoal-demo:latest",
    )?;
    lab.wait_running("near", 1)?;
    let port = wait("the port to be shown", || {
        let shown = line(&lab, "n1", "service ps --format {{.Ports}} near")?;
        let port = shown
            .trim()
            .strip_prefix("*:")
            .and_then(|rest| rest.split_once("->80/tcp"));
        Ok(port.map(|(port, _)| port.to_owned()).ok_or(shown))
    })?;
    let port: u16 = port.parse()?;
    wait("the port on the task's host", || {
        Ok(shoal_tests::lab::get(&lab.addr("n2"), port, "/").map_err(|error| error.to_string()))
    })?;
    ensure!(
        shoal_tests::lab::get(&lab.addr("n1"), port, "/").is_err(),
        "n1 has no task"
    );

    // A port of the mesh that nobody named: of docker's range, on every host.
    line(
        &lab,
        "n1",
        "service create --detach --name far --network ov --publish 80 shoal-demo:latest",
    )?;
    lab.wait_running("far", 1)?;
    let format = "{{(index .Endpoint.Ports 0).PublishedPort}}";
    let port: u16 = lab
        .on("n1", &["service", "inspect", "--format", format, "far"])?
        .trim()
        .parse()?;
    ensure!((30_000..=32_767).contains(&port), "{port}");
    for host in ["n1", "n2"] {
        wait("the port on every host", || {
            Ok(
                shoal_tests::lab::get(&lab.addr(host), port, "/")
                    .map_err(|error| error.to_string()),
            )
        })?;
    }

    // Without a virtual address a name leads to every task.
    line(
        &lab,
        "n1",
        "service create --detach --name plain --network ov --endpoint-mode dnsrr --replicas 3 shoal-demo:latest idle",
    )?;
    lab.wait_running("plain", 3)?;
    let tasks = running(&lab, "ov", "plain")?;
    ensure!(
        tasks.len() == 3 && verbose(&lab, "ov")?["Services"]["plain"]["VIP"] == "",
        "{tasks:?}"
    );
    for host in ["n1", "n2"] {
        wait("all tasks by the name", || {
            let told = told(&lab, host, "eye", "plain");
            Ok(if told == tasks {
                Ok(())
            } else {
                Err(format!("{told:?}, not {tasks:?}"))
            })
        })?;
    }
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "odd",
        "--endpoint-mode",
        "dnsrr",
        "-p",
        "81:80",
        "shoal-demo:latest",
    ];
    let (_, said) = lab.refused("n1", &words)?;
    ensure!(
        said.contains(
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"
        ),
        "{said}"
    );

    // From an internal network there is no way out, for packets and for questions, and no way to the other network.
    for to in ["far", "example.com", lab.addr("n2").as_str()] {
        ensure!(ask(&lab, "shut", to).is_err(), "{to} was reached");
    }
    wait("the eye to reach the service", || {
        Ok(ask(&lab, "eye", "far").map_err(|error| format!("{error:#}")))
    })?;
    Ok(())
}

fn ask(lab: &TestLab, container: &str, to: &str) -> Result<String> {
    lab.on("n1", &["exec", container, "/demo", "get", to])
}
