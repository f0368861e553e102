//! One rule of `apply` per test: what is refused, and that a refusal leaves no trace.

use std::sync::Arc;

use shoal_api::{
    Actor, TaskState,
    object::{Batch, Change, Expect, Object, ObjectKey, Task, Wish},
    spec::{ServiceMode, TaskSpec},
};

use shoal_api::spec::NetworkTarget;

use super::*;
use crate::core::{
    audit::audit,
    control,
    fixture::{at, node_id, service},
    world::World,
};

fn batch(actor: Actor, changes: Vec<Change>) -> Batch {
    Batch {
        actor,
        at: at(1),
        changes,
        wish: None,
    }
}

fn put(object: Object) -> Change {
    let expect = match object.meta().version {
        0 => Expect::Absent,
        version => Expect::Version(version),
    };
    Change::Put {
        object: Box::new(object),
        expect,
    }
}

/// A cluster with one service of one running task.
fn world() -> (World, Task) {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    world.settle();
    let task = world
        .state
        .tasks_of_service(&id)
        .next()
        .unwrap()
        .as_ref()
        .clone();
    (world, task)
}

/// Applies one change, alone and behind a good one, and returns the refusal; the state must be as before, with what is
/// derived from it.
fn refused(world: &World, actor: Actor, change: Change) -> String {
    let ok = Change::Put {
        object: Box::new(Object::Secret(Secret {
            id: "s1".parse().unwrap(),
            meta: Default::default(),
            spec: Default::default(),
        })),
        expect: Expect::Absent,
    };
    let alone = apply_refused(world, actor, vec![change.clone()]);
    if actor == Actor::User {
        assert_eq!(apply_refused(world, actor, vec![ok, change]), alone);
    }
    alone
}

fn apply_refused(world: &World, actor: Actor, changes: Vec<Change>) -> String {
    let (mut state, mut before) = (world.state.clone(), world.state.clone());
    let index = state.index() + 1;
    let rejected = state.apply(index, &batch(actor, changes)).unwrap_err();
    before.index = index;
    assert!(state.is_same(&before), "a refused batch leaves no trace");
    assert_eq!(state.time, before.time);
    rejected.to_string()
}

#[test]
fn a_wish_is_granted_once() {
    let (world, _) = world();
    let mut state = world.state.clone();
    let secret = |id: &str| Secret {
        id: id.parse().unwrap(),
        meta: Default::default(),
        spec: Default::default(),
    };
    let mut grant = |id: &str, since| {
        let object = Object::Secret(secret(id));
        let wish = Wish {
            id: 7,
            about: object.key(),
            since,
        };
        let batch = Batch {
            wish: Some(wish),
            ..batch(Actor::User, vec![put(object)])
        };
        state.apply(state.index() + 1, &batch).map(drop)
    };
    let begun = world.state.index();
    assert_eq!(grant("s1", None), Ok(()));
    let about = ObjectKey::Secret("s1".parse().unwrap());
    let granted = Err(Rejected::Granted { about });
    assert_eq!(grant("s2", Some(begun)), granted);
    assert_eq!(grant("s2", None), granted);
    assert_eq!(state.secrets().count(), 1);
    assert_eq!(audit(&state), Vec::<String>::new());
}

#[test]
fn a_change_of_an_old_version_is_refused() {
    let (world, mut task) = world();
    task.meta.version -= 1;
    task.desired_state = TaskState::Shutdown;
    assert_eq!(
        refused(&world, Actor::Orchestrator, put(Object::Task(task))),
        "update out of sequence"
    );
}

#[test]
fn a_field_is_changed_by_its_owner_alone() {
    let (world, task) = world();
    let check = |actor, change: fn(&mut Task), field: &str| {
        let mut changed = task.clone();
        change(&mut changed);
        let refusal = refused(&world, actor, put(Object::Task(changed)));
        assert_eq!(
            refusal,
            format!("{actor:?} may not change {field} of Task({:?})", task.id)
        );
    };
    check(
        Actor::User,
        |task| task.desired_state = TaskState::Shutdown,
        "desired_state",
    );
    check(Actor::Agent, |task| task.drained = true, "drained");
    check(
        Actor::Scheduler,
        |task| task.node = Some(node_id("n9")),
        "node",
    );
    check(
        Actor::Orchestrator,
        |task| task.status.state = TaskState::Failed,
        "status",
    );
    check(
        Actor::Agent,
        |task| task.status.state = TaskState::Starting,
        "status",
    );
    check(
        Actor::Orchestrator,
        |task| task.desired_state = TaskState::Ready,
        "desired_state (lowered)",
    );
    check(
        Actor::Orchestrator,
        |task| task.spec = Arc::new(TaskSpec::default()),
        "spec",
    );
    check(
        Actor::Orchestrator,
        |task| {
            task.networks = [shoal_api::object::TaskAttachment {
                network: "net".parse().unwrap(),
                addresses: Vec::new(),
                aliases: Vec::new(),
            }]
            .into();
        },
        "networks",
    );
}

