//! Stories of services, told by the tasks that are meant to run.

use std::time::Duration;

use expect_test::{Expect, expect};
use shoal_api::{
    ServiceId, TaskState,
    object::{JobStatus, UpdateState},
    spec::{
        Availability, FailureAction, PortConfig, PublishMode, RestartCondition, RestartPolicy,
        ServiceMode, UpdateConfig, UpdateOrder,
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
fn a_failed_task_is_replaced_after_the_delay() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 1));
    let id = world.create(service("web", 1));
    world.settle();
    world.advance(SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 ready/ready demo:1
    "#]],
    );
    world.behaviours.clear();
    world.advance(4 * SECOND);
    assert_eq!(world.running(&id), 0, "the delay is 5 s");
    world.advance(SECOND);
    assert_eq!(world.running(&id), 1);
}

#[test]
fn a_task_that_cannot_be_prepared_does_not_loop_without_delay() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Rejected);
    let id = world.create(service("web", 1));
    world.advance(60 * SECOND);
    let attempts = world.runnable(&id)[0].attempts;
    // Each one is prepared, and rejected, before its delay has passed; the next one waits for its own.
    assert!(
        (10..=13).contains(&attempts),
        "{attempts} attempts in a minute"
    );
    assert!(
        world.state.tasks_of_service(&id).count() <= 6,
        "history is kept short"
    );
}

#[test]
fn attempts_are_limited_and_counted_anew_for_another_spec() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 1));
    let mut spec = service("web", 1);
    spec.task.restart = RestartPolicy {
        delay: SECOND,
        max_attempts: 2,
        ..RestartPolicy::default()
    };
    let id = world.create(spec);
    world.advance(60 * SECOND);
    assert_eq!(
        world.state.tasks_of_service(&id).count(),
        3,
        "the task and two more attempts"
    );
    assert_eq!(world.running(&id), 0);
    image(&mut world, &id, "demo:2");
    world.advance(SECOND);
    assert_eq!(world.running(&id), 1);
}

#[test]
fn attempts_within_the_window_count() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(10 * SECOND, 1));
    let mut spec = service("web", 1);
    spec.task.restart = RestartPolicy {
        delay: SECOND,
        max_attempts: 2,
        window: 15 * SECOND,
        ..RestartPolicy::default()
    };
    let id = world.create(spec);
    // Every 11 s one attempt: never more than two within 15 s.
    world.advance(300 * SECOND);
    assert!(world.runnable(&id)[0].attempts > 20);
}

#[test]
fn a_condition_decides_which_ends_are_answered() {
    for (condition, code, replaced) in [
        (RestartCondition::None, 1, false),
        (RestartCondition::OnFailure, 1, true),
        (RestartCondition::OnFailure, 0, false),
        (RestartCondition::Any, 0, true),
    ] {
        let mut world = World::new(&["n1"]);
        world
            .behaviours
            .insert("demo:1".into(), Behaviour::Exits(SECOND, code));
        let mut spec = service("web", 1);
        spec.task.restart.condition = condition;
        let id = world.create(spec);
        world.advance(2 * SECOND);
        let tasks = world.state.tasks_of_service(&id).count();
        assert_eq!(tasks > 1, replaced, "{condition:?} after exit code {code}");
    }
}

#[test]
fn history_is_kept_per_slot() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    for version in 2..12 {
        image(&mut world, &id, &format!("demo:{version}"));
        world.advance(10 * SECOND);
    }
    assert_eq!(
        world.state.tasks_of_service(&id).count(),
        5,
        "four old ones and the current one"
    );
}

