//! A thin client of the Engine API: JSON in and out, byte streams, and hijacked connections.
//!
//! One connection per request: on a unix socket that costs microseconds, and a stream never blocks another call.

mod ssh;

use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use shoal_ca::ApiClientTls;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::connect;

/// Where the daemon listens when nothing else is said.
pub(crate) const DEFAULT_HOST: &str = "unix:///run/shoal/shoal.sock";
/// The newest version of the Engine API that we speak.
pub(crate) const API: &str = "1.51";
/// An answer that is one JSON document is never longer; protects against a server gone mad.
const DOCUMENT_BYTES_MAX: usize = 256 << 20;

/// What the daemon refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("Error response from daemon: {message}")]
pub(crate) struct Refused {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// The daemon's message.
    pub(crate) message: String,
}

/// Whether this failure is the daemon's 404.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

/// The version that we speak: what `DOCKER_API_VERSION` demands, or the newest.
pub(crate) fn api_version() -> String {
    let said = connect::environment("DOCKER_API_VERSION");
    said.map_or_else(
        || API.to_owned(),
        |said| said.trim_start_matches('v').to_owned(),
    )
}

type Body = BoxBody<Bytes, std::io::Error>;

/// What to send along with a request.
pub(crate) enum Payload {
    /// Nothing.
    Empty,
    /// A JSON document.
    Json(Value),
    /// A tar archive, as it is read.
    Tar(Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send + Sync>>),
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

/// A request target: path and query, both escaped.
#[derive(Clone)]
pub(crate) struct Target {
    text: String,
    separator: char,
    registry_auth: Option<String>,
    registry_config: Option<String>,
}

impl Target {
    /// Starts with a path whose `{}` are replaced by the escaped `parts`.
    pub(crate) fn new(path: &str, parts: &[&str]) -> Self {
        let mut text = format!("/v{}", api_version());
        let mut parts = parts.iter();
        for (i, piece) in path.split("{}").enumerate() {
            if i > 0 {
                text.push_str(&escape(parts.next().expect("one part per placeholder")));
            }
            text.push_str(piece);
        }
        Self {
            text,
            separator: '?',
            registry_auth: None,
            registry_config: None,
        }
    }

    /// Adds a parameter.
    pub(crate) fn arg(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.text.push(self.separator);
        self.separator = '&';
        self.text.push_str(name);
        self.text.push('=');
        self.text.push_str(&escape(&value.to_string()));
        self
    }

    /// Adds a parameter if there is a value.
    pub(crate) fn maybe(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.arg(name, value),
            None => self,
        }
    }

    /// Adds a flag if it is set.
    pub(crate) fn flag(self, name: &str, set: bool) -> Self {
        if set { self.arg(name, 1) } else { self }
    }

    /// Adds `filters`, each `key=value`, in docker's form.
    pub(crate) fn filters(self, filters: &[String]) -> Result<Self> {
        let mut all: Map<String, Value> = Map::new();
        for filter in filters {
            let Some((key, value)) = filter.split_once('=') else {
                bail!(
                    "invalid argument {filter:?} for \"-f, --filter\" flag: bad format of filter (expected name=value)"
                );
            };
            all.entry(key.trim().to_ascii_lowercase())
                .or_insert_with(|| Map::new().into())[value.trim()] = true.into();
        }
        Ok(if all.is_empty() {
            self
        } else {
            self.arg("filters", Value::Object(all))
        })
    }

    /// Sends this along as `X-Registry-Config`, the credentials that a build may need.
    pub(crate) fn registry_config(mut self, config: String) -> Self {
        self.registry_config = Some(config);
        self
    }

    /// Sends this along as `X-Registry-Auth`.
    pub(crate) fn registry_auth(mut self, auth: Option<String>) -> Self {
        self.registry_auth = auth;
        self
    }
}

/// Escapes everything but the unreserved characters of RFC 3986 §2.3 and `/`, `:`, `@`, `,`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@,".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
    Tls(String, ApiClientTls),
    Ssh(ssh::Remote),
}

/// Bytes in both directions.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Refuses a host that ssh cannot be asked for.
pub(crate) fn check_ssh(rest: &str) -> Result<()> {
    ssh::Remote::parse(rest).map(drop)
}

/// The daemon.
pub(crate) struct Client {
    endpoint: Endpoint,
    host: String,
}

