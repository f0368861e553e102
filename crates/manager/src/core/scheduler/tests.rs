//! Where tasks go, and why they go nowhere.

mod foresight;
mod possessions;

use std::time::Duration;

use shoal_api::{
    TaskState,
    spec::{Availability, Driver, GenericResource, Mount, MountKind, Platform, ServiceSpec},
};

use crate::core::{
    fixture::service,
    world::{Behaviour, World},
};

/// Tasks per node after a service was made.
fn spread(world: &World, id: &shoal_api::ServiceId) -> Vec<(String, usize)> {
    let nodes = world.state.nodes().map(|node| {
        let here = world
            .runnable(id)
            .iter()
            .filter(|task| task.node.as_ref() == Some(&node.id))
            .count();
        (node.id.to_string(), here)
    });
    nodes.collect()
}

/// Why the tasks of a service with this change of its spec find no node among three.
fn why(change: impl FnOnce(&mut ServiceSpec)) -> String {
    let mut world = World::new(&["n1", "n2", "n3"]);
    world.change_node("n3", |spec| spec.availability = Availability::Pause);
    let mut spec = service("web", 1);
    change(&mut spec);
    let id = world.create(spec);
    world.settle();
    let task = world.runnable(&id).remove(0);
    assert_eq!(task.status.state, TaskState::Pending);
    task.status.err.to_string()
}

#[test]
fn a_task_without_a_node_says_why() {
    let paused = "1 node not available for new tasks";
    let check = |expected: &str, change: &dyn Fn(&mut ServiceSpec)| {
        assert_eq!(
            why(change),
            format!("no suitable node ({expected} on 2 nodes; {paused})")
        );
    };
    check("insufficient resources", &|spec| {
        spec.task.resources.reservations.nano_cpus = 5_000_000_000
    });
    check("insufficient resources", &|spec| {
        spec.task.resources.reservations.memory_bytes = 9_000_000_000
    });
    check("insufficient resources", &|spec| {
        let gpus = GenericResource::Discrete(1);
        spec.task
            .resources
            .reservations
            .generic
            .insert("gpu".into(), gpus);
    });
    check("missing plugin", &|spec| {
        spec.task.container.mounts = vec![Mount {
            kind: MountKind::Volume,
            target: "/data".into(),
            driver: Some(Driver {
                name: "nfs".into(),
                ..Driver::default()
            }),
            ..Mount::default()
        }];
    });
    check("scheduling constraints not satisfied", &|spec| {
        spec.task.placement.constraints = vec!["node.labels.a==b".into()];
    });
    check("unsupported platform", &|spec| {
        spec.task.placement.platforms = vec![Platform {
            os: "linux".into(),
            architecture: "arm64".into(),
        }];
    });
}

#[test]
fn counts_of_reasons_add_up_to_the_nodes() {
    let mut world = World::new(&["n1", "n2", "n3", "n4"]);
    world.change_node("n4", |spec| spec.availability = Availability::Drain);
    world.change_node("n3", |spec| {
        spec.annotations.labels.insert("big".into(), "no".into());
    });
    let mut filler = service("filler", 1);
    filler.task.placement.constraints = vec!["node.id==n2".into()];
    filler.task.resources.reservations.nano_cpus = 4_000_000_000;
    world.create(filler);
    world.settle();
    let mut spec = service("web", 2);
    spec.task.placement.constraints = vec!["node.labels.big!=no".into()];
    spec.task.placement.max_replicas = 1;
    spec.task.resources.reservations.nano_cpus = 1_000_000_000;
    let id = world.create(spec);
    world.settle();
    let waits = world
        .runnable(&id)
        .into_iter()
        .find(|task| task.node.is_none())
        .unwrap();
    assert_eq!(
        waits.status.err,
        "no suitable node (1 node not available for new tasks; insufficient resources on 1 node; scheduling constraints \
         not satisfied on 1 node; max replicas per node limit exceed on 1 node)"
    );
}

