//! Tasks of which nobody will hear again: those of removed nodes at once, those of lost ones after a day.

use std::{collections::BTreeSet, time::Duration};

use shoal_api::{
    Actor, NodeId, TaskState,
    object::{Object, Task},
};

use super::view::is_lost;
use crate::core::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

/// How long the tasks of a lost node may still be running (SwarmKit's `defaultNodeDownPeriod`).
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// Declares tasks orphaned.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orphans;

impl Reconciler for Orphans {
    type Key = NodeId;
    const ACTOR: Actor = Actor::Dispatcher;

    fn affected(&self, _: &State, event: &Event) -> Vec<NodeId> {
        match event {
            Event::Node(delta) if delta.changed(|node| node.status.state) => {
                vec![delta.any().id.clone()]
            }
            _ => Vec::new(),
        }
    }

    fn all(&self, state: &State) -> Vec<NodeId> {
        let of_tasks = state.tasks().filter_map(|task| task.node.clone());
        let nodes: BTreeSet<_> = state
            .nodes()
            .map(|node| node.id.clone())
            .chain(of_tasks)
            .collect();
        nodes.into_iter().collect()
    }

    fn reconcile(&self, state: &State, id: &NodeId, cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        match state.node(id) {
            None => {}
            Some(node) if is_lost(node) => {
                let at = node.status.since + ORPHAN_AFTER;
                if at > cx.now {
                    plan.wake(at);
                    return plan;
                }
            }
            Some(_) => return plan,
        }
        for task in state.tasks_of_node(id).filter(|task| is_live(task)) {
            let mut task = task.as_ref().clone();
            task.status.state = TaskState::Orphaned;
            task.status.at = cx.now;
            task.status.message = "orphaned".into();
            plan.update(Object::Task(task));
        }
        plan
    }
}

fn is_live(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}
