//! The resolvers of all clients, and the table from which all of them answer.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use shoal_api::{NetworkId, network::RESOLVER};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{
    datagrams,
    forward::{Patience, Transport, Upstreams, read_message, write_message},
    namespace::Namespace,
};
use crate::core::{
    answer::{Answer, Asker, answer},
    records::Records,
    wire::{Malformed, Query, Rcode, TCP_BYTES_MAX, write_error},
};

/// Queries of one client that may wait for upstream servers; as docker's 1024 for all of them.
const FORWARDS_PER_CLIENT_MAX: usize = 1024;
/// TCP connections of one client.
const CONNECTIONS_PER_CLIENT_MAX: usize = 64;
/// How long a TCP connection may be silent.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Pause after the system had no descriptor left for a connection; nothing tells when there is one again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of the resolver.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// When a second upstream server is asked because the first is silent.
    pub next_server_after: Duration,
    /// When a forwarded query is given up; docker's 4 s.
    pub query_timeout: Duration,
    /// Queries of all clients that may wait for upstream servers. Each holds a descriptor.
    pub forwards_max: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            next_server_after: Duration::from_millis(500),
            query_timeout: Duration::from_secs(4),
            forwards_max: 8192,
        }
    }
}

/// What a client may see, and whom its other questions go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientScope {
    /// Its networks; the first that knows a name answers.
    pub networks: Vec<NetworkId>,
    /// Domains in its resolv.conf.
    pub search: Vec<String>,
    /// Dots that a name has for its resolver to ask for it as it is first; see resolv.conf(5).
    pub ndots: u32,
    /// Servers for what is not ours, reached from the host's namespace.
    pub upstreams: Vec<SocketAddr>,
    /// Whether those of them that are in a subnet of the client's own interfaces are reached from its namespace, since the
    /// host may have no way there.
    pub asks_inside: bool,
}

/// The ports of 127.0.0.11 on which a client's resolver listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Over UDP.
    pub udp: u16,
    /// Over TCP.
    pub tcp: u16,
}

/// Why a client cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Its sockets cannot be made: the namespace is gone, or something else is bound there.
    #[error("cannot open the resolver of {client} in {}", netns.display())]
    Open {
        /// Key of the client.
        client: String,
        /// Its network namespace.
        netns: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The resolvers of this node's containers. Dropping it closes them all.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    clients: Mutex<BTreeMap<String, Client>>,
}

/// What all clients have in common.
#[derive(Debug)]
struct Shared {
    records: ArcSwap<Records>,
    forwards: Arc<Semaphore>,
    turn: AtomicU32,
    patience: Patience,
}

/// A client's running tasks; they end when its sender does.
#[derive(Debug)]
struct Client {
    scope: Arc<ArcSwap<Scope>>,
    serving: watch::Sender<()>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
struct Scope {
    asker: Asker,
    upstreams: Upstreams,
    asks_inside: bool,
}

/// What one socket's task needs to answer.
#[derive(Clone)]
pub(super) struct Desk {
    shared: Arc<Shared>,
    scope: Arc<ArcSwap<Scope>>,
    forwards: Arc<Semaphore>,
    namespace: Namespace,
}

pub(super) enum Verdict {
    /// It is in the buffer.
    Reply,
    /// An upstream server is to be asked.
    Forward,
    /// Nobody is to be answered.
    Drop,
}

impl Dns {
    /// A resolver without clients and names.
    pub fn start(config: &DnsConfig) -> Self {
        let shared = Shared {
            records: ArcSwap::default(),
            forwards: Arc::new(Semaphore::new(config.forwards_max)),
            turn: AtomicU32::new(0),
            patience: Patience {
                next_server: config.next_server_after,
                whole_query: config.query_timeout,
            },
        };
        Self {
            shared: Arc::new(shared),
            clients: Mutex::default(),
        }
    }

    /// Replaces all names at once; every question that arrives from now on is answered from `records`.
    pub fn publish(&self, records: Arc<Records>) {
        self.shared.records.store(records);
    }

