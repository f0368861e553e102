//! Links, addresses, routes, neighbours and rules over rtnetlink: requests, and what dumps say.
//!
//! Numbers are those of `linux/rtnetlink.h`, `if_link.h`, `neighbour.h` and `fib_rules.h`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    naming::{self, Mac},
    netlink::{Message, attribute, flags, native_u16, native_u32, text},
    observed::ObservedLink,
    state::{Family, Link, LinkKind, Route, RouteKind, Rule},
    wireguard_wire,
};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const GETRULE: u16 = 34;

const UP: u32 = 1;
const BRIDGE_FAMILY: u8 = 7;
/// Number of the loopback interface, the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;
const PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const BLACKHOLE: u8 = 6;
const NO_DUPLICATE_DETECTION: u32 = 2;
const MAKE: u16 = flags::CREATE | flags::EXCL;

/// Whether an entry is to be made or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make it; an equal one that exists is an error.
    Add,
    /// Remove it.
    Remove,
}

/// Where a new link's far parts go.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkPlaces {
    /// Descriptor of the namespace the link itself is to live in, if not the one asked.
    pub own: Option<i32>,
    /// Descriptor of the namespace of a veth's other end.
    pub peer: Option<i32>,
    /// Index of the bridge it joins.
    pub master: Option<u32>,
}

/// Makes a link and brings it up. Both ends of a veth are made, and stay down: up without the other one, an end tells the
/// kernel of a broken line.
pub fn create_link(name: &str, link: &Link, places: LinkPlaces) -> Message {
    let state = match &link.kind {
        LinkKind::Veth { .. } => 0,
        LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Wireguard => UP,
    };
    let index = match &link.kind {
        LinkKind::Vxlan { .. } => naming::VXLAN_INDEX,
        LinkKind::Bridge | LinkKind::Veth { .. } | LinkKind::Wireguard => 0,
    };
    let mut m = Message::new(NEWLINK, MAKE, &link_header(0, index, state)).text(3, name);
    m = link.mac.iter().fold(m, |m, mac| m.attr(1, &mac.0));
    m = link.mtu.iter().fold(m, |m, mtu| m.u32(4, *mtu));
    m = places.master.iter().fold(m, |m, index| m.u32(10, *index));
    m = places
        .own
        .iter()
        .fold(m, |m, fd| m.attr(28, &fd.to_ne_bytes()));
    let m = match &link.kind {
        LinkKind::Veth { .. } => one_queue(m),
        LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Wireguard => m,
    };
    m.nest(18, |info| match &link.kind {
        LinkKind::Bridge => info.text(1, "bridge"),
        LinkKind::Wireguard => info.text(1, wireguard_wire::FAMILY),
        LinkKind::Vxlan { vni, port, local } => info.text(1, "vxlan").nest(2, |data| {
            let data = data
                .u32(1, *vni)
                .attr(7, &[0])
                .attr(15, &port.to_be_bytes());
            match local {
                IpAddr::V4(v4) => data.attr(4, &v4.octets()),
                IpAddr::V6(v6) => data.attr(17, &v6.octets()),
            }
        }),
        LinkKind::Veth { peer } => info.text(1, "veth").nest(2, |data| {
            data.nest(1, |end| {
                let end = end
                    .raw(&link_header(0, 0, 0))
                    .text(3, &peer.name)
                    .attr(1, &peer.mac.0);
                let end = peer
                    .mtu
                    .iter()
                    .fold(one_queue(end), |end, mtu| end.u32(4, *mtu));
                places
                    .peer
                    .iter()
                    .fold(end, |end, fd| end.attr(28, &fd.to_ne_bytes()))
            })
        }),
    })
}

/// One queue each way, which is what a veth uses. Left to itself the kernel makes one per processor and then waits for its
/// readers, under the lock of all networks, to use one alone.
fn one_queue(message: Message) -> Message {
    message.u32(31, 1).u32(32, 1)
}

/// Sets an interface's MTU.
pub fn set_mtu(index: u32, mtu: u32) -> Message {
    Message::new(NEWLINK, 0, &link_header(0, index, 0)).u32(4, mtu)
}

/// Brings a link to the wanted MTU, bridge and state; its kind stays.
pub fn update_link(index: u32, link: &Link, master: Option<u32>) -> Message {
    let m = Message::new(NEWLINK, 0, &link_header(0, index, UP));
    let m = link.mtu.iter().fold(m, |m, mtu| m.u32(4, *mtu));
    let m = link.mac.iter().fold(m, |m, mac| m.attr(1, &mac.0));
    master.iter().fold(m, |m, index| m.u32(10, *index))
}

