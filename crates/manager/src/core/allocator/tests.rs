//! Subnets, addresses and ports: who gets which, and what is said when there is none.

mod pools;

use ipnet::IpNet;
use proptest::prelude::*;
use shoal_api::{
    NetworkId, TaskState,
    object::ObjectKey,
    spec::{
        Annotations, EndpointMode, FixedAddress, IpamConfig, NetworkAttachmentSpec, NetworkSpec,
        NetworkTarget, PortConfig, PublishMode, ServiceMode, ServiceSpec,
    },
};

use crate::core::{control, fixture::service, world::World};

fn network(world: &mut World, name: &str, subnets: &[&str]) -> NetworkId {
    let ipam = subnets.iter().map(|subnet| IpamConfig {
        subnet: Some(subnet.parse().unwrap()),
        ip_range: None,
        gateway: None,
    });
    let spec = NetworkSpec {
        annotations: Annotations {
            name: name.into(),
            ..Annotations::default()
        },
        ipv6: subnets.iter().any(|subnet| subnet.contains(':')),
        ipam: ipam.collect(),
        ..NetworkSpec::default()
    };
    match world
        .user(|state, cx| control::create_network(state, cx, spec))
        .unwrap()
    {
        ObjectKey::Network(id) => id,
        key => panic!("{key:?} is no network"),
    }
}

fn attached(mut spec: ServiceSpec, networks: &[&NetworkId]) -> ServiceSpec {
    spec.task.networks = networks
        .iter()
        .map(|id| NetworkAttachmentSpec {
            target: NetworkTarget::Cluster((*id).clone()),
            aliases: vec!["alias".into()],
            addresses: Vec::new(),
            driver_options: Default::default(),
        })
        .collect();
    spec
}

fn subnets(world: &World, id: &NetworkId) -> Vec<String> {
    let allocated = world.state.network(id).unwrap().allocated.clone();
    allocated
        .unwrap()
        .subnets
        .iter()
        .map(|subnet| format!("{} via {}", subnet.range, subnet.gateway))
        .collect()
}

fn addresses(world: &World, service: &shoal_api::ServiceId) -> Vec<String> {
    let tasks = world.runnable(service);
    let attachments = tasks.iter().flat_map(|task| &task.networks);
    attachments
        .flat_map(|attachment| &attachment.addresses)
        .map(IpNet::to_string)
        .collect()
}

fn publish(published: u16) -> PortConfig {
    PortConfig {
        target: 80,
        published,
        ..PortConfig::default()
    }
}

#[test]
fn ingress_has_the_first_subnet_and_others_follow() {
    let mut world = World::new(&["n1"]);
    let ingress = world.state.ingress_network().unwrap().id.clone();
    assert_eq!(
        subnets(&world, &ingress),
        [
            "10.0.0.0/24 via 10.0.0.1",
            "fdce:602c:6da5:d342::/64 via fdce:602c:6da5:d342::1"
        ]
    );
    let (a, b) = (
        network(&mut world, "a", &["10.0.2.0/23"]),
        network(&mut world, "b", &[]),
    );
    let c = network(&mut world, "c", &[]);
    world.settle();
    assert_eq!(subnets(&world, &a), ["10.0.2.0/23 via 10.0.2.1"]);
    assert_eq!(subnets(&world, &b), ["10.0.1.0/24 via 10.0.1.1"]);
    assert_eq!(
        subnets(&world, &c),
        ["10.0.4.0/24 via 10.0.4.1"],
        "what was asked for is gone around"
    );
    let vni = |id| {
        world
            .state
            .network(id)
            .unwrap()
            .allocated
            .clone()
            .unwrap()
            .vni
    };
    assert_eq!((vni(&ingress), vni(&a) != vni(&b)), (4096, true));
}

#[test]
fn a_service_has_one_address_per_network_and_ingress_comes_first() {
    let mut world = World::new(&["n1"]);
    let a = network(&mut world, "a", &[]);
    let mut spec = attached(service("web", 2), &[&a]);
    spec.endpoint.ports = vec![publish(8080), publish(0)];
    let id = world.create(spec);
    world.settle();
    let endpoint = world.service(&id).endpoint.clone().unwrap();
    let vips: Vec<_> = endpoint
        .virtual_ips
        .iter()
        .map(|vip| vip.addr.to_string())
        .collect();
    assert_eq!(
        vips,
        ["10.0.0.2/24", "fdce:602c:6da5:d342::2/64", "10.0.1.2/24"]
    );
    let ports: Vec<_> = endpoint.ports.iter().map(|port| port.published).collect();
    assert_eq!(ports, [8080, 30000]);
    assert_eq!(
        addresses(&world, &id),
        [
            "10.0.0.3/24",
            "fdce:602c:6da5:d342::3/64",
            "10.0.1.3/24",
            "10.0.0.4/24",
            "fdce:602c:6da5:d342::4/64",
            "10.0.1.4/24"
        ]
    );
    let task = &world.runnable(&id)[0];
    assert_eq!(
        (task.networks[1].aliases.as_slice(), task.ports.len()),
        (&["alias".to_owned()][..], 2)
    );
}

