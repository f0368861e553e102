//! Overlay networks: against a hand-made VXLAN between the same namespaces, and against docker's.

use anyhow::Result;

use super::{
    Bench, Pair,
    docker::Sides,
    network::{Net, PORT, Place, goal},
    until,
};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "overlay",
        about: "stream and request/response between containers of two hosts, against plain VXLAN and docker's overlay",
        run: overlay,
    },
    Pair {
        name: "vip",
        about: "stream, request/response and connections by a virtual address, against the task's own",
        run: vip,
    },
];

const LAB: &str = "benchnet";
const SUBNET: &str = "198.18.60.0/24";
/// Identifiers and ports of the hand-made networks, others than ours: one whose tunnel ends in the containers, and one with a
/// bridge and pairs of interfaces, as docker builds its own.
const BARE: (u16, u16) = (99, 4790);
const BRIDGED: (u16, u16) = (98, 4791);
/// What a network must reach of a peer's rate.
const OF_PLAIN_MIN: f64 = 0.9;
const OF_DOCKER_MIN: f64 = 1.0;
const CONNECTIONS_OF_DIRECT_MIN: f64 = 0.85;

/// Two hosts with a cluster and a container on each.
fn ours<'a>(bench: &'a Bench, nodes: u8) -> Result<(Net<'a>, [Place; 2], String)> {
    let mut net = Net::up(bench, LAB, nodes, SUBNET)?;
    net.on_one_processor = true;
    net.line("n1", "shoal swarm init --advertise-addr 198.18.60.11")?;
    let token = net.line("n1", "shoal swarm join-token -q worker")?;
    let join = format!(
        "shoal swarm join --token {} 198.18.60.11:2377",
        token.trim()
    );
    net.line("n2", &join)?;
    net.line("n1", "shoal network create -d overlay --attachable ov")?;
    for host in ["n1", "n2"] {
        net.line(
            host,
            "shoal run -d --name end --network ov shoal-demo:latest idle",
        )?;
    }
    let places = ["n1", "n2"].map(|host| -> Result<Place> {
        let pid = net.line(host, "shoal inspect --format {{.State.Pid}} end")?;
        let netns = Some(format!("--net=/proc/{}/ns/net", pid.trim()));
        Ok(Place { host, netns })
    });
    let [from, to] = places;
    let shown = "shoal inspect --format {{.NetworkSettings.Networks.ov.IPAddress}} end";
    let address = net.line("n2", shown)?.trim().to_owned();
    Ok((net, [from?, to?], address))
}

/// Gives both containers an interface in each of two networks made by hand, without router and rules.
fn plain(net: &mut Net<'_>, places: &[Place; 2]) -> Result<()> {
    for (own, other, place) in [(11, 12, &places[0]), (12, 11, &places[1])] {
        let pid = net.line(place.host, "shoal inspect --format {{.State.Pid}} end")?;
        let (pid, host) = (pid.trim(), place.host);
        let inside = format!("nsenter {}", place.netns.clone().unwrap_or_default());
        let tunnel = |name: &str, (vni, port): (u16, u16)| {
            format!(
                "ip link add {name} type vxlan id {vni} dstport {port} local 198.18.60.{own} remote 198.18.60.{other}"
            )
        };
        let beside = format!("shoal-bench-{host}");
        net.namespace(host, &beside)?;
        let between = format!("nsenter --net=/run/netns/{beside}");
        for line in [
            tunnel("bare", BARE),
            format!("ip link set bare netns {pid}"),
            format!("{inside} ip address add 10.250.0.{own}/24 dev bare"),
            format!("{inside} ip link set bare up"),
            tunnel("tun", BRIDGED),
            format!("ip link set tun netns {beside}"),
            format!("{between} ip link add br0 up type bridge"),
            format!("{between} ip link set tun master br0 up"),
            format!(
                "{between} ip link add leg mtu 1450 type veth peer name shaped mtu 1450 netns {pid}"
            ),
            format!("{between} ip link set leg master br0 up"),
            format!("{inside} ip address add 10.251.0.{own}/24 dev shaped"),
            format!("{inside} ip link set shaped up"),
        ] {
            net.line(host, &line)?;
        }
    }
    Ok(())
}

