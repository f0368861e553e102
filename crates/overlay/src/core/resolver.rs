//! The way from a container's resolver address to the sockets behind it.
//!
//! The sockets listen on ports that the kernel chose, so that a container may serve port 53 itself, on all addresses.
//! Ports are rewritten packet by packet, without connection tracking: what leaves for the resolver, and what it answers.

use std::net::Ipv4Addr;

use super::{
    nft::{Base, Expr, Hook, HookPoint, Meta, RuleText, Table},
    state::Family,
};

/// Name of the table in a container's namespace.
pub const TABLE: &str = "shoal-resolver";

const UDP: u8 = 17;
const TCP: u8 = 6;
/// Offsets in the IPv4 header (RFC 791 §3.1).
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;
/// Offsets in the headers of TCP and UDP, which begin alike (RFC 9293 §3.1, RFC 768).
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
/// Before connection tracking, should the container use it.
const RAW: i32 = -300;

/// The table that leads `address`:`port` to the sockets that listen on `udp` and `tcp` of the same address.
pub fn table(address: Ipv4Addr, port: u16, udp: u16, tcp: u16) -> Table {
    let address_at = |place| Expr::Payload {
        base: Base::Network,
        offset: place,
        len: 4,
        to: 0,
    };
    let resolver = address.octets().to_vec();
    // Nearly everything that a container sends: it passes by one rule.
    let mut rules = vec![RuleText {
        why: "neither",
        does: vec![
            address_at(SOURCE_ADDRESS),
            Expr::IsNot(0, resolver.clone()),
            address_at(DESTINATION_ADDRESS),
            Expr::IsNot(0, resolver.clone()),
            Expr::Accept,
        ],
    }];
    for (protocol, listens, checksum) in [(UDP, udp, UDP_CHECKSUM), (TCP, tcp, TCP_CHECKSUM)] {
        let rewrite = |why, at, place, from: u16, to: u16| RuleText {
            why,
            does: vec![
                address_at(at),
                Expr::Is(0, resolver.clone()),
                Expr::Meta(Meta::Protocol, 0),
                Expr::Is(0, vec![protocol]),
                Expr::Payload {
                    base: Base::Transport,
                    offset: place,
                    len: 2,
                    to: 0,
                },
                Expr::Is(0, from.to_be_bytes().to_vec()),
                Expr::Load(0, to.to_be_bytes().to_vec()),
                Expr::SetPort {
                    offset: place,
                    from: 0,
                    checksum,
                },
            ],
        };
        let asks = (DESTINATION_ADDRESS, DESTINATION_PORT);
        rules.push(rewrite("questions", asks.0, asks.1, port, listens));
        let replies = (SOURCE_ADDRESS, SOURCE_PORT);
        rules.push(rewrite("answers", replies.0, replies.1, listens, port));
    }
    let hook = Hook {
        kind: "filter",
        at: HookPoint::Output,
        priority: RAW,
    };
    let mut table = Table::new(Family::V4, TABLE);
    table.chain("output", Some(hook), rules);
    table
}
