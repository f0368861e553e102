//! Connection tracking over netlink: which datagram flows still lead to backends that have gone.
//!
//! A UDP flow keeps its backend for as long as the client goes on sending; unlike with TCP, nobody would ever notice
//! that it is dead. Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    lb::protocol_number,
    netlink::{Message, attribute, flags},
    state::Family,
};
use shoal_api::network::Protocol;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GET_STATS: u16 = SUBSYSTEM | 5;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;

/// Which end of a direction.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Asks how many connections a namespace has. To go through them all takes time that grows with the host's table, which all
/// namespaces share.
pub fn count() -> Message {
    Message::new(GET_STATS, 0, &header(Family::V4))
}

/// The number in an answer to [`count`].
pub fn read_count(body: &[u8]) -> Option<u32> {
    const ENTRIES: u16 = 1;
    let bytes = attribute(body.get(4..)?, ENTRIES)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Asks for all connections of a family.
pub fn list(family: Family) -> Message {
    Message::new(GET, flags::DUMP, &header(family))
}

/// The removal of a connection from an answer to [`list`], if it is a UDP flow that was led to one of `gone`.
pub fn removal(family: Family, body: &[u8], gone: &BTreeSet<IpAddr>) -> Option<Message> {
    let attrs = body.get(4..)?;
    let (original, reply) = (attribute(attrs, ORIGINAL)?, attribute(attrs, REPLY)?);
    let backend = address(reply, End::Source)?;
    let led = backend != address(original, End::Destination)? && gone.contains(&backend);
    let udp = attribute(attribute(reply, 2)?, 1)? == [protocol_number(Protocol::Udp)];
    let message = Message::new(DELETE, 0, &header(family));
    (led && udp).then(|| message.attr(ORIGINAL | flags::NESTED, original))
}

fn header(family: Family) -> [u8; 4] {
    match family {
        Family::V4 => [2, 0, 0, 0],
        Family::V6 => [10, 0, 0, 0],
    }
}

fn address(tuple: &[u8], end: End) -> Option<IpAddr> {
    let addresses = attribute(tuple, 1)?;
    let (v4, v6) = match end {
        End::Source => (1, 3),
        End::Destination => (2, 4),
    };
    if let Some(bytes) = attribute(addresses, v4) {
        return Some(<[u8; 4]>::try_from(bytes).ok()?.into());
    }
    let bytes: [u8; 16] = attribute(addresses, v6)?.try_into().ok()?;
    Some(bytes.into())
}