impl Client {
    /// A client of the daemon at `unix:///path`, `ssh://[user@]host[:port]` or `tcp://host:port`, the last over TLS if it
    /// is given.
    pub(crate) fn new(host: &str, tls: Option<ApiClientTls>) -> Result<Self> {
        let endpoint = match host.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Endpoint::Unix(path.into()),
            Some(("tcp" | "http" | "https", addr)) if !addr.is_empty() => {
                let addr = addr.trim_end_matches('/');
                let port = if tls.is_some() { 2376 } else { 2375 };
                // As docker: what has no port gets the usual one.
                let bare = addr.rfind(':').is_none_or(|at| addr[at..].contains(']'));
                let addr = if bare {
                    format!("{addr}:{port}")
                } else {
                    addr.to_owned()
                };
                match tls {
                    Some(tls) => Endpoint::Tls(addr, tls),
                    None => Endpoint::Tcp(addr),
                }
            }
            Some(("ssh", rest)) => Endpoint::Ssh(ssh::Remote::parse(rest)?),
            _ => bail!(
                "unable to parse docker host {host:?}: expected unix:///path, tcp://host:port or ssh://user@host"
            ),
        };
        Ok(Self {
            endpoint,
            host: host.to_owned(),
        })
    }

    /// The host as it was said.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The socket of a daemon on this host.
    pub(crate) fn unix_socket(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Tcp(_) | Endpoint::Tls(..) | Endpoint::Ssh(_) => None,
        }
    }

    /// Carries bytes between the daemon and these streams until the daemon is done.
    pub(crate) async fn relay(
        &self,
        input: impl AsyncRead + Unpin,
        output: impl AsyncWrite + Unpin,
    ) -> Result<()> {
        relay(self.connect().await?, input, output).await
    }

    async fn connect(&self) -> Result<Box<dyn Duplex>> {
        let unreachable = || {
            format!(
                "Cannot connect to the Shoal daemon at {}. Is the shoal daemon running?",
                self.host
            )
        };
        Ok(match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| {
                    if error.kind() == std::io::ErrorKind::PermissionDenied {
                        anyhow::anyhow!(
                            "permission denied while trying to connect to the Shoal daemon at {}",
                            self.host
                        )
                    } else {
                        anyhow::anyhow!(unreachable())
                    }
                })?;
                Box::new(stream)
            }
            Endpoint::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await;
                Box::new(stream.map_err(|_| anyhow::anyhow!(unreachable()))?)
            }
            Endpoint::Tls(addr, tls) => {
                let stream = TcpStream::connect(addr).await;
                let stream = stream.map_err(|_| anyhow::anyhow!(unreachable()))?;
                let name = addr
                    .rsplit_once(':')
                    .map_or(addr.as_str(), |(name, _)| name);
                let stream = tls.connect(name, stream).await.with_context(|| {
                    format!(
                        "error during connect to {}: TLS handshake failed",
                        self.host
                    )
                })?;
                Box::new(stream)
            }
            Endpoint::Ssh(remote) => Box::new(remote.connect()?),
        })
    }

    /// Sends a request and returns the answer if it is a good one.
    pub(crate) async fn send(
        &self,
        method: Method,
        target: Target,
        payload: impl Into<Payload>,
    ) -> Result<Response<Incoming>> {
        self.exchange(method, target, payload.into(), false).await
    }

    async fn exchange(
        &self,
        method: Method,
        target: Target,
        payload: Payload,
        upgrade: bool,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(&target.text)
            .header(HOST, "shoal");
        if let Some(auth) = target.registry_auth {
            request = request.header("X-Registry-Auth", auth);
        }
        if let Some(config) = target.registry_config {
            request = request.header("X-Registry-Config", config);
        }
        if upgrade {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, "tcp");
        }
        let body: Body = match payload {
            Payload::Empty => full(Bytes::new()),
            Payload::Json(value) => {
                request = request.header(CONTENT_TYPE, "application/json");
                full(value.to_string().into())
            }
            Payload::Tar(stream) => {
                request = request.header(CONTENT_TYPE, "application/x-tar");
                BoxBody::new(StreamBody::new(stream.map(|chunk| chunk.map(Frame::data))))
            }
        };
        let request = request.body(body).context("cannot form the request")?;
        let stream = self.connect().await?;
        let response = request_over(TokioIo::new(stream), request)
            .await
            .with_context(|| format!("error during connect to {}", self.host))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = collect(response).await.unwrap_or_default();
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| {
                let text = String::from_utf8_lossy(&bytes);
                match text.trim() {
                    "" => status.to_string(),
                    text => text.to_owned(),
                }
            });
        Err(Refused { status, message }.into())
    }

    /// GETs a JSON document.
    pub(crate) async fn get(&self, target: Target) -> Result<Value> {
        document(self.send(Method::GET, target, Payload::Empty).await?).await
    }

    /// POSTs and returns the JSON document of the answer, null if it has none.
    pub(crate) async fn post(&self, target: Target, payload: impl Into<Payload>) -> Result<Value> {
        document(self.send(Method::POST, target, payload).await?).await
    }

    /// DELETEs and returns the JSON document of the answer, null if it has none.
    pub(crate) async fn delete(&self, target: Target) -> Result<Value> {
        document(self.send(Method::DELETE, target, Payload::Empty).await?).await
    }

    /// Takes over the connection after the request: what is written goes to the process, what is read comes from it.
    pub(crate) async fn hijack(
        &self,
        target: Target,
        payload: impl Into<Payload>,
    ) -> Result<TokioIo<Upgraded>> {
        let response = self
            .exchange(Method::POST, target, payload.into(), true)
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            bail!("unable to upgrade to tcp, received {}", response.status());
        }
        let stream = hyper::upgrade::on(response)
            .await
            .context("the daemon did not hand over the connection")?;
        Ok(TokioIo::new(stream))
    }
}

