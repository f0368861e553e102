//! What a control loop may want, judged by the state that it planned on: what is right in the state that the plan meets
//! when it is applied may have been wrong when it was made, and the other way round.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    Actor, NodeId, ServiceId, TaskState,
    object::{Batch, Change, Node, NodeState, Object, Service, Task, UpdateState},
    spec::{Availability, ServiceMode},
};
use shoal_manager::core::{orchestrator::is_dirty, state::State};

/// Lists what a plan does and must not. `planned` is the state that it was made on, `after` the one that it leads to.
pub fn judge(batch: &Batch, planned: &State, after: &State) -> Vec<String> {
    match batch.actor {
        Actor::Scheduler => placements(batch, planned, after),
        Actor::Orchestrator => endings(batch, planned),
        _ => Vec::new(),
    }
}

fn tasks(batch: &Batch) -> impl Iterator<Item = &Task> {
    batch.changes.iter().filter_map(|change| match change {
        Change::Put { object, .. } => match object.as_ref() {
            Object::Task(task) => Some(task),
            _ => None,
        },
        Change::Delete { .. } => None,
    })
}

fn is_open(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Tasks go to nodes that are open, and that have what the tasks reserve.
fn placements(batch: &Batch, planned: &State, after: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let mut nodes: BTreeSet<&NodeId> = BTreeSet::new();
    for task in tasks(batch).filter(|task| task.status.state == TaskState::Assigned) {
        let Some(node) = task.node.as_ref() else {
            broken.push(format!("task {} was assigned to no node", task.id));
            continue;
        };
        nodes.insert(node);
        if !planned.node(node).is_some_and(|node| is_open(node)) {
            let id = &task.id;
            broken.push(format!("task {id} was assigned to {node}, which is closed"));
        }
    }
    for node in nodes.into_iter().filter_map(|id| after.node(id)) {
        let holds = |task: &&std::sync::Arc<Task>| {
            (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
        };
        let tasks = after.tasks_of_node(&node.id).filter(holds);
        let reserved: u64 = tasks
            .map(|task| task.spec.resources.reservations.memory_bytes)
            .sum();
        let there = node.description.resources.memory_bytes;
        if reserved > there {
            let id = &node.id;
            broken.push(format!("{reserved} of {there} bytes of {id} are reserved"));
        }
    }
    broken
}

/// Tasks that run are ended for a reason, and by an update no more at a time than its service allows.
fn endings(batch: &Batch, planned: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let mut replaced: BTreeMap<&ServiceId, u64> = BTreeMap::new();
    for new in tasks(batch) {
        let Some(old) = planned.task(&new.id) else {
            continue;
        };
        let runs = is_runnable(old) && old.status.state == TaskState::Running;
        let service = planned.service(&old.service);
        let node = old.node.as_ref().and_then(|id| planned.node(id));
        let (true, Some(service), Some(node)) = (runs && !is_runnable(new), service, node) else {
            continue;
        };
        let is_bound = !service.spec.task.placement.constraints.is_empty();
        if is_bound || !is_open(node) || is_spare(old, service, planned) {
            continue;
        }
        if is_dirty(service, old, Some(node)) {
            *replaced.entry(&service.id).or_default() += 1;
        } else {
            let id = &old.id;
            broken.push(format!("task {id} runs and is ended for no reason"));
        }
    }
    for (id, count) in replaced {
        let service = planned.service(id).expect("it was just found");
        let status = service.update_status.as_ref();
        let rolls_back = status.is_some_and(|s| s.state == UpdateState::RollbackStarted);
        let config = if rolls_back {
            service.spec.rollback
        } else {
            service.spec.update
        };
        let most = config.unwrap_or_default().parallelism;
        if most > 0 && count > most {
            broken.push(format!("{count} tasks are replaced at once, not {most}"));
        }
    }
    broken
}

fn is_runnable(task: &Task) -> bool {
    task.desired_state <= TaskState::Running
}

/// Whether a service has more slots than it shall have, or more tasks in this one.
fn is_spare(task: &Task, service: &Service, planned: &State) -> bool {
    let others = planned.tasks_of_service(&service.id);
    let others: Vec<_> = others
        .filter(|other| is_runnable(other) && other.id != task.id)
        .collect();
    let place = |task: &Task| (task.slot, task.node.clone().filter(|_| task.slot == 0));
    let here = place(task);
    if others.iter().any(|other| place(other) == here) {
        return true;
    }
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => {
            let slots: BTreeSet<_> = others.iter().map(|other| other.slot).collect();
            slots.len() as u64 + 1 > replicas
        }
        _ => false,
    }
}
