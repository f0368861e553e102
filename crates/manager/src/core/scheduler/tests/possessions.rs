//! What nodes have that others have not: volumes, and things with names.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    object::NodeDescription,
    spec::{GenericResource, Mount, MountKind, ServiceSpec},
};

use super::*;
use crate::core::{dispatch, fixture};

/// A node says something else of itself.
fn describe(world: &mut World, node: &str, change: impl FnOnce(&mut NodeDescription)) {
    let id = fixture::node_id(node);
    let mut description = world.state.node(&id).unwrap().description.clone();
    change(&mut description);
    let batch = dispatch::node_seen(&world.state, &id, &description, None, world.now);
    world.apply(batch.unwrap()).unwrap();
}

fn with_volume(name: &str, source: &str, stays: bool) -> ServiceSpec {
    let mut spec = service(name, 1);
    spec.task.container.mounts = vec![Mount {
        kind: MountKind::Volume,
        source: source.to_owned(),
        target: "/data".to_owned(),
        ..Mount::default()
    }];
    let labels = &mut spec.annotations.labels;
    labels.insert("shoal.volumes.stay".to_owned(), stays.to_string());
    spec.apply_labels().unwrap();
    spec
}

fn home(world: &World, id: &shoal_api::ServiceId) -> Option<String> {
    let node = world.runnable(id).last().unwrap().node.clone();
    node.map(|node| node.to_string())
}

#[test]
fn a_service_that_stays_with_its_volume_waits_for_the_node_that_has_it() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let stays = world.create(with_volume("db", "data-{{.Task.Slot}}", true));
    let leaves = world.create(with_volume("cache", "data-{{.Task.Slot}}", false));
    world.settle();
    let at = home(&world, &stays).unwrap();
    describe(&mut world, &at, |node| {
        node.volumes = vec!["data-1".into()];
    });
    world.kill(&at);
    world.settle();
    // The one waits and says why; the other goes on elsewhere, as with Swarm.
    assert_eq!(world.running(&leaves), 1);
    assert_eq!(home(&world, &stays), None);
    let why = "no suitable node (missing volume on 2 nodes; 1 node not available for new tasks)";
    assert_eq!(world.runnable(&stays)[0].status.err, why);
    world.up(&at);
    world.settle();
    assert_eq!((home(&world, &stays), world.running(&stays)), (Some(at), 1));
}

#[test]
fn an_explanation_says_where_a_volume_is() {
    let mut world = World::new(&["n1", "n2"]);
    describe(&mut world, "n2", |node| node.volumes = vec!["data".into()]);
    let id = world.create(with_volume("db", "data", true));
    world.settle();
    assert_eq!(home(&world, &id).as_deref(), Some("n2"));
    let explained = super::super::explain(&world.state, &id, world.now).unwrap();
    assert_eq!(
        explained.nodes[0].reasons,
        ["missing volume: data is on n2"]
    );
    assert!(explained.nodes[1].next);
}

#[test]
fn things_with_names_belong_to_one_task_at_a_time() {
    let mut world = World::new(&["n1", "n2"]);
    describe(&mut world, "n2", |node| {
        let gpus = ["UUID1", "UUID2", "UUID3"].map(str::to_owned).to_vec();
        let apples = GenericResource::Discrete(3);
        node.resources.generic = BTreeMap::from([
            ("gpu".to_owned(), GenericResource::Named(gpus)),
            ("apple".to_owned(), apples),
        ]);
    });
    let asking = |name: &str, replicas, gpus, apples| {
        let mut spec = service(name, replicas);
        let generic = &mut spec.task.resources.reservations.generic;
        generic.insert("gpu".into(), GenericResource::Discrete(gpus));
        generic.insert("apple".into(), GenericResource::Discrete(apples));
        spec
    };
    let given = |world: &World, id| -> Vec<String> {
        let tasks = world.runnable(id).into_iter();
        let assigned = tasks.filter_map(|task| task.assigned.clone());
        let names = assigned.flat_map(|assigned| match &assigned.generic["gpu"] {
            GenericResource::Named(names) => names.clone(),
            GenericResource::Discrete(amount) => panic!("{amount} without names"),
        });
        names.collect()
    };
    let two = world.create(asking("two", 1, 2, 1));
    world.settle();
    let many = world.create(asking("many", 2, 1, 1));
    world.settle();
    let mut names = given(&world, &two);
    assert_eq!((names.len(), given(&world, &many).len()), (2, 1));
    names.extend(given(&world, &many));
    let different: BTreeSet<_> = names.iter().collect();
    assert_eq!(different.len(), 3, "{names:?}");
    let waits = world.runnable(&many);
    let waits = waits.iter().find(|task| task.node.is_none()).unwrap();
    let why = "no suitable node (insufficient resources on 2 nodes)";
    assert_eq!(waits.status.err, why);
    // What is given back is given to the next.
    world
        .user(|state, cx| crate::core::control::remove_service(state, cx, &two))
        .unwrap();
    world.settle();
    let names: BTreeSet<_> = given(&world, &many).into_iter().collect();
    assert_eq!((world.running(&many), names.len()), (2, 2));
}