/// Sets how a bridge port behaves: whether it may talk to other isolated ports, and to itself.
pub fn port_mode(index: u32, link: &Link) -> Message {
    Message::new(NEWLINK, 0, &link_header(0, index, 0)).nest(18, |info| {
        info.text(4, "bridge").nest(5, |port| {
            port.attr(4, &[u8::from(link.hairpin)])
                .attr(33, &[u8::from(link.isolated)])
        })
    })
}

/// Keeps a link from making itself an IPv6 address of its own when it comes up (`IFLA_AF_SPEC`, `AF_INET6`, `IFLA_INET6_ADDR_GEN_MODE`).
pub fn no_own_address(index: u32) -> Message {
    let families = Message::new(NEWLINK, 0, &link_header(0, index, 0));
    families.nest(26, |families| {
        families.nest(10, |settings| settings.attr(8, &[1]))
    })
}

/// Brings a link up.
pub fn up(index: u32) -> Message {
    Message::new(NEWLINK, 0, &link_header(0, index, UP))
}

/// Removes a link; with a veth, both ends.
pub fn delete_link(index: u32) -> Message {
    Message::new(DELLINK, 0, &link_header(0, index, 0))
}

const EXT_MASK: u16 = 29;
const SKIP_STATISTICS: u32 = 8;

/// Asks for all links.
pub fn list_links() -> Message {
    Message::new(GETLINK, flags::DUMP, &link_header(0, 0, 0)).u32(EXT_MASK, SKIP_STATISTICS)
}

/// Asks for one link; the answer is read by [`read_link`].
pub fn find_link(name: &str) -> Message {
    Message::new(GETLINK, 0, &link_header(0, 0, 0))
        .text(3, name)
        .u32(EXT_MASK, SKIP_STATISTICS)
}

/// Puts a link into a group.
pub fn join_group(index: u32, group: u32) -> Message {
    Message::new(NEWLINK, 0, &link_header(0, index, 0)).u32(27, group)
}

/// Removes all links of a group at once; with veths, both ends.
pub fn delete_group(group: u32) -> Message {
    Message::new(DELLINK, 0, &link_header(0, 0, 0)).u32(27, group)
}

/// Adds or removes an address.
pub fn address(verb: Verb, index: u32, net: &IpNet) -> Message {
    let fixed = [
        &[family(net.addr()), net.prefix_len(), 0, 0],
        &index.to_ne_bytes()[..],
    ]
    .concat();
    let bytes = octets(net.addr());
    let m = Message::new(pick(verb, NEWADDR, DELADDR), make(verb), &fixed)
        .attr(2, &bytes)
        .attr(1, &bytes);
    match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 => m.attr(4, &v4.broadcast().octets()),
        IpNet::V4(_) => m,
        // Nobody else can have it: to look for others would only delay its first packet.
        IpNet::V6(_) => m.u32(8, NO_DUPLICATE_DETECTION),
    }
}

/// Asks for all addresses.
pub fn list_addresses() -> Message {
    Message::new(GETADDR, flags::DUMP, &[0; 8])
}

/// Adds or removes a route.
pub fn route(verb: Verb, index: u32, route: &Route) -> Message {
    const ONLINK: u32 = 4;
    const LINK_SCOPE: u8 = 253;
    const HOST_SCOPE: u8 = 254;
    let scope = match (route.kind, route.via) {
        (RouteKind::Local, _) if route.to.addr().is_ipv4() => HOST_SCOPE,
        (RouteKind::Unicast, None) if route.to.addr().is_ipv4() => LINK_SCOPE,
        _ => 0,
    };
    let kind = match route.kind {
        RouteKind::Unicast => UNICAST,
        RouteKind::Local => LOCAL,
        RouteKind::Blackhole => BLACKHOLE,
    };
    // Tables over 255 do not fit the header's byte; the attribute counts.
    let table = u8::try_from(route.table).unwrap_or(0);
    let flags = if route.via.is_some() { ONLINK } else { 0 };
    let fixed = [
        &[
            family(route.to.addr()),
            route.to.prefix_len(),
            0,
            0,
            table,
            route.protocol,
            scope,
            kind,
        ],
        &flags.to_ne_bytes()[..],
    ]
    .concat();
    let m = Message::new(pick(verb, NEWROUTE, DELROUTE), make(verb), &fixed)
        .u32(15, route.table)
        .attr(1, &octets(route.to.network()));
    // IPv4 wants none for one that leads nowhere.
    let m = match route.kind {
        RouteKind::Unicast | RouteKind::Local => m.u32(4, index),
        RouteKind::Blackhole => m,
    };
    let mtu = route.mtu.iter();
    let m = mtu.fold(m, |m, mtu| m.nest(8, |metrics| metrics.u32(2, *mtu)));
    route.via.iter().fold(m, |m, via| m.attr(5, &octets(*via)))
}