async fn relay(
    stream: impl AsyncRead + AsyncWrite,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> Result<()> {
    let (mut from_daemon, mut to_daemon) = tokio::io::split(stream);
    let there = async {
        tokio::io::copy(&mut input, &mut to_daemon).await?;
        to_daemon.shutdown().await?;
        // The daemon may still have something to say.
        std::future::pending::<std::io::Result<()>>().await
    };
    let back = async {
        tokio::io::copy(&mut from_daemon, &mut output).await?;
        output.flush().await
    };
    tokio::select! {
        done = there => done,
        done = back => done,
    }
    .context("the connection to the daemon broke off")
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

async fn request_over<S>(stream: S, request: Request<Body>) -> hyper::Result<Response<Incoming>>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await?;
    // Its end is seen by whoever reads the answer.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await
}

async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(response.into_body(), DOCUMENT_BYTES_MAX);
    match limited.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => bail!("the daemon's answer broke off: {error}"),
    }
}

/// Reads the JSON document of an answer; null if it has none.
pub(crate) async fn document(response: Response<Incoming>) -> Result<Value> {
    let bytes = collect(response).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).context("the daemon's answer is not JSON")
}

/// The bytes of an answer, as they come.
pub(crate) fn chunks(response: Response<Incoming>) -> impl Stream<Item = Result<Bytes>> + Unpin {
    http_body_util::BodyDataStream::new(response.into_body())
        .map(|chunk| chunk.context("the daemon's answer broke off"))
}

/// The JSON values of an answer, as they come.
pub(crate) fn values(response: Response<Incoming>) -> impl Stream<Item = Result<Value>> + Unpin {
    Box::pin(futures_util::stream::try_unfold(
        (chunks(response), Vec::new()),
        |(mut chunks, mut pending)| async move {
            loop {
                let mut stream = serde_json::Deserializer::from_slice(&pending).into_iter();
                match stream.next() {
                    Some(Ok(value)) => {
                        let end = stream.byte_offset();
                        pending.drain(..end);
                        return Ok(Some((value, (chunks, pending))));
                    }
                    Some(Err(error)) if !error.is_eof() => {
                        return Err(error).context("the daemon's answer is not JSON");
                    }
                    _ => {}
                }
                match chunks.next().await {
                    Some(chunk) => pending.extend_from_slice(&chunk?),
                    None if pending.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                    None => bail!("the daemon's answer broke off"),
                }
            }
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_escapes_what_users_say() {
        let target = Target::new("/containers/{}/json", &["a b?c"])
            .flag("all", true)
            .flag("size", false)
            .maybe("limit", Some(3))
            .filters(&["label=a=b".to_owned(), "label=c".to_owned()])
            .unwrap();
        assert_eq!(
            target.text,
            "/v1.51/containers/a%20b%3Fc/json?all=1&limit=3&filters=%7B%22label%22:%7B%22a%3Db%22:true,%22c%22:true%7D%7D"
        );
    }

    #[test]
    fn a_host_that_is_no_url_is_refused() {
        assert!(Client::new("/run/shoal.sock", None).is_err());
        assert!(Client::new("unix:///run/shoal.sock", None).is_ok());
        let at = |host: &str| match Client::new(host, None).unwrap().endpoint {
            Endpoint::Tcp(addr) => addr,
            _ => unreachable!("TCP"),
        };
        assert_eq!(at("tcp://127.0.0.1:99/"), "127.0.0.1:99");
        assert_eq!(at("tcp://[::1]"), "[::1]:2375");
    }
}