    /// Serves 127.0.0.11, UDP and TCP, in the network namespace at `netns`, until [`Self::stop`].
    ///
    /// It listens on `port`; 0 lets the kernel choose one for each protocol. Returns what it listens on. A client that
    /// is served already is stopped first. Needs `CAP_SYS_ADMIN` to enter the namespace.
    pub async fn serve(
        &self,
        client: &str,
        netns: &Path,
        port: u16,
        scope: ClientScope,
    ) -> Result<Listening, DnsError> {
        self.stop(client).await;
        let failed = |source| DnsError::Open {
            client: client.to_owned(),
            netns: netns.to_owned(),
            source,
        };
        let namespace = Namespace::at(netns).map_err(failed)?;
        let at = SocketAddrV4::new(RESOLVER, port);
        let sockets = namespace.open(at).await.map_err(failed)?;
        let udp = UdpSocket::from_std(sockets.udp).map_err(failed)?;
        let tcp = TcpListener::from_std(sockets.tcp).map_err(failed)?;
        let listening = Listening {
            udp: udp.local_addr().map_err(failed)?.port(),
            tcp: tcp.local_addr().map_err(failed)?.port(),
        };
        let scope = Arc::new(ArcSwap::from_pointee(Scope::from(scope)));
        let desk = Desk {
            shared: Arc::clone(&self.shared),
            scope: Arc::clone(&scope),
            forwards: Arc::new(Semaphore::new(FORWARDS_PER_CLIENT_MAX)),
            namespace,
        };
        let (serving, stopped) = watch::channel(());
        let tasks = [
            tokio::spawn(serve_udp(Arc::new(udp), desk.clone(), stopped.clone())),
            tokio::spawn(serve_tcp(tcp, desk, stopped)),
        ];
        let served = Client {
            scope,
            serving,
            tasks,
        };
        self.lock().insert(client.to_owned(), served);
        Ok(listening)
    }

    /// Changes what a served client sees. Returns whether there is such a client.
    pub fn rescope(&self, client: &str, scope: ClientScope) -> bool {
        self.lock()
            .get(client)
            .map(|client| client.scope.store(Arc::new(scope.into())))
            .is_some()
    }

    /// Closes a client's sockets; they are closed when this returns. Does nothing for a stranger.
    pub async fn stop(&self, client: &str) {
        let removed = self.lock().remove(client);
        if let Some(Client { serving, tasks, .. }) = removed {
            drop(serving);
            for task in tasks {
                if let Err(error) = task.await {
                    tracing::error!(client, %error, "a resolver broke down");
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Client>> {
        // Nothing that can fail happens while it is held, so a poisoned map is still a whole one.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<ClientScope> for Scope {
    fn from(scope: ClientScope) -> Self {
        Self {
            asker: Asker::new(scope.networks, &scope.search, scope.ndots),
            upstreams: Upstreams::new(scope.upstreams),
            asks_inside: scope.asks_inside,
        }
    }
}

/// The table and the client's view of it at one moment: what a batch of questions is answered from.
pub(super) struct Snapshot<'d> {
    records: Guard<Arc<Records>>,
    scope: Guard<Arc<Scope>>,
    turn: &'d AtomicU32,
}

impl Desk {
    /// What is known now; to be taken after the questions have arrived.
    pub(super) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            records: self.shared.records.load(),
            scope: self.scope.load(),
            turn: &self.shared.turn,
        }
    }

    /// A place among the queries that wait for upstream servers, `None` if all are taken.
    fn place(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = Arc::clone(&self.forwards).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.shared.forwards).try_acquire_owned().ok()?;
        Some([own, all])
    }

    /// The reply of an upstream server, or our own that there was none.
    async fn forward(&self, packet: &Arc<[u8]>, transport: Transport) -> Vec<u8> {
        let scope = self.scope.load_full();
        match scope
            .upstreams
            .ask(
                packet,
                transport,
                self.shared.patience,
                scope.asks_inside.then_some(&self.namespace),
            )
            .await
        {
            Some(reply) => reply,
            None => failure(packet),
        }
    }
}

impl Snapshot<'_> {
    /// Answers from the table into `out`, or says that the question must be forwarded.
    pub(super) fn decide(&self, packet: &[u8], transport: Transport, out: &mut Vec<u8>) -> Verdict {
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Malformed::Drop) => return Verdict::Drop,
            Err(Malformed::Reply(code)) => {
                write_error(packet, code, out);
                return Verdict::Reply;
            }
        };
        if query.edns.is_some_and(|edns| edns.version != 0) {
            query.write_code(Rcode::BadVers, out);
            return Verdict::Reply;
        }
        match answer(&self.records, &self.scope.asker, &query) {
            Answer::Records(set) => {
                let limit = match transport {
                    Transport::Udp => query.udp_limit(),
                    Transport::Tcp => TCP_BYTES_MAX,
                };
                query.write_records(set, self.next_turn(), limit, out);
            }
            Answer::Empty => query.write_code(Rcode::NoError, out),
            Answer::NoSuchName => query.write_code(Rcode::NxDomain, out),
            Answer::NotYet => query.write_code(Rcode::ServFail, out),
            Answer::Forward => return Verdict::Forward,
        }
        Verdict::Reply
    }

    /// The next place in everybody's rotation.
    ///
    /// Multiplying by 2³²/φ spreads every subsequence evenly: a client that always asks two questions in a row would
    /// otherwise see only every second address.
    fn next_turn(&self) -> u32 {
        self.turn
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9e37_79b1)
            >> 8
    }
}