#[test]
fn a_rolling_update_replaces_one_slot_after_the_other() {
    let (mut world, id) = updatable(
        3,
        UpdateConfig {
            delay: 10 * SECOND,
            ..UpdateConfig::default()
        },
    );
    image(&mut world, &id, "demo:2");
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:2
        2 n2 running/running demo:1
        3 n3 running/running demo:1
    "#]],
    );
    assert_eq!(update_status(&world, &id).unwrap().0, UpdateState::Updating);
    world.advance(9 * SECOND);
    assert_eq!(world.stopped.len(), 1, "the delay is 10 s");
    world.advance(SECOND);
    assert_eq!(world.stopped.len(), 2);
    world.advance(10 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:2
        2 n2 running/running demo:2
        3 n3 running/running demo:2
    "#]],
    );
    world.advance(10 * SECOND);
    let status = update_status(&world, &id);
    assert_eq!(
        status,
        Some((UpdateState::Completed, "update completed".into()))
    );
}

#[test]
fn parallelism_bounds_the_slots_at_a_time_and_zero_is_all() {
    for (parallelism, at_once) in [(1, 1), (2, 2), (0, 5)] {
        let (mut world, id) = updatable(
            5,
            UpdateConfig {
                parallelism,
                delay: SECOND,
                ..UpdateConfig::default()
            },
        );
        image(&mut world, &id, "demo:2");
        world.settle();
        assert_eq!(world.stopped.len(), at_once);
    }
}

#[test]
fn an_update_that_hangs_keeps_the_rest_running() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    world.behaviours.insert("demo:2".into(), Behaviour::Hangs);
    image(&mut world, &id, "demo:2");
    world.advance(100 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 preparing/running demo:2
        2 n2 running/running demo:1
        3 n3 running/running demo:1
    "#]],
    );
}

#[test]
fn start_first_stops_the_old_task_when_the_new_one_runs() {
    let config = UpdateConfig {
        order: UpdateOrder::StartFirst,
        ..UpdateConfig::default()
    };
    let (mut world, id) = updatable(1, config);
    world.behaviours.insert("demo:2".into(), Behaviour::Hangs);
    image(&mut world, &id, "demo:2");
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:1
        1 n2 preparing/running demo:2
    "#]],
    );
    world.behaviours.clear();
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n2 running/running demo:2
    "#]],
    );
}

#[test]
fn a_failing_start_first_update_leaves_the_old_tasks_alone() {
    let config = UpdateConfig {
        order: UpdateOrder::StartFirst,
        ..UpdateConfig::default()
    };
    let (mut world, id) = updatable(2, config);
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    image(&mut world, &id, "bad:1");
    world.advance(SECOND);
    assert_eq!(world.running(&id), 2);
    assert_eq!(update_status(&world, &id).unwrap().0, UpdateState::Paused);
    // What the update has begun comes to its end once it can.
    world.behaviours.clear();
    world.advance(10 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        1 n3 running/running bad:1
        2 n2 running/running demo:1
    "#]],
    );
}

#[test]
fn losing_both_tasks_of_a_start_first_update_makes_one_new_one() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let mut spec = service("web", 1);
    spec.update = Some(UpdateConfig {
        order: UpdateOrder::StartFirst,
        ..UpdateConfig::default()
    });
    let id = world.create(spec);
    world.settle();
    world.behaviours.insert("demo:2".into(), Behaviour::Hangs);
    image(&mut world, &id, "demo:2");
    world.settle();
    assert_eq!(world.runnable(&id).len(), 2);
    // Both are noticed before anything is done about either.
    world.kill("n1");
    world.kill("n2");
    world.behaviours.clear();
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        1 n3 running/running demo:2
    "#]],
    );
}

#[test]
fn an_update_pauses_when_the_failure_ratio_is_exceeded() {
    let (mut world, id) = updatable(
        3,
        UpdateConfig {
            delay: 2 * SECOND,
            ..UpdateConfig::default()
        },
    );
    world
        .behaviours
        .insert("bad:1".into(), Behaviour::Exits(SECOND, 1));
    image(&mut world, &id, "bad:1");
    world.advance(20 * SECOND);
    let (state, message) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::Paused);
    let task = message.strip_prefix("update paused due to failure or early termination of task ");
    let task = world.state.task(&task.unwrap().parse().unwrap()).unwrap();
    assert_eq!(
        (task.slot, task.spec.container.image.as_str()),
        (1, "bad:1")
    );
    let old = world
        .runnable(&id)
        .iter()
        .filter(|task| task.spec.container.image == "demo:1")
        .count();
    assert_eq!(old, 2, "the rest keeps its spec");
}

