//! What the nodes carry, kept in step with the state task by task.
//!
//! The ledger is a function of the nodes and tasks of a state and of nothing else; that it follows events instead of being
//! counted anew in each pass is what keeps a placement as cheap with ten thousand nodes as with a hundred.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use shoal_api::{
    NodeId, ServiceId, TaskState, Timestamp,
    object::{Node, Task},
    planted::{Bug, planted},
    spec::{GenericResource, Protocol, PublishMode, Resources},
};

use super::{class::Class, filter::TaskNeeds};
use crate::core::state::{Event, LogIndex, State};

/// Place of a node among all nodes in the order of their ids.
pub(super) type Slot = u32;
/// Classes that are kept: each one costs a little with every task that comes or goes.
const CLASSES_MAX: usize = 16;
/// A service at a version of its spec.
type Group = (ServiceId, u64);

/// A node with what is taken of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NodeInfo {
    /// The node.
    pub node: Arc<Node>,
    /// Reserved by its tasks; may exceed what a node that has shrunk has.
    pub used_nano_cpus: u128,
    /// Likewise, bytes.
    pub used_memory_bytes: u128,
    /// Units of generic resources that are reserved, by kind.
    pub used_generic: BTreeMap<String, u64>,
    /// Names of generic resources that its tasks have, by kind.
    claimed: BTreeMap<String, BTreeSet<String>>,
    /// Tasks on it that are meant to run.
    pub active: u64,
    /// Host-mode ports, with the number of tasks that have them.
    pub host_ports: BTreeMap<(Protocol, u16), u32>,
}

impl NodeInfo {
    fn new(node: Arc<Node>) -> Self {
        Self {
            used_nano_cpus: 0,
            used_memory_bytes: 0,
            used_generic: BTreeMap::new(),
            claimed: BTreeMap::new(),
            active: 0,
            host_ports: BTreeMap::new(),
            node,
        }
    }

    /// Billionths of a CPU that are not reserved.
    pub(super) fn free_nano_cpus(&self) -> u128 {
        u128::from(self.node.description.resources.nano_cpus).saturating_sub(self.used_nano_cpus)
    }

    /// Bytes that are not reserved.
    pub(super) fn free_memory_bytes(&self) -> u128 {
        u128::from(self.node.description.resources.memory_bytes)
            .saturating_sub(self.used_memory_bytes)
    }

    /// What a task with these reservations gets of this node's generic resources.
    pub(super) fn claim(&self, wanted: &Resources) -> Option<Arc<Resources>> {
        if wanted.generic.is_empty() {
            return None;
        }
        let have = &self.node.description.resources.generic;
        let given = wanted.generic.iter().map(|(kind, amount)| {
            let amount = units(amount);
            let given = match have.get(kind) {
                Some(GenericResource::Named(names)) => {
                    let taken = self.claimed.get(kind);
                    let is_free = |name: &&String| {
                        taken.is_none_or(|taken| !taken.contains(*name))
                            || planted(Bug::ThingsShared)
                    };
                    let free = names.iter().filter(is_free).cloned();
                    let amount = usize::try_from(amount).unwrap_or(usize::MAX);
                    GenericResource::Named(free.take(amount).collect())
                }
                _ => GenericResource::Discrete(amount),
            };
            (kind.clone(), given)
        });
        Some(Arc::new(Resources {
            generic: given.collect(),
            ..Resources::default()
        }))
    }

    fn add(&mut self, task: &Task, assigned: Option<&Resources>) {
        let reserved = &task.spec.resources.reservations;
        self.used_nano_cpus += u128::from(reserved.nano_cpus);
        self.used_memory_bytes += u128::from(reserved.memory_bytes);
        for (kind, amount) in &reserved.generic {
            *self.used_generic.entry(kind.clone()).or_default() += units(amount);
        }
        for (kind, names) in named(assigned) {
            let claimed = self.claimed.entry(kind.clone()).or_default();
            claimed.extend(names.iter().cloned());
        }
        for port in host_ports(task) {
            *self.host_ports.entry(port).or_default() += 1;
        }
        self.active += u64::from(is_active(task));
    }

