//! The rules of router namespaces and of the host: few, fixed, fed by maps.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use shoal_api::network::Protocol;

use super::{
    lb::{self, CLASSES, PORT, VIP, class_name, key},
    naming::{self, Mac, UPLINK, VXLAN},
    nft::{Base, Ct, Element, Expr, Hook, HookPoint, Meta, Part, RuleText, SetData, Table},
};

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

pub(crate) const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const NEW: u32 = 8;
pub(crate) const DESTINATION_REWRITTEN: u32 = 0x20;
pub(crate) const LOCAL: u32 = 2;
const REPLY: u8 = 1;

/// What the rules of a router namespace depend on.
#[derive(Debug)]
pub struct Router<'a> {
    /// Whether published ports enter here.
    pub ingress: bool,
    /// Gateway address: the source that a task sees when it reaches itself through a virtual address.
    pub gateway: Ipv4Addr,
    /// The other nodes' underlay addresses.
    pub peers: &'a [IpAddr],
    /// Addresses of local endpoints.
    pub local: &'a [Ipv4Addr],
}

/// Rules of a router namespace; load-balancing elements are added by the caller.
pub fn router(name: &str, router: &Router<'_>) -> Table {
    let mut table = Table::new(name);
    table
        .set("peers", &[Part::Ether], SetData::Parts(vec![Part::Mark]))
        .set("hairpin", &[Part::Ipv4, Part::Ipv4], SetData::None)
        .set(VIP, &[Part::Ipv4], SetData::Verdict);
    for slots in CLASSES {
        let class = class_name(VIP, slots);
        table.set(
            &class,
            &[Part::Ipv4, Part::Mark],
            SetData::Parts(vec![Part::Ipv4]),
        );
        let to = Expr::Map {
            key: 0,
            map: class.clone(),
            to: 0,
        };
        let does = vec![
            destination(0),
            Expr::Turn {
                modulus: slots,
                to: 1,
            },
            to,
            Expr::Dnat(0, None),
        ];
        table.chain(&class, None, vec![rule("virtual address to backend", does)]);
    }
    let mut dnat = vec![rule(
        "virtual address to its slots",
        vec![destination(0), Expr::VerdictMap(0, VIP.into())],
    )];
    let mut entry = vec![
        rule(
            "which node it comes from",
            [
                came_by(VXLAN),
                vec![source_mac(0), map(0, "peers", 0), Expr::SetMark(0)],
            ]
            .concat(),
        ),
        rule(
            "only nodes of this cluster",
            [
                came_by(VXLAN),
                vec![
                    Expr::Meta(Meta::Mark, 0),
                    Expr::Is(0, vec![0; 4]),
                    Expr::Drop,
                ],
            ]
            .concat(),
        ),
    ];
    if router.ingress {
        let proto_port = [Part::Protocol, Part::Port];
        table.set(PORT, &proto_port, SetData::Verdict);
        for slots in CLASSES {
            let class = class_name(PORT, slots);
            let parts = [Part::Protocol, Part::Port, Part::Mark];
            table.set(&class, &parts, SetData::Parts(vec![Part::Ipv4, Part::Port]));
            let draw = vec![
                Expr::Turn {
                    modulus: slots,
                    to: 2,
                },
                map(0, &class, 0),
                Expr::Dnat(0, Some(1)),
            ];
            table.chain(
                &class,
                None,
                vec![rule(
                    "published port to backend",
                    [protocol_and_port(), draw].concat(),
                )],
            );
        }
        let lookup = vec![Expr::VerdictMap(0, PORT.into())];
        dnat.insert(
            0,
            rule(
                "published port to its slots",
                [came_by(UPLINK), protocol_and_port(), lookup].concat(),
            ),
        );
        entry.push(rule(
            "remember the node of entry",
            [
                came_by(VXLAN),
                connection_is(NEW),
                vec![Expr::Meta(Meta::Mark, 0), Expr::SetCtMark(0)],
            ]
            .concat(),
        ));
    }
    entry.push(rule(
        "the mark ends here",
        [
            came_by(VXLAN),
            vec![Expr::Load(0, vec![0; 4]), Expr::SetMark(0)],
        ]
        .concat(),
    ));
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
    let itself = vec![
        Expr::Ct(Ct::Status, 0),
        Expr::And(0, DESTINATION_REWRITTEN),
        Expr::IsNot(0, vec![0; 4]),
        source(0),
        destination(1),
        Expr::InSet(0, "hairpin".into()),
        Expr::Load(0, router.gateway.octets().to_vec()),
        Expr::Snat(0),
    ];
    let out = [leaves_by(UPLINK), vec![Expr::Masquerade]].concat();
    table
        .chain("entry", Some(ENTRY), entry)
        .chain("prerouting", Some(PRE_NAT), dnat)
        .chain(
            "postrouting",
            Some(POST_NAT),
            vec![rule("a task reaches itself", itself), rule("way out", out)],
        )
        .chain("forward", Some(FORWARD), only_answers_and_published(UPLINK));
    for peer in router.peers {
        let mark = naming::peer_mark(*peer).to_ne_bytes();
        let Mac(mac) = naming::mac_of(*peer);
        table.element("peers", mac.to_vec(), Element::Value(mark.to_vec()));
    }
    for address in router.local {
        table.element(
            "hairpin",
            key(&[&address.octets(), &address.octets()]),
            Element::Member,
        );
    }
    table
}

