//! IPVS over generic netlink: services known by a packet mark, and where they lead.
//!
//! Numbers are those of `linux/ip_vs.h`. A service is always one of a mark: a virtual address then
//! covers all ports, and a published port any address that it was asked at.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    generic_wire,
    lb::octets,
    netlink::{Message, attribute, flags, native_u16, native_u32, text},
    state::Family,
};

/// Name of its family.
pub const FAMILY: &str = "IPVS";

const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
/// Seconds after which a silent TCP connection is forgotten.
const TCP_TIMEOUT: u16 = 4;

/// Schedulers in use: in turn; and by the client's address, the better one first. Maglev's table leaves the clients of
/// others where they are when a backend goes.
pub const TURN: &str = "rr";
/// See [`TURN`].
pub const BY_SOURCE: [&str; 2] = ["mh", "sh"];

/// Traffic is rewritten on its way, so that backends may be anywhere.
const MASQUERADE: u32 = 0;
/// All bits of the flags count.
const ALL_FLAGS: u32 = u32::MAX;
/// Bytes of the union that holds an address of either family.
const ADDRESS_BYTES: usize = 16;

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Command {
    NewService = 1,
    SetService = 2,
    DelService = 3,
    GetService = 4,
    NewDestination = 5,
    SetDestination = 6,
    DelDestination = 7,
    GetDestination = 8,
    SetConfig = 12,
    GetConfig = 13,
}

/// Which service: the packets of a family with a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Family of the packets.
    pub family: Family,
    /// Their mark.
    pub mark: u32,
}

/// How a service is distributed, and over which destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// [`TURN`], or one of [`BY_SOURCE`] where a client is to stay with its backend.
    pub scheduler: String,
    /// Weights by address and port; the port 0 keeps that of the packet. Weight 0 keeps what it has and gets no more.
    pub destinations: BTreeMap<(IpAddr, u16), u32>,
}

/// A change of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Adds it.
    Add,
    /// Changes its weight.
    Set,
    /// Removes it.
    Remove,
}

/// Adds a service, without destinations.
pub fn new_service(ipvs: u16, key: ServiceKey, scheduler: &str) -> Message {
    with_service(ipvs, Command::NewService, key, Some(scheduler))
}

/// Changes the scheduler of a service.
pub fn set_service(ipvs: u16, key: ServiceKey, scheduler: &str) -> Message {
    with_service(ipvs, Command::SetService, key, Some(scheduler))
}

/// Removes a service with its destinations.
pub fn delete_service(ipvs: u16, key: ServiceKey) -> Message {
    with_service(ipvs, Command::DelService, key, None)
}

/// Asks for all services.
pub fn list_services(ipvs: u16) -> Message {
    generic_wire::message(ipvs, Command::GetService as u8, flags::DUMP)
}

/// Asks for all destinations of a service.
pub fn list_destinations(ipvs: u16, key: ServiceKey) -> Message {
    generic_wire::message(ipvs, Command::GetDestination as u8, flags::DUMP)
        .nest(SERVICE, |m| service(m, key, None))
}

/// Changes a destination of a service.
pub fn destination(
    ipvs: u16,
    key: ServiceKey,
    edit: Edit,
    (address, port): (IpAddr, u16),
    weight: u32,
) -> Message {
    let command = match edit {
        Edit::Add => Command::NewDestination,
        Edit::Set => Command::SetDestination,
        Edit::Remove => Command::DelDestination,
    };
    with_service(ipvs, command, key, None).nest(DESTINATION, |m| {
        let m = m
            .attr(1, &padded(address))
            .attr(2, &port.to_be_bytes())
            .attr(11, &number(Family::of(address)).to_ne_bytes());
        if edit == Edit::Remove {
            return m;
        }
        // No thresholds: a service never refuses for being busy.
        m.u32(3, MASQUERADE).u32(4, weight).u32(5, 0).u32(6, 0)
    })
}

/// Sets after how many seconds of silence TCP connections of the namespace are forgotten.
pub fn set_idle(ipvs: u16, seconds: u32) -> Message {
    generic_wire::message(ipvs, Command::SetConfig as u8, 0).u32(TCP_TIMEOUT, seconds)
}

/// Asks for that number.
pub fn ask_config(ipvs: u16) -> Message {
    generic_wire::message(ipvs, Command::GetConfig as u8, 0)
}

/// Reads it from an answer to [`ask_config`].
pub fn read_idle(body: &[u8]) -> Option<u32> {
    native_u32(attribute(
        body.get(generic_wire::HEADER_LENGTH..)?,
        TCP_TIMEOUT,
    )?)
}

