//! Bridge networks of this host: what docker calls `bridge`, and user-defined networks of that driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use shoal_api::network::Protocol;

use super::{
    lb::{self, key},
    naming::{self, Mac},
    nft::{Ct, Element, Expr, Meta, Part, SetData, Table},
    observed::ContainerFacts,
    ruleset::{
        self, DESTINATION, DESTINATION_REWRITTEN, ESTABLISHED_OR_RELATED, FORWARD, LOCAL, OUT_NAT,
        POST_NAT, PRE_NAT, RAW, SOURCE, connection_is, interface, ipv4_net, leaves_by, rule,
    },
    state::{
        BRIDGE_PROTOCOL, Family, KernelState, Link, LinkKind, MAIN_TABLE, RULE_PRIORITY, Route,
        Rule, Space, SpaceState, VethPeer,
    },
};

/// Set in the numbers of tables for answers, so that none is one of the kernel's own below 256.
const ANSWERS_TABLE_BIT: u32 = 1 << 30;

/// A bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// Id of the network.
    pub id: String,
    /// Name of the bridge interface, at most 15 characters.
    pub ifname: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Whether it has no way out (`--internal`).
    pub internal: bool,
    /// MTU in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Whether its containers may talk to one another (`enable_icc`).
    pub icc: bool,
    /// Whether its containers leave under the host's address (`enable_ip_masquerade`).
    pub masquerade: bool,
}

/// A container's place in a bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Id of the network.
    pub network: String,
    /// Address in its subnet.
    pub address: Ipv4Addr,
    /// Ethernet address; `None` for the one derived from the address.
    pub mac: Option<[u8; 6]>,
    /// Name of the interface inside the container.
    pub ifname: String,
}

/// A port of this host that leads to a port of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the host, 0.0.0.0 for all.
    pub host_ip: Ipv4Addr,
    /// Port of the host.
    pub host_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of the container.
    pub address: Ipv4Addr,
    /// Port of the container.
    pub port: u16,
}

/// All bridge networks of this host with what hangs on them; the node keeps it across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeView {
    /// Networks by id.
    pub networks: BTreeMap<String, BridgeSpec>,
    /// Attachments by container, the first of which is its way out.
    pub attachments: BTreeMap<String, Vec<Attachment>>,
    /// Published ports by container.
    pub published: BTreeMap<String, Vec<PublishedPort>>,
}

impl BridgeView {
    /// The container that has published this port, or one that it would be confused with.
    pub fn holder(&self, host_ip: Ipv4Addr, host_port: u16, protocol: Protocol) -> Option<&str> {
        let same = |port: &PublishedPort| {
            port.host_port == host_port
                && port.protocol == protocol
                && (port.host_ip == host_ip
                    || port.host_ip.is_unspecified()
                    || host_ip.is_unspecified())
        };
        self.published
            .iter()
            .find(|(_, ports)| ports.iter().any(same))
            .map(|(container, _)| container.as_str())
    }
}

/// Name of the host's end of an attachment.
pub fn port_name(prefix: &str, container: &str, network: &str) -> String {
    format!(
        "{prefix}v{:08x}",
        naming::hash32(&format!("{container}/{network}"))
    )
}

/// Name of the table of bridge networks.
pub fn table_name(prefix: &str) -> String {
    format!("{prefix}_bridge")
}

