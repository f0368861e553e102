//! The steps between two views lead to the very state that is computed from the second.

use std::sync::Arc;

use proptest::prelude::*;
use shoal_api::network::{
    Endpoint, IngressPort, NetworkSlice, NetworkView, Peer, Protocol, ServiceSlice, Subnet,
};
use shoal_overlay::core::{
    delta::{Delta, Index, Steps},
    desired::{Params, desired},
    diff::{Change, IpvsStep},
    flows::{Ending, endings},
    ipvs_wire::Edit,
    nft::Table,
    observed::{Facts, Observed, ObservedSpace, ObservedTable},
    rtnl_wire::Verb,
    state::{Family, KernelState, Space, SpaceState},
};

const NODES: [&str; 3] = ["me", "b", "c"];

/// Node, service and whether it serves, of one endpoint; `None` for one that is not there.
type Spot = Option<(usize, Option<u8>, bool)>;

fn network(n: u8, spots: &[Spot]) -> NetworkSlice {
    let endpoint = |(number, spot): (u8, &Spot)| {
        let (node, service, serving) = (*spot)?;
        let endpoint = Endpoint {
            node: NODES[node].parse().unwrap(),
            service: service.map(|service| format!("s{service}").parse().unwrap()),
            addresses: vec![
                format!("10.0.{n}.{number}/24").parse().unwrap(),
                format!("fd00:{n}::{number}/64").parse().unwrap(),
            ],
            names: vec![],
            serving,
        };
        Some((format!("t{number}").parse().unwrap(), Arc::new(endpoint)))
    };
    let service = |number: u8| {
        let service = ServiceSlice {
            name: format!("s{number}"),
            // The last network is asked by names alone.
            vips: match n {
                2 => vec![],
                _ => vec![
                    [10, 0, n, 200 + number].into(),
                    format!("fd00:{n}::ff{number}").parse().unwrap(),
                ],
            },
            aliases: vec![],
            ports: vec![IngressPort {
                protocol: Protocol::Udp,
                published: 8000 + u16::from(number),
                target: 80,
                ..IngressPort::default()
            }],
            ..ServiceSlice::default()
        };
        (format!("s{number}").parse().unwrap(), Arc::new(service))
    };
    NetworkSlice {
        name: format!("n{n}"),
        ingress: n == 0,
        internal: false,
        encrypted: false,
        vni: 4096 + u32::from(n),
        mtu: None,
        subnets: vec![
            Subnet {
                range: format!("10.0.{n}.0/24").parse().unwrap(),
                gateway: [10, 0, n, 1].into(),
            },
            Subnet {
                range: format!("fd00:{n}::/64").parse().unwrap(),
                gateway: format!("fd00:{n}::1").parse().unwrap(),
            },
        ],
        attachable: false,
        labels: Default::default(),
        options: Default::default(),
        ip_ranges: Vec::new(),
        endpoints: (11..).zip(spots).filter_map(endpoint).collect(),
        services: (0..2).map(service).collect(),
    }
}

fn view(version: u64, spots: &[Spot]) -> NetworkView {
    let peer = |last: u8| Peer {
        underlay: [192, 0, 2, last].into(),
        hostname: format!("h{last}"),
        tunnel_keys: Vec::new(),
    };
    let peers = (1..).zip(NODES);
    NetworkView {
        version,
        data_path_port: 4789,
        peers: peers
            .map(|(last, node)| (node.parse().unwrap(), peer(last)))
            .collect(),
        networks: (0..3)
            .map(|n| (format!("n{n}").parse().unwrap(), network(n, spots)))
            .collect(),
    }
}

fn params(ipvs: bool) -> Params {
    Params {
        prefix: "shoal".into(),
        gwbridge: "gwbr".into(),
        gwbridge_subnet: "172.18.0.0/16".parse().unwrap(),
        gwbridge_subnet6: Some("fd01::/64".parse().unwrap()),
        ipvs: ipvs.then_some("mh"),
        source_hash: true,
        zones: true,
        direct: true,
    }
}

fn delta(old: &NetworkView, new: &NetworkView, ipvs: bool) -> Delta {
    let me = "me".parse().unwrap();
    shoal_overlay::core::delta::delta(old, new, &me, &params(ipvs), &Index::of(old))
}

fn state(view: &NetworkView, ipvs: bool) -> KernelState {
    let me = "me".parse().unwrap();
    desired(view, &me, &Facts::default(), &params(ipvs)).unwrap()
}

/// A kernel that holds just this.
fn held(state: &KernelState) -> Observed {
    let table = |(key, table): (&(Family, String), &Table)| {
        let held = ObservedTable {
            outline: table.outline(),
            elements: table.elements.clone(),
        };
        (key.clone(), Arc::new(held))
    };
    let space = |(space, wanted): (&Space, &SpaceState)| {
        let held = ObservedSpace {
            objects: wanted.objects.clone(),
            tables: wanted.tables.iter().map(table).collect(),
            ..ObservedSpace::default()
        };
        (space.clone(), held)
    };
    Observed {
        spaces: state.spaces.iter().map(space).collect(),
    }
}

