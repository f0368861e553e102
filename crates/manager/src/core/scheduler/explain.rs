//! Why the tasks of a service are where they are, or nowhere: every node with everything that speaks against it.

use shoal_api::{
    ServiceId, TaskState, Timestamp,
    explain::{Explanation, NodeVerdict, WaitingTask},
    object::Task,
};

use super::{
    filter::{TaskNeeds, explain_all, reasons},
    ledger::Ledger,
    rank::{self, Ranking},
};
use crate::core::{depends::gate, state::State};

/// Explains where the next task of a service would go, and why not elsewhere; `None` if there is no such service.
pub fn explain(state: &State, service: &ServiceId, now: Timestamp) -> Option<Explanation> {
    let service = state.service(service)?;
    let needs = TaskNeeds::of_service(state, service);
    let mut ledger = Ledger::of(state);
    let failing = rank::failing(&ledger, &needs, now);
    let next = Ranking::of(&mut ledger, &needs, now).next(&ledger, &needs);
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
            .map(|task| WaitingTask {
                task: task.id.clone(),
                slot: task.slot,
                err: task.status.err.to_string(),
            })
            .collect(),
    })
}