    fn remove(&mut self, task: &Task, assigned: Option<&Resources>) {
        let reserved = &task.spec.resources.reservations;
        self.used_nano_cpus -= u128::from(reserved.nano_cpus);
        self.used_memory_bytes -= u128::from(reserved.memory_bytes);
        for (kind, amount) in &reserved.generic {
            if let Some(used) = self.used_generic.get_mut(kind) {
                *used -= units(amount);
                if *used == 0 {
                    self.used_generic.remove(kind);
                }
            }
        }
        for (kind, names) in named(assigned) {
            if let Some(claimed) = self.claimed.get_mut(kind) {
                claimed.retain(|name| !names.contains(name));
                if claimed.is_empty() {
                    self.claimed.remove(kind);
                }
            }
        }
        for port in host_ports(task) {
            if let Some(holders) = self.host_ports.get_mut(&port) {
                *holders -= 1;
                if *holders == 0 {
                    self.host_ports.remove(&port);
                }
            }
        }
        self.active -= u64::from(is_active(task));
    }
}

/// Generic resources with names, by kind.
fn named(assigned: Option<&Resources>) -> impl Iterator<Item = (&String, &Vec<String>)> {
    let all = assigned.into_iter().flat_map(|assigned| &assigned.generic);
    all.filter_map(|(kind, amount)| match amount {
        GenericResource::Named(names) => Some((kind, names)),
        GenericResource::Discrete(_) => None,
    })
}

fn host_ports(task: &Task) -> BTreeSet<(Protocol, u16)> {
    let ports = task.ports.iter().chain(&task.status.host_ports);
    let host = ports.filter(|port| port.mode == PublishMode::Host && port.published != 0);
    host.map(|port| (port.protocol, port.published)).collect()
}

