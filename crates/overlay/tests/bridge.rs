//! Bridge networks of one host: containers, an outside client, published ports, isolation.
//!
//! Needs what `net.rs` needs, and is skipped for the same reasons.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::{net::Ipv4Addr, time::Duration};

use lab::{Lab, Traffic, ask_datagram, lab, view};
use shoal_api::network::Protocol;
use shoal_overlay::{
    Attachment, BridgeError, BridgeSpec, BridgeView, Bridges, BridgesConfig, DYNAMIC_PORTS,
    Ipv4Place, PortRequest,
};

fn spec(n: u8) -> BridgeSpec {
    BridgeSpec {
        id: format!("net{n}"),
        ifname: format!("br-net{n}"),
        ipv4: Some(Ipv4Place {
            subnet: format!("172.{}.0.0/16", 20 + n).parse().unwrap(),
            gateway: [172, 20 + n, 0, 1].into(),
        }),
        internal: false,
        mtu: None,
        icc: true,
        masquerade: true,
        ipv6: None,
    }
}

fn config(lab: &Lab) -> BridgesConfig {
    BridgesConfig {
        prefix: "shoal".into(),
        host_netns: Some(lab.place("h1")),
    }
}

async fn attach(lab: &Lab, bridges: &Bridges, container: &str, n: u8, last: u8) {
    let attachment = Attachment {
        network: format!("net{n}"),
        address: Some([172, 20 + n, 0, last].into()),
        mac: None,
        ifname: format!("eth{}", u8::from(n == 9)),
        ipv6: None,
        link_local: Vec::new(),
    };
    bridges
        .attach(container, lab.place(container), attachment, usize::MAX)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
}

/// c1 and c2 on net1, c3 on net2, all on h1.
async fn three_containers() -> Result<(Lab, Bridges), String> {
    let mut lab = lab().await?;
    let bridges = Bridges::open(config(&lab), BridgeView::default())
        .await
        .unwrap();
    for n in 1..=2 {
        bridges
            .create(spec(n))
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
    }
    for (container, n, last) in [("c1", 1, 2), ("c2", 1, 3), ("c3", 2, 2)] {
        lab.container(container, 0);
        attach(&lab, &bridges, container, n, last).await;
    }
    Ok((lab, bridges))
}

fn request(host_ip: [u8; 4], host_port: u16, address: [u8; 4]) -> PortRequest {
    PortRequest {
        host_ip: host_ip.into(),
        host_ports: host_port..=host_port,
        protocol: Protocol::Tcp,
        address: address.into(),
        port: 80,
        twin: None,
    }
}

#[tokio::test]
async fn containers_of_a_bridge_reach_one_another_and_the_outside_but_not_other_bridges() {
    let (lab, _bridges) = or_skip!(three_containers().await);
    lab.serve("c2", "0.0.0.0:80");
    lab.serve("c3", "0.0.0.0:80");
    lab.serve("client", "0.0.0.0:7000");
    assert_eq!(
        lab.ask("c1", "172.21.0.3:80").unwrap(),
        "c2 sees 172.21.0.2"
    );
    assert_eq!(
        lab.ask("c1", "192.0.2.99:7000").unwrap(),
        "client sees 192.0.2.1"
    );
    assert!(
        lab.ask("c1", "172.22.0.2:80").is_err(),
        "bridges are isolated"
    );
    assert_eq!(
        lab.ask("h1", "172.21.0.3:80").unwrap(),
        "c2 sees 172.21.0.1"
    );
    assert!(lab.run(
        "client",
        "ip",
        &["route", "add", "172.16.0.0/12", "via", "192.0.2.1"]
    ));
    assert!(
        lab.ask("client", "172.21.0.3:80").is_err(),
        "nobody enters past the published ports"
    );
}

#[tokio::test]
async fn a_published_port_is_reached_from_everywhere() {
    let (lab, bridges) = or_skip!(three_containers().await);
    lab.serve("c2", "0.0.0.0:80");
    let ports = bridges
        .publish("c2", vec![request([0; 4], 8081, [172, 21, 0, 3])])
        .await
        .unwrap();
    assert_eq!(ports[0].host_port, 8081);
    assert_eq!(
        lab.ask("client", "192.0.2.1:8081").unwrap(),
        "c2 sees 192.0.2.99"
    );
    assert_eq!(
        lab.ask("h1", "127.0.0.1:8081").unwrap(),
        "c2 sees 172.21.0.1"
    );
    assert_eq!(
        lab.ask("h1", "192.0.2.1:8081").unwrap(),
        "c2 sees 192.0.2.1"
    );
    for container in ["c1", "c2", "c3"] {
        assert!(
            lab.ask(container, "192.0.2.1:8081")
                .unwrap_or_else(|error| error.to_string())
                .starts_with("c2"),
            "from {container}"
        );
    }
    bridges.unpublish("c2").await.unwrap();
    assert!(lab.ask("client", "192.0.2.1:8081").is_err());
}

