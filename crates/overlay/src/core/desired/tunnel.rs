//! What encrypted networks need on the host, and where the tunnels of each network end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use shoal_api::{
    NetworkId,
    network::{IPV6_SURPLUS, NetworkSlice, Peer, VXLAN_OVERHEAD, WIREGUARD_OVERHEAD},
    tunnel::TUNNEL_KEYS_MAX,
};

use super::{Cx, host_route};
use crate::core::{
    naming,
    state::{Link, LinkKind, Route, SpaceState},
    tunnel::{self, Tunnel, TunnelPeer},
};

impl Cx<'_> {
    /// The device that carries encrypted networks, if there are any.
    pub(super) fn tunnel(&self, host: &mut SpaceState, carried: &[(&NetworkId, &NetworkSlice)]) {
        let encrypted = || carried.iter().filter(|(_, slice)| slice.encrypted);
        let (Some(keys), Some(_)) = (&self.facts.keys, encrypted().next()) else {
            return;
        };
        let name = naming::tunnel_link(&self.params.prefix);
        let link = Link {
            kind: LinkKind::Wireguard,
            mac: None,
            mtu: Some(self.tunnel_mtu()),
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(name.clone(), link);
        let objects = &mut host.objects;
        for (setting, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
            let path = format!("ipv6/conf/{name}/{setting}");
            objects.settings.insert(path, value.to_owned());
        }
        let current = tunnel::address(&keys.current.public);
        let own = host_route(current.into());
        objects.addresses.insert((name.clone(), own));
        let everybody = IpNet::from(tunnel::subnet());
        objects.routes.insert(Route::on(&name, everybody));
        // Packets for the other key are taken, but none are sent from it: it is no address.
        if let Some(other) = &keys.other {
            let other = host_route(tunnel::address(other).into());
            objects.routes.insert(Route::own(&name, other));
        }
        let involved = encrypted().flat_map(|(_, slice)| self.involved(slice));
        let involved: BTreeSet<IpAddr> = involved.collect();
        let own = [Some(keys.current.public), keys.other];
        let mut peers = BTreeMap::new();
        for peer in involved.into_iter().filter_map(|at| self.peer_at(at)) {
            for key in peer.tunnel_keys.iter().take(TUNNEL_KEYS_MAX) {
                let there = TunnelPeer {
                    endpoint: Some(SocketAddr::new(peer.underlay, key.port)),
                    address: Some(tunnel::address(&key.public)),
                };
                // Nobody takes over a key by saying that it is his own, too.
                if !own.contains(&Some(key.public)) {
                    peers.entry(key.public).or_insert(there);
                }
            }
        }
        let tunnel = Tunnel {
            private: keys.current.private.clone(),
            port: keys.port,
            peers,
        };
        host.tunnel = Some((name, tunnel));
    }

    fn peer_at(&self, underlay: IpAddr) -> Option<&Peer> {
        let mut peers = self.view.peers.values();
        peers.find(|peer| peer.underlay == underlay)
    }

    /// Where the way of a network to another node ends: at its address on the underlay, or at that of its key. `None` while
    /// there is no way, because its key is not known.
    pub(super) fn far_end(&self, slice: &NetworkSlice, peer: IpAddr) -> Option<IpAddr> {
        if !slice.encrypted {
            return Some(peer);
        }
        let key = self.peer_at(peer)?.tunnel_keys.first()?;
        Some(tunnel::address(&key.public).into())
    }

    /// From which addresses packets of a network may come.
    pub(super) fn senders(&self, slice: &NetworkSlice) -> BTreeSet<IpAddr> {
        let involved = self.involved(slice);
        if !slice.encrypted {
            return involved;
        }
        let peers = involved.into_iter().filter_map(|at| self.peer_at(at));
        let keys = peers.flat_map(|peer| peer.tunnel_keys.iter().take(TUNNEL_KEYS_MAX));
        keys.map(|key| tunnel::address(&key.public).into())
            .collect()
    }

    fn tunnel_mtu(&self) -> u32 {
        let overhead = WIREGUARD_OVERHEAD + self.surplus();
        self.facts.underlay_mtu.saturating_sub(overhead)
    }

    /// Bytes by which the underlay's own headers are longer than those of IPv4.
    fn surplus(&self) -> u32 {
        if self.underlay.is_ipv4() {
            0
        } else {
            IPV6_SURPLUS
        }
    }

    /// The longest packet of a container in a network.
    pub(super) fn mtu(&self, slice: &NetworkSlice) -> u32 {
        let fits = if slice.encrypted {
            // Inside the tunnel there is IPv6 alone.
            let overhead = VXLAN_OVERHEAD + IPV6_SURPLUS;
            self.tunnel_mtu().saturating_sub(overhead)
        } else {
            let overhead = VXLAN_OVERHEAD + self.surplus();
            self.facts.underlay_mtu.saturating_sub(overhead)
        };
        slice.mtu.map_or(fits, |asked| asked.min(fits))
    }
}