#[test]
fn only_an_automatic_rollback_changes_a_spec_without_its_user() {
    let (mut world, task) = world();
    world.update(&task.service, |spec| {
        "demo:2".clone_into(&mut spec.task.container.image)
    });
    let service = world.service(&task.service).as_ref().clone();
    let mut other = service.clone();
    other.spec = Arc::new(crate::core::fixture::service("web", 9));
    let refusal = refused(&world, Actor::Orchestrator, put(Object::Service(other)));
    assert_eq!(
        refusal,
        format!(
            "Orchestrator may not change spec of Service({:?})",
            task.service
        )
    );
}

#[test]
fn one_spec_version_has_one_spec() {
    let (world, task) = world();
    let mut service = world.service(&task.service).as_ref().clone();
    let mut spec = service.spec.as_ref().clone();
    "demo:2".clone_into(&mut spec.task.container.image);
    service.spec = Arc::new(spec);
    let refusal = refused(&world, Actor::User, put(Object::Service(service)));
    assert!(
        refusal.ends_with("one spec version has two specs"),
        "{refusal}"
    );
}

#[test]
fn names_are_unique_per_kind() {
    let (world, task) = world();
    let mut twin = world.service(&task.service).as_ref().clone();
    twin.id = "twin".parse().unwrap();
    twin.meta = Default::default();
    twin.endpoint = None;
    let refusal = refused(&world, Actor::User, put(Object::Service(twin)));
    assert_eq!(
        refusal,
        format!(
            "the service name web is taken by Service({:?})",
            task.service
        )
    );
}

#[test]
fn what_is_in_use_is_not_deleted_and_what_is_missing_is_not_used() {
    let (mut world, task) = world();
    let network = world.state.ingress_network().unwrap().clone();
    world.update(&task.service, |spec| {
        spec.endpoint.ports = vec![shoal_api::spec::PortConfig {
            target: 80,
            ..Default::default()
        }];
    });
    world.settle();
    let delete = Change::Delete {
        key: ObjectKey::Network(network.id.clone()),
        expect: Expect::Version(network.meta.version),
    };
    let refusal = refused(&world, Actor::User, delete);
    assert_eq!(
        refusal,
        format!("network {} is in use by service web", network.id)
    );

    let mut service = world.service(&task.service).as_ref().clone();
    let mut spec = service.spec.as_ref().clone();
    spec.task.networks = vec![shoal_api::spec::NetworkAttachmentSpec {
        target: NetworkTarget::Cluster("nowhere".parse().unwrap()),
        aliases: Vec::new(),
        addresses: Vec::new(),
        driver_options: Default::default(),
    }];
    service.spec = Arc::new(spec);
    service.spec_version = service.meta.version;
    let refusal = refused(&world, Actor::User, put(Object::Service(service)));
    assert_eq!(refusal, "network nowhere not found");
}

#[test]
fn a_task_of_a_service_that_is_gone_is_not_made() {
    let (mut world, mut task) = world();
    world
        .user(|state, cx| control::remove_service(state, cx, &task.service))
        .unwrap();
    world.settle();
    task.id = "late".parse().unwrap();
    task.meta = Default::default();
    task.status = Default::default();
    task.node = None;
    let refusal = refused(&world, Actor::Orchestrator, put(Object::Task(task)));
    assert!(refusal.ends_with("its service does not exist"), "{refusal}");
}

#[test]
fn siblings_share_one_spec_also_after_a_snapshot() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 3));
    world.settle();
    let objects = world.state.snapshot();
    // As if each of them had been read from a file.
    let apart = objects.into_iter().map(|object| match object {
        Object::Task(mut task) => {
            task.spec = Arc::new(task.spec.as_ref().clone());
            Object::Task(task)
        }
        other => other,
    });
    let restored = State::restore(world.state.index(), apart.collect()).unwrap();
    assert!(restored.is_same(&world.state));
    let specs: Vec<_> = restored
        .tasks_of_service(&id)
        .map(|task| task.spec.clone())
        .collect();
    assert!(specs.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    assert!(Arc::ptr_eq(restored.task_spec(&id, 0).unwrap(), &specs[0]));
}

#[test]
fn times_and_versions_come_from_the_log() {
    let (mut world, task) = world();
    let before = world.service(&task.service);
    world.now = at(77);
    world.update(&task.service, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 2 }
    });
    let after = world.service(&task.service);
    assert_eq!(
        (after.meta.created_at, after.meta.updated_at),
        (before.meta.created_at, at(77))
    );
    assert_eq!(after.meta.version, world.state.index());
    assert_eq!(
        after.spec_version, before.spec_version,
        "the task part is the same"
    );
}
