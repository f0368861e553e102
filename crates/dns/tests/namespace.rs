//! The resolver in a real network namespace, asked by packets that another library makes and reads. Needs root.
//!
//! Namespaces are held by descriptors only, so nothing remains when a test ends, however it ends.

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
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::A},
};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_dns::{ClientScope, Dns, DnsConfig, Host, Records, Zone};

const RESOLVER: (&str, u16) = ("127.0.0.11", 53);

/// A fresh network namespace whose loopback is up.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
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

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Runs `work` inside, off the runtime.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
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

    async fn ask_udp(&self, query: Message) -> Message {
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

    async fn ask_tcp(&self, query: Message) -> Message {
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

fn read(query: &Message, reply: &[u8]) -> Message {
    let reply = Message::from_vec(reply).expect("a reply");
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert_eq!(reply.queries, query.queries);
    reply
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    let mut question = Query::query(Name::from_ascii(name).expect("a name"), kind);
    question.set_query_class(DNSClass::IN);
    message.add_query(question);
    message
}

fn addresses(reply: &Message) -> Vec<String> {
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let mut addresses: Vec<String> = reply
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    addresses.sort();
    addresses
}

fn records(names: &[(&str, u8)]) -> Arc<Records> {
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

fn scope(upstreams: &[SocketAddr]) -> ClientScope {
    ClientScope {
        networks: vec!["net1".parse().expect("an id")],
        upstreams: upstreams.to_vec(),
        ..ClientScope::default()
    }
}

/// A server on the host's loopback that gives one address over UDP, cut off for names that begin with `big`, and all
/// `count` of them over TCP. Names that begin with `never` get no reply.
async fn upstream(count: u8) -> SocketAddr {
    upstream_of(both("127.0.0.1:0"), count)
}

/// Sockets of both kinds at the same port.
fn both(at: &str) -> (UdpSocket, TcpListener) {
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
fn upstream_of((udp, tcp): (UdpSocket, TcpListener), count: u8) -> SocketAddr {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_names_over_udp_and_tcp_and_a_table_swapped_at_once() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1), ("web", 2)]));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");

    let reply = namespace.ask_udp(query("web.", RecordType::A)).await;
    assert_eq!(addresses(&reply), ["10.9.0.1", "10.9.0.2"]);
    assert!(reply.metadata.recursion_available);
    assert_eq!(
        addresses(&namespace.ask_tcp(query("WEB.front.", RecordType::A)).await),
        ["10.9.0.1", "10.9.0.2"]
    );
    assert!(addresses(&namespace.ask_udp(query("web.", RecordType::AAAA)).await).is_empty());

    dns.publish(records(&[("web", 3)]));
    assert_eq!(
        addresses(&namespace.ask_udp(query("web.", RecordType::A)).await),
        ["10.9.0.3"]
    );

    // The same key again: the sockets are made anew, also right after the end of the old ones.
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served again");
    assert_eq!(
        addresses(&namespace.ask_udp(query("web.", RecordType::A)).await),
        ["10.9.0.3"]
    );
    dns.stop("c1").await;
    let refused = namespace
        .run(|| TcpStream::connect(RESOLVER).is_err())
        .await;
    assert!(refused, "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_of_a_name_comes_first_in_turn() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1), ("web", 2), ("web", 3)]));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");
    let mut first: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..60 {
        let reply = namespace.ask_udp(query("web.", RecordType::A)).await;
        *first.entry(reply.answers[0].data.to_string()).or_default() += 1;
    }
    assert!(
        first.len() == 3 && first.values().all(|times| (15..=25).contains(times)),
        "{first:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(
        &(0..100).map(|last| ("many", last)).collect::<Vec<_>>(),
    ));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");

    let reply = namespace.ask_udp(query("many.", RecordType::A)).await;
    assert!(reply.metadata.truncation && !reply.answers.is_empty());
    let reply = namespace.ask_tcp(query("many.", RecordType::A)).await;
    assert!(!reply.metadata.truncation && addresses(&reply).len() == 100);

    let mut large = query("many.", RecordType::A);
    large.edns = Some(Edns::new());
    large.edns.as_mut().expect("just set").set_max_payload(4096);
    let reply = namespace.ask_udp(large).await;
    assert!(!reply.metadata.truncation && addresses(&reply).len() == 100);
    assert!(reply.edns.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_the_clients_own_network_is_asked_from_there() {
    let namespace = Namespace::new();
    let dns = Dns::start(&DnsConfig {
        query_timeout: Duration::from_secs(2),
        ..DnsConfig::default()
    });
    dns.publish(records(&[("web", 1)]));
    let sockets = namespace.run(|| {
        for words in [
            "link add near up type veth peer name far",
            "link set far up",
            "addr add 10.200.7.1/24 dev near",
        ] {
            let status = Command::new("ip").args(words.split(' ')).status();
            assert!(status.expect("iproute2 is installed").success(), "{words}");
        }
        both("10.200.7.1:0")
    });
    let server = upstream_of(sockets.await, 50);
    for asks_inside in [true, false] {
        let scope = ClientScope {
            asks_inside,
            ..scope(&[server])
        };
        dns.serve("c1", &namespace.path(), RESOLVER.1, scope)
            .await
            .expect("served");
        let reply = namespace.ask_udp(query("example.com.", RecordType::A));
        let reply = reply.await;
        if asks_inside {
            assert_eq!(addresses(&reply), ["192.0.2.0"]);
            let whole = namespace.ask_tcp(query("big.example.com.", RecordType::A));
            assert_eq!(addresses(&whole.await).len(), 50);
        } else {
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        }
    }
    // One elsewhere is asked from the host, whoever asks.
    let server = upstream(1).await;
    let elsewhere = ClientScope {
        asks_inside: true,
        ..scope(&[server])
    };
    assert!(dns.rescope("c1", elsewhere));
    let reply = namespace.ask_udp(query("example.com.", RecordType::A));
    assert_eq!(addresses(&reply.await), ["192.0.2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_asked_upstream() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1)]));
    let server = upstream(50).await;
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[server]))
        .await
        .expect("served");

    assert_eq!(
        addresses(
            &namespace
                .ask_udp(query("example.com.", RecordType::A))
                .await
        ),
        ["192.0.2.0"]
    );
    assert!(
        namespace
            .ask_udp(query("big.example.com.", RecordType::A))
            .await
            .metadata
            .truncation
    );
    assert_eq!(
        addresses(
            &namespace
                .ask_tcp(query("big.example.com.", RecordType::A))
                .await
        )
        .len(),
        50
    );

    // A silent server delays its own query only, and the next server is asked in its place.
    let (silent, held) = (
        tokio::net::UdpSocket::bind("127.0.0.1:0")
            .await
            .expect("a port"),
        Duration::from_secs(60),
    );
    let config = DnsConfig {
        next_server_after: held,
        query_timeout: held,
        ..DnsConfig::default()
    };
    let patient = Dns::start(&config);
    patient.publish(records(&[("web", 1)]));
    dns.stop("c1").await;
    patient
        .serve(
            "c1",
            &namespace.path(),
            RESOLVER.1,
            scope(&[silent.local_addr().expect("bound")]),
        )
        .await
        .expect("served");
    namespace
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket
                .send_to(
                    &query("slow.", RecordType::A).to_vec().expect("a packet"),
                    RESOLVER,
                )
                .expect("sent");
        })
        .await;
    assert_eq!(
        addresses(&namespace.ask_udp(query("web.", RecordType::A)).await),
        ["10.9.0.1"]
    );
    assert!(patient.rescope("c1", scope(&[server])));
    assert_eq!(
        addresses(
            &namespace
                .ask_udp(query("example.com.", RecordType::A))
                .await
        ),
        ["192.0.2.0"]
    );
    patient.stop("c1").await;

    dns.serve(
        "c1",
        &namespace.path(),
        RESOLVER.1,
        scope(&[silent.local_addr().expect("bound"), server]),
    )
    .await
    .expect("served");
    assert_eq!(
        addresses(
            &namespace
                .ask_udp(query("example.com.", RecordType::A))
                .await
        ),
        ["192.0.2.0"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_upstream_is_a_failure_and_not_silence() {
    let config = DnsConfig {
        query_timeout: Duration::from_millis(300),
        ..DnsConfig::default()
    };
    let (namespace, dns) = (Namespace::new(), Dns::start(&config));
    dns.publish(records(&[]));
    let server = upstream(1).await;
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");
    dns.serve("c2", &Namespace::new().path(), RESOLVER.1, scope(&[]))
        .await
        .expect("another namespace has its own port 53");
    for (upstreams, name) in [
        (vec![], "example.com."),
        (vec![server], "never.example.com."),
    ] {
        assert!(dns.rescope("c1", scope(&upstreams)));
        let reply = namespace.ask_udp(query(name, RecordType::A)).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::ServFail,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_does_not_disturb_it() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1)]));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");
    namespace
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            for length in [0, 1, 11, 12, 100, 9000] {
                socket.send_to(&vec![0x01; length], RESOLVER).expect("sent");
            }
            let mut stream = TcpStream::connect(RESOLVER).expect("a connection");
            stream.write_all(&[0xff; 40]).expect("sent");
        })
        .await;
    assert_eq!(
        addresses(&namespace.ask_udp(query("web.", RecordType::A)).await),
        ["10.9.0.1"]
    );
    assert_eq!(
        addresses(&namespace.ask_tcp(query("web.", RecordType::A)).await),
        ["10.9.0.1"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_at_once_are_all_answered_in_any_mixture() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1)]));
    let server = upstream(1).await;
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[server]))
        .await
        .expect("served");
    let codes = namespace
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let patience = Some(Duration::from_secs(10));
            socket.set_read_timeout(patience).expect("a time");
            // More than a batch, of every kind: ours, nobody's type, another server's, and rubbish in between.
            for number in 0..90u16 {
                let (name, kind) = match number % 3 {
                    0 => ("web.", RecordType::A),
                    1 => ("WEB.", RecordType::AAAA),
                    _ => ("example.com.", RecordType::A),
                };
                let mut message = query(name, kind);
                message.metadata.id = number;
                let packet = message.to_vec().expect("a packet");
                socket.send_to(&packet, RESOLVER).expect("sent");
                if number % 7 == 0 {
                    socket.send_to(&[1, 2, 3], RESOLVER).expect("sent");
                }
            }
            let mut codes = BTreeMap::new();
            let mut reply = [0; 4096];
            while codes.len() < 90 {
                let length = socket.recv(&mut reply).expect("every question is answered");
                let reply = Message::from_vec(&reply[..length]).expect("a reply");
                let records = reply.answers.len();
                codes.insert(reply.metadata.id, (reply.metadata.response_code, records));
            }
            codes
        })
        .await;
    for (number, got) in codes {
        let records = usize::from(number % 3 != 1);
        assert_eq!(got, (ResponseCode::NoError, records), "question {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_internal_networks_alone_asks_nobody_outside() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    let outside = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let mut inside = Records::default();
    inside.insert(
        "net1".parse().expect("an id"),
        Zone::local("front", true, Vec::new(), &[]),
    );
    dns.publish(Arc::new(inside));
    let server = outside.local_addr().expect("bound");
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[server]))
        .await
        .expect("served");
    for name in [
        "example.com.",
        "secret.example.com.",
        "4.3.2.1.in-addr.arpa.",
    ] {
        for kind in [RecordType::A, RecordType::TXT, RecordType::PTR] {
            let over_udp = namespace.ask_udp(query(name, kind)).await;
            let over_tcp = namespace.ask_tcp(query(name, kind)).await;
            for reply in [over_udp, over_tcp] {
                assert_eq!(
                    reply.metadata.response_code,
                    ResponseCode::NXDomain,
                    "{name}"
                );
            }
        }
    }
    // All of them have been answered, so whatever was to be sent has been.
    let mut packet = [0; 512];
    let heard = outside.try_recv_from(&mut packet);
    assert_eq!(
        heard
            .map_err(|error| error.kind())
            .expect_err("a packet has left"),
        std::io::ErrorKind::WouldBlock
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_that_wait_delay_nobody() {
    let (first, second) = (Namespace::new(), Namespace::new());
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let held = Duration::from_secs(60);
    let dns = Dns::start(&DnsConfig {
        next_server_after: held,
        query_timeout: held,
        ..DnsConfig::default()
    });
    dns.publish(records(&[("web", 1)]));
    let slow = scope(&[silent.local_addr().expect("bound")]);
    let quick = scope(&[upstream(1).await]);
    dns.serve("c1", &first.path(), RESOLVER.1, slow)
        .await
        .expect("served");
    dns.serve("c2", &second.path(), RESOLVER.1, quick)
        .await
        .expect("served");
    // As many as a socket's queue holds for sure.
    const WAITING: usize = 150;
    first
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let question = query("slow.", RecordType::A).to_vec().expect("a packet");
            for _ in 0..WAITING {
                socket.send_to(&question, RESOLVER).expect("sent");
            }
        })
        .await;
    let mut packet = [0; 512];
    for _ in 0..WAITING {
        silent
            .recv_from(&mut packet)
            .await
            .expect("a question that waits");
    }
    let own = first.ask_udp(query("web.", RecordType::A)).await;
    assert_eq!(addresses(&own), ["10.9.0.1"]);
    let others = second.ask_udp(query("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&others), ["192.0.2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_of_many_clients_are_all_answered_to_who_asked() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1), ("both", 2), ("both", 3)]));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");
    namespace
        .run(|| {
            let clients: Vec<UdpSocket> = (0..3)
                .map(|_| {
                    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
                    client.connect(RESOLVER).expect("an address");
                    let patience = Some(Duration::from_secs(10));
                    client.set_read_timeout(patience).expect("a time");
                    client
                })
                .collect();
            // Answers of three lengths; most of them can leave many at a time.
            let names = ["web.", "both.", "web.", "nobody.front."];
            for number in 0..60u16 {
                for (client, socket) in (0u16..).zip(&clients) {
                    let name = names[usize::from(number % 4)];
                    let mut message = query(name, RecordType::A);
                    message.metadata.id = number << 2 | client;
                    let packet = message.to_vec().expect("a packet");
                    socket.send(&packet).expect("sent");
                }
            }
            for (client, socket) in (0u16..).zip(&clients) {
                let mut answered: Vec<u16> = (0..60)
                    .map(|_| {
                        let mut reply = [0; 512];
                        let length = socket.recv(&mut reply).expect("an answer");
                        let reply = Message::from_vec(&reply[..length]).expect("a reply");
                        let (number, to) = (reply.metadata.id >> 2, reply.metadata.id & 3);
                        assert_eq!(to, client, "answered to somebody else");
                        assert_eq!(reply.answers.len(), [1, 2, 1, 0][usize::from(number % 4)]);
                        number
                    })
                    .collect();
                answered.sort_unstable();
                assert!(answered.into_iter().eq(0..60));
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_edns_that_is_not_spoken_is_refused() {
    let (namespace, dns) = (Namespace::new(), Dns::start(&DnsConfig::default()));
    dns.publish(records(&[("web", 1)]));
    dns.serve("c1", &namespace.path(), RESOLVER.1, scope(&[]))
        .await
        .expect("served");
    let mut strange = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    strange.edns = Some(edns);
    let reply = namespace.ask_udp(strange).await;
    // BADVERS; TSIG has the same number (RFC 6895 §2.3).
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
}
