//! On which addresses and by which port the cluster's networks travel, in both families, and what distributes connections.

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, text},
    wait,
};

use crate::names::{line, program, verbose};

/// The hosts' IPv6 addresses on the underlay of these tests.
const V6: [(&str, &str); 2] = [("n1", "fd10::11"), ("n2", "fd10::12")];

/// The interface with a host's address.
fn link(lab: &TestLab, host: &str) -> Result<String> {
    let addr = lab.addr(host);
    let shown = program(lab, host, &["ip", "-o", "-4", "addr", "show", "to", &addr])?;
    let link = shown.split_whitespace().nth(1);
    Ok(link.context("an interface")?.to_owned())
}

/// Gives a host a second address.
fn add_address(lab: &TestLab, host: &str, net: &str) -> Result<()> {
    let link = link(lab, host)?;
    let words = ["ip", "addr", "add", net, "dev", &link];
    let family: &[&str] = if net.contains(':') { &["nodad"] } else { &[] };
    program(lab, host, &[&words[..], family].concat()).map(drop)
}

/// What a router of a host says of its tunnel, by the network's id.
fn tunnel(lab: &TestLab, host: &str, network: &str) -> Result<String> {
    let shown = verbose(lab, network)?;
    let name = format!(
        "*/netns/router-{}",
        shown["Id"].as_str().unwrap_or_default()
    );
    let found = program(lab, host, &["find", "/run/shoal", "-path", &name])?;
    let net = format!("--net={}", found.trim());
    let device = ["nsenter", &net, "--", "ip", "-d", "link", "show", "vx0"];
    let ways = ["nsenter", &net, "--", "bridge", "fdb", "show", "dev", "vx0"];
    Ok(program(lab, host, &device)? + &program(lab, host, &ways)?)
}

/// A cluster of two hosts that is made with these words for the first and the second.
fn cluster(lab: &TestLab, first: &str, second: &str, at: &str) -> Result<()> {
    line(lab, "n1", &format!("swarm init {first}"))?;
    let token = line(lab, "n1", "swarm join-token -q worker")?;
    let join = format!("swarm join --token {} {second} {at}", token.trim());
    line(lab, "n2", &join).map(drop)
}

/// A network with a container on each host; waits until one reaches the other by its name.
fn two_containers(lab: &TestLab) -> Result<()> {
    line(lab, "n1", "network create -d overlay --attachable ov")?;
    for (host, name) in [("n1", "one"), ("n2", "two")] {
        let run = format!("run -d --name {name} --network ov shoal-demo:latest");
        line(lab, host, &run)?;
    }
    wait("one to reach two", || {
        Ok(line(lab, "n1", "exec one /demo get two").map_err(|error| format!("{error:#}")))
    })?;
    Ok(())
}

#[test]
fn the_data_path_has_its_own_address_and_port() -> Result<()> {
    let lab = TestLab::up(2, 0)?;
    add_address(&lab, "n1", "10.250.0.11/24")?;
    add_address(&lab, "n2", "10.250.0.12/24")?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "swarm",
            "init",
            "--data-path-port",
            "80",
            "--advertise-addr",
            &lab.addr("n1"),
        ],
    )?;
    ensure!(said.contains("80") && said.contains("1024"), "{said}");
    let first = format!(
        "--advertise-addr {} --data-path-addr 10.250.0.11 --data-path-port 7789 --default-addr-pool 10.99.0.0/16 \
         --default-addr-pool-mask-length 26",
        lab.addr("n1")
    );
    let second = "--data-path-addr 10.250.0.12";
    cluster(&lab, &first, second, &format!("{}:2377", lab.addr("n1")))?;
    // What the cluster itself says goes by the other addresses: these carry packets of networks alone.
    two_containers(&lab)?;
    for (host, own, other) in [
        ("n1", "10.250.0.11", "10.250.0.12"),
        ("n2", "10.250.0.12", "10.250.0.11"),
    ] {
        let shown = tunnel(&lab, host, "ov")?;
        ensure!(
            shown.contains("dstport 7789") && shown.contains(&format!("local {own} ")),
            "{host}: {shown}"
        );
        ensure!(shown.contains(&format!("dst {other}")), "{host}: {shown}");
    }
    // Subnets are of the pool and the size that were said.
    for (network, subnet) in [("ingress", "10.99.0.0/26"), ("ov", "10.99.0.64/26")] {
        let shown = verbose(&lab, network)?;
        ensure!(shown["IPAM"]["Config"][0]["Subnet"] == subnet, "{shown}");
    }
    // The usual address is not one of a tunnel's: without the other there is no way.
    let link = link(&lab, "n2")?;
    program(
        &lab,
        "n2",
        &["ip", "addr", "del", "10.250.0.12/24", "dev", &link],
    )?;
    ensure!(
        line(&lab, "n1", "exec one /demo get two").is_err(),
        "the packets go another way than they should"
    );
    ensure!(line(&lab, "n1", "node ls")?.matches("Ready").count() == 2);
    Ok(())
}

