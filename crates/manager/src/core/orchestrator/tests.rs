//! Stories of services, told by the tasks that are meant to run.

mod depends;
mod drain;
mod everywhere;
mod restart;
mod rollback;
mod update;

use std::time::Duration;

use expect_test::{Expect, expect};
use shoal_api::{
    ServiceId, TaskState,
    object::{JobStatus, ObjectKey, UpdateState},
    spec::{
        Annotations, Availability, FailureAction, FileTarget, PortConfig, PublishMode,
        RestartCondition, RestartPolicy, SecretReference, SecretSpec, ServiceMode, UpdateConfig,
        UpdateOrder,
    },
};

use crate::core::{
    control,
    fixture::{node_id, service},
    world::{Behaviour, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn check(world: &World, id: &ServiceId, expected: Expect) {
    expected.assert_eq(&world.table(id));
}

fn scale(world: &mut World, id: &ServiceId, replicas: u64) {
    world.update(id, |spec| spec.mode = ServiceMode::Replicated { replicas });
    world.settle();
}

fn image(world: &mut World, id: &ServiceId, image: &str) {
    world.update(id, |spec| image.clone_into(&mut spec.task.container.image));
}

fn update_status(world: &World, id: &ServiceId) -> Option<(UpdateState, String)> {
    let status = world.service(id).update_status.clone();
    status.map(|status| (status.state, status.message))
}

/// A replicated service of three nodes and an update configuration.
fn updatable(replicas: u64, config: UpdateConfig) -> (World, ServiceId) {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let mut spec = service("web", replicas);
    spec.update = Some(config);
    let id = world.create(spec);
    world.settle();
    (world, id)
}

#[test]
fn a_created_service_runs_on_all_nodes() {
    let (world, id) = updatable(4, UpdateConfig::default());
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n2 running/running demo:1
        3 n3 running/running demo:1
        4 n1 running/running demo:1
    "#]],
    );
}

#[test]
fn a_smaller_service_gives_up_slots_of_the_fullest_node_and_a_larger_one_fills_the_gap() {
    let (mut world, id) = updatable(4, UpdateConfig::default());
    scale(&mut world, &id, 2);
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n2 running/running demo:1
    "#]],
    );
    scale(&mut world, &id, 3);
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n2 running/running demo:1
        3 n3 running/running demo:1
    "#]],
    );
    scale(&mut world, &id, 0);
    check(&world, &id, expect![[""]]);
    assert_eq!(
        world.state.tasks().count(),
        0,
        "nothing is left of removed slots"
    );
}

#[test]
fn a_slot_that_is_filled_again_waits_for_the_task_that_leaves_it() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    // The node that gives up its task does not report: it may still run.
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 1 }
    });
    while world.runnable(&id).len() == 2 {
        assert!(world.pass());
    }
    let leaving = world.state.tasks().find(|task| task.slot == 2).unwrap();
    let node = leaving.node.clone().unwrap();
    world.silent.push(node.clone());
    scale(&mut world, &id, 2);
    let desired = |world: &World| world.runnable(&id)[1].desired_state;
    assert_eq!(desired(&world), TaskState::Ready);
    world.silent.clear();
    world.settle();
    assert_eq!(desired(&world), TaskState::Running);
    assert_eq!(world.running(&id), 2);
}

#[test]
fn slots_that_do_not_run_are_given_up_first() {
    let mut world = World::new(&["n1"]);
    world.behaviours.insert("demo:1".into(), Behaviour::Runs);
    let mut spec = service("web", 5);
    spec.task.resources.reservations.nano_cpus = 1_000_000_000;
    let id = world.create(spec);
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n1 running/running demo:1
        3 n1 running/running demo:1
        4 n1 running/running demo:1
        5 - pending/running demo:1
    "#]],
    );
    scale(&mut world, &id, 4);
    assert_eq!(world.running(&id), 4);
}

#[test]
fn a_removed_service_leaves_nothing() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    world
        .user(|state, cx| control::remove_service(state, cx, &id))
        .unwrap();
    world.settle();
    assert_eq!(world.state.tasks().count(), 0);
}

#[test]
fn a_lost_node_has_its_tasks_placed_again_at_once_and_the_others_stay() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    let before = world.runnable(&id);
    world.kill("n2");
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n1 running/running demo:1
        3 n3 running/running demo:1
    "#]],
    );
    let after = world.runnable(&id);
    assert_eq!(
        (&before[0].id, &before[2].id),
        (&after[0].id, &after[2].id),
        "survivors stay"
    );
    assert_eq!(after[1].attempts, 0, "losing a node is no failed attempt");
    // The node comes back and is told to stop what has moved on.
    world.up("n2");
    world.settle();
    assert_eq!(
        world.state.task(&before[1].id).unwrap().status.state,
        TaskState::Shutdown
    );
    assert_eq!(world.running(&id), 3);
}

#[test]
fn a_lost_node_is_no_end_that_a_restart_policy_could_refuse() {
    let mut world = World::new(&["n1", "n2"]);
    let mut spec = service("web", 2);
    spec.task.restart.condition = RestartCondition::None;
    let id = world.create(spec);
    world.settle();
    world.kill("n2");
    world.settle();
    assert_eq!(world.running(&id), 2);
}

#[test]
fn a_drained_node_gives_its_tasks_away_stop_first() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    world.change_node("n3", |spec| spec.availability = Availability::Drain);
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n2 running/running demo:1
        3 n1 running/running demo:1
    "#]],
    );
    assert_eq!(world.stopped.len(), 1);
    // Nothing is brought back.
    world.change_node("n3", |spec| spec.availability = Availability::Active);
    world.settle();
    assert_eq!(world.stopped.len(), 1);
}

#[test]
fn a_node_that_no_longer_satisfies_constraints_gives_its_tasks_away() {
    let mut world = World::new(&["n1", "n2"]);
    for name in ["n1", "n2"] {
        world.change_node(name, |spec| {
            spec.annotations.labels.insert("zone".into(), "east".into());
        });
    }
    let mut spec = service("web", 2);
    spec.task.placement.constraints = vec!["node.labels.zone == east".into()];
    let id = world.create(spec);
    world.settle();
    world.change_node("n2", |spec| spec.annotations.labels.clear());
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        2 n1 running/running demo:1
    "#]],
    );
}

#[test]
fn a_task_that_waits_for_a_node_follows_a_corrected_constraint() {
    let mut world = World::new(&["n1"]);
    let mut spec = service("web", 1);
    spec.task.placement.constraints = vec!["node.hostname==typo".into()];
    let id = world.create(spec);
    world.settle();
    assert_eq!(world.running(&id), 0);
    world.update(&id, |spec| {
        spec.task.placement.constraints = vec!["node.hostname==n1".into()];
    });
    world.settle();
    assert_eq!(world.running(&id), 1);
}

#[test]
fn another_leader_restarts_nothing() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    let before = world.state.snapshot();
    world.change_leader();
    world.settle();
    assert_eq!(world.state.snapshot(), before);
    assert_eq!(world.running(&id), 3);
}
