//! The cluster itself: its beginning, its settings, its join tokens.

use std::net::IpAddr;

use shoal_api::{
    Actor, ClusterId, NodeId,
    id::base36,
    object::{
        Batch, Change, Cluster, Expect, ManagerInfo, Network, Node, NodeDescription, NodeState,
        NodeStatus, Object, ObjectKey, RootRotation,
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
    let unlock_key = if new.spec.autolock {
        fresh_key(cx)
    } else {
        Vec::new()
    };
    let cluster = Cluster {
        id: new.cluster,
        meta: unborn(),
        spec: new.spec,
        root_ca_cert: new.root_ca_cert,
        root_ca_key: new.root_ca_key,
        worker_token: token(cx),
        manager_token: token(cx),
        blacklisted: Default::default(),
        departed: Default::default(),
        last_raft_id: FIRST_RAFT_ID,
        unlock_key,
        root_rotation: None,
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
    match (spec.autolock, cluster.unlock_key.is_empty()) {
        (true, true) => cluster.unlock_key = fresh_key(cx),
        (false, false) => cluster.unlock_key = Vec::new(),
        _ => {}
    }
    cluster.spec = spec;
    Ok(update(cx, Object::Cluster(cluster)))
}

/// Begins to replace the root certificate. A rotation that is under way is given up for this one.
///
/// # Errors
/// As [`update_cluster`]'s.
pub fn rotate_root(
    state: &State,
    cx: &mut Ctx<'_>,
    version: LogIndex,
    spec: ClusterSpec,
    rotation: RootRotation,
) -> Outcome {
    let mut decision = update_cluster(state, cx, version, spec)?;
    for change in &mut decision.batch.changes {
        if let Change::Put { object, .. } = change
            && let Object::Cluster(cluster) = object.as_mut()
        {
            cluster.root_rotation = Some(rotation.clone());
        }
    }
    Ok(decision)
}

/// Makes the new root the only one, when every node has a certificate from it: `issuer` is its name in
/// [`NodeDescription::certificate_issuer`]. Join tokens name the root, so there are new ones. `None` until then.
///
/// As in SwarmKit a node that is down holds this up until it is back or removed: it could not come back otherwise.
pub fn end_root_rotation(state: &State, cx: &mut Ctx<'_>, issuer: &str) -> Option<Batch> {
    let old = state.cluster()?;
    let rotation = old.root_rotation.as_ref()?;
    let has_moved = |node: &std::sync::Arc<Node>| node.description.certificate_issuer == issuer;
    if !state.nodes().all(has_moved) {
        return None;
    }
    let mut cluster = old.as_ref().clone();
    cluster.root_ca_cert.clone_from(&rotation.ca_cert);
    cluster.root_ca_key.clone_from(&rotation.ca_key);
    cluster.root_rotation = None;
    cluster.worker_token = token(cx);
    cluster.manager_token = token(cx);
    let mut batch = update(cx, Object::Cluster(cluster)).batch;
    batch.actor = Actor::Dispatcher;
    Some(batch)
}

/// Makes join tokens, or the unlock key, invalid and new ones.
///
/// # Errors
/// There is no cluster.
pub fn rotate_tokens(
    state: &State,
    cx: &mut Ctx<'_>,
    worker: bool,
    manager: bool,
    unlock_key: bool,
) -> Outcome {
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
    // Without autolock there is nothing to renew; SwarmKit lets that pass too.
    if unlock_key && cluster.spec.autolock {
        cluster.unlock_key = fresh_key(cx);
    }
    Ok(update(cx, Object::Cluster(cluster)))
}

/// A key of 32 bytes.
fn fresh_key(cx: &mut Ctx<'_>) -> Vec<u8> {
    let halves = [cx.ids.next_bits(), cx.ids.next_bits()];
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// The secret part of a join token.
fn token(cx: &mut Ctx<'_>) -> String {
    base36(cx.ids.next_bits())
}
