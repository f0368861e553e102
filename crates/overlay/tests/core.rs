//! What core decides, without a kernel: the state of a node as text, and the steps to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use expect_test::{Expect, expect};
use shoal_api::{
    NodeId,
    network::{
        Endpoint, IngressPort, NetworkSlice, NetworkView, Peer, Protocol, ServiceSlice, Subnet,
    },
    tunnel::{PublicKey, TunnelKey},
};
use shoal_overlay::core::{
    desired::{DesiredError, Params, desired},
    diff::{Change, NetOp, diff},
    keyring::KeyPair,
    naming,
    observed::{
        ContainerFacts, Facts, Observed, ObservedLink, ObservedSpace, ObservedTable, OwnKeys,
    },
    state::{KernelState, LinkKind, RouteKind, Space},
    tunnel::{PrivateKey, address},
};

/// A network of this number with one task on h1 and one on h2, both of `web`.
fn network(n: u8) -> NetworkSlice {
    let endpoint = |node: &str, last: u8| Endpoint {
        node: node.parse().unwrap(),
        service: Some("web".parse().unwrap()),
        addresses: vec![format!("10.0.{n}.{last}/24").parse().unwrap()],
        names: vec![],
        serving: true,
    };
    let service = ServiceSlice {
        name: "web".into(),
        vips: vec![[10, 0, n, 2].into()],
        aliases: vec![],
        ports: vec![IngressPort {
            protocol: Protocol::Tcp,
            published: 8080,
            target: 80,
            ..IngressPort::default()
        }],
        ..ServiceSlice::default()
    };
    let endpoints = [("t1", endpoint("h1", 11)), ("t2", endpoint("h2", 12))];
    NetworkSlice {
        name: format!("n{n}"),
        ingress: n == 0,
        internal: false,
        encrypted: false,
        vni: 4096 + u32::from(n),
        mtu: None,
        subnets: vec![Subnet {
            range: format!("10.0.{n}.0/24").parse().unwrap(),
            gateway: [10, 0, n, 1].into(),
        }],
        attachable: false,
        labels: Default::default(),
        options: Default::default(),
        ip_ranges: Vec::new(),
        endpoints: endpoints
            .map(|(task, endpoint)| (task.parse().unwrap(), Arc::new(endpoint)))
            .into(),
        services: [("web".parse().unwrap(), Arc::new(service))].into(),
    }
}

fn view(networks: &[(&str, NetworkSlice)]) -> NetworkView {
    let peer = |last: u8| Peer {
        underlay: [192, 0, 2, last].into(),
        hostname: String::new(),
        tunnel_keys: Vec::new(),
    };
    NetworkView {
        version: 7,
        data_path_port: 4789,
        peers: [
            ("h1".parse().unwrap(), peer(1)),
            ("h2".parse().unwrap(), peer(2)),
        ]
        .into(),
        networks: networks
            .iter()
            .map(|(id, slice)| (id.parse().unwrap(), slice.clone()))
            .collect(),
    }
}

fn wanted(view: &NetworkView, interfaces: &[&str]) -> Result<KernelState, DesiredError> {
    wanted_with(view, interfaces, None)
}

fn wanted_with(
    view: &NetworkView,
    interfaces: &[&str],
    keys: Option<OwnKeys>,
) -> Result<KernelState, DesiredError> {
    let interfaces = interfaces
        .iter()
        .map(|name| ((*name).to_owned(), None))
        .collect();
    let container = ContainerFacts {
        interfaces,
        foreign_default: BTreeSet::new(),
    };
    let facts = Facts {
        underlay_elsewhere: false,
        underlay_mtu: 1500,
        keys,
        containers: BTreeMap::from([("t1".to_owned(), container)]),
        further: BTreeMap::new(),
    };
    let params = Params {
        prefix: "shoal".into(),
        gwbridge: "gwbr".into(),
        gwbridge_subnet: "172.18.0.0/16".parse().unwrap(),
        gwbridge_subnet6: Some("fd53::/64".parse().unwrap()),
        ipvs: None,
        source_hash: true,
        zones: true,
        direct: true,
    };
    desired(view, &"h1".parse().unwrap(), &facts, &params)
}

