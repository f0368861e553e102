//! What the host's namespace holds: the bridge of the routers' uplinks, published ports, and who may send into tunnels.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use shoal_api::{NetworkId, network::NetworkSlice};

use super::{Cx, Uplink, gateway, host_route};
use crate::core::{
    naming::{self, LOOPBACK6, UPLINK},
    ruleset,
    state::{Family, Link, LinkKind, Route, Space, SpaceState, VethPeer},
};

impl Cx<'_> {
    /// Everything in the host's namespace.
    pub(super) fn host(
        &self,
        carried: &[(&NetworkId, &NetworkSlice)],
        uplinks: &BTreeMap<NetworkId, Uplink>,
    ) -> SpaceState {
        let bridge = &self.params.gwbridge;
        let mut host = SpaceState::default();
        let own = self.bridge_address(Family::V4).map(|net| net.addr());
        let link = Link {
            kind: LinkKind::Bridge,
            mac: own.map(naming::mac_of),
            mtu: None,
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(bridge.clone(), link);
        let settings = &mut host.objects.settings;
        settings.insert("ipv4/ip_forward".to_owned(), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/route_localnet"), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/send_redirects"), "0".to_owned());
        settings.insert(naming::listens_to_routers(bridge), "0".to_owned());
        let ingress = carried.iter().find(|(_, slice)| slice.ingress);
        for (network, uplink) in uplinks {
            // Where bridged packets pass the rules of IP, a container's packet to a published port of its own host goes
            // straight from its router's port to this one.
            let is_ingress = ingress.is_some_and(|(id, _)| *id == network);
            let peer = VethPeer {
                space: Space::Router(network.clone()),
                name: UPLINK.to_owned(),
                mac: naming::mac_of(uplink.v4.into()),
                mtu: None,
                ipv6: true,
            };
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu: None,
                master: Some(bridge.clone()),
                isolated: !is_ingress,
                // And one of a container that is on ingress alone goes back by this port.
                hairpin: is_ingress,
            };
            host.links
                .insert(naming::uplink_port(&self.params.prefix, network), link);
        }
        if let Some((id, slice)) = ingress
            && self.families(slice).any(|(family, _)| family == Family::V6)
        {
            self.loopback6(&mut host, id, slice);
        }
        self.tunnel(&mut host, carried);
        let underlay = Family::of(self.underlay);
        let both = carried.iter().flat_map(|(_, slice)| self.families(slice));
        let families: BTreeSet<Family> = both.map(|(family, _)| family).collect();
        for family in &families {
            self.host_family(&mut host, *family, ingress, uplinks);
        }
        // Of which family tunnels are is not a matter of what travels in them; what must not travel in the open must not in
        // either.
        let outside = carried.iter().flat_map(|(_, slice)| match slice.encrypted {
            true => &Family::ALL[..],
            false => std::slice::from_ref(&underlay),
        });
        for family in outside.copied().chain(families).collect::<BTreeSet<_>>() {
            self.host_table(&mut host, family, carried, uplinks);
        }
        host
    }

    /// Addresses of one family in the host's namespace.
    fn host_family(
        &self,
        host: &mut SpaceState,
        family: Family,
        ingress: Option<&(&NetworkId, &NetworkSlice)>,
        uplinks: &BTreeMap<NetworkId, Uplink>,
    ) {
        let Some(net) = self.bridge_address(family) else {
            return;
        };
        let bridge = &self.params.gwbridge;
        host.objects.addresses.insert((bridge.clone(), net));
        for uplink in uplinks.values() {
            if let Some(address) = uplink.address(family) {
                let mac = naming::mac_of(uplink.v4.into());
                host.objects
                    .neighbours
                    .insert((bridge.clone(), address), mac);
            }
        }
        // What the host itself asks at a published port is cut here, as for `::1`.
        if let Some((id, slice)) = ingress
            && let Some(uplink) = uplinks.get(*id)
            && let Some(address) = uplink.address(family)
        {
            host.objects.routes.insert(Route {
                mtu: Some(self.mtu(slice)),
                ..Route::on(bridge, host_route(address))
            });
        }
        if family == Family::V6 {
            let settings = &mut host.objects.settings;
            settings.insert(naming::FORWARDING6.to_owned(), "1".to_owned());
        }
    }

    /// The host's link to the ingress router alone. On the bridge, where `bridge-nf-call-ip6tables` is on, an answer's
    /// address is turned back to `::1` before IPv6 sees the packet, and IPv6 takes nothing for `::1` from outside.
    fn loopback6(&self, host: &mut SpaceState, id: &NetworkId, ingress: &NetworkSlice) {
        let Some([own, router]) = self.loopback6_ends() else {
            return;
        };
        let name = naming::loopback6_link(&self.params.prefix);
        // That what goes on by the tunnel is cut here: the router's word of what is too long finds nobody at `::1`.
        let mtu = Some(self.mtu(ingress));
        let peer = VethPeer {
            space: Space::Router(id.clone()),
            name: LOOPBACK6.to_owned(),
            mac: naming::mac_of(router),
            mtu,
            ipv6: true,
        };
        let link = Link {
            kind: LinkKind::Veth { peer },
            mac: Some(naming::mac_of(own)),
            mtu,
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(name.clone(), link);
        let objects = &mut host.objects;
        let settings = &mut objects.settings;
        settings.insert(naming::listens_to_routers(&name), "0".to_owned());
        objects.addresses.insert((name.clone(), host_route(own)));
        let mac = naming::mac_of(router);
        objects.neighbours.insert((name.clone(), router), mac);
        let routes = &mut objects.routes;
        routes.insert(Route::on(&name, host_route(router)));
        // Answers are for loopback once their address is turned back; the kernel takes them only where a route of the
        // very interface by which they come says so.
        let loopback = host_route(Ipv6Addr::LOCALHOST.into());
        routes.insert(Route::own(&name, loopback));
    }

    /// Rules of one family in the host's namespace.
    fn host_table(
        &self,
        host: &mut SpaceState,
        family: Family,
        carried: &[(&NetworkId, &NetworkSlice)],
        uplinks: &BTreeMap<NetworkId, Uplink>,
    ) {
        let Some(net) = self.bridge_address(family) else {
            return;
        };
        let (mut published, mut published_at) = (Vec::new(), Vec::new());
        let mut asked = None;
        let ingress = carried.iter().filter(|(_, slice)| slice.ingress);
        for (id, slice) in ingress.filter(|(_, slice)| gateway(slice, family).is_some()) {
            let uplink = uplinks.get(*id);
            let Some(router) = uplink.and_then(|uplink| uplink.address(family)) else {
                continue;
            };
            asked = Some(router);
            let ports = slice.services.values().flat_map(|service| &service.ports);
            // What is told to tasks by a header comes to a program of ours first.
            for port in ports.filter(|port| !port.proxy_protocol) {
                let (protocol, number) = (port.protocol, port.published);
                match port.host_ip {
                    None => published.push((protocol, number, router)),
                    Some(at) if Family::of(at) == family => {
                        published_at.push((at, protocol, number, router));
                    }
                    Some(_) => {}
                }
            }
        }
        let vnis: Vec<u32> = carried.iter().map(|(_, slice)| slice.vni).collect();
        let members = carried.iter().flat_map(|(_, slice)| {
            let peers = self.senders(slice).into_iter();
            peers.map(|peer| (peer, slice.vni))
        });
        let members: Vec<(IpAddr, u32)> = members.collect();
        let sealed = carried.iter().filter(|(_, slice)| slice.encrypted);
        let sealed: Vec<u32> = sealed.map(|(_, slice)| slice.vni).collect();
        let loopback_link = naming::loopback6_link(&self.params.prefix);
        let loopback_end = self.loopback6_ends().map(|[_, router]| router);
        let loopback_end = loopback_end.filter(|_| asked.is_some() && family == Family::V6);
        let table = ruleset::host(
            &self.params.prefix,
            &ruleset::Host {
                family,
                bridge: &self.params.gwbridge,
                subnet: net.trunc(),
                vxlan_port: self.view.data_path_port,
                tunnels: (!self.facts.underlay_elsewhere).then_some(self.underlay),
                vnis: &vnis,
                members: &members,
                tunnel: &naming::tunnel_link(&self.params.prefix),
                sealed: &sealed,
                published: &published,
                published_at: &published_at,
                ingress: asked,
                loopback: loopback_end.map(|end| (&*loopback_link, end)),
            },
        );
        host.tables
            .insert((table.family, table.name.clone()), table);
    }
}
