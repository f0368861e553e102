//! Who cannot talk to whom, and under which address; and how full a packet may be.
//!
//! Needs what `net.rs` needs, and is skipped for the same reasons.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::sync::Arc;

use lab::{Lab, Traffic, alone_on_ingress, dual, id, lab, view};
use shoal_api::network::{Endpoint, NetworkView, Protocol};
use shoal_overlay::{
    Attachment, BridgeSpec, BridgeView, Bridges, BridgesConfig, Ipv4Place, Ipv6Place, PortRequest,
};

fn bridge(n: u8) -> BridgeSpec {
    BridgeSpec {
        id: format!("net{n}"),
        ifname: format!("br-net{n}"),
        ipv4: Some(Ipv4Place {
            subnet: format!("172.{}.0.0/16", 20 + n).parse().unwrap(),
            gateway: [172, 20 + n, 0, 1].into(),
        }),
        internal: n == 3,
        mtu: None,
        icc: true,
        masquerade: true,
        ipv6: Some(Ipv6Place {
            subnet: format!("fd2{n}::/64").parse().unwrap(),
            gateway: format!("fd2{n}::1").parse().unwrap(),
        }),
    }
}

/// Whoever is asked, with an address of each family.
const EVERYBODY: [(&str, &str, &str); 13] = [
    ("t1", "10.0.1.11", "fd00:1::11"),
    ("t2", "10.0.1.12", "fd00:1::12"),
    ("t4", "10.0.2.11", "fd00:2::11"),
    ("t5", "10.0.3.11", "fd00:3::11"),
    ("t6", "10.0.3.12", "fd00:3::12"),
    ("ti", "10.0.0.77", "fd00:0::77"),
    ("b1", "172.21.0.2", "fd21::2"),
    ("b2", "172.22.0.2", "fd22::2"),
    ("b3", "172.21.0.3", "fd21::3"),
    ("bi", "172.23.0.2", "fd23::2"),
    ("h1", "192.0.2.1", "fd11::1"),
    ("h2", "192.0.2.2", "fd11::2"),
    ("client", "192.0.2.99", "fd11::99"),
];

/// On h1: t1 on n1 and ingress, t4 on n2, t5 on the internal n3, ti on ingress alone; b1 and b3 on one bridge, b2 on another,
/// bi on an internal one; `none` without any network. On h2: t2 on n1 and ingress, t6 on n3. Each serves at port 80, and so
/// do the hosts and the client, whose namespaces are those of containers that have no own. b1's port is published at 8090,
/// the tasks' at 8080 of every host.
async fn everybody() -> Result<(Lab, Bridges), String> {
    let mut lab = lab().await?;
    for (place, last) in [("h1", 1), ("h2", 2), ("client", 99)] {
        let address = format!("fd11::{last}/64");
        let words = ["addr", "add", &address, "dev", "eth0", "nodad"];
        assert!(lab.run(place, "ip", &words));
    }
    let config = BridgesConfig {
        prefix: "shoal".into(),
        host_netns: Some(lab.place("h1")),
    };
    let bridges = Bridges::open(config, BridgeView::default()).await.unwrap();
    for (task, host) in [
        ("t1", 0),
        ("t4", 0),
        ("t5", 0),
        ("ti", 0),
        ("t2", 1),
        ("t6", 1),
    ] {
        lab.container(task, host);
    }
    let mut view = dual();
    for network in view.networks.values_mut() {
        network.endpoints.remove("t3");
    }
    let ingress = view.networks.get_mut("ingress").unwrap();
    let alone = alone_on_ingress(ingress);
    ingress.endpoints.insert(id("ti"), alone);
    lab.converge(&view).await;
    for n in 1..=3 {
        bridges.create(bridge(n)).await.unwrap();
    }
    for (container, n, last) in [("b1", 1, 2), ("b3", 1, 3), ("b2", 2, 2), ("bi", 3, 2)] {
        lab.place_only(container);
        let attachment = Attachment {
            network: format!("net{n}"),
            address: Some([172, 20 + n, 0, last].into()),
            mac: None,
            ifname: "eth0".into(),
            ipv6: Some(format!("fd2{n}::{last}").parse().unwrap()),
            link_local: Vec::new(),
        };
        let netns = lab.place(container);
        let attached = bridges.attach(container, netns, attachment, 0);
        attached.await.unwrap();
    }
    lab.place_only("none");
    let published = PortRequest {
        host_ip: [0; 4].into(),
        host_ports: 8090..=8090,
        protocol: Protocol::Tcp,
        address: [172, 21, 0, 2].into(),
        port: 80,
        twin: Some(["::", "fd21::2"].map(|at| at.parse().unwrap()).into()),
    };
    bridges.publish("b1", vec![published]).await.unwrap();
    for (place, ..) in EVERYBODY {
        lab.serve(place, "[::]:80");
    }
    // Until neighbours of the underlay have found one another, a first packet may be lost.
    for host in ["fd11::1", "fd11::2"] {
        while !lab.ping("client", host) {}
    }
    Ok((lab, bridges))
}

