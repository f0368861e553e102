//! The cluster's networks as users see them: plain containers in them, addresses, names, ways out.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

use crate::{mesh::Server, names::told};

/// A name server by which every name leads to whoever asks: an answer repeats the question, and has the one address.
const MIRROR: &str = r#"use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 53, Proto => "udp") or die $@;
while (defined $s->recv(my $m, 512)) {
    my $end = 12;
    while (my $length = ord substr $m, $end, 1) { $end += $length + 1 }
    my $asked = substr $m, 12, $end - 7;
    my $answers = unpack("n", substr $asked, -4) == 1;
    my $answer = $answers ? pack("n3Nn", 0xc00c, 1, 1, 1, 4) . $s->peeraddr : "";
    $s->send(substr($m, 0, 2) . pack("n5", 0x8180, 1, $answers ? 1 : 0, 0, 0) . $asked . $answer);
}"#;

/// Starts a container of the demo image, which answers on port 80.
fn run(lab: &TestLab, host: &str, name: &str, more: &[&str]) -> Result<()> {
    let words = [
        &["run", "-d", "--name", name][..],
        more,
        &["shoal-demo:latest"],
    ];
    lab.on(host, &words.concat()).map(drop)
}

/// Address of a container in a network.
fn address(lab: &TestLab, host: &str, container: &str, network: &str) -> Result<String> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    let shown = lab.on(host, &["inspect", "--format", &format, container])?;
    Ok(shown.trim().to_owned())
}

/// What a container gets from an address or name at once.
fn ask(lab: &TestLab, host: &str, container: &str, to: &str) -> Result<String> {
    lab.on(host, &["exec", container, "/demo", "get", to])
}

/// Waits until a container gets an answer from an address or a name.
fn reaches(lab: &TestLab, host: &str, container: &str, to: &str) -> Result<String> {
    wait(&format!("{container} on {host} to reach {to}"), || {
        Ok(ask(lab, host, container, to).map_err(|error| format!("{error:#}")))
    })
}

