//! A node whose address is a router's, which passes the tunnels on to it.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

mod lab;

use lab::{Traffic, lab, view};

#[tokio::test]
async fn a_node_behind_address_translation_takes_part() {
    let mut lab = match lab().await {
        Ok(lab) => lab,
        Err(missing) => return eprintln!("skipped, because {missing}"),
    };
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    // The router gets h2's address on the underlay, and h2 one behind it.
    lab.place_only("gate");
    let (gate, h2) = (lab.place("gate"), lab.place("h2"));
    let (gate, h2) = (gate.to_string_lossy(), h2.to_string_lossy());
    for (place, command) in [
        ("h2", "ip link del eth0"),
        (
            "switch",
            &format!("ip link add gate up master br0 type veth peer name out netns {gate}"),
        ),
        ("gate", "ip link set out up"),
        ("gate", "ip addr add 192.0.2.2/24 dev out"),
        (
            "gate",
            &format!("ip link add in up type veth peer name eth0 netns {h2}"),
        ),
        ("gate", "ip addr add 10.99.0.1/24 dev in"),
        ("h2", "ip link set eth0 up"),
        ("h2", "ip addr add 10.99.0.2/24 dev eth0"),
        ("h2", "ip route add default via 10.99.0.1"),
        ("gate", "sysctl -qw net.ipv4.ip_forward=1"),
        ("gate", "nft add table ip nat"),
        (
            "gate",
            "nft add chain ip nat in { type nat hook prerouting priority -100 ; }",
        ),
        (
            "gate",
            "nft add rule ip nat in iifname out udp dport 4789 dnat to 10.99.0.2",
        ),
        (
            "gate",
            "nft add chain ip nat out { type nat hook postrouting priority 100 ; }",
        ),
        ("gate", "nft add rule ip nat out oifname out masquerade"),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(lab.run(place, words[0], &words[1..]), "{place}: {command}");
    }
    let view = view();
    lab.converge(&view).await;
    assert!(lab.ping("t1", "10.0.1.12"), "to the node behind the router");
    assert!(lab.ping("t2", "10.0.1.11"), "from it");
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let answers = lab.count("t2", "10.0.1.2:80", 3);
    assert_eq!(answers.len(), 3, "by the virtual address: {answers:?}");
    assert!(lab.plan(1, &view).await.is_empty(), "nothing is left to do");
}
