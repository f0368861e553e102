//! Walks one task through its life: asks the machine for a step, has the controller do it, tells what came of it.

use std::{sync::Arc, time::Duration};

use shoal_api::{
    TaskId, TaskState, Timestamp,
    object::{Task, TaskStatus},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{
    core::{
        assignment::TaskFiles,
        task_machine::{
            Op, OpOutput, Outcome, Step, merged, must_stop, next_step, on_result, stop_grace,
        },
    },
    ports::{Chain, Controller, ExecError, ExecErrorKind, Executor},
};

/// Pause before an operation is tried again (SwarmKit's `agent/task.go`).
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a runner is to bring about.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// The task as assigned.
    pub(super) task: Task,
    /// Its secrets and configs; `None` as long as one of them, or what its image's registry asks for, is not here.
    pub(super) files: Option<TaskFiles>,
    /// Whether it is no longer assigned: stop it, remove what is left, and be done.
    pub(super) removed: bool,
}

/// What a runner tells.
#[derive(Debug)]
pub(super) enum Observation {
    /// The task is in this status.
    Status(TaskId, TaskStatus),
    /// Nothing is left of the task, and the runner has ended.
    Gone(TaskId),
}

/// Runs a task until it is removed, or until nobody gives orders any more; in that case it is left as it is.
pub(super) async fn run(
    executor: Arc<dyn Executor>,
    mut orders: watch::Receiver<Arc<Order>>,
    observed: mpsc::Sender<Observation>,
) {
    let first = Arc::clone(&orders.borrow());
    let mut runner = Runner {
        executor,
        controller: None,
        held: first.task.clone(),
    };
    loop {
        let order = Arc::clone(&orders.borrow_and_update());
        runner.take(&order);
        let step = if order.removed && runner.held.status.state.is_terminal() {
            Step::Run(Op::Remove)
        } else {
            next_step(&runner.held, Timestamp::now())
        };
        let moved = match step {
            Step::Idle => None,
            Step::Report(status) => Some(status),
            // They are on their way, perhaps with the next session.
            Step::Run(Op::Prepare) if order.files.is_none() => None,
            Step::Run(op) => {
                let performed = tokio::select! {
                    performed = runner.perform(op, &order) => performed,
                    gone = preempted(&mut orders, &order, op) => {
                        if gone { return }
                        continue;
                    }
                };
                if op == Op::Remove && !matches!(&performed, Err(error) if may_retry(error)) {
                    if let Err(error) = &performed
                        && error.kind() == ExecErrorKind::Fatal
                    {
                        tracing::error!(task.id = %runner.held.id, error = %Chain(error), "cannot remove a task");
                    }
                    // Nobody listens only when the agent ends.
                    let _ = observed
                        .send(Observation::Gone(runner.held.id.clone()))
                        .await;
                    return;
                }
                if let Err(error) = &performed
                    && may_retry(error)
                {
                    tracing::info!(task.id = %runner.held.id, ?op, error = %Chain(error), "will try again");
                }
                match on_result(&runner.held, op, performed, Timestamp::now()) {
                    Outcome::Moved(status) => Some(status),
                    Outcome::Retry => {
                        tokio::select! {
                            () = sleep(RETRY_PAUSE) => {}
                            changed = orders.changed() => if changed.is_err() { return },
                        }
                        continue;
                    }
                }
            }
        };
        match moved {
            Some(status) => {
                tracing::debug!(
                    task.id = %runner.held.id,
                    state.transition = %format_args!("{}→{}", runner.held.status.state, status.state),
                    err = %status.err,
                );
                runner.held.status = status.clone();
                if observed
                    .send(Observation::Status(runner.held.id.clone(), status))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            None => {
                if orders.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

struct Runner {
    executor: Arc<dyn Executor>,
    controller: Option<Box<dyn Controller>>,
    /// The task with the status that this runner observed.
    held: Task,
}

impl Runner {
    fn take(&mut self, order: &Order) {
        self.held = merged(Some(&self.held), order.task.clone());
        if order.removed {
            self.held.desired_state = self.held.desired_state.max(TaskState::Shutdown);
        }
    }

    async fn perform(&mut self, op: Op, order: &Order) -> Result<OpOutput, ExecError> {
        let controller = match &self.controller {
            Some(controller) => controller,
            None => self
                .controller
                .insert(self.executor.controller(&self.held).await?),
        };
        match op {
            Op::Prepare => {
                let files = order
                    .files
                    .as_ref()
                    .ok_or_else(|| ExecError::temporary("its secrets are not here"))?;
                controller.prepare(files).await.map(|()| OpOutput::Done)
            }
            Op::Start => controller.start().await.map(OpOutput::Started),
            Op::BecomeHealthy => controller.become_healthy().await.map(|()| OpOutput::Done),
            Op::Wait => {
                controller.update(&self.held).await?;
                controller.wait().await.map(OpOutput::Exited)
            }
            Op::Shutdown => controller
                .shutdown(stop_grace(&self.held))
                .await
                .map(|()| OpOutput::Done),
            Op::Remove => controller.remove().await.map(|()| OpOutput::Done),
        }
    }
}

fn may_retry(error: &ExecError) -> bool {
    matches!(
        error.kind(),
        ExecErrorKind::Temporary | ExecErrorKind::NotReady
    )
}

/// Waits for an order for which the operation in hand must be dropped. Returns true if there will be no more orders.
///
/// Stopping goes before everything else, but is not itself interrupted. Other changes reach a controller while it
/// waits; during a pull or a start they can wait for their turn.
async fn preempted(orders: &mut watch::Receiver<Arc<Order>>, begun: &Order, op: Op) -> bool {
    let changed = orders.wait_for(|order| {
        let stop = order.removed || must_stop(&order.task);
        match op {
            Op::Prepare | Op::Start | Op::BecomeHealthy => stop,
            Op::Wait => {
                stop || order.task.networks != begun.task.networks
                    || order.task.ports != begun.task.ports
            }
            Op::Shutdown | Op::Remove => false,
        }
    });
    changed.await.is_err()
}

#[cfg(test)]
mod tests;
