//! The kernel agrees with what core computed: two hosts and an outside client as namespaces on one underlay.
//!
//! Needs root, network namespaces, VXLAN and nftables; without root, or on a kernel that lacks one of the others, a
//! test says what is missing and passes, since there is nothing here to try. Everything made is removed at the end of
//! each test, also when it fails.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lab::{Lab, Traffic, ask_datagram, id, lab, view, with_datagrams};
use shoal_api::network::{Endpoint, NetworkView, Protocol, ServiceSlice};
use shoal_overlay::{core::lb, netns};

/// Asks as often as there are slots per round, so that every backend must have had its share.
const ROUND: usize = 12;

/// Two containers on h1, one on h2, all of service `web` with VIP 10.0.1.2 and published port 8080.
async fn three_tasks() -> Result<Lab, String> {
    let mut lab = lab().await?;
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    lab.converge(&view()).await;
    Ok(lab)
}

#[tokio::test]
async fn containers_reach_one_another_across_hosts() {
    let lab = or_skip!(three_tasks().await);
    lab.serve("t2", "10.0.1.12:80");
    lab.serve("t3", "10.0.1.13:80");
    for to in ["10.0.1.12", "10.0.1.13", "10.0.1.1"] {
        assert!(lab.ping("t1", to), "no answer from {to}");
    }
    assert_eq!(lab.ask("t1", "10.0.1.12:80").unwrap(), "t2 sees 10.0.1.11");
    assert_eq!(lab.ask("t1", "10.0.1.13:80").unwrap(), "t3 sees 10.0.1.11");
}

#[tokio::test]
async fn a_full_frame_crosses_the_tunnel_unfragmented() {
    let lab = or_skip!(three_tasks().await);
    // 1450 bytes of MTU less 20 of IP and 8 of ICMP.
    assert!(lab.run("t1", "ping", &["-c1", "-W2", "-Mdo", "-s1422", "10.0.1.12"]));
    assert!(!lab.run("t1", "ping", &["-c1", "-W1", "-Mdo", "-s1423", "10.0.1.12"]));
}

#[tokio::test]
async fn a_virtual_address_is_shared_evenly_and_keeps_the_client() {
    let lab = or_skip!(three_tasks().await);
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let answers = lab.count("t1", "10.0.1.2:80", ROUND);
    // The task that reaches itself sees its gateway; all others see the container that asked.
    let expected = [
        ("t1 sees 10.0.1.1", 4),
        ("t2 sees 10.0.1.11", 4),
        ("t3 sees 10.0.1.11", 4),
    ];
    assert_eq!(
        answers,
        BTreeMap::from(expected.map(|(who, n)| (who.to_owned(), n)))
    );
}

#[tokio::test]
async fn services_that_are_asked_alternately_use_all_of_their_backends() {
    let mut lab = or_skip!(lab().await);
    let mut view = view();
    let slice = view.networks.get_mut("n1").unwrap();
    let mut other = ServiceSlice::clone(&slice.services["web"]);
    other.name = "api".to_owned();
    other.vips = vec![[10, 0, 1, 3].into()];
    slice.services.insert(id("api"), Arc::new(other));
    for (task, last, service) in [("ta", 21, "api"), ("tb", 22, "api"), ("t3", 13, "")] {
        let mut endpoint = Endpoint::clone(&slice.endpoints["t1"]);
        endpoint.service = (!service.is_empty()).then(|| id(service));
        endpoint.addresses = vec![format!("10.0.1.{last}/24").parse().unwrap()];
        slice.endpoints.insert(id(task), Arc::new(endpoint));
    }
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0), ("ta", 0), ("tb", 0)] {
        lab.container(task, host);
    }
    lab.converge(&view).await;
    for task in ["t1", "t2", "ta", "tb"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..16 {
        for vip in ["10.0.1.2:80", "10.0.1.3:80"] {
            *answers.entry(lab.ask("t3", vip).unwrap()).or_default() += 1;
        }
    }
    let even = ["t1", "t2", "ta", "tb"].map(|task| (format!("{task} sees 10.0.1.13"), 8));
    assert_eq!(answers, BTreeMap::from(even));
}

