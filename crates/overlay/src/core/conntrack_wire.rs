//! Connection tracking over netlink: which flows go another way than one that begins now would go.
//!
//! A UDP flow keeps its way for as long as the client goes on sending, also the way to nobody; unlike with TCP, nobody would
//! ever notice that it is dead. An attempt to connect is repeated to the backend that it was led to at first; and a
//! connection that the backend has reset is remembered for ten seconds, in which another one from the same port is led
//! there, too. Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use super::{
    flows::Ending,
    lb::{Asked, Backend, protocol_number},
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

/// The removal of a connection from an answer to [`list`], if it was led to a backend that has left, or is a UDP flow that would
/// go another way if it began now.
///
/// It is removed by what the backend answers, not by what the client asks: the client may have begun another one meanwhile,
/// which leads elsewhere.
pub fn removal(family: Family, body: &[u8], ending: &Ending) -> Option<Message> {
    let attrs = body.get(4..)?;
    let (original, reply) = (attribute(attrs, ORIGINAL)?, attribute(attrs, REPLY)?);
    let (asks, answers) = (Tuple::read(original)?, Tuple::read(reply)?);
    let address = answers.source.0;
    let ends = if address != asks.destination.0 {
        let port = answers.source.1;
        let idle = |port| ending.idle.contains(&Backend { address, port });
        ending.left.contains(&address) || answers.is_udp && (idle(None) || idle(port))
    } else {
        let (address, port) = asks.destination;
        let opened = |asked| ending.opened.contains(&asked);
        let port = port.map(|port| Asked::Port(family, port));
        let opened = opened(Asked::Address(address)) || port.is_some_and(opened);
        // What goes elsewhere under the host's own address would get another one if it began again.
        asks.is_udp && opened && answers.destination == asks.source
    };
    let message = Message::new(DELETE, 0, &header(family));
    ends.then(|| message.attr(REPLY | flags::NESTED, reply))
}

fn header(family: Family) -> [u8; 4] {
    match family {
        Family::V4 => [2, 0, 0, 0],
        Family::V6 => [10, 0, 0, 0],
    }
}

/// One direction of a connection. Not all protocols have ports.
struct Tuple {
    is_udp: bool,
    source: (IpAddr, Option<u16>),
    destination: (IpAddr, Option<u16>),
}

impl Tuple {
    fn read(tuple: &[u8]) -> Option<Self> {
        let (addresses, protocol) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
        let address = |v4, v6| match attribute(addresses, v4) {
            Some(bytes) => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
            None => {
                let bytes: [u8; 16] = attribute(addresses, v6)?.try_into().ok()?;
                Some(bytes.into())
            }
        };
        let port = |kind| {
            let bytes = attribute(protocol, kind)?.try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        };
        Some(Self {
            is_udp: attribute(protocol, 1)? == [protocol_number(Protocol::Udp)],
            source: (address(1, 3)?, port(2)),
            destination: (address(2, 4)?, port(3)),
        })
    }
}