/// Those whose only network leads nowhere else, and who has none.
const INTERNAL: [&str; 4] = ["t5", "t6", "bi", "none"];

/// Who may reach whom: those of one network; hosts and the outside, unless a network is internal; and a host the containers of
/// its own bridges.
fn may_reach(from: &str, to: &str) -> bool {
    const OUTSIDE: [&str; 3] = ["h1", "h2", "client"];
    match (from, to) {
        ("t1", "t2") | ("t2", "t1") | ("t5", "t6") | ("t6", "t5") => true,
        // By ingress, of which they are too.
        ("t1" | "t2", "ti") => true,
        ("b1", "b3") | ("b3", "b1") => true,
        ("h1", "b1" | "b2" | "b3" | "bi") => true,
        (from, _) if INTERNAL.contains(&from) => false,
        (_, to) => OUTSIDE.contains(&to),
    }
}

/// Where something is published, and by whom.
const PUBLISHED: [(&str, &[&str]); 6] = [
    ("192.0.2.1:8080", &["t1", "t2", "ti"]),
    ("[fd11::1]:8080", &["t1", "t2", "ti"]),
    ("192.0.2.2:8080", &["t1", "t2", "ti"]),
    ("[fd11::2]:8080", &["t1", "t2", "ti"]),
    ("192.0.2.1:8090", &["b1"]),
    ("[fd11::1]:8090", &["b1"]),
];

#[tokio::test]
async fn only_those_with_a_common_network_reach_one_another() {
    let (lab, _bridges) = or_skip!(everybody().await);
    let lab = &lab;
    std::thread::scope(|scope| {
        let askers = EVERYBODY.map(|(from, ..)| from);
        for from in askers.into_iter().chain(["none"]) {
            scope.spawn(move || {
                for (to, v4, v6) in EVERYBODY.into_iter().filter(|(to, ..)| *to != from) {
                    for at in [format!("{v4}:80"), format!("[{v6}]:80")] {
                        let answer = lab.ask(from, &at);
                        assert_eq!(
                            answer.is_ok(),
                            may_reach(from, to),
                            "{from} asked {to} at {at}: {answer:?}"
                        );
                    }
                }
                // What is published is for all who get out of their networks, at every host that publishes it.
                for (at, to) in PUBLISHED {
                    let answer = lab.ask(from, at);
                    let may = !INTERNAL.contains(&from);
                    assert_eq!(answer.is_ok(), may, "{from} asked {at}: {answer:?}");
                    assert!(
                        !may || answer.as_ref().is_ok_and(|who| to.contains(&&who[..2])),
                        "{answer:?}"
                    );
                }
            });
        }
    });
    // Each other's gateways and virtual addresses do not lead on either.
    for (from, to) in [
        ("t4", "10.0.1.2:80"),
        ("t4", "[fd00:1::2]:80"),
        ("ti", "10.0.1.2:80"),
        ("h1", "10.0.1.2:80"),
        ("h1", "[fd00:1::2]:80"),
        ("b1", "10.0.1.2:80"),
        ("b1", "10.0.1.1:80"),
        ("t5", "172.21.0.1:80"),
        ("t5", "192.0.2.1:80"),
        ("t5", "[fd11::1]:80"),
    ] {
        assert!(lab.ask(from, to).is_err(), "{from} asked {to}");
    }
    // Nor does a route that somebody with the right to make one makes.
    for (from, v4, v6) in [
        ("t5", "10.0.3.1", "fe80::1"),
        ("bi", "172.23.0.1", "fd23::1"),
    ] {
        for (family, via) in [("-4", v4), ("-6", v6)] {
            let words = [family, "route", "add", "default", "via", via, "dev", "eth0"];
            assert!(lab.run(from, "ip", &words), "{from}: a route by {via}");
        }
        for to in [
            "192.0.2.99:80",
            "[fd11::99]:80",
            "10.0.1.11:80",
            "172.21.0.2:80",
            "[fd00:1::11]:80",
        ] {
            assert!(
                lab.ask(from, to).is_err(),
                "{from} asked {to} by a route of its own"
            );
        }
    }
}