/// Returns what the kernel should hold for the bridges and, inside containers, for those among `found`.
pub fn desired(
    view: &BridgeView,
    found: &BTreeMap<String, ContainerFacts>,
    prefix: &str,
) -> KernelState {
    let mut host = SpaceState::default();
    let mut containers: BTreeMap<Space, SpaceState> = BTreeMap::new();
    for spec in view.networks.values() {
        let bridge = &spec.ifname;
        let mac = Some(naming::mac_of(spec.gateway.into()));
        let link = Link {
            kind: LinkKind::Bridge,
            mac,
            mtu: spec.mtu,
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(bridge.clone(), link);
        let net = Ipv4Net::new_assert(spec.gateway, spec.subnet.prefix_len());
        host.objects.addresses.insert((bridge.clone(), net.into()));
        let settings = &mut host.objects.settings;
        settings.insert("ipv4/ip_forward".to_owned(), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/route_localnet"), "1".to_owned());
    }
    for (container, attachments) in &view.attachments {
        let space = Space::Container(container.clone());
        let mut inside = SpaceState::default();
        let networks = attachments
            .iter()
            .filter_map(|a| Some((a, view.networks.get(&a.network)?)));
        let mut way_out = found
            .get(container)
            .is_none_or(|facts| !facts.foreign_default.contains(&Family::V4));
        for (attachment, spec) in networks {
            let mac = attachment
                .mac
                .map_or_else(|| naming::mac_of(attachment.address.into()), Mac);
            let peer = VethPeer {
                space: space.clone(),
                name: attachment.ifname.clone(),
                mac,
                mtu: spec.mtu,
            };
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu: spec.mtu,
                master: Some(spec.ifname.clone()),
                isolated: !spec.icc,
                hairpin: true,
            };
            host.links
                .insert(port_name(prefix, container, &attachment.network), link);
            let net = Ipv4Net::new_assert(attachment.address, spec.subnet.prefix_len());
            inside
                .objects
                .addresses
                .insert((attachment.ifname.clone(), net.into()));
            if spec.internal {
                continue;
            }
            let main = std::mem::take(&mut way_out);
            let table = if main {
                MAIN_TABLE
            } else {
                naming::hash32(&attachment.network) | ANSWERS_TABLE_BIT
            };
            inside.objects.routes.insert(Route {
                local: false,
                table,
                to: Ipv4Net::default().into(),
                via: Some(spec.gateway.into()),
                link: attachment.ifname.clone(),
                protocol: BRIDGE_PROTOCOL,
            });
            if !main {
                // What was asked by way of this network is answered by way of it, wherever the way out is.
                inside.objects.rules.insert(Rule {
                    family: Family::V4,
                    from: Some(Ipv4Net::new_assert(attachment.address, 32).into()),
                    mark: None,
                    table,
                    priority: RULE_PRIORITY,
                    protocol: BRIDGE_PROTOCOL,
                });
            }
        }
        if found.contains_key(container) {
            containers.insert(space, inside);
        }
    }
    if !view.networks.is_empty() {
        let table = rules(view, &table_name(prefix));
        host.tables
            .insert((table.family, table.name.clone()), table);
    }
    let spaces = containers
        .into_iter()
        .chain([(Space::Host, host)])
        .collect();
    KernelState { spaces }
}

fn rules(view: &BridgeView, name: &str) -> Table {
    let mut table = Table::new(Family::V4, name);
    let to = SetData::Parts(vec![Part::Ipv4, Part::Port]);
    table
        .set("bridges", &[Part::Interface], SetData::None)
        .set("internal", &[Part::Interface], SetData::None)
        .set("within", &[Part::Interface, Part::Interface], SetData::None)
        .set("published", &[Part::Protocol, Part::Port], to.clone())
        .set(
            "published_at",
            &[Part::Ipv4, Part::Protocol, Part::Port],
            to,
        );
    let in_set = |meta, set: &str| vec![Expr::Meta(meta, 0), Expr::InSet(0, set.to_owned())];
    let enters = || in_set(Meta::OutName, "bridges");
    let rewritten = || {
        vec![
            Expr::Ct(Ct::Status, 0),
            Expr::And(0, DESTINATION_REWRITTEN),
            Expr::IsNot(0, vec![0; 4]),
        ]
    };
    let loopback = |at| ipv4_net(at, Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
    let publish = || {
        let to = |map: &str| {
            [
                Expr::Map {
                    key: 0,
                    map: map.to_owned(),
                    to: 0,
                },
                Expr::Dnat(0, Some(1)),
            ]
        };
        let at = [
            ruleset::destination(Family::V4, 0),
            Expr::Meta(Meta::Protocol, 1),
            ruleset::destination_port(2),
        ];
        let local = [
            Expr::DestinationType(0),
            Expr::Is(0, LOCAL.to_ne_bytes().to_vec()),
        ];
        vec![
            rule(
                "published at one address",
                at.into_iter().chain(to("published_at")).collect(),
            ),
            rule(
                "published at all addresses",
                local
                    .into_iter()
                    .chain(ruleset::protocol_and_port())
                    .chain(to("published"))
                    .collect(),
            ),
        ]
    };
    let mut leaving = vec![rule(
        "loopback cannot be answered",
        [enters(), loopback(SOURCE), vec![Expr::Masquerade]].concat(),
    )];
    for spec in view.networks.values() {
        let from = ipv4_net(SOURCE, spec.subnet);
        let back = [
            from.clone(),
            leaves_by(&spec.ifname),
            rewritten(),
            vec![Expr::Masquerade],
        ]
        .concat();
        leaving.push(rule("back into its own network", back));
        if spec.masquerade && !spec.internal {
            let elsewhere = vec![
                Expr::Meta(Meta::OutName, 0),
                Expr::IsNot(0, interface(&spec.ifname)),
            ];
            leaving.push(rule(
                "way out",
                [from, elsewhere, vec![Expr::Masquerade]].concat(),
            ));
        }
    }
    let accept = || vec![Expr::Accept];
    // Kernels that filter bridged frames (bridge-nf-call-iptables) show them here with one bridge on both sides.
    let within = vec![
        Expr::Meta(Meta::InName, 0),
        Expr::Meta(Meta::OutName, 4),
        Expr::InSet(0, "within".to_owned()),
    ];
    let stays = in_set(Meta::InName, "internal");
    let forward = vec![
        rule("inside one network", [within, accept()].concat()),
        rule(
            "internal networks have no way out",
            [stays, vec![Expr::Drop]].concat(),
        ),
        rule(
            "answers",
            [enters(), connection_is(ESTABLISHED_OR_RELATED), accept()].concat(),
        ),
        rule(
            "published ports",
            [enters(), rewritten(), accept()].concat(),
        ),
        rule(
            "nothing else comes in",
            [enters(), vec![Expr::Drop]].concat(),
        ),
    ];
    let from_bridges = in_set(Meta::InName, "bridges");
    table
        .chain(
            "raw",
            Some(RAW),
            vec![rule(
                "loopback is not for containers",
                [from_bridges, loopback(DESTINATION), vec![Expr::Drop]].concat(),
            )],
        )
        .chain("prerouting", Some(PRE_NAT), publish())
        .chain("output", Some(OUT_NAT), publish())
        .chain("postrouting", Some(POST_NAT), leaving)
        .chain("forward", Some(FORWARD), forward);
    for spec in view.networks.values() {
        let name = interface(&spec.ifname);
        table.element("within", key(&[&name, &name]), Element::Member);
        table.element("bridges", name, Element::Member);
        if spec.internal {
            table.element("internal", interface(&spec.ifname), Element::Member);
        }
    }
    let ports: BTreeSet<&PublishedPort> = view.published.values().flatten().collect();
    for port in ports {
        let to = Element::Value(key(&[&port.address.octets(), &port.port.to_be_bytes()]));
        let at = lb::port_key(port.protocol, port.host_port);
        if port.host_ip.is_unspecified() {
            table.element("published", at, to);
        } else {
            table.element("published_at", key(&[&port.host_ip.octets(), &at]), to);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_for_all_addresses_conflicts_with_one_for_any() {
        let port = |ip: [u8; 4]| PublishedPort {
            host_ip: ip.into(),
            host_port: 80,
            protocol: Protocol::Tcp,
            address: [172, 17, 0, 2].into(),
            port: 80,
        };
        let view = |ip| BridgeView {
            published: [("c".to_owned(), vec![port(ip)])].into(),
            ..BridgeView::default()
        };
        let holder = |view: BridgeView, ip: [u8; 4], n| {
            view.holder(ip.into(), n, Protocol::Tcp).map(str::to_owned)
        };
        assert_eq!(
            holder(view([0; 4]), [127, 0, 0, 1], 80).as_deref(),
            Some("c")
        );
        assert_eq!(
            holder(view([127, 0, 0, 1]), [0; 4], 80).as_deref(),
            Some("c")
        );
        assert_eq!(holder(view([127, 0, 0, 1]), [192, 0, 2, 1], 80), None);
        assert_eq!(holder(view([0; 4]), [0; 4], 81), None);
    }
}