#[test]
fn a_service_has_the_virtual_address_that_it_asks_for() {
    let mut world = World::new(&["n1"]);
    let a = network(&mut world, "a", &["10.0.5.0/24", "fd00:5::/64"]);
    let mut spec = attached(service("web", 2), &[&a]);
    let at = |address: &str| FixedAddress {
        network: "a".into(),
        address: address.parse().unwrap(),
    };
    spec.endpoint.addresses = vec![at("10.0.5.77")];
    let id = world.create(spec);
    world.settle();
    let vips = |world: &World| -> Vec<String> {
        let endpoint = world.service(&id).endpoint.clone().unwrap();
        let vips = endpoint.virtual_ips.iter();
        vips.map(|vip| vip.addr.to_string()).collect()
    };
    assert_eq!(vips(&world), ["10.0.5.77/24", "fd00:5::2/64"]);
    assert_eq!(addresses(&world, &id).len(), 4, "tasks have their own");
    world.update(&id, |spec| spec.endpoint.addresses = vec![at("fd00:5::99")]);
    world.settle();
    assert_eq!(
        vips(&world),
        ["10.0.5.77/24", "fd00:5::99/64"],
        "what is not asked for stays"
    );
    world.update(&id, |spec| spec.endpoint.addresses = vec![at("10.0.5.60")]);
    world.settle();
    assert_eq!(vips(&world), ["10.0.5.60/24", "fd00:5::99/64"]);
    assert_eq!(world.runnable(&id).len(), 2);
}

#[test]
fn addresses_and_ports_are_kept_across_updates_and_freed_when_nobody_wants_them() {
    let mut world = World::new(&["n1"]);
    let (a, b) = (network(&mut world, "a", &[]), network(&mut world, "b", &[]));
    let mut spec = attached(service("web", 1), &[&a]);
    spec.endpoint.ports = vec![publish(0)];
    let id = world.create(spec);
    world.settle();
    let before = world.service(&id).endpoint.clone().unwrap();
    world.update(&id, |spec| {
        *spec = attached(spec.clone(), &[&a, &b]);
        spec.endpoint.ports.push(PortConfig {
            target: 81,
            ..publish(30001)
        });
    });
    world.settle();
    let after = world.service(&id).endpoint.clone().unwrap();
    assert_eq!(
        before.virtual_ips[..],
        after.virtual_ips[..3],
        "two of ingress, one of a"
    );
    assert_eq!(before.ports[0], after.ports[0]);
    world.update(&id, |spec| {
        spec.endpoint.ports.clear();
        spec.endpoint.mode = EndpointMode::Dnsrr;
    });
    world.settle();
    let endpoint = world.service(&id).endpoint.clone().unwrap();
    assert!(endpoint.virtual_ips.is_empty() && endpoint.ports.is_empty());
}

#[test]
fn a_number_that_somebody_asks_for_is_given_to_nobody_else() {
    let mut world = World::new(&["n1"]);
    let published = |name: &str, port: u16| {
        let mut spec = service(name, 1);
        spec.endpoint.ports = vec![publish(port)];
        spec
    };
    // Both are there before either is looked at.
    let any = world.create(published("any", 0));
    let this = world.create(published("this", 30_000));
    world.settle();
    let port = |id| {
        let endpoint = world.service(id).endpoint.clone();
        endpoint.map(|endpoint| endpoint.ports[0].published)
    };
    assert_eq!((port(&any), port(&this)), (Some(30_001), Some(30_000)));
    assert_eq!((world.running(&any), world.running(&this)), (1, 1));
}

#[test]
fn a_full_subnet_is_named_with_its_size_and_tasks_go_on_when_there_is_room() {
    let mut world = World::new(&["n1"]);
    let small = network(&mut world, "small", &["10.0.1.0/28"]);
    let id = world.create(attached(service("web", 13), &[&small]));
    world.settle();
    // 16 addresses without network, broadcast and gateway; one of the 13 is the service's.
    assert_eq!(world.running(&id), 12);
    let waits = world
        .runnable(&id)
        .into_iter()
        .find(|task| task.status.state == TaskState::New)
        .unwrap();
    assert_eq!(waits.status.err, "no address left in 10.0.1.0/28 (13/13)");
    let other = world.create(attached(service("other", 1), &[&small]));
    world.settle();
    assert_eq!(
        world.runnable(&other)[0].status.err,
        "no address left in 10.0.1.0/28 (13/13)"
    );
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 10 }
    });
    world.settle();
    assert_eq!((world.running(&id), world.running(&other)), (10, 1));
}

