//! Nodes: what users may say of them, and their removal.

use std::time::Duration;

use shoal_api::{
    NodeId,
    object::{Change, Expect, NodeState, Object, ObjectKey},
    spec::{NodeRole, NodeSpec},
};

use super::{Outcome, decision, same_version, update};
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
    let key = ObjectKey::Node(id.clone());
    let delete = Change::Delete {
        key: key.clone(),
        expect: Expect::Version(node.meta.version),
    };
    let mut changes = vec![delete];
    if let Some(cluster) = state.cluster() {
        let mut cluster = cluster.as_ref().clone();
        cluster.blacklisted.retain(|_, until| *until > cx.now);
        let until = cx.now + cluster.spec.cert_expiry + EXPIRED_CERT_GRACE;
        cluster.blacklisted.insert(id.clone(), until);
        let expect = Expect::Version(cluster.meta.version);
        changes.push(Change::Put {
            object: Box::new(Object::Cluster(cluster)),
            expect,
        });
    }
    Ok(decision(cx, key, changes))
}
