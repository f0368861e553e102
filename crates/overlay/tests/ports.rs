//! Options of published ports, and clients that stay with their backends, on two hosts as namespaces.
//!
//! Needs root, network namespaces, VXLAN and nftables; a test says what is missing and passes where there is nothing to try.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use lab::{
    Lab, Traffic, alone_on_ingress, bridged_packets_pass_rules, dual, id, lab, lab_of, peer, view,
    with_datagrams,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, socket};
use shoal_api::{
    network::{IngressPort, NetworkView, Protocol},
    spec::Affinity,
};
use shoal_overlay::{core::state::Family, netns};

const ROUND: usize = 12;
const PATIENCE: Duration = Duration::from_secs(5);

/// The usual three tasks, the published port 8080 changed like this.
async fn published(
    mut view: NetworkView,
    change: impl Fn(&mut IngressPort),
) -> Result<(Lab, NetworkView), String> {
    let mut lab = lab().await?;
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    for (host, last) in [("h1", 1), ("h2", 2), ("client", 99)] {
        let address = format!("fd99::{last}/64");
        assert!(lab.run(
            host,
            "ip",
            &["addr", "add", &address, "dev", "eth0", "nodad"]
        ));
    }
    let ingress = view.networks.get_mut("ingress").unwrap();
    let web = Arc::make_mut(ingress.services.get_mut("web").unwrap());
    change(&mut web.ports[0]);
    lab.converge(&view).await;
    Ok((lab, view))
}

fn set_serving(view: &mut NetworkView, task: &str, serving: bool) {
    view.version += 1;
    for network in view.networks.values_mut() {
        if let Some(endpoint) = network.endpoints.get_mut(task) {
            Arc::make_mut(endpoint).serving = serving;
        }
    }
}

fn who(answers: &BTreeMap<String, usize>) -> BTreeSet<&str> {
    answers
        .keys()
        .filter_map(|answer| answer.split(' ').next())
        .collect()
}