#[test]
fn failures_after_the_monitored_time_do_not_count() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    world
        .behaviours
        .insert("slow:1".into(), Behaviour::Exits(7 * SECOND, 1));
    image(&mut world, &id, "slow:1");
    world.advance(30 * SECOND);
    assert_eq!(
        update_status(&world, &id).unwrap().0,
        UpdateState::Completed
    );
}

#[test]
fn failures_up_to_the_ratio_are_tolerated() {
    // One of four may fail.
    for (max_failure_ratio, state) in [(0.25, UpdateState::Completed), (0.24, UpdateState::Paused)]
    {
        let (mut world, id) = updatable(
            4,
            UpdateConfig {
                max_failure_ratio,
                delay: SECOND,
                ..UpdateConfig::default()
            },
        );
        world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
        image(&mut world, &id, "bad:1");
        world.settle();
        world.behaviours.clear();
        world.advance(60 * SECOND);
        assert_eq!(
            update_status(&world, &id).unwrap().0,
            state,
            "ratio {max_failure_ratio}"
        );
    }
}

#[test]
fn a_failed_update_rolls_back_by_itself() {
    let config = UpdateConfig {
        failure_action: FailureAction::Rollback,
        ..UpdateConfig::default()
    };
    let (mut world, id) = updatable(3, config);
    let untouched = world.runnable(&id)[2].id.clone();
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    image(&mut world, &id, "bad:1");
    world.settle();
    let (state, message) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::RollbackStarted);
    assert!(message.starts_with("update rolled back due to failure or early termination of task "));
    world.advance(20 * SECOND);
    let status = update_status(&world, &id);
    assert_eq!(
        status,
        Some((UpdateState::RollbackCompleted, "rollback completed".into()))
    );
    assert_eq!(world.running(&id), 3);
    let service = world.service(&id);
    assert_eq!(
        (
            service.spec.task.container.image.as_str(),
            &service.previous_spec
        ),
        ("demo:1", &None)
    );
    assert_eq!(
        world.runnable(&id)[2].id,
        untouched,
        "a slot that was never updated is not touched"
    );
}

#[test]
fn a_failed_rollback_pauses() {
    let config = UpdateConfig {
        failure_action: FailureAction::Rollback,
        ..UpdateConfig::default()
    };
    let (mut world, id) = updatable(1, config);
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Rejected);
    image(&mut world, &id, "bad:1");
    world.advance(20 * SECOND);
    let (state, message) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::RollbackPaused);
    assert!(message.starts_with("rollback paused due to failure or early termination of task "));
}

#[test]
fn a_rollback_on_request_restores_the_spec_and_a_second_one_undoes_it() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    image(&mut world, &id, "demo:2");
    world.advance(20 * SECOND);
    for expected in ["demo:1", "demo:2"] {
        let version = world.service(&id).meta.version;
        world
            .user(|state, cx| control::rollback_service(state, cx, &id, version))
            .unwrap();
        assert_eq!(
            update_status(&world, &id),
            Some((
                UpdateState::RollbackStarted,
                "manually requested rollback".into()
            ))
        );
        world.advance(20 * SECOND);
        assert_eq!(
            update_status(&world, &id).unwrap().0,
            UpdateState::RollbackCompleted
        );
        assert!(
            world
                .runnable(&id)
                .iter()
                .all(|task| task.spec.container.image == expected)
        );
    }
}

