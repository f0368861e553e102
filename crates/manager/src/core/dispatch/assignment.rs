//! What a node has to carry out, and how one such set becomes another.

use std::{collections::BTreeMap, sync::Arc};

use shoal_api::{
    ConfigId, NodeId, SecretId, TaskId, TaskState,
    network::NetworkView,
    object::{Config, Secret, Task},
    planted::{Bug, planted},
};

use super::view::NetworkSlices;
use crate::core::state::State;

/// Everything that one node has to know.
#[derive(Debug, Clone, Default)]
pub struct AssignmentSet {
    /// Its tasks, also those that are over and not deleted yet.
    pub tasks: BTreeMap<TaskId, Arc<Task>>,
    /// The secrets of those that are not over.
    pub secrets: BTreeMap<SecretId, Arc<Secret>>,
    /// The configs of those that are not over.
    pub configs: BTreeMap<ConfigId, Arc<Config>>,
    /// The networks in which it takes part.
    pub view: Arc<NetworkView>,
}

/// One step from one set to another.
#[derive(Debug, Clone)]
pub enum AssignmentChange {
    /// A secret that is needed now.
    PutSecret(Arc<Secret>),
    /// A config that is needed now.
    PutConfig(Arc<Config>),
    /// A task that is new, or of which something else is wanted.
    PutTask(Arc<Task>),
    /// A task that does not exist any more; its container is removed.
    RemoveTask(TaskId),
    /// A config that no task needs any more.
    RemoveConfig(ConfigId),
    /// A secret that no task needs any more.
    RemoveSecret(SecretId),
}

/// Computes what a node has to know.
pub fn assignment_set(state: &State, node: &NodeId) -> AssignmentSet {
    assignment_set_with(state, node, &NetworkSlices::default())
}

/// Computes what a node has to know, sharing what nodes of a network have in common.
pub fn assignment_set_with(state: &State, node: &NodeId, slices: &NetworkSlices) -> AssignmentSet {
    let mut set = AssignmentSet {
        view: slices.view(state, node),
        ..AssignmentSet::default()
    };
    for task in state
        .tasks_of_node(node)
        .filter(|task| task.status.state >= TaskState::Assigned)
    {
        set.tasks.insert(task.id.clone(), as_told(task));
        if task.status.state.is_terminal() {
            continue;
        }
        let container = &task.spec.container;
        let secrets = container
            .secrets
            .iter()
            .filter_map(|reference| state.secret(&reference.id));
        let all = state.secrets().filter(|_| planted(Bug::SecretsToAll));
        let secrets = secrets.chain(all);
        set.secrets
            .extend(secrets.map(|secret| (secret.id.clone(), secret.clone())));
        let configs = container
            .configs
            .iter()
            .filter_map(|reference| state.config(&reference.id));
        set.configs
            .extend(configs.map(|config| (config.id.clone(), config.clone())));
    }
    set
}

/// A task as its agent is told of it: it runs on until no node sends it new traffic.
///
/// What never ran has no traffic, so it may end at once, before the drain is written down.
fn as_told(task: &Arc<Task>) -> Arc<Task> {
    if task.drained || task.desired_state < TaskState::Shutdown || task.status.state.is_terminal() {
        return task.clone();
    }
    let mut told = task.as_ref().clone();
    if task.status.state == TaskState::Running {
        told.desired_state = TaskState::Running;
    } else {
        told.drained = true;
    }
    Arc::new(told)
}

/// The changes that make `new` of `old`, in an order in which every task finds what it needs.
///
/// Views are compared apart, see [`super::Views`].
pub fn diff(old: &AssignmentSet, new: &AssignmentSet) -> Vec<AssignmentChange> {
    use AssignmentChange as C;
    let mut changes = Vec::new();
    let fresh = |old: Option<u64>, new: u64| old != Some(new);
    for (id, secret) in &new.secrets {
        if fresh(
            old.secrets.get(id).map(|old| old.meta.version),
            secret.meta.version,
        ) {
            changes.push(C::PutSecret(secret.clone()));
        }
    }
    for (id, config) in &new.configs {
        if fresh(
            old.configs.get(id).map(|old| old.meta.version),
            config.meta.version,
        ) {
            changes.push(C::PutConfig(config.clone()));
        }
    }
    for (id, task) in &new.tasks {
        if old
            .tasks
            .get(id)
            .is_none_or(|old| !is_same_order(old, task))
        {
            changes.push(C::PutTask(task.clone()));
        }
    }
    let gone = old.tasks.keys().filter(|id| !new.tasks.contains_key(*id));
    changes.extend(gone.cloned().map(C::RemoveTask));
    let gone = old
        .configs
        .keys()
        .filter(|id| !new.configs.contains_key(*id));
    changes.extend(gone.cloned().map(C::RemoveConfig));
    let gone = old
        .secrets
        .keys()
        .filter(|id| !new.secrets.contains_key(*id) && !planted(Bug::SecretsStay));
    changes.extend(gone.cloned().map(C::RemoveSecret));
    changes
}

/// Whether an agent is to do the same about both. What it said itself is not told back; the rest of a task never changes
/// after its birth.
fn is_same_order(old: &Task, new: &Task) -> bool {
    Arc::ptr_eq(&old.spec, &new.spec)
        && old.desired_state == new.desired_state
        && old.drained == new.drained
        && old.networks == new.networks
        && old.ports == new.ports
        && (old.status.state == new.status.state || new.status.state != TaskState::Orphaned)
}
