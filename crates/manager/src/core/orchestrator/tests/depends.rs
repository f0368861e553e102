//! Start gates.

use shoal_api::spec::{Dependency, DependencyCondition, ServiceSpec};

use super::*;

fn on(service: &str, condition: DependencyCondition, required: bool) -> Dependency {
    Dependency {
        service: service.into(),
        condition,
        required,
    }
}

fn web(depends_on: Vec<Dependency>) -> ServiceSpec {
    ServiceSpec {
        depends_on,
        ..service("web", 2)
    }
}

/// A service of one task with an image of its own name.
fn other(name: &str) -> ServiceSpec {
    let mut spec = service(name, 1);
    name.clone_into(&mut spec.task.container.image);
    spec
}

fn job(name: &str) -> ServiceSpec {
    let mode = ServiceMode::ReplicatedJob {
        max_concurrent: 1,
        total_completions: 1,
    };
    ServiceSpec {
        mode,
        ..other(name)
    }
}

fn reason(world: &World, id: &ServiceId) -> String {
    world.runnable(id)[0].status.err.to_string()
}

#[test]
fn a_service_starts_when_another_one_is_healthy_and_a_job_has_completed() {
    use DependencyCondition as C;
    let mut world = World::new(&["n1", "n2"]);
    world.behaviours.insert("db".into(), Behaviour::Starts);
    world
        .behaviours
        .insert("migrate".into(), Behaviour::Exits(3 * SECOND, 0));
    let depends = vec![
        on("db", C::Healthy, true),
        on("migrate", C::CompletedSuccessfully, true),
    ];
    let id = world.create(web(depends));
    world.settle();
    // Prepared, so that only the start is left.
    check(
        &world,
        &id,
        expect![[r#"
            1 n1 ready/ready demo:1
            2 n2 ready/ready demo:1
        "#]],
    );
    assert_eq!(
        reason(&world, &id),
        "waiting for service db (service_healthy): which does not exist, service migrate \
         (service_completed_successfully): which does not exist"
    );
    world.create(other("db"));
    let mut spec = job("migrate");
    spec.depends_on = vec![on("db", C::Started, true)];
    world.create(spec);
    world.advance(10 * SECOND);
    assert_eq!(
        reason(&world, &id),
        "waiting for service db (service_healthy): 0 of 1 tasks running and healthy"
    );
    world.behaviours.remove("db");
    world.settle();
    assert_eq!(world.running(&id), 2);
    assert_eq!(reason(&world, &id), "");
}

#[test]
fn a_start_is_that_of_the_process_not_what_leads_to_it() {
    let opens = |behaviour, state| {
        let mut world = World::new(&["n1"]);
        world.behaviours.insert("db".into(), behaviour);
        let db = world.create(other("db"));
        let id = world.create(web(vec![on("db", DependencyCondition::Started, true)]));
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(_, _, is_open)| !is_open) {
            while world.pass() {}
            let status = world.runnable(&db)[0].status.clone();
            let mut tasks = world.runnable(&id).into_iter();
            let is_open = tasks.any(|task| task.desired_state == TaskState::Running);
            seen.push((status.state, status.container.is_some(), is_open));
            world.agents();
        }
        let on_its_way = (TaskState::Starting, false, false);
        assert_eq!(seen[seen.len() - 2..], [on_its_way, state], "{seen:?}");
    };
    opens(Behaviour::Starts, (TaskState::Starting, true, true));
    // Without a health check nothing is told but that it runs.
    opens(Behaviour::Runs, (TaskState::Running, false, true));
}

#[test]
fn what_has_started_once_does_not_wait_again() {
    let mut world = World::new(&["n1", "n2"]);
    let db = world.create(other("db"));
    let id = world.create(web(vec![on("db", DependencyCondition::Healthy, true)]));
    world.settle();
    world
        .user(|state, cx| control::remove_service(state, cx, &db))
        .unwrap();
    world.settle();
    world.kill("n2");
    world.settle();
    assert_eq!(world.running(&id), 2, "its new place does not depend on db");
    scale(&mut world, &id, 4);
    assert_eq!(world.running(&id), 4);
    world.change_leader();
    world.settle();
    assert_eq!(world.running(&id), 4);
}

#[test]
fn an_update_waits_while_the_old_tasks_serve_and_a_rollback_does_not() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .behaviours
        .insert("migrate".into(), Behaviour::Exits(SECOND, 0));
    let migrate = world.create(job("migrate"));
    let needs = DependencyCondition::CompletedSuccessfully;
    let id = world.create(web(vec![on("migrate", needs, true)]));
    world.advance(2 * SECOND);
    assert_eq!(world.running(&id), 2);
    world
        .behaviours
        .insert("migrate".into(), Behaviour::Exits(SECOND, 1));
    world.update(&migrate, |spec| spec.task.force_update += 1);
    image(&mut world, &id, "demo:2");
    world.advance(3 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
            1 n2 running/running demo:1
            2 n1 running/running demo:1
        "#]],
    );
    world
        .behaviours
        .insert("migrate".into(), Behaviour::Exits(SECOND, 0));
    world.advance(30 * SECOND);
    check(
        &world,
        &id,
        expect![[r#"
            1 n2 running/running demo:2
            2 n1 running/running demo:2
        "#]],
    );
    world.update(&migrate, |spec| spec.task.force_update += 1);
    world.behaviours.insert("migrate".into(), Behaviour::Hangs);
    image(&mut world, &id, "demo:3");
    world.settle();
    let version = world.service(&id).meta.version;
    world
        .user(|state, cx| control::rollback_service(state, cx, &id, version, None))
        .unwrap();
    world.advance(30 * SECOND);
    assert_eq!(
        update_status(&world, &id).unwrap().0,
        UpdateState::RollbackCompleted
    );
}

#[test]
fn an_optional_dependency_is_waited_for_so_long_and_not_at_all_if_it_is_absent() {
    let mut world = World::new(&["n1"]);
    let mut spec = web(vec![on("cache", DependencyCondition::Healthy, false)]);
    spec.depends_on_timeout = Some(20 * SECOND);
    let absent = world.create(spec.clone());
    world.settle();
    assert_eq!(world.running(&absent), 2);
    world.behaviours.insert("cache".into(), Behaviour::Starts);
    world.create(other("cache"));
    spec.annotations.name = "late".into();
    let late = world.create(spec);
    world.advance(19 * SECOND);
    assert_eq!(world.running(&late), 0);
    world.advance(SECOND);
    assert_eq!(world.running(&late), 2);
}