fn failure(packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match Query::parse(packet) {
        Ok(query) => query.write_code(Rcode::ServFail, &mut out),
        Err(_) => write_error(packet, Rcode::ServFail, &mut out),
    }
    out
}

async fn serve_udp(socket: Arc<UdpSocket>, desk: Desk, mut stopped: watch::Receiver<()>) {
    let mut forwards = JoinSet::new();
    tokio::select! {
        () = answer_udp(&socket, &desk, &mut forwards) => {}
        _ = stopped.changed() => {}
    }
    // They hold the socket too, which must be closed when this is over.
    forwards.shutdown().await;
}

async fn answer_udp(socket: &Arc<UdpSocket>, desk: &Desk, forwards: &mut JoinSet<()>) {
    let mut strangers = Vec::new();
    loop {
        let served = async {
            socket.readable().await?;
            datagrams::serve(socket, desk, &mut strangers)
        };
        if let Err(error) = served.await {
            tracing::error!(%error, "cannot read queries; the resolver of a container stops");
            return;
        }
        for (packet, from) in strangers.drain(..) {
            while forwards.try_join_next().is_some() {}
            let Some(place) = desk.place() else {
                let _ = socket.try_send_to(&failure(&packet), from);
                continue;
            };
            let (desk, socket) = (desk.clone(), Arc::clone(socket));
            forwards.spawn(async move {
                let reply = desk.forward(&packet, Transport::Udp).await;
                let _ = socket.send_to(&reply, from).await;
                drop(place);
            });
        }
    }
}

async fn serve_tcp(listener: TcpListener, desk: Desk, mut stopped: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    tokio::select! {
        () = accept_tcp(&listener, &desk, &mut connections) => {}
        _ = stopped.changed() => {}
    }
    connections.shutdown().await;
}

async fn accept_tcp(listener: &TcpListener, desk: &Desk, connections: &mut JoinSet<()>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_PER_CLIENT_MAX => {
                    connections.spawn(serve_connection(stream, desk.clone()));
                }
                // Closed at once: the client has enough of them.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to a resolver");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers the questions of one connection, one after the other, until it ends or is silent for too long.
async fn serve_connection(mut stream: TcpStream, desk: Desk) {
    let (mut packet, mut out) = (Vec::new(), Vec::new());
    while let Ok(Ok(())) = timeout(CONNECTION_IDLE, read_message(&mut stream, &mut packet)).await {
        let verdict = desk.snapshot().decide(&packet, Transport::Tcp, &mut out);
        match verdict {
            Verdict::Reply => {}
            Verdict::Forward => match desk.place() {
                Some(_place) => {
                    out = desk
                        .forward(&Arc::from(packet.as_slice()), Transport::Tcp)
                        .await
                }
                None => out = failure(&packet),
            },
            Verdict::Drop => return,
        }
        if !matches!(
            timeout(CONNECTION_IDLE, write_message(&mut stream, &out)).await,
            Ok(Ok(()))
        ) {
            return;
        }
    }
}
