//! The rules of the host's namespace.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_api::network::Protocol;

use super::{
    End, FORWARD, INPUT, LEAVES, LOCAL, OUT_NAT, POST_NAT, PRE_NAT, RAW, RAW_OUT, UNICAST, came_by,
    destination, destination_port, guard, interface, leaves_by, loopback, map, net,
    protocol_and_port, registers, rule, source,
};
use crate::core::{
    lb::{self, key},
    nft::{Base, Element, Expr, Meta, Part, SetData, Table},
    state::Family,
};

/// What the host's rules depend on.
#[derive(Debug)]
pub struct Host<'a> {
    /// Family of the rules and of all addresses but those of peers.
    pub family: Family,
    /// Bridge of the routers' uplinks.
    pub bridge: &'a str,
    /// Its subnet.
    pub subnet: IpNet,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The host's own address at which tunnels end; `None` if a router on the way gives it.
    pub tunnels: Option<IpAddr>,
    /// VXLAN network identifiers in use.
    pub vnis: &'a [u32],
    /// Addresses of the nodes that take part in a network, with its identifier: on the underlay, or inside the tunnel.
    pub members: &'a [(IpAddr, u32)],
    /// The tunnel's device.
    pub tunnel: &'a str,
    /// Identifiers that are carried by the tunnel alone.
    pub sealed: &'a [u32],
    /// Published ports with the uplink address of the router that takes them.
    pub published: &'a [(Protocol, u16, IpAddr)],
    /// Those that listen at one address of the host, with that address first.
    pub published_at: &'a [(IpAddr, Protocol, u16, IpAddr)],
    /// Address of the ingress router on the gateway bridge.
    pub ingress: Option<IpAddr>,
    /// The host's link to the ingress router alone, and the router's address there, where the family needs one.
    pub loopback: Option<(&'a str, IpAddr)>,
}

