//! Filters: whether a node can run a task, and in which words it cannot. Order and words as in SwarmKit's
//! `manager/scheduler/{filter,pipeline}.go`.

use std::cmp::Reverse;

use shoal_api::{
    NetworkId, ServiceId,
    object::{Node, NodeState, Service, Task},
    planted::{Bug, planted},
    spec::{
        Availability, MountKind, NetworkTarget, Placement, Platform, PortConfig, Protocol,
        PublishMode, Resources, TaskSpec,
    },
    tunnel::ENCRYPTED_PLUGIN,
};

use super::{
    constraint::{Constraint, parse_all, platform_fits},
    ledger::{Ledger, NodeInfo, Slot, units, units_of},
    volumes,
};
use crate::core::state::State;

/// What a task needs of a node; the same for all tasks of a service and spec version.
#[derive(Debug, Clone)]
pub(super) struct TaskNeeds {
    /// Its service.
    pub(super) service: ServiceId,
    /// Its spec version.
    pub(super) spec_version: u64,
    /// What must be free.
    reservations: Resources,
    /// Drivers, `Volume/local`, `Network/overlay`, …, and devices by name, `CDI/vendor.com/class=name`.
    pub(super) plugins: Vec<String>,
    /// What must hold of the node; `None` when the texts make no sense, which nothing satisfies.
    pub(super) constraints: Option<Vec<Constraint>>,
    /// Platforms of the image.
    pub(super) platforms: Vec<Platform>,
    /// Host-mode ports.
    host_ports: Vec<(Protocol, u16)>,
    /// Tasks of the service per node at most; 0 is no limit.
    max_replicas: u64,
    /// Node attributes to spread over.
    pub(super) spread: Vec<String>,
    /// Volumes that it shall not leave.
    volumes: Vec<String>,
}

impl TaskNeeds {
    /// What a task needs.
    pub(super) fn of(state: &State, task: &Task) -> Self {
        let group = (task.service.clone(), task.spec_version);
        let mut needs = Self {
            volumes: volumes::of_task(task),
            ..Self::new(group, &task.spec, &task.ports)
        };
        needs.encryption(state, task.networks.iter().map(|place| &place.network));
        needs
    }

    /// What the next task of a service needs.
    pub(super) fn of_service(state: &State, service: &Service) -> Self {
        let group = (service.id.clone(), service.spec_version);
        let mut needs = Self {
            volumes: volumes::of_service(service),
            ..Self::new(group, &service.spec.task, &service.spec.endpoint.ports)
        };
        let asked = service.spec.task.networks.iter();
        let networks = asked.filter_map(|place| match &place.target {
            NetworkTarget::Cluster(id) => Some(id),
            _ => None,
        });
        needs.encryption(state, networks);
        needs
    }

    /// Asks for a node that can encrypt, if one of these networks needs it.
    fn encryption<'n>(&mut self, state: &State, mut networks: impl Iterator<Item = &'n NetworkId>) {
        let encrypted = |id| state.network(id).is_some_and(|n| n.spec.is_encrypted());
        if networks.any(encrypted) {
            self.plugins.push(ENCRYPTED_PLUGIN.to_owned());
        }
    }

    /// Needs of a kind, of no service.
    #[cfg(test)]
    pub(super) fn of_kind(
        plugins: Vec<String>,
        constraints: Option<Vec<Constraint>>,
        platforms: Vec<Platform>,
        spread: Vec<String>,
    ) -> Self {
        let nobody = "none".parse().expect("an id of letters");
        Self {
            plugins,
            constraints,
            platforms,
            spread,
            ..Self::new((nobody, 0), &TaskSpec::default(), &[])
        }
    }

    fn new(
        (service, spec_version): (ServiceId, u64),
        spec: &TaskSpec,
        ports: &[PortConfig],
    ) -> Self {
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
        let devices = spec.container.host.cdi_devices.iter();
        plugins.extend(devices.map(|device| format!("{DEVICE}{device}")));
        let ports = ports
            .iter()
            .filter(|port| port.mode == PublishMode::Host && port.published != 0);
        Self {
            service,
            spec_version,
            reservations: spec.resources.reservations.clone(),
            plugins,
            constraints: parse_all(&spec.placement).ok(),
            platforms,
            host_ports: ports.map(|port| (port.protocol, port.published)).collect(),
            max_replicas,
            spread,
            volumes: Vec::new(),
        }
    }
}