#[test]
fn a_new_update_takes_over_from_a_paused_one() {
    let (mut world, id) = updatable(3, UpdateConfig::default());
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    image(&mut world, &id, "bad:1");
    world.advance(SECOND);
    assert_eq!(update_status(&world, &id).unwrap().0, UpdateState::Paused);
    image(&mut world, &id, "demo:3");
    world.advance(30 * SECOND);
    assert_eq!(
        update_status(&world, &id).unwrap().0,
        UpdateState::Completed
    );
    check(
        &world,
        &id,
        expect![[r#"
        1 n1 running/running demo:3
        2 n2 running/running demo:3
        3 n3 running/running demo:3
    "#]],
    );
}

#[test]
fn only_what_matters_to_tasks_replaces_them() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    let before: Vec<_> = world
        .runnable(&id)
        .iter()
        .map(|task| task.id.clone())
        .collect();
    let ids = |world: &World| {
        world
            .runnable(&id)
            .iter()
            .map(|task| task.id.clone())
            .collect::<Vec<_>>()
    };
    world.update(&id, |spec| {
        spec.annotations.labels.insert("a".into(), "b".into());
    });
    world.update(&id, |spec| {
        spec.task.placement.constraints = vec!["node.hostname!=n9".into()]
    });
    world.advance(10 * SECOND);
    assert_eq!(ids(&world), before, "the nodes still fit");
    world.update(&id, |spec| spec.task.force_update += 1);
    world.advance(20 * SECOND);
    assert!(ids(&world).iter().all(|id| !before.contains(id)));
    assert_eq!(world.running(&id), 2);
}

#[test]
fn fresh_credentials_leave_tasks_alone_that_have_their_image() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    world.update(&id, |spec| {
        spec.task.container.pull_auth.0 = "token".to_owned();
    });
    world.advance(20 * SECOND);
    assert!(world.stopped.is_empty());
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
fn another_published_number_leaves_tasks_alone_but_the_first_port_does_not() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    let publish = |world: &mut World, published: u16, mode: PublishMode| {
        world.update(&id, |spec| {
            spec.endpoint.ports = vec![PortConfig {
                target: 80,
                published,
                mode,
                ..PortConfig::default()
            }];
        });
        let stopped = world.stopped.len();
        world.advance(20 * SECOND);
        assert_eq!(world.running(&id), 2);
        world.stopped.len() - stopped
    };
    assert_eq!(
        publish(&mut world, 8080, PublishMode::Ingress),
        2,
        "tasks must join ingress"
    );
    assert_eq!(publish(&mut world, 8081, PublishMode::Ingress), 0);
    assert_eq!(
        publish(&mut world, 8081, PublishMode::Host),
        2,
        "the node publishes it with the task"
    );
    assert_eq!(publish(&mut world, 8082, PublishMode::Host), 2);
}

#[test]
fn an_update_goes_on_under_another_leader() {
    let (mut world, id) = updatable(
        4,
        UpdateConfig {
            delay: 3 * SECOND,
            ..UpdateConfig::default()
        },
    );
    image(&mut world, &id, "demo:2");
    for _ in 0..12 {
        world.advance(SECOND);
        world.change_leader();
    }
    world.advance(10 * SECOND);
    assert_eq!(
        update_status(&world, &id).unwrap().0,
        UpdateState::Completed
    );
    assert_eq!(world.stopped.len(), 4, "each slot was replaced once");
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

fn global(name: &str) -> shoal_api::spec::ServiceSpec {
    let mut spec = service(name, 0);
    spec.mode = ServiceMode::Global;
    spec
}

#[test]
fn a_global_service_runs_once_on_every_node_that_fits() {
    let mut world = World::new(&["n1", "n2"]);
    let mut spec = global("agent");
    spec.task.placement.constraints = vec!["node.hostname!=n1".into()];
    let id = world.create(spec);
    world.join("n3");
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        0 n2 running/running demo:1
        0 n3 running/running demo:1
    "#]],
    );
    // A drained node gives its task up, a paused one keeps it.
    world.change_node("n2", |spec| spec.availability = Availability::Drain);
    world.change_node("n3", |spec| spec.availability = Availability::Pause);
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
        0 n3 running/running demo:1
    "#]],
    );
    world.change_node("n2", |spec| spec.availability = Availability::Active);
    world.settle();
    assert_eq!(world.running(&id), 2);
}

