//! Which node runs a task.
//!
//! A pass looks at all pending tasks at once. What the nodes carry is counted once; tasks of one service and spec version
//! need the same, so the filters run once per node and group, and each placement afterwards costs one step in an ordered
//! set. A task that fits nowhere stays pending and says why, in SwarmKit's words.

pub mod constraint;
mod filter;
mod nodes;
mod rank;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use shoal_api::{
    Actor, ServiceId, TaskState,
    object::{Object, Task},
};

use super::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

pub use filter::{Filter, TaskNeeds};
pub use nodes::NodeInfo;

use nodes::Nodes;

/// Tasks that one plan places at most; the rest follows in the next batch.
const TASKS_PER_PLAN_MAX: usize = 2_000;

/// Gives pending tasks a node.
#[derive(Debug, Default, Clone, Copy)]
pub struct Scheduler;

impl Reconciler for Scheduler {
    /// There is one thing to look at: everything that waits.
    type Key = ();
    const ACTOR: Actor = Actor::Scheduler;

    fn affected(&self, state: &State, event: &Event) -> Vec<()> {
        let concerns = match event {
            Event::Task(delta) => match (&delta.old, &delta.new) {
                (_, Some(task)) if task.status.state == TaskState::Pending => {
                    delta.changed(|task| (task.status.state, task.desired_state))
                }
                // A task that ends or goes may make room.
                (Some(old), new) => {
                    !old.status.state.is_terminal()
                        && old.node.is_some()
                        && new.as_ref().is_none_or(|new| {
                            new.status.state.is_terminal() || new.desired_state != old.desired_state
                        })
                        && something_waits(state)
                }
                (None, _) => false,
            },
            Event::Node(delta) => {
                let facts = |node: &shoal_api::object::Node| {
                    let description = (node.description.clone(), node.status.addr);
                    (node.status.state, node.spec.clone(), node.role, description)
                };
                delta.changed(facts) && something_waits(state)
            }
            _ => false,
        };
        if concerns { vec![()] } else { Vec::new() }
    }

    fn all(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn reconcile(&self, state: &State, (): &(), cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        let waiting = state.tasks_waiting(TaskState::Pending);
        let waiting = waiting.filter(|task| task.desired_state <= TaskState::Complete);
        let (bound, free): (Vec<_>, Vec<_>) = waiting
            .take(TASKS_PER_PLAN_MAX)
            .cloned()
            .partition(|task| task.node.is_some());
        if bound.is_empty() && free.is_empty() {
            return plan;
        }
        let mut nodes = Nodes::of(state);
        for task in bound {
            confirm(&mut nodes, &task, cx, &mut plan);
        }
        let mut groups: BTreeMap<(ServiceId, u64), Vec<Arc<Task>>> = BTreeMap::new();
        for task in free {
            groups
                .entry((task.service.clone(), task.spec_version))
                .or_default()
                .push(task);
        }
        for tasks in groups.into_values() {
            place(&mut nodes, &tasks, cx, &mut plan);
        }
        plan
    }
}

fn something_waits(state: &State) -> bool {
    state.tasks_waiting(TaskState::Pending).next().is_some()
}

/// Checks the node that a global service's task was made for.
fn confirm(nodes: &mut Nodes<'_>, task: &Arc<Task>, cx: &Ctx<'_>, plan: &mut Plan) {
    let needs = TaskNeeds::of(task);
    let chosen = task.node.as_ref().and_then(|id| nodes.get(id));
    let verdict = match chosen {
        None => Err("no suitable node".to_owned()),
        Some(node) => filter::first_failing(&needs, node).map_or(Ok(()), |filter| {
            Err(format!("no suitable node ({})", filter.explain(1)))
        }),
    };
    match verdict {
        Ok(()) => {
            nodes.add(task, task.node.as_ref().expect("checked above"));
            plan.update(assigned(
                task,
                "scheduler confirmed task can run on preassigned node",
                cx,
            ));
        }
        Err(why) => explain(task, &why, cx, plan),
    }
}

/// Places tasks that need the same.
fn place(nodes: &mut Nodes<'_>, tasks: &[Arc<Task>], cx: &Ctx<'_>, plan: &mut Plan) {
    let needs = TaskNeeds::of(&tasks[0]);
    let mut ranking = rank::Ranking::of(nodes, &needs, cx.now);
    for task in tasks {
        match ranking.next(nodes, &needs) {
            Some(node) => {
                nodes.add(task, &node);
                ranking.placed(nodes, &needs, &node);
                let mut task = task.as_ref().clone();
                task.node = Some(node);
                plan.update(assigned(&task, "scheduler assigned task to node", cx));
            }
            None => explain(task, &filter::explain_all(&needs, nodes.iter()), cx, plan),
        }
    }
}

fn assigned(task: &Task, message: &str, cx: &Ctx<'_>) -> Object {
    let mut task = task.clone();
    task.status.state = TaskState::Assigned;
    task.status.at = cx.now;
    message.clone_into(&mut task.status.message);
    task.status.err.clear();
    Object::Task(task)
}

/// Says why a task waits, unless it says so already.
fn explain(task: &Task, why: &str, cx: &Ctx<'_>, plan: &mut Plan) {
    if task.status.err != why {
        let mut task = task.clone();
        why.clone_into(&mut task.status.err);
        task.status.at = cx.now;
        plan.update(Object::Task(task));
    }
}
