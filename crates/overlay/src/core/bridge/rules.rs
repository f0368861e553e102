//! The rules of bridge networks, one table per family.

use std::collections::BTreeSet;

use super::{BridgeSpec, BridgeView, PublishedPort};
use crate::core::{
    lb::{self, key},
    nft::{Ct, Element, Expr, Meta, Part, RuleText, SetData, Table},
    ruleset::{
        self, DESTINATION_REWRITTEN, ESTABLISHED_OR_RELATED, End, FORWARD, LOCAL, OUT_NAT,
        POST_NAT, PRE_NAT, RAW, connection_is, interface, leaves_by, loopback, net, registers,
        rule,
    },
    state::Family,
};

/// The table of a family.
pub(super) fn table(view: &BridgeView, name: &str, family: Family) -> Table {
    let networks = || {
        let all = view.networks.values();
        all.filter_map(move |spec| Some((spec, spec.place(family)?.0)))
    };
    let mut table = Table::new(family, name);
    let address = Part::address(family);
    let to = SetData::Parts(vec![address, Part::Port]);
    table
        .set("bridges", &[Part::Interface], SetData::None)
        .set("internal", &[Part::Interface], SetData::None)
        .set("within", &[Part::Interface, Part::Interface], SetData::None)
        .set(lb::PUBLISHED, &[Part::Protocol, Part::Port], to.clone())
        .set(lb::PUBLISHED_AT, &[address, Part::Protocol, Part::Port], to);
    let in_set = |meta, set: &str| vec![Expr::Meta(meta, 0), Expr::InSet(0, set.to_owned())];
    let enters = || in_set(Meta::OutName, "bridges");
    let rewritten = || {
        vec![
            Expr::Ct(Ct::Status, 0),
            Expr::And(0, DESTINATION_REWRITTEN),
            Expr::IsNot(0, vec![0; 4]),
        ]
    };
    let mut leaving = vec![rule(
        "loopback cannot be answered",
        [
            enters(),
            loopback(family, End::Source),
            vec![Expr::Masquerade],
        ]
        .concat(),
    )];
    for (spec, subnet) in networks() {
        let from = net(family, End::Source, subnet);
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
    // The address first: all that comes to the host passes here, and nothing else has such a one.
    let not_for_containers = [
        loopback(family, End::Destination),
        in_set(Meta::InName, "bridges"),
        vec![Expr::Drop],
    ];
    let raw = rule(
        "loopback is not for containers",
        not_for_containers.concat(),
    );
    table
        .chain("raw", Some(RAW), vec![raw])
        .chain("prerouting", Some(PRE_NAT), publish(family))
        .chain("output", Some(OUT_NAT), publish(family))
        .chain("postrouting", Some(POST_NAT), leaving)
        .chain("forward", Some(FORWARD), forward);
    for (spec, _) in networks() {
        network_elements(&mut table, spec);
    }
    let ports: BTreeSet<&PublishedPort> = view.published.values().flatten().collect();
    for port in ports {
        if Family::of(port.address) == family {
            port_element(&mut table, port);
        }
    }
    table
}

/// Leads published ports to their containers.
fn publish(family: Family) -> Vec<RuleText> {
    let width = registers(family);
    let to = |map: &str| {
        [
            Expr::Map {
                key: 0,
                map: map.to_owned(),
                to: 0,
            },
            Expr::Dnat(0, Some(width)),
        ]
    };
    let at = [
        ruleset::destination(family, 0),
        Expr::Meta(Meta::Protocol, width),
        ruleset::destination_port(width + 1),
    ];
    let local = [
        Expr::DestinationType(0),
        Expr::Is(0, LOCAL.to_ne_bytes().to_vec()),
    ];
    let anywhere = local
        .into_iter()
        .chain(ruleset::protocol_and_port())
        .chain(to(lb::PUBLISHED));
    vec![
        rule(
            "published at one address",
            at.into_iter().chain(to(lb::PUBLISHED_AT)).collect(),
        ),
        rule("published at all addresses", anywhere.collect()),
    ]
}

fn network_elements(table: &mut Table, spec: &BridgeSpec) {
    let name = interface(&spec.ifname);
    table.element("within", key(&[&name, &name]), Element::Member);
    table.element("bridges", name, Element::Member);
    if spec.internal {
        table.element("internal", interface(&spec.ifname), Element::Member);
    }
}

fn port_element(table: &mut Table, port: &PublishedPort) {
    let to = key(&[&lb::octets(port.address), &port.port.to_be_bytes()]);
    let at = lb::port_key(port.protocol, port.host_port);
    if port.host_ip.is_unspecified() {
        table.element(lb::PUBLISHED, at, Element::Value(to));
    } else {
        let at = key(&[&lb::octets(port.host_ip), &at]);
        table.element(lb::PUBLISHED_AT, at, Element::Value(to));
    }
}
