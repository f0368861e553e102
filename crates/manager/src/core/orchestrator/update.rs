//! Rolling updates and rollbacks, without a memory of their own.
//!
//! The members of an update are the tasks of the current spec created since `update_status.started_at`; a worker is busy
//! as long as the member in its slot does not run yet or the delay after it has not passed; failures are members that
//! ended early. So any leader can go on with an update at any point. Semantics as in SwarmKit's
//! `manager/orchestrator/update/updater.go`.

use std::time::Duration;

use shoal_api::{
    TaskId, TaskState, Timestamp,
    object::{Service, UpdateState, UpdateStatus},
    planted::{Bug, planted},
    spec::{FailureAction, RestartCondition, ServiceSpec, UpdateConfig, UpdateOrder},
};

use super::fleet::{Birth, Entry, Fleet, SlotKey};
use crate::core::state::supersede;

/// Replaces slots of an older spec, as many at a time as the update configuration allows, and keeps `update_status`.
///
/// `slots` are those that may be updated.
pub(super) fn reconcile(fleet: &mut Fleet<'_, '_>, slots: &[SlotKey]) {
    let status = fleet.service.update_status.as_ref();
    let state = status.map(|status| status.state);
    if matches!(
        state,
        Some(UpdateState::Paused | UpdateState::RollbackPaused)
    ) {
        return;
    }
    // The old tasks serve until the new ones may start.
    if !fleet.gate.is_open() {
        return;
    }
    let rolls_back = state == Some(UpdateState::RollbackStarted);
    let in_flight = state.is_some_and(UpdateState::is_in_flight);
    let spec = &fleet.service.spec;
    let config = if rolls_back {
        spec.rollback
    } else {
        spec.update
    }
    .unwrap_or_default();
    let started_at = status
        .filter(|_| in_flight)
        .map_or(fleet.now, |status| status.started_at);

    let survey = survey(fleet, slots, &config, started_at);
    if !in_flight {
        if survey.waiting.is_empty() {
            return;
        }
        set_status(
            fleet,
            UpdateState::Updating,
            "update in progress".to_owned(),
            None,
        );
    }
    if let Some(at) = survey.deadline {
        fleet.wake(at);
    }
    if let Some(blamed) = &survey.blamed
        && config.failure_action != FailureAction::Continue
        && survey.failures as f32 > config.max_failure_ratio * survey.total as f32
    {
        let blamed = survey.late.as_ref().unwrap_or(blamed);
        fail(fleet, blamed, &survey, config.failure_action, rolls_back);
        return;
    }
    if survey.waiting.is_empty() && survey.busy == 0 && survey.quiet_at <= fleet.now {
        if in_flight {
            let (state, message) = if rolls_back {
                (UpdateState::RollbackCompleted, "rollback completed")
            } else {
                (UpdateState::Completed, "update completed")
            };
            set_status(fleet, state, message.to_owned(), Some(fleet.now));
        }
        return;
    }
    if survey.quiet_at > fleet.now {
        fleet.wake(survey.quiet_at);
    }
    if let Some(at) = survey.next_worker_at {
        fleet.wake(at);
    }
    let workers = match config.parallelism {
        0 => usize::MAX,
        _ if planted(Bug::UpdateAllAtOnce) => usize::MAX,
        n => usize::try_from(n).unwrap_or(usize::MAX),
    };
    let busy = if planted(Bug::UpdateForgetsBusy) {
        0
    } else {
        survey.busy
    };
    for key in survey
        .waiting
        .into_iter()
        .take(workers.saturating_sub(busy))
    {
        if !fleet.has_room() {
            fleet.wake(fleet.now);
            return;
        }
        replace(fleet, &key, config.order);
    }
}