/// What the host's rules depend on.
#[derive(Debug)]
pub struct Host<'a> {
    /// Bridge of the routers' uplinks.
    pub bridge: &'a str,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// VXLAN network identifiers in use.
    pub vnis: &'a [u32],
    /// Underlay addresses of all peers.
    pub peers: &'a [IpAddr],
    /// Published ports with the uplink address of the router that takes them.
    pub published: &'a [(Protocol, u16, Ipv4Addr)],
}

/// Rules of the host's namespace.
pub fn host(name: &str, host: &Host<'_>) -> Table {
    let mut table = Table::new(name);
    table
        .set(
            "published",
            &[Part::Protocol, Part::Port],
            SetData::Parts(vec![Part::Ipv4]),
        )
        .set("vnis", &[Part::Integer], SetData::None)
        .set("peers", &[Part::Ipv4], SetData::None);
    let local = vec![
        Expr::DestinationType(0),
        Expr::Is(0, LOCAL.to_ne_bytes().to_vec()),
    ];
    let publish = |why| {
        rule(
            why,
            [
                local.clone(),
                protocol_and_port(),
                vec![map(0, "published", 0), Expr::Dnat(0, None)],
            ]
            .concat(),
        )
    };
    let loopback = |at| ipv4_net(at, Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
    let stranger = vec![
        Expr::Meta(Meta::Protocol, 0),
        Expr::Is(0, vec![lb::protocol_number(Protocol::Udp)]),
        Expr::Payload {
            base: Base::Transport,
            offset: 2,
            len: 2,
            to: 0,
        },
        Expr::Is(0, host.vxlan_port.to_be_bytes().to_vec()),
        // The identifier's three bytes and a reserved one, after UDP's 8 bytes and 4 of flags (RFC 7348 §5).
        Expr::Payload {
            base: Base::Transport,
            offset: 12,
            len: 4,
            to: 0,
        },
        Expr::InSet(0, "vnis".into()),
        source(0),
        Expr::NotInSet(0, "peers".into()),
        Expr::Drop,
    ];
    let way_out = [
        ipv4_net(SOURCE, host.subnet),
        vec![
            Expr::Meta(Meta::OutName, 0),
            Expr::IsNot(0, interface(host.bridge)),
            Expr::Masquerade,
        ],
    ]
    .concat();
    table
        .chain(
            "raw",
            Some(RAW),
            vec![rule(
                "loopback is not for containers",
                [
                    came_by(host.bridge),
                    loopback(DESTINATION),
                    vec![Expr::Drop],
                ]
                .concat(),
            )],
        )
        .chain(
            "input",
            Some(INPUT),
            vec![rule("VXLAN from nodes of this cluster only", stranger)],
        )
        .chain(
            "prerouting",
            Some(PRE_NAT),
            vec![publish("published port to its router")],
        )
        .chain(
            "output",
            Some(OUT_NAT),
            vec![publish("published port for the host itself")],
        )
        .chain(
            "postrouting",
            Some(POST_NAT),
            vec![
                rule(
                    "loopback cannot be answered",
                    [
                        leaves_by(host.bridge),
                        loopback(SOURCE),
                        vec![Expr::Masquerade],
                    ]
                    .concat(),
                ),
                rule("way out", way_out),
            ],
        )
        .chain(
            "forward",
            Some(FORWARD),
            only_answers_and_published_out(host.bridge),
        );
    for vni in host.vnis {
        table.element("vnis", (vni << 8).to_be_bytes().to_vec(), Element::Member);
    }
    for peer in host.peers {
        if let IpAddr::V4(v4) = peer {
            table.element("peers", v4.octets().to_vec(), Element::Member);
        }
    }
    for (protocol, port, router) in host.published {
        table.element(
            "published",
            lb::port_key(*protocol, *port),
            Element::Value(router.octets().to_vec()),
        );
    }
    table
}

/// A table that uses every expression of the others: what a kernel must be able to load.
pub fn everything(name: &str) -> Table {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut table = router(
        name,
        &Router {
            ingress: true,
            gateway: none,
            peers: &[],
            local: &[],
        },
    );
    let subnet = Ipv4Net::new_assert(none, 8);
    let more = host(
        name,
        &Host {
            bridge: "lo",
            subnet,
            vxlan_port: 0,
            vnis: &[],
            peers: &[],
            published: &[],
        },
    );
    table.chains.extend(
        more.chains
            .into_iter()
            .filter(|chain| chain.name == "output" || chain.name == "raw"),
    );
    table.sets.extend(
        more.sets
            .into_iter()
            .filter(|(name, _)| name == "published"),
    );
    table
}

pub(crate) const SOURCE: u32 = 12;
pub(crate) const DESTINATION: u32 = 16;

fn only_answers_and_published(interface: &str) -> Vec<RuleText> {
    guard(&came_by(interface))
}

fn only_answers_and_published_out(interface: &str) -> Vec<RuleText> {
    guard(&leaves_by(interface))
}

fn guard(which: &[Expr]) -> Vec<RuleText> {
    let published = vec![
        Expr::Ct(Ct::Status, 0),
        Expr::And(0, DESTINATION_REWRITTEN),
        Expr::IsNot(0, vec![0; 4]),
        Expr::Accept,
    ];
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

fn source(to: u32) -> Expr {
    Expr::Payload {
        base: Base::Network,
        offset: SOURCE,
        len: 4,
        to,
    }
}

pub(crate) fn destination(to: u32) -> Expr {
    Expr::Payload {
        base: Base::Network,
        offset: DESTINATION,
        len: 4,
        to,
    }
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

pub(crate) fn ipv4_net(offset: u32, net: Ipv4Net) -> Vec<Expr> {
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