fn is_active(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

/// Whether a task takes something of its node: from the moment it is sent there until it has ended, whatever is wanted
/// of it.
fn takes_room(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

fn has_failed(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
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

/// All nodes with what they carry.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    /// The state that it is in step with.
    index: LogIndex,
    /// By slot: nodes in the order of their ids.
    nodes: Vec<NodeInfo>,
    slots: BTreeMap<NodeId, Slot>,
    /// Nodes by what was needed of them lately, newest first.
    classes: Vec<Class>,
    /// Active tasks of each service by node.
    services: BTreeMap<ServiceId, BTreeMap<Slot, u64>>,
    /// When tasks failed, by node, oldest first.
    failures: BTreeMap<Group, BTreeMap<Slot, Vec<Timestamp>>>,
    /// Tasks that a plan has placed and that are counted here already, in the order of the plan, until what became of
    /// them comes back as events.
    planned: VecDeque<Planned>,
    /// The nodes that have a volume of this name.
    volumes: BTreeMap<String, BTreeSet<Slot>>,
}

/// A task that a plan has placed.
#[derive(Debug, Clone)]
struct Planned {
    /// As it was before.
    task: Arc<Task>,
    slot: Slot,
    assigned: Option<Arc<Resources>>,
}

impl Ledger {
    /// Counts what the nodes of a state carry.
    pub(super) fn of(state: &State) -> Self {
        let nodes: Vec<_> = state.nodes().map(|n| NodeInfo::new(n.clone())).collect();
        let slots = nodes.iter().zip(0..);
        let mut ledger = Self {
            index: state.index(),
            slots: slots
                .map(|(info, slot)| (info.node.id.clone(), slot))
                .collect(),
            classes: Vec::new(),
            nodes,
            services: BTreeMap::new(),
            failures: BTreeMap::new(),
            planned: VecDeque::new(),
            volumes: BTreeMap::new(),
        };
        for slot in 0..ledger.nodes.len() {
            ledger.enter_volumes(slot as Slot);
        }
        for task in state.tasks() {
            ledger.enter(task);
        }
        ledger
    }

    /// Whether it is in step with a state.
    pub(super) fn is_of(&self, state: &State) -> bool {
        self.index == state.index()
    }

    /// Follows an event on the way to `state`; `false` is a change that it cannot follow.
    pub(super) fn follow(&mut self, state: &State, event: &Event) -> bool {
        self.index = state.index();
        match event {
            Event::Task(delta) => {
                if let (Some(old), Some(new)) = (&delta.old, &delta.new)
                    && self.has_come_true(old, new)
                {
                    return true;
                }
                if let Some(old) = &delta.old {
                    self.strike(old);
                }
                if let Some(new) = &delta.new {
                    self.enter(new);
                }
                true
            }
            Event::Node(delta) => match (&delta.old, &delta.new) {
                (Some(_), Some(new)) => {
                    if let Some(slot) = self.slots.get(&new.id).copied() {
                        self.strike_volumes(slot);
                        self.nodes[slot as usize].node = new.clone();
                        self.enter_volumes(slot);
                    }
                    self.classes.clear();
                    true
                }
                // Slots move.
                _ => false,
            },
            _ => true,
        }
    }

    /// Counts a task on the node for which a plan means it.
    pub(super) fn plan(&mut self, task: &Arc<Task>, slot: Slot, assigned: Option<Arc<Resources>>) {
        self.count(slot, task, assigned.as_deref());
        self.planned.push_back(Planned {
            task: task.clone(),
            slot,
            assigned,
        });
    }

    /// Takes back what [`Self::plan`] counted and nothing has come of.
    pub(super) fn forget_plan(&mut self) {
        for planned in std::mem::take(&mut self.planned) {
            self.discount(planned.slot, &planned.task, planned.assigned.as_deref());
        }
    }

    /// Whether this is what was planned for a task, which then is counted as it is.
    fn has_come_true(&mut self, old: &Task, new: &Task) -> bool {
        let is_placement =
            old.status.state == TaskState::Pending && new.status.state == TaskState::Assigned;
        if !is_placement {
            return false;
        }
        // Events come in the order of the plan, so that this is the first one.
        let mut planned = self.planned.iter();
        let Some(place) = planned.position(|planned| planned.task.id == new.id) else {
            return false;
        };
        let planned = &self.planned[place];
        let as_planned = new.desired_state == old.desired_state
            && new.node.as_ref() == Some(&self.nodes[planned.slot as usize].node.id)
            && new.assigned == planned.assigned;
        if as_planned {
            self.planned.remove(place);
        }
        as_planned
    }

    /// Counts a task where it is.
    fn enter(&mut self, task: &Task) {
        let Some(slot) = self.slot_of(task) else {
            return;
        };
        if takes_room(task) {
            self.count(slot, task, task.assigned.as_deref());
        } else if has_failed(task) {
            let group = (task.service.clone(), task.spec_version);
            let times = self.failures.entry(group).or_default();
            let times = times.entry(slot).or_default();
            let place = times.partition_point(|at| *at <= task.status.at);
            times.insert(place, task.status.at);
        }
    }

    fn count(&mut self, slot: Slot, task: &Task, assigned: Option<&Resources>) {
        self.load(slot, |info| info.add(task, assigned));
        if is_active(task) {
            match self.services.get_mut(&task.service) {
                Some(of_service) => *of_service.entry(slot).or_default() += 1,
                None => {
                    let of_service = BTreeMap::from([(slot, 1)]);
                    self.services.insert(task.service.clone(), of_service);
                }
            }
        }
    }

    /// Takes back what [`Self::count`] counted.
    fn discount(&mut self, slot: Slot, task: &Task, assigned: Option<&Resources>) {
        self.load(slot, |info| info.remove(task, assigned));
        if is_active(task)
            && let Some(of_service) = self.services.get_mut(&task.service)
            && let Some(tasks) = of_service.get_mut(&slot)
        {
            *tasks -= 1;
            if *tasks == 0 {
                of_service.remove(&slot);
            }
            if of_service.is_empty() {
                self.services.remove(&task.service);
            }
        }
    }

    /// Takes back what [`Self::enter`] counted.
    fn strike(&mut self, task: &Task) {
        let Some(slot) = self.slot_of(task) else {
            return;
        };
        if takes_room(task) {
            self.discount(slot, task, task.assigned.as_deref());
        } else if has_failed(task) {
            let group = (task.service.clone(), task.spec_version);
            let Some(nodes) = self.failures.get_mut(&group) else {
                return;
            };
            if let Some(times) = nodes.get_mut(&slot) {
                if let Ok(place) = times.binary_search(&task.status.at) {
                    times.remove(place);
                }
                if times.is_empty() {
                    nodes.remove(&slot);
                }
            }
            if nodes.is_empty() {
                self.failures.remove(&group);
            }
        }
    }

    fn enter_volumes(&mut self, slot: Slot) {
        let node = self.nodes[slot as usize].node.clone();
        for name in &node.description.volumes {
            self.volumes.entry(name.clone()).or_default().insert(slot);
        }
    }

    fn strike_volumes(&mut self, slot: Slot) {
        let node = self.nodes[slot as usize].node.clone();
        for name in &node.description.volumes {
            if let Some(holders) = self.volumes.get_mut(name) {
                holders.remove(&slot);
                if holders.is_empty() {
                    self.volumes.remove(name);
                }
            }
        }
    }

    /// The nodes that have a volume of this name; `None` if there is none yet.
    pub(super) fn holders_of(&self, volume: &str) -> Option<&BTreeSet<Slot>> {
        self.volumes.get(volume)
    }

    fn slot_of(&self, task: &Task) -> Option<Slot> {
        let node = task.node.as_ref()?;
        self.slots.get(node).copied()
    }

    fn load(&mut self, slot: Slot, change: impl FnOnce(&mut NodeInfo)) {
        let info = &mut self.nodes[slot as usize];
        let before = info.active;
        change(info);
        if info.active != before {
            let after = info.active;
            for class in &mut self.classes {
                class.load(slot, before, after);
            }
        }
    }

    /// The slot of a node.
    pub(super) fn slot(&self, node: &NodeId) -> Option<Slot> {
        self.slots.get(node).copied()
    }

    /// The node at a slot.
    pub(super) fn info(&self, slot: Slot) -> &NodeInfo {
        &self.nodes[slot as usize]
    }

    /// All nodes in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &NodeInfo)> {
        (0..).zip(&self.nodes)
    }

    /// Active tasks of a service on a node.
    pub(super) fn tasks_of(&self, service: &ServiceId, slot: Slot) -> u64 {
        let of_service = self.services.get(service);
        let tasks = of_service.and_then(|nodes| nodes.get(&slot));
        tasks.copied().unwrap_or(0)
    }

    /// The nodes with active tasks of a service, and how many.
    pub(super) fn nodes_of(&self, service: &ServiceId) -> impl Iterator<Item = (Slot, u64)> {
        let nodes = self.services.get(service).into_iter().flatten();
        nodes.map(|(slot, tasks)| (*slot, *tasks))
    }

    /// The place of the class of nodes that fit these needs; it stays until another class is asked for.
    pub(super) fn class_of(&mut self, needs: &TaskNeeds) -> usize {
        match self.classes.iter().position(|class| class.is_of(needs)) {
            Some(known) => self.classes[..=known].rotate_right(1),
            None => {
                self.classes.truncate(CLASSES_MAX - 1);
                self.classes.insert(0, Class::of(needs, &self.nodes));
            }
        }
        0
    }

    /// The class at a place.
    pub(super) fn class(&self, place: usize) -> &Class {
        &self.classes[place]
    }

    /// Whether it says the same as one that is counted anew.
    #[cfg(test)]
    pub(super) fn is_true(&self, anew: &Self) -> bool {
        let classes = self.classes.iter();
        let same_classes = classes.map(|class| *class == class.anew(&self.nodes));
        (&self.nodes, &self.slots, &self.services, &self.failures)
            == (&anew.nodes, &anew.slots, &anew.services, &anew.failures)
            && self.volumes == anew.volumes
            && same_classes.fold(true, |all, same| all && same)
    }

    /// The nodes on which tasks of a group failed since `from`, and how often.
    pub(super) fn failures_since(
        &self,
        group: &Group,
        from: Timestamp,
    ) -> impl Iterator<Item = (Slot, usize)> {
        let nodes = self.failures.get(group).into_iter().flatten();
        nodes.map(move |(slot, times)| {
            let old = times.partition_point(|at| *at <= from);
            (*slot, times.len() - old)
        })
    }
}
