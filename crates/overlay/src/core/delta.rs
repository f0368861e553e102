//! The steps from one view to the next where only endpoints changed, in time proportional to the change.
//!
//! A cluster's everyday changes are endpoints of other nodes that come, go, or stop serving. Computing everything that the
//! kernel should hold, and comparing it with everything that it holds, takes a second with ten thousand services; these
//! steps are the same ones, found by what the two views do not share.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use shoal_api::{
    NetworkId, NodeId, ServiceId, TaskId,
    network::{Endpoint, NetworkSlice, NetworkView},
    table::Difference,
};

use super::{
    desired::{self, Balance, IpvsBalance, Params},
    diff::{Change, NetOp, element_edits, ipvs_changes},
    flows::{self, Ending, Endings},
    lb::Elements,
    naming,
    nft_wire::ElementEdit,
    rtnl_wire::Verb,
    ruleset::direct,
    state::{Family, MAIN_TABLE, Space},
};

/// How two views differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// In their version at most.
    Same,
    /// In endpoints alone: these steps lead from one to the other.
    Steps(Steps),
    /// In more than that: everything must be computed.
    Everything,
}

/// Steps between two views.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// In their order.
    pub ops: Vec<NetOp>,
    /// Backends that are no longer to be asked.
    pub endings: Endings,
    /// The endpoints that differ, for [`Index::follow`].
    pub moved: Vec<Moved>,
}

/// What a difference must know of all that stays: which endpoints services and nodes have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index(BTreeMap<NetworkId, OfNetwork>);

#[derive(Debug, Default, PartialEq, Eq)]
struct OfNetwork {
    tasks: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    /// How many endpoints each node has.
    nodes: BTreeMap<NodeId, usize>,
}

/// An endpoint of a network as it was and as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    network: NetworkId,
    task: TaskId,
    was: Option<Arc<Endpoint>>,
    is: Option<Arc<Endpoint>>,
}

impl Index {
    /// Of a view.
    pub fn of(view: &NetworkView) -> Self {
        let mut index = Self::default();
        for (network, slice) in &view.networks {
            let of_network = index.0.entry(network.clone()).or_default();
            for (task, endpoint) in slice.endpoints.iter() {
                of_network.add(task, endpoint);
            }
        }
        index
    }

    /// Goes on to the next view.
    pub fn follow(&mut self, moved: &[Moved]) {
        for one in moved {
            let of_network = self.0.entry(one.network.clone()).or_default();
            if let Some(was) = &one.was {
                of_network.remove(&one.task, was);
            }
            if let Some(is) = &one.is {
                of_network.add(&one.task, is);
            }
        }
    }
}

impl OfNetwork {
    fn add(&mut self, task: &TaskId, endpoint: &Endpoint) {
        *self.nodes.entry(endpoint.node.clone()).or_default() += 1;
        if let Some(service) = &endpoint.service {
            let tasks = self.tasks.entry(service.clone()).or_default();
            tasks.insert(task.clone());
        }
    }

    fn remove(&mut self, task: &TaskId, endpoint: &Endpoint) {
        if let Some(count) = self.nodes.get_mut(&endpoint.node) {
            *count -= 1;
        }
        self.nodes
            .retain(|node, count| *node != endpoint.node || *count > 0);
        if let Some(service) = &endpoint.service
            && let Some(tasks) = self.tasks.get_mut(service)
        {
            tasks.remove(task);
            if tasks.is_empty() {
                self.tasks.remove(service);
            }
        }
    }

    fn endpoints_on(&self, node: &NodeId) -> usize {
        self.nodes.get(node).copied().unwrap_or(0)
    }
}

