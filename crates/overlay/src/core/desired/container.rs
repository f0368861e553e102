//! What connects a container with the routers of its networks.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv6Net};
use shoal_api::{
    NetworkId, TaskId,
    network::{NetworkSlice, Protocol},
};

use super::{Cx, INGRESS_TABLE, Place, default_route, host_route, of_family};
use crate::core::{
    lb,
    naming::{self, ROUTER_HOP},
    observed::ContainerFacts,
    ruleset::direct,
    state::{
        Family, KernelState, Link, LinkKind, MAIN_TABLE, OVERLAY_PROTOCOL, RULE_PRIORITY, Route,
        Rule, Space, SpaceState, VethPeer,
    },
};

/// What an interface inside a container needs to know.
struct Inside<'a> {
    link: &'a str,
    address: IpNet,
    gateway: IpAddr,
    is_way_out: bool,
    /// Ports of the task that are published for datagrams.
    datagram_ports: &'a BTreeSet<u16>,
}

impl Cx<'_> {
    /// Connects a container with the routers of its networks, the first of which becomes eth0.
    pub(super) fn container(
        &self,
        state: &mut KernelState,
        container: &TaskId,
        places: &[Place<'_>],
        found: &ContainerFacts,
    ) {
        let mut inside = SpaceState::default();
        let mut taken: BTreeSet<String> = found.interfaces.keys().cloned().collect();
        for Place { id, slice, task } in places {
            let endpoint = &slice.endpoints[*task];
            let Some(first) = endpoint.addresses.first() else {
                continue;
            };
            let mac = naming::mac_of(first.addr());
            let held = found
                .interfaces
                .iter()
                .find(|(_, held)| **held == Some(mac))
                .map(|(name, _)| name.clone());
            let name = held.unwrap_or_else(|| {
                let free = (0..)
                    .map(|n| format!("eth{n}"))
                    .find(|name| !taken.contains(name));
                free.expect("a container has finitely many interfaces")
            });
            taken.insert(name.clone());
            let mtu = Some(self.mtu(slice));
            let peer = VethPeer {
                space: Space::Container(container.to_string()),
                name: name.clone(),
                mac,
                mtu,
                ipv6: endpoint.addresses.iter().any(|net| net.addr().is_ipv6()),
            };
            let service = endpoint.service.as_ref();
            let service = service.and_then(|service| slice.services.get(service));
            let ports = service.into_iter().flat_map(|service| &service.ports);
            let datagrams = ports.filter(|port| port.protocol == Protocol::Udp);
            let datagram_ports: BTreeSet<u16> = datagrams.map(|port| port.target).collect();
            let port = naming::endpoint_port(task);
            let router = state
                .spaces
                .get_mut(&Space::Router((*id).clone()))
                .expect("carried networks have routers");
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu,
                master: None,
                isolated: false,
                hairpin: false,
            };
            router.links.insert(port.clone(), link);
            for (family, gateway) in self.families(slice) {
                let Some(address) = of_family(&endpoint.addresses, family) else {
                    continue;
                };
                self.port_family(router, &port, address);
                let entry = naming::entry_table(&self.params.prefix, family);
                if let Some(table) = router.tables.get_mut(&(family, entry)) {
                    direct::add_port(table, &port, address.addr());
                }
                let is_way_out = !found.foreign_default.contains(&family)
                    && self.way_out(places, family) == Some(*id);
                let place = Inside {
                    link: &name,
                    address,
                    gateway,
                    is_way_out,
                    datagram_ports: &datagram_ports,
                };
                self.inside_family(&mut inside, slice, family, &place);
            }
        }
        state
            .spaces
            .insert(Space::Container(container.to_string()), inside);
    }

    /// The network by which a container leaves the cluster: the first that leads out, ingress last.
    fn way_out<'p>(&self, places: &[Place<'p>], family: Family) -> Option<&'p NetworkId> {
        let leads_out = |place: &&Place<'_>| {
            let mut families = self.families(place.slice);
            !place.slice.internal && families.any(|(carried, _)| carried == family)
        };
        let outward = || places.iter().filter(leads_out);
        let found = outward().find(|place| !place.slice.ingress);
        found.or_else(|| outward().next()).map(|place| place.id)
    }

    /// The router's side of an endpoint in one family.
    fn port_family(&self, router: &mut SpaceState, port: &str, address: IpNet) {
        let objects = &mut router.objects;
        if address.addr().is_ipv4() {
            let settings = &mut objects.settings;
            settings.insert(format!("ipv4/conf/{port}/proxy_arp"), "1".to_owned());
            settings.insert(format!("ipv4/neigh/{port}/proxy_delay"), "0".to_owned());
        } else {
            let hop = Ipv6Net::new_assert(ROUTER_HOP, 64);
            objects.addresses.insert((port.to_owned(), hop.into()));
        }
        let to_container = Route::on(port, host_route(address.addr()));
        objects.routes.insert(to_container);
    }

    /// The container's side of an endpoint in one family.
    fn inside_family(
        &self,
        inside: &mut SpaceState,
        slice: &NetworkSlice,
        family: Family,
        place: &Inside<'_>,
    ) {
        let objects = &mut inside.objects;
        let link = || place.link.to_owned();
        let route = |table, to, via| Route {
            table,
            via: Some(via),
            ..Route::on(place.link, to)
        };
        // IPv4's neighbours are all answered for by the router; with IPv6 everything goes to the router outright.
        let (address, via) = match family {
            Family::V4 => (place.address, place.gateway),
            Family::V6 => (host_route(place.address.addr()), ROUTER_HOP.into()),
        };
        objects.addresses.insert((link(), address));
        if family == Family::V6 {
            let subnet = place.address.trunc();
            objects.routes.insert(route(MAIN_TABLE, subnet, via));
        }
        if place.is_way_out {
            let to = default_route(family);
            objects.routes.insert(route(MAIN_TABLE, to, via));
        }
        if slice.ingress {
            let rule = Rule {
                family,
                from: None,
                mark: None,
                source_port: None,
                suppressed: None,
                table: INGRESS_TABLE,
                priority: RULE_PRIORITY,
                protocol: OVERLAY_PROTOCOL,
            };
            objects.rules.insert(Rule {
                from: Some(host_route(place.address.addr())),
                ..rule.clone()
            });
            // A datagram gets its source address by the way that it takes: what a socket of no address answers from a
            // published port must take this one, unless it is for a neighbour.
            let udp = lb::protocol_number(Protocol::Udp);
            for port in place.datagram_ports.iter().map(|port| Some((udp, *port))) {
                objects.rules.insert(Rule {
                    source_port: port,
                    suppressed: Some(0),
                    table: MAIN_TABLE,
                    priority: RULE_PRIORITY + 1,
                    ..rule.clone()
                });
                objects.rules.insert(Rule {
                    source_port: port,
                    priority: RULE_PRIORITY + 2,
                    ..rule.clone()
                });
            }
            let to = default_route(family);
            objects.routes.insert(route(INGRESS_TABLE, to, via));
        }
    }
}
