//! The cluster itself: its beginning, its settings, its join tokens.

use std::net::IpAddr;

use shoal_api::{
    ClusterId, NodeId,
    id::base36,
    object::{
        Batch, Change, Cluster, Expect, ManagerInfo, Network, Node, NodeDescription, NodeState,
        NodeStatus, Object, ObjectKey,
    },
    spec::{
        Annotations, Availability, ClusterSpec, Driver, Labels, NetworkSpec, NodeRole, NodeSpec,
    },
};

use super::{Outcome, decision, same_version, unborn, update};
use crate::core::{
    reconcile::Ctx,
    state::{LogIndex, State},
    validate::{self, Refusal},
};

/// Raft id of the first manager.
pub(super) const FIRST_RAFT_ID: u64 = 1;

/// What a new cluster begins with.
#[derive(Clone)]
pub struct Bootstrap {
    /// Identity of the cluster, as in the certificates.
    pub cluster: ClusterId,
    /// Settings.
    pub spec: ClusterSpec,
    /// PEM of the root certificate.
    pub root_ca_cert: String,
    /// PEM of its key.
    pub root_ca_key: String,
    /// Identity of the first node.
    pub node: NodeId,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// What it says of itself.
    pub description: NodeDescription,
    /// Address that it advertises.
    pub addr: IpAddr,
    /// `host:port` of its gRPC server.
    pub manager_addr: String,
}

/// Makes the cluster, its first node and the ingress network.
///
/// # Errors
/// Settings that make no sense.
pub fn bootstrap(cx: &mut Ctx<'_>, new: Bootstrap) -> Result<Batch, Refusal> {
    validate::cluster(&new.spec)?;
    let cluster = Cluster {
        id: new.cluster,
        meta: unborn(),
        spec: new.spec,
        root_ca_cert: new.root_ca_cert,
        root_ca_key: new.root_ca_key,
        worker_token: token(cx),
        manager_token: token(cx),
        blacklisted: Default::default(),
        last_raft_id: FIRST_RAFT_ID,
    };
    let node = Node {
        id: new.node,
        meta: unborn(),
        spec: NodeSpec {
            annotations: Annotations::default(),
            role: NodeRole::Manager,
            availability: new.availability,
        },
        description: new.description,
        // Its agent says the rest as soon as it has a session.
        status: NodeStatus {
            state: NodeState::Unknown,
            message: String::new(),
            addr: Some(new.addr),
            since: cx.now,
        },
        role: NodeRole::Manager,
        manager: Some(ManagerInfo {
            raft_id: FIRST_RAFT_ID,
            addr: new.manager_addr,
        }),
        availability_since: cx.now,
    };
    let ingress = Network {
        id: cx.ids.next(),
        meta: unborn(),
        spec: ingress_spec(),
        allocated: None,
    };
    let put = |object| Change::Put {
        object: Box::new(object),
        expect: Expect::Absent,
    };
    let changes = vec![
        put(Object::Cluster(cluster)),
        put(Object::Node(node)),
        put(Object::Network(ingress)),
    ];
    Ok(decision(cx, ObjectKey::Cluster, changes).batch)
}

/// The ingress network that every cluster begins with.
fn ingress_spec() -> NetworkSpec {
    NetworkSpec {
        annotations: Annotations {
            name: "ingress".to_owned(),
            labels: Labels::new(),
        },
        driver: Driver {
            name: "overlay".to_owned(),
            options: Default::default(),
        },
        ingress: true,
        // Published ports answer over both families; a node that lacks IPv6 leaves it out.
        ipv6: true,
        ..NetworkSpec::default()
    }
}

/// Changes the cluster's settings.
///
/// # Errors
/// Settings that make no sense or cannot change any more; `update out of sequence`.
pub fn update_cluster(
    state: &State,
    cx: &mut Ctx<'_>,
    version: LogIndex,
    spec: ClusterSpec,
) -> Outcome {
    let old = state
        .cluster()
        .ok_or_else(|| Refusal::not_found("cluster", "default"))?;
    validate::cluster(&spec)?;
    if spec.data_path_port != old.spec.data_path_port {
        return Err(Refusal::invalid("the data path port cannot be changed"));
    }
    same_version(&old.meta, version)?;
    let mut cluster = old.as_ref().clone();
    cluster.spec = spec;
    Ok(update(cx, Object::Cluster(cluster)))
}

/// Makes join tokens invalid and new ones.
///
/// # Errors
/// There is no cluster.
pub fn rotate_tokens(state: &State, cx: &mut Ctx<'_>, worker: bool, manager: bool) -> Outcome {
    let old = state
        .cluster()
        .ok_or_else(|| Refusal::not_found("cluster", "default"))?;
    let mut cluster = old.as_ref().clone();
    if worker {
        cluster.worker_token = token(cx);
    }
    if manager {
        cluster.manager_token = token(cx);
    }
    Ok(update(cx, Object::Cluster(cluster)))
}

/// The secret part of a join token.
fn token(cx: &mut Ctx<'_>) -> String {
    base36(cx.ids.next_bits())
}
