//! Filters: whether a node can run a task, and in which words it cannot. Order and words as in SwarmKit's
//! `manager/scheduler/{filter,pipeline}.go`.

use std::cmp::Reverse;

use shoal_api::{
    ServiceId,
    object::{NodeState, Task},
    spec::{
        Availability, MountKind, NetworkTarget, Placement, Platform, Protocol, PublishMode,
        Resources,
    },
};

use super::{
    constraint::{Constraint, parse_all, platform_fits},
    nodes::{NodeInfo, units, units_of},
};

/// What a task needs of a node; the same for all tasks of a service and spec version.
#[derive(Debug, Clone)]
pub struct TaskNeeds {
    /// Its service.
    pub service: ServiceId,
    /// Its spec version.
    pub spec_version: u64,
    /// What must be free.
    pub reservations: Resources,
    /// Drivers, `Volume/local`, `Network/overlay`, …
    pub plugins: Vec<String>,
    /// What must hold of the node; `None` when the texts make no sense, which nothing satisfies.
    pub constraints: Option<Vec<Constraint>>,
    /// Platforms of the image.
    pub platforms: Vec<Platform>,
    /// Host-mode ports.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Tasks of the service per node at most; 0 is no limit.
    pub max_replicas: u64,
    /// Node attributes to spread over.
    pub spread: Vec<String>,
}

impl TaskNeeds {
    /// What a task needs.
    pub fn of(task: &Task) -> Self {
        let spec = &task.spec;
        let Placement {
            spread,
            max_replicas,
            platforms,
            ..
        } = spec.placement.clone();
        let mounts = spec
            .container
            .mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Volume);
        let drivers = mounts
            .filter_map(|mount| mount.driver.as_ref())
            .filter(|driver| !driver.name.is_empty());
        let mut plugins: Vec<String> = drivers
            .map(|driver| format!("Volume/{}", driver.name))
            .collect();
        if spec
            .networks
            .iter()
            .any(|network| matches!(network.target, NetworkTarget::Cluster(_)))
        {
            plugins.push("Network/overlay".to_owned());
        }
        if let Some(driver) = spec
            .log_driver
            .as_ref()
            .filter(|driver| !driver.name.is_empty())
        {
            plugins.push(format!("Log/{}", driver.name));
        }
        let ports = task
            .ports
            .iter()
            .filter(|port| port.mode == PublishMode::Host && port.published != 0);
        Self {
            service: task.service.clone(),
            spec_version: task.spec_version,
            reservations: spec.resources.reservations.clone(),
            plugins,
            constraints: parse_all(&spec.placement).ok(),
            platforms,
            host_ports: ports.map(|port| (port.protocol, port.published)).collect(),
            max_replicas,
            spread,
        }
    }
}

/// One reason for which a node may be unable to run a task.
pub trait Filter: Sync {
    /// Whether the node passes.
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool;
    /// Says that `nodes` nodes did not pass.
    fn explain(&self, nodes: usize) -> String;
}

fn counted(what: &str, nodes: usize) -> String {
    if nodes == 1 {
        format!("{what} on 1 node")
    } else {
        format!("{what} on {nodes} nodes")
    }
}

struct Ready;
impl Filter for Ready {
    fn check(&self, _: &TaskNeeds, node: &NodeInfo) -> bool {
        node.node.status.state == NodeState::Ready
            && node.node.spec.availability == Availability::Active
    }
    fn explain(&self, nodes: usize) -> String {
        if nodes == 1 {
            "1 node not available for new tasks".to_owned()
        } else {
            format!("{nodes} nodes not available for new tasks")
        }
    }
}

struct Resource;
impl Filter for Resource {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        let wanted = &task.reservations;
        let have = &node.node.description.resources;
        i128::from(wanted.nano_cpus) <= node.free_nano_cpus.max(0)
            && i128::from(wanted.memory_bytes) <= node.free_memory_bytes.max(0)
            && wanted.generic.iter().all(|(kind, amount)| {
                let used = node.used_generic.get(kind).copied().unwrap_or(0);
                used.saturating_add(units(amount)) <= units_of(have, kind)
            })
    }
    fn explain(&self, nodes: usize) -> String {
        counted("insufficient resources", nodes)
    }
}

struct Plugin;
impl Filter for Plugin {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        task.plugins
            .iter()
            .all(|plugin| node.node.description.plugins.contains(plugin))
    }
    fn explain(&self, nodes: usize) -> String {
        counted("missing plugin", nodes)
    }
}

struct Constraints;
impl Filter for Constraints {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        let constraints = task.constraints.as_ref();
        constraints.is_some_and(|all| all.iter().all(|constraint| constraint.matches(&node.node)))
    }
    fn explain(&self, nodes: usize) -> String {
        counted("scheduling constraints not satisfied", nodes)
    }
}

struct PlatformFilter;
impl Filter for PlatformFilter {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        platform_fits(&task.platforms, &node.node)
    }
    fn explain(&self, nodes: usize) -> String {
        counted("unsupported platform", nodes)
    }
}

struct HostPort;
impl Filter for HostPort {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        !task
            .host_ports
            .iter()
            .any(|port| node.host_ports.contains(port))
    }
    fn explain(&self, nodes: usize) -> String {
        counted("host-mode port already in use", nodes)
    }
}

struct MaxReplicas;
impl Filter for MaxReplicas {
    fn check(&self, task: &TaskNeeds, node: &NodeInfo) -> bool {
        task.max_replicas == 0 || node.active_of(&task.service) < task.max_replicas
    }
    fn explain(&self, _: usize) -> String {
        "max replicas per node limit exceed".to_owned()
    }
}

/// All filters; the first one that a node fails is its reason.
const FILTERS: [&dyn Filter; 7] = [
    &Ready,
    &Resource,
    &Plugin,
    &Constraints,
    &PlatformFilter,
    &HostPort,
    &MaxReplicas,
];

/// The first filter that a node does not pass.
pub(super) fn first_failing(task: &TaskNeeds, node: &NodeInfo) -> Option<&'static dyn Filter> {
    FILTERS.into_iter().find(|filter| !filter.check(task, node))
}

/// Whether a node passes all filters.
pub(super) fn passes(task: &TaskNeeds, node: &NodeInfo) -> bool {
    first_failing(task, node).is_none()
}

/// Says why no node can run a task: each node counts once, the most frequent reason comes first.
pub(super) fn explain_all<'a>(
    task: &TaskNeeds,
    nodes: impl Iterator<Item = &'a NodeInfo>,
) -> String {
    let mut failed = [0usize; FILTERS.len()];
    for node in nodes {
        if let Some(place) = FILTERS.iter().position(|filter| !filter.check(task, node)) {
            failed[place] += 1;
        }
    }
    let mut reasons: Vec<_> = failed
        .into_iter()
        .enumerate()
        .filter(|(_, nodes)| *nodes > 0)
        .collect();
    reasons.sort_by_key(|(place, nodes)| (Reverse(*nodes), *place));
    let reasons: Vec<_> = reasons
        .into_iter()
        .map(|(place, nodes)| FILTERS[place].explain(nodes))
        .collect();
    if reasons.is_empty() {
        "no suitable node".to_owned()
    } else {
        format!("no suitable node ({})", reasons.join("; "))
    }
}