#[tokio::test]
async fn a_container_cannot_send_under_anothers_address() {
    let mut lab = or_skip!(lab().await);
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    lab.converge(&dual()).await;
    let families = [
        (
            "ip",
            "10.0.1.12",
            "32",
            ["10.0.1.13", "10.0.1.11", "10.0.1.99", "10.0.1.1"],
        ),
        (
            "ip6",
            "fd00:1::12",
            "128",
            ["fd00:1::13", "fd00:1::11", "fd00:1::99", "fd00:1::1"],
        ),
    ];
    for (family, to, length, [own, stolen @ ..]) in families {
        let heard = |from: &str| lab.run("t3", "ping", &["-c1", "-W1", "-I", from, to]);
        assert!(heard(own), "its own address");
        for stolen in stolen {
            let address = format!("{stolen}/{length}");
            let add: &[&str] = match family {
                "ip" => &["addr", "add", &address, "dev", "eth1"],
                _ => &["addr", "add", &address, "dev", "eth1", "nodad"],
            };
            assert!(lab.run("t3", "ip", add));
            assert!(!heard(stolen), "{stolen} is not its own");
            assert!(lab.run("t3", "ip", &["addr", "del", &address, "dev", "eth1"]));
        }
        let chain = ["list", "chain", family, "shoal", "raw"];
        let dropped = lab.text(&lab.router(0, "n1"), "nft", &chain);
        assert!(
            dropped.contains("nobody sends under another's address"),
            "{dropped}"
        );
    }
}

/// A tunnel of one's own into a network, from a host that may have it or not.
fn forge(lab: &Lab, from: &str, vni: u32) -> bool {
    let own = if from == "h2" {
        "192.0.2.2"
    } else {
        "192.0.2.99"
    };
    let vni = vni.to_string();
    let words = [
        "link",
        "add",
        "forged",
        "type",
        "vxlan",
        "id",
        &vni,
        "dstport",
        "4789",
        "local",
        own,
        "remote",
        "192.0.2.1",
        "nolearning",
    ];
    assert!(lab.run(from, "ip", &words));
    for command in [
        // The source that the router expects of the node h2.
        "link set forged address 02:42:c0:00:02:02 up",
        "addr add 10.0.2.77/24 dev forged",
        "neigh add 10.0.2.11 lladdr 02:42:c0:00:02:01 dev forged nud permanent",
    ] {
        assert!(
            lab.run(from, "ip", &command.split(' ').collect::<Vec<_>>()),
            "{command}"
        );
    }
    let before = received(lab);
    let _ = lab.run(from, "ping", &["-c2", "-W1", "10.0.2.11"]);
    let arrived = received(lab) > before;
    assert!(lab.run(from, "ip", &["link", "del", "forged"]));
    arrived
}

/// Packets that the tunnel of n2 on h1 has taken.
fn received(lab: &Lab) -> u64 {
    let shown = lab.text(
        &lab.router(0, "n2"),
        "cat",
        &["/sys/class/net/vx0/statistics/rx_packets"],
    );
    shown.trim().parse().unwrap_or_else(|_| {
        let dev = lab.text(&lab.router(0, "n2"), "cat", &["/proc/net/dev"]);
        let line = dev
            .lines()
            .find(|line| line.contains("vx0:"))
            .unwrap()
            .to_owned();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    })
}

