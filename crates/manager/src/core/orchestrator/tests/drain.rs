//! How tasks leave drained nodes.

use shoal_api::spec::labels::DRAIN_DEADLINE;

use super::*;

fn drain(world: &mut World, name: &str) {
    world.change_node(name, |spec| spec.availability = Availability::Drain);
    world.settle();
}

/// A service whose tasks are all on n1, and then drained from it.
fn on_one_node(replicas: u64, config: UpdateConfig, hangs: bool) -> (World, ServiceId) {
    let mut world = World::new(&["n1"]);
    let mut spec = service("web", replicas);
    spec.update = Some(config);
    let id = world.create(spec);
    world.settle();
    world.join("n2");
    world.settle();
    if hangs {
        world.behaviours.insert("demo:1".into(), Behaviour::Hangs);
    }
    (world, id)
}

fn start_first(parallelism: u64) -> UpdateConfig {
    UpdateConfig {
        parallelism,
        order: UpdateOrder::StartFirst,
        ..UpdateConfig::default()
    }
}

#[test]
fn a_start_first_service_leaves_without_a_gap() {
    let (mut world, id) = on_one_node(3, start_first(1), true);
    let before = world.runnable(&id);
    drain(&mut world, "n1");
    check(
        &world,
        &id,
        expect![[r#"
            1 n1 running/running demo:1
            1 n2 preparing/running demo:1
            2 n1 running/running demo:1
            3 n1 running/running demo:1
        "#]],
    );
    assert!(world.stopped.is_empty());
    world.behaviours.clear();
    world.settle();
    check(
        &world,
        &id,
        expect![[r#"
            1 n2 running/running demo:1
            2 n2 running/running demo:1
            3 n2 running/running demo:1
        "#]],
    );
    let old: Vec<_> = before.iter().map(|task| task.id.clone()).collect();
    assert_eq!(world.stopped, old, "one after the other, and nothing else");
}

#[test]
fn as_many_leave_at_a_time_as_are_updated_at_a_time() {
    for (parallelism, gone) in [(1, 1), (2, 2), (0, 5)] {
        let config = UpdateConfig {
            parallelism,
            ..UpdateConfig::default()
        };
        let (mut world, id) = on_one_node(5, config, true);
        drain(&mut world, "n1");
        world.advance(100 * SECOND);
        assert_eq!(world.stopped.len(), gone, "parallelism {parallelism}");
        world.behaviours.clear();
        world.settle();
        assert_eq!(world.running(&id), 5);
        assert_eq!(world.stopped.len(), 5);
    }
}

#[test]
fn a_deadline_ends_a_drain_that_takes_too_long() {
    let (mut world, id) = on_one_node(3, start_first(1), true);
    world.change_node("n1", |spec| {
        let labels = &mut spec.annotations.labels;
        labels.insert(DRAIN_DEADLINE.into(), "1m".into());
    });
    world.advance(50 * SECOND);
    drain(&mut world, "n1");
    world.advance(59 * SECOND);
    assert_eq!(world.running(&id), 3);
    world.advance(SECOND);
    assert_eq!(world.running(&id), 0);
    assert_eq!(world.stopped.len(), 3);
    world.behaviours.clear();
    world.settle();
    assert_eq!(world.running(&id), 3);
    // A deadline that is none is refused.
    let node = world.state.node(&node_id("n1")).unwrap().clone();
    let mut spec = node.spec.clone();
    let labels = &mut spec.annotations.labels;
    labels.insert(DRAIN_DEADLINE.into(), "soon".into());
    let refusal = world
        .user(|state, cx| control::update_node(state, cx, &node.id, node.meta.version, spec))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "label 'shoal.drain.deadline' has the invalid value 'soon': expected DURATION"
    );
}

#[test]
fn a_node_that_is_opened_again_keeps_what_it_still_has() {
    let (mut world, id) = on_one_node(2, start_first(0), true);
    drain(&mut world, "n1");
    assert_eq!(world.runnable(&id).len(), 4);
    world.change_node("n1", |spec| spec.availability = Availability::Active);
    world.behaviours.clear();
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
fn a_drained_node_that_is_lost_holds_nothing_up() {
    let (mut world, id) = on_one_node(3, start_first(1), true);
    drain(&mut world, "n1");
    world.behaviours.clear();
    world.kill("n1");
    world.settle();
    assert_eq!(world.running(&id), 3);
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_none() {
    let mut world = World::new(&["n1", "n2"]);
    let id = world.create(service("web", 2));
    world.settle();
    world.change_node("n2", |spec| spec.availability = Availability::Pause);
    scale(&mut world, &id, 4);
    check(
        &world,
        &id,
        expect![[r#"
            1 n1 running/running demo:1
            2 n2 running/running demo:1
            3 n1 running/running demo:1
            4 n1 running/running demo:1
        "#]],
    );
}