#[test]
fn addresses_of_tasks_on_a_lost_node_are_not_free() {
    let mut world = World::new(&["n1"]);
    let a = network(&mut world, "a", &[]);
    let id = world.create(attached(service("web", 2), &[&a]));
    world.settle();
    assert_eq!(addresses(&world, &id), ["10.0.1.3/24", "10.0.1.4/24"]);
    world.kill("n1");
    world
        .user(|state, cx| {
            let mut spec = state.service(&id).unwrap().spec.as_ref().clone();
            spec.mode = ServiceMode::Replicated { replicas: 0 };
            let version = state.service(&id).unwrap().meta.version;
            control::update_service(state, cx, &id, version, spec)
        })
        .unwrap();
    world.settle();
    let holders = world.state.address_holders(&a);
    let held = holders
        .filter(|holder| matches!(holder, ObjectKey::Task(_)))
        .count();
    assert_eq!(held, 2, "they may still run");
}

#[test]
fn both_families_are_served() {
    let mut world = World::new(&["n1"]);
    let dual = network(&mut world, "dual", &["fd00:1::/64", "10.0.9.0/24"]);
    let id = world.create(attached(service("web", 1), &[&dual]));
    world.settle();
    assert_eq!(
        subnets(&world, &dual),
        ["10.0.9.0/24 via 10.0.9.1", "fd00:1::/64 via fd00:1::1"]
    );
    assert_eq!(addresses(&world, &id), ["10.0.9.3/24", "fd00:1::3/64"]);
    let spec = NetworkSpec {
        annotations: Annotations {
            name: "auto".into(),
            ..Annotations::default()
        },
        ipv6: true,
        ..NetworkSpec::default()
    };
    world
        .user(|state, cx| control::create_network(state, cx, spec))
        .unwrap();
    world.settle();
    let auto = world
        .state
        .networks()
        .find(|network| network.spec.annotations.name == "auto")
        .unwrap();
    assert!(
        subnets(&world, &auto.id)[1].starts_with("fd"),
        "a subnet for local use is made up"
    );
}

#[test]
fn a_fixed_address_is_taken_as_asked_for() {
    let mut world = World::new(&["n1"]);
    let a = network(&mut world, "a", &[]);
    world.settle();
    let mut spec = attached(service("web", 2), &[&a]);
    spec.task.networks[0].addresses = vec!["10.0.1.77".parse().unwrap()];
    let id = world.create(spec);
    world.settle();
    assert_eq!(addresses(&world, &id), ["10.0.1.77/24"]);
    let waits = world
        .runnable(&id)
        .into_iter()
        .find(|task| task.status.state == TaskState::New)
        .unwrap();
    assert_eq!(
        waits.status.err,
        "address 10.0.1.77 of network a is already in use"
    );
}

#[test]
fn host_ports_are_left_to_the_nodes() {
    let mut world = World::new(&["n1", "n2"]);
    let mut spec = service("web", 3);
    spec.endpoint.ports = vec![PortConfig {
        mode: PublishMode::Host,
        ..publish(8080)
    }];
    let id = world.create(spec);
    world.settle();
    assert_eq!(world.running(&id), 2, "one per node");
    let waits = world
        .runnable(&id)
        .into_iter()
        .find(|task| task.node.is_none())
        .unwrap();
    assert_eq!(
        waits.status.err,
        "no suitable node (host-mode port already in use on 2 nodes)"
    );
    assert!(waits.networks.is_empty(), "ingress is not needed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// The audit after every step finds no address, port or subnet given out twice.
    #[test]
    fn nothing_is_given_out_twice(steps in prop::collection::vec((0u8..4, 0u64..9, 0usize..3), 1..25)) {
        let mut world = World::new(&["n1", "n2"]);
        let networks = [
            network(&mut world, "a", &[]),
            network(&mut world, "b", &["10.0.7.0/28"]),
            network(&mut world, "c", &["10.0.8.0/29", "fd00:2::/64"]),
        ];
        let mut services = Vec::new();
        for (number, (what, amount, place)) in steps.into_iter().enumerate() {
            match what {
                0 => {
                    let mut spec = attached(service(&format!("s{number}"), amount), &[&networks[place]]);
                    if amount % 2 == 0 {
                        spec.endpoint.ports = vec![publish(0)];
                    }
                    services.push(world.create(spec));
                }
                1 if !services.is_empty() => {
                    let id = services[place % services.len()].clone();
                    world.update(&id, |spec| spec.mode = ServiceMode::Replicated { replicas: amount });
                }
                2 if !services.is_empty() => {
                    let id = services[place % services.len()].clone();
                    world.update(&id, |spec| *spec = attached(spec.clone(), &[&networks[amount as usize % 3]]));
                }
                3 if services.len() > 2 => {
                    let id = services.remove(place);
                    world.user(|state, cx| control::remove_service(state, cx, &id)).unwrap();
                }
                _ => {}
            }
            if amount % 3 == 0 {
                world.settle();
            }
        }
        world.advance(std::time::Duration::from_secs(60));
    }
}
