//! The life of a task on its node, one step at a time: SwarmKit's `Do()`, cut at the await.
//!
//! The caller repeats: ask [`next_step`], do it, feed the outcome to [`on_result`], keep the status that comes out.
//! Observed states only grow, and a task is run once: what has ended is replaced by a manager, never started again.

use std::time::Duration;

use shoal_api::{
    TaskState, Timestamp, Words,
    object::{Task, TaskStatus},
    planted::{Bug, planted},
};

use crate::ports::{Chain, ExecError, ExecErrorKind, Exit, Started};

/// Time between the stop signal and the kill where the spec does not say (docker's default).
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// What a task needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until its assignment changes.
    Idle,
    /// To be in this status; everybody may know.
    Report(TaskStatus),
    /// This operation of its controller.
    Run(Op),
}

/// An operation of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Make everything ready.
    Prepare,
    /// Start.
    Start,
    /// Wait until it is healthy, where that is checked.
    BecomeHealthy,
    /// Wait for the end.
    Wait,
    /// Stop.
    Shutdown,
    /// Remove what is left.
    Remove,
}

/// What an operation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpOutput {
    /// Nothing but success: prepare, become healthy, shutdown, remove.
    Done,
    /// Of start.
    Started(Started),
    /// Of wait.
    Exited(Exit),
}

/// What an operation's result means for the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in this status now.
    Moved(TaskStatus),
    /// It is where it was; the operation is worth another try later.
    Retry,
}

/// Whether a task is to be stopped, and is not over yet.
pub fn must_stop(task: &Task) -> bool {
    task.desired_state >= TaskState::Shutdown && !task.status.state.is_terminal()
}

/// Time that the task's process has between the stop signal and the kill.
pub fn stop_grace(task: &Task) -> Duration {
    task.spec
        .container
        .stop_grace_period
        .unwrap_or(STOP_GRACE_DEFAULT)
}

/// Returns what a task needs next.
pub fn next_step(task: &Task, now: Timestamp) -> Step {
    use TaskState as S;
    if must_stop(task) && planted(Bug::AgentStopsLate) {
        return Step::Report(moved(task, TaskState::Shutdown, "shutdown", now));
    }
    if must_stop(task) {
        return Step::Run(Op::Shutdown);
    }
    match task.status.state {
        S::New | S::Pending | S::Assigned => {
            Step::Report(moved(task, S::Accepted, "accepted", now))
        }
        S::Accepted => Step::Report(moved(task, S::Preparing, "preparing", now)),
        S::Preparing => Step::Run(Op::Prepare),
        // A replacement waits here, ready, until the task before it is gone.
        S::Ready if task.desired_state < S::Running => Step::Idle,
        S::Ready => Step::Report(moved(task, S::Starting, "starting", now)),
        // With a container its process was started, and only its health is waited for.
        S::Starting if task.status.container.is_some() => Step::Run(Op::BecomeHealthy),
        S::Starting => Step::Run(Op::Start),
        S::Running => Step::Run(Op::Wait),
        // Over; what is left is kept for its logs until the task is deleted.
        S::Complete | S::Shutdown | S::Failed | S::Rejected | S::Remove | S::Orphaned => Step::Idle,
    }
}

/// Returns what the result of an operation makes of a task.
///
/// Errors that are not worth another try reject a task that was never started, and fail one that was.
pub fn on_result(task: &Task, op: Op, out: Result<OpOutput, ExecError>, now: Timestamp) -> Outcome {
    let out = match out {
        Ok(out) => out,
        Err(error) => match error.kind() {
            ExecErrorKind::AlreadyDone => OpOutput::Done,
            ExecErrorKind::Temporary | ExecErrorKind::NotReady => return Outcome::Retry,
            ExecErrorKind::Fatal => return Outcome::Moved(ended_by(task, &error, now)),
        },
    };
    let mut status = match op {
        Op::Prepare => moved(task, TaskState::Ready, "prepared", now),
        // Others may wait for the start alone, so this is told; what it is called stays.
        Op::Start if matches!(&out, OpOutput::Started(started) if started.is_checked) => {
            moved(task, TaskState::Starting, "starting", now)
        }
        Op::Start | Op::BecomeHealthy => TaskStatus {
            running_since: Some(now),
            ..moved(task, TaskState::Running, "started", now)
        },
        Op::Wait => match &out {
            OpOutput::Exited(exit) => exited(task, exit, now),
            OpOutput::Done | OpOutput::Started(_) => {
                moved(task, TaskState::Complete, "finished", now)
            }
        },
        Op::Shutdown => moved(task, TaskState::Shutdown, "shutdown", now),
        Op::Remove => task.status.clone(),
    };
    match out {
        OpOutput::Done => {}
        OpOutput::Started(Started {
            container,
            host_ports,
            ..
        }) => {
            status.container = Some(Box::new(container));
            status.host_ports = host_ports.into();
        }
        OpOutput::Exited(Exit { container, .. }) => {
            status.container = Some(Box::new(container));
        }
    }
    Outcome::Moved(status)
}

/// A task as this node holds it, after a manager has told how it should be.
///
/// The node's own observation wins unless the manager's is further: then the manager gave the task up (its node was
/// thought dead, say), and what still runs of it must stop.
pub fn merged(held: Option<&Task>, mut told: Task) -> Task {
    if let Some(held) = held {
        told.desired_state = told.desired_state.max(held.desired_state);
        if !held.status.state.is_terminal() && told.status.state.is_terminal() {
            told.desired_state = told.desired_state.max(TaskState::Shutdown);
            told.status = held.status.clone();
        } else if held.status.state >= told.status.state {
            told.status = held.status.clone();
        }
    }
    told
}

fn moved(task: &Task, state: TaskState, message: &str, now: Timestamp) -> TaskStatus {
    TaskStatus {
        state,
        at: now,
        message: message.into(),
        err: Words::default(),
        ..task.status.clone()
    }
}

fn ended_by(task: &Task, error: &ExecError, now: Timestamp) -> TaskStatus {
    let state = if task.status.state < TaskState::Starting {
        TaskState::Rejected
    } else {
        TaskState::Failed
    };
    // The message stays: it says what was going on.
    TaskStatus {
        state,
        at: now,
        err: Chain(error).to_string().into(),
        ..task.status.clone()
    }
}

fn exited(task: &Task, exit: &Exit, now: Timestamp) -> TaskStatus {
    let code = exit.container.exit_code;
    let err = match &exit.reason {
        None if code == 0 => return moved(task, TaskState::Complete, "finished", now),
        // Swarm's words.
        None => format!("task: non-zero exit ({code})"),
        Some(reason) => format!("task: non-zero exit ({code}): {reason}"),
    };
    TaskStatus {
        state: TaskState::Failed,
        at: now,
        err: err.into(),
        ..task.status.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests;
