//! Which tasks a service has: how many, where they are replaced, and when the ones before must end.
//!
//! One judgement per service: ends are answered by the restart policy, the number of slots is brought to what is wanted,
//! slots of an older spec are replaced as the update configuration says, and prepared tasks are let go when those before
//! them are over. A task is one-shot: it is never started again, always replaced, and its desired state never goes down.
//! All progress is derived from the tasks themselves, so any leader continues where the last one stood.

mod enforce;
mod fleet;
mod global;
mod job;
mod leave;
mod reap;
mod replicated;
mod restart;
mod update;

#[cfg(test)]
mod tests;

use shoal_api::{Actor, ServiceId, TaskState, object::Service, spec::ServiceMode};

use super::{
    depends::{has_started, names_service},
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

pub(super) use fleet::born;
pub use fleet::is_dirty;
pub use reap::Reaper;

use fleet::Fleet;

/// Tasks that one plan creates at most; the rest follows in the next batch.
const TASKS_PER_PLAN_MAX: usize = 1_000;

/// Keeps every service at what its spec asks for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orchestrator;

impl Reconciler for Orchestrator {
    type Key = ServiceId;
    const ACTOR: Actor = Actor::Orchestrator;

    fn affected(&self, state: &State, event: &Event) -> Vec<ServiceId> {
        match event {
            Event::Service(delta) => {
                let service = delta.any();
                let mut keys = dependents(state, service);
                keys.push(service.id.clone());
                keys
            }
            Event::Task(delta) => {
                let id = &delta.any().service;
                let mut keys = match state.service(id) {
                    Some(service)
                        if delta.changed(|task| {
                            (task.status.state, task.desired_state, has_started(task))
                        }) =>
                    {
                        dependents(state, service)
                    }
                    _ => Vec::new(),
                };
                keys.push(id.clone());
                keys
            }
            Event::Node(delta) => {
                let facts = |node: &shoal_api::object::Node| {
                    let description = (node.description.clone(), node.status.addr);
                    (node.status.state, node.spec.clone(), node.role, description)
                };
                if !delta.changed(facts) {
                    return Vec::new();
                }
                let here = state
                    .tasks_of_node(&delta.any().id)
                    .map(|task| task.service.clone());
                let everywhere = state.services().filter(|service| {
                    matches!(
                        service.spec.mode,
                        ServiceMode::Global | ServiceMode::GlobalJob
                    )
                });
                here.chain(everywhere.map(|service| service.id.clone()))
                    .collect()
            }
            Event::Network(_) | Event::Secret(_) | Event::Config(_) | Event::Cluster(_) => {
                Vec::new()
            }
        }
    }

    fn all(&self, state: &State) -> Vec<ServiceId> {
        // Tasks may have outlived their service.
        let services = state.services().map(|service| service.id.clone());
        services
            .chain(state.tasks().map(|task| task.service.clone()))
            .collect()
    }

    fn reconcile(&self, state: &State, id: &ServiceId, cx: &mut Ctx<'_>) -> Plan {
        let Some(service) = state.service(id) else {
            return remove_all(state, id);
        };
        let mut fleet = Fleet::new(state, service, cx);
        match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicated::reconcile(&mut fleet, replicas),
            ServiceMode::Global => global::reconcile(&mut fleet),
            ServiceMode::ReplicatedJob {
                max_concurrent,
                total_completions,
            } => {
                job::reconcile_replicated(&mut fleet, max_concurrent, total_completions);
            }
            ServiceMode::GlobalJob => job::reconcile_global(&mut fleet),
        }
        fleet.into_plan()
    }
}

/// The services that wait for one.
fn dependents(state: &State, service: &Service) -> Vec<ServiceId> {
    let dependents = state.dependents();
    dependents
        .filter(|dependent| names_service(&dependent.spec, service))
        .map(|dependent| dependent.id.clone())
        .collect()
}

/// The tasks of a service that is gone go too. Attachments, which never had one, stay for as long as their container.
fn remove_all(state: &State, service: &ServiceId) -> Plan {
    let mut plan = Plan::default();
    for task in state.tasks_of_service(service) {
        let stays = task.is_attachment() && !task.status.state.is_terminal();
        if task.desired_state < TaskState::Remove && !stays {
            let mut task = task.as_ref().clone();
            task.desired_state = TaskState::Remove;
            plan.update(shoal_api::object::Object::Task(task));
        }
    }
    plan
}
