//! What agents say of their tasks.

use std::{collections::BTreeMap, sync::Arc};

use shoal_api::{
    Actor, NodeId, TaskId, TaskState, Timestamp, may_move,
    object::{Batch, Change, Expect, Object, Task, TaskStatus},
};

use crate::core::state::State;

/// The status that a report makes of a task's; `None` if it is no news.
///
/// States merge by taking the greater one; a report of the same state may say more about it. Times are moved to the
/// manager's clock, so that delays and windows do not depend on the clock of the node: the end of the report is now, and
/// what it says about the time between two of its moments stays true.
pub fn merge_status(task: &Task, report: &TaskStatus, now: Timestamp) -> Option<TaskStatus> {
    let (from, to) = (task.status.state, report.state);
    let may = if from == to {
        (TaskState::Assigned..=TaskState::Running).contains(&from)
            && says_more(&task.status, report)
    } else {
        may_move(Actor::Agent, Some(from), Some(to))
    };
    if !may {
        return None;
    }
    let reported_since = report
        .running_since
        .map(|since| now - report.at.since(since));
    let begins = (to == TaskState::Running).then_some(now);
    let container = report
        .container
        .clone()
        .or_else(|| task.status.container.clone());
    Some(TaskStatus {
        at: now,
        running_since: task.status.running_since.or(reported_since).or(begins),
        container,
        ..report.clone()
    })
}

fn says_more(have: &TaskStatus, report: &TaskStatus) -> bool {
    let facts = |status: &TaskStatus| {
        (
            status.message.clone(),
            status.err.clone(),
            status.container.clone(),
            status.host_ports.clone(),
        )
    };
    facts(have) != facts(report)
}

/// The reports of a node as a batch, without those that are no news or about tasks of others; `None` if nothing is left.
///
/// Of several reports about one task the greatest counts.
pub fn merge_reports(
    state: &State,
    node: &NodeId,
    reports: &[(TaskId, TaskStatus)],
    now: Timestamp,
) -> Option<Batch> {
    let latest = latest_of(reports).into_iter();
    let merged = latest.filter_map(|(id, report)| {
        let task = state
            .task(id)
            .filter(|task| task.node.as_ref() == Some(node))?;
        Some((task.clone(), merge_status(task, report, now)?))
    });
    reported(merged.collect(), now)
}

/// The greatest of the reports about each task.
pub(super) fn latest_of(reports: &[(TaskId, TaskStatus)]) -> BTreeMap<&TaskId, &TaskStatus> {
    let mut latest = BTreeMap::new();
    for (id, status) in reports {
        let entry = latest.entry(id).or_insert(status);
        if status.state >= entry.state {
            *entry = status;
        }
    }
    latest
}

/// The batch that gives tasks these statuses; `None` if there are none.
pub(super) fn reported(merged: Vec<(Arc<Task>, TaskStatus)>, now: Timestamp) -> Option<Batch> {
    let change = |(task, status): (Arc<Task>, TaskStatus)| {
        let expect = Expect::Version(task.meta.version);
        let mut task = Arc::unwrap_or_clone(task);
        task.status = status;
        Change::Put {
            object: Box::new(Object::Task(task)),
            expect,
        }
    };
    let changes: Vec<Change> = merged.into_iter().map(change).collect();
    (!changes.is_empty()).then_some(Batch {
        actor: Actor::Agent,
        at: now,
        changes,
        wish: None,
    })
}