#[tokio::test]
async fn a_tunnel_takes_packets_of_nodes_of_its_network_only() {
    let mut lab = or_skip!(lab().await);
    lab.container("t4", 0);
    let mut view = view();
    let endpoints = &mut view.networks.get_mut("n2").unwrap().endpoints;
    Arc::make_mut(endpoints.get_mut("t4").unwrap()).serving = false;
    lab.converge(&view).await;
    // n2 is on h1 alone: neither a stranger nor another node of the cluster has any business there.
    assert!(!forge(&lab, "client", 4098), "a stranger");
    assert!(!forge(&lab, "h2", 4098), "a node without this network");
    // Once h2 takes part it is heard.
    let mut joined = view.clone();
    let mut endpoint = Endpoint::clone(&joined.networks["n2"].endpoints["t4"]);
    endpoint.node = id("h2");
    endpoint.addresses = vec!["10.0.2.77/24".parse().unwrap()];
    joined
        .networks
        .get_mut("n2")
        .unwrap()
        .endpoints
        .insert(id("t9"), Arc::new(endpoint));
    lab.try_converge(0, &joined).await.unwrap();
    assert!(forge(&lab, "h2", 4098), "a node with this network");
}

#[tokio::test]
async fn other_programs_can_list_all_that_stands() {
    let mut lab = or_skip!(lab().await);
    for (task, host) in [("t1", 0), ("t2", 1), ("t5", 0), ("t6", 1)] {
        lab.container(task, host);
    }
    lab.converge(&view()).await;
    let listed = lab.text("h1", "nft", &["list", "ruleset"]);
    // h2 in two networks and ingress: 4096, 4097 and 4099, as four bytes of the packet.
    let members = listed.split("set members").nth(1).unwrap_or_default();
    assert_eq!(members.matches("192.0.2.2 . 0x").count(), 3, "{listed}");
    let ended = lab.run("h1", "nft", &["-j", "list", "ruleset"]);
    assert!(ended, "in the form for programs, too");
}

#[tokio::test]
async fn a_network_that_must_be_encrypted_is_not_carried_where_the_kernel_cannot() {
    let mut lab = or_skip!(lab().await);
    if lab.features()["WireGuard"] {
        return eprintln!("skipped, because this kernel can encrypt");
    }
    for (task, host) in [("t1", 0), ("t2", 1), ("t4", 0), ("t5", 0), ("t6", 1)] {
        lab.container(task, host);
    }
    let mut view = lab.with_keys(view());
    view.networks.get_mut("n1").unwrap().encrypted = true;
    for host in 0..2 {
        let errors = lab.try_converge(host, &view).await.unwrap_err();
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "network n1 is encrypted, which this node cannot carry: its kernel lacks WireGuard (CONFIG_WIREGUARD) or \
              IPv6"
            ]
        );
        assert!(!lab.routers(host).contains(&"router-n1".to_owned()));
    }
    assert!(!lab.ping("t1", "10.0.1.12"));
    assert!(
        lab.ping("t5", "10.0.3.12"),
        "the other networks are carried"
    );
}

#[tokio::test]
async fn the_mtu_follows_the_underlay_and_full_packets_pass() {
    for underlay in [1400u32, 9000] {
        let mut lab = or_skip!(lab().await);
        for place in ["switch", "h1", "h2", "client"] {
            for link in ["br0", "h1", "h2", "client", "eth0"] {
                // Not every place has all of them.
                let mtu = underlay.to_string();
                let _ = lab.run(place, "ip", &["link", "set", link, "mtu", &mtu]);
            }
        }
        for (task, host) in [("t1", 0), ("t2", 1)] {
            lab.container(task, host);
        }
        lab.converge(&view()).await;
        let fits = underlay - 50;
        let shown = lab.text("t1", "cat", &["/proc/self/net/dev_mcast"]);
        assert!(!shown.is_empty());
        let link = lab.text("t1", "ip", &["-o", "link", "show", "eth1"]);
        assert!(link.contains(&format!("mtu {fits} ")), "{link}");
        // 20 bytes of IP and 8 of ICMP.
        let payload = |size: u32| format!("-s{}", size - 28);
        let ping = |size: u32| {
            lab.run(
                "t1",
                "ping",
                &["-c1", "-W2", "-Mdo", &payload(size), "10.0.1.12"],
            )
        };
        assert!(ping(fits), "{underlay}: a full packet");
        assert!(!ping(fits + 1), "{underlay}: one byte more");
    }
}

