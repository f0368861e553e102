//! Flows of datagrams, which last for as long as the client goes on: they go the way that one that begins now would go.
//!
//! Needs what `net.rs` needs, and is skipped for the same reasons.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use lab::{Lab, Traffic, ask_datagram, dual, lab, view, with_datagrams};
use shoal_api::network::{NetworkView, Protocol};

/// How long a flow may go on to a backend that was replaced.
const MOVED_WITHIN: Duration = Duration::from_secs(2);

const TASKS: [(&str, usize); 3] = [("t1", 0), ("t2", 1), ("t3", 0)];

async fn three_tasks(view: &NetworkView) -> Result<Lab, String> {
    let mut lab = lab().await?;
    for (task, host) in TASKS {
        lab.container(task, host);
    }
    lab.converge(view).await;
    Ok(lab)
}

/// Clients that have asked in vain, each from a port that it goes on to ask from.
fn clients(lab: &Lab) -> Vec<(&'static str, UdpSocket)> {
    let clients = [
        ("client", "192.0.2.1:5353"),
        ("client", "192.0.2.2:5353"),
        ("h1", "127.0.0.1:5353"),
        ("h1", "192.0.2.1:5353"),
    ];
    let clients = clients.map(|(place, at)| (at, lab.datagrams(place, at)));
    for (at, socket) in &clients {
        assert!(ask_datagram(socket).is_err(), "nobody is at {at}");
    }
    clients.into()
}

/// All of them are answered, the first time that they ask again.
fn are_answered(clients: &[(&str, UdpSocket)]) {
    for (at, socket) in clients {
        // An error of before may still be told.
        let _ = socket.take_error();
        let answer = ask_datagram(socket).unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert!(answer.starts_with('t'), "at {at}: {answer}");
    }
}

fn set_serving(view: &mut NetworkView, serving: bool) {
    view.version += 1;
    for network in view.networks.values_mut() {
        for endpoint in network.endpoints.values_mut() {
            Arc::make_mut(endpoint).serving = serving;
        }
    }
}

fn datagram_target(view: &mut NetworkView, target: u16) {
    view.version += 1;
    let ingress = view.networks.get_mut("ingress").unwrap();
    let web = Arc::make_mut(ingress.services.get_mut("web").unwrap());
    let mut ports = web.ports.iter_mut();
    let port = ports.find(|port| port.protocol == Protocol::Udp);
    port.unwrap().target = target;
}

fn serve(lab: &Lab, at: &str) {
    for (task, _) in TASKS {
        lab.serve_datagrams(task, at);
    }
}

#[tokio::test]
async fn a_flow_that_is_older_than_its_backends_finds_them() {
    let mut view = with_datagrams(view());
    set_serving(&mut view, false);
    let mut lab = or_skip!(three_tasks(&view).await);
    serve(&lab, "0.0.0.0:53");
    let mut clients = clients(&lab);
    let vip = ("10.0.1.2:53", lab.datagrams("t1", "10.0.1.2:53"));
    assert!(ask_datagram(&vip.1).is_err());
    clients.push(vip);
    set_serving(&mut view, true);
    lab.converge(&view).await;
    are_answered(&clients);
}

#[tokio::test]
async fn a_flow_that_is_older_than_its_published_port_is_led_when_that_is_there() {
    let mut lab = or_skip!(three_tasks(&view()).await);
    serve(&lab, "0.0.0.0:53");
    let clients = clients(&lab);
    let mut view = with_datagrams(view());
    view.version += 1;
    lab.converge(&view).await;
    are_answered(&clients);
    // And one that is younger is the host's when it is there no more.
    let mut without = lab::view();
    without.version = view.version + 1;
    lab.converge(&without).await;
    lab.serve_datagrams("h1", "0.0.0.0:5353");
    for (at, socket) in clients.iter().filter(|(at, _)| *at != "192.0.2.2:5353") {
        assert_eq!(ask_datagram(socket).unwrap(), "h1", "at {at}");
    }
}

#[tokio::test]
async fn a_flow_follows_the_port_of_its_service() {
    let mut view = with_datagrams(view());
    let mut lab = or_skip!(three_tasks(&view).await);
    let clients = clients(&lab);
    serve(&lab, "0.0.0.0:54");
    datagram_target(&mut view, 54);
    lab.converge(&view).await;
    if lab.lb_driver(0) == "IPVS" {
        // It drops the first packet of a flow whose destination has gone (`expire_nodest_conn`).
        clients
            .iter()
            .for_each(|(_, socket)| drop(ask_datagram(socket)));
    }
    are_answered(&clients);
}

