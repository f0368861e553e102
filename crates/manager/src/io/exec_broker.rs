//! Brings together who wants a process beside a task's own and the agent of the task's node, on the leader.
//!
//! What is asked for waits in a table; the stream to each agent looks there for orders of its node. The agent calls back,
//! takes the other ends of the channels, and from then on bytes pass through.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use shoal_api::{
    IdSource, NodeId, RandomIds, TaskState,
    id::base36,
    object::NodeState,
    wire::{ExecInput, ExecOrder, ExecOutput, SubscriptionMessage, exec_output},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::manager::{Desk, ExecStream};
use crate::core::{
    dispatch::{Passing, seen},
    state::State,
};

/// Pieces that wait for a slow end, each way.
const PIECES_MAX: usize = 16;
/// How long an agent may take to call back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The processes that are asked for. Empty unless this manager leads.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExecBroker {
    table: Arc<watch::Sender<BTreeMap<String, Pending>>>,
}

/// A process that an agent is to start.
#[derive(Debug)]
struct Pending {
    node: NodeId,
    order: ExecOrder,
    ends: Ends,
}

/// The agent's ends.
#[derive(Debug)]
pub(crate) struct Ends {
    /// What the process says.
    pub(crate) output: mpsc::Sender<Result<ExecOutput, Status>>,
    /// What it is told.
    pub(crate) input: mpsc::Receiver<ExecInput>,
}

impl ExecBroker {
    /// Tells an agent which processes are wanted of it, until nobody listens.
    pub(crate) async fn tell(
        &self,
        node: &NodeId,
        agent: &mpsc::Sender<Result<SubscriptionMessage, Status>>,
    ) {
        let mut table = self.table.subscribe();
        let mut told: Vec<String> = Vec::new();
        loop {
            let orders: Vec<ExecOrder> = {
                let table = table.borrow_and_update();
                told.retain(|id| table.contains_key(id));
                let ours = table.values().filter(|pending| pending.node == *node);
                let ours = ours.filter(|pending| !told.contains(&pending.order.id));
                ours.map(|pending| pending.order.clone()).collect()
            };
            for order in orders {
                told.push(order.id.clone());
                let message = SubscriptionMessage {
                    exec: Some(order),
                    ..SubscriptionMessage::default()
                };
                if agent.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = table.changed() => {} // the sender lives as long as we do
                () = agent.closed() => return,
            }
        }
    }

    /// An agent has begun with an order and takes its ends.
    pub(crate) fn take(&self, id: &str, node: &NodeId) -> Result<Ends, Status> {
        let mut answer = Err(Status::not_found("nobody waits for this process"));
        self.table.send_if_modified(|table| {
            match table.get(id) {
                None => return false,
                Some(pending) if pending.node != *node => {
                    answer = Err(Status::permission_denied(
                        "this process was not asked of this node",
                    ));
                    return false;
                }
                Some(_) => {}
            }
            if let Some(pending) = table.remove(id) {
                answer = Ok(pending.ends);
            }
            true
        });
        answer
    }
}

/// An order in the table until an agent takes it, or nobody waits for it any more.
struct Waiting {
    broker: ExecBroker,
    id: String,
}

impl Waiting {
    /// Waits until the agent has taken it; false if it does not in time.
    async fn taken(&self) -> bool {
        let mut table = self.broker.table.subscribe();
        let taken = table.wait_for(|table| !table.contains_key(&self.id));
        tokio::time::timeout(ANSWER_TIMEOUT, taken).await.is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let table = &self.broker.table;
        table.send_if_modified(|table| table.remove(&self.id).is_some());
    }
}

impl Desk {
    /// Starts a process beside a task's own, where the task runs. What comes in goes to it.
    ///
    /// # Errors
    /// This manager does not lead; there is no such task, or it does not run; its node is not there.
    pub(crate) async fn exec(
        &self,
        mut order: ExecOrder,
        input: mpsc::Receiver<ExecInput>,
    ) -> Result<ExecStream, Status> {
        self.require_leader().await?;
        let state = self.store.latest().await;
        let state = state.map_err(|error| self.status_of(error))?;
        let node = place_of(&state, &self.passing.lock(), &order)?;
        let known = state.node(&node);
        if known.is_none_or(|known| known.status.state != NodeState::Ready) {
            return Err(Status::unavailable(format!("node {node} is not available")));
        }
        order.id = base36(RandomIds.next_bits());
        let (output, reader) = mpsc::channel(PIECES_MAX);
        let waiting = Waiting {
            broker: self.execs.clone(),
            id: order.id.clone(),
        };
        let pending = Pending {
            node: node.clone(),
            order,
            ends: Ends {
                output: output.clone(),
                input,
            },
        };
        self.execs
            .table
            .send_modify(|table| drop(table.insert(waiting.id.clone(), pending)));
        tokio::spawn(async move {
            tokio::select! {
                taken = waiting.taken() => if !taken {
                    let late = Status::unavailable(format!("node {node} did not answer"));
                    let _ = output.send(Err(late)).await; // whoever waits may have gone
                },
                () = output.closed() => {}
            }
        });
        Ok(ReceiverStream::new(reader).boxed())
    }
}

/// The node that is to carry an order out.
fn place_of(state: &State, passing: &Passing, order: &ExecOrder) -> Result<NodeId, Status> {
    if !order.node_id.is_empty() {
        let id = order.node_id.parse();
        return id.map_err(|_| Status::invalid_argument("the node's id is none"));
    }
    let id = order.task_id.parse();
    let id = id.map_err(|_| Status::invalid_argument("the task's id is none"))?;
    let task = state
        .task(&id)
        .ok_or_else(|| Status::not_found(format!("task {id} not found")))?;
    let at = seen(task, passing.statuses().get(&id)).state;
    let running = matches!(at, TaskState::Starting | TaskState::Running);
    task.node.clone().filter(|_| running).ok_or_else(|| {
        Status::failed_precondition(format!("task {} is not running: it is {at}", task.name(),))
    })
}

/// Whether nothing can follow this piece.
pub(crate) fn is_last(piece: &ExecOutput) -> bool {
    matches!(
        piece.kind,
        Some(exec_output::Kind::ExitCode(_) | exec_output::Kind::Error(_))
    )
}
