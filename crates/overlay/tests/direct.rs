//! Networks without virtual addresses: what a container sends to one of another node is not routed on its own node.
//!
//! Needs root, network namespaces, VXLAN and nftables; a test says what is missing and passes where there is nothing to try.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::sync::Arc;

use lab::{Lab, Traffic, dual, lab};
use shoal_api::network::NetworkView;
use shoal_overlay::core::{naming, state::Family};

const PINGS: u64 = 5;

/// t1 and t3 on h1, t2 on h2, in networks whose services have names alone.
fn names_alone() -> NetworkView {
    let mut view = dual();
    for network in view.networks.values_mut() {
        for service in network.services.values_mut() {
            Arc::make_mut(service).vips.clear();
        }
    }
    view
}

async fn connected(view: &NetworkView) -> Result<Lab, String> {
    let mut lab = lab().await?;
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    lab.converge(view).await;
    if !lab.features()["nftables fwd"] {
        return Err("this kernel lacks CONFIG_NFT_FWD_NETDEV".to_owned());
    }
    Ok(lab)
}

fn address(family: Family, last: u8) -> String {
    match family {
        Family::V4 => format!("10.0.1.{last}"),
        Family::V6 => format!("fd00:1::{last}"),
    }
}

/// How many packets the router of n1 on h1 has routed.
fn routed(lab: &Lab, family: Family) -> u64 {
    let router = lab.router(0, "n1");
    match family {
        Family::V4 => {
            let told = lab.text(&router, "cat", &["/proc/thread-self/net/snmp"]);
            let mut lines = told.lines().filter(|line| line.starts_with("Ip: "));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let at = names.split(' ').position(|name| name == "ForwDatagrams");
            values.split(' ').nth(at.unwrap()).unwrap().parse().unwrap()
        }
        Family::V6 => {
            let told = lab.text(&router, "cat", &["/proc/thread-self/net/snmp6"]);
            let line = told
                .lines()
                .find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"));
            line.unwrap().trim().parse().unwrap()
        }
    }
}

/// t1 asks t2, whose answers alone are routed on h1.
fn goes_directly(lab: &Lab) {
    for family in Family::ALL {
        let to = address(family, 12);
        assert!(lab.ping("t1", &to), "no answer from {to}");
        let before = routed(lab, family);
        let count = format!("-c{PINGS}");
        assert!(lab.run("t1", "ping", &[&count, "-i0.01", "-W2", &to]));
        assert_eq!(routed(lab, family) - before, PINGS, "{to}");
    }
}

#[tokio::test]
async fn what_is_for_another_node_is_not_routed_and_all_else_is() {
    let view = names_alone();
    let lab = or_skip!(connected(&view).await);
    for host in [0, 1] {
        assert!(lab.plan(host, &view).await.is_empty());
    }
    goes_directly(&lab);
    for task in ["t2", "t3"] {
        lab.serve(task, "[::]:80");
    }
    for (at, sees) in [
        ("10.0.1.12:80", "t2 sees ::ffff:10.0.1.11"),
        ("[fd00:1::12]:80", "t2 sees fd00:1::11"),
        ("10.0.1.13:80", "t3 sees ::ffff:10.0.1.11"),
        ("[fd00:1::13]:80", "t3 sees fd00:1::11"),
    ] {
        assert_eq!(lab.ask("t1", at).unwrap(), sees);
    }
    for family in Family::ALL {
        assert!(lab.ping("t2", &address(family, 11)));
        // Who counts the hops is told by the router that there are no more.
        let to = address(family, 12);
        let told = lab.text("t1", "ping", &["-c1", "-t1", "-W2", &to]);
        assert!(told.to_lowercase().contains("exceeded"), "{told}");
        assert!(lab.run("t1", "ping", &["-c1", "-t3", "-W2", &to]));
        // Nobody sends under another's address.
        let other = address(family, 99);
        let prefix = format!("{other}/{}", family.width() * 8);
        let mut add = vec!["addr", "add", &prefix, "dev", "eth0"];
        add.extend((family == Family::V6).then_some("nodad"));
        assert!(lab.run("t1", "ip", &add));
        assert!(!lab.run("t1", "ping", &["-c1", "-W1", "-I", &other, &to]));
    }
}

