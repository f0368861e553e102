//! What must always be true of the state. Tests and the simulator ask after every step; nothing repairs what is found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    TaskState,
    object::{Service, Task},
    spec::{GenericResource, PublishMode, UpdateConfig, UpdateOrder},
};

use super::state::{State, overlap, ports_of};

/// Lists the invariants that a state breaks, each with the objects concerned.
pub fn audit(state: &State) -> Vec<String> {
    let mut broken = audit_objects(state);
    indexes(state, &mut broken);
    broken
}

/// As [`audit`], without what takes another copy of everything to see.
pub fn audit_objects(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    tasks(state, &mut broken);
    slots(state, &mut broken);
    networks(state, &mut broken);
    ports(state, &mut broken);
    asked_addresses(state, &mut broken);
    nodes(state, &mut broken);
    names(state, &mut broken);
    broken
}

/// A task with a place has a node; `remove` is desired, never observed; siblings share their spec.
fn tasks(state: &State, broken: &mut Vec<String>) {
    let mut specs = BTreeMap::new();
    for task in state.tasks() {
        let observed = task.status.state;
        if (TaskState::Assigned..=TaskState::Running).contains(&observed) && task.node.is_none() {
            broken.push(format!("task {} is {observed} without a node", task.id));
        }
        if observed == TaskState::Remove {
            broken.push(format!("task {} is observed in the state remove", task.id));
        }
        let shared = specs
            .entry((&task.service, task.spec_version))
            .or_insert(&task.spec);
        if !Arc::ptr_eq(shared, &task.spec) {
            broken.push(format!(
                "task {} does not share the spec of its version",
                task.id
            ));
        }
    }
}

/// A slot is meant to run one task at a time; a second one only while it is replaced in the order start-first.
fn slots(state: &State, broken: &mut Vec<String>) {
    for service in state.services() {
        let mut slots: BTreeMap<_, Vec<&Task>> = BTreeMap::new();
        for task in state
            .tasks_of_service(&service.id)
            .filter(|task| task.desired_state <= TaskState::Running)
        {
            let node = task.node.as_ref().filter(|_| task.slot == 0);
            slots.entry((task.slot, node)).or_default().push(task);
        }
        let start_first = |config: &Option<UpdateConfig>| {
            config.is_some_and(|c| c.order == UpdateOrder::StartFirst)
        };
        for ((slot, _), tasks) in slots {
            let versions: BTreeSet<_> = tasks.iter().map(|task| task.spec_version).collect();
            // Of the same version, they are the one that leaves its node and its replacement.
            let replaced = (versions.len() > 1 || tasks.len() == 2)
                && (start_first(&service.spec.update)
                    || start_first(&service.spec.rollback)
                    || service
                        .previous_spec
                        .as_ref()
                        .is_some_and(|spec| start_first(&spec.update)));
            if tasks.len() > 1 && !replaced {
                let ids: Vec<_> = tasks.iter().map(|task| task.id.as_str()).collect();
                let name = &service.spec.annotations.name;
                broken.push(format!(
                    "slot {slot} of {name} has several tasks: {}",
                    ids.join(", ")
                ));
            }
        }
    }
}

/// No address twice in a network, none outside its subnets; no VNI twice; no subnets that overlap.
fn networks(state: &State, broken: &mut Vec<String>) {
    let mut vnis = BTreeMap::new();
    let mut ranges: Vec<(ipnet::IpNet, &str)> = Vec::new();
    let mut used: BTreeMap<_, String> = BTreeMap::new();
    let mut take = |network, address, holder: String, broken: &mut Vec<String>| {
        if let Some(other) = used.insert((network, address), holder.clone()) {
            broken.push(format!(
                "address {address} belongs to {other} and to {holder}"
            ));
        }
    };
    for network in state.networks() {
        let name = network.spec.annotations.name.as_str();
        let Some(allocated) = &network.allocated else {
            continue;
        };
        if let Some(other) = vnis.insert(allocated.vni, name) {
            broken.push(format!(
                "VNI {} belongs to {other} and to {name}",
                allocated.vni
            ));
        }
        for subnet in &allocated.subnets {
            if let Some((range, other)) = ranges
                .iter()
                .find(|(range, _)| overlap(*range, subnet.range))
            {
                broken.push(format!(
                    "{} of {name} overlaps {range} of {other}",
                    subnet.range
                ));
            }
            ranges.push((subnet.range, name));
            take(
                network.id.clone(),
                subnet.gateway,
                format!("the gateway of {name}"),
                broken,
            );
        }
    }
    let inside = |network, address: ipnet::IpNet| {
        let network = state
            .network(network)
            .and_then(|network| network.allocated.as_ref());
        network.is_some_and(|given| {
            given.subnets.iter().any(|subnet| {
                subnet.range.contains(&address.addr())
                    && subnet.range.prefix_len() == address.prefix_len()
            })
        })
    };
    for service in state.services() {
        for vip in service
            .endpoint
            .iter()
            .flat_map(|endpoint| &endpoint.virtual_ips)
        {
            let holder = format!("service {}", service.spec.annotations.name);
            if !inside(&vip.network, vip.addr) {
                broken.push(format!(
                    "address {} of {holder} is outside its network",
                    vip.addr
                ));
            }
            take(vip.network.clone(), vip.addr.addr(), holder, broken);
        }
    }
    for task in state
        .tasks()
        .filter(|task| !task.status.state.is_terminal())
    {
        for attachment in &task.networks {
            for address in &attachment.addresses {
                let holder = format!("task {}", task.id);
                if !inside(&attachment.network, *address) {
                    broken.push(format!(
                        "address {address} of {holder} is outside its network"
                    ));
                }
                take(attachment.network.clone(), address.addr(), holder, broken);
            }
        }
    }
}