#[test]
fn a_task_that_waits_is_placed_when_room_appears() {
    let mut world = World::new(&["n1"]);
    let mut spec = service("web", 5);
    spec.task.resources.reservations.nano_cpus = 1_000_000_000;
    let id = world.create(spec);
    world.settle();
    assert_eq!(world.running(&id), 4);
    world.join("n2");
    world.settle();
    assert_eq!(world.running(&id), 5);
    assert!(
        world
            .runnable(&id)
            .iter()
            .all(|task| task.status.err.is_empty())
    );
}

#[test]
fn tasks_go_where_the_fewest_of_their_service_are() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let mut other = service("other", 4);
    other.task.placement.constraints = vec!["node.id==n1".into()];
    world.create(other);
    world.settle();
    let id = world.create(service("web", 4));
    world.settle();
    // One each, then the node with the fewest tasks at all.
    let counts: Vec<_> = spread(&world, &id)
        .into_iter()
        .map(|(_, tasks)| tasks)
        .collect();
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn spread_preferences_balance_branches_before_nodes() {
    let mut world = World::new(&["n1", "n2", "n3", "n4"]);
    for (name, zone) in [
        ("n1", "east"),
        ("n2", "east"),
        ("n3", "east"),
        ("n4", "west"),
    ] {
        world.change_node(name, |spec| {
            spec.annotations.labels.insert("zone".into(), zone.into());
        });
    }
    let mut spec = service("web", 6);
    spec.task.placement.spread = vec!["node.labels.zone".into()];
    let id = world.create(spec);
    world.settle();
    let counts: Vec<_> = spread(&world, &id)
        .into_iter()
        .map(|(_, tasks)| tasks)
        .collect();
    assert_eq!(counts, [1, 1, 1, 3]);
}

#[test]
fn spread_preferences_nest() {
    let mut world = World::new(&["n1", "n2", "n3", "n4", "n5"]);
    for (name, zone, rack) in [
        ("n1", "east", "1"),
        ("n2", "east", "1"),
        ("n3", "east", "2"),
        ("n4", "west", "1"),
        ("n5", "west", "1"),
    ] {
        world.change_node(name, |spec| {
            let labels = &mut spec.annotations.labels;
            labels.insert("zone".into(), zone.into());
            labels.insert("rack".into(), rack.into());
        });
    }
    let mut spec = service("web", 8);
    spec.task.placement.spread = vec!["node.labels.zone".into(), "node.labels.rack".into()];
    let id = world.create(spec);
    world.settle();
    let counts: Vec<_> = spread(&world, &id).into_iter().map(|(_, n)| n).collect();
    assert_eq!(counts, [1, 1, 2, 2, 2]);
}

#[test]
fn more_tasks_than_one_plan_holds_are_placed_evenly_and_no_service_starves() {
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    world.unaudited = true;
    // It comes first and finds no node at all.
    let mut nowhere = service("nowhere", 2_500);
    nowhere.task.placement.constraints = vec!["node.id==x".into()];
    let nowhere = world.create(nowhere);
    let large = world.create(service("large", 2_500));
    let small = world.create(service("small", 10));
    while world.pass() {}
    let placed = |id| {
        let tasks = world.state.tasks_of_service(id);
        tasks.filter(|task| task.node.is_some()).count()
    };
    assert_eq!(
        (placed(&nowhere), placed(&large), placed(&small)),
        (0, 2_500, 10)
    );
    for (_, tasks) in spread(&world, &large) {
        assert_eq!(tasks, 250);
    }
    for (_, tasks) in spread(&world, &small) {
        assert_eq!(tasks, 1);
    }
    let waiting = world.runnable(&nowhere);
    let why = "no suitable node (scheduling constraints not satisfied on 10 nodes)";
    assert!(waiting.iter().all(|task| task.status.err == why));
}