#[tokio::test]
async fn a_published_port_answers_on_every_host_and_keeps_the_client() {
    let lab = or_skip!(three_tasks().await);
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    for host in ["192.0.2.1:8080", "192.0.2.2:8080"] {
        let answers = lab.count("client", host, ROUND);
        let expected =
            ["t1", "t2", "t3"].map(|task| (format!("{task} sees 192.0.2.99"), ROUND / 3));
        assert_eq!(answers, BTreeMap::from(expected), "asked at {host}");
    }
    for (from, to) in [
        ("h1", "127.0.0.1:8080"),
        ("h1", "192.0.2.1:8080"),
        ("h2", "192.0.2.1:8080"),
        ("h2", "127.0.0.1:8080"),
    ] {
        each_has_its_share(&lab, from, to);
    }
    // From inside a container to the published port of its own host, and of another one.
    for to in ["192.0.2.1:8080", "192.0.2.2:8080"] {
        each_has_its_share(&lab, "t1", to);
    }
}

/// Asks a round, in which every task must answer as often as every other, whomever it sees.
fn each_has_its_share(lab: &Lab, from: &str, to: &str) {
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for (answer, times) in lab.count(from, to, ROUND) {
        let who = answer.split_once(" sees ");
        let who = who
            .unwrap_or_else(|| panic!("{from} asked {to}: {answer}"))
            .0;
        *shares.entry(who.to_owned()).or_default() += times;
    }
    let even = ["t1", "t2", "t3"].map(|task| (task.to_owned(), ROUND / 3));
    assert_eq!(shares, BTreeMap::from(even), "{from} asked {to}");
}

#[tokio::test]
async fn a_datagram_to_a_published_port_is_answered_from_a_socket_of_no_address() {
    let mut lab = or_skip!(lab().await);
    let tasks = ["t1", "t2", "t3"];
    for (task, host) in tasks.into_iter().zip([0, 1, 0]) {
        lab.container(task, host);
    }
    let view = with_datagrams(view());
    lab.converge(&view).await;
    for task in tasks {
        // Its default route leads elsewhere.
        let routes = lab.text(task, "ip", &["route", "get", "192.0.2.99"]);
        assert!(routes.contains("via 10.0.1.1"), "{routes}");
        lab.serve_datagrams(task, "0.0.0.0:53");
    }
    for host in ["192.0.2.1:5353", "192.0.2.2:5353"] {
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..ROUND {
            let socket = lab.datagrams("client", host);
            let who = ask_datagram(&socket).unwrap();
            *answers.entry(who).or_default() += 1;
        }
        let even = tasks.map(|task| (task.to_owned(), ROUND / 3));
        assert_eq!(answers, BTreeMap::from(even), "asked at {host}");
    }
    let planned = lab.plan(0, &view).await;
    assert!(
        planned.is_empty(),
        "the rules are read as they were made: {planned:?}"
    );
}

#[tokio::test]
async fn a_published_port_is_held_on_every_host() {
    let lab = or_skip!(three_tasks().await);
    for host in ["h1", "h2"] {
        let held = lab.text(host, "ss", &["-Hltn", "sport", "=", ":8080"]);
        assert_eq!(held.lines().count(), 2, "both families: {held}");
        assert!(
            lab.bind(host, "0.0.0.0:8080").is_err(),
            "no program takes it by mistake"
        );
    }
    lab.teardown().await;
    assert!(lab.bind("h1", "0.0.0.0:8080").is_ok(), "it is free again");
}

#[tokio::test]
async fn an_endpoint_that_stops_serving_gets_no_new_connection() {
    let mut lab = or_skip!(three_tasks().await);
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let mut view = view();
    for network in view.networks.values_mut() {
        if let Some(endpoint) = network.endpoints.get_mut("t2") {
            Arc::make_mut(endpoint).serving = false;
        }
    }
    lab.converge(&view).await;
    for (from, to) in [
        ("t3", "10.0.1.2:80"),
        ("client", "192.0.2.1:8080"),
        ("client", "192.0.2.2:8080"),
    ] {
        let answers = lab.count(from, to, ROUND);
        assert!(
            answers.keys().all(|who| !who.starts_with("t2")),
            "{from} asked {to}: {answers:?}"
        );
        assert_eq!(answers.values().sum::<usize>(), ROUND);
    }
    for network in view.networks.values_mut() {
        network
            .endpoints
            .values_mut()
            .for_each(|endpoint| Arc::make_mut(endpoint).serving = false);
    }
    lab.converge(&view).await;
    assert!(
        lab.ask("t1", "10.0.1.2:80").is_err(),
        "a service without backends refuses"
    );
    assert!(lab.ask("client", "192.0.2.1:8080").is_err());
}

