//! What the nodes carry, counted once per pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    NodeId, ServiceId, TaskState, Timestamp,
    object::{Node, Task},
    spec::{GenericResource, Protocol, PublishMode, Resources},
};

use crate::core::state::State;

/// A node with what is left on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node.
    pub node: Arc<Node>,
    /// Its resources without the reservations of its tasks. Reservations may exceed a node that has shrunk.
    pub free_nano_cpus: i128,
    /// Likewise, bytes.
    pub free_memory_bytes: i128,
    /// Units of generic resources that are reserved, by kind.
    pub used_generic: BTreeMap<String, u64>,
    /// Tasks on it that are meant to run.
    pub active: u64,
    /// The same by service.
    pub active_by_service: BTreeMap<ServiceId, u64>,
    /// Host-mode ports in use.
    pub host_ports: BTreeSet<(Protocol, u16)>,
    /// Times at which tasks failed here, by service and spec version.
    pub failures: BTreeMap<(ServiceId, u64), Vec<Timestamp>>,
}

impl NodeInfo {
    fn new(node: Arc<Node>) -> Self {
        let resources = &node.description.resources;
        Self {
            free_nano_cpus: i128::from(resources.nano_cpus),
            free_memory_bytes: i128::from(resources.memory_bytes),
            used_generic: BTreeMap::new(),
            active: 0,
            active_by_service: BTreeMap::new(),
            host_ports: BTreeSet::new(),
            failures: BTreeMap::new(),
            node,
        }
    }

    /// Active tasks of a service on this node.
    pub fn active_of(&self, service: &ServiceId) -> u64 {
        self.active_by_service.get(service).copied().unwrap_or(0)
    }

    fn add(&mut self, task: &Task) {
        let reserved = &task.spec.resources.reservations;
        self.free_nano_cpus -= i128::from(reserved.nano_cpus);
        self.free_memory_bytes -= i128::from(reserved.memory_bytes);
        for (kind, amount) in &reserved.generic {
            *self.used_generic.entry(kind.clone()).or_default() += units(amount);
        }
        let ports = task.ports.iter().chain(&task.status.host_ports);
        let host = ports.filter(|port| port.mode == PublishMode::Host && port.published != 0);
        self.host_ports
            .extend(host.map(|port| (port.protocol, port.published)));
        if task.desired_state <= TaskState::Complete {
            self.active += 1;
            *self
                .active_by_service
                .entry(task.service.clone())
                .or_default() += 1;
        }
    }

    fn note_failure(&mut self, task: &Task) {
        let key = (task.service.clone(), task.spec_version);
        self.failures.entry(key).or_default().push(task.status.at);
    }
}

/// Units of a generic resource; names count as one each.
pub(super) fn units(amount: &GenericResource) -> u64 {
    match amount {
        GenericResource::Discrete(units) => *units,
        GenericResource::Named(names) => names.len() as u64,
    }
}

/// Units of a kind that a node has.
pub(super) fn units_of(resources: &Resources, kind: &str) -> u64 {
    resources.generic.get(kind).map_or(0, units)
}

/// All nodes of a pass.
pub(super) struct Nodes<'a> {
    infos: BTreeMap<&'a NodeId, NodeInfo>,
}

impl<'a> Nodes<'a> {
    /// Counts what the nodes carry. A task counts until it has ended, whatever is wanted of it.
    pub(super) fn of(state: &'a State) -> Self {
        let mut infos: BTreeMap<&NodeId, NodeInfo> = state
            .nodes()
            .map(|node| (&node.id, NodeInfo::new(node.clone())))
            .collect();
        for (id, info) in &mut infos {
            for task in state.tasks_of_node(id) {
                match task.status.state {
                    TaskState::Failed | TaskState::Rejected => info.note_failure(task),
                    state if state.is_terminal() => {}
                    // A task that waits for its node to be confirmed does not use it yet.
                    state if state < TaskState::Assigned => {}
                    _ => info.add(task),
                }
            }
        }
        Self { infos }
    }

    pub(super) fn get(&self, id: &NodeId) -> Option<&NodeInfo> {
        self.infos.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &NodeInfo> {
        self.infos.values()
    }

    /// Counts a task that was just placed.
    pub(super) fn add(&mut self, task: &Task, node: &NodeId) {
        if let Some(info) = self.infos.get_mut(node) {
            info.add(task);
        }
    }
}