#[tokio::test]
async fn a_local_port_is_answered_by_the_nodes_of_its_tasks_alone() {
    let (mut lab, mut view) = or_skip!(published(view(), |port| port.local = true).await);
    for task in ["t1", "t2", "t3"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let at_1 = lab.count("client", "192.0.2.1:8080", ROUND);
    assert_eq!(who(&at_1), BTreeSet::from(["t1", "t3"]), "{at_1:?}");
    assert_eq!(
        who(&lab.count("client", "192.0.2.2:8080", ROUND)),
        BTreeSet::from(["t2"])
    );
    set_serving(&mut view, "t2", false);
    lab.converge(&view).await;
    let refused = lab.ask("client", "192.0.2.2:8080").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(lab.count("client", "192.0.2.1:8080", ROUND), at_1);
    set_serving(&mut view, "t2", true);
    lab.converge(&view).await;
    assert_eq!(
        lab.ask("client", "192.0.2.2:8080").unwrap(),
        "t2 sees 192.0.2.99"
    );
    assert!(lab.plan(1, &view).await.is_empty());
}

#[tokio::test]
async fn a_port_with_an_address_listens_only_there() {
    for (at, net, elsewhere) in [
        (
            "192.0.2.11:8080",
            "192.0.2.11/24",
            ["192.0.2.1:8080", "192.0.2.2:8080", "127.0.0.1:8080"],
        ),
        (
            "[fd99::11]:8080",
            "fd99::11/64",
            ["[fd99::1]:8080", "[fd99::2]:8080", "[::1]:8080"],
        ),
    ] {
        let address = at.parse::<SocketAddr>().unwrap().ip();
        let published = published(dual(), |port| port.host_ip = Some(address)).await;
        let (mut lab, view) = or_skip!(published);
        let mut add = vec!["addr", "add", net, "dev", "eth0"];
        add.extend(address.is_ipv6().then_some("nodad"));
        assert!(lab.run("h1", "ip", &add));
        lab.converge(&view).await;
        for task in ["t1", "t2", "t3"] {
            lab.serve(task, "[::]:80");
        }
        for from in ["client", "h1", "h2"] {
            let answers = lab.count(from, at, ROUND);
            assert_eq!(who(&answers).len(), 3, "{from}: {answers:?}");
        }
        for (from, to) in ["client", "client", "h1"].into_iter().zip(elsewhere) {
            let refused = lab.ask(from, to).unwrap_err();
            assert_eq!(
                refused.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{from} asked {to}"
            );
        }
        let held = |host: &str| lab.text(host, "ss", &["-Hltn", "sport", "=", ":8080"]);
        let (here, there) = (held("h1"), held("h2"));
        assert_eq!(here.lines().count(), 1, "{here}");
        assert!(here.contains(at), "{here}");
        assert_eq!(there, "", "the address is another node's");
        assert!(lab.plan(0, &view).await.is_empty());
    }
}

#[tokio::test]
async fn a_container_on_ingress_alone_is_answered_at_published_ports_of_every_host() {
    let mut view = dual();
    let ingress = view.networks.get_mut("ingress").unwrap();
    let alone = alone_on_ingress(ingress);
    ingress.endpoints.insert(id("ti"), alone);
    let (mut lab, view) = or_skip!(published(view, |_| ()).await);
    lab.container("ti", 0);
    lab.converge(&view).await;
    let tasks = ["t1", "t2", "t3", "ti"];
    for task in tasks {
        lab.serve(task, "[::]:80");
    }
    for family in Family::ALL {
        for passes in bridged_packets_pass_rules(&lab, family) {
            let hosts = match family {
                Family::V4 => ["192.0.2.1:8080", "192.0.2.2:8080"],
                Family::V6 => ["[fd99::1]:8080", "[fd99::2]:8080"],
            };
            for at in hosts {
                // One of another network, too, whose way is another.
                for from in ["ti", "t1"] {
                    let answers = lab.count(from, at, ROUND);
                    let seen = who(&answers);
                    assert_eq!(
                        seen,
                        BTreeSet::from(tasks),
                        "{from} asked {at}, {passes}: {answers:?}"
                    );
                }
            }
        }
    }
    assert!(lab.plan(0, &view).await.is_empty());
}

/// Answers each connection with what the header says of the client and the node, and with the first line that follows.
/// A connection from this port, which others may use, too.
fn connect_from(port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    let SocketAddr::V4(to) = to else {
        unreachable!("the addresses of the hosts are of IPv4");
    };
    let kind = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let connection = socket(AddressFamily::Inet, kind.0, kind.1, None)?;
    setsockopt(&connection, sockopt::ReuseAddr, &true)?;
    let patience = PATIENCE.as_secs().try_into().expect("a few seconds");
    let patience = nix::sys::time::TimeVal::new(patience, 0);
    setsockopt(&connection, sockopt::SendTimeout, &patience)?;
    setsockopt(&connection, sockopt::ReceiveTimeout, &patience)?;
    let fd = connection.as_raw_fd();
    bind(fd, &SockaddrIn::new(0, 0, 0, 0, port))?;
    connect(fd, &SockaddrIn::from(to))?;
    Ok(TcpStream::from(connection))
}

#[tokio::test]
async fn a_client_may_ask_every_node_from_one_port_at_once() {
    // One task, and two nodes of entry that are not its own.
    let mut view = with_datagrams(served_by_t2());
    view.peers.insert(id("h3"), peer(3));
    let mut lab = or_skip!(lab_of(3).await);
    if !lab.features()["conntrack zones"] {
        return eprintln!("skipped, because this kernel lacks CONFIG_NF_CONNTRACK_ZONES");
    }
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    lab.converge(&view).await;
    lab.serve_lines("t2", "0.0.0.0:80");
    lab.serve_datagrams("t2", "0.0.0.0:53");
    // IPVS takes the answers of what came by another node for those of what came by its own, where all else is the same.
    let hosts: &[u8] = match lab.lb_driver(1) {
        "IPVS" => &[1, 3],
        _ => &[1, 3, 2],
    };
    let (streams, datagrams) = lab.within("client", move || {
        let open = |host: &u8| connect_from(4000, ([192, 0, 2, *host], 8080).into());
        let open: Vec<_> = hosts.iter().map(open).collect();
        let streams = open.into_iter().map(|connection| {
            let connection = connection?;
            writeln!(&connection, "?")?;
            let mut answer = String::new();
            BufReader::new(&connection).read_line(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        });
        let streams: Vec<_> = streams.collect();
        let socket = UdpSocket::bind("0.0.0.0:4000").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let datagrams = hosts.iter().map(|host| {
            socket.send_to(b"?", SocketAddr::from(([192, 0, 2, *host], 5353)))?;
            socket.recv_from(&mut [0; 16]).map(|(_, from)| from)
        });
        (streams, datagrams.collect::<Vec<_>>())
    });
    for (host, (stream, from)) in hosts.iter().zip(streams.into_iter().zip(datagrams)) {
        assert_eq!(stream.unwrap(), "t2\n", "asked h{host}");
        assert_eq!(from.unwrap(), SocketAddr::from(([192, 0, 2, *host], 5353)));
    }
    assert!(lab.plan(1, &view).await.is_empty());
}

fn leave(view: &mut NetworkView, task: &str) {
    view.version += 1;
    for network in view.networks.values_mut() {
        network.endpoints.remove(task);
    }
}

/// The view in which of `web` t2 alone serves.
fn served_by_t2() -> NetworkView {
    let mut view = view();
    set_serving(&mut view, "t1", false);
    set_serving(&mut view, "t3", false);
    view
}

#[tokio::test]
async fn a_port_whose_connection_was_reset_is_led_to_a_task_that_is_there() {
    let (mut lab, mut view) = or_skip!(published(served_by_t2(), |_| ()).await);
    let at = SocketAddr::from(([192, 0, 2, 1], 8080));
    let listener = lab.within("t2", || TcpListener::bind("0.0.0.0:80").unwrap());
    let mut first = lab
        .within("client", move || connect_from(4000, at))
        .unwrap();
    first.write_all(b"never read").unwrap();
    let (served, _) = listener.accept().unwrap();
    served.peek(&mut [0]).unwrap();
    set_serving(&mut view, "t3", true);
    set_serving(&mut view, "t2", false);
    lab.converge(&view).await;
    // What is unread when a connection is closed resets it (RFC 2525 §2.17).
    drop((served, listener));
    let reset = first.read(&mut [0]).unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    drop(first);
    leave(&mut view, "t2");
    lab.converge(&view).await;
    lab.serve("t3", "0.0.0.0:80");
    let second = lab.within("client", move || connect_from(4000, at));
    let mut answer = String::new();
    second.unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "t3 sees 192.0.2.99");
}

#[tokio::test]
async fn an_attempt_to_connect_leaves_a_task_that_has_left() {
    let (mut lab, mut view) = or_skip!(published(served_by_t2(), |_| ()).await);
    lab.serve("t3", "0.0.0.0:80");
    // It hears questions, and its answers go nowhere: as of one whose host has lost power.
    assert!(lab.run("t2", "ip", &["route", "add", "blackhole", "10.0.1.11/32"]));
    let place = lab.place("t1");
    let asked = std::thread::spawn(move || {
        let connect = || {
            let mut connection = connect_from(4000, ([10, 0, 1, 2], 80).into())?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer).map(|_| answer)
        };
        netns::run_in(&place, connect).unwrap()
    });
    let began = Instant::now();
    let is_sent = |lab: &Lab| {
        let sent = lab.text("t1", "ss", &["-Hnt", "state", "syn-sent"]);
        !sent.is_empty()
    };
    while !is_sent(&lab) {
        assert!(began.elapsed() < PATIENCE, "nothing was sent");
    }
    set_serving(&mut view, "t3", true);
    leave(&mut view, "t2");
    // A daemon that was away knows by what the kernel holds who has left.
    lab.restart_planes();
    lab.converge(&view).await;
    let answer = asked.join().unwrap();
    assert_eq!(
        answer.unwrap(),
        "t3 sees 10.0.1.11",
        "asked again, another one answers"
    );
}