/// Reads a service with a mark from an answer to [`list_services`].
pub fn read_service(body: &[u8]) -> Option<(ServiceKey, String)> {
    let attrs = attribute(body.get(generic_wire::HEADER_LENGTH..)?, SERVICE)?;
    let family = match native_u16(attribute(attrs, 1)?)? {
        2 => Family::V4,
        10 => Family::V6,
        _ => return None,
    };
    let mark = native_u32(attribute(attrs, 5)?)?;
    Some((ServiceKey { family, mark }, text(attribute(attrs, 6)?)))
}

/// Reads a destination and its weight from an answer to [`list_destinations`].
pub fn read_destination(family: Family, body: &[u8]) -> Option<((IpAddr, u16), u32)> {
    let attrs = attribute(body.get(generic_wire::HEADER_LENGTH..)?, DESTINATION)?;
    let bytes = attribute(attrs, 1)?;
    let address = match family {
        Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
    };
    let port = u16::from_be_bytes(*attribute(attrs, 2)?.first_chunk()?);
    Some(((address, port), native_u32(attribute(attrs, 4)?)?))
}

fn with_service(ipvs: u16, command: Command, key: ServiceKey, scheduler: Option<&str>) -> Message {
    generic_wire::message(ipvs, command as u8, 0).nest(SERVICE, |m| service(m, key, scheduler))
}

/// What names a service and, with a scheduler, what it is to be.
fn service(m: Message, key: ServiceKey, scheduler: Option<&str>) -> Message {
    let m = m
        .attr(1, &number(key.family).to_ne_bytes())
        .u32(5, key.mark);
    let Some(scheduler) = scheduler else { return m };
    let one_client = match key.family {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    };
    m.text(6, scheduler)
        .attr(7, &[0u32.to_ne_bytes(), ALL_FLAGS.to_ne_bytes()].concat())
        .u32(8, 0)
        .u32(9, one_client)
}

fn number(family: Family) -> u16 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn padded(address: IpAddr) -> Vec<u8> {
    let mut bytes = octets(address);
    bytes.resize(ADDRESS_BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::netlink::messages;

    const KEY: ServiceKey = ServiceKey {
        family: Family::V4,
        mark: 0x0080_0102,
    };

    /// The attributes as `linux/ip_vs.h` lays them out, on a machine that counts from the little end.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_destination_is_laid_out_as_the_kernel_reads_it() {
        let backend = ([10, 0, 1, 11].into(), 80);
        let bytes = destination(0x1c, KEY, Edit::Add, backend, 1).finish(7, flags::ACK);
        #[rustfmt::skip]
        let expected: Vec<u8> = [
            &[112, 0, 0, 0, 0x1c, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0][..], // length, family, REQUEST|ACK, sequence, port
            &[5, 1, 0, 0],                            // NEW_DEST, version 1
            &[20, 0, 1, 0x80],                        // SERVICE, nested
            &[6, 0, 1, 0, 2, 0, 0, 0],                // AF: INET
            &[8, 0, 5, 0, 2, 1, 0x80, 0],             // FWMARK
            &[72, 0, 2, 0x80],                        // DEST, nested
            &[20, 0, 1, 0, 10, 0, 1, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // ADDR
            &[6, 0, 2, 0, 0, 80, 0, 0],               // PORT, network order
            &[6, 0, 11, 0, 2, 0, 0, 0],               // ADDR_FAMILY
            &[8, 0, 3, 0, 0, 0, 0, 0],                // FWD_METHOD: masquerade
            &[8, 0, 4, 0, 1, 0, 0, 0],                // WEIGHT
            &[8, 0, 5, 0, 0, 0, 0, 0],                // U_THRESH
            &[8, 0, 6, 0, 0, 0, 0, 0],                // L_THRESH
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = new_service(0x1c, KEY, "rr").finish(1, 0);
        let body = messages(&bytes).next().expect("one message").body;
        assert_eq!(read_service(body), Some((KEY, "rr".to_owned())));
        let backend = ("fd00::b".parse().expect("an address"), 8080);
        let key = ServiceKey {
            family: Family::V6,
            ..KEY
        };
        let bytes = destination(0x1c, key, Edit::Set, backend, 0).finish(1, 0);
        let body = messages(&bytes).next().expect("one message").body;
        assert_eq!(read_destination(Family::V6, body), Some((backend, 0)));
        let idle = set_idle(0x1c, 432_000).finish(1, 0);
        let body = messages(&idle).next().expect("one message").body;
        assert_eq!(read_idle(body), Some(432_000));
        assert_eq!(read_service(&[0; 3]), None, "truncated");
        assert_eq!(read_destination(Family::V4, &bytes[..30]), None);
    }
}
