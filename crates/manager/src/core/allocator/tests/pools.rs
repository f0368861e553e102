//! From where subnets and addresses come, and that they go back there.

use shoal_api::{
    NetworkId, TaskState,
    object::ObjectKey,
    spec::{ClusterSpec, IpamConfig, NetworkSpec, Protocol},
};

use super::{addresses, attached, network, publish, subnets};
use crate::core::{control, fixture::service, world::World};

/// Cycles that must leave nothing behind.
const CYCLES: usize = 500;

fn named(name: &str, ipam: Vec<IpamConfig>) -> NetworkSpec {
    let mut spec = NetworkSpec {
        ipam,
        ..NetworkSpec::default()
    };
    name.clone_into(&mut spec.annotations.name);
    spec
}

/// A cluster whose networks have subnets of 24 bits from these.
fn pools(pools: [&str; 2]) -> ClusterSpec {
    ClusterSpec {
        default_address_pools: pools.map(|pool| pool.parse().unwrap()).into(),
        subnet_size: 24,
        ..ClusterSpec::default()
    }
}

fn remove(world: &mut World, id: &NetworkId) -> Result<(), String> {
    let removed = world.user(|state, cx| control::remove_network(state, cx, id));
    removed.map(drop).map_err(|refusal| refusal.to_string())
}

#[test]
fn addresses_come_from_the_range_and_go_around_the_gateway_that_were_asked_for() {
    let mut world = World::new(&["n1"]);
    let ipam = IpamConfig {
        subnet: "10.9.0.0/16".parse().ok(),
        ip_range: "10.9.7.0/29".parse().ok(),
        gateway: "10.9.7.3".parse().ok(),
    };
    let spec = named("ranged", vec![ipam]);
    let key = world.user(|state, cx| control::create_network(state, cx, spec));
    let Ok(ObjectKey::Network(id)) = key else {
        panic!("{key:?}")
    };
    let web = world.create(attached(service("web", 8), &[&id]));
    world.settle();
    assert_eq!(subnets(&world, &id), ["10.9.0.0/16 via 10.9.7.3"]);
    let vip = &world.service(&web).endpoint.clone().unwrap().virtual_ips[0];
    assert_eq!(vip.addr.to_string(), "10.9.7.4/16", "after the gateway");
    let mut given = addresses(&world, &web);
    given.sort();
    assert_eq!(
        given,
        ["0", "1", "2", "5", "6", "7"].map(|last| format!("10.9.7.{last}/16"))
    );
    let tasks = world.runnable(&web);
    let waits = tasks
        .iter()
        .find(|task| task.status.state == TaskState::New);
    assert_eq!(
        waits.unwrap().status.err,
        "no address left in 10.9.7.0/29 (7/7)"
    );
    // One that is asked for may be outside the range.
    let mut fixed = attached(service("fixed", 1), &[&id]);
    fixed.task.networks[0].addresses = vec!["10.9.200.1".parse().unwrap()];
    fixed.endpoint.mode = shoal_api::spec::EndpointMode::Dnsrr;
    let fixed = world.create(fixed);
    world.settle();
    assert_eq!(addresses(&world, &fixed), ["10.9.200.1/16"]);
}

#[test]
fn subnets_are_cut_from_the_clusters_pools_in_the_size_that_was_said() {
    let mut world = World::with(&["n1"], pools(["10.20.0.0/23", "172.30.0.0/24"]));
    let ingress = world.state.ingress_network().unwrap().id.clone();
    assert_eq!(subnets(&world, &ingress)[0], "10.20.0.0/24 via 10.20.0.1");
    let ids = ["a", "b", "c"].map(|name| network(&mut world, name, &[]));
    let web = world.create(attached(service("web", 1), &[&ids[2]]));
    world.settle();
    assert_eq!(subnets(&world, &ids[0]), ["10.20.1.0/24 via 10.20.1.1"]);
    assert_eq!(
        subnets(&world, &ids[1]),
        ["172.30.0.0/24 via 172.30.0.1"],
        "the next pool"
    );
    assert!(world.state.network(&ids[2]).unwrap().allocated.is_none());
    assert_eq!(
        world.runnable(&web)[0].status.err,
        "network c: no subnet left in the default address pools"
    );
    // What another one gives back is had at once.
    remove(&mut world, &ids[0]).unwrap();
    world.settle();
    assert_eq!(subnets(&world, &ids[2]), ["10.20.1.0/24 via 10.20.1.1"]);
    assert_eq!(world.running(&web), 1);
}

