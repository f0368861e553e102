//! Deletes tasks that are over: those to be removed at once, the others when a slot's history is long enough.

use std::collections::BTreeMap;

use shoal_api::{
    Actor, NodeId, ServiceId, TaskState,
    object::{ObjectKey, Task},
    planted::{Bug, planted},
    spec::ClusterSpec,
};

use crate::core::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

/// Deletes tasks, and nothing else.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reaper;

impl Reconciler for Reaper {
    type Key = ServiceId;
    const ACTOR: Actor = Actor::Reaper;

    fn affected(&self, state: &State, event: &Event) -> Vec<ServiceId> {
        match event {
            Event::Task(delta) => vec![delta.any().service.clone()],
            Event::Service(delta) if delta.is_deleted() => vec![delta.any().id.clone()],
            Event::Cluster(delta) if delta.changed(|cluster| cluster.spec.task_history_limit) => {
                self.all(state)
            }
            _ => Vec::new(),
        }
    }

    fn all(&self, state: &State) -> Vec<ServiceId> {
        let mut services: Vec<_> = state.tasks().map(|task| task.service.clone()).collect();
        services.sort();
        services.dedup();
        services
    }

    fn reconcile(&self, state: &State, service: &ServiceId, _: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        let limit = history_limit(state, service);
        let mut slots: BTreeMap<(u64, Option<&NodeId>), Vec<&Task>> = BTreeMap::new();
        for task in state.tasks_of_service(service) {
            let node = task.node.as_ref().filter(|_| task.slot == 0);
            slots.entry((task.slot, node)).or_default().push(task);
        }
        for mut slot in slots.into_values() {
            slot.sort_by_key(|task| (task.meta.created_at, task.attempts, task.id.clone()));
            let excess = limit.map_or(0, |limit| slot.len().saturating_sub(limit));
            let (removed, history): (Vec<&Task>, Vec<&Task>) = slot
                .into_iter()
                .filter(|task| is_over(task))
                .partition(|task| {
                    let is_left =
                        task.desired_state == TaskState::Remove || state.service(service).is_none();
                    is_left && !planted(Bug::ReaperSleeps)
                });
            let oldest = history
                .into_iter()
                .take(excess.saturating_sub(removed.len()));
            for task in removed.into_iter().chain(oldest) {
                plan.delete(ObjectKey::Task(task.id.clone()), task.meta.version);
            }
        }
        plan
    }
}

/// Whether a task has ended and nothing is expected of it.
fn is_over(task: &Task) -> bool {
    let state = task.status.state;
    // A completed task of a job is the job's result, not its history.
    let is_result = task.job_iteration.is_some() && state == TaskState::Complete;
    match task.desired_state {
        TaskState::Remove => state < TaskState::Assigned || state.is_terminal(),
        desired => desired > TaskState::Running && state.is_terminal() && !is_result,
    }
}

/// How many tasks of a slot are kept, the current one included; `None` is all of them.
///
/// A limited restart policy needs as many as it counts (SwarmKit's `manager/orchestrator/taskreaper`).
fn history_limit(state: &State, service: &ServiceId) -> Option<usize> {
    let default = ClusterSpec::default().task_history_limit;
    let limit = state
        .cluster()
        .map_or(default, |cluster| cluster.spec.task_history_limit);
    let limit = usize::try_from(limit).ok()?;
    let attempts = state
        .service(service)
        .map_or(0, |service| service.spec.task.restart.max_attempts);
    let counted = usize::try_from(attempts).unwrap_or(usize::MAX - 1);
    Some(if counted > 0 { counted + 1 } else { limit })
}