fn render(state: &KernelState) -> String {
    let mut text = String::new();
    for (space, wanted) in &state.spaces {
        writeln!(text, "{space}").unwrap();
        for (name, link) in &wanted.links {
            let kind = match &link.kind {
                LinkKind::Bridge => "bridge".to_owned(),
                LinkKind::Wireguard => "wireguard".to_owned(),
                LinkKind::Vxlan { vni, port, local } => format!("vxlan {vni} from {local}:{port}"),
                LinkKind::Veth { peer } => {
                    format!("veth to {} {} in the {}", peer.name, peer.mac, peer.space)
                }
            };
            let mtu = link
                .mtu
                .map(|mtu| format!(", mtu {mtu}"))
                .unwrap_or_default();
            writeln!(text, "  link {name}: {kind}{mtu}").unwrap();
        }
        let objects = &wanted.objects;
        objects
            .addresses
            .iter()
            .for_each(|(link, net)| writeln!(text, "  address {net} on {link}").unwrap());
        objects
            .neighbours
            .iter()
            .for_each(|((_, at), mac)| writeln!(text, "  neighbour {at} is {mac}").unwrap());
        objects
            .fdb
            .iter()
            .for_each(|((_, mac), to)| writeln!(text, "  {mac} is at {to}").unwrap());
        for route in &objects.routes {
            let via = route
                .via
                .map(|via| format!(" via {via}"))
                .unwrap_or_default();
            let mtu = route.mtu.map(|mtu| format!(", mtu {mtu}"));
            let end = match route.kind {
                RouteKind::Unicast | RouteKind::Local => format!("{via} on {}", route.link),
                RouteKind::Blackhole => " is nowhere".to_owned(),
            };
            writeln!(
                text,
                "  table {}: {}{end}{}",
                route.table,
                route.to,
                mtu.unwrap_or_default()
            )
            .unwrap();
        }
        for rule in &objects.rules {
            writeln!(
                text,
                "  rule from {:?} mark {:x?} to table {}",
                rule.from, rule.mark, rule.table
            )
            .unwrap();
        }
        for table in wanted.tables.values() {
            for (set, elements) in &table.elements {
                writeln!(text, "  {} elements in {set}", elements.len()).unwrap();
            }
        }
    }
    text
}

fn check(state: &KernelState, expected: &Expect) {
    expected.assert_eq(&render(state));
}

