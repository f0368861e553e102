//! The rules of router namespaces and of the host: few, fixed, fed by maps.

mod balance;
pub mod direct;
mod everything;
mod host;

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{
    lb::{self, CLASSES, PORT, VIP, key},
    naming::{self, LOOPBACK6, Mac, UPLINK, VXLAN},
    nft::{Base, Ct, Element, Expr, Hook, HookPoint, Meta, Part, RuleText, SetData, Table},
    state::Family,
};

pub use balance::hashing;
use balance::{port_by_source, port_class, vip_by_source, vip_class};
pub use everything::{everything, zoned};
pub use host::{Host, host};

pub(crate) const PRE_NAT: Hook = Hook {
    kind: "nat",
    at: HookPoint::Prerouting,
    priority: -100,
};
pub(crate) const OUT_NAT: Hook = Hook {
    kind: "nat",
    at: HookPoint::Output,
    priority: -100,
};
pub(crate) const POST_NAT: Hook = Hook {
    kind: "nat",
    at: HookPoint::Postrouting,
    priority: 100,
};
pub(crate) const FORWARD: Hook = Hook {
    kind: "filter",
    at: HookPoint::Forward,
    priority: 0,
};
const INPUT: Hook = Hook {
    kind: "filter",
    at: HookPoint::Input,
    priority: 0,
};
/// After everything that may change a packet.
const LEAVES: Hook = Hook {
    kind: "filter",
    at: HookPoint::Postrouting,
    priority: 300,
};
/// After conntrack, which must know the connection, and before NAT.
const ENTRY: Hook = Hook {
    kind: "filter",
    at: HookPoint::Prerouting,
    priority: -150,
};
/// Before conntrack, which would turn addresses back.
pub(crate) const RAW: Hook = Hook {
    kind: "filter",
    at: HookPoint::Prerouting,
    priority: -300,
};

const RAW_OUT: Hook = Hook {
    kind: "filter",
    at: HookPoint::Output,
    priority: -300,
};

pub(crate) const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const NEW: u32 = 8;
pub(crate) const DESTINATION_REWRITTEN: u32 = 0x20;
/// Types of destinations (`linux/rtnetlink.h`): what is sent on, and what is the host's own.
pub(crate) const UNICAST: u32 = 1;
pub(crate) const LOCAL: u32 = 2;
const REPLY: u8 = 1;

/// Registers of four bytes that an address takes.
pub(crate) fn registers(family: Family) -> u32 {
    family.width() / 4
}

/// What the rules of a router namespace depend on.
#[derive(Debug)]
pub struct Router<'a> {
    /// Family of the rules and of all addresses but those of peers.
    pub family: Family,
    /// Whether published ports enter here.
    pub ingress: bool,
    /// Whether the rules only mark what IPVS is to distribute, rather than distributing it themselves.
    pub ipvs: bool,
    /// Whether the kernel can draw slots by the client's address.
    pub source_hash: bool,
    /// Whether the kernel can keep apart what nodes of entry send under one client's address and port.
    pub zones: bool,
    /// Whether every address is asked by its own name, none by a virtual one or a published port, and containers send to other
    /// nodes without being routed: then of connections with other nodes there is no record.
    pub direct: bool,
    /// Gateway address: the source that a task sees when it reaches itself through a virtual address.
    pub gateway: IpAddr,
    /// The other nodes' underlay addresses.
    pub peers: &'a [IpAddr],
    /// Local endpoints: the port of each, and its address.
    pub local: &'a [(String, IpAddr)],
}

