//! A network namespace with a client in it, and servers that it may ask.

#![allow(dead_code, reason = "not every test needs all of it")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::A},
};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_dns::{ClientScope, Host, Records, Zone};

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Where every resolver listens.
pub const RESOLVER: (&str, u16) = ("127.0.0.11", 53);

/// A fresh network namespace whose loopback is up.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let status = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .expect("iproute2 is installed");
            assert!(status.success());
            File::open("/proc/thread-self/ns/net").expect("every thread has a namespace")
        });
        Self(made.join().expect("the thread ends"))
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Runs `work` inside, off the runtime.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let inside = self.0.try_clone().expect("a descriptor");
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            setns(inside, CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let _ = done.send(work());
        });
        result
            .await
            .expect("the work inside the namespace succeeds")
    }

    pub async fn ask_udp(&self, query: Message) -> Message {
        self.run(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("a timeout");
            socket
                .send_to(&query.to_vec().expect("a packet"), RESOLVER)
                .expect("sent");
            let mut reply = [0; 65_535];
            let (length, from) = socket.recv_from(&mut reply).expect("a reply");
            assert_eq!(from, "127.0.0.11:53".parse().expect("an address"));
            read(&query, &reply[..length])
        })
        .await
    }

    pub async fn ask_tcp(&self, query: Message) -> Message {
        self.run(move || {
            let mut stream = TcpStream::connect(RESOLVER).expect("a connection");
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("a timeout");
            let packet = query.to_vec().expect("a packet");
            stream
                .write_all(&(packet.len() as u16).to_be_bytes())
                .expect("sent");
            stream.write_all(&packet).expect("sent");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a reply");
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply).expect("a reply");
            read(&query, &reply)
        })
        .await
    }
}

pub fn read(query: &Message, reply: &[u8]) -> Message {
    let reply = Message::from_vec(reply).expect("a reply");
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert_eq!(reply.queries, query.queries);
    reply
}

pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    let mut question = Query::query(Name::from_ascii(name).expect("a name"), kind);
    question.set_query_class(DNSClass::IN);
    message.add_query(question);
    message
}

pub fn addresses(reply: &Message) -> Vec<String> {
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let mut addresses: Vec<String> = reply
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    addresses.sort();
    addresses
}

pub fn records(names: &[(&str, u8)]) -> Arc<Records> {
    let mut hosts: BTreeMap<&str, Host> = BTreeMap::new();
    for (name, last) in names {
        let host = hosts.entry(name).or_default();
        host.names = vec![(*name).to_owned()];
        host.addresses.push(IpAddr::from([10, 9, 0, *last]));
    }
    let hosts: Vec<Host> = hosts.into_values().collect();
    let mut records = Records::default();
    records.insert(
        "net1".parse().expect("an id"),
        Zone::local("front", false, Vec::new(), &hosts),
    );
    Arc::new(records)
}

pub fn scope(upstreams: &[SocketAddr]) -> ClientScope {
    ClientScope {
        networks: vec!["net1".parse().expect("an id")],
        upstreams: upstreams.to_vec(),
        ..ClientScope::default()
    }
}

/// A server on the host's loopback that gives one address over UDP, cut off for names that begin with `big`, and all
/// `count` of them over TCP. Names that begin with `never` get no reply.
pub async fn upstream(count: u8) -> SocketAddr {
    upstream_of(both("127.0.0.1:0"), count)
}

/// Sockets of both kinds at the same port.
pub fn both(at: &str) -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind(at).expect("a port");
        // The same port may be in use for TCP.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")) {
            udp.set_nonblocking(true).expect("a socket");
            tcp.set_nonblocking(true).expect("a socket");
            return (udp, tcp);
        }
    }
}

/// The same server at these sockets.
pub fn upstream_of((udp, tcp): (UdpSocket, TcpListener), count: u8) -> SocketAddr {
    let address = udp.local_addr().expect("bound");
    let udp = tokio::net::UdpSocket::from_std(udp).expect("a socket");
    let tcp = tokio::net::TcpListener::from_std(tcp).expect("a socket");
    let reply = move |packet: &[u8], tcp: bool| {
        let mut message = Message::from_vec(packet).expect("a query");
        let name = message.queries[0].name().clone();
        message.metadata.message_type = hickory_proto::op::MessageType::Response;
        message.metadata.truncation = !tcp && name.to_ascii().starts_with("big");
        for last in 0..if tcp { count } else { 1 } {
            message.add_answer(Record::from_rdata(
                name.clone(),
                60,
                RData::A(A::new(192, 0, 2, last)),
            ));
        }
        (!name.to_ascii().starts_with("never")).then(|| message.to_vec().expect("a packet"))
    };
    tokio::spawn(async move {
        let mut packet = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut packet).await.expect("a query");
            if let Some(reply) = reply(&packet[..length], false) {
                udp.send_to(&reply, from).await.expect("sent");
            }
        }
    });
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = tcp.accept().await.expect("a connection");
            let length = stream.read_u16().await.expect("a length");
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await.expect("a query");
            let reply = reply(&packet, true).expect("an answer");
            stream.write_u16(reply.len() as u16).await.expect("sent");
            stream.write_all(&reply).await.expect("sent");
        }
    });
    address
}