#[tokio::test]
async fn endpoints_come_and_go_and_damage_is_repaired() {
    let view = names_alone();
    let mut lab = or_skip!(connected(&view).await);
    let mut without = view.clone();
    without.version += 1;
    let network = without.networks.get_mut("n1").unwrap();
    // Ingress keeps h2 among the peers, a second endpoint there the network.
    let second = network.endpoints.get("t2").unwrap().clone();
    let mut moved = (*second).clone();
    moved.addresses = vec![
        "10.0.1.20/24".parse().unwrap(),
        "fd00:1::20/64".parse().unwrap(),
    ];
    network.endpoints.insert(lab::id("t7"), Arc::new(moved));
    lab.container("t7", 1);
    lab.converge(&without).await;
    goes_directly(&lab);
    for family in Family::ALL {
        assert!(lab.ping("t1", &address(family, 20)));
    }
    without.version += 1;
    let network = without.networks.get_mut("n1").unwrap();
    network.endpoints.remove("t2").unwrap();
    lab.converge(&without).await;
    for family in Family::ALL {
        assert!(!lab.run("t1", "ping", &["-c1", "-W1", &address(family, 12)]));
        assert!(lab.ping("t1", &address(family, 20)));
    }
    assert!(lab.plan(0, &without).await.is_empty());
    let mut view = view;
    view.version = without.version + 1;
    let network = view.networks.get_mut("n1").unwrap();
    network.endpoints.remove("t3").unwrap();
    lab.converge(&view).await;
    goes_directly(&lab);
    let router = lab.router(0, "n1");
    for damage in [
        &["nft", "delete", "table", "netdev", "shoal-4"][..],
        &["nft", "flush", "table", "netdev", "shoal-6"],
        &["ip", "link", "del", "vx0"],
        &["nft", "flush", "ruleset"],
    ] {
        assert!(lab.run(&router, damage[0], &damage[1..]), "{damage:?}");
        lab.settle(0, &view).await;
        assert!(lab.plan(0, &view).await.is_empty(), "{damage:?}");
        goes_directly(&lab);
    }
}

#[tokio::test]
async fn containers_get_out_and_nobody_gets_in() {
    let view = names_alone();
    let lab = or_skip!(connected(&view).await);
    lab.serve("client", "0.0.0.0:7000");
    lab.serve("t3", "0.0.0.0:80");
    for (task, seen) in [("t1", "192.0.2.1"), ("t2", "192.0.2.2")] {
        let answer = lab.ask(task, "192.0.2.99:7000").unwrap();
        assert_eq!(answer, format!("client sees {seen}"));
    }
    lab.route_into_overlay();
    assert!(lab.ask("client", "10.0.1.13:80").is_err());
}

#[tokio::test]
async fn what_no_endpoint_has_leads_nowhere() {
    for view in [names_alone(), dual()] {
        let lab = or_skip!(connected(&view).await);
        // As one that has been there, which its neighbours still know.
        let port = naming::endpoint_port(&lab::id("t1"));
        let link = lab.text(&lab.router(0, "n1"), "ip", &["-o", "link", "show", &port]);
        let mac = link.split("link/ether ").nth(1).unwrap();
        let mac = mac.split(' ').next().unwrap();
        let neighbour = ["neigh", "add", "10.0.1.99", "lladdr", mac, "dev", "eth0"];
        assert!(lab.run("t1", "ip", &neighbour));
        for family in Family::ALL {
            let to = address(family, 99);
            let before = routed(&lab, family);
            assert!(!lab.run("t1", "ping", &["-c3", "-i0.01", "-W1", &to]));
            assert_eq!(routed(&lab, family), before, "{to}");
        }
    }
}