/// Rules of a router namespace; load-balancing elements are added by the caller.
pub fn router(name: &str, router: &Router<'_>) -> Table {
    let (family, width) = (router.family, registers(router.family));
    let address = Part::address(family);
    let mut table = Table::new(family, name);
    table
        .set("peers", &[Part::Ether], SetData::None)
        .set("sources", &[Part::Interface, address], SetData::None)
        .chain("raw", Some(RAW), who_may_send(router));
    for peer in router.peers {
        let Mac(mac) = naming::mac_of(*peer);
        table.element("peers", mac.to_vec(), Element::Member);
    }
    for (port, address) in router.local {
        let source = key(&[&interface(port), &lb::octets(*address)]);
        table.element("sources", source, Element::Member);
    }
    table.set(lb::HAIRPIN, &[address, address], SetData::None);
    let mut dnat = Vec::new();
    if router.ipvs {
        table.set(lb::VIP_MARK, &[address], SetData::Parts(vec![Part::Mark]));
    } else {
        let slot = SetData::Parts(vec![address]);
        table.set(VIP, &[address], SetData::Verdict);
        table.set(lb::VIP_SLOTS, &[address, Part::Mark], slot);
        let drawn = SetData::Parts(vec![Part::Mark]);
        table.set(lb::TURNS, &[Part::Mark], drawn);
        for (number, slot) in lb::turns() {
            let slot = Element::Value(slot.to_ne_bytes().to_vec());
            table.element(lb::TURNS, number.to_ne_bytes().to_vec(), slot);
        }
        for slots in CLASSES {
            vip_class(&mut table, slots);
        }
        if router.source_hash {
            vip_by_source(&mut table);
        }
        let lookup = vec![destination(family, 0), Expr::VerdictMap(0, VIP.into())];
        dnat.push(rule("virtual address to its slots", lookup));
    }
    let mut entry = Vec::new();
    if router.ingress {
        let proto_port = [Part::Protocol, Part::Port];
        if router.ipvs {
            let mark = SetData::Parts(vec![Part::Mark]);
            table.set(lb::PORT_MARK, &proto_port, mark);
        } else {
            let slot = [Part::Protocol, Part::Port, Part::Mark];
            let to = SetData::Parts(vec![address, Part::Port]);
            table.set(PORT, &proto_port, SetData::Verdict);
            table.set(lb::PORT_SLOTS, &slot, to);
            for slots in CLASSES {
                port_class(&mut table, slots);
            }
            if router.source_hash {
                port_by_source(&mut table);
            }
            for way in published_by(family) {
                let lookup = vec![Expr::VerdictMap(0, PORT.into())];
                let lookup = [came_by(way), protocol_and_port(), lookup].concat();
                dnat.insert(0, rule("published port to its slots", lookup));
            }
        }
        let from = vec![source_mac(0), map(0, "entries", 0), Expr::SetCtMark(0)];
        table.set("entries", &[Part::Ether], SetData::Parts(vec![Part::Mark]));
        entry.push(rule(
            "remember the node of entry",
            [came_by(VXLAN), connection_is(NEW), from].concat(),
        ));
    }
    if router.ingress {
        let reply = vec![
            Expr::Meta(Meta::InName, 0),
            Expr::IsNot(0, interface(VXLAN)),
            Expr::Ct(Ct::Direction, 0),
            Expr::Is(0, vec![REPLY]),
            Expr::Ct(Ct::Mark, 0),
            Expr::IsNot(0, vec![0; 4]),
            Expr::SetMark(0),
        ];
        entry.push(rule("answers leave by the node of entry", reply));
    }
    if router.ipvs {
        let mark = |key: Vec<Expr>, of: &str| [key, vec![map(0, of, 0), Expr::SetMark(0)]].concat();
        entry.push(rule(
            "virtual address for IPVS",
            mark(vec![destination(family, 0)], lb::VIP_MARK),
        ));
        if router.ingress {
            for way in published_by(family) {
                let key = [came_by(way), protocol_and_port()].concat();
                entry.push(rule("published port for IPVS", mark(key, lb::PORT_MARK)));
            }
        }
    }
    // IPVS rewrites without telling the connection's status; nothing else leads an endpoint to itself.
    let rewritten = match router.ipvs {
        true => Vec::new(),
        false => destination_rewritten(),
    };
    let itself = vec![
        source(family, 0),
        destination(family, width),
        Expr::InSet(0, lb::HAIRPIN.into()),
        Expr::Load(0, lb::octets(router.gateway)),
        Expr::Snat(0),
    ];
    let itself = [rewritten, itself].concat();
    let out = [leaves_by(UPLINK), vec![Expr::Masquerade]].concat();
    if !entry.is_empty() {
        table.chain("entry", Some(ENTRY), entry);
    }
    table
        .chain("prerouting", Some(PRE_NAT), dnat)
        .chain(
            "postrouting",
            Some(POST_NAT),
            vec![rule("a task reaches itself", itself), rule("way out", out)],
        )
        .chain("forward", Some(FORWARD), only_answers_and_published(UPLINK));
    for peer in router.peers.iter().filter(|_| router.ingress) {
        let Mac(mac) = naming::mac_of(*peer);
        let mark = naming::peer_mark(*peer).to_ne_bytes();
        table.element("entries", mac.to_vec(), Element::Value(mark.to_vec()));
    }
    for (_, address) in router.local {
        let address = lb::octets(*address);
        table.element(lb::HAIRPIN, key(&[&address, &address]), Element::Member);
    }
    table
}

