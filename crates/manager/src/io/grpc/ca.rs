//! Admission of nodes: the root for everyone, certificates for tokens and for nodes that renew.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use shoal_api::{
    NodeId, ObjectId, Timestamp,
    object::{Batch, Change, Cluster, Expect, Node, NodeDescription, NodeStatus, Object},
    spec::{Annotations, Availability, NodeRole, NodeSpec},
    wire::{
        GetRootCertificateRequest, GetRootCertificateResponse, IssueNodeCertificateRequest,
        IssueNodeCertificateResponse, node_ca_server::NodeCa,
    },
};
use shoal_ca::{CaError, JoinToken, Role, RootCa, RootCertificate, Subject, admitted_role};
use tonic::{Request, Response, Status, async_trait};

use super::server::Caller;
use crate::{
    core::attempts::Attempts,
    io::{manager::Desk, raft::ProposeError},
};

/// Longest hostname that is taken down (RFC 1035 §2.3.4).
const HOSTNAME_BYTES_MAX: usize = 255;

/// The `NodeCa` service.
pub(crate) struct CaService {
    desk: Desk,
    attempts: Mutex<Attempts>,
}

impl CaService {
    pub(crate) fn new(desk: Desk) -> Self {
        Self {
            desk,
            attempts: Mutex::default(),
        }
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl NodeCa for CaService {
    async fn get_root_certificate(
        &self,
        _: Request<GetRootCertificateRequest>,
    ) -> Result<Response<GetRootCertificateResponse>, Status> {
        let root_pem = self.desk.identity().root().pem().to_owned();
        Ok(Response::new(GetRootCertificateResponse { root_pem }))
    }

    async fn issue_node_certificate(
        &self,
        request: Request<IssueNodeCertificateRequest>,
    ) -> Result<Response<IssueNodeCertificateResponse>, Status> {
        self.desk.require_leader().await?;
        let caller = request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.identity.clone());
        let address = request
            .extensions()
            .get::<Caller>()
            .map(|caller| caller.address.ip().to_canonical());
        let request = request.into_inner();
        let state = self
            .desk
            .store
            .latest()
            .await
            .map_err(|error| self.desk.status_of(error))?;
        let cluster = state
            .cluster()
            .ok_or_else(|| Status::failed_precondition("there is no cluster yet"))?;
        check_clock(cluster.meta.created_at, Timestamp::now())?;
        let (node_id, role) = if request.token.is_empty() {
            let caller = caller.ok_or_else(|| {
                Status::unauthenticated("a join token or a certificate is needed")
            })?;
            let node = state.node(&caller.node_id).ok_or_else(|| {
                Status::permission_denied(format!(
                    "node {} is not part of the cluster",
                    caller.node_id
                ))
            })?;
            (node.id.clone(), node.role)
        } else {
            let now = Timestamp::now();
            if let Some(address) = address.filter(|address| !self.attempts().may_try(*address, now))
            {
                tracing::warn!(peer = %address, "too many failed attempts to join");
                return Err(Status::resource_exhausted(format!(
                    "too many failed attempts to join from {address}: wait a minute"
                )));
            }
            let admitted = admit(cluster, &request.token);
            if let (Err(refused), Some(address)) = (&admitted, address) {
                self.attempts().failed(address, now);
                tracing::warn!(peer = %address, "a join was refused: {}", refused.message());
            }
            let role = admitted?;
            (NodeId::random(), role)
        };
        let subject = Subject {
            node_id: node_id.clone(),
            role: certificate_role(role),
            cluster_id: cluster.id.clone(),
        };
        // Issued before the node is made, so that a bad request leaves nothing behind.
        let certificate_pem = authority(cluster)
            .and_then(|ca| {
                ca.issue(
                    &request.csr_pem,
                    &subject,
                    cluster.spec.cert_expiry,
                    SystemTime::now(),
                )
            })
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !request.token.is_empty() {
            let batch = birth(&node_id, role, &request)?;
            self.desk
                .store
                .propose(&batch)
                .await
                .map_err(|error| self.desk.status_of(error))?;
            tracing::info!(node.id = %node_id, node.role = ?role, node.hostname = request.hostname, "a node joined");
        }
        Ok(Response::new(IssueNodeCertificateResponse {
            node_id: node_id.to_string(),
            certificate_pem,
            root_pem: cluster.root_ca_cert.clone(),
            role: u32::from(role == NodeRole::Manager),
            cluster_id: cluster.id.to_string(),
        }))
    }
}

impl Desk {
    /// The refusal for a caller whose proposal came to nothing.
    pub(crate) fn status_of(&self, error: ProposeError) -> Status {
        match error {
            ProposeError::NotLeader { .. } => {
                super::client::not_leader(self.leader_address().as_deref())
            }
            ProposeError::Rejected(rejected) => Status::aborted(rejected.to_string()),
            ProposeError::Lost | ProposeError::Stopped => Status::unavailable(error.to_string()),
        }
    }
}

/// Who issues certificates now: while the root is replaced the new one, vouched for by the old one.
fn authority(cluster: &Cluster) -> Result<RootCa, CaError> {
    match &cluster.root_rotation {
        Some(rotation) => Ok(RootCa::from_pem(&rotation.ca_cert, &rotation.ca_key)?
            .with_intermediate(&rotation.cross_signed)),
        None => RootCa::from_pem(&cluster.root_ca_cert, &cluster.root_ca_key),
    }
}

/// How far the clocks of two managers may lie apart without a word; as far back as certificates are dated.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(3_600);

/// Refuses to issue by a clock that cannot be right, since the cluster was `made` after it: nobody else would take such a
/// certificate for valid.
fn check_clock(made: Timestamp, now: Timestamp) -> Result<(), Status> {
    if now + CLOCKS_APART_MAX >= made {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the clock of the leading manager says {now}, and the cluster was made at {made}: set that clock right"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_whose_clock_is_before_the_cluster_issues_nothing() {
        let made = Timestamp::now();
        check_clock(made, made).unwrap();
        check_clock(made, made + Duration::from_secs(1 << 30)).unwrap();
        let year_ago = Timestamp(made.0 - 365 * 86_400 * 1_000_000_000);
        let refused = check_clock(made, year_ago).unwrap_err();
        let said = refused.message();
        assert!(
            said.contains(&made.to_string()) && said.ends_with("set that clock right"),
            "{said}"
        );
    }
}

fn admit(cluster: &Cluster, token: &str) -> Result<NodeRole, Status> {
    let refused = |error: shoal_ca::TokenError| Status::permission_denied(error.to_string());
    let root = RootCertificate::from_pem(&cluster.root_ca_cert)
        .map_err(|error| Status::internal(error.to_string()))?;
    let worker = JoinToken::with_secret(root.der(), &cluster.worker_token).map_err(refused)?;
    let manager = JoinToken::with_secret(root.der(), &cluster.manager_token).map_err(refused)?;
    match admitted_role(token, &worker, &manager).map_err(refused)? {
        Role::Worker => Ok(NodeRole::Worker),
        Role::Manager => Ok(NodeRole::Manager),
    }
}

/// The batch that makes a node.
fn birth(
    id: &NodeId,
    role: NodeRole,
    request: &IssueNodeCertificateRequest,
) -> Result<Batch, Status> {
    if request.hostname.len() > HOSTNAME_BYTES_MAX {
        return Err(Status::invalid_argument(
            "the hostname is longer than 255 bytes",
        ));
    }
    let now = Timestamp::now();
    let node = Node {
        id: id.clone(),
        meta: Default::default(),
        spec: NodeSpec {
            annotations: Annotations::default(),
            role,
            availability: match request.availability {
                0 => Availability::Active,
                1 => Availability::Pause,
                2 => Availability::Drain,
                other => {
                    return Err(Status::invalid_argument(format!(
                        "availability {other} is not known"
                    )));
                }
            },
        },
        description: NodeDescription {
            hostname: request.hostname.clone(),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            since: now,
            ..NodeStatus::default()
        },
        role,
        manager: None,
        availability_since: now,
    };
    let change = Change::Put {
        object: Box::new(Object::Node(node)),
        expect: Expect::Absent,
    };
    Ok(Batch {
        actor: shoal_api::Actor::Dispatcher,
        at: now,
        changes: vec![change],
        wish: None,
    })
}

/// A node's role as certificates name it.
pub(crate) fn certificate_role(role: NodeRole) -> Role {
    match role {
        NodeRole::Worker => Role::Worker,
        NodeRole::Manager => Role::Manager,
    }
}