#[tokio::test]
async fn datagrams_of_before_are_led_to_the_container_that_has_the_port() {
    let (lab, bridges) = or_skip!(three_containers().await);
    let clients = [("client", "192.0.2.1:5353"), ("h1", "127.0.0.1:5353")];
    let clients = clients.map(|(place, at)| (at, lab.datagrams(place, at)));
    for (at, socket) in &clients {
        assert!(ask_datagram(socket).is_err(), "nobody is at {at}");
    }
    // The first one stays where it is, and only its port goes.
    for (container, last) in [("c1", 2), ("c2", 3)] {
        lab.serve_datagrams(container, "0.0.0.0:80");
        let datagrams = PortRequest {
            protocol: Protocol::Udp,
            ..request([0; 4], 5353, [172, 21, 0, last])
        };
        bridges.publish(container, vec![datagrams]).await.unwrap();
        for (at, socket) in &clients {
            // An error of before may still be told.
            let _ = socket.take_error();
            assert_eq!(ask_datagram(socket).unwrap(), container, "at {at}");
        }
        bridges.unpublish(container).await.unwrap();
    }
}

#[tokio::test]
async fn a_port_published_at_one_address_is_not_reached_by_others() {
    let (lab, bridges) = or_skip!(three_containers().await);
    lab.serve("c2", "0.0.0.0:80");
    bridges
        .publish("c2", vec![request([127, 0, 0, 1], 8081, [172, 21, 0, 3])])
        .await
        .unwrap();
    assert!(lab.ask("h1", "127.0.0.1:8081").is_ok());
    assert!(lab.ask("client", "192.0.2.1:8081").is_err());
}

#[tokio::test]
async fn a_port_published_on_a_second_network_answers_by_that_network() {
    let (lab, bridges) = or_skip!(three_containers().await);
    let second = Attachment {
        network: "net2".into(),
        address: Some([172, 22, 0, 9].into()),
        mac: None,
        ifname: "eth1".into(),
        ipv6: None,
        link_local: Vec::new(),
    };
    bridges
        .attach("c1", lab.place("c1"), second, 1)
        .await
        .unwrap();
    lab.serve("c1", "0.0.0.0:80");
    bridges
        .publish("c1", vec![request([0; 4], 8081, [172, 22, 0, 9])])
        .await
        .unwrap();
    assert_eq!(
        lab.ask("client", "192.0.2.1:8081").unwrap(),
        "c1 sees 192.0.2.99"
    );
    bridges.detach("c1", lab.place("c1"), "net2").await.unwrap();
    assert!(!lab.text("c1", "ip", &["link"]).contains("eth1"));
    assert!(lab.ping("c1", "172.21.0.3"));
}

/// How a service publishes a port in host mode: its tasks get a bridge besides their cluster networks.
#[tokio::test]
async fn a_container_on_cluster_networks_can_publish_by_a_bridge() {
    let mut lab = or_skip!(lab().await);
    let bridges = Bridges::open(config(&lab), BridgeView::default())
        .await
        .unwrap();
    bridges.create(spec(1)).await.unwrap();
    lab.container("t1", 0);
    lab.converge(&view()).await;
    let place = Attachment {
        network: "net1".into(),
        address: Some([172, 21, 0, 2].into()),
        mac: None,
        ifname: "eth2".into(),
        ipv6: None,
        link_local: Vec::new(),
    };
    bridges
        .attach("t1", lab.place("t1"), place, 0)
        .await
        .unwrap();
    lab.serve("t1", "0.0.0.0:80");
    bridges
        .publish("t1", vec![request([0; 4], 8081, [172, 21, 0, 2])])
        .await
        .unwrap();
    assert_eq!(
        lab.ask("client", "192.0.2.1:8081").unwrap(),
        "t1 sees 192.0.2.99"
    );
    assert!(
        lab.text("t1", "ip", &["route"])
            .contains("default via 10.0.1.1 dev eth1")
    );
    assert_eq!(lab.plan(0, &view()).await, []);
}