/// Rules of the host's namespace.
pub fn host(name: &str, host: &Host<'_>) -> Table {
    let family = host.family;
    let (address, width) = (Part::address(family), registers(family));
    let mut table = Table::new(family, name);
    table
        .set(
            lb::PUBLISHED,
            &[Part::Protocol, Part::Port],
            SetData::Parts(vec![address]),
        )
        .set(
            lb::PUBLISHED_AT,
            &[address, Part::Protocol, Part::Port],
            SetData::Parts(vec![address]),
        )
        .set("vnis", &[Part::Mark], SetData::None)
        .set("sealed", &[Part::Mark], SetData::None)
        .set("members", &[address, Part::Mark], SetData::None);
    let local = vec![
        Expr::DestinationType(0),
        Expr::Is(0, LOCAL.to_ne_bytes().to_vec()),
    ];
    let publish = |why| {
        let to_router = vec![map(0, lb::PUBLISHED, 0), Expr::Dnat(0, None)];
        rule(
            why,
            [local.clone(), protocol_and_port(), to_router].concat(),
        )
    };
    let at_one = || {
        vec![
            destination(family, 0),
            Expr::Meta(Meta::Protocol, width),
            destination_port(width + 1),
            map(0, lb::PUBLISHED_AT, 0),
        ]
    };
    let publish_at = |why| {
        let to_router = vec![Expr::Dnat(0, None)];
        rule(why, [local.clone(), at_one(), to_router].concat())
    };
    let loopback = |of: End| loopback(family, of);
    let from_loopback = |(_, router): &(&str, IpAddr)| {
        let ports = [
            [protocol_and_port(), vec![map(0, lb::PUBLISHED, 0)]].concat(),
            at_one(),
        ];
        ports.map(|port| {
            let to_router = vec![Expr::Load(0, lb::octets(*router)), Expr::Dnat(0, None)];
            let does = [loopback(End::Source), local.clone(), port, to_router].concat();
            rule("published port for loopback by a link of its own", does)
        })
    };
    let by_loopback = host.loopback.iter().flat_map(from_loopback);
    // The identifier's three bytes and a reserved one, after UDP's 8 bytes and 4 of flags (RFC 7348 §5).
    let identifier = |to| Expr::Payload {
        base: Base::Transport,
        offset: 12,
        len: 4,
        to,
    };
    let vxlan = || vxlan(host.vxlan_port);
    let vxlan_of = |set: &str| {
        let listed = vec![identifier(0), Expr::InSet(0, set.into())];
        [vxlan(), listed].concat()
    };
    let in_the_open = |side| {
        let elsewhere = vec![
            Expr::Meta(side, 0),
            Expr::IsNot(0, interface(host.tunnel)),
            Expr::Drop,
        ];
        [vxlan_of("sealed"), elsewhere].concat()
    };
    let incoming = rule(
        "encrypted networks come by the tunnel",
        in_the_open(Meta::InName),
    );
    let leaving = rule(
        "encrypted networks leave by the tunnel",
        in_the_open(Meta::OutName),
    );
    let way_out = [
        net(family, End::Source, host.subnet),
        vec![
            Expr::Meta(Meta::OutName, 0),
            Expr::IsNot(0, interface(host.bridge)),
            Expr::Masquerade,
        ],
    ]
    .concat();
    let not_for_containers = [
        loopback(End::Destination),
        came_by(host.bridge),
        vec![Expr::Drop],
    ]
    .concat();
    // Tunnels' packets need no record of connections: the packets inside have theirs.
    let own = host.tunnels.filter(|own| Family::of(*own) == family);
    let own_end = |end| own.map_or(Vec::new(), |own| net(family, end, own.into()));
    let unrecorded = own.map_or(Vec::new(), |_| vec![Expr::Notrack]);
    let of_member = vec![
        source(family, 0),
        identifier(width),
        Expr::InSet(0, "members".into()),
    ];
    let of_member = [
        vxlan(),
        own_end(End::Destination),
        of_member,
        unrecorded.clone(),
        vec![Expr::Accept],
    ];
    // What is only passed on is not for us to judge.
    let for_this_host = vec![
        Expr::DestinationType(0),
        Expr::IsNot(0, UNICAST.to_ne_bytes().to_vec()),
    ];
    let of_stranger = [vxlan_of("vnis"), for_this_host, vec![Expr::Drop]];
    let first = vec![
        rule("VXLAN from nodes of its network", of_member.concat()),
        rule("VXLAN from nobody else", of_stranger.concat()),
        rule("loopback is not for containers", not_for_containers),
    ];
    let untracked = [vxlan(), own_end(End::Source), unrecorded];
    let untracked = own.map(|_| rule("tunnels are not tracked", untracked.concat()));
    let untracked = untracked.into_iter().collect();
    let back_by = host.loopback.map_or(host.bridge, |(link, _)| link);
    let unanswerable = [
        leaves_by(back_by),
        loopback(End::Source),
        vec![Expr::Masquerade],
    ]
    .concat();
    let asks_itself = |router: &IpAddr| {
        let ends = [End::Source, End::Destination];
        let both = ends.map(|end| net(family, end, (*router).into())).concat();
        let does = [leaves_by(host.bridge), both, vec![Expr::Masquerade]].concat();
        rule("what the ingress router asks itself comes back here", does)
    };
    let asks_itself = host.ingress.iter().map(asks_itself);
    table
        .chain("raw", Some(RAW), first)
        .chain("raw_out", Some(RAW_OUT), untracked)
        .chain(
            "prerouting",
            Some(PRE_NAT),
            vec![
                publish("published port to its router"),
                publish_at("port published at one address to its router"),
            ],
        )
        .chain(
            "output",
            Some(OUT_NAT),
            by_loopback
                .chain([
                    publish("published port for the host itself"),
                    publish_at("port published at one address for the host itself"),
                ])
                .collect(),
        )
        .chain(
            "postrouting",
            Some(POST_NAT),
            asks_itself
                .chain([
                    rule("loopback cannot be answered", unanswerable),
                    rule("way out", way_out),
                ])
                .collect(),
        )
        .chain("forward", Some(FORWARD), guard(&leaves_by(host.bridge)));
    if !host.sealed.is_empty() {
        table.chain("input", Some(INPUT), vec![incoming]).chain(
            "leaves",
            Some(LEAVES),
            vec![leaving],
        );
    }
    for vni in host.vnis {
        table.element("vnis", on_wire(*vni), Element::Member);
    }
    for vni in host.sealed {
        table.element("sealed", on_wire(*vni), Element::Member);
    }
    for (peer, vni) in host
        .members
        .iter()
        .filter(|(peer, _)| Family::of(*peer) == family)
    {
        let member = key(&[&lb::octets(*peer), &on_wire(*vni)]);
        table.element("members", member, Element::Member);
    }
    for (protocol, port, router) in host.published {
        table.element(
            lb::PUBLISHED,
            lb::port_key(*protocol, *port),
            Element::Value(lb::octets(*router)),
        );
    }
    for (at, protocol, port, router) in host.published_at {
        let at = [lb::octets(*at), lb::port_key(*protocol, *port)].concat();
        let router = Element::Value(lb::octets(*router));
        table.element(lb::PUBLISHED_AT, at, router);
    }
    table
}

/// Ends the rule unless it is a packet of a tunnel.
fn vxlan(port: u16) -> Vec<Expr> {
    vec![
        Expr::Meta(Meta::Protocol, 0),
        Expr::Is(0, vec![lb::protocol_number(Protocol::Udp)]),
        destination_port(0),
        Expr::Is(0, port.to_be_bytes().to_vec()),
    ]
}

/// An identifier as VXLAN carries it.
fn on_wire(vni: u32) -> Vec<u8> {
    (vni << 8).to_be_bytes().to_vec()
}
