//! States that tasks only pass through: they are kept by the leader alone and are not written down.
//!
//! A task passes through up to four states between being assigned and running, within moments. Nothing is decided by them
//! but in the cases of [`Passing::is_decisive`], agents tell them again to the next leader, and people only look at them:
//! three of five writes of a task's life are not worth their place in the log.

use std::collections::BTreeMap;

use shoal_api::{
    NodeId, TaskId, TaskState, Timestamp,
    object::{Batch, Task, TaskStatus},
};

use super::status::{latest_of, merge_status, reported};
use crate::core::state::{Event, State};

/// What agents said of tasks that are on their way to running.
#[derive(Debug, Default)]
pub struct Passing {
    statuses: BTreeMap<TaskId, TaskStatus>,
    changes: u64,
}

impl Passing {
    /// Takes in the reports of a node. What only passes is kept here; the rest is to be written down, as a batch.
    ///
    /// Reports that are no news or about tasks of others are dropped, see [`super::merge_reports`].
    pub fn merge(
        &mut self,
        state: &State,
        node: &NodeId,
        reports: &[(TaskId, TaskStatus)],
        now: Timestamp,
    ) -> Option<Batch> {
        let mut written = Vec::new();
        for (id, report) in latest_of(reports) {
            let task = state
                .task(id)
                .filter(|task| task.node.as_ref() == Some(node));
            let Some(task) = task else { continue };
            let Some(status) = merge_status(task, report, now) else {
                continue;
            };
            if Self::is_decisive(task, &status) {
                written.push((task.clone(), status));
                continue;
            }
            let is_older = |kept: &TaskStatus| kept.state > status.state;
            if !self.statuses.get(id).is_some_and(is_older) {
                self.statuses.insert(id.clone(), status);
                self.changes += 1;
            }
        }
        reported(written, now)
    }

    /// Whether something is decided by this status of a task, so that the next leader has to know of it as well.
    fn is_decisive(task: &Task, status: &TaskStatus) -> bool {
        let says_more = !status.err.is_empty()
            || status.container != task.status.container
            || status.host_ports != task.status.host_ports;
        says_more
            || match status.state {
                // Without a container, it is only about to be started.
                TaskState::Accepted | TaskState::Preparing | TaskState::Starting => false,
                // Where it is to wait, prepared, it is what its slot waits for.
                TaskState::Ready => task.desired_state < TaskState::Running,
                _ => true,
            }
    }

    /// Forgets what was overtaken by what is written down.
    pub fn settle(&mut self, state: &State, events: &[Event]) {
        if self.statuses.is_empty() {
            return;
        }
        for event in events {
            let Event::Task(delta) = event else { continue };
            let id = &delta.any().id;
            let is_over = |kept: &TaskStatus| {
                state
                    .task(id)
                    .is_none_or(|task| task.status.state >= kept.state)
            };
            if self.statuses.get(id).is_some_and(is_over) {
                self.statuses.remove(id);
                self.changes += 1;
            }
        }
    }

    /// The same, where anything may have happened.
    pub fn settle_all(&mut self, state: &State) {
        self.changes += 1;
        self.statuses.retain(|id, kept| {
            state
                .task(id)
                .is_some_and(|task| task.status.state < kept.state)
        });
    }

    /// How often something has changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The statuses, by task.
    pub fn statuses(&self) -> &BTreeMap<TaskId, TaskStatus> {
        &self.statuses
    }
}

/// A task as people see it: where it has come to, also where that is not written down. What is written of it and still
/// holds, for instance why it waits, stays; one that starts waits for nothing any more.
pub fn seen(task: &Task, passing: Option<&TaskStatus>) -> TaskStatus {
    match passing.filter(|passing| passing.state > task.status.state) {
        Some(passing) if passing.err.is_empty() && passing.state < TaskState::Starting => {
            TaskStatus {
                err: task.status.err.clone(),
                ..passing.clone()
            }
        }
        Some(passing) => passing.clone(),
        None => task.status.clone(),
    }
}
