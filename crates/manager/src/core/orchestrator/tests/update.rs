//! Rolling updates and rollbacks.

use super::*;

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
fn what_does_not_run_within_the_deadline_has_failed_while_old_tasks_serve() {
    for (deadline, action, order, expected) in [
        (
            None,
            FailureAction::Pause,
            UpdateOrder::StartFirst,
            UpdateState::Paused,
        ),
        (
            Some(90 * SECOND),
            FailureAction::Pause,
            UpdateOrder::StartFirst,
            UpdateState::Paused,
        ),
        (
            Some(90 * SECOND),
            FailureAction::Rollback,
            UpdateOrder::StopFirst,
            UpdateState::RollbackCompleted,
        ),
        (
            Some(90 * SECOND),
            FailureAction::Continue,
            UpdateOrder::StopFirst,
            UpdateState::Updating,
        ),
    ] {
        let (mut world, id) = updatable(
            3,
            UpdateConfig {
                failure_action: action,
                order,
                ..UpdateConfig::default()
            },
        );
        world.behaviours.insert("slow:1".into(), Behaviour::Hangs);
        world.update(&id, |spec| {
            spec.progress_deadline = deadline;
            "slow:1".clone_into(&mut spec.task.container.image);
        });
        let limit = deadline.unwrap_or(600 * SECOND);
        world.advance(limit - SECOND);
        assert_eq!(update_status(&world, &id).unwrap().0, UpdateState::Updating);
        let serving = if order == UpdateOrder::StartFirst {
            3
        } else {
            2
        };
        assert_eq!(world.running(&id), serving);
        world.advance(60 * SECOND);
        let (state, message) = update_status(&world, &id).unwrap();
        assert_eq!(state, expected, "{action:?} {order:?}");
        if state == UpdateState::Paused {
            let why = format!(": it did not run within {} s", limit.as_secs());
            assert!(
                message.starts_with("update paused due to failure or early termination of task ")
            );
            assert!(message.ends_with(&why), "{message}");
            assert_eq!(world.running(&id), serving);
        }
    }
}

#[test]
fn a_deadline_of_zero_is_none() {
    let (mut world, id) = updatable(1, UpdateConfig::default());
    world.behaviours.insert("slow:1".into(), Behaviour::Hangs);
    world.update(&id, |spec| {
        spec.progress_deadline = Some(Duration::ZERO);
        "slow:1".clone_into(&mut spec.task.container.image);
    });
    world.advance(10_000 * SECOND);
    assert_eq!(update_status(&world, &id).unwrap().0, UpdateState::Updating);
}

/// What happens while an update to an image that fails goes on: at each second with news how many tasks of the old and of
/// the new image run, and how the update stands.
fn trace(action: FailureAction, order: UpdateOrder) -> String {
    let (mut world, id) = updatable(
        2,
        UpdateConfig {
            failure_action: action,
            order,
            delay: 2 * SECOND,
            monitor: 3 * SECOND,
            ..UpdateConfig::default()
        },
    );
    world
        .behaviours
        .insert("bad:1".into(), Behaviour::Exits(SECOND, 1));
    image(&mut world, &id, "bad:1");
    let mut lines = String::new();
    let mut last = String::new();
    for second in 0..12 {
        world.settle();
        let runs = |image: &str| {
            let running = world.runnable(&id);
            let running = running.iter().filter(|task| {
                task.status.state == TaskState::Running && task.spec.container.image == image
            });
            running.count()
        };
        let state = update_status(&world, &id).map_or("none", |(state, _)| state.as_str());
        let line = format!("{} old, {} new, {state}", runs("demo:1"), runs("bad:1"));
        if line != last {
            lines += &format!("{second} s: {line}\n");
            last = line;
        }
        world.advance(SECOND);
    }
    lines
}