/// No port of all nodes is another service's as well, given or asked for.
fn ports(state: &State, broken: &mut Vec<String>) {
    let mut used: BTreeMap<_, Vec<(&Service, PublishMode)>> = BTreeMap::new();
    for service in state.services() {
        for port in ports_of(service).filter(|port| port.published != 0) {
            let users = used.entry((port.protocol, port.published)).or_default();
            let excludes = |mode| [mode, port.mode].contains(&PublishMode::Ingress);
            let mut others = users.iter().filter(|(other, _)| other.id != service.id);
            if let Some((other, _)) = others.find(|(_, mode)| excludes(*mode)) {
                let names = [*other, service.as_ref()].map(|one| &one.spec.annotations.name);
                let [other, name] = names;
                broken.push(format!(
                    "port {}/{} belongs to {other} and to {name}",
                    port.published, port.protocol
                ));
            }
            users.push((service.as_ref(), port.mode));
        }
    }
}

/// No virtual address is asked for by two services.
fn asked_addresses(state: &State, broken: &mut Vec<String>) {
    let mut used = BTreeMap::new();
    for service in state.services() {
        for asked in &service.spec.endpoint.addresses {
            let network = state.network_called(&service.spec, &asked.network);
            let other = used.insert((network, asked.address), service);
            if let Some(other) = other.filter(|other| other.id != service.id) {
                let [other, name] = [other, service].map(|one| &one.spec.annotations.name);
                broken.push(format!(
                    "address {} is asked for by {other} and by {name}",
                    asked.address
                ));
            }
        }
    }
}

/// Reservations fit their node; host-mode ports are unique on it; Raft ids are unique and were given out.
fn nodes(state: &State, broken: &mut Vec<String>) {
    let mut raft_ids = BTreeSet::new();
    for node in state.nodes() {
        let (mut nano_cpus, mut memory_bytes) = (0u128, 0u128);
        let (mut ports, mut things) = (BTreeSet::new(), BTreeSet::new());
        let live = |task: &&Arc<Task>| {
            (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
        };
        for task in state.tasks_of_node(&node.id).filter(live) {
            let reserved = &task.spec.resources.reservations;
            nano_cpus += u128::from(reserved.nano_cpus);
            memory_bytes += u128::from(reserved.memory_bytes);
            let assigned = task.assigned.iter().flat_map(|assigned| &assigned.generic);
            for (kind, amount) in assigned {
                let GenericResource::Named(names) = amount else {
                    continue;
                };
                for name in names {
                    if !things.insert((kind, name)) {
                        broken.push(format!("{kind} {name} of node {} has two tasks", node.id));
                    }
                }
            }
            let host = task
                .ports
                .iter()
                .filter(|port| port.mode == PublishMode::Host && port.published != 0);
            for port in host {
                if !ports.insert((port.protocol, port.published)) {
                    broken.push(format!(
                        "host port {} is used twice on node {}",
                        port.published, node.id
                    ));
                }
            }
        }
        let have = &node.description.resources;
        if nano_cpus > u128::from(have.nano_cpus) || memory_bytes > u128::from(have.memory_bytes) {
            broken.push(format!(
                "reservations on node {} exceed what it has",
                node.id
            ));
        }
        if let Some(manager) = &node.manager {
            if !raft_ids.insert(manager.raft_id) {
                broken.push(format!("Raft id {} is used twice", manager.raft_id));
            }
            if state
                .cluster()
                .is_some_and(|cluster| cluster.last_raft_id < manager.raft_id)
            {
                broken.push(format!("Raft id {} was never given out", manager.raft_id));
            }
        }
    }
}

/// No name twice among objects of a kind.
fn names(state: &State, broken: &mut Vec<String>) {
    let mut check = |kind: &str, names: Vec<&String>| {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                broken.push(format!("two {kind}s have the name {name}"));
            }
        }
    };
    check(
        "service",
        state.services().map(|o| &o.spec.annotations.name).collect(),
    );
    check(
        "network",
        state.networks().map(|o| &o.spec.annotations.name).collect(),
    );
    check(
        "secret",
        state.secrets().map(|o| &o.spec.annotations.name).collect(),
    );
    check(
        "config",
        state.configs().map(|o| &o.spec.annotations.name).collect(),
    );
}

/// Indexes say what the objects say: a state restored from its own snapshot is the same.
fn indexes(state: &State, broken: &mut Vec<String>) {
    match State::restore(state.index(), state.snapshot()) {
        Err(rejected) => broken.push(format!("its snapshot cannot be restored: {rejected}")),
        Ok(mut restored) => {
            restored.set_wishes(state.wishes());
            if !restored.is_same(state) {
                broken.push("its snapshot restores to another state".to_owned());
            }
        }
    }
}