#[test]
fn a_node_without_tasks_keeps_only_the_ingress_router() {
    let mut quiet = network(1);
    quiet.endpoints.remove("t1");
    let mut ingress = network(0);
    ingress.endpoints.clear();
    let state = wanted(&view(&[("ingress", ingress), ("n1", quiet)]), &[]).unwrap();
    check(
        &state,
        &expect![[r#"
            host
              link gwbr: bridge
              link shoalub40d01a8: veth to up0 02:42:ac:12:10:02 in the router of network ingress
              address 172.18.0.1/16 on gwbr
              neighbour 172.18.16.2 is 02:42:ac:12:10:02
              table 254: 172.18.16.2/32 on gwbr, mtu 1450
              1 elements in members
              1 elements in published
              1 elements in vnis
            router of network ingress
              link vx0: vxlan 4096 from 192.0.2.1:4789, mtu 1450
              address 10.0.0.1/32 on lo
              address 172.18.16.2/32 on up0
              neighbour 172.18.0.1 is 02:42:ac:12:00:01
              neighbour 192.0.2.2 is 02:42:c0:00:02:02
              02:42:c0:00:02:02 is at 192.0.2.2
              table 254: 0.0.0.0/0 via 172.18.0.1 on up0
              table 3221225986: 0.0.0.0/0 via 192.0.2.2 on vx0
              table 255: 10.0.0.2/32 on lo
              rule from None mark Some(c0000202) to table 3221225986
              1 elements in entries
              1 elements in peers
              264 elements in turns
        "#]],
    );
}

#[test]
fn a_task_on_ingress_and_its_network_leaves_by_the_latter_and_answers_by_the_former() {
    let state = wanted(
        &view(&[("ingress", network(0)), ("n1", network(1))]),
        &["lo"],
    )
    .unwrap();
    check(
        &state,
        &expect![[r#"
            host
              link gwbr: bridge
              link shoalu08b37b07: veth to up0 02:42:ac:12:10:03 in the router of network n1
              link shoalub40d01a8: veth to up0 02:42:ac:12:10:02 in the router of network ingress
              address 172.18.0.1/16 on gwbr
              neighbour 172.18.16.2 is 02:42:ac:12:10:02
              neighbour 172.18.16.3 is 02:42:ac:12:10:03
              table 254: 172.18.16.2/32 on gwbr, mtu 1450
              2 elements in members
              1 elements in published
              2 elements in vnis
            router of network ingress
              link e08c7ff07b56a: veth to eth0 02:42:0a:00:00:0b in the container t1, mtu 1450
              link vx0: vxlan 4096 from 192.0.2.1:4789, mtu 1450
              address 10.0.0.1/32 on lo
              address 172.18.16.2/32 on up0
              neighbour 172.18.0.1 is 02:42:ac:12:00:01
              neighbour 192.0.2.2 is 02:42:c0:00:02:02
              02:42:c0:00:02:02 is at 192.0.2.2
              table 254: 0.0.0.0/0 via 172.18.0.1 on up0
              table 254: 10.0.0.11/32 on e08c7ff07b56a
              table 254: 10.0.0.12/32 via 192.0.2.2 on vx0
              table 3221225986: 0.0.0.0/0 via 192.0.2.2 on vx0
              table 255: 10.0.0.2/32 on lo
              rule from None mark Some(c0000202) to table 3221225986
              1 elements in entries
              1 elements in hairpin
              1 elements in peers
              1 elements in port
              2 elements in port_slots
              1 elements in sources
              264 elements in turns
              1 elements in vip
              2 elements in vip_slots
            router of network n1
              link e08c7ff07b56a: veth to eth1 02:42:0a:00:01:0b in the container t1, mtu 1450
              link vx0: vxlan 4097 from 192.0.2.1:4789, mtu 1450
              address 10.0.1.1/32 on lo
              address 172.18.16.3/32 on up0
              neighbour 172.18.0.1 is 02:42:ac:12:00:01
              neighbour 192.0.2.2 is 02:42:c0:00:02:02
              02:42:c0:00:02:02 is at 192.0.2.2
              table 254: 0.0.0.0/0 via 172.18.0.1 on up0
              table 254: 10.0.1.11/32 on e08c7ff07b56a
              table 254: 10.0.1.12/32 via 192.0.2.2 on vx0
              table 255: 10.0.1.2/32 on lo
              table 254: 10.0.1.0/24 is nowhere
              1 elements in hairpin
              1 elements in peers
              1 elements in sources
              264 elements in turns
              1 elements in vip
              2 elements in vip_slots
            container t1
              address 10.0.0.11/24 on eth0
              address 10.0.1.11/24 on eth1
              table 254: 0.0.0.0/0 via 10.0.1.1 on eth1
              table 4083: 0.0.0.0/0 via 10.0.0.1 on eth0
              rule from Some(10.0.0.11/32) mark None to table 4083
        "#]],
    );
}

#[test]
fn no_networks_means_nothing_and_an_unknown_node_is_an_error() {
    assert_eq!(
        wanted(&NetworkView::default(), &[]).unwrap(),
        KernelState::default()
    );
    let mut nobody = view(&[("n1", network(1))]);
    nobody.peers.clear();
    let error = wanted(&nobody, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the network view of version 7 has no underlay address for this node, h1"
    );
}

#[test]
fn the_mtu_asked_for_never_exceeds_what_fits() {
    for (asked, got) in [(None, 1450), (Some(1400), 1400), (Some(9000), 1450)] {
        let state = wanted(
            &view(&[(
                "n1",
                NetworkSlice {
                    mtu: asked,
                    ..network(1)
                },
            )]),
            &[],
        )
        .unwrap();
        let router = &state.spaces[&Space::Router("n1".parse().unwrap())];
        assert_eq!(router.links["vx0"].mtu, Some(got));
    }
}

#[test]
fn an_encrypted_network_is_carried_by_the_tunnel_or_not_at_all() {
    let encrypted = NetworkSlice {
        encrypted: true,
        ..network(2)
    };
    let mut view = view(&[("n1", network(1)), ("n2", encrypted)]);
    let (n1, n2): (Space, Space) = (
        Space::Router("n1".parse().unwrap()),
        Space::Router("n2".parse().unwrap()),
    );
    let without = wanted(&view, &[]).unwrap();
    assert!(without.spaces.contains_key(&n1) && !without.spaces.contains_key(&n2));

    let public = |n: u8| PublicKey([n; 32]);
    let keys = OwnKeys {
        current: KeyPair {
            private: PrivateKey([9; 32]),
            public: public(1),
        },
        other: Some(public(11)),
        port: 51820,
    };
    let h2: NodeId = "h2".parse().unwrap();
    let carried = |view: &NetworkView| wanted_with(view, &[], Some(keys.clone())).unwrap();
    let (_, tunnel) = carried(&view).spaces[&Space::Host].tunnel.clone().unwrap();
    assert!(tunnel.peers.is_empty(), "h2 has not told of a key");
    let ways = |state: &KernelState, space: &Space| -> Vec<String> {
        let fdb = state.spaces[space].objects.fdb.values();
        fdb.map(ToString::to_string).collect()
    };
    assert!(
        ways(&carried(&view), &n2).is_empty(),
        "so there is no way to it"
    );

    let told = [2, 22, 1].map(|n| TunnelKey {
        public: public(n),
        port: 51821,
    });
    view.peers.get_mut(&h2).unwrap().tunnel_keys = told.to_vec();
    let state = carried(&view);
    assert_eq!(ways(&state, &n1), ["192.0.2.2"]);
    assert_eq!(ways(&state, &n2), ["fd53:686f:616c:2:202:202:202:202"]);
    let router = &state.spaces[&n2];
    assert_eq!(router.links["vx0"].mtu, Some(1370));
    let host = &state.spaces[&Space::Host];
    assert_eq!(host.links["shoalwg"].mtu, Some(1440));
    let (_, tunnel) = host.tunnel.clone().unwrap();
    let there: Vec<_> = tunnel
        .peers
        .iter()
        .map(|(key, peer)| {
            (
                *key,
                peer.endpoint.unwrap().to_string(),
                peer.address.unwrap(),
            )
        })
        .collect();
    let of = |n: u8| (public(n), "192.0.2.2:51821".to_owned(), address(&public(n)));
    assert_eq!(there, [of(2), of(22)], "and none that is this node's own");
    let own = host
        .objects
        .addresses
        .iter()
        .filter(|(link, _)| link == "shoalwg");
    let own: Vec<String> = own.map(|(_, net)| net.to_string()).collect();
    assert_eq!(own, ["fd53:686f:616c:2:101:101:101:101/128"]);
    // In both families nothing of it passes elsewhere, and it comes from nobody else.
    let vni = (4098u32 << 8).to_be_bytes().to_vec();
    for table in host.tables.values() {
        assert!(
            table.elements["sealed"].contains_key(&vni),
            "{}",
            table.name
        );
        let members = table.elements.get("members");
        let mut senders = members.into_iter().flat_map(BTreeMap::keys);
        assert!(senders.all(|key| !key.ends_with(&vni) || key.starts_with(&[0xfd, 0x53])));
    }
    assert_eq!(host.tables.len(), 2);
}

#[test]
fn a_taken_interface_name_is_not_used_again() {
    let state = wanted(&view(&[("n1", network(1))]), &["lo", "eth0"]).unwrap();
    let inside = &state.spaces[&Space::Container("t1".into())];
    assert_eq!(inside.objects.addresses.first().unwrap().0, "eth1");
}

#[test]
fn routers_get_different_addresses_even_if_their_vnis_collide() {
    let same = |n: u8| NetworkSlice {
        vni: 4096,
        ..network(n)
    };
    let state = wanted(
        &view(&[("ingress", same(0)), ("n1", same(1)), ("n2", same(2))]),
        &[],
    )
    .unwrap();
    let uplinks = state
        .spaces
        .values()
        .flat_map(|space| &space.objects.addresses);
    let addresses: BTreeSet<String> = uplinks
        .filter(|(link, _)| link == "up0")
        .map(|(_, net)| net.to_string())
        .collect();
    assert_eq!(addresses.len(), 3);
}

/// What a kernel would show once everything stands.
fn fulfilled(want: &KernelState) -> Observed {
    let mut have = Observed::default();
    for (space, wanted) in &want.spaces {
        let found: &mut ObservedSpace = have.spaces.entry(space.clone()).or_default();
        found.objects = wanted.objects.clone();
        found.tables = wanted
            .tables
            .iter()
            .map(|(key, table)| {
                (
                    key.clone(),
                    Arc::new(ObservedTable {
                        outline: table.outline(),
                        elements: table.elements.clone(),
                    }),
                )
            })
            .collect();
        for (index, (name, link)) in (1..).zip(&wanted.links) {
            let (kind, vxlan) = match &link.kind {
                LinkKind::Bridge => ("bridge", None),
                LinkKind::Wireguard => ("wireguard", None),
                LinkKind::Vxlan { vni, port, local } => {
                    ("vxlan", Some((*vni, *port, Some(*local))))
                }
                LinkKind::Veth { .. } => ("veth", None),
            };
            let master = link.master.as_ref().map(|_| 1);
            let is_tunnel = vxlan.is_some();
            let observed = ObservedLink {
                index: if is_tunnel {
                    naming::VXLAN_INDEX
                } else {
                    index
                },
                kind: kind.to_owned(),
                vxlan,
                mac: link.mac,
                mtu: link.mtu.unwrap_or(1500),
                master,
                isolated: link.isolated,
                hairpin: link.hairpin,
                up: true,
            };
            found.links.insert(name.clone(), observed);
        }
    }
    for wanted in want.spaces.values() {
        for link in wanted.links.values() {
            let LinkKind::Veth { peer } = &link.kind else {
                continue;
            };
            let far = ObservedLink {
                index: 99,
                kind: "veth".into(),
                vxlan: None,
                mac: Some(peer.mac),
                mtu: peer.mtu.unwrap_or(1500),
                master: None,
                isolated: false,
                hairpin: false,
                up: true,
            };
            have.spaces
                .entry(peer.space.clone())
                .or_default()
                .links
                .insert(peer.name.clone(), far);
        }
    }
    have
}

fn steps(ops: &[NetOp]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

#[test]
fn a_kernel_that_holds_everything_needs_no_step() {
    let want = wanted(
        &view(&[("ingress", network(0)), ("n1", network(1))]),
        &["lo"],
    )
    .unwrap();
    assert_eq!(steps(&diff(&want, &fulfilled(&want))), Vec::<String>::new());
}

#[test]
fn every_missing_entry_is_noticed() {
    let want = wanted(
        &view(&[("ingress", network(0)), ("n1", network(1))]),
        &["lo"],
    )
    .unwrap();
    let whole = fulfilled(&want);
    let mut tried = 0;
    let mut without = |change: &dyn Fn(&mut ObservedSpace), space: &Space| {
        let mut have = whole.clone();
        change(have.spaces.get_mut(space).unwrap());
        assert!(!diff(&want, &have).is_empty());
        tried += 1;
    };
    for (space, wanted) in &want.spaces {
        let objects = &wanted.objects;
        objects.addresses.iter().for_each(|x| {
            without(
                &|have| {
                    have.objects.addresses.remove(x);
                },
                space,
            )
        });
        objects.routes.iter().for_each(|x| {
            without(
                &|have| {
                    have.objects.routes.remove(x);
                },
                space,
            )
        });
        objects.rules.iter().for_each(|x| {
            without(
                &|have| {
                    have.objects.rules.remove(x);
                },
                space,
            )
        });
        objects.neighbours.keys().for_each(|x| {
            without(
                &|have| {
                    have.objects.neighbours.remove(x);
                },
                space,
            )
        });
        objects.fdb.keys().for_each(|x| {
            without(
                &|have| {
                    have.objects.fdb.remove(x);
                },
                space,
            )
        });
        objects.settings.keys().for_each(|x| {
            without(
                &|have| {
                    have.objects.settings.remove(x);
                },
                space,
            )
        });
        wanted.links.keys().for_each(|x| {
            without(
                &|have| {
                    have.links.remove(x);
                },
                space,
            )
        });
        wanted.tables.keys().for_each(|x| {
            without(
                &|have| {
                    have.tables.remove(x);
                },
                space,
            )
        });
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn a_backend_that_leaves_costs_its_elements_only() {
    let mut view = view(&[("n1", network(1))]);
    let have = fulfilled(&wanted(&view, &["lo"]).unwrap());
    let endpoints = &mut view.networks.get_mut("n1").unwrap().endpoints;
    Arc::make_mut(endpoints.get_mut("t2").unwrap()).serving = false;
    let ops = diff(&wanted(&view, &["lo"]).unwrap(), &have);
    let [
        NetOp {
            change: Change::EditElements { remove, add, .. },
            ..
        },
    ] = ops.as_slice()
    else {
        panic!("{ops:?}")
    };
    assert_eq!(
        (remove.len(), add.len()),
        (2, 1),
        "its slot, and the class of the address"
    );
}

#[test]
fn a_network_that_goes_takes_its_interfaces_first_and_its_namespace_last() {
    let have = fulfilled(
        &wanted(
            &view(&[("ingress", network(0)), ("n1", network(1))]),
            &["lo"],
        )
        .unwrap(),
    );
    let want = wanted(&view(&[("ingress", network(0))]), &["lo"]).unwrap();
    let ops = steps(&diff(&want, &have));
    let port = naming::endpoint_port(&"t1".parse().unwrap());
    let router = "router of network n1";
    let at = |step: &str| {
        ops.iter()
            .position(|op| *op == format!("{step} in the {router}"))
            .expect(step)
    };
    assert!(
        at("remove interface vx0") < at("remove the namespace"),
        "{ops:#?}"
    );
    assert!(
        at(&format!("remove interface {port}")) < at("remove the namespace"),
        "{ops:#?}"
    );
}
