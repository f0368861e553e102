//! IPv6 beside IPv4: addresses, virtual addresses, published ports, ways out.
//!
//! Needs what `net.rs` needs, and IPv6; is skipped for the same reasons.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::collections::BTreeMap;

use lab::{Lab, Traffic, bridged_packets_pass_rules, dual, lab};
use shoal_api::network::NetworkView;
use shoal_overlay::core::state::Family;

/// Asks as often as there are slots per round, so that every backend must have had its share.
const ROUND: usize = 12;

/// Two containers on h1, one on h2, all of service `web`, on networks with both families.
async fn three_tasks() -> Result<Lab, String> {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Err("this kernel has no IPv6".to_owned());
    }
    let mut lab = lab().await?;
    for (place, last) in [("h1", 1), ("h2", 2), ("client", 99)] {
        let address = format!("fd11::{last}/64");
        assert!(lab.run(
            place,
            "ip",
            &["addr", "add", &address, "dev", "eth0", "nodad"]
        ));
    }
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    lab.converge(&dual()).await;
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "[::]:80");
    }
    // Until the neighbours of the underlay have found one another, a first packet may be lost.
    for host in ["fd11::1", "fd11::2"] {
        while !lab.ping("client", host) {}
    }
    Ok(lab)
}

/// Says on a link, as a router does, that it leads everywhere (RFC 4861 §4.2).
fn advertise(lab: &Lab, place: &str) {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
        socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    const ADVERTISEMENT: u8 = 134;
    const HOP_LIMIT: i32 = 255;
    lab.within(place, || {
        let kind = SockProtocol::IcmpV6;
        let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), kind).unwrap();
        setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOP_LIMIT).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        // For half an hour; the kernel fills in the checksum.
        let packet = [ADVERTISEMENT, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let all = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        let to = SockaddrIn6::from(all);
        // Refused for as long as the link's own address is being tried.
        let _ = sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty());
    });
}

#[tokio::test]
async fn a_host_that_begins_to_forward_keeps_the_route_that_its_router_told() {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return eprintln!("skipped, because this kernel has no IPv6");
    }
    let mut lab = or_skip!(lab().await);
    let set = |place: &str, name: &str, value: &str| {
        let word = format!("net.ipv6.conf.{name}={value}");
        assert!(lab.run(place, "sysctl", &["-qw", &word]), "{word}");
    };
    let get = |lab: &Lab, name: &str| {
        let name = format!("net.ipv6.conf.{name}");
        lab.text("h1", "sysctl", &["-n", &name]).trim().to_owned()
    };
    assert!(
        lab.run(
            "h1",
            "ip",
            &"link add deaf up type veth peer name far"
                .split(' ')
                .collect::<Vec<_>>()
        )
    );
    set("h1", "eth0.accept_ra", "1");
    set("h1", "deaf.accept_ra", "0");
    set("client", "eth0.forwarding", "1");
    let told = |lab: &Lab| {
        let routes = lab.text("h1", "ip", &["-6", "route", "show", "default"]);
        routes.contains("dev eth0")
    };
    while !told(&lab) {
        advertise(&lab, "client");
    }
    lab.container("t1", 0);
    lab.try_converge(0, &dual()).await.unwrap();
    assert_eq!(get(&lab, "all.forwarding"), "1");
    assert!(told(&lab), "the route is still there");
    assert_eq!(get(&lab, "eth0.accept_ra"), "2");
    assert_eq!(get(&lab, "deaf.accept_ra"), "0", "it did not listen before");
    assert_eq!(get(&lab, "shoal_gwbridge.accept_ra"), "0");
    // What is decided by hand later stays.
    assert!(lab.run("h1", "sysctl", &["-qw", "net.ipv6.conf.eth0.accept_ra=1"]));
    lab.try_converge(0, &dual()).await.unwrap();
    assert_eq!(get(&lab, "eth0.accept_ra"), "1");
}

