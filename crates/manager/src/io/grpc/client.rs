//! Connections out: to other managers, and from a node that wants to join.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use shoal_api::{
    spec::Availability,
    wire::{IssueNodeCertificateRequest, node_ca_client::NodeCaClient},
};
use shoal_ca::{
    CaError, JoinToken, NodeIdentity, NodeKey, Role, RootCertificate, client_config, fetch_root,
    name_clock, server_name,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::gathered::Gathered;
use crate::core::consensus::RaftId;

/// How long a manager may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take that needs a write to the log.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is asked for a sign of life this often, and given up when none comes within the same time.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Managers that are believed in a row when they say that another one leads.
const REDIRECTS_MAX: usize = 4;
/// Where a manager says who leads, in the metadata of its refusal.
const LEADER: &str = "shoal-leader";
/// How the refusal of a removed manager's messages begins.
const REMOVED_MEMBER: &str = "removed from the cluster: raft member ";

/// A connection to the manager at `address` (`host:port`), made with the first call and made again when it breaks.
pub fn dial(address: &str, tls: Arc<ClientConfig>) -> Channel {
    let (endpoint, connector) = (endpoint(), Connector::new(address, tls));
    endpoint.connect_with_connector_lazy(service_fn(move |_| connector.clone().connect()))
}

/// The same, made now: when this fails nothing was said yet.
pub(crate) async fn connect(
    address: &str,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = Connector::new(address, tls);
    endpoint()
        .connect_with_connector(service_fn(move |_| connector.clone().connect()))
        .await
}

fn endpoint() -> Endpoint {
    // The name is not looked at: what a manager is says its certificate, where it is says the connector.
    Endpoint::from_static("http://manager")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
}

#[derive(Clone)]
struct Connector {
    address: String,
    tls: TlsConnector,
}

impl Connector {
    fn new(address: &str, tls: Arc<ClientConfig>) -> Self {
        Self {
            address: address.to_owned(),
            tls: TlsConnector::from(tls),
        }
    }

    async fn connect(self) -> io::Result<TokioIo<Gathered<TlsStream<TcpStream>>>> {
        // With the handshake: a manager that stands still takes connections all the same.
        let connected = async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let connected = self.tls.connect(server_name(Role::Manager), stream).await;
            connected.map_err(name_clock)
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connected).await??;
        Ok(TokioIo::new(Gathered::new(stream)))
    }
}

/// The refusal of a manager that does not lead; it says who does, so that the caller can go there.
pub(crate) fn not_leader(leader: Option<&str>) -> Status {
    let mut status = Status::unavailable("this manager is not the leader");
    if let Some(address) = leader.and_then(|leader| MetadataValue::try_from(leader).ok()) {
        status.metadata_mut().insert(LEADER, address);
    }
    status
}

/// Whether a refusal is [`not_leader`].
pub(crate) fn is_not_leader(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message() == "this manager is not the leader"
}

/// Whether a call failed before anything was said: there was no connection.
pub(crate) fn was_not_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The answer of a leader that is one no more: what it proposed may or may not come to pass.
pub(crate) fn lost() -> Status {
    Status::aborted("the leader changed before the write was decided")
}

/// Whether nobody knows what became of a call: the answer is [`lost`], or there is none because the connection broke.
pub(crate) fn is_lost(status: &Status) -> bool {
    // What a manager says has no cause here.
    status.code() == Code::Aborted || std::error::Error::source(status).is_some()
}

/// The refusal of messages from a manager that was taken out of the group.
pub(crate) fn removed(from: RaftId) -> Status {
    Status::permission_denied(format!("{REMOVED_MEMBER}{from}"))
}

/// Whether a refusal is [`removed`].
pub(crate) fn is_removed(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.message().starts_with(REMOVED_MEMBER)
}

/// Makes a call at the manager at `address`, and where it says that the leader is.
pub async fn call_leader<T, F>(
    address: &str,
    tls: &Arc<ClientConfig>,
    mut call: impl FnMut(Channel) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut address = address.to_owned();
    for _ in 0..REDIRECTS_MAX {
        let answer =
            tokio::time::timeout(CALL_TIMEOUT, call(dial(&address, Arc::clone(tls)))).await;
        let refused = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(refused)) => refused,
            Err(_) => {
                return Err(Status::deadline_exceeded(format!(
                    "{address} did not answer in time"
                )));
            }
        };
        let leader = refused
            .metadata()
            .get(LEADER)
            .and_then(|leader| leader.to_str().ok());
        match leader.filter(|leader| *leader != address) {
            Some(leader) => address = leader.to_owned(),
            None => return Err(refused),
        }
    }
    Err(Status::unavailable(
        "the managers do not agree on who leads",
    ))
}

/// Why a node was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is no good, or the manager is not of the token's cluster, or what it gave is unusable.
    #[error(transparent)]
    Identity(#[from] CaError),
    /// The manager refused, in its words.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
}

/// Gets a certificate from the cluster that a token is for: role and node id are the manager's choice.
pub async fn join_cluster(
    remote: &str,
    token: &str,
    hostname: &str,
    availability: Availability,
) -> Result<NodeIdentity, JoinError> {
    let root = fetch_root(remote, &JoinToken::parse(token).map_err(CaError::from)?).await?;
    let tls = client_config(&root, None)?;
    let key = NodeKey::generate()?;
    let request = IssueNodeCertificateRequest {
        csr_pem: key.request_pem()?,
        token: token.trim().to_owned(),
        availability: match availability {
            Availability::Active => 0,
            Availability::Pause => 1,
            Availability::Drain => 2,
        },
        hostname: hostname.to_owned(),
    };
    issue(remote, &tls, root, key, request).await
}

/// Gets the next certificate of a node, with a new key and the role that it now has.
pub async fn renew_identity(
    managers: &[String],
    identity: &NodeIdentity,
) -> Result<NodeIdentity, JoinError> {
    let tls = client_config(identity.root(), Some(identity))?;
    let mut refused = JoinError::Refused(Box::new(Status::unavailable("no manager is known")));
    for manager in managers {
        let key = NodeKey::generate()?;
        let request = IssueNodeCertificateRequest {
            csr_pem: key.request_pem()?,
            ..Default::default()
        };
        match issue(manager, &tls, identity.root().clone(), key, request).await {
            Ok(identity) => return Ok(identity),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

async fn issue(
    remote: &str,
    tls: &Arc<ClientConfig>,
    root: RootCertificate,
    key: NodeKey,
    request: IssueNodeCertificateRequest,
) -> Result<NodeIdentity, JoinError> {
    let answer = call_leader(remote, tls, |channel| {
        let request = request.clone();
        async move {
            NodeCaClient::new(channel)
                .issue_node_certificate(Request::new(request))
                .await
        }
    })
    .await
    .map_err(|status| JoinError::Refused(Box::new(status)))?;
    Ok(NodeIdentity::new(root, answer.certificate_pem, key.pem())?)
}
