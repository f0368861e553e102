//! Asks upstream servers what we do not know.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::namespace::Namespace;
use crate::core::wire::{
    Query, TCP_BYTES_MAX, UDP_BYTES_MAX, is_failure, is_reply_to, is_truncated,
};

/// How a question came in; an answer that is too long for one is complete over the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The servers of one client, and which of them answered last.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    servers: Vec<SocketAddr>,
    preferred: AtomicUsize,
}

/// How long to wait for a server before the next one is asked as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) next_server: Duration,
    pub(super) whole_query: Duration,
}

impl Upstreams {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            preferred: AtomicUsize::new(0),
        }
    }

    /// Returns the first useful reply of any server, with the query's own number; `None` if none came in time.
    ///
    /// The server that answered last is asked first. Another one is asked as soon as one fails, or when it takes too
    /// long, which does not mean that its reply is no longer welcome.
    ///
    /// With a `client`, servers in a subnet of that namespace are asked from there, as the client itself would.
    pub(super) async fn ask(
        &self,
        packet: &Arc<[u8]>,
        transport: Transport,
        patience: Patience,
        client: Option<&Namespace>,
    ) -> Option<Vec<u8>> {
        let count = self.servers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let deadline = Instant::now() + patience.whole_query;
        let mut order = (0..count).map(|step| (first + step) % count);
        let mut asked = JoinSet::new();
        let mut failure = None;
        let mut next_at = Instant::now();
        loop {
            if let Some(index) = order.next() {
                let (packet, server) = (Arc::clone(packet), self.servers[index]);
                let client = client.cloned();
                asked.spawn(async move {
                    let reply = ask(&packet, server, transport, client.as_ref());
                    (index, timeout_at(deadline, reply).await)
                });
                next_at = (Instant::now() + patience.next_server).min(deadline);
            }
            let more = order.len() > 0;
            tokio::select! {
                replied = asked.join_next() => match replied {
                    Some(Ok((index, Ok(Ok(reply))))) if !is_failure(&reply) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Some(reply);
                    }
                    Some(Ok((_, Ok(Ok(reply))))) => failure = Some(reply),
                    Some(Ok((index, Ok(Err(error))))) => {
                        tracing::debug!(server = %self.servers[index], %error, "upstream name server failed");
                    }
                    Some(_) => {}
                    None => return failure,
                },
                () = sleep_until(next_at), if more => {}
            }
        }
    }
}

/// Asks one server. Replies with another number or question are not for us and are passed over.
async fn ask(
    packet: &[u8],
    server: SocketAddr,
    transport: Transport,
    client: Option<&Namespace>,
) -> io::Result<Vec<u8>> {
    let query = Query::parse(packet).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut id = [0u8; 2];
    getrandom::fill(&mut id).expect("the operating system gives random bytes after boot");
    let mut sent = packet.to_vec();
    sent[..2].copy_from_slice(&id);

    let inside = match client {
        Some(namespace) => namespace.udp_to(server).await?,
        None => None,
    };
    // A stream is had from where the datagram was.
    let client = client.filter(|_| inside.is_some());
    let socket = match inside {
        Some(inside) => UdpSocket::from_std(inside)?,
        None => {
            // A fresh socket has a fresh port, which a stranger would have to guess too (RFC 5452 §9.2).
            let any = match server {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            UdpSocket::bind(any).await?
        }
    };
    socket.connect(server).await?;
    let mut reply = ask_udp(&query, &sent, id, &socket).await?;
    if is_truncated(&reply) && transport == Transport::Tcp {
        let stream = match client {
            Some(namespace) => {
                let socket = TcpSocket::from_std_stream(namespace.tcp_to(server).await?);
                socket.connect(server).await?
            }
            None => TcpStream::connect(server).await?,
        };
        reply = ask_tcp(&query, &sent, id, stream).await?;
    }
    reply[..2].copy_from_slice(&packet[..2]);
    Ok(reply)
}

async fn ask_udp(
    query: &Query<'_>,
    sent: &[u8],
    id: [u8; 2],
    socket: &UdpSocket,
) -> io::Result<Vec<u8>> {
    socket.send(sent).await?;
    // Thousands may wait: a buffer is had when there is something to read.
    socket.readable().await?;
    let mut reply = vec![0; UDP_BYTES_MAX + 1];
    loop {
        let length = socket.recv(&mut reply).await?;
        if !is_reply_to(query, id, &reply[..length]) {
            continue;
        }
        if length > UDP_BYTES_MAX {
            // Longer than anything we announce: the whole of it is had over TCP.
            query.write_truncated(&mut reply);
        } else {
            reply.truncate(length);
        }
        return Ok(reply);
    }
}

async fn ask_tcp(
    query: &Query<'_>,
    sent: &[u8],
    id: [u8; 2],
    mut stream: TcpStream,
) -> io::Result<Vec<u8>> {
    write_message(&mut stream, sent).await?;
    let mut reply = Vec::new();
    read_message(&mut stream, &mut reply).await?;
    if is_reply_to(query, id, &reply) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Reads one message with its length before it (RFC 1035 §4.2.2).
pub(super) async fn read_message(stream: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    let length = stream.read_u16().await?;
    message.resize(usize::from(length), 0);
    stream.read_exact(message).await?;
    Ok(())
}

/// Writes one message with its length before it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length =
        u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    debug_assert!(message.len() <= TCP_BYTES_MAX);
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
