//! The steps from one view to the next where only endpoints changed, in time proportional to the change.
//!
//! A cluster's everyday changes are endpoints of other nodes that come, go, or stop serving. Computing everything that the
//! kernel should hold, and comparing it with everything that it holds, takes a second with ten thousand services; these
//! steps are the same ones, found by what the two views do not share.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use shoal_api::{
    NetworkId, NodeId, ServiceId, TaskId,
    network::{Endpoint, NetworkSlice, NetworkView},
};

use super::{
    desired::{self, Params},
    diff::{Change, NetOp, element_edits, ipvs_changes},
    lb::{self, Elements},
    rtnl_wire::Verb,
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
    /// Backends to which routers no longer lead.
    pub gone: Vec<(Space, BTreeSet<IpAddr>)>,
}

/// Compares the view that is in force at node `me` with the next one.
pub fn delta(old: &NetworkView, new: &NetworkView, me: &NodeId, params: &Params) -> Delta {
    if old.data_path_port != new.data_path_port
        || old.peers != new.peers
        || !old.networks.keys().eq(new.networks.keys())
    {
        return Delta::Everything;
    }
    let mut steps = Steps::default();
    let mut same = true;
    for ((id, old), (_, slice)) in old.networks.iter().zip(&new.networks) {
        let changed = changed(&old.endpoints, &slice.endpoints);
        if !alike(old, slice) {
            return Delta::Everything;
        }
        if changed.is_empty() {
            continue;
        }
        same = false;
        let carried = |slice: &NetworkSlice| {
            let mut endpoints = slice.endpoints.values();
            slice.ingress || endpoints.any(|endpoint| endpoint.node == *me)
        };
        match (carried(old), carried(slice)) {
            (false, false) => continue,
            (true, true) => {}
            _ => return Delta::Everything,
        }
        let network = Network {
            id,
            old,
            new: slice,
            view: new,
            me,
            params,
        };
        if !network.steps(&changed, &mut steps) {
            return Delta::Everything;
        }
    }
    if same {
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
        endpoints: _,
        services,
    } = old;
    (ingress, internal, encrypted) == (&new.ingress, &new.internal, &new.encrypted)
        && (vni, mtu) == (&new.vni, &new.mtu)
        && *subnets == new.subnets
        && *services == new.services
}

type Changed<'a> = Vec<(&'a TaskId, Option<&'a Endpoint>, Option<&'a Endpoint>)>;

/// Endpoints that differ, as they were and as they are.
fn changed<'a>(
    old: &'a BTreeMap<TaskId, Endpoint>,
    new: &'a BTreeMap<TaskId, Endpoint>,
) -> Changed<'a> {
    let mut changed = Vec::new();
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (before.peek(), after.peek()) {
            (Some((was, _)), Some((is, _))) if was == is => {
                if let (Some((task, was)), Some((_, is))) = (before.next(), after.next())
                    && was != is
                {
                    changed.push((task, Some(was), Some(is)));
                }
            }
            (Some((was, _)), is) if is.is_none_or(|(is, _)| was < is) => {
                changed.extend(before.next().map(|(task, was)| (task, Some(was), None)));
            }
            (_, Some(_)) => changed.extend(after.next().map(|(task, is)| (task, None, Some(is)))),
            _ => return changed,
        }
    }
}

struct Network<'a> {
    id: &'a NetworkId,
    old: &'a NetworkSlice,
    new: &'a NetworkSlice,
    view: &'a NetworkView,
    me: &'a NodeId,
    params: &'a Params,
}

impl Network<'_> {
    /// Adds the steps for these endpoints; whether that is all there is to do.
    fn steps(&self, changed: &Changed<'_>, steps: &mut Steps) -> bool {
        let mut services: BTreeSet<&ServiceId> = BTreeSet::new();
        let mut moved = Vec::new();
        for (_, was, is) in changed {
            let only_serving = match (was, is) {
                (Some(was), Some(is)) => {
                    (&was.node, &was.service, &was.addresses)
                        == (&is.node, &is.service, &is.addresses)
                }
                // Interfaces of containers are not made here.
                (Some(one), None) | (None, Some(one)) => {
                    moved.push(*one);
                    one.node != *self.me
                }
                (None, None) => true,
            };
            // A node's first and last endpoint also bring and take its place among the peers.
            let known = |one: &Endpoint| {
                let others = |slice: &NetworkSlice| {
                    let mut endpoints = slice.endpoints.values();
                    endpoints.any(|other| other.node == one.node)
                };
                self.new.ingress || (others(self.old) && others(self.new))
            };
            if !only_serving || !was.iter().chain(is).all(|one| known(one)) {
                return false;
            }
            services.extend(was.iter().chain(is).filter_map(|one| one.service.as_ref()));
        }
        let space = Space::Router(self.id.clone());
        let can = |family| family == Family::V4 || self.params.gwbridge_subnet6.is_some();
        let families = Family::ALL.into_iter();
        let families =
            families.filter(|family| can(*family) && desired::gateway(self.new, *family).is_some());
        let mut gone = BTreeSet::new();
        for family in families {
            self.routes(changed, family, &space, steps);
            if self.params.ipvs {
                let of = |slice| desired::ipvs_services(slice, family, |id| services.contains(id));
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
            gone.extend(lb::backends(family, &before));
            for stays in lb::backends(family, &after) {
                gone.remove(&stays);
            }
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
        if !gone.is_empty() {
            steps.gone.push((space, gone));
        }
        true
    }

    /// Routes to endpoints of other nodes that came and went.
    fn routes(&self, changed: &Changed<'_>, family: Family, space: &Space, steps: &mut Steps) {
        for (_, was, is) in changed {
            let (verb, one) = match (was, is) {
                (Some(was), None) => (Verb::Remove, was),
                (None, Some(is)) => (Verb::Add, is),
                _ => continue,
            };
            if let Some(peer) = self.view.peers.get(&one.node)
                && let Some(address) = desired::of_family(&one.addresses, family)
            {
                let to = desired::host_route(address.addr());
                let route = desired::by_peer(family, MAIN_TABLE, to, peer.underlay);
                let change = Change::Route(verb, route);
                let space = space.clone();
                steps.ops.push(NetOp { space, change });
            }
        }
    }

    /// Elements of these services.
    fn elements(
        &self,
        slice: &NetworkSlice,
        services: &BTreeSet<&ServiceId>,
        family: Family,
    ) -> Elements {
        let mut backends: BTreeMap<&ServiceId, Vec<IpAddr>> = BTreeMap::new();
        for endpoint in slice.endpoints.values().filter(|one| one.serving) {
            if let Some(service) = &endpoint.service
                && services.contains(service)
                && let Some(address) = desired::of_family(&endpoint.addresses, family)
            {
                backends.entry(service).or_default().push(address.addr());
            }
        }
        let mut elements = Elements::new();
        for (id, mut backends) in backends {
            desired::sort(&mut backends);
            if let Some(service) = slice.services.get(id) {
                desired::add_service(&mut elements, slice, service, family, &backends);
            }
        }
        elements
    }
}
