//! Why the tasks of a service are where they are, or nowhere: every node with everything that speaks against it.

use shoal_api::{NodeId, ServiceId, TaskId, TaskState, Timestamp, object::Task};

use super::{
    filter::{TaskNeeds, explain_all, reasons},
    ledger::Ledger,
    rank::{self, Ranking},
};
use crate::core::{depends::gate, state::State};

/// What stands between a service and its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The service.
    pub service: ServiceId,
    /// What its tasks wait for before they start; empty if they may.
    pub gate: String,
    /// In one line, as pending tasks say it; empty if a node is open to one more task.
    pub verdict: String,
    /// All nodes by id.
    pub nodes: Vec<NodeVerdict>,
    /// Tasks that have no node yet, each with what it says.
    pub waiting: Vec<(TaskId, String)>,
}

/// What speaks for and against a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeVerdict {
    /// The node.
    pub node: NodeId,
    /// Its hostname.
    pub hostname: String,
    /// Everything that keeps it from running one more task; empty if nothing does.
    pub reasons: Vec<String>,
    /// Active tasks of the service on it.
    pub service_tasks: u64,
    /// Active tasks of all services on it.
    pub tasks: u64,
    /// Recent failures of this spec on it, if they are so many that it is avoided.
    pub failures: usize,
    /// Whether the next task goes there.
    pub next: bool,
}

/// Explains where the next task of a service would go, and why not elsewhere; `None` if there is no such service.
pub fn explain(state: &State, service: &ServiceId, now: Timestamp) -> Option<Explanation> {
    let service = state.service(service)?;
    let needs = TaskNeeds::of_service(service);
    let ledger = Ledger::of(state);
    let failing = rank::failing(&ledger, &needs, now);
    let next = Ranking::of(&ledger, &needs, now).next(&ledger, &needs);
    let nodes: Vec<NodeVerdict> = ledger
        .iter()
        .map(|(slot, info)| NodeVerdict {
            node: info.node.id.clone(),
            hostname: info.node.description.hostname.clone(),
            reasons: reasons(&needs, &ledger, slot),
            service_tasks: ledger.tasks_of(&service.id, slot),
            tasks: info.active,
            failures: failing.get(&slot).copied().unwrap_or(0),
            next: next == Some(slot),
        })
        .collect();
    let waits = |task: &&std::sync::Arc<Task>| {
        task.status.state < TaskState::Assigned && task.desired_state <= TaskState::Complete
    };
    let waiting = state.tasks_of_service(&service.id).filter(waits);
    let gate = gate(state, service, now);
    Some(Explanation {
        service: service.id.clone(),
        gate: if gate.is_open() {
            String::new()
        } else {
            gate.reason()
        },
        verdict: match next {
            Some(_) => String::new(),
            None => explain_all(&needs, &ledger),
        },
        nodes,
        waiting: waiting
            .map(|task| (task.id.clone(), task.status.err.clone()))
            .collect(),
    })
}