/// Compares the view that is in force at node `me`, of which `index` is, with the next one.
pub fn delta(
    old: &NetworkView,
    new: &NetworkView,
    me: &NodeId,
    params: &Params,
    index: &Index,
) -> Delta {
    if old.data_path_port != new.data_path_port
        || old.peers != new.peers
        || !old.networks.keys().eq(new.networks.keys())
    {
        return Delta::Everything;
    }
    let mut steps = Steps::default();
    let none = OfNetwork::default();
    for ((id, old), (_, slice)) in old.networks.iter().zip(&new.networks) {
        if !alike(old, slice) {
            return Delta::Everything;
        }
        let changed: Vec<Changed<'_>> = old.endpoints.differences(&slice.endpoints).collect();
        if changed.is_empty() {
            continue;
        }
        let moved = |(task, was, is): &Changed<'_>| Moved {
            network: id.clone(),
            task: (*task).clone(),
            was: was.cloned(),
            is: is.cloned(),
        };
        steps.moved.extend(changed.iter().map(moved));
        let index = index.0.get(id).unwrap_or(&none);
        let network = Network {
            id,
            old,
            new: slice,
            view: new,
            me,
            params,
            index,
            changed: &changed,
        };
        match network.is_carried() {
            (false, false) => continue,
            (true, true) => {}
            _ => return Delta::Everything,
        }
        if !network.steps(&mut steps) {
            return Delta::Everything;
        }
    }
    if steps.moved.is_empty() {
        Delta::Same
    } else {
        Delta::Steps(steps)
    }
}

/// Whether two slices of a network are the same but for their endpoints.
fn alike(old: &NetworkSlice, new: &NetworkSlice) -> bool {
    let NetworkSlice {
        name: _,
        ingress,
        internal,
        encrypted,
        vni,
        mtu,
        subnets,
        attachable: _,
        labels: _,
        options: _,
        ip_ranges: _,
        endpoints: _,
        services,
    } = old;
    (ingress, internal, encrypted) == (&new.ingress, &new.internal, &new.encrypted)
        && (vni, mtu) == (&new.vni, &new.mtu)
        && *subnets == new.subnets
        && *services == new.services
}

/// An endpoint that differs, as it was and as it is.
type Changed<'a> = Difference<'a, TaskId, Arc<Endpoint>>;

struct Network<'a> {
    id: &'a NetworkId,
    old: &'a NetworkSlice,
    new: &'a NetworkSlice,
    view: &'a NetworkView,
    me: &'a NodeId,
    params: &'a Params,
    index: &'a OfNetwork,
    changed: &'a [Changed<'a>],
}