/// A node that may run a task.
pub(super) struct Candidate<'l> {
    info: &'l NodeInfo,
    ledger: &'l Ledger,
    slot: Slot,
}

/// One reason for which a node may be unable to run a task.
pub(super) trait Filter: Sync {
    /// Whether the node passes.
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool;
    /// Says that `nodes` nodes did not pass.
    fn explain(&self, nodes: usize) -> String;
    /// Says why this node does not pass.
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String;
}

fn counted(what: &str, nodes: usize) -> String {
    if nodes == 1 {
        format!("{what} on 1 node")
    } else {
        format!("{what} on {nodes} nodes")
    }
}

fn is_ready(node: &Node) -> bool {
    node.status.state == NodeState::Ready
        && (node.spec.availability == Availability::Active || planted(Bug::SchedulerDrained))
}

fn satisfies(task: &TaskNeeds, node: &Node) -> bool {
    let constraints = task.constraints.as_ref();
    constraints.is_some_and(|all| all.iter().all(|constraint| constraint.matches(node)))
}

struct Ready;
impl Filter for Ready {
    fn check(&self, _: &TaskNeeds, node: &Candidate<'_>) -> bool {
        is_ready(&node.info.node)
    }
    fn explain(&self, nodes: usize) -> String {
        if nodes == 1 {
            "1 node not available for new tasks".to_owned()
        } else {
            format!("{nodes} nodes not available for new tasks")
        }
    }
    fn why(&self, _: &TaskNeeds, node: &Candidate<'_>) -> String {
        let node = &node.info.node;
        match node.spec.availability {
            Availability::Drain => "the node is drained".to_owned(),
            Availability::Pause => "the node is paused".to_owned(),
            Availability::Active => format!("the node is {}", node.status.state.as_str()),
        }
    }
}

struct Resource;
impl Resource {
    /// What a node has too little of, in words.
    fn lacking(task: &TaskNeeds, node: &NodeInfo) -> Option<String> {
        let wanted = &task.reservations;
        let have = &node.node.description.resources;
        if u128::from(wanted.nano_cpus) > node.free_nano_cpus() {
            let cpus = |nano: u128| nano as f64 / 1e9;
            return Some(format!(
                "{} CPUs wanted, {} of {} free",
                cpus(wanted.nano_cpus.into()),
                cpus(node.free_nano_cpus()),
                cpus(have.nano_cpus.into())
            ));
        }
        if u128::from(wanted.memory_bytes) > node.free_memory_bytes()
            && !planted(Bug::SchedulerOvercommits)
        {
            return Some(format!(
                "{} bytes of memory wanted, {} of {} free",
                wanted.memory_bytes,
                node.free_memory_bytes(),
                have.memory_bytes
            ));
        }
        wanted.generic.iter().find_map(|(kind, amount)| {
            let (amount, total) = (units(amount), units_of(have, kind));
            let used = node.used_generic.get(kind).copied().unwrap_or(0);
            let free = total.saturating_sub(used);
            (amount > free).then(|| format!("{amount} {kind} wanted, {free} of {total} free"))
        })
    }
}
impl Filter for Resource {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        Self::lacking(task, node.info).is_none()
    }
    fn explain(&self, nodes: usize) -> String {
        counted("insufficient resources", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let lacking = Self::lacking(task, node.info).unwrap_or_default();
        format!("insufficient resources: {lacking}")
    }
}

