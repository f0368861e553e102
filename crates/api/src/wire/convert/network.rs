//! The network view.

use super::{DecodeError, Field, bridge, messages};
use crate::{
    network::{
        Endpoint, IngressPort, NamedPort, NetworkSlice, NetworkView, Peer, ServiceSlice,
        SliceChange, ViewChange,
    },
    tunnel::{PublicKey, TunnelKey},
    wire,
};

impl Field<Vec<u8>> for PublicKey {
    fn to_wire(&self) -> Vec<u8> {
        self.0.to_vec()
    }
    fn from_wire(wire: Vec<u8>) -> Result<Self, DecodeError> {
        let wrong = |bytes: Vec<u8>| {
            DecodeError::new(format!("a public key has 32 bytes, not {}", bytes.len()))
        };
        wire.try_into().map(Self).map_err(wrong)
    }
}

messages! {
    NetworkView { version, data_path_port, peers, networks }
    ViewChange { version, data_path_port, peers, peers_gone, networks, networks_gone }
    SliceChange { slice, endpoints_gone, services_gone }
    Peer { underlay, hostname, tunnel_keys }
    TunnelKey { public, port }
    NetworkSlice {
        name, ingress, internal, encrypted, vni, mtu, subnets, attachable, labels, options, ip_ranges, endpoints,
        services,
    }
    Endpoint { node, service, addresses, names, serving }
    ServiceSlice { name, vips, aliases, ports, named_ports, affinity }
    NamedPort { name, protocol, target }
    IngressPort { protocol, published, target, proxy_protocol, local, host_ip }
}
