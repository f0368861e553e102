//! Where virtual addresses and published ports lead, for nftables and for IPVS.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use shoal_api::{
    NodeId, ServiceId,
    network::{Endpoint, NetworkSlice, Protocol, ServiceSlice},
    spec::Affinity,
};

use super::{Cx, Params, of_family};
use crate::core::{
    ipvs_wire::{Service, ServiceKey, TURN},
    lb::{self, Draw},
    nft::{Element, Table},
    state::{Family, SpaceState},
};

/// Seconds after which IPVS forgets a silent TCP connection: as long as conntrack knows it (`nf_conntrack_tcp_timeout_established`).
/// By itself it would be 15 minutes, and what comes later reset.
const IPVS_IDLE_S: u32 = 5 * 24 * 60 * 60;

/// The serving endpoints of a service in one family, in the order of their addresses.
#[derive(Debug, Default)]
pub(in crate::core) struct Backends {
    all: Vec<IpAddr>,
    /// Those of this node.
    local: Vec<IpAddr>,
}

/// What the way to backends in one family of a network depends on.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct Balance<'a> {
    pub(in crate::core) me: &'a NodeId,
    pub(in crate::core) slice: &'a NetworkSlice,
    pub(in crate::core) family: Family,
    pub(in crate::core) params: &'a Params,
}

impl<'a> Balance<'a> {
    /// The backends among some endpoints, by service.
    pub(in crate::core) fn backends(
        &self,
        endpoints: impl Iterator<Item = &'a Arc<Endpoint>>,
    ) -> BTreeMap<&'a ServiceId, Backends> {
        let mut found: BTreeMap<&ServiceId, Backends> = BTreeMap::new();
        for endpoint in endpoints.filter(|one| one.serving) {
            if let Some(service) = &endpoint.service
                && let Some(address) = of_family(&endpoint.addresses, self.family)
            {
                let of_one = found.entry(service).or_default();
                of_one.all.push(address.addr());
                if endpoint.node == *self.me {
                    of_one.local.push(address.addr());
                }
            }
        }
        for backends in found.values_mut() {
            sort(&mut backends.all);
            sort(&mut backends.local);
        }
        found
    }

    /// Adds all elements that lead to the backends of a service.
    pub(in crate::core) fn add(
        &self,
        elements: &mut lb::Elements,
        service: &ServiceSlice,
        backends: &Backends,
    ) {
        let draw = match service.affinity {
            Affinity::Source if self.params.source_hash => Draw::Source,
            Affinity::Source | Affinity::None => Draw::Turn,
        };
        let vips = service.vips.iter();
        for vip in vips.filter(|vip| Family::of(**vip) == self.family) {
            lb::add_vip(elements, *vip, &backends.all, draw);
        }
        for port in service.ports.iter().filter(|_| self.slice.ingress) {
            let answering = match port.local {
                true => &backends.local,
                false => &backends.all,
            };
            lb::add_port(
                elements,
                port.protocol,
                port.published,
                port.target,
                answering,
                draw,
            );
        }
    }
}

/// Puts backends into the order in which they take slots.
fn sort(backends: &mut Vec<IpAddr>) {
    backends.sort_unstable();
    backends.dedup();
}

/// The marks by which IPVS knows virtual addresses and published ports.
pub(super) fn mark_for_ipvs(table: &mut Table, slice: &NetworkSlice) {
    let family = table.family;
    let value = |mark: u32| Element::Value(mark.to_ne_bytes().to_vec());
    for service in slice.services.values() {
        let vips = service.vips.iter();
        for vip in vips.filter(|vip| Family::of(**vip) == family) {
            table.element(lb::VIP_MARK, lb::octets(*vip), value(lb::vip_mark(*vip)));
        }
        for port in service.ports.iter().filter(|_| slice.ingress) {
            let key = lb::port_key(port.protocol, port.published);
            let mark = lb::port_mark(port.protocol, port.published);
            table.element(lb::PORT_MARK, key, value(mark));
        }
    }
}

/// An endpoint as IPVS sees it.
#[derive(Debug, Clone, Copy)]
struct Weight {
    weight: u32,
    is_local: bool,
}

/// What IPVS is to distribute in one family of a network.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct IpvsBalance<'a> {
    pub(in crate::core) me: &'a NodeId,
    pub(in crate::core) slice: &'a NetworkSlice,
    pub(in crate::core) family: Family,
    /// The scheduler by which a client stays with its backend.
    pub(in crate::core) by_source: &'static str,
}

impl<'a> IpvsBalance<'a> {
    /// Of the services that `which` says, with the endpoints that may be theirs. A backend that takes no new connections
    /// keeps those that it has, for as long as it is there; flows of datagrams, which have no end, leave a published port's
    /// at once.
    pub(in crate::core) fn services(
        &self,
        endpoints: impl Iterator<Item = &'a Arc<Endpoint>>,
        which: impl Fn(&ServiceId) -> bool,
    ) -> BTreeMap<ServiceKey, Service> {
        let Self {
            me,
            slice,
            family,
            by_source,
        } = *self;
        let mut weights: BTreeMap<&ServiceId, BTreeMap<IpAddr, Weight>> = BTreeMap::new();
        for endpoint in endpoints {
            if let Some(service) = endpoint.service.as_ref().filter(|id| which(id))
                && let Some(address) = of_family(&endpoint.addresses, family)
            {
                let weight = Weight {
                    weight: u32::from(endpoint.serving),
                    is_local: endpoint.node == *me,
                };
                let of_one = weights.entry(service).or_default();
                of_one.insert(address.addr(), weight);
            }
        }
        let mut services = BTreeMap::new();
        for (id, service) in slice.services.iter().filter(|(id, _)| which(id)) {
            let backends = weights.remove(id).unwrap_or_default();
            let scheduler = match service.affinity {
                Affinity::Source => by_source,
                Affinity::None => TURN,
            };
            let mut add = |mark, port, which: &dyn Fn(&Weight) -> bool| {
                let key = ServiceKey { family, mark };
                let answering = backends.iter().filter(|(_, found)| which(found));
                let at_port = answering.map(|(address, found)| ((*address, port), found.weight));
                let service = Service {
                    scheduler: scheduler.to_owned(),
                    destinations: at_port.collect(),
                };
                services.insert(key, service);
            };
            let vips = service.vips.iter();
            for vip in vips.filter(|vip| Family::of(**vip) == family) {
                add(lb::vip_mark(*vip), 0, &|_| true);
            }
            for port in service.ports.iter().filter(|_| slice.ingress) {
                let mark = lb::port_mark(port.protocol, port.published);
                let stays = |found: &Weight| port.protocol != Protocol::Udp || found.weight > 0;
                let answers = |found: &Weight| stays(found) && (found.is_local || !port.local);
                add(mark, port.target, &answers);
            }
        }
        services
    }
}

impl Cx<'_> {
    /// What IPVS is to distribute in one family.
    pub(super) fn ipvs(
        &self,
        router: &mut SpaceState,
        slice: &NetworkSlice,
        family: Family,
        by_source: &'static str,
    ) {
        router.ipvs_idle_s = Some(IPVS_IDLE_S);
        let settings = [
            ("ipv4/vs/conntrack", "1"),
            ("ipv4/vs/expire_nodest_conn", "1"),
        ];
        let settings = settings.map(|(path, value)| (path.to_owned(), value.to_owned()));
        router.objects.settings.extend(settings);
        let distributed = IpvsBalance {
            me: self.me,
            slice,
            family,
            by_source,
        };
        let services = distributed.services(slice.endpoints.values(), |_| true);
        router.ipvs.extend(services);
    }
}
