//! Load balancing by flat nftables maps: one element per (virtual address, slot), no chain and no rule per service.
//!
//! A first map gives a virtual address its slot class; the class's one rule draws a slot and looks up
//! (address, slot) in the map of slots. A small number of backends is a class of its own, so that ten thousand services
//! cost an element per backend; larger classes are highly composite numbers, which the usual numbers of backends divide.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
};

use shoal_api::network::Protocol;

use super::{naming::hash64, nft::Element, state::Family};

/// Numbers of slots, ascending: a slot per backend up to 16, then numbers with many divisors.
pub const CLASSES: [u32; 19] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 60, 840, 10_080,
];
/// Classes that draw in turn: the number of slots, and how many digits to this base count the turns.
///
/// All services of a class count together. Were slot follow on slot, two services of two backends each that are asked
/// alternately would have one backend each; so a number's slot is the sum of its digits, which leads to every slot equally
/// often also when only each second, third or fourth number counts. Larger classes draw by chance.
const TURNS_OF: [(u32, u32); 8] = [
    (1, 1),
    (2, 4),
    (3, 2),
    (4, 3),
    (5, 2),
    (6, 2),
    (7, 2),
    (8, 2),
];
/// Slots per backend from which on a remainder no longer matters: no backend gets over 1/8 more than another.
const SLOTS_PER_BACKEND_MIN: u32 = 8;

/// Elements by map name.
pub type Elements = BTreeMap<String, BTreeMap<Vec<u8>, Element>>;

/// Returns the number of slots for this number of backends.
pub fn class_of(backends: usize) -> u32 {
    let backends = u32::try_from(backends).unwrap_or(u32::MAX).max(1);
    let fits = |slots: &&u32| {
        slots.is_multiple_of(backends) || **slots / SLOTS_PER_BACKEND_MIN >= backends
    };
    *CLASSES
        .iter()
        .find(fits)
        .unwrap_or(&CLASSES[CLASSES.len() - 1])
}

/// Name of the map that gives a virtual address its class; the names of classes begin with it.
pub const VIP: &str = "vip";
/// The same for published ports.
pub const PORT: &str = "port";
/// Name of the map from a virtual address and a slot to a backend, for all classes.
pub const VIP_SLOTS: &str = "vip_slots";
/// The same for published ports.
pub const PORT_SLOTS: &str = "port_slots";
/// Name of the host's map from a published port to where it leads.
pub const PUBLISHED: &str = "published";
/// The same for ports that are published at one address.
pub const PUBLISHED_AT: &str = "published_at";
/// Name of the set of the node's own endpoints, each from its address to its address.
pub const HAIRPIN: &str = "hairpin";

/// Name of the map from the numbers that classes count to slots.
pub const TURNS: &str = "turns";

/// The numbers that a class counts; `None` for one that draws by chance.
pub fn turn_of(slots: u32) -> Option<Range<u32>> {
    let mut start = 0;
    for (of, digits) in TURNS_OF {
        let end = start + of.pow(digits);
        if of == slots {
            return Some(start..end);
        }
        start = end;
    }
    None
}

/// All numbers that classes count, with their slots.
pub fn turns() -> impl Iterator<Item = (u32, u32)> {
    TURNS_OF.into_iter().flat_map(|(slots, digits)| {
        let numbers = turn_of(slots).unwrap_or_default();
        let slot = move |turn: u32| {
            let digit = |place| turn / slots.pow(place) % slots;
            (0..digits).map(digit).sum::<u32>() % slots
        };
        numbers
            .zip(0..)
            .map(move |(number, turn)| (number, slot(turn)))
    })
}

/// Name of the map that gives a virtual address the mark by which IPVS knows its service.
pub const VIP_MARK: &str = "vip_mark";
/// The same for published ports.
pub const PORT_MARK: &str = "port_mark";

/// Bit of the marks of virtual addresses; those of published ports are lower. All of them are below the marks of peers,
/// which are IPv4 addresses, since none begins with 0.
const VIP_MARK_BIT: u32 = 1 << 23;

/// The mark of a virtual address: its last bits, which differ within a subnet.
pub fn vip_mark(vip: IpAddr) -> u32 {
    let low = match vip {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => u32::from_be_bytes(v6.octets()[12..].try_into().unwrap_or_default()),
    };
    VIP_MARK_BIT | (low & (VIP_MARK_BIT - 1))
}

/// The mark of a published port.
pub fn port_mark(protocol: Protocol, port: u16) -> u32 {
    let number = match protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Sctp => 3,
    };
    number << 16 | u32::from(port)
}

/// Slots of a service whose clients stay with their backends: always as many, so that a client's slot never changes.
pub const SOURCE_SLOTS: u32 = 1_024;
/// What names the class of such services, instead of its number of slots.
const SOURCE: &str = "source";

/// By what a slot is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// In turn.
    Turn,
    /// By the client's address.
    Source,
}

