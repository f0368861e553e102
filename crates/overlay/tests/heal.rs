//! What somebody destroys is seen and made again without anybody asking.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

mod lab;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lab::{Lab, Traffic, lab, view};

/// Within this time connectivity is back.
const REPAIRED_WITHIN: Duration = Duration::from_secs(3);

/// Whether t1 reaches t2 on the other host, by its address and by the virtual one, and the outside client the port.
fn all_reach(lab: &Lab) -> bool {
    lab.ask("t1", "10.0.1.12:80").is_ok()
        && (0..3).all(|_| lab.ask("t1", "10.0.1.2:80").is_ok())
        && (0..3).all(|_| lab.ask("client", "192.0.2.1:8080").is_ok())
        && lab.ask("h1", "127.0.0.1:8080").is_ok()
        && lab.ask("t1", "192.0.2.99:7000").is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_is_repaired_by_itself() {
    let mut lab = match lab().await {
        Ok(lab) => lab,
        Err(missing) => return eprintln!("skipped, because {missing}"),
    };
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    let view = view();
    lab.converge(&view).await;
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    lab.serve("client", "0.0.0.0:7000");
    let guard = lab.guard(0, &view);
    assert!(all_reach(&lab), "before anything was done");

    let (router, ingress) = (lab.router(0, "n1"), lab.router(0, "ingress"));
    let (router, ingress) = (router.as_str(), ingress.as_str());
    // With IPVS the tables only mark what it distributes.
    let ipvs = lab.lb_driver(0) == "IPVS";
    let map = if ipvs {
        "nft flush map ip shoal vip_mark"
    } else {
        "nft flush map ip shoal vip_slots"
    };
    let mut damage = vec![
        ("h1", "nft flush ruleset"),
        ("h1", "nft delete chain ip shoal prerouting"),
        ("h1", "nft flush map ip shoal published"),
        ("h1", "ip link del shoal_gwbridge"),
        ("h1", "ip link set shoal_gwbridge down"),
        ("h1", "ip addr flush dev shoal_gwbridge"),
        ("h1", "ip route flush proto 83"),
        ("h1", "sysctl -qw net.ipv4.ip_forward=0"),
        (router, "nft flush ruleset"),
        (router, "nft flush chain ip shoal prerouting"),
        (router, map),
        (router, "ip link del vx0"),
        (router, "ip link set vx0 down"),
        (router, "ip link set vx0 mtu 600"),
        // Of this the kernel says no more than that it is so.
        (router, "ip link set vx0 mtu 1300"),
        (router, "ip link set vx0 address 02:42:c0:00:02:77"),
        (router, "ip link set up0 down"),
        (router, "ip addr flush dev lo"),
        (router, "ip route flush table main"),
        (router, "ip neigh flush all nud permanent"),
        (router, "ip neigh del 192.0.2.2 dev vx0"),
        (router, "bridge fdb del 02:42:c0:00:02:02 dev vx0"),
        (router, "sysctl -qw net.ipv4.ip_forward=0"),
        (ingress, "ip rule del priority 1000"),
        (ingress, "nft flush ruleset"),
        (ingress, "ip link del vx0"),
        ("t1", "ip link del eth1"),
    ];
    if ipvs {
        // Of which the kernel tells nobody.
        damage.extend([
            (router, "ipvsadm -C"),
            (ingress, "ipvsadm -C"),
            (router, "ipvsadm -d -f 8388866 -r 10.0.1.12"),
            (router, "ipvsadm --set 60 0 0"),
        ]);
    }
    for (place, command) in damage {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(
            lab.run(place, words[0], &words[1..]),
            "{place}: {command} failed"
        );
        let began = Instant::now();
        while !(all_reach(&lab) && lab.plan(0, &view).await.is_empty()) {
            assert!(
                began.elapsed() < REPAIRED_WITHIN,
                "{place}: {command} was not repaired: {:#?}",
                lab.plan(0, &view).await
            );
            tokio::task::yield_now().await;
        }
        eprintln!(
            "{command} in {} repaired within {:?}",
            place.rsplit('/').next().unwrap_or_default(),
            began.elapsed()
        );
    }
    guard.abort();
    // Nobody is at work any more when the lab is taken down.
    assert!(guard.await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plane_does_itself_disturbs_nobody() {
    let mut lab = match lab().await {
        Ok(lab) => lab,
        Err(missing) => return eprintln!("skipped, because {missing}"),
    };
    lab.container("t1", 0);
    let mut view = view();
    lab.converge(&view).await;
    lab.settle(0, &view).await;
    for serving in [false, true] {
        for network in view.networks.values_mut() {
            network
                .endpoints
                .values_mut()
                .for_each(|endpoint| Arc::make_mut(endpoint).serving = serving);
        }
        lab.converge(&view).await;
        assert!(!lab.is_disturbed(0).await, "serving: {serving}");
    }
}

/// Gives links of a place an MTU, where they are there.
fn set_mtu(lab: &Lab, place: &str, mtu: u32) {
    for link in ["br0", "h1", "h2", "client", "eth0"] {
        let _ = lab.run(place, "ip", &["link", "set", link, "mtu", &mtu.to_string()]);
    }
}

/// Whether a packet of so many bytes passes in one piece.
fn passes(lab: &Lab, from: &str, to: &str, bytes: u32) -> bool {
    // 20 bytes of IP and 8 of ICMP.
    let payload = format!("-s{}", bytes - 28);
    lab.run(from, "ping", &["-c1", "-W2", "-Mdo", &payload, to])
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_follow_when_the_underlay_becomes_narrow_or_wide() {
    let mut lab = match lab().await {
        Ok(lab) => lab,
        Err(missing) => return eprintln!("skipped, because {missing}"),
    };
    for (task, host) in [("t1", 0), ("t2", 1)] {
        lab.container(task, host);
    }
    let view = view();
    lab.converge(&view).await;
    let guards = [lab.guard(0, &view), lab.guard(1, &view)];
    let follows = async |task: &str, underlay: u32| {
        let (began, expected) = (Instant::now(), format!("mtu {} ", underlay - 50));
        loop {
            let link = lab.text(task, "ip", &["-o", "link", "show", "eth1"]);
            if link.contains(&expected) {
                return;
            }
            assert!(
                began.elapsed() < REPAIRED_WITHIN,
                "{link} without {expected}"
            );
            tokio::task::yield_now().await;
        }
    };
    let ways = [("t1", "10.0.1.12"), ("t2", "10.0.1.11")];
    for underlay in [1400, 9000, 1500] {
        for place in ["switch", "h1", "h2", "client"] {
            set_mtu(&lab, place, underlay);
        }
        for (from, to) in ways {
            follows(from, underlay).await;
            assert!(passes(&lab, from, to, underlay - 50), "{underlay}: {from}");
            assert!(!passes(&lab, from, to, underlay - 49), "{underlay}: {from}");
        }
    }
    // One host alone has less: what is too large for it is dropped, all else goes both ways.
    set_mtu(&lab, "h2", 1300);
    follows("t2", 1300).await;
    for (from, to) in ways {
        assert!(passes(&lab, from, to, 1250), "{from}");
        assert!(!passes(&lab, from, to, 1450), "{from}");
    }
    for guard in guards {
        guard.abort();
        assert!(guard.await.unwrap_err().is_cancelled());
    }
}