/// How far an update is.
struct Survey {
    /// Slots of an older spec that nothing replaces yet; the ones that do not run first, since they have least to lose.
    waiting: Vec<SlotKey>,
    /// Workers that wait for a new task to run, or for the delay after it.
    busy: usize,
    /// When the next delay is over.
    next_worker_at: Option<Timestamp>,
    /// When all new tasks have been watched long enough.
    quiet_at: Timestamp,
    /// New tasks that ended early.
    failures: usize,
    /// Slots that are or were to be replaced.
    total: usize,
    /// The last new task that ended early.
    blamed: Option<TaskId>,
    /// A new task that did not run within the progress deadline.
    late: Option<TaskId>,
    /// When the next new task will be late.
    deadline: Option<Timestamp>,
}

impl Survey {
    /// A worker pauses until `at`.
    fn rest(&mut self, at: Timestamp, now: Timestamp) {
        if at > now {
            self.busy += 1;
            self.next_worker_at = Some(self.next_worker_at.map_or(at, |next| next.min(at)));
        }
    }
}

fn survey(
    fleet: &Fleet<'_, '_>,
    slots: &[SlotKey],
    config: &UpdateConfig,
    started_at: Timestamp,
) -> Survey {
    let mut survey = Survey {
        waiting: Vec::new(),
        busy: 0,
        next_worker_at: None,
        quiet_at: Timestamp::ZERO,
        failures: 0,
        total: 0,
        blamed: None,
        late: None,
        deadline: None,
    };
    let patience = progress_deadline(&fleet.service.spec);
    let restarts_always = fleet.service.spec.task.restart.condition == RestartCondition::Any;
    let mut idle = Vec::new();
    let mut blamed_at = Timestamp::ZERO;
    for key in slots {
        let slot = fleet.slots.get(key).map_or(&[][..], Vec::as_slice);
        let dirty = slot.iter().any(|entry| entry.is_runnable() && entry.dirty);
        let current = slot
            .iter()
            .rev()
            .find(|entry| entry.is_runnable() && !entry.dirty);
        let members = || {
            slot.iter()
                .filter(|e| !e.dirty && e.task.meta.created_at >= started_at)
        };
        let failed = members()
            .filter(|entry| entry.task.attempts == 0)
            .find(|entry| ended_early(entry, config, restarts_always));
        if dirty || members().next().is_some() {
            survey.total += 1;
        }
        if let Some(failed) = failed {
            survey.failures += 1;
            if failed.task.status.at >= blamed_at {
                blamed_at = failed.task.status.at;
                survey.blamed = Some(failed.task.id.clone());
            }
        }
        match current {
            // A failed task frees its worker after the delay; the restart policy looks after the slot.
            _ if failed.is_some() => {
                let failed_at = failed.map_or(fleet.now, |failed| failed.task.status.at);
                survey.rest(failed_at + config.delay, fleet.now);
            }
            None if dirty => {
                let runs = slot.iter().any(Entry::runs);
                if runs {
                    survey.waiting.push(key.clone())
                } else {
                    idle.push(key.clone())
                }
            }
            None => {}
            Some(current) if current.task.status.state > TaskState::Running => {}
            // It has run long enough and ended since: that too is a matter of the restart policy.
            Some(current) if current.task.attempts > 0 && !current.runs() => {}
            Some(current) => match current.task.status.running_since.filter(|_| current.runs()) {
                None => {
                    let since = current.task.meta.created_at.max(started_at);
                    match patience.map(|patience| since + patience) {
                        Some(at) if at <= fleet.now => {
                            survey.failures += 1;
                            survey.blamed = Some(current.task.id.clone());
                            survey.late = Some(current.task.id.clone());
                        }
                        at => {
                            survey.busy += 1;
                            survey.deadline = survey.deadline.min(at).or(at);
                        }
                    }
                }
                Some(since) => {
                    survey.rest(since + config.delay, fleet.now);
                    if config.failure_action != FailureAction::Continue {
                        survey.quiet_at = survey.quiet_at.max(since + config.monitor);
                    }
                }
            },
        }
    }
    idle.append(&mut survey.waiting);
    survey.waiting = idle;
    survey
}

/// Time that a new task has to run (as Kubernetes' `progressDeadlineSeconds`); `None` is no limit.
fn progress_deadline(spec: &ServiceSpec) -> Option<Duration> {
    let patience = spec.progress_deadline.unwrap_or(PROGRESS_DEADLINE);
    (!patience.is_zero()).then_some(patience)
}

