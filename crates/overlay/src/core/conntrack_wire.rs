//! Connection tracking over netlink: which flows still lead to backends that are no longer to be asked.
//!
//! A UDP flow keeps its backend for as long as the client goes on sending; unlike with TCP, nobody would ever notice
//! that it is dead. An attempt to connect is repeated to the backend that it was led to at first; and a connection that the
//! backend has reset is remembered for ten seconds, in which another one from the same port is led there, too. Numbers are
//! those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use super::{
    flows::Ending,
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

/// The removal of a connection from an answer to [`list`], if it was led to a backend that has left, or is a UDP flow to an idle
/// one.
///
/// It is removed by what the backend answers, not by what the client asks: the client may have begun another one meanwhile,
/// which leads elsewhere.
pub fn removal(family: Family, body: &[u8], ending: &Ending) -> Option<Message> {
    let attrs = body.get(4..)?;
    let (original, reply) = (attribute(attrs, ORIGINAL)?, attribute(attrs, REPLY)?);
    let backend = address(reply, End::Source)?;
    let led = backend != address(original, End::Destination)?;
    let udp = attribute(attribute(reply, 2)?, 1)? == [protocol_number(Protocol::Udp)];
    let ends = ending.left.contains(&backend) || udp && ending.idle.contains(&backend);
    let message = Message::new(DELETE, 0, &header(family));
    (led && ends).then(|| message.attr(REPLY | flags::NESTED, reply))
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
