//! Notices of the kernel: which of them say that somebody else changed what is ours.
//!
//! Numbers are those of `linux/rtnetlink.h`, `linux/netfilter/nfnetlink.h` and `nf_tables.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::{
    naming::{self, Mac},
    netlink::{Received, attribute, native_u32, text},
    state::{KernelState, LinkKind, Space},
};

/// Netlink ports of our own sockets; those that the kernel chooses are process ids or negative.
pub const OWN_PORTS: RangeInclusive<u32> = 0x5ba1_0000..=0x5ba1_ffff;

/// rtnetlink's groups for links, neighbours, and addresses, routes, rules and settings of both families.
pub const ROUTE_GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 4];
/// nfnetlink's group for nftables.
pub const NETFILTER_GROUPS: [u32; 1] = [7];

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const NEWNETCONF: u16 = 80;
/// One byte of family, padded.
const NETCONF_HEADER: usize = 4;
/// −1 stands for the settings of all interfaces.
const ALL_INTERFACES: u32 = u32::MAX;
const UP: u32 = 1;
const NFTABLES: u16 = 10 << 8;
const NEW_GENERATION: u16 = NFTABLES | 15;

/// What in a namespace is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Names of interfaces.
    pub links: BTreeSet<String>,
    /// Their numbers.
    pub indices: BTreeSet<u32>,
    /// Those of them whose neighbours and forwarding entries are ours.
    pub neighbours: BTreeSet<u32>,
    /// Interfaces of others on which ours depend.
    pub watched: BTreeSet<String>,
    /// What all these should be, or were found to be.
    pub shapes: BTreeMap<String, Shape>,
    /// Whose routes and rules.
    pub protocol: u8,
    /// Name of the nftables tables.
    pub table: String,
}

/// What can be changed of an interface while it is up; `None` where it does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
}

impl Shape {
    /// Whether an interface with these attributes has another one.
    fn differs(&self, attrs: &[u8]) -> bool {
        let mac = || attribute(attrs, 1).map(<[u8]>::to_vec);
        let mtu = || attribute(attrs, 4).and_then(native_u32);
        self.mac
            .is_some_and(|wanted| mac() != Some(wanted.0.into()))
            || self.mtu.is_some_and(|wanted| mtu() != Some(wanted))
    }
}

/// What the interfaces of every namespace should be, by their names.
pub fn shapes(want: &KernelState) -> BTreeMap<Space, BTreeMap<String, Shape>> {
    let mut shapes: BTreeMap<Space, BTreeMap<String, Shape>> = BTreeMap::new();
    let mut note = |space: &Space, name: &String, mac, mtu| {
        let of_space = shapes.entry(space.clone()).or_default();
        of_space.insert(name.clone(), Shape { mac, mtu });
    };
    for (space, wanted) in &want.spaces {
        for (name, link) in &wanted.links {
            note(space, name, link.mac, link.mtu);
            if let LinkKind::Veth { peer } = &link.kind {
                note(&peer.space, &peer.name, Some(peer.mac), peer.mtu);
            }
        }
    }
    shapes
}

/// Whether a message of rtnetlink says that somebody else changed what is ours.
///
/// What the kernel does by itself (port 0) counts only where it takes something away: links come up, and learn their
/// link-local addresses, without anybody's doing. Of links it never says who has changed them, so that what they are must
/// be compared with what they should be.
pub fn route_concerns(message: Received<'_>, ours: &Scope) -> bool {
    if OWN_PORTS.contains(&message.port) {
        return false;
    }
    let by_kernel = message.port == 0;
    let body = message.body;
    let index = |at: usize| body.get(at..at + 4).and_then(native_u32);
    let is_ours = |index: Option<u32>| index.is_some_and(|index| ours.indices.contains(&index));
    match message.kind {
        NEWLINK | DELLINK => {
            let attrs = body.get(16..).unwrap_or_default();
            let name = attribute(attrs, 3).map(text).unwrap_or_default();
            let up = index(8).is_some_and(|flags| flags & UP != 0);
            let known = ours.links.contains(&name) || is_ours(index(4));
            let differs = || ours.shapes.get(&name).is_some_and(|s| s.differs(attrs));
            (known || ours.watched.contains(&name))
                && (message.kind == DELLINK || !by_kernel || !up || differs())
        }
        NEWADDR => !by_kernel && is_ours(index(4)),
        DELADDR => is_ours(index(4)),
        NEWROUTE | DELROUTE => !by_kernel && body.get(5) == Some(&ours.protocol),
        NEWRULE | DELRULE => {
            let whose = body.get(12..).and_then(|attrs| attribute(attrs, 21));
            !by_kernel && whose.and_then(|bytes| bytes.first()) == Some(&ours.protocol)
        }
        NEWNEIGH | DELNEIGH => {
            let is_ours = index(4).is_some_and(|index| ours.neighbours.contains(&index));
            is_ours && (message.kind == DELNEIGH || !by_kernel)
        }
        // Settings are files: the kernel does not know who wrote them, only of which interface.
        NEWNETCONF => {
            let attrs = body.get(NETCONF_HEADER..).unwrap_or_default();
            is_setting_of_all(message) || is_ours(attribute(attrs, 1).and_then(native_u32))
        }
        _ => false,
    }
}

