//! The resolver in a real network namespace, asked by packets that another library makes and reads. Needs root.
//!
//! Namespaces are held by descriptors only, so nothing remains when a test ends, however it ends.

mod lab;

use std::{
    collections::BTreeMap,
    io::Write,
    net::{TcpStream, UdpSocket},
    process::Command,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::RecordType,
};
use lab::*;
use shoal_dns::{ClientScope, Dns, DnsConfig, Records, Zone};

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