#[tokio::test]
async fn a_port_has_one_owner() {
    let (lab, bridges) = or_skip!(three_containers().await);
    bridges
        .publish("c1", vec![request([0; 4], 8081, [172, 21, 0, 2])])
        .await
        .unwrap();
    let refused = bridges
        .publish("c2", vec![request([0; 4], 8081, [172, 21, 0, 3])])
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "bind for 0.0.0.0:8081 failed: port is already allocated"
    );
    lab.serve("h1", "0.0.0.0:8082");
    let refused = bridges
        .publish("c2", vec![request([0; 4], 8082, [172, 21, 0, 3])])
        .await
        .unwrap_err();
    assert!(
        matches!(refused, BridgeError::PortBusy { .. }),
        "{refused:?}"
    );
    let any = PortRequest {
        host_ports: DYNAMIC_PORTS,
        ..request([0; 4], 0, [172, 21, 0, 3])
    };
    let chosen = bridges.publish("c2", vec![any.clone(), any]).await.unwrap();
    assert_eq!([chosen[0].host_port, chosen[1].host_port], [32_768, 32_769]);
}

#[tokio::test]
async fn an_internal_bridge_has_no_way_out_and_icc_can_be_refused() {
    let mut lab = or_skip!(lab().await);
    let bridges = Bridges::open(config(&lab), BridgeView::default())
        .await
        .unwrap();
    bridges
        .create(BridgeSpec {
            internal: true,
            ..spec(1)
        })
        .await
        .unwrap();
    bridges
        .create(BridgeSpec {
            icc: false,
            ..spec(2)
        })
        .await
        .unwrap();
    for (container, n, last) in [("c1", 1, 2), ("c2", 1, 3), ("c3", 2, 2), ("c4", 2, 3)] {
        lab.container(container, 0);
        attach(&lab, &bridges, container, n, last).await;
    }
    lab.serve("client", "0.0.0.0:7000");
    assert!(lab.ping("c1", "172.21.0.3"));
    assert!(lab.ask("c1", "192.0.2.99:7000").is_err());
    assert!(lab.run(
        "c1",
        "ip",
        &["route", "add", "default", "via", "172.21.0.1"]
    ));
    assert!(
        lab.ask("c1", "192.0.2.99:7000").is_err(),
        "not even with a route"
    );
    assert!(!lab.run("c3", "ping", &["-c1", "-W1", "172.22.0.3"]));
    assert!(lab.ask("c3", "192.0.2.99:7000").is_ok());
}

#[tokio::test]
async fn a_restart_adopts_and_removal_leaves_nothing() {
    let (lab, bridges) = or_skip!(three_containers().await);
    lab.serve("c2", "0.0.0.0:80");
    bridges
        .publish("c2", vec![request([0; 4], 8081, [172, 21, 0, 3])])
        .await
        .unwrap();
    let view = bridges.view().await.unwrap();
    drop(bridges);
    // Numbers and names; the state of a new link is still settling.
    let links = || -> Vec<String> {
        let shown = lab.text("h1", "ip", &["-o", "link"]);
        let word = |line: &str| line.split_whitespace().take(2).collect::<String>();
        shown.lines().map(word).collect()
    };
    let before = links();
    let bridges = Bridges::open(config(&lab), view).await.unwrap();
    assert_eq!(links(), before);
    assert!(lab.run("h1", "nft", &["flush", "ruleset"]));
    bridges.converge().await.unwrap();
    assert!(lab.ask("client", "192.0.2.1:8081").is_ok());
    assert!(matches!(
        bridges.remove("net1").await,
        Err(BridgeError::InUse { .. })
    ));
    bridges.unpublish("c2").await.unwrap();
    for container in ["c1", "c2", "c3"] {
        bridges.detach_all(container).await.unwrap();
    }
    assert_eq!(
        lab.text("c1", "ip", &["-br", "link"]).lines().count(),
        1,
        "only loopback is left"
    );
    bridges.remove("net1").await.unwrap();
    bridges.teardown_all().await.unwrap();
    assert!(!lab.text("h1", "ip", &["link"]).contains("br-net"));
    assert_eq!(lab.text("h1", "nft", &["list", "ruleset"]), "");
}

