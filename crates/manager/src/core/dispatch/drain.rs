//! The lossless removal rule: a task gets its stop signal only after every node has stopped sending it new traffic.
//!
//! When a task shall end, the views drop it from names and virtual addresses first. Once all nodes of its networks have
//! carried that out, or after a bound, it is `drained`; only then is its agent told to stop it.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use shoal_api::{
    Actor, NodeId, TaskId, TaskState, Timestamp,
    object::{NodeState, Object, Task},
    planted::{Bug, planted},
};

use super::view::{interested_nodes, is_lost};
use crate::core::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

/// Time after which a task is stopped even if some node that is there has not confirmed. Such a node sends it connections
/// that nobody answers, so this is longer than any stall of a busy machine; whoever is silent altogether is not waited for.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Marks tasks as drained.
#[derive(Debug, Default)]
pub struct Drain {
    /// For each node the last state whose view it has carried out, see [`super::Views::acked`]. An observation of this
    /// leader, like its clock; after it has grown, what waits is to be looked at again.
    pub acked: BTreeMap<NodeId, u64>,
    /// Since when this leader knows that a task shall end. Not when that was decided: until it is applied no node is told
    /// of it, which takes long where a disk is slow, and another leader's clock may have been behind ours.
    seen: RefCell<BTreeMap<TaskId, Timestamp>>,
}

impl Reconciler for Drain {
    type Key = TaskId;
    const ACTOR: Actor = Actor::Dispatcher;

    fn affected(&self, state: &State, event: &Event) -> Vec<TaskId> {
        match event {
            Event::Task(delta) => {
                let is_pending = |task: &&std::sync::Arc<Task>| is_pending(task);
                let old = delta.old.as_ref().filter(is_pending);
                let task = delta.new.as_ref().filter(is_pending).or(old);
                task.map(|task| task.id.clone()).into_iter().collect()
            }
            Event::Node(delta) if delta.changed(|node| node.status.state) => self.all(state),
            _ => Vec::new(),
        }
    }

    fn all(&self, state: &State) -> Vec<TaskId> {
        state
            .tasks()
            .filter(|task| is_pending(task))
            .map(|task| task.id.clone())
            .collect()
    }

    fn reconcile(&self, state: &State, id: &TaskId, cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut seen = self.seen.borrow_mut();
        let Some(task) = state.task(id).filter(|task| is_pending(task)) else {
            seen.remove(id);
            return plan;
        };
        let since = *seen.entry(id.clone()).or_insert(cx.now);
        let deadline = since + DRAIN_MAX;
        if deadline <= cx.now || self.is_drained(state, task) {
            let mut task = task.as_ref().clone();
            task.drained = true;
            plan.update(Object::Task(task));
        } else {
            plan.wake(deadline);
        }
        plan
    }
}

impl Drain {
    /// Whether no node sends a task new traffic.
    fn is_drained(&self, state: &State, task: &Task) -> bool {
        let node = task.node.as_ref().and_then(|node| state.node(node));
        if planted(Bug::DrainImpatient) {
            return true;
        }
        let never_served = task.status.state < TaskState::Running || task.networks.is_empty();
        if never_served || node.is_none_or(|node| is_lost(node)) {
            return true;
        }
        let ready = |id: &NodeId| {
            state
                .node(id)
                .is_some_and(|node| node.status.state == NodeState::Ready)
        };
        let acked = |id: &NodeId| {
            self.acked
                .get(id)
                .is_some_and(|version| *version >= task.meta.version)
        };
        interested_nodes(state, task)
            .into_iter()
            .filter(|id| ready(id))
            .all(|id| acked(&id))
    }
}

/// Whether a task shall end and its agent waits for leave to stop it.
fn is_pending(task: &Task) -> bool {
    task.desired_state >= TaskState::Shutdown
        && !task.drained
        && (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}
