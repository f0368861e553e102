//! What the host's namespace holds: the bridge of the routers' uplinks, published ports, and who may send into tunnels.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use shoal_api::{NetworkId, network::NetworkSlice};

use super::{Cx, Uplink, gateway, host_route};
use crate::core::{
    naming::{self, UPLINK},
    ruleset,
    state::{
        Family, LOCAL_TABLE, Link, LinkKind, OVERLAY_PROTOCOL, Route, Space, SpaceState, VethPeer,
    },
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
                hairpin: false,
            };
            host.links
                .insert(naming::uplink_port(&self.params.prefix, network), link);
        }
        self.tunnel(&mut host, carried);
        let underlay = Family::of(self.underlay);
        let both = carried.iter().flat_map(|(_, slice)| self.families(slice));
        let families: BTreeSet<Family> = both.map(|(family, _)| family).collect();
        for family in &families {
            self.host_family(&mut host, *family, uplinks);
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
        if family == Family::V6 {
            let settings = &mut host.objects.settings;
            settings.insert(naming::FORWARDING6.to_owned(), "1".to_owned());
            // Answers to what the host asked itself come back by the bridge, and are for loopback once their address is
            // turned back; the kernel takes loopback's packets only where a route of that very interface says so.
            host.objects.routes.insert(Route {
                local: true,
                table: LOCAL_TABLE,
                to: host_route(Ipv6Addr::LOCALHOST.into()),
                via: None,
                link: bridge.clone(),
                protocol: OVERLAY_PROTOCOL,
            });
        }
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
        let ingress = carried.iter().filter(|(_, slice)| slice.ingress);
        for (id, slice) in ingress.filter(|(_, slice)| gateway(slice, family).is_some()) {
            let uplink = uplinks.get(*id);
            let Some(router) = uplink.and_then(|uplink| uplink.address(family)) else {
                continue;
            };
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
            },
        );
        host.tables
            .insert((table.family, table.name.clone()), table);
    }
}
