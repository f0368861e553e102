//! Connections in: accepted, their handshakes done side by side, their peers known before the first request.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rustls::{ServerConfig, pki_types::CertificateDer};
use shoal_api::{NodeId, Timestamp};
use shoal_ca::{PeerIdentity, peer_identity};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::gathered::Gathered;

/// How long a peer may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once; further connections wait in the kernel.
const HANDSHAKES_MAX: usize = 256;

/// Who is calling. Part of every request's extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What its certificate says; `None` without one.
    pub identity: Option<Arc<PeerIdentity>>,
    /// The certificate, `None` without one.
    pub certificate: Option<CertificateDer<'static>>,
    /// Where it calls from.
    pub address: SocketAddr,
}

/// Ends what a peer has open when it may no longer have it: its certificate has ended, or its node was shut out.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_node: BTreeMap<NodeId, BTreeMap<u64, CancellationToken>>,
}

impl Gate {
    /// Cuts everything that this node has open.
    pub fn shut(&self, node: &NodeId) {
        let connections = self.open().by_node.remove(node);
        for connection in connections.into_iter().flatten().map(|(_, token)| token) {
            connection.cancel();
        }
    }

    /// The nodes that have something open.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.open().by_node.keys().cloned().collect()
    }

    fn enter(&self, node: &NodeId, connection: CancellationToken) -> Pass {
        let mut open = self.open();
        open.next += 1;
        let number = open.next;
        let of_node = open.by_node.entry(node.clone()).or_default();
        of_node.insert(number, connection);
        Pass {
            gate: self.clone(),
            node: node.clone(),
            number,
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in the gate's book, struck out when dropped.
#[derive(Debug)]
struct Pass {
    gate: Gate,
    node: NodeId,
    number: u64,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open();
        if let Some(of_node) = open.by_node.get_mut(&self.node) {
            of_node.remove(&self.number);
            if of_node.is_empty() {
                open.by_node.remove(&self.node);
            }
        }
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    stream: Gathered<TlsStream<TcpStream>>,
    caller: Caller,
    /// Streams may be open for days; a manager that stops, or shuts a node out, closes them under their users.
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When the peer's certificate ends.
    expiry: Option<Pin<Box<Sleep>>>,
    _pass: Option<Pass>,
}

/// Accepts connections until `stop`, which also breaks those that are open. Each handshake uses the newest configuration.
pub fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    gate: Gate,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
                () = stop.cancelled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, for instance: others will close theirs.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
            let (sender, gate, stop) = (sender.clone(), gate.clone(), stop.child_token());
            tokio::spawn(async move {
                let handshake = shake_hands(acceptor, stream, address, &gate, stop);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await), // the server may be stopping
                    Ok(Err(error)) => {
                        tracing::info!(peer = %address, %error, "refused a connection")
                    }
                    Err(_) => tracing::info!(peer = %address, "a handshake took too long"),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    gate: &Gate,
    stop: CancellationToken,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate.clone().into_owned());
    let identity = certificate
        .as_ref()
        .map(|certificate| peer_identity(certificate).map(Arc::new))
        .transpose()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let lasts = |identity: &Arc<PeerIdentity>| identity.not_after.since(Timestamp::now());
    Ok(Connection {
        stream: Gathered::new(stream),
        // The moment at which the peer's certificate ends, which nothing else tells of.
        expiry: identity
            .as_ref()
            .map(|identity| Box::pin(tokio::time::sleep(lasts(identity)))),
        _pass: identity
            .as_ref()
            .map(|identity| gate.enter(&identity.node_id, stop.clone())),
        caller: Caller {
            identity,
            certificate,
            address,
        },
        stopped: Box::pin(stop.cancelled_owned()),
    })
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_over = |sleep: &mut Pin<Box<Sleep>>| sleep.as_mut().poll(cx).is_ready();
        let has_ended = self.expiry.as_mut().is_some_and(is_over);
        if has_ended || self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