/// Begins the names of devices among plugins.
const DEVICE: &str = "CDI/";

/// The plugins that a node lacks: devices, or all others.
fn lacking<'t>(
    task: &'t TaskNeeds,
    node: &'t Candidate<'_>,
    devices: bool,
) -> impl Iterator<Item = &'t str> {
    let have = &node.info.node.description.plugins;
    let wanted = task
        .plugins
        .iter()
        .filter(move |plugin| plugin.starts_with(DEVICE) == devices);
    let missing = wanted.filter(move |plugin| !have.contains(plugin));
    missing.map(String::as_str)
}

struct Plugin;
impl Filter for Plugin {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        lacking(task, node, false).next().is_none()
    }
    fn explain(&self, nodes: usize) -> String {
        counted("missing plugin", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let missing: Vec<&str> = lacking(task, node, false).collect();
        format!("missing plugin: {}", missing.join(", "))
    }
}

struct Devices;
impl Filter for Devices {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        lacking(task, node, true).next().is_none()
    }
    fn explain(&self, nodes: usize) -> String {
        counted("missing device", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let missing = lacking(task, node, true).map(|device| &device[DEVICE.len()..]);
        let missing: Vec<&str> = missing.collect();
        format!("missing device: {}", missing.join(", "))
    }
}

struct Constraints;
impl Filter for Constraints {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        satisfies(task, &node.info.node)
    }
    fn explain(&self, nodes: usize) -> String {
        counted("scheduling constraints not satisfied", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let node = &node.info.node;
        let constraints = task.constraints.iter().flatten();
        let failed = constraints.filter(|constraint| !constraint.matches(node));
        let failed: Vec<_> = failed.map(ToString::to_string).collect();
        format!(
            "scheduling constraints not satisfied: {}",
            failed.join(", ")
        )
    }
}

struct PlatformFilter;
impl Filter for PlatformFilter {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        platform_fits(&task.platforms, &node.info.node)
    }
    fn explain(&self, nodes: usize) -> String {
        counted("unsupported platform", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let name = |p: &Platform| format!("{}/{}", p.os, p.architecture);
        let wanted: Vec<_> = task.platforms.iter().map(name).collect();
        let have = name(&node.info.node.description.platform);
        format!(
            "unsupported platform: {have}, wanted {}",
            wanted.join(" or ")
        )
    }
}

struct HostPort;
impl Filter for HostPort {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        let taken = &node.info.host_ports;
        !task.host_ports.iter().any(|port| taken.contains_key(port))
    }
    fn explain(&self, nodes: usize) -> String {
        counted("host-mode port already in use", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let taken = &node.info.host_ports;
        let clashes = task
            .host_ports
            .iter()
            .filter(|port| taken.contains_key(port));
        let clashes: Vec<_> = clashes
            .map(|(protocol, port)| format!("{port}/{protocol}"))
            .collect();
        format!("host-mode port already in use: {}", clashes.join(", "))
    }
}

struct MaxReplicas;
impl Filter for MaxReplicas {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        task.max_replicas == 0 || node.ledger.tasks_of(&task.service, node.slot) < task.max_replicas
    }
    // SwarmKit leaves the number out here, with which the others do not add up to the nodes that there are.
    fn explain(&self, nodes: usize) -> String {
        counted("max replicas per node limit exceed", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let have = node.ledger.tasks_of(&task.service, node.slot);
        format!(
            "max replicas per node limit exceed: {have} of {}",
            task.max_replicas
        )
    }
}