#[tokio::test]
async fn another_port_than_vxlans_own_carries_the_packets() {
    let mut lab = or_skip!(lab().await);
    for (task, host) in [("t1", 0), ("t2", 1)] {
        lab.container(task, host);
    }
    let mut view = view();
    view.data_path_port = 7789;
    lab.converge(&view).await;
    assert!(lab.ping("t1", "10.0.1.12"));
    let device = lab.text(&lab.router(0, "n1"), "ip", &["-d", "link", "show", "vx0"]);
    assert!(device.contains("dstport 7789"), "{device}");
    // Back again: the devices are made anew.
    view.data_path_port = 4789;
    lab.converge(&view).await;
    assert!(lab.ping("t1", "10.0.1.12"));
}

#[tokio::test]
async fn a_thousand_connections_are_spread_evenly_and_running_ones_are_kept() {
    let mut lab = or_skip!(lab().await);
    let mut view = view();
    let tasks = ["t1", "t2", "t3", "ta", "tb"];
    for (last, (task, host)) in (14u8..).zip([("ta", 0), ("tb", 1)]) {
        for (network, n) in [("ingress", 0), ("n1", 1)] {
            let slice = view.networks.get_mut(network).unwrap();
            let mut endpoint = Endpoint::clone(&slice.endpoints["t1"]);
            endpoint.node = id(["h1", "h2"][host]);
            endpoint.addresses = vec![format!("10.0.{n}.{last}/24").parse().unwrap()];
            slice.endpoints.insert(id(task), Arc::new(endpoint));
        }
    }
    for (task, host) in tasks.into_iter().zip([0, 1, 0, 0, 1]) {
        lab.container(task, host);
    }
    lab.converge(&view).await;
    for task in tasks {
        lab.serve(task, "0.0.0.0:80");
    }
    let answers = lab.count("t1", "10.0.1.2:80", 1_000);
    let counts: Vec<usize> = answers.values().copied().collect();
    assert_eq!(answers.len(), tasks.len(), "{answers:?}");
    assert!(
        counts.iter().all(|count| (150..=250).contains(count)),
        "{answers:?}"
    );

    // A connection that stands outlives the draining of its backend; new ones go elsewhere.
    for task in tasks {
        lab.serve_lines(task, "0.0.0.0:81");
    }
    let mut talk = lab.talk("t1", "10.0.1.2:81");
    let backend = talk.say("who");
    for network in ["ingress", "n1"] {
        let slice = view.networks.get_mut(network).unwrap();
        let endpoint = slice.endpoints.get_mut(backend.as_str()).unwrap();
        Arc::make_mut(endpoint).serving = false;
    }
    lab.converge(&view).await;
    for _ in 0..5 {
        assert_eq!(talk.say("who"), backend, "the connection goes on");
    }
    let now = lab.count("t1", "10.0.1.2:80", 60);
    assert!(
        now.keys()
            .all(|who| !who.starts_with(&format!("{backend} "))),
        "{now:?}"
    );
}

#[tokio::test]
async fn networks_that_come_and_go_leave_nothing() {
    let mut lab = or_skip!(lab().await);
    lab.container("t1", 0);
    let all = view();
    let mut without: NetworkView = all.clone();
    without.networks.remove("n1");
    lab.try_converge(0, &without).await.unwrap();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let standing = |lab: &Lab| {
        let links = lab.text("h1", "ip", &["-br", "link"]);
        let tables = lab.text("h1", "nft", &["list", "ruleset"]);
        (links.lines().count(), tables, lab.routers(0))
    };
    let (before, files) = (standing(&lab), open_files());
    for _ in 0..500 {
        lab.try_converge(0, &all).await.unwrap();
        lab.try_converge(0, &without).await.unwrap();
    }
    assert_eq!(standing(&lab), before);
    // Other tests of this program have files open too, but not hundreds.
    assert!(
        open_files() < files + 100,
        "{} and {files} files",
        open_files()
    );
    lab.try_converge(0, &all).await.unwrap();
    assert!(
        lab.ping("t1", "10.0.1.1"),
        "and it works as on the first day"
    );
}