/// Asks for all routes.
pub fn list_routes() -> Message {
    Message::new(GETROUTE, flags::DUMP, &[0; 12])
}

/// Adds or removes a permanent neighbour.
pub fn neighbour(verb: Verb, index: u32, address: IpAddr, mac: Mac) -> Message {
    let fixed = neighbour_header(family(address), index, 0);
    Message::new(pick(verb, NEWNEIGH, DELNEIGH), replace(verb), &fixed)
        .attr(1, &octets(address))
        .attr(2, &mac.0)
}

/// Adds or removes a VXLAN forwarding entry.
pub fn fdb(verb: Verb, index: u32, mac: Mac, remote: IpAddr) -> Message {
    let fixed = neighbour_header(BRIDGE_FAMILY, index, NTF_SELF);
    Message::new(pick(verb, NEWNEIGH, DELNEIGH), replace(verb), &fixed)
        .attr(2, &mac.0)
        .attr(1, &octets(remote))
}

/// Asks for all neighbours.
pub fn list_neighbours() -> Message {
    Message::new(GETNEIGH, flags::DUMP, &neighbour_header(0, 0, 0))
}

/// Asks for all forwarding entries.
pub fn list_fdb() -> Message {
    Message::new(
        GETNEIGH,
        flags::DUMP,
        &neighbour_header(BRIDGE_FAMILY, 0, 0),
    )
}

