//! What follows the end of a task, or the loss of its node.
//!
//! The policy is about ends: condition, delay, attempts, window. A lost or drained node is none: the task is placed again
//! at once, whatever the policy says, and no attempt is counted.

use std::time::Duration;

use shoal_api::{
    TaskState, Timestamp,
    object::Task,
    planted::{Bug, planted},
    spec::{RestartCondition, RestartPolicy},
};

use super::{
    fleet::{Birth, Entry, Fleet, Footing, SlotKey},
    leave,
};

/// What becomes of a task.
enum Judgement {
    /// It stays as it is.
    Stay,
    /// Its node should not carry it any more; it stays until its replacement runs, or until then.
    Accompany(Option<Timestamp>),
    /// It is replaced, but not before this time.
    Later(Timestamp),
    /// It is replaced.
    Replace(Birth),
}

/// Replaces what has ended or lost its footing in a slot.
pub(super) fn reconcile_slot(fleet: &mut Fleet<'_, '_>, key: &SlotKey) {
    // The newest first: it is the one to be replaced where start-first keeps an older one beside it.
    let places = 0..fleet.slots.get(key).map_or(0, Vec::len);
    for place in places.rev() {
        let Some((slot, entry)) = fleet.slots.get(key).map(|slot| (slot, &slot[place])) else {
            return;
        };
        if !entry.is_runnable() {
            continue;
        }
        // Also of a task that is not stale any more: its node was to be left, and then was not.
        let has_heir = (slot.iter().enumerate())
            .any(|(at, other)| at != place && other.is_runnable() && !other.is_stale());
        let birth = match judge(fleet, slot, entry) {
            Judgement::Stay => continue,
            Judgement::Accompany(deadline) => {
                if let Some(at) = deadline {
                    fleet.wake(at);
                }
                if !has_heir && fleet.has_room() {
                    fleet.leaving.take();
                    fleet.create(key, Birth::NOW);
                }
                continue;
            }
            Judgement::Later(_) | Judgement::Replace(_) if has_heir => None,
            Judgement::Later(at) => {
                fleet.wake(at);
                continue;
            }
            Judgement::Replace(_) if !fleet.has_room() => {
                fleet.wake(fleet.now);
                continue;
            }
            Judgement::Replace(birth) => Some(birth),
        };
        if fleet.slots[key][place].leaves {
            fleet.leaving.take();
        }
        let slot = fleet.slots.get_mut(key).expect("it was there above");
        slot[place].desire(TaskState::Shutdown);
        if let Some(birth) = birth {
            fleet.create(key, birth);
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
    if entry.leaves {
        let deadline = leave::deadline(fleet, task);
        let patient = deadline.is_none_or(|deadline| deadline > fleet.now);
        let has_heir = slot
            .iter()
            .any(|other| other.is_runnable() && !other.is_stale());
        let may_move = has_heir || fleet.leaving.has_room();
        // What does not run yet is of no use to anybody where it is.
        if patient && entry.runs() && (fleet.leaving.start_first || !may_move) {
            return match (deadline, may_move) {
                (Some(at), false) => Judgement::Later(at),
                (None, false) => Judgement::Stay,
                (deadline, true) => Judgement::Accompany(deadline),
            };
        }
    }
    let lost = task.status.state == TaskState::Orphaned
        || (!task.status.state.is_terminal() && fleet.footing(task) != Footing::Firm);
    if lost {
        return Judgement::Replace(Birth {
            attempts,
            start_after: task.start_after,
            ..Birth::NEXT
        });
    }
    if !task.status.state.is_terminal() || planted(Bug::RestartNever) {
        return Judgement::Stay;
    }
    let policy = &fleet.service.spec.task.restart;
    if !answers(policy.condition, task.status.state) || is_exhausted(fleet, task, slot, attempts) {
        return Judgement::Stay;
    }
    // A task that ends while it is prepared must not shorten the delay that it was made with.
    if let Some(at) = task.start_after.filter(|at| *at > fleet.now) {
        return Judgement::Later(at);
    }
    // What takes the place of an older version's task has not failed yet, and the update waits for it.
    let status = fleet.service.update_status.as_ref();
    let is_update = entry.dirty && status.is_some_and(|status| status.state.is_in_flight());
    let start_after = (!is_update).then(|| fleet.now + rest_after(policy, task));
    Judgement::Replace(Birth {
        attempts: attempts + u64::from(!is_update),
        start_after,
        ..Birth::NEXT
    })
}

/// How long a slot rests after a task of it has ended.
///
/// With back-off each rest is twice the one before, which is that between the task's birth and its start; a task that has
/// run longer than the longest rest was no part of a crash loop.
pub(super) fn rest_after(policy: &RestartPolicy, ended: &Task) -> Duration {
    if !policy.backoff {
        return policy.delay;
    }
    let first = policy.delay.clamp(BACKOFF_MIN, BACKOFF_MAX);
    let ran = ended
        .status
        .running_since
        .map_or(Duration::ZERO, |since| ended.status.at.since(since));
    match ended.start_after {
        Some(start) if ran < BACKOFF_MAX => {
            let before = start.since(ended.meta.created_at);
            before.saturating_mul(2).clamp(first, BACKOFF_MAX)
        }
        _ => first,
    }
}

/// Shortest rest with back-off: without one nothing would grow.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest rest with back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Whether a policy's condition holds for an end.
fn answers(condition: RestartCondition, end: TaskState) -> bool {
    match condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => matches!(end, TaskState::Failed | TaskState::Rejected),
        RestartCondition::Any => true,
    }
}

/// Whether the attempts of a slot are used up. With a window only restarts within it count: the time before the end that is
/// to be answered, so that the answer is the same whenever somebody looks.
fn is_exhausted(fleet: &Fleet<'_, '_>, ended: &Task, slot: &[Entry], attempts: u64) -> bool {
    let policy = &fleet.service.spec.task.restart;
    if policy.max_attempts == 0 {
        return false;
    }
    if policy.window.is_zero() {
        return attempts >= policy.max_attempts;
    }
    let from: Timestamp = ended.status.at - policy.window;
    let restarted = |task: &Task| {
        task.attempts > 0
            && task.spec_version == fleet.service.spec_version
            && task.meta.created_at >= from
    };
    let recent = slot.iter().filter(|entry| restarted(&entry.task)).count();
    recent as u64 >= policy.max_attempts
}
