//! How the replicated state follows the membership, and the membership the roles that users ask for.

use shoal_api::{
    Timestamp,
    object::{Batch, Change, Expect, ManagerInfo, Node, Object},
    spec::NodeRole,
};

use super::{Members, RaftId};
use crate::core::state::State;

/// What the leader has to do about roles, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoleWork {
    /// What the state must learn; empty when it is up to date.
    pub batch: Option<Batch>,
    /// Members that must leave: demoted, or their node was removed.
    pub leaving: Vec<RaftId>,
}

/// Compares members, roles and what users want.
///
/// A promoted node may get a manager's certificate at once; a demoted one loses its role when it is out of the group.
pub fn role_work(state: &State, members: &Members, now: Timestamp) -> RoleWork {
    let mut work = RoleWork::default();
    let mut released = Vec::new();
    let mut changed = Vec::new();
    for node in state.nodes() {
        let raft_id = members.id_of(&node.id);
        let manager = raft_id.and_then(|raft_id| {
            let member = members.get(raft_id)?;
            Some(ManagerInfo {
                raft_id,
                addr: member.address.clone(),
            })
        });
        let role = match (node.spec.role, raft_id) {
            (NodeRole::Manager, _) => NodeRole::Manager,
            (NodeRole::Worker, None) => NodeRole::Worker,
            (NodeRole::Worker, Some(raft_id)) => {
                work.leaving.push(raft_id);
                node.role
            }
        };
        if role != node.role || manager != node.manager {
            let gives_up_id = node.manager.is_some();
            let put = put(Object::Node(Node {
                role,
                manager,
                ..node.as_ref().clone()
            }));
            if gives_up_id {
                released.push(put)
            } else {
                changed.push(put)
            }
        }
    }
    work.leaving.extend(
        members
            .iter()
            .filter(|(_, member)| state.node(&member.node_id).is_none())
            .map(|(id, _)| id),
    );
    if let Some(cluster) = state.cluster()
        && cluster.last_raft_id + 1 < members.next_id()
    {
        let mut cluster = cluster.as_ref().clone();
        cluster.last_raft_id = members.next_id() - 1;
        changed.push(put(Object::Cluster(cluster)));
    }
    // An id is given up before another node takes it.
    let changes = [released, changed].concat();
    if !changes.is_empty() {
        work.batch = Some(Batch {
            actor: shoal_api::Actor::Dispatcher,
            at: now,
            changes,
            wish: None,
        });
    }
    work
}

fn put(object: Object) -> Change {
    let expect = Expect::Version(object.meta().version);
    Change::Put {
        object: Box::new(object),
        expect,
    }
}