#[tokio::test]
async fn rules_that_were_gone_for_a_while_keep_no_flow_astray() {
    let view = with_datagrams(view());
    let lab = or_skip!(three_tasks(&view).await);
    serve(&lab, "0.0.0.0:53");
    for (host, chain) in [("h1", "prerouting"), ("h1", "output"), ("h2", "prerouting")] {
        let flush = ["flush", "chain", "ip", "shoal", chain];
        assert!(lab.run(host, "nft", &flush), "{host}: {chain}");
    }
    let clients = clients(&lab);
    for host in [0, 1] {
        lab.settle(host, &view).await;
    }
    are_answered(&clients);
}

#[tokio::test]
async fn a_datagram_flow_to_a_published_port_moves_when_its_backend_stops_serving() {
    let mut lab = or_skip!(lab().await);
    let tasks = [("t1", 0, 11), ("t2", 1, 12), ("t3", 0, 13)];
    for (task, host, _) in tasks {
        lab.container(task, host);
    }
    let mut view = with_datagrams(view());
    lab.converge(&view).await;
    for (task, ..) in tasks {
        lab.serve_datagrams(task, "0.0.0.0:53");
    }
    let socket = lab.datagrams("client", "192.0.2.1:5353");
    let first = ask_datagram(&socket).unwrap();
    assert_eq!(
        ask_datagram(&socket).unwrap(),
        first,
        "a flow keeps its backend"
    );
    let known = |lab: &Lab| {
        let (_, _, last) = tasks.iter().find(|(task, ..)| *task == first).unwrap();
        let backend = format!("10.0.0.{last}");
        let router = lab.router(0, "ingress");
        let words = ["-L", "-p", "udp", "--reply-src", &backend];
        lab.text(&router, "conntrack", &words)
    };
    assert!(known(&lab).contains("dport=5353"), "{}", known(&lab));
    let ingress = view.networks.get_mut("ingress").unwrap();
    let endpoint = ingress.endpoints.get_mut(first.as_str()).unwrap();
    Arc::make_mut(endpoint).serving = false;
    lab.converge(&view).await;
    let began = Instant::now();
    let next = loop {
        // The first may be lost with the flow that it was of.
        match ask_datagram(&socket) {
            Ok(answer) if answer != first => break answer,
            _ => assert!(began.elapsed() < MOVED_WITHIN, "it stays with {first}"),
        }
    };
    assert_eq!(ask_datagram(&socket).unwrap(), next, "and stays there");
    assert!(!known(&lab).contains("dport=5353"), "{}", known(&lab));
}

#[tokio::test]
async fn a_datagram_flow_leaves_a_backend_that_stops_serving() {
    let mut lab = or_skip!(three_tasks(&view()).await);
    for task in ["t1", "t2", "t3"] {
        lab.serve_datagrams(task, "0.0.0.0:53");
    }
    let socket = lab.datagrams("t1", "10.0.1.2:53");
    let first = ask_datagram(&socket).unwrap();
    assert_eq!(
        ask_datagram(&socket).unwrap(),
        first,
        "a flow keeps its backend"
    );
    let mut view = view();
    let endpoints = &mut view.networks.get_mut("n1").unwrap().endpoints;
    if lab.lb_driver(0) == "IPVS" {
        // IPVS knows no protocols by mark: what a backend has it keeps until it is gone.
        endpoints.remove(first.as_str()).unwrap();
    } else {
        Arc::make_mut(endpoints.get_mut(first.as_str()).unwrap()).serving = false;
    }
    lab.converge(&view).await;
    assert_ne!(ask_datagram(&socket).unwrap(), first);
}

#[tokio::test]
async fn long_datagrams_of_the_host_itself_reach_a_task_of_another_node() {
    let mut view = with_datagrams(dual());
    let ingress = view.networks.get_mut("ingress").unwrap();
    for task in ["t1", "t3"] {
        ingress.endpoints.remove(task);
    }
    let lab = or_skip!(three_tasks(&view).await);
    lab.serve_datagrams("t2", "[::]:53");
    assert!(lab.run(
        "h1",
        "ip",
        &["addr", "add", "fd99::1/64", "dev", "eth0", "nodad"]
    ));
    for at in [
        "127.0.0.1:5353",
        "192.0.2.1:5353",
        "[::1]:5353",
        "[fd99::1]:5353",
    ] {
        let to: SocketAddr = at.parse().unwrap();
        let socket = lab.within("h1", move || {
            let any: IpAddr = match to.is_ipv4() {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        socket.set_read_timeout(Some(MOVED_WITHIN)).unwrap();
        for length in [1, 1_440, 4_000] {
            let mut answer = [0; 16];
            socket.send(&vec![b'?'; length]).unwrap();
            let answered = socket.recv(&mut answer);
            assert_eq!(answered.ok(), Some(2), "{length} bytes at {at}");
        }
    }
}
