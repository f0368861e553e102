//! Connection tracking over netlink: which datagram flows still lead to backends that have gone.
//!
//! A UDP flow keeps its backend for as long as the client goes on sending; unlike with TCP, nobody would ever notice
//! that it is dead. Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{
    lb::protocol_number,
    netlink::{Message, attribute, flags},
};
use shoal_api::network::Protocol;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const IPV4: [u8; 4] = [2, 0, 0, 0];
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;

/// Asks for all IPv4 connections.
pub fn list() -> Message {
    Message::new(GET, flags::DUMP, &IPV4)
}

/// The removal of a connection from an answer to [`list`], if it is a UDP flow that was led to one of `gone`.
pub fn removal(body: &[u8], gone: &BTreeSet<Ipv4Addr>) -> Option<Message> {
    let attrs = body.get(4..)?;
    let (original, reply) = (attribute(attrs, ORIGINAL)?, attribute(attrs, REPLY)?);
    let backend = address(reply, 1)?;
    let led = backend != address(original, 2)? && gone.contains(&backend);
    let udp = attribute(attribute(reply, 2)?, 1)? == [protocol_number(Protocol::Udp)];
    (led && udp).then(|| Message::new(DELETE, 0, &IPV4).attr(ORIGINAL | flags::NESTED, original))
}

/// Source (1) or destination (2) of one direction.
fn address(tuple: &[u8], which: u16) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = attribute(attribute(tuple, 1)?, which)?.try_into().ok()?;
    Some(bytes.into())
}