struct Volumes;
impl Volumes {
    /// The volumes that other nodes have and this one has not.
    fn missing<'t>(task: &'t TaskNeeds, node: &Candidate<'_>) -> impl Iterator<Item = &'t String> {
        let elsewhere = |name: &&String| {
            let holders = node.ledger.holders_of(name);
            holders.is_some_and(|holders| !holders.contains(&node.slot))
        };
        task.volumes.iter().filter(elsewhere)
    }
}
impl Filter for Volumes {
    fn check(&self, task: &TaskNeeds, node: &Candidate<'_>) -> bool {
        Self::missing(task, node).next().is_none()
    }
    fn explain(&self, nodes: usize) -> String {
        counted("missing volume", nodes)
    }
    fn why(&self, task: &TaskNeeds, node: &Candidate<'_>) -> String {
        let missing = Self::missing(task, node).map(|name| {
            let holders = node.ledger.holders_of(name).into_iter().flatten();
            let hosts = holders.map(|slot| &*node.ledger.info(*slot).node.description.hostname);
            format!("{name} is on {}", hosts.collect::<Vec<_>>().join(", "))
        });
        format!("missing volume: {}", missing.collect::<Vec<_>>().join("; "))
    }
}

/// All filters; the first one that a node fails is its reason.
const FILTERS: [&dyn Filter; 9] = [
    &Ready,
    &Resource,
    &Plugin,
    &Devices,
    &Constraints,
    &PlatformFilter,
    &HostPort,
    &MaxReplicas,
    &Volumes,
];

#[cfg(test)]
thread_local! {
    /// How often a node was looked at for a task.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn candidate(ledger: &Ledger, slot: Slot) -> Candidate<'_> {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    Candidate {
        info: ledger.info(slot),
        ledger,
        slot,
    }
}

/// The first filter that a node does not pass.
pub(super) fn first_failing(
    task: &TaskNeeds,
    ledger: &Ledger,
    slot: Slot,
) -> Option<&'static dyn Filter> {
    let node = candidate(ledger, slot);
    FILTERS
        .into_iter()
        .find(|filter| !filter.check(task, &node))
}

/// Everything that keeps a node from running a task, in words.
pub(super) fn reasons(task: &TaskNeeds, ledger: &Ledger, slot: Slot) -> Vec<String> {
    let node = candidate(ledger, slot);
    let failed = FILTERS.into_iter().filter(|f| !f.check(task, &node));
    failed.map(|filter| filter.why(task, &node)).collect()
}

/// Whether a node passes the filters that do not ask what it carries.
pub(super) fn fits(task: &TaskNeeds, node: &Node) -> bool {
    let have = &node.description.plugins;
    is_ready(node)
        && task.plugins.iter().all(|plugin| have.contains(plugin))
        && satisfies(task, node)
        && platform_fits(&task.platforms, node)
}

/// Whether a node passes the filters that ask what it carries.
pub(super) fn has_room(task: &TaskNeeds, ledger: &Ledger, slot: Slot) -> bool {
    let node = candidate(ledger, slot);
    Resource.check(task, &node)
        && HostPort.check(task, &node)
        && MaxReplicas.check(task, &node)
        && Volumes.check(task, &node)
}

/// Says why no node can run a task.
pub(super) fn explain_all(task: &TaskNeeds, ledger: &Ledger) -> String {
    let reasons = counts(task, ledger);
    if reasons.is_empty() {
        "no suitable node".to_owned()
    } else {
        format!("no suitable node ({reasons})")
    }
}

/// What speaks against nodes: each one counts once, the most frequent reason comes first.
pub(super) fn counts(task: &TaskNeeds, ledger: &Ledger) -> String {
    let mut failed = [0usize; FILTERS.len()];
    for (slot, _) in ledger.iter() {
        let node = candidate(ledger, slot);
        if let Some(place) = FILTERS.iter().position(|filter| !filter.check(task, &node)) {
            failed[place] += 1;
        }
    }
    let failed = failed.into_iter().enumerate();
    let mut reasons: Vec<_> = failed.filter(|(_, nodes)| *nodes > 0).collect();
    reasons.sort_by_key(|(place, nodes)| (Reverse(*nodes), *place));
    let reasons: Vec<_> = reasons
        .into_iter()
        .map(|(place, nodes)| FILTERS[place].explain(nodes))
        .collect();
    reasons.join("; ")
}