impl Draw {
    /// Name of the class's chain for so many backends, and its slots with their backends.
    fn class<'a>(self, kind: &str, backends: &'a [IpAddr]) -> (String, Vec<&'a IpAddr>) {
        match self {
            Self::Turn => {
                let slots = class_of(backends.len());
                let taken = backends.iter().cycle().take(slots as usize);
                (class_name(kind, slots), taken.collect())
            }
            Self::Source => (source_class(kind), by_rank(backends)),
        }
    }
}

/// Name of the chain of services whose clients stay with their backends.
pub fn source_class(kind: &str) -> String {
    format!("{kind}_{SOURCE}")
}

/// Each slot's backend: the one with the highest rank there. Who goes leaves only his own slots to others, and who comes
/// takes only what becomes his (rendezvous hashing).
fn by_rank(backends: &[IpAddr]) -> Vec<&IpAddr> {
    let hashes: Vec<(u64, &IpAddr)> = backends
        .iter()
        .map(|backend| (hash64(&octets(*backend)), backend))
        .collect();
    let best = |slot: u64| {
        let ranked = hashes.iter();
        let best = ranked.max_by_key(|(hash, _)| mix(*hash ^ mix(slot)));
        best.map(|(_, backend)| *backend)
    };
    (0..u64::from(SOURCE_SLOTS)).filter_map(best).collect()
}

/// Spreads a number over all bits (the last step of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Name of a class's chain.
pub fn class_name(kind: &str, slots: u32) -> String {
    format!("{kind}{slots}")
}

/// Adds a virtual address that leads to `backends`; without backends nothing is added, so connections are refused.
pub fn add_vip(elements: &mut Elements, vip: IpAddr, backends: &[IpAddr], draw: Draw) {
    if backends.is_empty() {
        return;
    }
    let (class, slots) = draw.class(VIP, backends);
    elements
        .entry(VIP.to_owned())
        .or_default()
        .insert(octets(vip), Element::Goto(class));
    let map = elements.entry(VIP_SLOTS.to_owned()).or_default();
    for (slot, backend) in (0u32..).zip(slots) {
        map.insert(
            key(&[&octets(vip), &slot.to_ne_bytes()]),
            Element::Value(octets(*backend)),
        );
    }
}

/// Adds a published port that leads to port `target` of `backends`.
pub fn add_port(
    elements: &mut Elements,
    protocol: Protocol,
    published: u16,
    target: u16,
    backends: &[IpAddr],
    draw: Draw,
) {
    if backends.is_empty() {
        return;
    }
    let (class, slots) = draw.class(PORT, backends);
    let port = port_key(protocol, published);
    elements
        .entry(PORT.to_owned())
        .or_default()
        .insert(port.clone(), Element::Goto(class));
    let map = elements.entry(PORT_SLOTS.to_owned()).or_default();
    for (slot, backend) in (0u32..).zip(slots) {
        let to = key(&[&octets(*backend), &target.to_be_bytes()]);
        map.insert(key(&[&port, &slot.to_ne_bytes()]), Element::Value(to));
    }
}

/// What a client may send datagrams to, to be led elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// A virtual address, at any port.
    Address(IpAddr),
    /// A published port, at any address of a family.
    Port(Family, u16),
}

/// Where datagrams are led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` for all of them.
    pub port: Option<u16>,
}

/// Where datagrams to virtual addresses and published ports are led.
pub fn backends(family: Family, elements: &Elements) -> BTreeSet<Backend> {
    let vips = entries(elements, VIP_SLOTS).filter_map(|(_, element)| match element {
        Element::Value(to) => Some(Backend {
            address: address_of(family, to)?,
            port: None,
        }),
        Element::Member | Element::Goto(_) => None,
    });
    let ports = datagram_ports(family, elements, PORT_SLOTS);
    let ports = ports.filter_map(|(asked, element)| match element {
        Element::Value(to) => {
            // The host's rules leave a port as it is.
            let own = to.get(family.width() as usize..).and_then(port_of);
            Some(Backend {
                address: address_of(family, to)?,
                port: Some(own.unwrap_or(asked)),
            })
        }
        Element::Member | Element::Goto(_) => None,
    });
    vips.chain(ports).collect()
}

/// To what datagrams may be sent that are led elsewhere.
pub fn asked(family: Family, elements: &Elements) -> BTreeSet<Asked> {
    let vips = entries(elements, VIP).filter_map(|(key, _)| address_of(family, key));
    let ports = datagram_ports(family, elements, PORT);
    let ports = ports.map(|(port, _)| Asked::Port(family, port));
    vips.map(Asked::Address).chain(ports).collect()
}