impl Network<'_> {
    /// How many endpoints a node had, and has.
    fn endpoints_on(&self, node: &NodeId) -> (usize, usize) {
        let before = self.index.endpoints_on(node);
        let on_it =
            |one: &Option<&Arc<Endpoint>>| usize::from(one.is_some_and(|e| e.node == *node));
        let gone: usize = self.changed.iter().map(|(_, was, _)| on_it(was)).sum();
        let come: usize = self.changed.iter().map(|(_, _, is)| on_it(is)).sum();
        (before, before + come - gone)
    }

    /// Whether the node carried the network, and carries it.
    fn is_carried(&self) -> (bool, bool) {
        let (before, after) = self.endpoints_on(self.me);
        (
            self.old.ingress || before > 0,
            self.new.ingress || after > 0,
        )
    }

    /// Adds the steps for what has changed; whether that is all there is to do.
    fn steps(&self, steps: &mut Steps) -> bool {
        let mut services: BTreeSet<&ServiceId> = BTreeSet::new();
        for (_, was, is) in self.changed {
            let is_possible = match (was, is) {
                (Some(was), Some(is)) => {
                    (&was.node, &was.service, &was.addresses)
                        == (&is.node, &is.service, &is.addresses)
                }
                // Interfaces of containers are not made here; a node's first and last endpoint also bring and take its
                // place among the peers.
                (Some(one), None) | (None, Some(one)) => {
                    let (before, after) = self.endpoints_on(&one.node);
                    one.node != *self.me && (self.new.ingress || (before > 0 && after > 0))
                }
                (None, None) => true,
            };
            if !is_possible {
                return false;
            }
            services.extend(was.iter().chain(is).filter_map(|one| one.service.as_ref()));
        }
        let space = Space::Router(self.id.clone());
        let can = |family| family == Family::V4 || self.params.gwbridge_subnet6.is_some();
        let families = Family::ALL.into_iter();
        let families =
            families.filter(|family| can(*family) && desired::gateway(self.new, *family).is_some());
        let mut ending = Ending::default();
        for family in families {
            self.routes(family, &space, steps);
            if let Some(by_source) = self.params.ipvs {
                let of = |slice| {
                    let endpoints = self.of_services(slice, &services);
                    let which = |id: &ServiceId| services.contains(id);
                    let distributed = IpvsBalance {
                        me: self.me,
                        slice,
                        family,
                        by_source,
                    };
                    distributed.services(endpoints, which)
                };
                let changes = ipvs_changes(&of(self.new), &of(self.old));
                let op = |change| NetOp {
                    space: space.clone(),
                    change,
                };
                steps.ops.extend(changes.into_iter().map(op));
                continue;
            }
            let before = self.elements(self.old, &services, family);
            let after = self.elements(self.new, &services, family);
            ending.add(family, &before, &after);
            let sets: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let (remove, add) = element_edits(sets.into_iter(), &after, &before);
            if !remove.is_empty() || !add.is_empty() {
                let change = Change::EditElements {
                    family,
                    table: self.params.prefix.clone(),
                    remove,
                    add,
                };
                let space = space.clone();
                steps.ops.push(NetOp { space, change });
            }
        }
        // An address is one endpoint's, and an endpoint of one service: no other leads to it.
        ending.left = flows::left(self.old, self.new);
        if !ending.is_empty() {
            steps.endings.insert(space, ending);
        }
        true
    }

    /// Routes to endpoints of other nodes that came and went.
    fn routes(&self, family: Family, space: &Space, steps: &mut Steps) {
        for (_, was, is) in self.changed {
            let (verb, one) = match (was, is) {
                (Some(was), None) => (Verb::Remove, was),
                (None, Some(is)) => (Verb::Add, is),
                _ => continue,
            };
            if let Some(peer) = self.view.peers.get(&one.node)
                && let Some(address) = desired::of_family(&one.addresses, family)
            {
                if desired::goes_directly(self.params, self.new, family) {
                    steps
                        .ops
                        .push(self.hop(family, space, verb, address.addr(), peer.underlay));
                }
                let to = desired::host_route(address.addr());
                let route = desired::by_peer(family, MAIN_TABLE, to, peer.underlay);
                let change = Change::Route(verb, route);
                let space = space.clone();
                steps.ops.push(NetOp { space, change });
            }
        }
    }

    /// The step for the short way to an endpoint of another node.
    fn hop(
        &self,
        family: Family,
        space: &Space,
        verb: Verb,
        endpoint: IpAddr,
        peer: IpAddr,
    ) -> NetOp {
        let (key, element) = direct::hop(endpoint, peer);
        let edit = ElementEdit {
            set: direct::HOPS.to_owned(),
            key,
            element,
        };
        let (remove, add) = match verb {
            Verb::Add => (vec![], vec![edit]),
            Verb::Remove => (vec![edit], vec![]),
        };
        let change = Change::EditElements {
            family,
            table: naming::entry_table(&self.params.prefix, family),
            remove,
            add,
        };
        let space = space.clone();
        NetOp { space, change }
    }

    /// The endpoints of these services in one of the two views.
    fn of_services<'s>(
        &self,
        slice: &'s NetworkSlice,
        services: &BTreeSet<&ServiceId>,
    ) -> impl Iterator<Item = &'s Arc<Endpoint>> + use<'s> {
        // A task that came is not in the index yet; one that went is in no view that it is not of.
        let known = services.iter().filter_map(|id| self.index.tasks.get(*id));
        let mut tasks: BTreeSet<&TaskId> = known.flatten().collect();
        tasks.extend(self.changed.iter().map(|(task, ..)| *task));
        let endpoints = tasks
            .into_iter()
            .filter_map(|task| slice.endpoints.get(task));
        let is_of = |one: &&Arc<Endpoint>| {
            let service = one.service.as_ref();
            service.is_some_and(|service| services.contains(service))
        };
        endpoints.filter(is_of).collect::<Vec<_>>().into_iter()
    }

    /// Elements of these services.
    fn elements(
        &self,
        slice: &NetworkSlice,
        services: &BTreeSet<&ServiceId>,
        family: Family,
    ) -> Elements {
        let balance = Balance {
            me: self.me,
            slice,
            family,
            params: self.params,
        };
        let mut elements = Elements::new();
        for (id, backends) in balance.backends(self.of_services(slice, services)) {
            if let Some(service) = slice.services.get(id) {
                balance.add(&mut elements, service, &backends);
            }
        }
        elements
    }
}
