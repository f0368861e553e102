//! A slow upstream server is nobody's business but theirs who ask it. Needs root, as `namespace.rs` does.

mod lab;

use std::{net::UdpSocket, sync::Arc};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use lab::{Namespace, PATIENCE, RESOLVER, addresses, query, records, scope, upstream};
use shoal_dns::{Dns, DnsConfig};

/// Clients that ask the slow server, and how many questions of each wait for it: 5,000 together.
const CLIENTS: usize = 5;
const WAITING: usize = 1_000;
/// Questions that are sent before the last of them is heard upstream: as many as a socket's queue holds for sure.
const BATCH: usize = 100;
/// What a client may have waiting at most.
const CLIENT_MAX: usize = 1_024;
/// What a question that waits may take of this program's memory.
const QUESTION_BYTES_MAX: usize = 8 << 10;

/// This program's memory.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux tells it");
    let pages = pages.split(' ').nth(1).expect("the second is resident");
    pages.parse::<usize>().expect("a number") * 4096
}

/// Sends so many questions for a name outside, all from one socket.
async fn send(client: &Namespace, from: &Arc<UdpSocket>, count: usize) {
    let from = Arc::clone(from);
    client
        .run(move || {
            let question = query("slow.", RecordType::A).to_vec().expect("a packet");
            for _ in 0..count {
                from.send_to(&question, RESOLVER).expect("sent");
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_questions_that_wait_delay_nobody_and_take_little() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let dns = Dns::start(&DnsConfig {
        next_server_after: PATIENCE,
        query_timeout: PATIENCE,
        ..DnsConfig::default()
    });
    dns.publish(records(&[("web", 1)]));
    let slow = scope(&[silent.local_addr().expect("bound")]);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = Namespace::new();
        let name = format!("slow{number}");
        dns.serve(&name, &client.path(), RESOLVER.1, slow.clone())
            .await
            .expect("served");
        let socket = client.run(|| UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let socket = Arc::new(socket.await);
        clients.push((client, socket));
    }
    let quick = Namespace::new();
    let scope = scope(&[upstream(1).await]);
    dns.serve("quick", &quick.path(), RESOLVER.1, scope)
        .await
        .expect("served");

    let before = resident_bytes();
    let mut packet = [0; 512];
    for (client, socket) in &clients {
        for _ in 0..WAITING / BATCH {
            send(client, socket, BATCH).await;
            for _ in 0..BATCH {
                let heard = silent.recv_from(&mut packet).await;
                heard.expect("a question that waits");
            }
        }
    }
    let taken = resident_bytes().saturating_sub(before);
    assert!(
        taken <= CLIENTS * WAITING * QUESTION_BYTES_MAX,
        "{taken} bytes for {} questions",
        CLIENTS * WAITING
    );
    // Who asks nothing of that server notices nothing, and neither do those who do, where they ask for something else.
    let others = quick.ask_udp(query("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&others), ["192.0.2.0"]);
    let asking = clients.iter().map(|(client, _)| client);
    for client in asking.chain([&quick]) {
        let own = client.ask_udp(query("web.", RecordType::A)).await;
        assert_eq!(addresses(&own), ["10.9.0.1"]);
    }

    // More than its share is refused at once, to whoever asks for it and to nobody else.
    let (client, socket) = &clients[0];
    const SURPLUS: usize = 10;
    send(client, socket, CLIENT_MAX - WAITING + SURPLUS).await;
    let socket = Arc::clone(socket);
    let refused = client.run(move || {
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut reply = [0; 512];
        let read = |_| {
            let length = socket.recv(&mut reply).expect("a refusal");
            let reply = Message::from_vec(&reply[..length]).expect("a reply");
            reply.metadata.response_code
        };
        (0..SURPLUS).map(read).collect::<Vec<_>>()
    });
    assert_eq!(refused.await, [ResponseCode::ServFail; SURPLUS]);
    for _ in WAITING..CLIENT_MAX {
        let heard = silent.recv_from(&mut packet).await;
        heard.expect("a question that waits");
    }
    let (other, socket) = &clients[1];
    send(other, socket, 1).await;
    let heard = silent.recv_from(&mut packet).await;
    heard.expect("another client's questions still go out");
}
