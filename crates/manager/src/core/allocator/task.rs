//! Tasks: an address per attached network, then New → Pending.

use shoal_api::{
    NetworkId, ServiceId, TaskState,
    object::{Object, Service, Task, TaskAttachment, TaskStatus},
    spec::{EndpointSpec, NetworkAttachmentSpec, NetworkTarget},
};

use super::{Given, TASKS_PER_PLAN_MAX, networks_of};
use crate::core::{
    reconcile::{Ctx, Plan},
    state::State,
};

/// Gives the new tasks of a service that has its endpoint their addresses.
pub(super) fn allocate_all(
    state: &State,
    service: &Service,
    given: &mut Given,
    cx: &Ctx<'_>,
    plan: &mut Plan,
) {
    let tasks = state.tasks_of_service(&service.id);
    let waiting = tasks.filter(|task| {
        task.status.state == TaskState::New && task.desired_state <= TaskState::Complete
    });
    // What one task of a service misses, the rest of them miss too; looking for it again would be in vain.
    let mut missing: Option<String> = None;
    for task in waiting.take(TASKS_PER_PLAN_MAX) {
        let attachments = match &missing {
            None => attachments(state, &service.spec.endpoint, task, given),
            Some(missing) => Err(missing.clone()),
        };
        let changed = match attachments {
            Ok(networks) => {
                let mut changed = allocated(task, networks, cx);
                changed.ports = service
                    .endpoint
                    .iter()
                    .flat_map(|endpoint| endpoint.ports.clone())
                    .collect();
                changed
            }
            Err(text) => {
                let explained = explained(task, &text, cx);
                missing = Some(text);
                let Some(explained) = explained else { continue };
                explained
            }
        };
        plan.update(Object::Task(changed));
    }
}

/// Gives the containers that users attach, which have no service, their addresses.
pub(super) fn allocate_attachments(
    state: &State,
    service: &ServiceId,
    cx: &Ctx<'_>,
    plan: &mut Plan,
) {
    let mut given = Given::default();
    let waiting = state.tasks_of_service(service).filter(|task| {
        task.is_attachment()
            && task.status.state == TaskState::New
            && task.desired_state <= TaskState::Complete
    });
    for task in waiting {
        match attachments(state, &EndpointSpec::default(), task, &mut given) {
            Ok(networks) => plan.update(Object::Task(allocated(task, networks, cx))),
            Err(text) => {
                if let Some(explained) = explained(task, &text, cx) {
                    plan.update(Object::Task(explained));
                }
            }
        }
    }
}

fn allocated(task: &Task, networks: Vec<TaskAttachment>, cx: &Ctx<'_>) -> Task {
    let mut task = task.clone();
    task.networks = networks.into();
    task.status = TaskStatus {
        state: TaskState::Pending,
        at: cx.now,
        message: "pending task scheduling".into(),
        ..TaskStatus::default()
    };
    task
}

/// Tells the new tasks of a service what it misses.
pub(super) fn explain_all(
    state: &State,
    service: &Service,
    missing: &str,
    cx: &Ctx<'_>,
    plan: &mut Plan,
) {
    let tasks = state.tasks_of_service(&service.id);
    let waiting = tasks.filter(|task| task.status.state == TaskState::New);
    for changed in waiting
        .take(TASKS_PER_PLAN_MAX)
        .filter_map(|task| explained(task, missing, cx))
    {
        plan.update(Object::Task(changed));
    }
}

fn explained(task: &Task, missing: &str, cx: &Ctx<'_>) -> Option<Task> {
    (task.status.err != missing).then(|| {
        let mut task = task.clone();
        task.status.err = missing.into();
        task.status.at = cx.now;
        task
    })
}

fn asked_for<'a>(task: &'a Task, network: &NetworkId) -> Option<&'a NetworkAttachmentSpec> {
    let of = |asked: &&NetworkAttachmentSpec| matches!(&asked.target, NetworkTarget::Cluster(id) if id == network);
    task.spec.networks.iter().find(of)
}

/// The attachments of a task in the order of its service's networks, ingress first.
fn attachments(
    state: &State,
    endpoint: &EndpointSpec,
    task: &Task,
    given: &mut Given,
) -> Result<Vec<TaskAttachment>, String> {
    let mut attachments = Vec::new();
    for id in networks_of(state, endpoint, &task.spec)? {
        let asked = asked_for(task, &id);
        let network = state
            .network(&id)
            .ok_or_else(|| format!("network {id} is missing"))?;
        let allocated = network
            .allocated
            .as_ref()
            .ok_or_else(|| super::why_unallocated(state, network))?;
        let fixed = asked.map_or(&[][..], |asked| &asked.addresses);
        let mut addresses = Vec::new();
        for v4 in [true, false] {
            if let Some(address) = fixed.iter().find(|address| address.is_ipv4() == v4) {
                addresses.push(given.take_fixed(state, network, *address)?);
                continue;
            }
            let mut full = None;
            let mut subnets = allocated
                .subnets
                .iter()
                .filter(|subnet| subnet.range.addr().is_ipv4() == v4);
            let addr = subnets.find_map(|subnet| {
                given
                    .take(state, network, subnet)
                    .map_err(|e| full = Some(e))
                    .ok()
            });
            match (addr, full) {
                (Some(addr), _) => addresses.push(addr),
                (None, Some(full)) => return Err(full),
                // The network has no subnet of this family.
                (None, None) => {}
            }
        }
        let aliases = asked.map(|asked| asked.aliases.clone()).unwrap_or_default();
        attachments.push(TaskAttachment {
            network: id,
            addresses,
            aliases,
        });
    }
    Ok(attachments)
}
