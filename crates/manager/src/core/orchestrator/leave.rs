//! How tasks leave nodes that should not carry them any more: in the order, and so many at a time, as the service's update
//! configuration says; a service without one leaves at once, as with Swarm.

use shoal_api::{
    TaskState, Timestamp,
    object::Task,
    spec::{Availability, UpdateConfig, UpdateOrder, labels},
};

use super::fleet::{Entry, Fleet, Footing};

/// What a service may still do about tasks whose nodes they should leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    /// Slots that may still begin to move.
    room: usize,
    /// Whether the old task stays until its replacement runs.
    pub(super) start_first: bool,
}

impl Leaving {
    /// Nothing holds tasks back.
    pub(super) const AT_ONCE: Self = Self {
        room: usize::MAX,
        start_first: false,
    };

    /// What a configuration allows while `moving` slots are on their way.
    pub(super) fn by(config: Option<UpdateConfig>, moving: usize) -> Self {
        let Some(config) = config else {
            return Self::AT_ONCE;
        };
        let parallelism = match config.parallelism {
            0 => usize::MAX,
            n => usize::try_from(n).unwrap_or(usize::MAX),
        };
        Self {
            room: parallelism.saturating_sub(moving),
            start_first: config.order == UpdateOrder::StartFirst,
        }
    }

    /// Whether one more slot may begin to move.
    pub(super) fn has_room(&self) -> bool {
        self.room > 0
    }

    /// Takes note of a slot that begins to move.
    pub(super) fn take(&mut self) {
        self.room = self.room.saturating_sub(1);
    }
}

/// Slots that have a task on a node which it should leave, or had one, and whose replacement does not run yet.
pub(super) fn moving(fleet: &Fleet<'_, '_>) -> usize {
    let is_moving = |slot: &&Vec<Entry>| {
        let mut newest = slot.iter().rev().filter(|entry| entry.is_runnable());
        let waits = newest
            .next()
            .is_some_and(|entry| !entry.leaves && !entry.runs());
        let left = |entry: &Entry| {
            entry.leaves || (!entry.is_runnable() && fleet.footing(&entry.task) == Footing::Leaving)
        };
        waits && slot.iter().any(left)
    };
    fleet.slots.values().filter(is_moving).count()
}

/// When the patience with a task on a drained node ends; `None` is never.
pub(super) fn deadline(fleet: &Fleet<'_, '_>, task: &Task) -> Option<Timestamp> {
    let node = task.node.as_ref().and_then(|node| fleet.state.node(node))?;
    if node.spec.availability != Availability::Drain {
        return None;
    }
    // A label that makes no sense is refused when it is set.
    let patience = labels::drain_deadline(&node.spec.annotations.labels);
    Some(node.availability_since + patience.ok()??)
}

/// Whether a task should leave its node and can still be waited for.
pub(super) fn leaves(task: &Task, footing: Footing) -> bool {
    footing == Footing::Leaving
        && task.desired_state <= TaskState::Running
        && !task.status.state.is_terminal()
}
