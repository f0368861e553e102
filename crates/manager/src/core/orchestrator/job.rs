//! Jobs: tasks that run to completion.

use shoal_api::{
    TaskState, Timestamp,
    object::{Node, NodeState},
    spec::{Availability, RestartCondition},
};

use super::{
    fleet::{Birth, Fleet, Footing, SlotKey},
    restart::rest_after,
};
use crate::core::scheduler::constraint::node_fits;

/// Keeps at most `max_concurrent` tasks at work until `total` slots have completed in this run.
pub(super) fn reconcile_replicated(fleet: &mut Fleet<'_, '_>, max_concurrent: u64, total: u64) {
    remove_earlier_runs(fleet);
    let mut at_work = 0u64;
    let mut open = Vec::new();
    // Slots are numbered from 1, since slot 0 stands for global services.
    for number in 1..=total {
        match slot_state(fleet, &SlotKey::Number(number)) {
            SlotState::Completed | SlotState::GivenUp => {}
            SlotState::AtWork => at_work += 1,
            SlotState::Open(attempts) => open.push((number, attempts)),
            SlotState::Resting(until) => {
                at_work += 1;
                fleet.wake(until);
            }
        }
    }
    let limit = if max_concurrent == 0 {
        total
    } else {
        max_concurrent
    };
    let room = usize::try_from(limit.saturating_sub(at_work)).unwrap_or(usize::MAX);
    for (number, attempts) in open.into_iter().take(room) {
        start(fleet, &SlotKey::Number(number), attempts);
    }
    fleet.settle();
    promote(fleet);
}

/// Runs one task to completion on each node that was there when the run began.
pub(super) fn reconcile_global(fleet: &mut Fleet<'_, '_>) {
    remove_earlier_runs(fleet);
    let began = fleet
        .service
        .job
        .map_or(fleet.now, |job| job.last_execution);
    let placement = &fleet.service.spec.task.placement;
    let fits = |node: &&std::sync::Arc<Node>| {
        node.status.state == NodeState::Ready
            && node.spec.availability == Availability::Active
            && node.meta.created_at <= began
            && node_fits(placement, node)
    };
    let keys: Vec<SlotKey> = fleet
        .state
        .nodes()
        .filter(fits)
        .map(|node| SlotKey::Node(node.id.clone()))
        .collect();
    for key in keys {
        match slot_state(fleet, &key) {
            SlotState::Open(attempts) => start(fleet, &key, attempts),
            SlotState::Resting(until) => fleet.wake(until),
            SlotState::Completed | SlotState::GivenUp | SlotState::AtWork => {}
        }
    }
    fleet.settle();
    promote(fleet);
}

enum SlotState {
    Completed,
    /// The restart policy has no attempt left.
    GivenUp,
    AtWork,
    /// Nobody works on it; so many attempts have failed.
    Open(u64),
    /// The last attempt failed before its own delay had passed.
    Resting(Timestamp),
}

fn slot_state(fleet: &Fleet<'_, '_>, key: &SlotKey) -> SlotState {
    let slot = fleet.slots.get(key).map_or(&[][..], Vec::as_slice);
    let run = fleet.service.job.map(|job| job.iteration);
    let of_run = || {
        slot.iter()
            .map(|entry| &entry.task)
            .filter(|task| task.job_iteration == run)
    };
    if of_run().any(|task| task.status.state == TaskState::Complete) {
        return SlotState::Completed;
    }
    let firm = |task: &shoal_api::object::Task| fleet.footing(task) == Footing::Firm;
    if of_run().any(|task| {
        !task.status.state.is_terminal() && task.desired_state <= TaskState::Complete && firm(task)
    }) {
        return SlotState::AtWork;
    }
    let failed = |task: &&std::sync::Arc<shoal_api::object::Task>| {
        matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
    };
    let Some(last) = of_run().filter(failed).map(|task| task.attempts + 1).max() else {
        return SlotState::Open(0);
    };
    let policy = &fleet.service.spec.task.restart;
    // For a job `any` is the same as `on-failure`: what has completed is not run again.
    if policy.condition == RestartCondition::None
        || (policy.max_attempts > 0 && last > policy.max_attempts)
    {
        return SlotState::GivenUp;
    }
    let rest = of_run()
        .filter(failed)
        .filter_map(|task| task.start_after)
        .max();
    rest.filter(|until| *until > fleet.now)
        .map_or(SlotState::Open(last), SlotState::Resting)
}

fn start(fleet: &mut Fleet<'_, '_>, key: &SlotKey, attempts: u64) {
    if !fleet.has_room() {
        fleet.wake(fleet.now);
        return;
    }
    for entry in fleet.slots.get_mut(key).into_iter().flatten() {
        if entry.task.desired_state <= TaskState::Complete
            && entry.task.status.state != TaskState::Complete
        {
            entry.desire(TaskState::Shutdown);
        }
    }
    let policy = &fleet.service.spec.task.restart;
    let last = fleet.slots.get(key).and_then(|slot| slot.last());
    let rest = last.map_or(policy.delay, |last| rest_after(policy, &last.task));
    let start_after = (attempts > 0).then(|| fleet.now + rest);
    fleet.create(
        key,
        Birth {
            attempts,
            start_after,
            ..Birth::NEXT
        },
    );
}

/// A job's task is meant to complete, not to run on.
fn promote(fleet: &mut Fleet<'_, '_>) {
    for entry in fleet.slots.values_mut().flatten() {
        if entry.task.desired_state == TaskState::Running {
            entry.desire(TaskState::Complete);
        }
    }
}

fn remove_earlier_runs(fleet: &mut Fleet<'_, '_>) {
    let run = fleet.service.job.map(|job| job.iteration);
    for entry in fleet.slots.values_mut().flatten() {
        if entry.task.job_iteration != run {
            entry.desire(TaskState::Remove);
        }
    }
}
