//! What follows the end of a task.

use super::*;

/// A service of one task that fails after so long, with two further attempts within the window a second apart.
fn failing(after: Duration, window: Duration) -> (World, ServiceId) {
    let mut world = World::new(&["n1"]);
    let behaviour = Behaviour::Exits(after, 1);
    world.behaviours.insert("demo:1".into(), behaviour);
    let mut spec = service("web", 1);
    spec.task.restart = RestartPolicy {
        delay: SECOND,
        max_attempts: 2,
        window,
        ..RestartPolicy::default()
    };
    let id = world.create(spec);
    (world, id)
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
    let (mut world, id) = failing(SECOND, Duration::ZERO);
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
    let (mut world, id) = failing(10 * SECOND, 15 * SECOND);
    // Every 11 s one attempt: never more than two within 15 s.
    world.advance(300 * SECOND);
    assert!(world.runnable(&id)[0].attempts > 20);
}

#[test]
fn a_slot_whose_attempts_of_a_window_are_used_up_stays_empty() {
    let (mut world, id) = failing(SECOND, 15 * SECOND);
    world.advance(60 * SECOND);
    assert_eq!(world.state.tasks_of_service(&id).count(), 3);
    // Whoever looks later sees the same: the window is the time before the end.
    world.change_leader();
    world.advance(60 * SECOND);
    assert_eq!(world.state.tasks_of_service(&id).count(), 3);
}

#[test]
fn history_follows_the_clusters_limit_and_the_attempts_that_are_counted() {
    for (limit, attempts, kept) in [(2, 0, 2), (0, 0, 1), (-1, 0, 12), (5, 7, 8)] {
        let mut world = World::new(&["n1"]);
        let cluster = world.state.cluster().unwrap().clone();
        let mut spec = cluster.spec.clone();
        spec.task_history_limit = limit;
        world
            .user(|state, cx| control::update_cluster(state, cx, cluster.meta.version, spec))
            .unwrap();
        let mut spec = service("web", 1);
        spec.task.restart.max_attempts = attempts;
        let id = world.create(spec);
        world.settle();
        for version in 2..=12 {
            image(&mut world, &id, &format!("demo:{version}"));
            world.advance(10 * SECOND);
        }
        let tasks = world.state.tasks_of_service(&id).count();
        assert_eq!(tasks, kept, "limit {limit}, {attempts} attempts");
    }
}

#[test]
fn a_task_that_does_not_end_holds_up_its_slot_for_a_minute_after_its_grace() {
    let mut world = World::new(&["n1"]);
    let mut spec = service("web", 1);
    spec.task.container.stop_grace_period = Some(20 * SECOND);
    let id = world.create(spec);
    world.create(service("filler", 2));
    world.settle();
    // The node's agent stands still, and its host does not count as lost.
    world.silent.push(node_id("n1"));
    world.join("n2");
    image(&mut world, &id, "demo:2");
    world.advance(79 * SECOND);
    assert_eq!(world.running(&id), 0);
    world.advance(SECOND);
    check(
        &world,
        &id,
        expect![[r#"
        1 n2 running/running demo:2
    "#]],
    );
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
fn two_attempts_make_exactly_three_tasks() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 1));
    let mut spec = service("web", 1);
    spec.task.restart = RestartPolicy {
        condition: RestartCondition::OnFailure,
        max_attempts: 2,
        ..RestartPolicy::default()
    };
    let id = world.create(spec);
    world.advance(600 * SECOND);
    let tasks: Vec<_> = world.state.tasks_of_service(&id).collect();
    assert_eq!(tasks.len(), 3);
    let failed =
        |task: &&std::sync::Arc<shoal_api::object::Task>| task.status.state == TaskState::Failed;
    assert!(tasks.iter().all(failed));
}

#[test]
fn with_back_off_each_rest_is_twice_the_one_before_until_a_task_has_run_long() {
    let mut world = World::new(&["n1"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 1));
    let mut spec = service("web", 1);
    spec.task.restart.backoff = true;
    let id = world.create(spec);
    let rests = |world: &World| {
        let tasks = world.state.tasks_of_service(&id);
        let mut tasks: Vec<_> = tasks.filter(|task| task.start_after.is_some()).collect();
        tasks.sort_by_key(|task| task.meta.created_at);
        let rest = |task: &&std::sync::Arc<shoal_api::object::Task>| {
            let start = task.start_after.unwrap();
            start.since(task.meta.created_at).as_secs()
        };
        tasks.iter().map(rest).collect::<Vec<_>>()
    };
    world.advance(38 * SECOND);
    assert_eq!(rests(&world), [5, 10, 20]);
    world.advance(1_000 * SECOND);
    assert_eq!(rests(&world), [80, 160, 300, 300, 300]);
    let behaviour = Behaviour::Exits(400 * SECOND, 1);
    world.behaviours.insert("demo:1".into(), behaviour);
    world.advance(1_000 * SECOND);
    assert_eq!(rests(&world).last(), Some(&5));
    assert!(rests(&world).contains(&300));
}
