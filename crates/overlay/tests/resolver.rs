//! The way to a container's resolver, in a real namespace. Needs root.

use std::{
    io::{IoSlice, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use shoal_overlay::io::{netns, resolver};

const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;

/// A resolver's sockets in a namespace, on ports that the kernel chose, with the way to them.
fn sockets(path: &Path) -> (UdpSocket, TcpListener) {
    let (udp, tcp) = netns::run_in(path, || {
        let udp = UdpSocket::bind((RESOLVER, 0)).expect("a port");
        let tcp = TcpListener::bind((RESOLVER, 0)).expect("a port");
        (udp, tcp)
    })
    .expect("the namespace is there");
    let port = |address: std::io::Result<SocketAddr>| address.expect("bound").port();
    let (udp_port, tcp_port) = (port(udp.local_addr()), port(tcp.local_addr()));
    resolver::redirect(path, RESOLVER, PORT, udp_port, tcp_port).expect("the kernel has nftables");
    (udp, tcp)
}

/// Asks 127.0.0.11:53 a question over UDP; neither it nor the resolver's socket waits for ever.
fn questioner(path: &Path, udp: &UdpSocket) -> UdpSocket {
    let client = netns::run_in(path, || {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        client.connect((RESOLVER, PORT)).expect("an address");
        client.send(b"question").expect("sent");
        client
    })
    .expect("the namespace is there");
    let patience = Some(Duration::from_secs(10));
    client.set_read_timeout(patience).expect("a timeout");
    udp.set_read_timeout(patience).expect("a timeout");
    client
}

/// Asks 127.0.0.11:53 over both protocols and has the resolver's sockets answer.
fn ask(path: &Path, (udp, tcp): &(UdpSocket, TcpListener)) {
    let client = questioner(path, udp);
    let mut bytes = [0; 16];
    let (length, from) = udp.recv_from(&mut bytes).expect("the question");
    assert_eq!(&bytes[..length], b"question");
    udp.send_to(b"answer", from).expect("sent");
    // A connected socket takes answers from the address that it asked alone.
    let length = client.recv(&mut bytes).expect("the answer");
    assert_eq!(&bytes[..length], b"answer");

    let mut client = netns::run_in(path, || TcpStream::connect((RESOLVER, PORT)))
        .expect("the namespace is there")
        .expect("a connection");
    let (mut accepted, _) = tcp.accept().expect("the connection");
    accepted.write_all(b"answer").expect("sent");
    drop(accepted);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("the answer");
    assert_eq!(answer, b"answer");
}

#[test]
fn a_container_that_serves_port_53_itself_has_a_resolver_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("netns");
    netns::create(&path).expect("this test needs root");
    let first = sockets(&path);
    let own = netns::run_in(&path, || {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("port 53 is free");
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("port 53 is free");
        (udp, tcp)
    })
    .expect("the namespace is there");
    ask(&path, &first);
    // The daemon restarts: other sockets, on other ports.
    drop(first);
    ask(&path, &sockets(&path));
    drop(own);
    netns::delete(&path).expect("the handle is removed");
}

/// The resolver's answers leave many at a time; each must reach a client that has asked port 53.
#[test]
fn answers_in_one_packet_come_apart_behind_the_redirection() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("netns");
    netns::create(&path).expect("this test needs root");
    let (udp, _tcp) = sockets(&path);
    let client = questioner(&path, &udp);
    let mut bytes = [0; 64];
    let (_, from) = udp.recv_from(&mut bytes).expect("the question");
    let answers = [b"answer1", b"answer2", b"answer3"].map(|answer| IoSlice::new(answer));
    let cut = [ControlMessage::UdpGsoSegments(&7)];
    let to = SockaddrStorage::from(from);
    sendmsg(
        udp.as_raw_fd(),
        &answers,
        &cut,
        MsgFlags::empty(),
        Some(&to),
    )
    .expect("the kernel cuts packets up");
    for expected in [b"answer1", b"answer2", b"answer3"] {
        let length = client.recv(&mut bytes).expect("an answer");
        assert_eq!(&bytes[..length], expected);
    }
    netns::delete(&path).expect("the handle is removed");
}
