//! What is foreseen of services is what becomes of them.

use std::collections::BTreeMap;

use shoal_api::{
    explain::Foresight,
    spec::{Availability, PortConfig, PublishMode, ServiceMode, ServiceSpec},
};

use crate::core::{control::check_services, fixture::service, scheduler::foresee, world::World};

/// Foresees services on four nodes of 4 CPUs, one of which is paused, then makes them, and compares.
fn check(specs: Vec<ServiceSpec>) -> String {
    let mut world = World::new(&["n1", "n2", "n3", "n4"]);
    world.create(service("there", 3));
    world.settle();
    world.change_node("n4", |spec| spec.availability = Availability::Pause);
    let state = world.state.clone();
    let checked = check_services(&state, &mut world.cx(), specs.clone());
    assert!(checked.refused.is_empty(), "{:?}", checked.refused);
    let foreseen = foresee(&checked.state, &checked.made, &mut world.cx());
    assert_eq!(world.state.services().count(), 1, "nothing is made");

    let mut ids = Vec::new();
    for spec in specs {
        ids.push(world.create(spec));
        world.settle();
    }
    let mut lines = Vec::new();
    for (id, one) in ids.iter().zip(&foreseen) {
        let hosts = world.state.tasks_of_service(id).filter_map(|task| {
            let node = world.state.node(task.node.as_ref()?)?;
            Some(node.description.hostname.clone())
        });
        let mut there: BTreeMap<String, u64> = BTreeMap::new();
        for host in hosts {
            *there.entry(host).or_default() += 1;
        }
        let there: Vec<(String, u64)> = there.into_iter().collect();
        assert_eq!(one.places, there, "{}", one.name);
        lines.push(line(one));
    }
    lines.join("\n")
}

fn line(one: &Foresight) -> String {
    let places: Vec<String> = one
        .places
        .iter()
        .map(|(host, tasks)| format!("{tasks} on {host}"))
        .collect();
    let Foresight {
        name, wanted, why, ..
    } = one;
    format!("{name}: {} of {wanted} ({why})", places.join(", "))
}

fn changed(name: &str, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
    let mut spec = service(name, replicas);
    change(&mut spec);
    spec
}

fn host_port(published: u16) -> PortConfig {
    PortConfig {
        mode: PublishMode::Host,
        published,
        target: published,
        ..PortConfig::default()
    }
}

#[test]
fn services_are_foreseen_one_after_the_other() {
    let cpus = |cpus: u64| {
        move |spec: &mut ServiceSpec| {
            spec.task.resources.reservations.nano_cpus = cpus * 1_000_000_000;
        }
    };
    let seen = check(vec![
        changed("big", 2, cpus(3)),
        // The first leaves room for one.
        changed("bigger", 2, cpus(2)),
        changed("spread", 6, |_| {}),
        changed("one-each", 4, |spec| spec.task.placement.max_replicas = 1),
        changed("port", 3, |spec| {
            spec.endpoint.ports = vec![host_port(80)];
        }),
        changed("same-port", 1, |spec| {
            spec.endpoint.ports = vec![host_port(80)];
        }),
        changed("nowhere", 2, |spec| {
            spec.task.placement.constraints = vec!["node.hostname==n9".into()];
        }),
        changed("everywhere", 0, |spec| {
            spec.mode = ServiceMode::Global;
            spec.task.placement.constraints = vec!["node.hostname!=n2".into()];
        }),
        changed("job", 0, |spec| {
            spec.mode = ServiceMode::ReplicatedJob {
                max_concurrent: 2,
                total_completions: 9,
            };
        }),
        changed("none", 0, |_| {}),
    ]);
    expect_test::expect![[r#"
        big: 1 on n1, 1 on n2 of 2 ()
        bigger: 2 on n3 of 2 ()
        spread: 2 on n1, 2 on n2, 2 on n3 of 6 ()
        one-each: 1 on n1, 1 on n2, 1 on n3 of 4 (max replicas per node limit exceed on 3 nodes; 1 node not available for new tasks)
        port: 1 on n1, 1 on n2, 1 on n3 of 3 ()
        same-port:  of 1 (host-mode port already in use on 3 nodes; 1 node not available for new tasks)
        nowhere:  of 2 (scheduling constraints not satisfied on 3 nodes; 1 node not available for new tasks)
        everywhere: 1 on n1, 1 on n3 of 4 (1 node not available for new tasks; scheduling constraints not satisfied on 1 node)
        job: 1 on n1, 1 on n2 of 2 ()
        none:  of 0 ()"#]].assert_eq(&seen);
}

#[test]
fn more_tasks_than_anybody_looks_through_are_counted_to_a_bound() {
    let mut world = World::new(&["n1"]);
    let state = world.state.clone();
    let specs = vec![service("web", 20_000)];
    let checked = check_services(&state, &mut world.cx(), specs);
    let foreseen = foresee(&checked.state, &checked.made, &mut world.cx());
    assert_eq!(line(&foreseen[0]), "web: 10000 on n1 of 10000 ()");
}