#[tokio::test]
async fn another_program_sees_what_ipvs_was_told_and_what_it_changes_is_taken_back() {
    let mut lab = or_skip!(lab().await);
    if !lab.open_with_ipvs()["IPVS"] {
        return eprintln!("skipped, because this kernel has no IPVS");
    }
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    let mut view = view();
    lab.converge(&view).await;
    let (router, ingress) = (lab.router(0, "n1"), lab.router(0, "ingress"));
    let shown = |lab: &Lab, router: &str| -> BTreeSet<String> {
        let rules = lab.text(router, "ipvsadm", &["-Sn"]);
        rules.lines().map(|line| line.trim().to_owned()).collect()
    };
    let vip = lb::vip_mark([10, 0, 1, 2].into());
    let port = lb::port_mark(Protocol::Tcp, 8080);
    let expected = |weights: [u32; 3]| {
        let of = |mark: u32, net: u8, port: u16| {
            let service = format!("-A -f {mark} -s rr");
            let line = move |(last, weight): (u8, u32)| {
                format!("-a -f {mark} -r 10.0.{net}.{last}:{port} -m -w {weight}")
            };
            let lines = (11..).zip(weights).map(line);
            lines.chain([service]).collect::<BTreeSet<String>>()
        };
        (of(vip, 1, 0), of(port, 0, 80))
    };
    let all = |lab: &Lab| (shown(lab, &router), shown(lab, &ingress));
    let (vips, ports) = expected([1, 1, 1]);
    let (found_vips, found_ports) = all(&lab);
    assert_eq!(found_vips, vips);
    assert!(found_ports.is_superset(&ports), "{found_ports:?}");
    let timeouts = |lab: &Lab| lab.text(&router, "ipvsadm", &["-L", "--timeout"]);
    assert!(
        timeouts(&lab).contains(": 432000 "),
        "as long as conntrack: {}",
        timeouts(&lab)
    );

    for network in view.networks.values_mut() {
        if let Some(endpoint) = network.endpoints.get_mut("t2") {
            Arc::make_mut(endpoint).serving = false;
        }
    }
    lab.converge(&view).await;
    let (vips, ports) = expected([1, 0, 1]);
    let (found_vips, found_ports) = all(&lab);
    assert_eq!(found_vips, vips);
    assert!(found_ports.is_superset(&ports), "{found_ports:?}");

    // And the other way round.
    let mark = vip.to_string();
    for change in [
        ["-a", "-f", &mark, "-r", "10.0.1.99", "-m", "-w", "1"].as_slice(),
        &["-e", "-f", &mark, "-r", "10.0.1.12", "-m", "-w", "7"],
        &["-d", "-f", &mark, "-r", "10.0.1.11"],
        &["-E", "-f", &mark, "-s", "sh"],
        &["-A", "-f", "4711", "-s", "rr"],
        &["--set", "900", "0", "0"],
    ] {
        assert!(lab.run(&router, "ipvsadm", change), "{change:?}");
        let seen = lab.plan(0, &view).await;
        assert!(!seen.is_empty(), "{change:?} went unnoticed");
        lab.converge(&view).await;
        assert_eq!(all(&lab).0, vips, "after {change:?}");
        assert!(lab.plan(0, &view).await.is_empty(), "after {change:?}");
    }
    assert!(timeouts(&lab).contains(": 432000 "), "{}", timeouts(&lab));
}

#[tokio::test]
async fn containers_get_out_by_their_host_and_nobody_gets_in() {
    let mut lab = or_skip!(three_tasks().await);
    lab.container("t4", 0);
    lab.converge(&view()).await;
    lab.serve("client", "0.0.0.0:7000");
    lab.serve("t3", "0.0.0.0:80");
    assert_eq!(
        lab.ask("t1", "192.0.2.99:7000").unwrap(),
        "client sees 192.0.2.1"
    );
    assert_eq!(
        lab.ask("t2", "192.0.2.99:7000").unwrap(),
        "client sees 192.0.2.2"
    );
    // t4 is on another network of the same host as t3.
    assert!(lab.ask("t4", "192.0.2.99:7000").is_ok());
    assert!(
        lab.ask("t4", "10.0.1.13:80").is_err(),
        "networks are isolated"
    );
    lab.route_into_overlay();
    assert!(
        lab.ask("client", "10.0.1.13:80").is_err(),
        "nobody enters past the published ports"
    );
}

