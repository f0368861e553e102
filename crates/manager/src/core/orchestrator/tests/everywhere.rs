//! Global services and jobs.

use super::*;

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
fn a_job_of_all_nodes_runs_on_those_that_are_there_and_again_with_each_update() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 0));
    let mut spec = service("batch", 0);
    spec.mode = ServiceMode::GlobalJob;
    let id = world.create(spec);
    world.advance(5 * SECOND);
    let nodes = |world: &World| {
        let tasks = world.state.tasks_of_service(&id);
        let nodes = tasks.filter_map(|task| task.node.as_ref().map(ToString::to_string));
        let mut nodes: Vec<String> = nodes.collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes(&world), ["n1", "n2"]);
    // One that joins later has no part in this run.
    world.join("n3");
    world.advance(5 * SECOND);
    assert_eq!(nodes(&world), ["n1", "n2"]);
    world.update(&id, |spec| spec.task.force_update += 1);
    world.advance(5 * SECOND);
    assert_eq!(nodes(&world), ["n1", "n2", "n3"]);
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

#[test]
fn a_job_keeps_to_its_limit_and_is_run_again_by_force() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .behaviours
        .insert("demo:1".into(), Behaviour::Exits(SECOND, 0));
    let mut spec = service("job", 0);
    spec.mode = ServiceMode::ReplicatedJob {
        max_concurrent: 2,
        total_completions: 10,
    };
    let id = world.create(spec);
    let of_run = |world: &World, run: u64, state: TaskState| {
        let tasks = world.state.tasks_of_service(&id);
        let tasks = tasks.filter(|task| task.job_iteration == Some(run));
        tasks.filter(|task| task.status.state == state).count()
    };
    let run_through = |world: &mut World, run: u64| {
        for _ in 0..20 {
            world.settle();
            assert!(of_run(world, run, TaskState::Running) <= 2);
            world.advance(SECOND / 2);
        }
        assert_eq!(of_run(world, run, TaskState::Complete), 10);
    };
    run_through(&mut world, 0);
    world.update(&id, |spec| spec.task.force_update += 1);
    run_through(&mut world, 1);
    assert_eq!(
        of_run(&world, 0, TaskState::Complete),
        0,
        "the earlier run is gone"
    );
}

#[test]
fn a_global_update_keeps_to_its_parallelism() {
    for (parallelism, at_once) in [(1, 1), (2, 2), (0, 4)] {
        let mut world = World::new(&["n1", "n2", "n3", "n4"]);
        let mut spec = global("agent");
        spec.update = Some(UpdateConfig {
            parallelism,
            delay: SECOND,
            ..UpdateConfig::default()
        });
        let id = world.create(spec);
        world.settle();
        image(&mut world, &id, "demo:2");
        world.settle();
        assert_eq!(world.stopped.len(), at_once);
    }
}
