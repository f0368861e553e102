//! What the cluster gives out: subnets and VNIs to networks, virtual addresses and ports to services, addresses to tasks.
//!
//! What is free is never stored: it is what nobody claims in the state. An address is free again when its service is gone
//! or its task is over, not earlier. A task leaves New when its service and all of its attachments have what they need;
//! until then its `status.err` says what is missing.

mod endpoint;
mod ipam;
mod ports;
mod task;
mod vni;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use shoal_api::{
    Actor, NetworkId, ServiceId, TaskState,
    object::{Network, Object, Service},
    planted::{Bug, planted},
    spec::{EndpointSpec, NetworkTarget, PublishMode, TaskSpec},
};

use super::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Delta, Event, State},
};

pub use ipam::Given;
pub(crate) use ipam::subnet_of_host;

/// Tasks that one plan gives addresses to at most; the rest follows in the next batch.
const TASKS_PER_PLAN_MAX: usize = 1_000;

/// Gives networks, services and tasks what they need.
#[derive(Debug, Default, Clone, Copy)]
pub struct Allocator;

/// What the allocator looks at as one thing. Networks come first: everything else needs them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A network: its subnets and VNI.
    Network(NetworkId),
    /// A service: its endpoint, then its tasks.
    Service(ServiceId),
}

impl Reconciler for Allocator {
    type Key = Key;
    const ACTOR: Actor = Actor::Allocator;

    fn affected(&self, state: &State, event: &Event) -> Vec<Key> {
        match event {
            Event::Network(delta) => {
                let id = delta.any().id.clone();
                // What one network gives back, another one may wait for.
                let waiting = state
                    .networks()
                    .filter(|network| network.allocated.is_none());
                let services = waiting_services(state).into_iter().map(Key::Service);
                let networks = waiting.map(|network| Key::Network(network.id.clone()));
                [Key::Network(id)]
                    .into_iter()
                    .chain(networks)
                    .chain(services)
                    .collect()
            }
            Event::Service(delta) => {
                let is_new = !delta.is_deleted() && delta.changed(|service| service.spec.clone());
                let own = is_new.then(|| delta.any().id.clone());
                let mut services: BTreeSet<_> = own.into_iter().collect();
                if gives_back(delta) && !planted(Bug::WaitersForgotten) {
                    services.extend(waiting_services(state));
                    services.extend(services_behind(state));
                }
                services.into_iter().map(Key::Service).collect()
            }
            Event::Task(delta) => match &delta.new {
                Some(task) if task.status.state == TaskState::New => {
                    vec![Key::Service(task.service.clone())]
                }
                Some(task) if !task.status.state.is_terminal() => Vec::new(),
                // It may have given back an address that others wait for.
                _ if delta.any().networks.is_empty() || planted(Bug::WaitersForgotten) => {
                    Vec::new()
                }
                _ => waiting_services(state)
                    .into_iter()
                    .map(Key::Service)
                    .collect(),
            },
            _ => Vec::new(),
        }
    }

    fn all(&self, state: &State) -> Vec<Key> {
        let networks = state
            .networks()
            .map(|network| Key::Network(network.id.clone()));
        networks
            .chain(
                state
                    .services()
                    .map(|service| Key::Service(service.id.clone())),
            )
            .collect()
    }

    fn reconcile(&self, state: &State, key: &Key, cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        match key {
            Key::Network(id) => {
                let network = state
                    .network(id)
                    .filter(|network| network.allocated.is_none());
                if let Some(network) = network
                    && let Ok(allocated) = ipam::allocate_network(state, network)
                {
                    let mut network = network.as_ref().clone();
                    network.allocated = Some(allocated);
                    plan.update(Object::Network(network));
                }
            }
            Key::Service(id) => match state.service(id) {
                Some(service) => reconcile_service(state, service, cx, &mut plan),
                None => task::allocate_attachments(state, id, cx, &mut plan),
            },
        }
        plan
    }
}

fn reconcile_service(state: &State, service: &Arc<Service>, cx: &Ctx<'_>, plan: &mut Plan) {
    let mut given = Given::default();
    let service = match endpoint::allocate(state, service, &mut given) {
        Ok(None) => service.clone(),
        Ok(Some(endpoint)) => {
            let mut changed = service.as_ref().clone();
            changed.endpoint = Some(endpoint);
            plan.update(Object::Service(changed.clone()));
            Arc::new(changed)
        }
        Err(missing) => {
            task::explain_all(state, service, &missing, cx, plan);
            return;
        }
    };
    task::allocate_all(state, &service, &mut given, cx, plan);
}

/// Services with tasks that wait for something to become free.
fn waiting_services(state: &State) -> BTreeSet<ServiceId> {
    state
        .tasks_waiting(TaskState::New)
        .map(|task| task.service.clone())
        .collect()
}

/// Services whose endpoint is not yet as asked for. Their tasks need not wait for it.
fn services_behind(state: &State) -> impl Iterator<Item = ServiceId> {
    let is_behind = |service: &&Arc<Service>| {
        let endpoint = service.endpoint.as_ref();
        endpoint.is_none_or(|endpoint| endpoint.spec != service.spec.endpoint)
    };
    let services = state.services().filter(is_behind);
    services.map(|service| service.id.clone())
}

/// Whether a service holds fewer ports or virtual addresses than before.
fn gives_back(delta: &Delta<Service>) -> bool {
    let Some(old) = delta.old.as_ref().and_then(|old| old.endpoint.as_ref()) else {
        return false;
    };
    let Some(new) = delta.new.as_ref().and_then(|new| new.endpoint.as_ref()) else {
        return true;
    };
    let keeps_ports = old.ports.iter().all(|port| new.ports.contains(port));
    let mut addresses = old.virtual_ips.iter();
    !keeps_ports || !addresses.all(|address| new.virtual_ips.contains(address))
}

/// Why a network has no subnets.
fn why_unallocated(state: &State, network: &Network) -> String {
    let name = &network.spec.annotations.name;
    match ipam::allocate_network(state, network) {
        Ok(_) => format!("network {name} has no subnet yet"),
        Err(why) => format!("network {name}: {why}"),
    }
}

/// The cluster networks in which a task takes part: ingress first if its service publishes ports on all nodes.
///
/// # Errors
/// The ingress network is needed and does not exist.
pub(crate) fn networks_of(
    state: &State,
    endpoint: &EndpointSpec,
    task: &TaskSpec,
) -> Result<Vec<NetworkId>, String> {
    let mut networks = Vec::new();
    if publishes_ingress(endpoint) {
        let ingress = state
            .ingress_network()
            .ok_or("ingress network is missing")?;
        networks.push(ingress.id.clone());
    }
    let attached = task
        .networks
        .iter()
        .filter_map(|attachment| match &attachment.target {
            NetworkTarget::Cluster(id) => Some(id.clone()),
            NetworkTarget::Node(_) => None,
        });
    networks.extend(attached);
    Ok(networks)
}

/// Whether any port is published on all nodes.
pub(crate) fn publishes_ingress(endpoint: &EndpointSpec) -> bool {
    endpoint
        .ports
        .iter()
        .any(|port| port.mode == PublishMode::Ingress)
}