fn overlay(bench: &Bench) -> Result<()> {
    let (mut net, places, address) = ours(bench, 4)?;
    plain(&mut net, &places)?;
    net.serve(&places[1], PORT)?;
    let docker = docker_overlay(&mut net);
    let theirs = match &docker {
        Ok((from, to)) => Some((from, format!("{to}:{PORT}"))),
        Err(error) => {
            println!("  docker's overlay is not measured, because {error:#}");
            None
        }
    };
    for kind in ["stream", "rr", "crr"] {
        println!("overlay, {kind}:");
        let mut ways = vec![
            ("shoal", &places[0], format!("{address}:{PORT}")),
            ("plain VXLAN", &places[0], format!("10.251.0.12:{PORT}")),
            (
                "VXLAN in the container itself",
                &places[0],
                format!("10.250.0.12:{PORT}"),
            ),
        ];
        ways.extend(
            theirs
                .iter()
                .map(|(from, to)| ("docker", *from, to.clone())),
        );
        let ratios = net.compare(kind, &ways)?;
        if kind == "crr" {
            continue;
        }
        goal(&format!("{kind} of plain VXLAN's"), ratios[0], OF_PLAIN_MIN);
        if let Some(ratio) = ratios.get(2) {
            goal(&format!("{kind} of docker's"), *ratio, OF_DOCKER_MIN);
        }
    }
    Ok(())
}

/// Two of docker's daemons in one swarm, with a container on each in an attachable overlay; the traffic's server runs in
/// the second.
fn docker_overlay(net: &mut Net<'_>) -> Result<(Place, String)> {
    for host in ["n3", "n4"] {
        let words = "dockerd -H unix:///run/shoal/docker.sock --data-root /var/lib/shoal/docker --exec-root /run/shoal/docker --pidfile /run/shoal/docker.pid --userland-proxy=false";
        net.start(host, &words.split(' ').collect::<Vec<_>>(), false)?;
    }
    let docker = |net: &Net<'_>, host: &str, line: &str| {
        net.line(
            host,
            &format!("/usr/bin/docker -H unix:///run/shoal/docker.sock {line}"),
        )
    };
    for host in ["n3", "n4"] {
        until("docker's daemon", || {
            Ok(docker(net, host, "version").is_ok())
        })?;
    }
    docker(net, "n3", "swarm init --advertise-addr 198.18.60.13")?;
    let token = docker(net, "n3", "swarm join-token -q worker")?;
    docker(
        net,
        "n4",
        &format!("swarm join --token {} 198.18.60.13:2377", token.trim()),
    )?;
    docker(net, "n3", "network create -d overlay --attachable ov")?;
    let archive = Sides::archive()?;
    let mut places = Vec::new();
    for host in ["n3", "n4"] {
        docker(net, host, &format!("load -q -i {}", archive.display()))?;
        let run = format!(
            "run -d --name end --network ov {} sleep 100000",
            super::docker::IMAGE
        );
        docker(net, host, &run)?;
        let pid = docker(net, host, "inspect --format {{.State.Pid}} end")?;
        let netns = Some(format!("--net=/proc/{}/ns/net", pid.trim()));
        places.push(Place { host, netns });
    }
    let shown = "inspect --format {{.NetworkSettings.Networks.ov.IPAddress}} end";
    let address = docker(net, "n4", shown)?.trim().to_owned();
    net.serve(&places[1], PORT)?;
    Ok((places.swap_remove(0), address))
}

fn vip(bench: &Bench) -> Result<()> {
    let (mut net, places, _) = ours(bench, 2)?;
    let create = "shoal service create --detach --quiet --name one --network ov --constraint node.hostname==n2 shoal-demo:latest idle";
    net.line("n1", create)?;
    until("the task", || {
        Ok(net
            .line("n1", "shoal service ls --format {{.Replicas}}")?
            .starts_with("1/1"))
    })?;
    let task = net.line("n2", "shoal ps -q --filter name=one.1")?;
    let task = task.trim();
    let shown = |format: &str| net.line("n2", &format!("shoal inspect --format {format} {task}"));
    let pid = shown("{{.State.Pid}}")?;
    let direct = shown("{{.NetworkSettings.Networks.ov.IPAddress}}")?;
    let vips = net.on(
        "n1",
        &[
            "shoal",
            "service",
            "inspect",
            "--format",
            "{{(index .Endpoint.VirtualIPs 0).Addr}}",
            "one",
        ],
    )?;
    let vip = vips.trim().split('/').next().unwrap_or_default().to_owned();
    let place = Place {
        host: "n2",
        netns: Some(format!("--net=/proc/{}/ns/net", pid.trim())),
    };
    net.serve(&place, PORT)?;
    for (kind, least) in [
        ("stream", OF_PLAIN_MIN),
        ("rr", OF_PLAIN_MIN),
        ("crr", CONNECTIONS_OF_DIRECT_MIN),
    ] {
        println!("virtual address, {kind}:");
        let ways = [
            ("by virtual address", &places[0], format!("{vip}:{PORT}")),
            ("direct", &places[0], format!("{}:{PORT}", direct.trim())),
        ];
        let ratios = net.compare(kind, &ways)?;
        goal(&format!("{kind} of direct"), ratios[0], least);
    }
    Ok(())
}