/// Adds or removes a policy rule.
pub fn rule(verb: Verb, rule: &Rule) -> Message {
    const TO_TABLE: u8 = 1;
    let prefix = rule.from.map_or(0, |net| net.prefix_len());
    let table = u8::try_from(rule.table).unwrap_or(0);
    let family = match rule.family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    let fixed = [family, 0, prefix, 0, table, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let m = Message::new(pick(verb, NEWRULE, DELRULE), make(verb), &fixed)
        .u32(15, rule.table)
        .u32(6, rule.priority)
        .attr(21, &[rule.protocol]);
    let m = rule
        .from
        .iter()
        .fold(m, |m, net| m.attr(2, &octets(net.network())));
    let m = rule.mark.iter().fold(m, |m, mark| m.u32(10, *mark));
    let m = rule.suppressed.iter().fold(m, |m, bits| m.u32(14, *bits));
    rule.source_port.iter().fold(m, |m, (protocol, port)| {
        let port = port.to_ne_bytes();
        m.attr(22, &[*protocol]).attr(23, &[port, port].concat())
    })
}

/// Asks for all policy rules.
pub fn list_rules() -> Message {
    Message::new(GETRULE, flags::DUMP, &[0; 12])
}

/// Reads a link from an answer to [`list_links`].
pub fn read_link(body: &[u8]) -> Option<(String, ObservedLink)> {
    let index = native_u32(body.get(4..8)?)?;
    let flags = native_u32(body.get(8..12)?)?;
    let attrs = body.get(16..)?;
    let info = attribute(attrs, 18).unwrap_or_default();
    let data = attribute(info, 2).unwrap_or_default();
    let kind = attribute(info, 1).map(text).unwrap_or_default();
    let vxlan = (kind == "vxlan").then(|| {
        let vni = attribute(data, 1).and_then(native_u32).unwrap_or(0);
        let port = attribute(data, 15)
            .and_then(|b| Some(u16::from_be_bytes(b.get(..2)?.try_into().ok()?)));
        let local = attribute(data, 4)
            .or_else(|| attribute(data, 17))
            .and_then(ip_address);
        (vni, port.unwrap_or(0), local)
    });
    let port = attribute(info, 5).unwrap_or_default();
    let port_flag = |kind| attribute(port, kind).is_some_and(|value| value.first() == Some(&1));
    let link = ObservedLink {
        index,
        kind,
        vxlan,
        mac: attribute(attrs, 1).and_then(mac),
        mtu: attribute(attrs, 4).and_then(native_u32).unwrap_or(0),
        master: attribute(attrs, 10).and_then(native_u32),
        isolated: port_flag(33),
        hairpin: port_flag(4),
        up: flags & UP != 0,
    };
    Some((text(attribute(attrs, 3)?), link))
}

/// Reads interface index and address from an answer to [`list_addresses`].
pub fn read_address(body: &[u8]) -> Option<(u32, IpNet)> {
    let attrs = body.get(8..)?;
    let address = attribute(attrs, 2)
        .or_else(|| attribute(attrs, 1))
        .and_then(ip_address)?;
    Some((
        native_u32(body.get(4..8)?)?,
        IpNet::new(address, body[1]).ok()?,
    ))
}

/// Reads a unicast or local route from an answer to [`list_routes`]: interface index, protocol, and the route without its link.
pub fn read_route(body: &[u8]) -> Option<(u32, Route)> {
    let &[family, prefix, _, _, table, protocol, _, kind, ..] = body.get(..12)? else {
        return None;
    };
    let attrs = body.get(12..)?;
    let kind = match kind {
        UNICAST => RouteKind::Unicast,
        LOCAL => RouteKind::Local,
        BLACKHOLE => RouteKind::Blackhole,
        _ => return None,
    };
    let to = match attribute(attrs, 1) {
        Some(bytes) => ip_address(bytes)?,
        None if family == 2 => IpAddr::from([0; 4]),
        None => IpAddr::from([0; 16]),
    };
    let route = Route {
        kind,
        table: attribute(attrs, 15)
            .and_then(native_u32)
            .unwrap_or_else(|| table.into()),
        to: IpNet::new(to, prefix).ok()?,
        via: attribute(attrs, 5).and_then(ip_address),
        mtu: attribute(attrs, 8)
            .and_then(|metrics| attribute(metrics, 2))
            .and_then(native_u32),
        link: String::new(),
        protocol,
    };
    let index = match kind {
        RouteKind::Unicast | RouteKind::Local => attribute(attrs, 4).and_then(native_u32)?,
        RouteKind::Blackhole => LOOPBACK_INDEX,
    };
    Some((index, route))
}

/// Reads a permanent neighbour from an answer to [`list_neighbours`].
pub fn read_neighbour(body: &[u8]) -> Option<(u32, IpAddr, Mac)> {
    let attrs = permanent(body)?;
    Some((
        native_u32(body.get(4..8)?)?,
        attribute(attrs, 1).and_then(ip_address)?,
        attribute(attrs, 2).and_then(mac)?,
    ))
}

/// Reads a forwarding entry with a remote node from an answer to [`list_fdb`].
pub fn read_fdb(body: &[u8]) -> Option<(u32, Mac, IpAddr)> {
    let attrs = permanent(body)?;
    Some((
        native_u32(body.get(4..8)?)?,
        attribute(attrs, 2).and_then(mac)?,
        attribute(attrs, 1).and_then(ip_address)?,
    ))
}

/// Reads a rule from an answer to [`list_rules`].
pub fn read_rule(body: &[u8]) -> Option<Rule> {
    let &[family, _, prefix, _, table, ..] = body.get(..12)? else {
        return None;
    };
    let attrs = body.get(12..)?;
    Some(Rule {
        family: if family == 2 { Family::V4 } else { Family::V6 },
        from: attribute(attrs, 2)
            .and_then(ip_address)
            .and_then(|net| IpNet::new(net, prefix).ok()),
        mark: attribute(attrs, 10).and_then(native_u32),
        source_port: attribute(attrs, 23).and_then(|range| {
            let protocol = attribute(attrs, 22)?.first()?;
            Some((*protocol, native_u16(range.get(..2)?)?))
        }),
        // The kernel tells this of every rule.
        suppressed: attribute(attrs, 14)
            .and_then(native_u32)
            .filter(|bits| *bits != u32::MAX),
        table: attribute(attrs, 15)
            .and_then(native_u32)
            .unwrap_or_else(|| table.into()),
        priority: attribute(attrs, 6).and_then(native_u32).unwrap_or(0),
        protocol: attribute(attrs, 21)
            .and_then(|bytes| bytes.first().copied())
            .unwrap_or(0),
    })
}

fn permanent(body: &[u8]) -> Option<&[u8]> {
    (native_u16(body.get(8..10)?)? & PERMANENT != 0).then(|| body.get(12..))?
}

fn link_header(family: u8, index: u32, up: u32) -> Vec<u8> {
    [
        &[family, 0, 0, 0],
        &index.to_ne_bytes()[..],
        &up.to_ne_bytes(),
        &up.to_ne_bytes(),
    ]
    .concat()
}

fn neighbour_header(family: u8, index: u32, flags: u8) -> Vec<u8> {
    [
        &[family, 0, 0, 0],
        &index.to_ne_bytes()[..],
        &PERMANENT.to_ne_bytes(),
        &[flags, 0],
    ]
    .concat()
}

fn pick(verb: Verb, add: u16, remove: u16) -> u16 {
    if verb == Verb::Add { add } else { remove }
}

fn make(verb: Verb) -> u16 {
    pick(verb, MAKE, 0)
}

fn replace(verb: Verb) -> u16 {
    pick(verb, flags::CREATE | flags::REPLACE, 0)
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}