#[test]
fn a_placement_looks_at_as_few_nodes_however_many_there_are() {
    const TASKS: u64 = 500;
    let looks = |nodes: usize, spread: &[&str]| {
        let names: Vec<String> = (0..nodes).map(|n| format!("n{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut world = World::new(&names);
        world.unaudited = true;
        let mut spec = service("web", TASKS);
        spec.task.placement.constraints = vec!["node.hostname!=n1".into()];
        spec.task.placement.spread = spread.iter().map(ToString::to_string).collect();
        spec.task.placement.max_replicas = 100;
        spec.task.resources.reservations.nano_cpus = 1_000_000;
        let id = world.create(spec);
        super::filter::LOOKS.set(0);
        while world.pass() {}
        let tasks = world.state.tasks_of_service(&id);
        assert_eq!(tasks.filter(|task| task.node.is_some()).count(), 500);
        super::filter::LOOKS.get()
    };
    for spread in [&[][..], &["node.labels.zone"]] {
        // One look to choose a node and one to see whether it can take more; a few to begin with.
        for nodes in [20, 100, 400] {
            let seen = looks(nodes, spread);
            let most = 2 * usize::try_from(TASKS).unwrap() + 100;
            assert!(seen <= most, "{nodes} nodes: {seen} looks");
        }
    }
}

#[test]
fn an_explanation_names_everything_that_speaks_against_each_node() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    world.change_node("n2", |spec| spec.availability = Availability::Pause);
    let mut spec = service("web", 3);
    spec.task.placement.constraints = vec!["node.hostname!=n3".into()];
    spec.task.placement.max_replicas = 1;
    spec.task.resources.reservations.nano_cpus = 3_000_000_000;
    let id = world.create(spec);
    world.settle();
    let explained = super::explain(&world.state, &id, world.now).unwrap();
    let lines: Vec<_> = explained
        .nodes
        .iter()
        .map(|node| {
            format!(
                "{} {}: {}",
                node.hostname,
                node.service_tasks,
                node.reasons.join("; ")
            )
        })
        .collect();
    expect_test::expect![[r#"
        n1 1: insufficient resources: 3 CPUs wanted, 1 of 4 free; max replicas per node limit exceed: 1 of 1
        n2 0: the node is paused
        n3 0: scheduling constraints not satisfied: node.hostname!=n3"#]]
    .assert_eq(&lines.join("\n"));
    let verdict = "no suitable node (1 node not available for new tasks; insufficient resources on 1 node; scheduling \
                   constraints not satisfied on 1 node)";
    assert_eq!(explained.verdict, verdict);
    assert_eq!(explained.waiting.len(), 2);
    assert!(explained.waiting.iter().all(|task| task.err == verdict));
    world.change_node("n2", |spec| spec.availability = Availability::Active);
    let explained = super::explain(&world.state, &id, world.now).unwrap();
    let next: Vec<_> = explained.nodes.iter().map(|node| node.next).collect();
    assert_eq!(
        (next, explained.verdict.as_str()),
        (vec![false, true, false], "")
    );
}

#[test]
fn a_node_on_which_tasks_keep_failing_is_avoided() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(Duration::from_secs(1), 1));
    let mut filler = service("filler", 8);
    "filler".clone_into(&mut filler.task.container.image);
    filler.task.placement.constraints = vec!["node.id==n2".into()];
    world.create(filler);
    world.settle();
    let id = world.create(service("web", 1));
    let nodes = |world: &World| -> Vec<_> {
        let tasks = world.state.tasks_of_service(&id);
        tasks.filter_map(|task| task.node.clone()).collect()
    };
    // Every 6 s one failure, and n1 has fewer tasks.
    world.advance(Duration::from_secs(18));
    assert!(nodes(&world).iter().all(|node| node.as_str() == "n1"));
    world.advance(Duration::from_secs(12));
    assert!(nodes(&world).iter().any(|node| node.as_str() == "n2"));
}