#[tokio::test]
async fn an_internal_network_has_no_way_out() {
    let mut lab = or_skip!(lab().await);
    lab.container("t5", 0);
    lab.container("t6", 1);
    lab.converge(&view()).await;
    lab.serve("client", "0.0.0.0:7000");
    assert!(lab.ping("t5", "10.0.3.12"));
    assert!(lab.ask("t5", "192.0.2.99:7000").is_err());
}

#[tokio::test]
async fn converging_again_changes_nothing() {
    let lab = or_skip!(three_tasks().await);
    for host in 0..2 {
        let ops = lab.plan(host, &view()).await;
        assert!(ops.is_empty(), "{ops:#?}");
    }
}

#[tokio::test]
async fn what_somebody_destroyed_is_made_again() {
    let mut lab = or_skip!(three_tasks().await);
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let router = lab.router(0, "n1");
    // With IPVS the tables only mark what it distributes.
    let ipvs = lab.lb_driver(0) == "IPVS";
    let (chain, map) = if ipvs {
        ("entry", "vip_mark")
    } else {
        ("prerouting", "vip_slots")
    };
    let clear: (&str, &str, &[&str]) = if ipvs {
        (&router, "ipvsadm", &["-C"])
    } else {
        (&router, "nft", &["flush", "ruleset"])
    };
    let damage: [(&str, &str, &[&str]); 10] = [
        clear,
        ("h1", "nft", &["flush", "ruleset"]),
        (&router, "nft", &["flush", "ruleset"]),
        (&router, "nft", &["flush", "chain", "ip", "shoal", chain]),
        (&router, "nft", &["flush", "map", "ip", "shoal", map]),
        (&router, "ip", &["link", "del", "vx0"]),
        (&router, "ip", &["route", "flush", "table", "main"]),
        ("t1", "ip", &["link", "del", "eth1"]),
        ("h1", "ip", &["link", "del", "shoal_gwbridge"]),
        (
            &router,
            "ip",
            &["neigh", "flush", "all", "nud", "permanent"],
        ),
    ];
    for (place, program, arguments) in damage {
        assert!(
            lab.run(place, program, arguments),
            "{program} {arguments:?}"
        );
        assert!(
            !lab.plan(0, &view()).await.is_empty(),
            "{program} {arguments:?} went unnoticed"
        );
        lab.converge(&view()).await;
        let ops = lab.plan(0, &view()).await;
        assert!(ops.is_empty(), "after {program} {arguments:?}: {ops:#?}");
        assert_eq!(
            lab.count("t1", "10.0.1.2:80", ROUND)
                .values()
                .sum::<usize>(),
            ROUND,
            "{program} {arguments:?}"
        );
        assert_eq!(
            lab.count("client", "192.0.2.1:8080", ROUND).len(),
            3,
            "{program} {arguments:?}"
        );
    }
}

#[tokio::test]
async fn a_restarted_daemon_adopts_what_it_finds() {
    let mut lab = or_skip!(three_tasks().await);
    lab.restart_planes();
    for host in 0..2 {
        assert_eq!(lab.plan(host, &view()).await, []);
    }
}

#[tokio::test]
async fn a_network_without_local_endpoint_leaves_nothing_behind() {
    let mut lab = or_skip!(three_tasks().await);
    let mut view = view();
    view.networks.remove("n1");
    lab.converge(&view).await;
    assert_eq!(lab.routers(0), ["router-ingress", "router-n2", "router-n3"]);
    assert_eq!(
        lab.text("t1", "ip", &["-br", "link", "show", "type", "veth"])
            .lines()
            .count(),
        1,
        "only ingress is left"
    );
    lab.converge(&NetworkView::default()).await;
    let inside = lab.text("t1", "ip", &["rule"]);
    assert!(!inside.contains("10.0.0."), "{inside}");
    assert!(lab.routers(0).is_empty());
    assert_eq!(lab.text("h1", "nft", &["list", "ruleset"]), "");
    let links = lab.text("h1", "ip", &["-br", "link"]);
    assert!(!links.contains("shoal"), "{links}");
}