#[test]
fn a_cluster_whose_hosts_have_only_ipv6_carries_both_families() -> Result<()> {
    let lab = TestLab::up(2, 0)?;
    for (host, addr) in V6 {
        add_address(&lab, host, &format!("{addr}/64"))?;
    }
    let first = "--advertise-addr fd10::11 --listen-addr [::]:2377";
    cluster(&lab, first, "--advertise-addr fd10::12", "[fd10::11]:2377")?;
    two_containers(&lab)?;
    let shown = tunnel(&lab, "n1", "ov")?;
    ensure!(
        shown.contains("local fd10::11 ") && shown.contains("dst fd10::12"),
        "{shown}"
    );
    // 1500 bytes less 20 more than the 50 that a tunnel in IPv4 takes.
    let pid = line(&lab, "n1", "inspect -f {{.State.Pid}} one")?;
    let words = [
        "nsenter",
        "-t",
        pid.trim(),
        "-n",
        "ip",
        "-o",
        "link",
        "show",
        "eth0",
    ];
    let shown = program(&lab, "n1", &words)?;
    ensure!(shown.contains("mtu 1430 "), "{shown}");
    Ok(())
}

#[test]
fn a_network_with_both_families_has_names_ports_and_clients_in_both() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    busybox::load(&lab, &["n1", "n2"])?;
    for (host, addr) in V6 {
        add_address(&lab, host, &format!("{addr}/64"))?;
    }
    line(
        &lab,
        "n1",
        "network create -d overlay --attachable --ipv6 --subnet 10.79.0.0/24 --subnet fd00:79::/64 dual",
    )?;
    line(
        &lab,
        "n1",
        "service create --detach --name six --network dual --publish 8088:80 --replicas 2 shoal-demo:latest",
    )?;
    lab.wait_running("six", 2)?;
    let ask = |host: &str, at: &str| {
        let url = format!("http://{at}/");
        let output = lab.output(host, &["curl", "-sSgm5", &url])?;
        text(&output)
    };
    // The real client is seen, whichever host was asked.
    for (to, at) in V6 {
        for (from, client) in V6.into_iter().filter(|(from, _)| *from != to) {
            let answer = wait(&format!("the port at {at}"), || {
                Ok(ask(from, &format!("[{at}]:8088")).map_err(|error| format!("{error:#}")))
            })?;
            let mut words = answer.split_whitespace();
            ensure!(
                words.any(|word| word == format!("client={client}")),
                "{answer}"
            );
        }
        ask(to, "[::1]:8088").with_context(|| format!("at [::1] of {to}"))?;
        ask(to, &format!("{}:8088", lab.addr(to)))?;
    }

    // Inside: the name has an address of each family, and the one of IPv6 leads to the tasks.
    line(
        &lab,
        "n2",
        &format!("run -d --name eye --network dual {BUSYBOX} sleep 1d"),
    )?;
    let format = "{{json .Endpoint.VirtualIPs}}";
    let vips = lab.on("n1", &["service", "inspect", "-f", format, "six"])?;
    let told = wait("an AAAA record", || {
        let said = lab.on(
            "n2",
            &["exec", "eye", "nslookup", "-type=aaaa", "six", "127.0.0.11"],
        )?;
        let address = said
            .split_whitespace()
            .find(|word| word.starts_with("fd00:79:"));
        Ok(address.map(str::to_owned).ok_or(said))
    })?;
    ensure!(
        vips.contains(&format!("\"{told}/64\"")),
        "{told} is not of {vips}"
    );
    let url = format!("http://[{told}]/");
    let pid = line(&lab, "n2", "inspect -f {{.State.Pid}} eye")?;
    let inside = ["nsenter", "-t", pid.trim(), "-n", "curl", "-sSgm5", &url];
    let answer = program(&lab, "n2", &inside)?;
    let shown = lab.on(
        "n2",
        &[
            "inspect",
            "-f",
            "{{(index .NetworkSettings.Networks \"dual\").GlobalIPv6Address}}",
            "eye",
        ],
    )?;
    ensure!(
        answer.contains(&format!("client={}", shown.trim())),
        "{answer}: {shown}"
    );
    let shown = verbose(&lab, "dual")?;
    ensure!(shown["EnableIPv6"] == true, "{shown}");
    Ok(())
}

#[test]
fn a_host_says_what_distributes_connections_and_takes_no_driver_that_there_is_not() -> Result<()> {
    let lab = TestLab::up_with(1, 1, &["--daemon-arg=--lb-driver=nft"])?;
    let info = line(&lab, "n1", "info")?;
    ensure!(info.contains("Load Balancing: nftables"), "{info}");
    let (_, said) = lab.refused("n1", &["daemon", "--lb-driver", "quick"])?;
    ensure!(
        said.contains("lb-driver") && said.contains("quick") && said.contains("auto, nft or ipvs"),
        "{said}"
    );
    Ok(())
}