#[test]
fn subnets_in_which_nodes_are_come_last() {
    // All nodes here have the address 192.0.2.1.
    let mut world = World::with(&["n1"], pools(["192.0.2.0/24", "10.20.0.0/24"]));
    let ingress = world.state.ingress_network().unwrap().id.clone();
    assert_eq!(subnets(&world, &ingress)[0], "10.20.0.0/24 via 10.20.0.1");
    let other = network(&mut world, "a", &[]);
    world.settle();
    assert_eq!(subnets(&world, &other), ["192.0.2.0/24 via 192.0.2.1"]);
}

#[test]
fn networks_and_services_that_come_and_go_leave_nothing_allocated() {
    let mut world = World::new(&["n1", "n2"]);
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let held = |world: &World| {
        (
            world.state.networks().count(),
            world.state.services().count(),
            world.state.tasks().count(),
            world.state.vnis().count(),
            world.state.address_holders(&ingress).count(),
        )
    };
    let before = held(&world);
    for cycle in 0..CYCLES {
        // One by the pools and one with subnets of its own, in both families.
        let a = network(&mut world, "a", &[]);
        let b = network(&mut world, "b", &["10.77.0.0/28", "fd00:77::/64"]);
        let mut spec = attached(service("web", 3), &[&a, &b]);
        spec.endpoint.ports = vec![publish(8080), publish(0)];
        let web = world.create(spec);
        world.settle();
        assert_eq!(world.running(&web), 3, "cycle {cycle}");
        assert!(
            world
                .state
                .ingress_port_holder(Protocol::Tcp, 8080)
                .is_some()
        );
        assert!(remove(&mut world, &a).is_err(), "it is in use");
        world
            .user(|state, cx| control::remove_service(state, cx, &web))
            .unwrap();
        world.settle();
        for id in [&a, &b] {
            remove(&mut world, id).unwrap();
            assert_eq!(world.state.address_holders(id).count(), 0);
        }
        world.settle();
        assert_eq!(held(&world), before, "cycle {cycle}");
        for port in [8080, 30_000] {
            assert!(
                world
                    .state
                    .ingress_port_holder(Protocol::Tcp, port)
                    .is_none()
            );
        }
    }
    // The last is like the first.
    let again = network(&mut world, "a", &[]);
    world.settle();
    assert_eq!(subnets(&world, &again), ["10.0.1.0/24 via 10.0.1.1"]);
}

#[test]
fn ingress_can_be_removed_when_nobody_needs_it_and_made_again() {
    let mut world = World::new(&["n1"]);
    let old = world.state.ingress_network().unwrap().id.clone();
    let mut spec = service("web", 1);
    spec.endpoint.ports = vec![publish(8080)];
    let web = world.create(spec.clone());
    world.settle();
    let ingress = || NetworkSpec {
        ingress: true,
        ..named("mesh", Vec::new())
    };
    let second = world.user(|state, cx| control::create_network(state, cx, ingress()));
    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains(&format!("ingress network ({old}) is already present"))
    );
    let refused = remove(&mut world, &old).unwrap_err();
    assert!(
        refused.contains(&format!(
            "ingress network cannot be removed because service {web} depends on it"
        )),
        "{refused}"
    );
    world
        .user(|state, cx| control::remove_service(state, cx, &web))
        .unwrap();
    world.settle();
    remove(&mut world, &old).unwrap();
    world.settle();

    // Who publishes a port waits for one, and says so (SEMANTICS.md §2.19).
    let web = world.create(spec);
    world.settle();
    assert_eq!(world.running(&web), 0);
    assert_eq!(
        world.runnable(&web)[0].status.err,
        "ingress network is missing"
    );
    world
        .user(|state, cx| control::create_network(state, cx, ingress()))
        .unwrap();
    world.settle();
    let new = world.state.ingress_network().unwrap();
    assert_ne!(new.id, old);
    assert_eq!(new.spec.annotations.name, "mesh");
    assert_eq!(world.running(&web), 1);
    let task = &world.runnable(&web)[0];
    assert_eq!(task.networks[0].network, new.id);
}