/// Whether a message of rtnetlink may be the kernel's own consequence of steps of ours.
///
/// Permanent neighbours are an exception: the kernel drops them when an interface goes down, a moment later than it
/// tells of that, and only steps of others bring our interfaces down, or make others of them. So are settings of all
/// interfaces: we write them once and then look once more, while one that somebody else wrote meanwhile would be missed
/// for ever.
pub fn may_follow_from_ours(message: Received<'_>) -> bool {
    let by_others = [NEWLINK, DELNEIGH].contains(&message.kind) || is_setting_of_all(message);
    message.port == 0 && !by_others
}

fn is_setting_of_all(message: Received<'_>) -> bool {
    let attrs = message.body.get(NETCONF_HEADER..).unwrap_or_default();
    let of = attribute(attrs, 1).and_then(native_u32);
    message.kind == NEWNETCONF && of == Some(ALL_INTERFACES)
}

/// Whether a message of nftables says that somebody else changed what is ours.
pub fn netfilter_concerns(message: Received<'_>, ours: &Scope) -> bool {
    if OWN_PORTS.contains(&message.port) || message.kind == NEW_GENERATION {
        return false;
    }
    // The first attribute of every kind of message is the table's name.
    let table = message
        .body
        .get(4..)
        .and_then(|attrs| attribute(attrs, 1))
        .map(text);
    message.kind & 0xff00 == NFTABLES
        && table.is_some_and(|table| naming::is_own_table(&ours.table, &table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::netlink::{Message, messages};

    fn ours() -> Scope {
        Scope {
            links: ["vx0".to_owned()].into(),
            indices: [7].into(),
            neighbours: [7].into(),
            watched: ["eth0".to_owned()].into(),
            shapes: [
                ("eth0".to_owned(), wide(None)),
                ("vx0".to_owned(), wide(Some(Mac([2; 6])))),
            ]
            .into(),
            protocol: 83,
            table: "shoal".to_owned(),
        }
    }

    fn wide(mac: Option<Mac>) -> Shape {
        let mtu = Some(1500);
        Shape { mac, mtu }
    }

    /// Whether the kernel's word of an interface that is up concerns us.
    fn is_other(name: &str, index: u32, mtu: u32, mac: u8) -> bool {
        let message = Message::new(NEWLINK, 0, &link(index, UP)).text(3, name);
        let bytes = message.u32(4, mtu).attr(1, &[mac; 6]).finish(1, 0);
        route_concerns(messages(&bytes).next().expect("one message"), &ours())
    }

    #[test]
    fn the_kernel_says_what_a_link_is_and_not_who_has_made_it_so() {
        assert!(!is_other("vx0", 7, 1500, 2), "as it should be");
        assert!(is_other("vx0", 7, 1400, 2), "its MTU");
        assert!(is_other("vx0", 7, 1500, 3), "its address");
        assert!(!is_other("eth0", 2, 1500, 3), "whatever its address");
        assert!(is_other("eth0", 2, 9000, 3), "the underlay's MTU");
        assert!(!is_other("other", 9, 1400, 3), "nobody's");
    }

    /// Whether a message of this kind from this port concerns us.
    fn route(kind: u16, port: u32, fixed: &[u8], name: Option<&str>) -> bool {
        let message = Message::new(kind, 0, fixed);
        let message = name.iter().fold(message, |m, name| m.text(3, name));
        let mut bytes = message.finish(1, 0);
        bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        route_concerns(messages(&bytes).next().expect("one message"), &ours())
    }

    fn link(index: u32, flags: u32) -> Vec<u8> {
        [
            &[0; 4],
            &index.to_ne_bytes()[..],
            &flags.to_ne_bytes(),
            &[0; 4],
        ]
        .concat()
    }

    #[test]
    fn our_own_steps_and_the_kernels_own_bringing_up_concern_nobody() {
        assert!(!route(
            DELLINK,
            *OWN_PORTS.start(),
            &link(7, 0),
            Some("vx0")
        ));
        assert!(!route(NEWLINK, 0, &link(7, UP), Some("e1")));
        assert!(!route(NEWLINK, 4711, &link(9, UP), Some("other")));
    }

    #[test]
    fn what_others_take_away_or_change_concerns_us() {
        assert!(route(DELLINK, 4711, &link(7, 0), Some("vx0")));
        assert!(route(DELLINK, 0, &link(7, 0), Some("vx0")));
        assert!(route(NEWLINK, 0, &link(7, 0), Some("vx0")), "it went down");
        assert!(route(NEWLINK, 4711, &link(7, UP), Some("renamed")));
        assert!(route(DELADDR, 4711, &[2, 32, 0, 0, 7, 0, 0, 0], None));
        let with_protocol = |protocol| [2, 0, 0, 0, 254, protocol, 0, 0, 0, 0, 0, 0];
        assert!(route(DELROUTE, 4711, &with_protocol(83), None));
        assert!(!route(DELROUTE, 4711, &with_protocol(3), None));
    }

    #[test]
    fn tables_are_told_apart_by_name() {
        let of = |kind, table: &str| {
            let mut bytes = Message::new(kind, 0, &[2, 0, 0, 0])
                .text(1, table)
                .finish(1, 0);
            bytes[12..16].copy_from_slice(&4711u32.to_ne_bytes());
            netfilter_concerns(messages(&bytes).next().expect("one message"), &ours())
        };
        assert!(of(NFTABLES | 2, "shoal"));
        assert!(!of(NFTABLES | 2, "shoal_bridge"));
        assert!(!of(NEW_GENERATION, "shoal"));
    }
}