#[test]
fn a_global_task_stays_on_a_node_that_comes_back() {
    let mut world = World::new(&["n1", "n2"]);
    let id = world.create(global("agent"));
    world.settle();
    let before = world.runnable(&id);
    world.kill("n2");
    world.advance(60 * SECOND);
    world.up("n2");
    world.settle();
    let after = world.runnable(&id);
    assert_eq!(before.len(), after.len());
    assert!(before.iter().zip(&after).all(|(a, b)| a.id == b.id));
}

#[test]
fn a_global_service_is_updated_node_by_node() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let id = world.create(global("agent"));
    world.settle();
    world.change_node("n3", |spec| spec.availability = Availability::Pause);
    image(&mut world, &id, "demo:2");
    world.advance(30 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        0 n1 running/running demo:2
        0 n2 running/running demo:2
        0 n3 running/running demo:1
    "#]],
    );
    assert_eq!(
        update_status(&world, &id).unwrap().0,
        UpdateState::Completed
    );
}

#[test]
fn a_removed_node_takes_its_tasks_along() {
    let mut world = World::new(&["n1", "n2"]);
    let (everywhere, replicated) = (
        world.create(global("agent")),
        world.create(service("web", 2)),
    );
    world.settle();
    world.kill("n2");
    world
        .user(|state, cx| control::remove_node(state, cx, &node_id("n2"), false))
        .unwrap();
    world.settle();
    assert_eq!(
        (world.running(&everywhere), world.running(&replicated)),
        (1, 2)
    );
    let gone = world
        .state
        .tasks()
        .find(|task| task.node == Some(node_id("n2")));
    assert_eq!(
        gone.map(|task| task.status.state),
        Some(TaskState::Orphaned),
        "it is history of its slot"
    );
}

#[test]
fn a_job_completes_as_often_as_asked_and_runs_again_with_each_update() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 0));
    let mut spec = service("batch", 0);
    spec.mode = ServiceMode::ReplicatedJob {
        max_concurrent: 2,
        total_completions: 5,
    };
    let id = world.create(spec);
    world.settle();
    let completed = |world: &World| {
        let tasks = world.state.tasks_of_service(&id);
        tasks
            .filter(|task| task.status.state == TaskState::Complete)
            .count()
    };
    let at_work = |world: &World| {
        world
            .state
            .tasks_of_service(&id)
            .filter(|task| task.status.state == TaskState::Running)
            .count()
    };
    assert_eq!((completed(&world), at_work(&world)), (0, 2));
    world.advance(SECOND);
    assert_eq!((completed(&world), at_work(&world)), (2, 2));
    world.advance(10 * SECOND);
    assert_eq!((completed(&world), at_work(&world)), (5, 0));
    world.update(&id, |spec| spec.task.force_update += 1);
    world.settle();
    assert_eq!(
        world.service(&id).job.map(|job: JobStatus| job.iteration),
        Some(1)
    );
    assert_eq!((completed(&world), at_work(&world)), (0, 2));
}

#[test]
fn a_failing_job_is_tried_as_often_as_its_policy_allows() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 1));
    let mut spec = service("batch", 0);
    spec.mode = ServiceMode::GlobalJob;
    spec.task.restart = RestartPolicy {
        max_attempts: 2,
        delay: SECOND,
        ..RestartPolicy::default()
    };
    let id = world.create(spec);
    world.advance(60 * SECOND);
    assert_eq!(world.state.tasks_of_service(&id).count(), 3);
}