/// The interfaces by which the ingress router is asked at published ports.
fn published_by(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &[UPLINK],
        Family::V6 => &[UPLINK, LOOPBACK6],
    }
}

/// Who may send at all: other nodes, and a container from its own address. What is usual is found first.
fn who_may_send(router: &Router<'_>) -> Vec<RuleText> {
    let family = router.family;
    let is_other = |name: &str| Expr::IsNot(0, interface(name));
    let of_container = vec![
        Expr::Meta(Meta::InName, 0),
        source(family, 4),
        Expr::InSet(0, "sources".into()),
        Expr::Accept,
    ];
    let mut of_node = vec![source_mac(0), Expr::InSet(0, "peers".into())];
    if router.ingress && router.zones {
        of_node.extend(zone_of_entry());
    }
    if router.direct {
        of_node.push(Expr::Notrack);
    }
    of_node.push(Expr::Accept);
    let mut from_elsewhere = vec![
        Expr::Meta(Meta::InName, 0),
        is_other(UPLINK),
        is_other("lo"),
    ];
    if family == Family::V6 {
        from_elsewhere.push(is_other(LOOPBACK6));
        // Neighbours are found by link-local addresses, which no router passes on.
        from_elsewhere.push(Expr::Payload {
            base: Base::Network,
            offset: source_offset(family),
            len: 2,
            to: 0,
        });
        from_elsewhere.push(Expr::IsNot(0, vec![0xfe, 0x80]));
    }
    from_elsewhere.push(Expr::Drop);
    let by_tunnel = |does| [came_by(VXLAN), does].concat();
    vec![
        rule("nodes of this cluster", by_tunnel(of_node)),
        rule("a container's own address", of_container),
        rule("no other nodes", by_tunnel(vec![Expr::Drop])),
        rule("nobody sends under another's address", from_elsewhere),
    ]
}

/// Connections of each node of entry are a zone of their own, for a client may ask two nodes from one port and be led to one
/// task by both. Answers are of no zone, so that connection tracking has to give one of the two another port. The zone is
/// the end of the node's Ethernet address: nodes of one network of 65,536 addresses have different ones.
fn zone_of_entry() -> [Expr; 2] {
    let end_of_mac = Expr::Payload {
        base: Base::Link,
        offset: 10,
        len: 2,
        to: 0,
    };
    [end_of_mac, Expr::SetZone(0)]
}

const SOURCE: u32 = 12;

fn only_answers_and_published(name: &str) -> Vec<RuleText> {
    let others = [
        Expr::Meta(Meta::InName, 0),
        Expr::IsNot(0, interface(name)),
        Expr::Accept,
    ];
    let mut rules = vec![rule("what stays among endpoints", others.to_vec())];
    rules.extend(guard(&[]));
    rules
}

fn guard(which: &[Expr]) -> Vec<RuleText> {
    let published = [destination_rewritten(), vec![Expr::Accept]].concat();
    vec![
        rule(
            "answers",
            [
                which.to_vec(),
                connection_is(ESTABLISHED_OR_RELATED),
                vec![Expr::Accept],
            ]
            .concat(),
        ),
        rule("published ports", [which.to_vec(), published].concat()),
        rule(
            "nothing else comes in",
            [which.to_vec(), vec![Expr::Drop]].concat(),
        ),
    ]
}

