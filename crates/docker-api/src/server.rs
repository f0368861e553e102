//! Connections: accepting them, serving them, ending them.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, ready};
use http::{HeaderValue, Method, header};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use shoal_api::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    API_VERSION,
    backend::{ApiError, ApiResult, ClusterBackend, EngineBackend, LocalNodeState, SwarmInfo},
    call::Call,
    reply::{self, Reply},
    routes::{self, TaskExecs},
};

/// Time that running requests get when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Connections of one listener at most: each may hold a stream of a container open, and all share the daemon's files.
const CONNECTIONS_MAX: usize = 4096;
/// Time for a caller's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes both ways.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A connection, whatever carries it.
pub type Connection = Box<dyn Transport>;
/// A caller who still has to shake hands.
pub type Accepted = BoxFuture<'static, io::Result<Caller>>;

/// Somebody who calls.
pub struct Caller {
    /// Both directions.
    pub connection: Connection,
    /// The socket once more, where the kernel tells a caller who hung up from one who only ended what he sends: a unix
    /// socket. Streams of containers end with their caller then, even if nothing is ever written again.
    pub socket: Option<OwnedFd>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").finish_non_exhaustive()
    }
}

/// Tells when a caller hangs up.
#[derive(Clone, Default)]
pub(crate) struct HangUp(Option<Arc<OwnedFd>>);

impl HangUp {
    /// Waits until the caller has closed both directions; for ever where that cannot be told.
    pub(crate) async fn wait(self) {
        let watched = self.0.and_then(|socket| {
            // A registration of its own: that of the connection must not lose its readiness.
            UnixStream::from_std(socket.try_clone().ok()?.into()).ok()
        });
        let Some(socket) = watched else {
            return std::future::pending().await;
        };
        while let Ok(ready) = socket.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            // That it can be written to is no news; the next change is waited for.
            let _ = socket.try_io(Interest::WRITABLE, || -> io::Result<()> {
                Err(io::ErrorKind::WouldBlock.into())
            });
        }
    }
}

/// Where callers come from.
pub trait Listener: Send + Sync + 'static {
    /// The next caller.
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>>;
}

impl Listener for UnixListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async {
            let (stream, _) = Self::accept(self).await?;
            let caller = Caller {
                socket: stream.as_fd().try_clone_to_owned().ok(),
                connection: Box::new(stream),
            };
            let accepted: Accepted = Box::pin(ready(Ok(caller)));
            Ok(accepted)
        })
    }
}

/// What every request needs.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Arc<dyn EngineBackend>,
    pub(crate) cluster: Arc<dyn ClusterBackend>,
    /// Processes in tasks that were asked for, by the id of the request.
    pub(crate) task_execs: Arc<TaskExecs>,
    /// Taken-over connections.
    pub(crate) sessions: TaskTracker,
    /// Ends them.
    pub(crate) stop: CancellationToken,
    /// When the caller of this request hangs up.
    pub(crate) hang_up: HangUp,
}

impl Api {
    /// Makes sure that this node can answer for the cluster, else fails as docker does.
    pub(crate) async fn manager(&self) -> ApiResult<SwarmInfo> {
        let swarm = self.cluster.swarm_info().await;
        match swarm.state {
            _ if swarm.control_available => Ok(swarm),
            LocalNodeState::Inactive | LocalNodeState::Pending => Err(ApiError::no_swarm()),
            LocalNodeState::Locked => Err(ApiError::swarm_locked()),
            LocalNodeState::Active => Err(ApiError::not_a_manager()),
            LocalNodeState::Error if swarm.error.is_empty() => Err(ApiError::not_a_manager()),
            LocalNodeState::Error => Err(ApiError::unavailable(swarm.error)),
        }
    }

    /// The time, for "how long ago".
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The Engine API of this host.
#[derive(Clone)]
pub struct Server {
    api: Api,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A server over these backends; it serves nothing yet.
    pub fn new(engine: Arc<dyn EngineBackend>, cluster: Arc<dyn ClusterBackend>) -> Self {
        Self {
            api: Api {
                engine,
                cluster,
                task_execs: Arc::default(),
                sessions: TaskTracker::new(),
                stop: CancellationToken::new(),
                hang_up: HangUp::default(),
            },
        }
    }

    /// Accepts and serves connections until `stop`, then gives running requests a moment and ends the rest.
    ///
    /// The caller binds the socket and sets its owner and mode.
    ///
    /// # Errors
    /// When accepting fails although no connection of ours could be closed to make room.
    pub async fn serve(&self, listener: impl Listener, stop: CancellationToken) -> io::Result<()> {
        let mut connections = JoinSet::new();
        let outcome = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok(accepted) => {
                        connections.spawn(self.clone().welcome(accepted, stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Mostly there are too many open files: wait until one of ours is closed.
                        if connections.join_next().await.is_none() {
                            break Err(error);
                        }
                    }
                },
            }
        };
        self.api.stop.cancel();
        self.api.sessions.close();
        let ended = tokio::time::timeout(STOP_GRACE, async {
            while connections.join_next().await.is_some() {}
            self.api.sessions.wait().await;
        });
        if ended.await.is_err() {
            tracing::debug!(left = connections.len(), "ending requests that still run");
        }
        connections.shutdown().await;
        outcome
    }

    async fn welcome(self, accepted: Accepted, stop: CancellationToken) {
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
            Ok(Ok(caller)) => {
                let mut server = self;
                server.api.hang_up = HangUp(caller.socket.map(Arc::new));
                server.serve_connection(caller.connection, stop).await;
            }
            Ok(Err(error)) => tracing::info!(%error, "a caller was turned away"),
            Err(_) => tracing::info!("a caller did not shake hands in time"),
        }
    }

    /// Serves one connection, of whatever kind, until it ends or `stop`.
    pub async fn serve_connection<S>(self, stream: S, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let api = self.api;
        let service = service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(answer(&api, request).await) }
        });
        let connection = http1::Builder::new()
            // As docker: a client may keep a connection for its next request as long as it likes.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            // Clients hang up in the middle of streams all the time.
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

async fn answer(api: &Api, request: Request<Incoming>) -> Reply {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let outcome = match Call::new(request).await {
        Ok(call) if matches!(call.method, Method::GET | Method::HEAD) => {
            routes::answer(api, call).await
        }
        // What was begun is done to its end, even if the caller hangs up meanwhile.
        Ok(call) => {
            let api = api.clone();
            let done = tokio::spawn(async move { routes::answer(&api, call).await }).await;
            done.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
        }
        Err(error) => Err(error),
    };
    let mut reply = outcome.unwrap_or_else(|error| {
        if error.status.is_server_error() {
            tracing::info!(%method, path, status = error.status.as_u16(), %error, "request failed");
        } else {
            tracing::debug!(%method, path, status = error.status.as_u16(), %error, "request refused");
        }
        reply::error(&error)
    });
    let headers = reply.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static(API_VERSION));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert(header::SERVER, HeaderValue::from_static("Shoal (linux)"));
    reply
}
