//! What a control loop may want, judged by the state that it planned on: what is right in the state that the plan meets
//! when it is applied may have been wrong when it was made, and the other way round.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    Actor, NodeId, ServiceId, TaskId, TaskState,
    object::{Batch, Change, Node, NodeState, Object, Service, Task, UpdateState},
    spec::{Availability, GenericResource, ServiceMode, UpdateConfig, UpdateOrder},
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
        let holds = |task: &&Arc<Task>| {
            (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
        };
        let tasks = after.tasks_of_node(&node.id).filter(holds);
        let (mut reserved, mut things) = (0, BTreeMap::<&str, u64>::new());
        for task in tasks {
            let wanted = &task.spec.resources.reservations;
            reserved += wanted.memory_bytes;
            for (kind, amount) in &wanted.generic {
                *things.entry(kind).or_default() += units(amount);
            }
        }
        let (id, have) = (&node.id, &node.description.resources);
        let there = have.memory_bytes;
        if reserved > there {
            broken.push(format!("{reserved} of {there} bytes of {id} are reserved"));
        }
        for (kind, reserved) in things {
            let there = have.generic.get(kind).map_or(0, units);
            if reserved > there {
                broken.push(format!("{reserved} of {there} {kind} of {id} are reserved"));
            }
        }
    }
    broken
}

/// Units of a thing; names are one each.
fn units(amount: &GenericResource) -> u64 {
    match amount {
        GenericResource::Discrete(units) => *units,
        GenericResource::Named(names) => names.len() as u64,
    }
}

/// Tasks that run are ended for a reason, and by an update no more at a time than its service allows: so many of its slots
/// are without a task that runs, or none where replacements start first.
fn endings(batch: &Batch, planned: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let mut replaced: BTreeMap<&ServiceId, u64> = BTreeMap::new();
    let ended = tasks(batch).filter(|task| !is_runnable(task));
    let ended: BTreeSet<&TaskId> = ended.map(|task| &task.id).collect();
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
        if is_bound || !is_open(node) {
            continue;
        }
        if is_left_empty(old, service, planned, &ended) {
            let id = &old.id;
            broken.push(format!("task {id} is ended before its replacement runs"));
        }
        if is_spare(old, service, planned) {
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
        let most = update_config(service).parallelism;
        let count = count + under_way(service, planned);
        if most > 0 && count > most {
            broken.push(format!("{count} tasks are replaced at once, not {most}"));
        }
    }
    broken
}

/// The rules for the update or rollback that a service is in.
fn update_config(service: &Service) -> UpdateConfig {
    let status = service.update_status.as_ref();
    let rolls_back = status.is_some_and(|s| s.state == UpdateState::RollbackStarted);
    let config = if rolls_back {
        service.spec.rollback
    } else {
        service.spec.update
    };
    config.unwrap_or_default()
}

/// Slots of a service whose replacement does not run yet. Those in which one has failed are left to the restart policy.
fn under_way(service: &Service, planned: &State) -> u64 {
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for task in planned.tasks_of_service(&service.id) {
        slots.entry(place(task)).or_default().push(task);
    }
    let is_new = |task: &Task| {
        let node = task.node.as_ref().and_then(|id| planned.node(id));
        !is_dirty(service, task, node.map(AsRef::as_ref))
    };
    // An update does not wait for a node that was closed under it.
    let is_closed = |task: &Task| {
        let node = task.node.as_ref().and_then(|id| planned.node(id));
        node.is_some_and(|node| !is_open(node))
    };
    let starts = |task: &Task| {
        !is_closed(task)
            && is_runnable(task)
            && task.status.state < TaskState::Running
            && task.attempts == 0
    };
    let waits = |slot: &&Vec<&Arc<Task>>| {
        let new: Vec<_> = slot.iter().filter(|task| is_new(task)).collect();
        new.len() < slot.len() && matches!(new.as_slice(), [only] if starts(only))
    };
    slots.values().filter(waits).count() as u64
}

/// Whether an update in the order start-first ends a task while nothing else runs in its slot.
fn is_left_empty(
    task: &Task,
    service: &Service,
    planned: &State,
    ended: &BTreeSet<&TaskId>,
) -> bool {
    let ServiceMode::Replicated { replicas } = service.spec.mode else {
        return false;
    };
    let tasks = planned.tasks_of_service(&service.id);
    let runnable: Vec<_> = tasks.filter(|other| is_runnable(other)).collect();
    let slots: BTreeSet<_> = runnable.iter().map(|other| other.slot).collect();
    let others = runnable.iter();
    let others: Vec<_> = others
        .filter(|other| other.slot == task.slot && other.id != task.id)
        .collect();
    let stays = others
        .iter()
        .any(|other| !ended.contains(&other.id) && other.status.state == TaskState::Running);
    update_config(service).order == UpdateOrder::StartFirst
        && slots.len() as u64 <= replicas
        && !others.is_empty()
        && !stays
}

fn place(task: &Task) -> (u64, Option<NodeId>) {
    (task.slot, task.node.clone().filter(|_| task.slot == 0))
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