/// Elements of a router's map by published ports, and of the host's, if they are for datagrams; each with its port.
fn datagram_ports<'a>(
    family: Family,
    elements: &'a Elements,
    of_router: &'static str,
) -> impl Iterator<Item = (u16, &'a Element)> {
    let address = family.width() as usize;
    let maps = [(of_router, 0), (PUBLISHED, 0), (PUBLISHED_AT, address)];
    maps.into_iter().flat_map(move |(map, at)| {
        let entries = entries(elements, map);
        entries.filter_map(move |(key, element)| {
            let key = key.get(at..)?;
            let is_udp = key.first() == Some(&protocol_number(Protocol::Udp));
            Some((port_of(key.get(4..)?)?, element)).filter(|_| is_udp)
        })
    })
}

fn entries<'a>(
    elements: &'a Elements,
    map: &str,
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Element)> + use<'a> {
    elements.get(map).into_iter().flatten()
}

fn port_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Addresses of the node's own endpoints.
pub fn local(family: Family, elements: &Elements) -> BTreeSet<IpAddr> {
    let keys = elements.get(HAIRPIN).into_iter().flat_map(BTreeMap::keys);
    keys.filter_map(|key| address_of(family, key)).collect()
}

/// The address with which a key or value begins.
fn address_of(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        Family::V6 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
    }
}

/// An address as packets carry it.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Key of a protocol and port.
pub fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    key(&[&[protocol_number(protocol)], &port.to_be_bytes()])
}

/// Joins the parts of a key, each padded to the four bytes of an nftables register.
pub fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(part);
        joined.resize(joined.len().next_multiple_of(4), 0);
    }
    joined
}

/// IANA protocol number.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_numbers_of_backends_divide_their_class() {
        for backends in [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 70, 84, 120] {
            let slots = class_of(backends);
            assert!(
                (slots as usize).is_multiple_of(backends) || slots as usize / 8 >= backends,
                "{backends} in {slots}"
            );
        }
        assert_eq!(
            [3, 5, 16, 17, 20, 200, 5000].map(class_of),
            [3, 5, 16, 840, 60, 10_080, 10_080]
        );
    }

    #[test]
    fn every_slot_has_its_turn_also_when_others_count_along() {
        let all: BTreeMap<u32, u32> = turns().collect();
        assert_eq!(all.len(), turns().count(), "no number twice");
        for slots in 1..=8 {
            let turn = turn_of(slots).expect("it draws in turn");
            let length = turn.end - turn.start;
            let shares = |step: u32, first: u32| {
                let mut shares = vec![0; slots as usize];
                for asked in 0..length {
                    let number = turn.start + (first + step * asked) % length;
                    shares[all[&number] as usize] += 1;
                }
                shares
            };
            let even = vec![length / slots; slots as usize];
            for step in 1..=3 {
                for first in 0..step {
                    assert_eq!(shares(step, first), even, "{slots} slots, each {step}.");
                }
            }
            // By themselves the first ones are all different.
            let first: BTreeSet<u32> = turn.clone().take(slots as usize).map(|n| all[&n]).collect();
            assert_eq!(first.len(), slots as usize);
        }
        assert_eq!(turn_of(9), None);
    }

    #[test]
    fn every_backend_gets_its_share_of_slots() {
        let backends: Vec<IpAddr> = (1..=17).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let mut elements = Elements::new();
        add_vip(&mut elements, [10, 0, 0, 99].into(), &backends, Draw::Turn);
        let map = &elements[VIP_SLOTS];
        assert_eq!(map.len(), 840);
        for backend in &backends {
            let share = map
                .values()
                .filter(|e| **e == Element::Value(octets(*backend)))
                .count();
            assert!((49..=50).contains(&share));
        }
        assert_eq!(
            elements["vip"][&vec![10, 0, 0, 99]],
            Element::Goto("vip840".into())
        );
    }

    #[test]
    fn a_client_s_slot_changes_hands_only_when_its_backend_goes() {
        let all: Vec<IpAddr> = (1..=10).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let before = by_rank(&all);
        assert_eq!(before.len(), SOURCE_SLOTS as usize);
        for backend in &all {
            let share = before.iter().filter(|one| **one == backend).count();
            assert!((70..=135).contains(&share), "{backend}: {share}");
        }
        let left: Vec<IpAddr> = all[1..].to_vec();
        for (was, is) in before.iter().zip(by_rank(&left)) {
            assert!(**was == all[0] || *was == is, "{was} became {is}");
        }
    }

    #[test]
    fn a_service_without_backends_has_no_element() {
        let mut elements = Elements::new();
        add_vip(&mut elements, [10, 0, 0, 99].into(), &[], Draw::Turn);
        add_port(&mut elements, Protocol::Tcp, 80, 80, &[], Draw::Source);
        assert!(elements.is_empty());
    }

    #[test]
    fn keys_are_padded_per_part() {
        assert_eq!(
            port_key(Protocol::Tcp, 8080),
            [6, 0, 0, 0, 0x1f, 0x90, 0, 0]
        );
    }
}