fn apply(state: &mut KernelState, steps: &Steps) {
    for op in &steps.ops {
        let space = state.spaces.get_mut(&op.space).unwrap();
        match &op.change {
            Change::Route(Verb::Add, route) => assert!(space.objects.routes.insert(route.clone())),
            Change::Route(Verb::Remove, route) => assert!(space.objects.routes.remove(route)),
            Change::EditElements {
                family,
                table,
                remove,
                add,
            } => {
                let table = space.tables.get_mut(&(*family, table.clone())).unwrap();
                for edit in remove {
                    let set = table.elements.get_mut(&edit.set).unwrap();
                    assert_eq!(set.remove(&edit.key).as_ref(), Some(&edit.element));
                }
                for edit in add {
                    let set = table.elements.entry(edit.set.clone()).or_default();
                    assert_eq!(set.insert(edit.key.clone(), edit.element.clone()), None);
                }
                table.elements.retain(|_, elements| !elements.is_empty());
            }
            Change::Ipvs(IpvsStep::Destination(key, edit, at, weight)) => {
                let destinations = &mut space.ipvs.get_mut(key).unwrap().destinations;
                let before = match edit {
                    Edit::Remove => destinations.remove(at),
                    Edit::Add | Edit::Set => destinations.insert(*at, *weight),
                };
                assert_eq!(before.is_none(), *edit == Edit::Add, "{edit:?}");
            }
            other => panic!("not the work of a changed endpoint: {other:?}"),
        }
    }
}

fn spot() -> impl Strategy<Value = Spot> {
    let service = prop_oneof![1 => Just(None), 4 => (0u8..2).prop_map(Some)];
    prop_oneof![1 => Just(None), 5 => (0..3usize, service, any::<bool>()).prop_map(Some)]
}

proptest! {
    #[test]
    fn the_steps_between_views_lead_to_what_the_second_asks_for(
        before in proptest::collection::vec(spot(), 12),
        changed in proptest::collection::vec((0..12usize, spot()), 0..4),
        ipvs in any::<bool>(),
    ) {
        let mut after = before.clone();
        for (at, spot) in changed {
            after[at] = spot;
        }
        let (old, new) = (view(1, &before), view(2, &after));
        match delta(&old, &new, ipvs) {
            Delta::Same => prop_assert_eq!(state(&old, ipvs), state(&new, ipvs)),
            Delta::Everything => {}
            Delta::Steps(steps) => {
                let mut followed = Index::of(&old);
                followed.follow(&steps.moved);
                prop_assert_eq!(followed, Index::of(&new));
                let mut reached = state(&old, ipvs);
                apply(&mut reached, &steps);
                let wanted = state(&new, ipvs);
                let held = held(&state(&old, ipvs));
                prop_assert_eq!(endings(&wanted, &held), steps.endings);
                prop_assert_eq!(reached, wanted);
            }
        }
    }
}

#[test]
fn an_endpoint_of_another_node_that_stops_serving_or_goes_is_no_reason_to_compute_everything() {
    let all: Vec<Spot> = (0..12).map(|n| Some((n % 3, Some(0), true))).collect();
    for spot in [None, Some((1, Some(0), false))] {
        let mut after = all.clone();
        after[4] = spot;
        let (old, new) = (view(1, &all), view(2, &after));
        let Delta::Steps(steps) = delta(&old, &new, false) else {
            panic!("{spot:?} is more than a few steps")
        };
        let with_ipvs = delta(&old, &new, true);
        let Delta::Steps(with_ipvs) = with_ipvs else {
            panic!("{with_ipvs:?}")
        };
        let left = if spot.is_none() { 6 } else { 0 };
        let all = |steps: &Steps, how_many: fn(&Ending) -> usize| -> usize {
            steps.endings.values().map(how_many).sum()
        };
        assert_eq!(
            all(&steps, |ending| ending.idle.len()),
            6,
            "its two addresses in two networks with virtual ones, and at a published port"
        );
        assert_eq!(all(&steps, |ending| ending.left.len()), left, "{spot:?}");
        assert_eq!(all(&with_ipvs, |ending| ending.left.len()), left);
    }
    // Its own containers' interfaces, a first endpoint of a node, another subnet.
    let mut own = all.clone();
    own[3] = None;
    let mut without_c: Vec<Spot> = all.clone();
    (0..12)
        .filter(|n| n % 3 == 2)
        .for_each(|n| without_c[n] = None);
    let mut other = view(2, &all);
    other.networks.values_mut().for_each(|slice| slice.vni += 9);
    for next in [view(2, &own), view(2, &without_c), other] {
        assert_eq!(delta(&view(1, &all), &next, false), Delta::Everything);
    }
}
