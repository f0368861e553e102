//! The short way between containers of two nodes, where no address is virtual: what a container sends to one of another node
//! leaves by the tunnel from where it enters the router, without being routed there.
//!
//! Routed, the head of each packet that a TCP socket still holds is copied, only to count its hops down.

use std::net::IpAddr;

use super::{destination, map, registers, rule, source};
use crate::core::{
    lb,
    naming::{self, VXLAN_INDEX},
    nft::{Base, Element, Expr, Hook, HookPoint, Meta, Part, SetData, Table},
    state::Family,
};

/// Name of the map from an endpoint of another node to the next hop.
pub const HOPS: &str = "hops";

const ENTRY: Hook = Hook {
    kind: "filter",
    at: HookPoint::Entry,
    priority: 0,
};

/// The table without ports and endpoints.
pub fn direct(family: Family, prefix: &str) -> Table {
    let mut table = Table::new(family, &naming::entry_table(prefix, family));
    let address = Part::address(family);
    table.set(HOPS, &[address], SetData::Parts(vec![address]));
    table
}

/// Adds a container's port to it. All that is not for an endpoint of another node, or not from the container's own address,
/// or at its last hop, goes the usual way.
pub fn add_port(table: &mut Table, port: &str, own: IpAddr) {
    let family = table.family;
    let (protocol, hops_left) = match family {
        Family::V4 => ([0x08, 0x00], 8),
        Family::V6 => ([0x86, 0xdd], 7),
    };
    let hops_left = Expr::Payload {
        base: Base::Network,
        offset: hops_left,
        len: 1,
        to: 0,
    };
    let device = registers(family);
    let does = vec![
        Expr::Meta(Meta::EtherType, 0),
        Expr::Is(0, protocol.to_vec()),
        source(family, 0),
        Expr::Is(0, lb::octets(own)),
        hops_left,
        Expr::IsNot(0, vec![1]),
        destination(family, 0),
        map(0, HOPS, 0),
        Expr::Load(device, VXLAN_INDEX.to_ne_bytes().to_vec()),
        Expr::SendBy(device, 0),
    ];
    table.chain(port, Some(ENTRY), vec![rule("to the other node", does)]);
}

/// The element that leads to an endpoint of another node.
pub fn hop(endpoint: IpAddr, peer: IpAddr) -> (Vec<u8>, Element) {
    let hop = naming::peer_hop(Family::of(endpoint), peer);
    (lb::octets(endpoint), Element::Value(lb::octets(hop)))
}