fn destination_rewritten() -> Vec<Expr> {
    vec![
        Expr::Ct(Ct::Status, 0),
        Expr::And(0, DESTINATION_REWRITTEN),
        Expr::IsNot(0, vec![0; 4]),
    ]
}

pub(crate) fn rule(why: &'static str, does: Vec<Expr>) -> RuleText {
    RuleText { why, does }
}

pub(crate) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

pub(crate) fn came_by(name: &str) -> Vec<Expr> {
    vec![Expr::Meta(Meta::InName, 0), Expr::Is(0, interface(name))]
}

pub(crate) fn leaves_by(name: &str) -> Vec<Expr> {
    vec![Expr::Meta(Meta::OutName, 0), Expr::Is(0, interface(name))]
}

pub(crate) fn connection_is(states: u32) -> Vec<Expr> {
    vec![
        Expr::Ct(Ct::State, 0),
        Expr::And(0, states),
        Expr::IsNot(0, vec![0; 4]),
    ]
}

pub(crate) fn protocol_and_port() -> Vec<Expr> {
    vec![
        Expr::Meta(Meta::Protocol, 0),
        Expr::Payload {
            base: Base::Transport,
            offset: 2,
            len: 2,
            to: 1,
        },
    ]
}

pub(crate) fn destination_port(to: u32) -> Expr {
    Expr::Payload {
        base: Base::Transport,
        offset: 2,
        len: 2,
        to,
    }
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Offsets in the headers of IPv4 (RFC 791 §3.1) and IPv6 (RFC 8200 §3).
fn source_offset(family: Family) -> u32 {
    match family {
        Family::V4 => SOURCE,
        Family::V6 => 8,
    }
}

fn source(family: Family, to: u32) -> Expr {
    Expr::Payload {
        base: Base::Network,
        offset: source_offset(family),
        len: family.width(),
        to,
    }
}

pub(crate) fn destination(family: Family, to: u32) -> Expr {
    Expr::Payload {
        base: Base::Network,
        offset: source_offset(family) + family.width(),
        len: family.width(),
        to,
    }
}

/// Ends the rule unless an address is in a network.
pub(crate) fn net(family: Family, end: End, net: IpNet) -> Vec<Expr> {
    let offset = match end {
        End::Source => source_offset(family),
        End::Destination => source_offset(family) + family.width(),
    };
    let v6 = match net {
        IpNet::V4(v4) => return ipv4_net(offset, v4),
        IpNet::V6(v6) => v6,
    };
    let (whole, bits) = (u32::from(v6.prefix_len() / 8), v6.prefix_len() % 8);
    let octets = v6.network().octets();
    let payload = |offset, len| Expr::Payload {
        base: Base::Network,
        offset,
        len,
        to: 0,
    };
    let mut does = Vec::new();
    if whole > 0 {
        does.push(payload(offset, whole));
        does.push(Expr::Is(0, octets[..whole as usize].to_vec()));
    }
    if bits > 0 {
        let mask = u8::MAX << (8 - bits);
        does.push(payload(offset + whole, 1));
        does.push(Expr::And(0, u32::from_ne_bytes([mask, 0, 0, 0])));
        does.push(Expr::Is(0, vec![octets[whole as usize]]));
    }
    does
}

/// Ends the rule unless an address is one of the loopback interface.
pub(crate) fn loopback(family: Family, end: End) -> Vec<Expr> {
    let all = match family {
        Family::V4 => Ipv4Net::new_assert([127, 0, 0, 0].into(), 8).into(),
        Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST).into(),
    };
    net(family, end, all)
}

fn source_mac(to: u32) -> Expr {
    Expr::Payload {
        base: Base::Link,
        offset: 6,
        len: 6,
        to,
    }
}

fn map(key: u32, map: &str, to: u32) -> Expr {
    Expr::Map {
        key,
        map: map.to_owned(),
        to,
    }
}

fn ipv4_net(offset: u32, net: Ipv4Net) -> Vec<Expr> {
    let mask = u32::from_ne_bytes(net.netmask().octets());
    vec![
        Expr::Payload {
            base: Base::Network,
            offset,
            len: 4,
            to: 0,
        },
        Expr::And(0, mask),
        Expr::Is(0, net.network().octets().to_vec()),
    ]
}