#[test]
fn plain_containers_join_attachable_networks_on_managers_and_workers() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    lab.on(
        "n1",
        &["network", "create", "-d", "overlay", "--attachable", "ov"],
    )?;
    lab.on("n1", &["network", "create", "-d", "overlay", "closed"])?;
    // What each daemon says of itself, and that a worker is nobody to ask.
    for (host, role) in [("n1", "active/manager"), ("n2", "active/worker")] {
        let ask = |words: &[&str]| {
            let curl = ["curl", "-s", "--unix-socket", "/run/shoal/shoal.sock"];
            text(&lab.output(host, &[&curl, words].concat())?)
        };
        let head = ask(&["-I", "http://d/_ping"])?.to_lowercase();
        for header in [
            "api-version: 1.51",
            "docker-experimental: false",
            "ostype: linux",
            "builder-version: 1",
            &format!("swarm: {role}"),
        ] {
            ensure!(head.contains(&format!("{header}\r\n")), "{host}: {head}");
        }
        let status = ask(&["-o", "/dev/null", "-w", "%{http_code}", "http://d/services"])?;
        let wanted = if role == "active/worker" {
            "503"
        } else {
            "200"
        };
        ensure!(status == wanted, "{host}: {status}");
    }
    let (_, said) = lab.refused("n2", &["service", "ls"])?;
    ensure!(
        said.contains("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state."),
        "{said}"
    );
    let words = "service create --detach --name web --network ov --replicas 2 shoal-demo:latest";
    lab.on("n1", &words.split(' ').collect::<Vec<_>>())?;
    lab.wait_running("web", 2)?;

    // A network that is not for plain containers, and one that does not exist; nothing is left of the attempts.
    let (_, said) = lab.refused(
        "n1",
        &["run", "-d", "--network", "closed", "shoal-demo:latest"],
    )?;
    ensure!(
        said.contains("network closed not manually attachable"),
        "{said}"
    );
    let (_, said) = lab.refused(
        "n2",
        &["run", "-d", "--network", "nowhere", "shoal-demo:latest"],
    )?;
    ensure!(said.contains("network nowhere not found"), "{said}");

    run(
        &lab,
        "n1",
        "one",
        &["--network", "ov", "--network-alias", "first"],
    )?;
    run(&lab, "n2", "two", &["--network", "ov"])?;
    let (one, two) = (
        address(&lab, "n1", "one", "ov")?,
        address(&lab, "n2", "two", "ov")?,
    );
    for to in ["web", "tasks.web", "two", two.as_str()] {
        reaches(&lab, "n1", "one", to)?;
    }
    for to in ["web", "one", "first", one.as_str()] {
        let answer = reaches(&lab, "n2", "two", to)?;
        ensure!(
            to == "web" || answer.contains(&format!("client={two}")),
            "{answer}"
        );
    }
    for (host, name) in [("n1", "one"), ("n2", "two")] {
        let shown = lab.on(host, &["network", "inspect", "ov"])?;
        ensure!(shown.contains(&format!("\"Name\": \"{name}\"")), "{shown}");
    }
    // It counts as a user of the network.
    let (_, said) = lab.refused("n1", &["network", "rm", "closed", "ov"])?;
    ensure!(said.contains("is in use by"), "{said}");

    // Live: into a second network with an address of choice, and out again.
    let second = "network create -d overlay --attachable --subnet 10.77.0.0/24 second";
    lab.on("n1", &second.split(' ').collect::<Vec<_>>())?;
    run(&lab, "n1", "three", &["--network", "second"])?;
    lab.on(
        "n2",
        &["network", "connect", "--ip", "10.77.0.77", "second", "two"],
    )?;
    ensure!(address(&lab, "n2", "two", "second")? == "10.77.0.77");
    reaches(&lab, "n1", "three", "two")?;
    reaches(&lab, "n2", "two", "three")?;
    reaches(&lab, "n2", "two", "one")?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "run",
            "-d",
            "--network",
            "second",
            "--ip",
            "10.77.0.77",
            "shoal-demo:latest",
        ],
    )?;
    ensure!(said.contains("10.77.0.77"), "{said}");
    lab.on("n2", &["network", "disconnect", "second", "two"])?;
    ensure!(
        ask(&lab, "n2", "two", "three").is_err(),
        "no way back into the network that was left"
    );
    reaches(&lab, "n2", "two", "one")?;

    // A restarted daemon keeps the places of running containers; a stopped container gives its own back.
    lab.lab("kill", &["--daemon", "n2"])?;
    lab.lab("start", &["n2"])?;
    reaches(&lab, "n1", "one", "two")?;
    lab.on("n2", &["stop", "-t", "0", "two"])?;
    wait("the name to go with the container", || {
        Ok(match ask(&lab, "n1", "one", "two") {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        })
    })?;
    lab.on("n2", &["start", "two"])?;
    reaches(&lab, "n1", "one", "two")?;
    for (host, name) in [("n1", "one"), ("n1", "three"), ("n2", "two")] {
        lab.on(host, &["rm", "-f", name])?;
    }
    lab.on("n1", &["service", "rm", "web"])?;
    wait("the networks to be free", || {
        Ok(lab
            .on("n1", &["network", "rm", "ov", "second", "closed"])
            .map_err(|error| format!("{error:#}"))
            .or_else(|error| {
                let left = lab.on(
                    "n1",
                    &[
                        "network",
                        "ls",
                        "-q",
                        "-f",
                        "driver=overlay",
                        "-f",
                        "type=custom",
                    ],
                );
                if left.is_ok_and(|left| left.trim().is_empty()) {
                    Ok(String::new())
                } else {
                    Err(error)
                }
            }))
    })?;
    Ok(())
}