#[tokio::test]
async fn overlapping_subnets_and_unknown_networks_are_refused_without_trace() {
    let (lab, bridges) = or_skip!(three_containers().await);
    let refused = bridges
        .create(BridgeSpec {
            id: "other".into(),
            ..spec(1)
        })
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "subnet 172.21.0.0/16 overlaps with that of network net1"
    );
    let address = Ipv4Addr::new(172, 21, 0, 9);
    let nowhere = Attachment {
        network: "none".into(),
        address: Some(address),
        mac: None,
        ifname: "eth9".into(),
        ipv6: None,
        link_local: Vec::new(),
    };
    assert!(
        bridges
            .attach("c1", lab.place("c1"), nowhere, 0)
            .await
            .is_err()
    );
    let lost = Attachment {
        network: "net1".into(),
        address: Some(address),
        mac: None,
        ifname: "eth0".into(),
        ipv6: None,
        link_local: Vec::new(),
    };
    let before = bridges.view().await.unwrap();
    assert!(
        bridges
            .attach("c9", lab.place("c9"), lost, 0)
            .await
            .is_err()
    );
    assert_eq!(bridges.view().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_destroys_is_made_again_by_itself() {
    let (lab, bridges) = or_skip!(three_containers().await);
    lab.serve("c2", "0.0.0.0:80");
    bridges
        .publish("c2", vec![request([0; 4], 8081, [172, 21, 0, 3])])
        .await
        .unwrap();
    let port = bridge_port("c1", "net1");
    let keeper = bridges.clone();
    let keeper = tokio::spawn(async move {
        loop {
            keeper.disturbed().await;
            // What one repair meets in the middle of a change, the next one sees.
            while keeper.converge().await.is_err() {}
        }
    });
    let reach =
        || lab.ask("c1", "172.21.0.3:80").is_ok() && lab.ask("client", "192.0.2.1:8081").is_ok();
    assert!(reach());
    let lost = format!("ip link del {port}");
    for damage in [
        "nft flush ruleset",
        "nft flush chain ip shoal_bridge prerouting",
        "ip link del br-net1",
        "ip link set br-net1 down",
        "ip addr flush dev br-net1",
        "sysctl -qw net.ipv4.ip_forward=0",
        lost.as_str(),
    ] {
        let words: Vec<&str> = damage.split(' ').collect();
        assert!(lab.run("h1", words[0], &words[1..]), "{damage}");
        let began = std::time::Instant::now();
        while !reach() {
            assert!(began.elapsed().as_secs() < 3, "{damage} was not repaired");
            tokio::task::yield_now().await;
        }
    }
    keeper.abort();
    // Nobody is at work any more when the lab is taken down.
    assert!(keeper.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn interfaces_keep_their_mtu_and_address() {
    let (mut lab, bridges) = or_skip!(three_containers().await);
    let narrow = BridgeSpec {
        mtu: Some(1400),
        ..spec(9)
    };
    bridges.create(narrow).await.unwrap();
    let port = bridge_port("c4", "net9");
    // As the first container of this daemon, and as one that comes beside others.
    for container in ["c5", "c4"] {
        lab.container(container, 0);
        let last = if container == "c4" { 4 } else { 5 };
        attach(&lab, &bridges, container, 9, last).await;
    }
    let shown = |name: &str| {
        let line = lab.text("h1", "ip", &["-o", "link", "show", name]);
        let word = |before: &str| {
            let rest = line.split(before).nth(1).unwrap();
            rest.split(' ').next().unwrap().to_owned()
        };
        (word("mtu "), word("link/ether "))
    };
    for (name, damage) in [
        ("br-net9", "mtu 1300"),
        ("br-net9", "address 02:00:00:00:00:77"),
        (&*port, "mtu 1300"),
    ] {
        let before = shown(name);
        assert_eq!(before.0, "1400", "{name}");
        let mut words = vec!["link", "set", name];
        words.extend(damage.split(' '));
        while is_disturbed(&bridges).await {
            bridges.converge().await.unwrap();
        }
        assert!(lab.run("h1", "ip", &words), "{name}: {damage}");
        assert!(is_disturbed(&bridges).await, "{name}: {damage}");
        bridges.converge().await.unwrap();
        assert_eq!(shown(name), before, "{name}: {damage}");
    }
}

/// Whether somebody has been at work, who is heard of at once.
async fn is_disturbed(bridges: &Bridges) -> bool {
    let heard = tokio::time::timeout(Duration::from_millis(500), bridges.disturbed());
    heard.await.is_ok()
}

/// The host's end of an attachment.
fn bridge_port(container: &str, network: &str) -> String {
    shoal_overlay::core::bridge::port_name("shoal", container, network)
}
