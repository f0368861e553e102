//! What follows the end of a task, or the loss of its node.
//!
//! The policy is about ends: condition, delay, attempts, window. A lost or drained node is none: the task is placed again
//! at once, whatever the policy says, and no attempt is counted.

use shoal_api::{
    TaskState, Timestamp,
    object::Task,
    spec::{RestartCondition, RestartPolicy},
};

use super::fleet::{Birth, Entry, Fleet, Footing, SlotKey};

/// Replaces what has ended or lost its footing in a slot.
pub(super) fn reconcile_slot(fleet: &mut Fleet<'_, '_>, key: &SlotKey) {
    let Some(slot) = fleet.slots.get(key) else {
        return;
    };
    let judged: Vec<(usize, Birth)> = slot
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.is_runnable())
        .filter_map(|(place, entry)| Some((place, judge(fleet, slot, entry)?)))
        .collect();
    for (place, birth) in judged {
        if !fleet.has_room() {
            fleet.wake(fleet.now);
            return;
        }
        if let Some(entry) = fleet
            .slots
            .get_mut(key)
            .and_then(|slot| slot.get_mut(place))
        {
            entry.desire(TaskState::Shutdown);
        }
        fleet.create(key, birth);
    }
}

/// How a task is to be replaced, if it is.
fn judge(fleet: &Fleet<'_, '_>, slot: &[Entry], entry: &Entry) -> Option<Birth> {
    let task = &entry.task;
    let attempts = if task.spec_version == fleet.service.spec_version {
        task.attempts
    } else {
        0
    };
    let lost = task.status.state == TaskState::Orphaned
        || (!task.status.state.is_terminal() && fleet.footing(task) != Footing::Firm);
    if lost {
        return Some(Birth {
            attempts,
            start_after: task.start_after,
            ..Birth::NEXT
        });
    }
    if !task.status.state.is_terminal() {
        return None;
    }
    let policy = &fleet.service.spec.task.restart;
    if !answers(policy.condition, task.status.state) || is_exhausted(policy, fleet, slot, attempts)
    {
        return None;
    }
    let start_after = Some(fleet.now + policy.delay);
    Some(Birth {
        attempts: attempts + 1,
        start_after,
        ..Birth::NEXT
    })
}

/// Whether a policy's condition holds for an end.
fn answers(condition: RestartCondition, end: TaskState) -> bool {
    match condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => matches!(end, TaskState::Failed | TaskState::Rejected),
        RestartCondition::Any => true,
    }
}

/// Whether the attempts of a slot are used up. With a window only restarts within it count.
fn is_exhausted(
    policy: &RestartPolicy,
    fleet: &Fleet<'_, '_>,
    slot: &[Entry],
    attempts: u64,
) -> bool {
    if policy.max_attempts == 0 {
        return false;
    }
    if policy.window.is_zero() {
        return attempts >= policy.max_attempts;
    }
    let from: Timestamp = fleet.now - policy.window;
    let restarted = |task: &Task| {
        task.attempts > 0
            && task.spec_version == fleet.service.spec_version
            && task.meta.created_at >= from
    };
    let recent = slot.iter().filter(|entry| restarted(&entry.task)).count();
    recent as u64 >= policy.max_attempts
}