#[test]
fn what_a_network_was_made_with_is_in_force_and_shown_on_every_node() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let create = "shoal network create -d overlay --attachable --subnet 10.76.0.0/16 --ip-range 10.76.7.0/24 --gateway \
                  10.76.0.9 --label team=blue -o com.docker.network.driver.mtu=1350 -o speed=high ranged 2>&1";
    let made = lab.output("n1", &["sh", "-c", create])?;
    let made = String::from_utf8_lossy(&made.stdout).into_owned();
    ensure!(
        made.contains("WARNING: the option speed of network ranged has no effect"),
        "what does nothing is named: {made}"
    );
    for (host, name) in [("n1", "one"), ("n2", "two")] {
        run(&lab, host, name, &["--network", "ranged"])?;
        let given = address(&lab, host, name, "ranged")?;
        ensure!(given.starts_with("10.76.7."), "{given}");
        let pid = lab.on(host, &["inspect", "-f", "{{.State.Pid}}", name])?;
        let inside = |words: &[&str]| -> Result<String> {
            let enter = ["nsenter", "-t", pid.trim(), "-n", "ip"];
            let output = lab.output(host, &[&enter[..], words].concat())?;
            text(&output)
        };
        let route = inside(&["route", "show", "default"])?;
        ensure!(route.contains("via 10.76.0.9 "), "{route}");
        let link = inside(&["-o", "link", "show", "eth0"])?;
        ensure!(link.contains("mtu 1350 "), "{link}");
        // A worker knows it by what it carries.
        let shown = lab.on(host, &["network", "inspect", "ranged"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let shown = &shown[0];
        ensure!(
            shown["Labels"] == serde_json::json!({"team": "blue"}),
            "{host}: {shown}"
        );
        ensure!(
            shown["Attachable"] == true && shown["Scope"] == "swarm",
            "{host}: {shown}"
        );
        let expected = serde_json::json!([
            {"Subnet": "10.76.0.0/16", "IPRange": "10.76.7.0/24", "Gateway": "10.76.0.9"}
        ]);
        ensure!(shown["IPAM"]["Config"] == expected, "{host}: {shown}");
        ensure!(
            shown["Options"]["com.docker.network.driver.mtu"] == "1350",
            "{host}: {shown}"
        );
    }
    reaches(&lab, "n1", "one", "two")?;
    Ok(())
}

#[test]
fn a_name_server_in_a_network_of_the_cluster_is_asked_from_there() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let create = "network create -d overlay --attachable ov";
    lab.on("n1", &create.split(' ').collect::<Vec<_>>())?;
    run(&lab, "n2", "server", &["--network", "ov"])?;
    let _server = Server::inside(&lab, "n2", "server", MIRROR)?;
    let server = address(&lab, "n2", "server", "ov")?;
    run(
        &lab,
        "n1",
        "asks",
        &["--network", "ov", "--dns", server.as_str()],
    )?;
    // The host has no way there, so an answer alone says much; that it names the container says the rest.
    let own = BTreeSet::from([address(&lab, "n1", "asks", "ov")?]);
    wait("the server to be asked by the container itself", || {
        let told = told(&lab, "n1", "asks", "who.example");
        Ok(if told == own {
            Ok(())
        } else {
            Err(format!("{told:?}, not {own:?}"))
        })
    })?;
    // A service says it by the same flag.
    let words = format!(
        "service create --detach --name asked --network ov --constraint node.hostname==n1 --dns {server} shoal-demo:latest"
    );
    lab.on("n1", &words.split(' ').collect::<Vec<_>>())?;
    lab.wait_running("asked", 1)?;
    let task = lab.on("n1", &["ps", "-q", "--filter", "name=asked."])?;
    let format = "{{(index .NetworkSettings.Networks \"ov\").IPAddress}}";
    let own = lab.on("n1", &["inspect", "--format", format, task.trim()])?;
    let told = told(&lab, "n1", task.trim(), "who.example");
    ensure!(
        told == BTreeSet::from([own.trim().to_owned()]),
        "{told:?}, not {own}"
    );
    Ok(())
}