const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// Whether a new task ended before it ran, or too soon after it began to run.
fn ended_early(entry: &Entry, config: &UpdateConfig, restarts_always: bool) -> bool {
    let status = &entry.task.status;
    let ended = match status.state {
        TaskState::Failed | TaskState::Rejected => true,
        TaskState::Complete => restarts_always,
        _ => false,
    };
    ended
        && status
            .running_since
            .is_none_or(|since| status.at.since(since) <= config.monitor)
}

fn replace(fleet: &mut Fleet<'_, '_>, key: &SlotKey, order: UpdateOrder) {
    match order {
        UpdateOrder::StopFirst => {
            for entry in fleet.slots.get_mut(key).into_iter().flatten() {
                if entry.is_runnable() {
                    entry.desire(TaskState::Shutdown);
                }
            }
            fleet.create(key, Birth::NEXT);
        }
        UpdateOrder::StartFirst => fleet.create(key, Birth::NOW),
    }
}

/// Pauses or rolls back.
fn fail(
    fleet: &mut Fleet<'_, '_>,
    task: &TaskId,
    survey: &Survey,
    action: FailureAction,
    rolls_back: bool,
) {
    let mut because = format!("due to failure or early termination of task {task}");
    if survey.late.is_some()
        && let Some(patience) = progress_deadline(&fleet.service.spec)
    {
        because += &format!(": it did not run within {} s", patience.as_secs_f64());
        let status = fleet.state.task(task).map(|task| &task.status);
        if let Some(status) = status.filter(|status| !status.err.is_empty()) {
            because += &format!(", {}: {}", status.state, status.err);
        }
    }
    if rolls_back {
        // The state says what was paused; the words are SwarmKit's, on which scripts match.
        let message = format!("update paused {because}");
        set_status(fleet, UpdateState::RollbackPaused, message, None);
        return;
    }
    let mut previous = fleet.service.previous_spec.clone();
    previous = previous.filter(|_| action == FailureAction::Rollback);
    // A secret that only the earlier spec names may have been removed meanwhile, and a port or an address may be
    // another's.
    let obstacle = previous.as_ref().and_then(|spec| {
        let missing = fleet.state.missing_reference(&spec.task);
        let state = fleet.state;
        let (id, endpoint) = (Some(&fleet.service.id), &spec.endpoint);
        let port = || state.port_clash(id, &endpoint.ports);
        let address = || state.address_clash(id, spec, &endpoint.addresses);
        missing
            .or_else(|| port().map(|clash| clash.to_string()))
            .or_else(|| address().map(|clash| clash.to_string()))
    });
    if let Some(obstacle) = obstacle {
        because += &format!("; it cannot be rolled back: {obstacle}");
        previous = None;
    }
    match previous {
        None => set_status(
            fleet,
            UpdateState::Paused,
            format!("update paused {because}"),
            None,
        ),
        Some(previous) => {
            let mut service = fleet.service.as_ref().clone();
            let version = service.previous_spec_version;
            supersede(&mut service, previous, version, fleet.now);
            service.previous_spec = None;
            service.previous_spec_version = 0;
            service.update_status = Some(UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: fleet.now,
                completed_at: None,
                message: format!("update rolled back {because}"),
            });
            fleet.changed_service = Some(service);
        }
    }
}

fn set_status(
    fleet: &mut Fleet<'_, '_>,
    state: UpdateState,
    message: String,
    completed_at: Option<Timestamp>,
) {
    let service: &Service = fleet.service;
    let before = service.update_status.as_ref();
    let starts = state == UpdateState::Updating;
    let started_at = before
        .filter(|_| !starts)
        .map_or(fleet.now, |status| status.started_at);
    fleet.changed_service = Some(Service {
        update_status: Some(UpdateStatus {
            state,
            started_at,
            completed_at,
            message,
        }),
        ..service.clone()
    });
}