#[tokio::test]
async fn leaving_the_cluster_removes_everything() {
    let lab = or_skip!(three_tasks().await);
    lab.teardown().await;
    for host in 0..2 {
        assert!(lab.routers(host).is_empty());
    }
    assert_eq!(lab.text("h1", "nft", &["list", "ruleset"]), "");
}

#[tokio::test]
async fn the_first_network_of_a_container_is_eth0_and_ingress_comes_first() {
    let lab = or_skip!(three_tasks().await);
    let addresses = lab.text("t1", "ip", &["-br", "-4", "addr"]);
    let shown: Vec<Vec<&str>> = addresses
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let of = |name: &str| {
        shown
            .iter()
            .find(|line| line[0].starts_with(name))
            .map(|line| line[2])
    };
    assert_eq!(
        (of("eth0"), of("eth1")),
        (Some("10.0.0.11/24"), Some("10.0.1.11/24"))
    );
    assert!(
        lab.text("t1", "ip", &["route"])
            .contains("default via 10.0.1.1 dev eth1")
    );
}

#[tokio::test]
async fn a_missing_container_is_reported_and_the_others_converge() {
    let mut lab = or_skip!(lab().await);
    lab.container("t1", 0);
    lab.lose_container("t3", 0);
    let errors = lab.try_converge(0, &view()).await.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0]
            .to_string()
            .starts_with("cannot open network namespace"),
        "{}",
        errors[0]
    );
    assert!(lab.ping("t1", "10.0.1.1"));
}

#[tokio::test]
async fn tunnels_leave_no_records_of_connections_on_the_host() {
    let lab = or_skip!(three_tasks().await);
    lab.serve("t2", "10.0.1.12:80");
    assert!(lab.ask("t1", "10.0.1.12:80").is_ok());
    for host in ["h1", "h2"] {
        let records = lab.text(host, "cat", &["/proc/self/net/nf_conntrack"]);
        assert!(!records.contains("dport=4789"), "{host}: {records}");
    }
    // What is not a tunnel's still has them: answers to what the host asked are known by them.
    lab.serve("client", "0.0.0.0:7000");
    assert!(lab.ask("t1", "192.0.2.99:7000").is_ok());
    let records = lab.text("h1", "cat", &["/proc/self/net/nf_conntrack"]);
    assert!(records.contains("dport=7000"), "{records}");
}

#[test]
#[allow(unsafe_code)]
fn handles_are_in_no_clone_of_the_hosts_mounts() {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    if !nix::unistd::Uid::effective().is_root() {
        return eprintln!("skipped, because this needs root");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let handles = folder.path().join("netns");
    netns::make_directory(&handles).expect("root may mount");
    netns::make_directory(&handles).expect("once more, as at the next start");
    let handle = handles.join("c1");
    netns::create(&handle).expect("a namespace");
    const OPEN_TREE_CLONE: i32 = 1;
    let flags = OPEN_TREE_CLONE | nix::libc::O_CLOEXEC | nix::libc::AT_RECURSIVE;
    let here = std::fs::File::open(folder.path()).expect("a folder");
    // SAFETY: takes a descriptor and a text that live until after the call, and gives a descriptor that nobody else owns.
    let clone = unsafe {
        let fd = nix::libc::syscall(
            nix::libc::SYS_open_tree,
            here.as_raw_fd(),
            c".".as_ptr(),
            flags,
        );
        OwnedFd::from_raw_fd(i32::try_from(fd).expect("the kernel clones mounts"))
    };
    let seen = format!("/proc/self/fd/{}/netns/c1", clone.as_raw_fd());
    let kind = |path: &std::path::Path| {
        let found = nix::sys::statfs::statfs(path).expect("a file");
        found.filesystem_type()
    };
    let (handle_is, clone_has) = (kind(&handle), kind(seen.as_ref()));
    netns::delete(&handle).expect("the handle is removed");
    netns::release_directory(&handles);
    assert_eq!(handle_is, nix::sys::statfs::NSFS_MAGIC);
    // The file that the handle is mounted on.
    assert_ne!(clone_has, nix::sys::statfs::NSFS_MAGIC);
}