#[tokio::test]
async fn a_client_in_a_network_with_the_addresses_of_ingress_is_answered() {
    let (lab, _) = or_skip!(published(served_by_t2(), |_| ()).await);
    lab.serve("t2", "0.0.0.0:80");
    assert!(lab.run(
        "client",
        "ip",
        &["addr", "add", "10.0.0.99/24", "dev", "eth0"]
    ));
    for (host, own) in [("h1", "10.0.0.201/24"), ("h2", "10.0.0.202/24")] {
        assert!(lab.run(host, "ip", &["addr", "add", own, "dev", "eth0"]));
        let at = format!("{}:8080", own.trim_end_matches("/24"));
        assert_eq!(lab.ask("client", &at).unwrap(), "t2 sees 10.0.0.99", "{at}");
    }
}

#[tokio::test]
async fn a_task_that_resets_a_connection_behind_a_header_resets_the_client() {
    let with_header = |port: &mut IngressPort| port.proxy_protocol = true;
    let (lab, _) = or_skip!(published(served_by_t2(), with_header).await);
    let listener = lab.within("t2", || TcpListener::bind("0.0.0.0:80").unwrap());
    let at = SocketAddr::from(([192, 0, 2, 1], 8080));
    let mut client = lab
        .within("client", move || TcpStream::connect(at))
        .unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(b"half of an ans").unwrap();
    let mut half = [0; 14];
    client.read_exact(&mut half).unwrap();
    // What is unread when a connection is closed resets it: here the header.
    served.peek(&mut [0]).unwrap();
    drop(served);
    let ended = client.read(&mut [0]).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

/// SCTP's checksum (RFC 9260 Appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, byte)
}

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 7;

