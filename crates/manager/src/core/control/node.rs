//! Nodes: what users may say of them, and their removal.

use std::time::Duration;

use shoal_api::{
    Actor, NodeId, Timestamp,
    object::{Batch, Change, Cluster, Expect, Node, NodeState, Object, ObjectKey},
    spec::{NodeRole, NodeSpec},
};

use super::{Decision, Outcome, same_version, update};
use crate::core::{
    reconcile::Ctx,
    state::{LogIndex, State},
    validate::{self, Refusal},
};

/// Time after the end of a certificate until its node's identity may be forgotten (SwarmKit's
/// `manager/controlapi/node.go`).
const EXPIRED_CERT_GRACE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Changes a node's availability, role or labels.
///
/// # Errors
/// The last manager is to be demoted; `update out of sequence`.
pub fn update_node(
    state: &State,
    cx: &mut Ctx<'_>,
    id: &NodeId,
    version: LogIndex,
    spec: NodeSpec,
) -> Outcome {
    let old = state
        .node(id)
        .ok_or_else(|| Refusal::not_found("node", id))?;
    validate::node(&spec)?;
    if old.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker {
        // Those that take part; after a recovery others may only be named as managers.
        let managers = state.nodes().filter(|node| node.manager.is_some());
        let (others, reachable) =
            managers
                .filter(|node| node.id != *id)
                .fold((0, 0), |(all, up), node| {
                    (
                        all + 1,
                        up + usize::from(node.status.state != NodeState::Down),
                    )
                });
        if others == 0 {
            return Err(Refusal::precondition(
                "attempting to demote the last manager of the swarm",
            ));
        }
        if old.manager.is_some() && reachable < others / 2 + 1 {
            return Err(Refusal::precondition(
                "can't remove member from the raft: this would result in a loss of quorum",
            ));
        }
    }
    same_version(&old.meta, version)?;
    let mut node = old.as_ref().clone();
    if node.spec.availability != spec.availability {
        node.availability_since = cx.now;
    }
    node.spec = spec;
    Ok(update(cx, Object::Node(node)))
}

/// Removes a node and shuts its identity out.
///
/// # Errors
/// It is a manager, or it is not down and `force` was not given.
pub fn remove_node(state: &State, cx: &mut Ctx<'_>, id: &NodeId, force: bool) -> Outcome {
    let node = state
        .node(id)
        .ok_or_else(|| Refusal::not_found("node", id))?;
    if node.manager.is_some() || node.spec.role == NodeRole::Manager {
        return Err(Refusal::precondition(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before \
             removal"
        )));
    }
    if !force && node.status.state == NodeState::Ready {
        return Err(Refusal::precondition(format!(
            "node {id} is not down and can't be removed"
        )));
    }
    Ok(forgotten(state, cx, Actor::User, node, None))
}

/// Forgets a node that leaves of itself, and remembers its name: a user who removes it afterwards has what he wants.
///
/// # Errors
/// It does not exist, or is a manager still.
pub fn node_leaves(state: &State, cx: &mut Ctx<'_>, id: &NodeId) -> Outcome {
    let node = state
        .node(id)
        .ok_or_else(|| Refusal::not_found("node", id))?;
    if node.manager.is_some() {
        return Err(Refusal::precondition(format!(
            "node {id} is a member of the raft cluster, which it leaves first"
        )));
    }
    let hostname = node.description.hostname.clone();
    Ok(forgotten(
        state,
        cx,
        Actor::Dispatcher,
        node,
        Some(hostname),
    ))
}

/// Deletes a node and shuts its identity out for as long as its certificate may be good.
fn forgotten(
    state: &State,
    cx: &Ctx<'_>,
    actor: Actor,
    node: &Node,
    departed: Option<String>,
) -> Decision {
    let key = ObjectKey::Node(node.id.clone());
    let delete = Change::Delete {
        key: key.clone(),
        expect: Expect::Version(node.meta.version),
    };
    let mut changes = vec![delete];
    if let Some(cluster) = state.cluster() {
        let mut cluster = cluster.as_ref().clone();
        shut_out(&mut cluster, cx.now, &node.id, departed);
        let expect = Expect::Version(cluster.meta.version);
        changes.push(Change::Put {
            object: Box::new(Object::Cluster(cluster)),
            expect,
        });
    }
    Decision {
        batch: Batch {
            actor,
            at: cx.now,
            changes,
            wish: None,
        },
        key,
    }
}

/// Shuts an identity out, and forgets those whose certificates have ended long ago.
pub(in crate::core) fn shut_out(
    cluster: &mut Cluster,
    now: Timestamp,
    id: &NodeId,
    departed: Option<String>,
) {
    cluster.blacklisted.retain(|_, until| *until > now);
    let until = now + cluster.spec.cert_expiry + EXPIRED_CERT_GRACE;
    cluster.blacklisted.insert(id.clone(), until);
    cluster
        .departed
        .extend(departed.map(|hostname| (id.clone(), hostname)));
    let blacklisted = &cluster.blacklisted;
    cluster
        .departed
        .retain(|id, _| blacklisted.contains_key(id));
}