#[tokio::test]
async fn containers_reach_one_another_across_hosts() {
    let lab = or_skip!(three_tasks().await);
    for to in ["fd00:1::12", "fd00:1::13", "fd00:1::1"] {
        assert!(lab.ping("t1", to), "no answer from {to}");
    }
    assert_eq!(
        lab.ask("t1", "[fd00:1::12]:80").unwrap(),
        "t2 sees fd00:1::11"
    );
    // 1450 bytes of MTU less 40 of IP and 8 of ICMP.
    let full = |size: &str| lab.run("t1", "ping", &["-c1", "-W1", "-Mdo", size, "fd00:1::12"]);
    assert!(full("-s1402"));
    assert!(!full("-s1403"));
}

#[tokio::test]
async fn a_virtual_address_is_shared_evenly_and_keeps_the_client() {
    let lab = or_skip!(three_tasks().await);
    let answers = lab.count("t1", "[fd00:1::2]:80", ROUND);
    let expected = [
        ("t1 sees fd00:1::1", 4),
        ("t2 sees fd00:1::11", 4),
        ("t3 sees fd00:1::11", 4),
    ];
    assert_eq!(
        answers,
        BTreeMap::from(expected.map(|(who, n)| (who.to_owned(), n)))
    );
}

#[tokio::test]
async fn a_published_port_answers_on_every_host_and_keeps_the_client() {
    let lab = or_skip!(three_tasks().await);
    for host in ["[fd11::1]:8080", "[fd11::2]:8080"] {
        let answers = lab.count("client", host, ROUND);
        let expected = ["t1", "t2", "t3"].map(|task| (format!("{task} sees fd11::99"), ROUND / 3));
        assert_eq!(answers, BTreeMap::from(expected), "asked at {host}");
    }
    // Whether bridged packets pass the rules of IPv6, too, makes no difference.
    for passes in bridged_packets_pass_rules(&lab, Family::V6) {
        for (from, to) in [
            ("h1", "[::1]:8080"),
            ("h2", "[::1]:8080"),
            ("h1", "[fd11::1]:8080"),
            ("h2", "[fd11::1]:8080"),
        ] {
            let answers = lab.count(from, to, ROUND);
            assert_eq!(answers.len(), 3, "{from} asked {to}, {passes}: {answers:?}");
            assert!(
                answers.keys().all(|who| who.contains(" sees ")),
                "{from} asked {to}, {passes}: {answers:?}"
            );
        }
    }
    // IPv4 is as it was.
    assert_eq!(lab.count("client", "192.0.2.1:8080", ROUND).len(), 3);
}

#[tokio::test]
async fn containers_get_out_by_their_host_and_networks_are_apart() {
    let mut lab = or_skip!(three_tasks().await);
    lab.container("t4", 0);
    lab.container("t5", 0);
    lab.converge(&dual()).await;
    lab.serve("client", "[::]:7000");
    assert_eq!(
        lab.ask("t1", "[fd11::99]:7000").unwrap(),
        "client sees fd11::1"
    );
    assert!(lab.ask("t4", "[fd00:1::13]:80").is_err(), "another network");
    assert!(
        lab.ask("t5", "[fd11::99]:7000").is_err(),
        "an internal network"
    );
}

#[tokio::test]
async fn nothing_changes_when_nothing_is_to_do_and_nothing_stays_behind() {
    let mut lab = or_skip!(three_tasks().await);
    lab.restart_planes();
    for host in 0..2 {
        let ops = lab.plan(host, &dual()).await;
        assert!(ops.is_empty(), "{ops:#?}");
    }
    for (place, command) in [
        ("h1", "nft delete table ip6 shoal"),
        (
            &*lab.router(0, "n1"),
            "ip -6 route flush table main proto 83",
        ),
        (
            &*lab.router(0, "n1"),
            "ip -6 addr flush dev lo scope global",
        ),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(lab.run(place, words[0], &words[1..]), "{command}");
        lab.converge(&dual()).await;
        assert!(lab.plan(0, &dual()).await.is_empty(), "{command}");
        assert_eq!(lab.count("client", "[fd11::1]:8080", ROUND).len(), 3);
        assert!(lab.ask("t1", "[fd00:1::12]:80").is_ok(), "{command}");
    }
    lab.converge(&NetworkView::default()).await;
    assert_eq!(lab.text("h1", "nft", &["list", "ruleset"]), "");
    assert!(!lab.text("h1", "ip", &["-6", "addr"]).contains("fd53"));
}
