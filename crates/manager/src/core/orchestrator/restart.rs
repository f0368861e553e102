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

/// What becomes of a task.
enum Judgement {
    /// It stays as it is.
    Stay,
    /// It is replaced, but not before this time.
    Later(Timestamp),
    /// It is replaced.
    Replace(Birth),
}

/// Replaces what has ended or lost its footing in a slot.
pub(super) fn reconcile_slot(fleet: &mut Fleet<'_, '_>, key: &SlotKey) {
    let Some(slot) = fleet.slots.get(key) else {
        return;
    };
    let runnable = slot
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.is_runnable());
    let judged: Vec<(usize, Judgement)> = runnable
        .map(|(place, entry)| (place, judge(fleet, slot, entry)))
        .collect();
    for (place, judgement) in judged {
        match judgement {
            Judgement::Stay => {}
            Judgement::Later(at) => fleet.wake(at),
            Judgement::Replace(_) if !fleet.has_room() => fleet.wake(fleet.now),
            Judgement::Replace(birth) => {
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
    }
}

fn judge(fleet: &Fleet<'_, '_>, slot: &[Entry], entry: &Entry) -> Judgement {
    let task = &entry.task;
    let attempts = if task.spec_version == fleet.service.spec_version {
        task.attempts
    } else {
        0
    };
    let lost = task.status.state == TaskState::Orphaned
        || (!task.status.state.is_terminal() && fleet.footing(task) != Footing::Firm);
    if lost {
        return Judgement::Replace(Birth {
            attempts,
            start_after: task.start_after,
            ..Birth::NEXT
        });
    }
    if !task.status.state.is_terminal() {
        return Judgement::Stay;
    }
    let policy = &fleet.service.spec.task.restart;
    if !answers(policy.condition, task.status.state) || is_exhausted(policy, fleet, slot, attempts)
    {
        return Judgement::Stay;
    }
    // A task that ends while it is prepared must not shorten the delay that it was made with.
    if let Some(at) = task.start_after.filter(|at| *at > fleet.now) {
        return Judgement::Later(at);
    }
    let start_after = Some(fleet.now + policy.delay);
    Judgement::Replace(Birth {
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