/// An SCTP packet with which an association begins (RFC 9260 §3).
fn sctp(ports: [u16; 2], tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = ports.map(u16::to_be_bytes).concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    packet.extend(TAG.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// A socket that sends SCTP packets and receives them with their IP headers, also where the kernel has no SCTP.
fn sctp_socket(lab: &Lab, place: &str, at: [u8; 4]) -> UdpSocket {
    let open = move || {
        let protocol = Some(SockProtocol::Sctp);
        let flags = SockFlag::SOCK_CLOEXEC;
        let opened = socket(AddressFamily::Inet, SockType::Raw, flags, protocol).unwrap();
        let [a, b, c, d] = at;
        bind(opened.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
        opened
    };
    let socket = UdpSocket::from(lab.within(place, open));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Who sent the next packet to these ports, and what is in it.
fn receive_sctp(socket: &UdpSocket, ports: [u16; 2]) -> (IpAddr, u8) {
    const IP_HEADER: usize = 20;
    let mut packet = [0; 128];
    loop {
        let (_, from) = socket.recv_from(&mut packet).unwrap();
        let at = &packet[IP_HEADER..];
        if at[..4] == ports.map(u16::to_be_bytes).concat() {
            return (from.ip(), at[12]);
        }
    }
}

#[tokio::test]
async fn sctp_is_led_to_a_task_and_its_answers_come_back() {
    let change = |port: &mut IngressPort| port.protocol = Protocol::Sctp;
    let (lab, _) = or_skip!(published(served_by_t2(), change).await);
    for (place, at, client_at, task_at, target) in [
        (
            "client",
            [192, 0, 2, 1],
            [192, 0, 2, 99],
            [10, 0, 0, 12],
            80,
        ),
        (
            "client",
            [192, 0, 2, 2],
            [192, 0, 2, 99],
            [10, 0, 0, 12],
            80,
        ),
        ("t1", [10, 0, 1, 2], [10, 0, 1, 11], [10, 0, 1, 12], 8080),
    ] {
        let task = sctp_socket(&lab, "t2", task_at);
        let client = sctp_socket(&lab, place, client_at);
        let (at, client_at) = (IpAddr::from(at), IpAddr::from(client_at));
        let port = 4000 + u16::from(at == IpAddr::from([192, 0, 2, 2]));
        client
            .send_to(&sctp([port, 8080], 0, INIT), (at, 0))
            .unwrap();
        assert_eq!(
            receive_sctp(&task, [port, target]),
            (client_at, INIT),
            "{at}"
        );
        let answer = sctp([target, port], TAG, INIT_ACK);
        task.send_to(&answer, (client_at, 0)).unwrap();
        assert_eq!(receive_sctp(&client, [8080, port]), (at, INIT_ACK), "{at}");
    }
}

fn serve_with_header(lab: &Lab, task: &str) {
    let listener = lab
        .within(task, || TcpListener::bind("0.0.0.0:80"))
        .unwrap();
    let task = task.to_owned();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut start = [0; 16];
            connection.read_exact(&mut start).unwrap();
            assert_eq!(start[..13], *b"\r\n\r\n\0\r\nQUIT\n\x21");
            let mut rest = vec![0; usize::from(start[15])];
            connection.read_exact(&mut rest).unwrap();
            let ends: Vec<IpAddr> = match start[13] {
                0x11 => rest[..8]
                    .chunks(4)
                    .map(|a| IpAddr::from(<[u8; 4]>::try_from(a).unwrap()))
                    .collect(),
                0x21 => rest[..32]
                    .chunks(16)
                    .map(|a| IpAddr::from(<[u8; 16]>::try_from(a).unwrap()))
                    .collect(),
                other => panic!("family {other:#x}"),
            };
            let mut said = String::new();
            connection.read_to_string(&mut said).unwrap();
            let _ = write!(
                connection,
                "{task} is told {} asks {} for {said}",
                ends[0], ends[1]
            );
        }
    });
}

fn ask_for(lab: &Lab, from: &str, at: &str, what: &str) -> std::io::Result<String> {
    let (at, what): (SocketAddr, String) = (at.parse().unwrap(), what.to_owned());
    lab.within(from, move || {
        let mut connection = TcpStream::connect_timeout(&at, PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(what.as_bytes())?;
        connection.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

#[tokio::test]
async fn tasks_are_told_the_client_by_a_header_in_both_families() {
    let (mut lab, mut view) = or_skip!(published(dual(), |port| port.proxy_protocol = true).await);
    for task in ["t1", "t2", "t3"] {
        serve_with_header(&lab, task);
    }
    for (from, client, node) in [
        ("client", "192.0.2.99", "192.0.2.1"),
        ("client", "192.0.2.99", "192.0.2.2"),
        ("client", "fd99::99", "fd99::1"),
        ("client", "fd99::99", "fd99::2"),
        ("h1", "127.0.0.1", "127.0.0.1"),
        ("h1", "::1", "::1"),
    ] {
        let at = SocketAddr::new(node.parse().unwrap(), 8080).to_string();
        let mut seen = BTreeSet::new();
        for _ in 0..ROUND {
            let answer = ask_for(&lab, from, &at, "a page").unwrap();
            let (task, told) = answer.split_once(' ').unwrap();
            assert_eq!(told, format!("is told {client} asks {node} for a page"));
            seen.insert(task.to_owned());
        }
        assert_eq!(seen.len(), 3, "{from} asked {at}: {seen:?}");
    }
    // Much in both directions at once arrives whole.
    let much = "x".repeat(3 << 20);
    let answer = ask_for(&lab, "client", "192.0.2.2:8080", &much).unwrap();
    assert!(answer.ends_with(&much) && answer.len() < much.len() + 100);
    for task in ["t1", "t2", "t3"] {
        set_serving(&mut view, task, false);
    }
    lab.converge(&view).await;
    let refused = ask_for(&lab, "client", "192.0.2.1:8080", "a page");
    assert!(refused.is_err(), "{refused:?}");
    // The label goes: the kernel alone carries the port again.
    for task in ["t1", "t2", "t3"] {
        set_serving(&mut view, task, true);
    }
    let ingress = view.networks.get_mut("ingress").unwrap();
    Arc::make_mut(ingress.services.get_mut("web").unwrap()).ports[0].proxy_protocol = false;
    lab.converge(&view).await;
    let plain = lab.ask("client", "192.0.2.1:8080");
    assert!(
        plain.is_err() || plain.unwrap().is_empty(),
        "the task waits for a header that does not come"
    );
    let held = lab.text("h1", "ss", &["-Hltn", "sport", "=", ":8080"]);
    assert_eq!(held.lines().count(), 2, "{held}");
}

#[tokio::test]
async fn a_local_port_with_a_header_refuses_where_no_task_is() {
    let change = |port: &mut IngressPort| {
        port.proxy_protocol = true;
        port.local = true;
    };
    let (mut lab, mut view) = or_skip!(published(view(), change).await);
    serve_with_header(&lab, "t2");
    assert_eq!(
        ask_for(&lab, "client", "192.0.2.2:8080", "a page").unwrap(),
        "t2 is told 192.0.2.99 asks 192.0.2.2 for a page"
    );
    set_serving(&mut view, "t2", false);
    lab.converge(&view).await;
    let refused = ask_for(&lab, "client", "192.0.2.2:8080", "a page").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    set_serving(&mut view, "t2", true);
    lab.converge(&view).await;
    assert!(ask_for(&lab, "client", "192.0.2.2:8080", "a page").is_ok());
}

/// Which task each of many clients gets, asked twice; nobody may get two.
fn chosen(lab: &Lab, to: &str) -> BTreeMap<u8, String> {
    let mut all = BTreeMap::new();
    for last in 100..=219u8 {
        let to: SocketAddr = to.parse().unwrap();
        let ask = move || {
            let from = SocketAddr::from(([192, 0, 2, last], 0));
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
            let mut answer = [0; 16];
            socket.send(b"?").unwrap();
            let length = socket
                .recv(&mut answer)
                .expect("the first datagram is answered");
            String::from_utf8(answer[..length].to_vec()).unwrap()
        };
        let (first, second) = lab.within("client", move || (ask(), ask()));
        assert_eq!(first, second, "client {last}");
        all.insert(last, first);
    }
    all
}

#[tokio::test]
async fn a_client_stays_with_its_task_by_whichever_node_it_comes() {
    let mut lab = or_skip!(lab().await);
    for (task, host) in [("t1", 0), ("t2", 1), ("t3", 0)] {
        lab.container(task, host);
    }
    for last in 100..=219u8 {
        let address = format!("192.0.2.{last}/24");
        assert!(lab.run("client", "ip", &["addr", "add", &address, "dev", "eth0"]));
    }
    let mut view = dual();
    for network in view.networks.values_mut() {
        let web = Arc::make_mut(network.services.get_mut("web").unwrap());
        web.affinity = Affinity::Source;
        web.ports = vec![IngressPort {
            protocol: Protocol::Udp,
            published: 5353,
            target: 53,
            ..IngressPort::default()
        }];
    }
    lab.converge(&view).await;
    for (task, at) in [("t1", 11), ("t2", 12), ("t3", 13)] {
        lab.serve_datagrams(task, &format!("10.0.0.{at}:53"));
    }
    let before = chosen(&lab, "192.0.2.1:5353");
    assert_eq!(
        before,
        chosen(&lab, "192.0.2.2:5353"),
        "every node chooses alike"
    );
    for task in ["t1", "t2", "t3"] {
        let clients = before.values().filter(|one| *one == task).count();
        assert!((20..=60).contains(&clients), "{task} has {clients} of 120");
    }
    // A virtual address keeps its clients, too.
    lab.serve("t2", "[::]:80");
    lab.serve("t3", "[::]:80");
    set_serving(&mut view, "t1", false);
    lab.converge(&view).await;
    let after = chosen(&lab, "192.0.2.1:5353");
    for (client, task) in &before {
        assert!(
            task == "t1" || after[client] == *task,
            "{client} was with {task}"
        );
        assert_ne!(after[client], "t1");
    }
    for at in ["10.0.1.2:80", "[fd00:1::2]:80"] {
        assert_eq!(lab.count("t1", at, ROUND).len(), 1, "{at}");
    }
    set_serving(&mut view, "t1", true);
    lab.converge(&view).await;
    assert_eq!(
        chosen(&lab, "192.0.2.2:5353"),
        before,
        "who comes back has his clients again"
    );
    assert!(lab.plan(0, &view).await.is_empty());
}