#[test]
fn every_failure_action_in_both_orders() {
    use {FailureAction as A, UpdateOrder as O};
    let mut traces = String::new();
    for action in [A::Pause, A::Continue, A::Rollback] {
        for order in [O::StopFirst, O::StartFirst] {
            traces += &format!("{action:?} {order:?}\n{}", trace(action, order));
        }
    }
    expect![[r#"
        Pause StopFirst
        0 s: 1 old, 1 new, updating
        1 s: 1 old, 0 new, paused
        6 s: 1 old, 1 new, paused
        7 s: 1 old, 0 new, paused
        Pause StartFirst
        0 s: 1 old, 1 new, updating
        1 s: 1 old, 0 new, paused
        6 s: 1 old, 1 new, paused
        7 s: 1 old, 0 new, paused
        Continue StopFirst
        0 s: 1 old, 1 new, updating
        1 s: 1 old, 0 new, updating
        3 s: 0 old, 1 new, updating
        4 s: 0 old, 0 new, updating
        6 s: 0 old, 1 new, completed
        7 s: 0 old, 0 new, completed
        9 s: 0 old, 1 new, completed
        10 s: 0 old, 0 new, completed
        Continue StartFirst
        0 s: 1 old, 1 new, updating
        1 s: 1 old, 0 new, updating
        3 s: 0 old, 1 new, updating
        4 s: 0 old, 0 new, updating
        6 s: 0 old, 1 new, completed
        7 s: 0 old, 0 new, completed
        9 s: 0 old, 1 new, completed
        10 s: 0 old, 0 new, completed
        Rollback StopFirst
        0 s: 1 old, 1 new, updating
        1 s: 2 old, 0 new, rollback_started
        6 s: 2 old, 0 new, rollback_completed
        Rollback StartFirst
        0 s: 1 old, 1 new, updating
        1 s: 2 old, 0 new, rollback_started
        6 s: 2 old, 0 new, rollback_completed
    "#]]
    .assert_eq(&traces);
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
fn an_old_task_that_ends_meanwhile_is_replaced_at_once() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let ends = Behaviour::Exits(Duration::from_secs(30), 1);
    world.behaviours.insert("demo:1".into(), ends);
    let mut spec = service("web", 2);
    spec.task.restart.delay = Duration::from_secs(600);
    spec.update = Some(UpdateConfig {
        delay: Duration::from_secs(60),
        ..UpdateConfig::default()
    });
    let id = world.create(spec);
    world.settle();
    image(&mut world, &id, "demo:2");
    world.advance(20 * SECOND);
    let images = |world: &World| {
        let runnable = world.runnable(&id).into_iter();
        runnable
            .filter(|task| task.status.state == TaskState::Running)
            .map(|task| task.spec.container.image.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(images(&world), ["demo:2", "demo:1"], "the second waits");
    world.advance(15 * SECOND);
    assert_eq!(images(&world), ["demo:2", "demo:2"], "no delay of restarts");
}

#[test]
fn an_update_does_not_wait_for_what_ended_after_it_was_watched() {
    let config = UpdateConfig {
        monitor: 5 * SECOND,
        delay: 10 * SECOND,
        ..UpdateConfig::default()
    };
    let (mut world, id) = updatable(2, config);
    let ends = Behaviour::Exits(Duration::from_secs(7), 1);
    world.behaviours.insert("demo:2".into(), ends);
    world.update(&id, |spec| {
        spec.task.container.image = "demo:2".into();
        spec.task.restart.delay = Duration::from_secs(3600);
    });
    world.advance(60 * SECOND);
    let (state, _) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::Completed, "{}", world.table(&id));
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
    assert!(message.starts_with("update paused due to failure or early termination of task "));
}

#[test]
fn a_rollback_on_request_restores_the_spec_and_a_second_one_undoes_it() {
    let (mut world, id) = updatable(2, UpdateConfig::default());
    image(&mut world, &id, "demo:2");
    world.advance(20 * SECOND);
    for expected in ["demo:1", "demo:2"] {
        let version = world.service(&id).meta.version;
        world
            .user(|state, cx| control::rollback_service(state, cx, &id, version, None))
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
