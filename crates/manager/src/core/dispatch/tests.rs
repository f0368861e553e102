//! Assignments, views, the order of removal, and verdicts on nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use shoal_api::{
    NodeId, ServiceId, TaskState, Timestamp,
    network::NetworkView,
    object::{NodeState, ObjectKey, Task, TaskStatus},
    spec::{
        Annotations, ConfigReference, ConfigSpec, FileTarget, NetworkAttachmentSpec, NetworkSpec,
        NetworkTarget, PortConfig, SecretReference, SecretSpec, ServiceMode,
    },
};

use super::*;
use crate::core::{
    control,
    fixture::{at, node_id, service},
    world::{Behaviour, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn annotations(name: &str) -> Annotations {
    Annotations {
        name: name.into(),
        ..Annotations::default()
    }
}

/// Three nodes and a published service of two tasks, on n1 and n2, in a network of its own.
fn published() -> (World, ServiceId) {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let spec = NetworkSpec {
        annotations: annotations("a"),
        ..NetworkSpec::default()
    };
    let key = world
        .user(|state, cx| control::create_network(state, cx, spec))
        .unwrap();
    let ObjectKey::Network(network) = key else {
        panic!("{key:?} is no network")
    };
    let mut spec = service("web", 2);
    spec.task.networks = vec![NetworkAttachmentSpec {
        target: NetworkTarget::Cluster(network),
        aliases: vec!["www".into()],
        addresses: Vec::new(),
        driver_options: Default::default(),
    }];
    spec.endpoint.ports = vec![PortConfig {
        target: 80,
        published: 8080,
        ..PortConfig::default()
    }];
    let id = world.create(spec);
    world.settle();
    (world, id)
}

fn view(world: &World, node: &str) -> Arc<NetworkView> {
    network_view(&world.state, &node_id(node))
}

fn serving(view: &NetworkView, network: &str) -> usize {
    let slice = view.networks.values().find(|slice| slice.name == network);
    slice.map_or(0, |slice| {
        slice
            .endpoints
            .values()
            .filter(|endpoint| endpoint.serving)
            .count()
    })
}

#[test]
fn a_node_sees_its_own_networks_and_always_ingress() {
    let (world, id) = published();
    let (first, third) = (view(&world, "n1"), view(&world, "n3"));
    let names = |view: &NetworkView| {
        view.networks
            .values()
            .map(|slice| slice.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&first).len(), names(&third)),
        (2, vec!["ingress".to_owned()])
    );
    assert_eq!((serving(&first, "a"), serving(&third, "ingress")), (2, 2));
    assert_eq!(first.peers.len(), 3);
    let own = first
        .networks
        .values()
        .find(|slice| slice.name == "a")
        .unwrap();
    let web = &own.services[&id];
    assert_eq!(
        (web.name.as_str(), web.aliases.as_slice()),
        ("web", &["www".to_owned()][..])
    );
    assert_eq!((web.vips.len(), web.ports.len()), (1, 0));
    let ingress = third.networks.values().next().unwrap();
    assert_eq!(ingress.services[&id].ports[0].published, 8080);
}

#[test]
fn the_same_state_makes_the_same_view_for_all() {
    let (world, _) = published();
    let slices = NetworkSlices::default();
    for node in ["n1", "n2", "n3"] {
        assert_eq!(
            slices.view(&world.state, &node_id(node)),
            view(&world, node)
        );
    }
}

#[test]
fn nodes_with_the_same_networks_share_a_view_which_outlives_a_state_that_does_not_change_it() {
    let (mut world, _) = published();
    let slices = NetworkSlices::default();
    let of =
        |slices: &NetworkSlices, world: &World, node| slices.view(&world.state, &node_id(node));
    let (first, third) = (of(&slices, &world, "n1"), of(&slices, &world, "n3"));
    assert!(Arc::ptr_eq(&first, &of(&slices, &world, "n2")));
    assert!(!Arc::ptr_eq(&first, &third), "n3 is in fewer networks");
    world.create(service("other", 0));
    let slices = slices.next();
    let later = of(&slices, &world, "n3");
    assert!(Arc::ptr_eq(&third, &later), "nothing was made anew");
    world.kill("n2");
    let slices = slices.next();
    let changed = of(&slices, &world, "n3");
    assert!(!Arc::ptr_eq(&third, &changed));
    assert!(changed.version > third.version);
}

#[test]
fn endpoints_on_a_lost_node_serve_no_more() {
    let (mut world, _) = published();
    world.kill("n2");
    assert_eq!(serving(&view(&world, "n3"), "ingress"), 1);
}

#[test]
fn a_task_is_stopped_only_after_every_node_has_dropped_it() {
    let (mut world, id) = published();
    world.deaf.push(node_id("n3"));
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 1 }
    });
    world.settle();
    assert_eq!(
        serving(&view(&world, "n3"), "ingress"),
        1,
        "the views drop it at once"
    );
    let task = world
        .state
        .tasks()
        .find(|task| task.desired_state == TaskState::Remove)
        .unwrap()
        .clone();
    assert_eq!(
        (task.status.state, task.drained),
        (TaskState::Running, false)
    );
    let told = assignment_set(&world.state, task.node.as_ref().unwrap()).tasks[&task.id].clone();
    assert_eq!(
        told.desired_state,
        TaskState::Running,
        "its agent does not know yet"
    );
    assert!(world.stopped.is_empty(), "n3 has not confirmed");
    world.advance(DRAIN_MAX - SECOND / 10);
    assert!(world.stopped.is_empty());
    world.advance(SECOND / 10);
    assert_eq!(
        world.stopped.len(),
        1,
        "one node must not hold up everything for ever"
    );
}

#[test]
fn a_stop_waits_from_when_the_leader_hears_of_it_however_long_its_disk_takes() {
    let (mut world, id) = published();
    world.deaf.push(node_id("n3"));
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 1 }
    });
    let ends = |task: &Arc<Task>| task.desired_state == TaskState::Remove;
    while !world.state.tasks().any(ends) {
        assert!(world.pass());
    }
    world.now = world.now + DRAIN_MAX; // until here nobody was told
    world.settle();
    assert!(world.stopped.is_empty());
    world.advance(DRAIN_MAX);
    assert_eq!(world.stopped.len(), 1);
}

#[test]
fn confirmed_removals_need_no_time() {
    let (mut world, id) = published();
    let now = world.now;
    world
        .user(|state, cx| control::remove_service(state, cx, &id))
        .unwrap();
    world.settle();
    assert_eq!((world.stopped.len(), world.now), (2, now));
    assert_eq!(world.state.tasks().count(), 0);
}

#[test]
fn a_drain_does_not_wait_for_lost_nodes() {
    let (mut world, id) = published();
    world.kill("n3");
    world.deaf.push(node_id("n3"));
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 1 }
    });
    world.settle();
    assert_eq!(world.stopped.len(), 1);
}

#[test]
fn secrets_and_configs_go_where_tasks_need_them_and_no_further() {
    let mut world = World::new(&["n1", "n2"]);
    let secret = SecretSpec {
        annotations: annotations("key"),
        data: b"s".to_vec(),
        templating: None,
    };
    let config = ConfigSpec {
        annotations: annotations("conf"),
        data: b"c".to_vec(),
        templating: None,
    };
    let ObjectKey::Secret(secret) = world
        .user(|state, cx| control::create_secret(state, cx, secret))
        .unwrap()
    else {
        panic!("no secret");
    };
    let ObjectKey::Config(config) = world
        .user(|state, cx| control::create_config(state, cx, config))
        .unwrap()
    else {
        panic!("no config");
    };
    let mut spec = service("web", 1);
    let target = |name: &str| FileTarget {
        name: name.into(),
        ..FileTarget::default()
    };
    spec.task.container.secrets = vec![SecretReference {
        id: secret.clone(),
        name: "key".into(),
        target: target("key"),
    }];
    spec.task.container.configs = vec![ConfigReference {
        id: config.clone(),
        name: "conf".into(),
        target: target("conf"),
    }];
    let id = world.create(spec);
    world.settle();
    let (first, second) = (
        assignment_set(&world.state, &node_id("n1")),
        assignment_set(&world.state, &node_id("n2")),
    );
    assert!(first.secrets.contains_key(&secret) && first.configs.contains_key(&config));
    assert!(second.secrets.is_empty() && second.configs.is_empty());
    let refused = world
        .user(|state, cx| control::remove_secret(state, cx, &secret))
        .unwrap_err();
    assert_eq!(
        refused.text,
        "secret 'key' is in use by the following service: web"
    );

    world
        .user(|state, cx| control::remove_service(state, cx, &id))
        .unwrap();
    world.settle();
    let after = assignment_set(&world.state, &node_id("n1"));
    let changes = diff(&first, &after);
    let kinds: Vec<_> = changes
        .iter()
        .map(|change| match change {
            AssignmentChange::RemoveTask(_) => "task",
            AssignmentChange::RemoveConfig(_) => "config",
            AssignmentChange::RemoveSecret(_) => "secret",
            _ => "put",
        })
        .collect();
    assert_eq!(
        kinds,
        ["task", "config", "secret"],
        "a task goes before what it uses"
    );
}

#[test]
fn what_an_agent_said_itself_is_not_told_back() {
    let (mut world, _) = published();
    let node = node_id("n1");
    let before = assignment_set(&world.state, &node);
    let id = before.tasks.keys().next().unwrap().clone();
    let report = TaskStatus {
        state: TaskState::Running,
        message: "healthy".into(),
        ..TaskStatus::default()
    };
    let batch = merge_reports(&world.state, &node, &[(id, report)], world.now).unwrap();
    world.apply(batch).unwrap();
    assert!(diff(&before, &assignment_set(&world.state, &node)).is_empty());
}

#[test]
fn reports_merge_by_the_greater_state() {
    let (world, id) = published();
    let task = world.runnable(&id).remove(0);
    let report = |state| TaskStatus {
        state,
        ..TaskStatus::default()
    };
    let merged = |state| merge_status(&task, &report(state), at(9)).map(|status| status.state);
    assert_eq!(
        merged(TaskState::Starting),
        None,
        "running tasks do not start again"
    );
    assert_eq!(merged(TaskState::Failed), Some(TaskState::Failed));
    assert_eq!(
        merged(TaskState::Orphaned),
        None,
        "only the manager says so"
    );
    let foreign = merge_reports(
        &world.state,
        &node_id("n3"),
        &[(task.id.clone(), report(TaskState::Failed))],
        at(9),
    );
    assert_eq!(foreign, None, "a node speaks for its own tasks");
    let both = [
        (task.id.clone(), report(TaskState::Complete)),
        (task.id.clone(), report(TaskState::Running)),
    ];
    let batch = merge_reports(&world.state, task.node.as_ref().unwrap(), &both, at(9)).unwrap();
    assert_eq!(batch.changes.len(), 1);
}

#[test]
fn times_of_a_node_with_a_wrong_clock_are_put_right() {
    let (world, id) = published();
    let mut task = world.runnable(&id).remove(0).as_ref().clone();
    task.status.state = TaskState::Preparing;
    task.status.running_since = None;
    let wrong = |seconds: u64| Timestamp(0) + Duration::from_secs(seconds);
    let report = TaskStatus {
        state: TaskState::Failed,
        at: wrong(100),
        running_since: Some(wrong(97)),
        ..TaskStatus::default()
    };
    let status = merge_status(&task, &report, at(50)).unwrap();
    assert_eq!((status.at, status.running_since), (at(50), Some(at(47))));
}

#[test]
fn acknowledgements_follow_states_in_which_a_view_stays_the_same() {
    let (mut world, _) = published();
    let node = node_id("n1");
    let mut views = Views::default();
    let refresh = |views: &mut Views, world: &World| {
        views.refresh(&view(world, "n1"), &node, world.state.index())
    };
    let first = refresh(&mut views, &world).unwrap();
    views.acknowledge(&node, first + 99);
    assert_eq!(
        views.acked()[&node],
        first,
        "nobody carries out what was not sent"
    );
    world.create(service("other", 0));
    assert_eq!(refresh(&mut views, &world), None);
    assert_eq!(views.acked()[&node], world.state.index());
    // Also when the acknowledgement comes only after the states.
    let web = world.state.services().next().unwrap().id.clone();
    world.update(&web, |spec| {
        spec.endpoint.ports[0].published = 8081;
    });
    world.settle();
    let second = refresh(&mut views, &world).unwrap();
    world.create(service("third", 0));
    assert_eq!(refresh(&mut views, &world), None);
    assert!(views.acked()[&node] < second);
    views.acknowledge(&node, second);
    assert_eq!(views.acked()[&node], world.state.index());
    views.forget(&node);
    assert!(refresh(&mut views, &world).is_some());
    assert_eq!(views.acked(), &BTreeMap::new());
}

#[test]
fn a_lost_node_s_tasks_are_orphaned_after_a_day() {
    let mut world = World::new(&["n1", "n2"]);
    let id = world.create(service("web", 2));
    world.settle();
    world.kill("n2");
    world.settle();
    let state = |world: &World| {
        let task = world.state.tasks_of_node(&node_id("n2")).next().unwrap();
        task.status.state
    };
    world.advance(ORPHAN_AFTER - SECOND);
    assert_eq!(state(&world), TaskState::Running, "it may well run");
    world.advance(SECOND);
    assert_eq!(state(&world), TaskState::Orphaned);
    assert_eq!(world.running(&id), 2);
}

/// Liveness with one node in session 1, opened at 0 s, with a period of 500 ms.
fn in_session() -> (Liveness, NodeId) {
    let world = World::new(&["n1"]);
    let mut liveness = Liveness::begin(&world.state, SECOND / 2, at(0));
    let node = node_id("n1");
    liveness.opened(node.clone(), 1, at(0));
    (liveness, node)
}

fn down(node: &NodeId, message: &'static str) -> Vec<Verdict> {
    vec![Verdict::Down {
        node: node.clone(),
        message,
    }]
}

/// The verdicts, each look taken when it is due.
fn given(liveness: &mut Liveness) -> Vec<Verdict> {
    let mut look = || {
        let due = liveness.next_deadline().unwrap();
        liveness.verdicts(due)
    };
    assert_eq!(look(), [], "the first look is no verdict");
    look()
}

#[test]
fn silence_is_a_verdict_within_two_and_a_half_seconds() {
    let (mut liveness, node) = in_session();
    assert!(liveness.heartbeat(&node, 1, at(1)));
    let first_look = liveness.next_deadline().unwrap();
    assert_eq!(liveness.verdicts(first_look - SECOND / 1000), []);
    assert_eq!(liveness.verdicts(first_look), []);
    let deadline = liveness.next_deadline().unwrap();
    assert!(
        deadline.since(at(1)) >= Duration::from_millis(1_500)
            && deadline.since(at(1)) <= Duration::from_millis(2_500)
    );
    assert_eq!(
        liveness.verdicts(deadline),
        down(&node, "heartbeat failure")
    );
    assert_eq!(liveness.next_deadline(), None, "a verdict is given once");
}

#[test]
fn a_closed_session_leaves_time_to_come_back() {
    let (mut liveness, node) = in_session();
    liveness.closed(&node, 1, at(0));
    assert_eq!(liveness.next_deadline(), Some(at(1)));
    liveness.opened(node.clone(), 2, at(0) + SECOND / 2);
    // What is heard late of the old session changes nothing.
    liveness.closed(&node, 1, at(1));
    assert!(!liveness.heartbeat(&node, 1, at(1)));
    assert_eq!(liveness.verdicts(at(1)), []);
    liveness.closed(&node, 2, at(1));
    assert_eq!(given(&mut liveness), down(&node, "session closed"));
}

#[test]
fn a_manager_that_stood_still_condemns_nobody() {
    let (mut liveness, node) = in_session();
    assert_eq!(
        liveness.verdicts(at(30)),
        [],
        "what was sent meanwhile is still to be read"
    );
    assert!(liveness.heartbeat(&node, 1, at(30)));
    assert_eq!(given(&mut liveness).len(), 1);
}

#[test]
fn what_was_sent_while_the_manager_stood_still_for_a_moment_is_heard_before_the_verdict() {
    let (mut liveness, node) = in_session();
    let late = liveness.next_deadline().unwrap() + SECOND / 5;
    assert_eq!(
        liveness.verdicts(late),
        [],
        "too short a stall to be told from a busy machine"
    );
    assert!(liveness.heartbeat(&node, 1, late + SECOND / 100));
    let later = late + SECOND;
    assert_eq!(liveness.verdicts(later), []);
    assert!(liveness.next_deadline().unwrap() > later);
}

#[test]
fn a_new_leader_waits_for_the_nodes_to_find_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.kill("n2");
    let mut liveness = Liveness::begin(&world.state, SECOND / 2, at(0));
    assert_eq!(liveness.next_deadline(), Some(at(5)));
    assert_eq!(
        given(&mut liveness),
        down(&node_id("n1"), "session closed"),
        "n2 is known to be down"
    );
}

#[test]
fn what_is_known_of_a_node_is_not_written_again() {
    let mut world = World::new(&["n1"]);
    let node = world.state.node(&node_id("n1")).unwrap().clone();
    assert_eq!(
        node_seen(
            &world.state,
            &node.id,
            &node.description,
            node.status.addr,
            at(3)
        ),
        None
    );
    let verdict = node_verdict(
        &world.state,
        &node.id,
        NodeState::Down,
        "session closed",
        at(3),
    )
    .unwrap();
    world.apply(verdict).unwrap();
    let after = world.state.node(&node.id).unwrap();
    assert_eq!(
        (after.status.state, after.status.since),
        (NodeState::Down, at(3))
    );
    assert_eq!(
        node_verdict(&world.state, &node.id, NodeState::Down, "again", at(4)),
        None
    );
}

/// A task that was just assigned, with its node.
fn assigned() -> (World, shoal_api::TaskId, NodeId) {
    let mut world = World::new(&["n1"]);
    world.behaviours.insert("demo:1".into(), Behaviour::Hangs);
    let id = world.create(service("web", 1));
    world.settle();
    let task = world.runnable(&id).remove(0);
    (world, task.id.clone(), node_id("n1"))
}

fn report(state: TaskState) -> TaskStatus {
    TaskStatus {
        state,
        ..TaskStatus::default()
    }
}

#[test]
fn states_that_a_task_passes_through_are_kept_and_not_written() {
    let (mut world, id, node) = assigned();
    let mut passing = Passing::default();
    let say = |passing: &mut Passing, world: &World, state| {
        passing.merge(&world.state, &node, &[(id.clone(), report(state))], at(1))
    };
    for state in [TaskState::Ready, TaskState::Starting, TaskState::Ready] {
        assert_eq!(say(&mut passing, &world, state), None, "{state}");
    }
    let task = world.state.task(&id).unwrap().clone();
    let now = seen(&task, passing.statuses().get(&id));
    assert_eq!(
        now.state,
        TaskState::Starting,
        "what comes late is not older news"
    );
    let mut waits = Task::clone(&task);
    waits.status.err = "waiting for db".into();
    for (state, err) in [
        (TaskState::Ready, "waiting for db"),
        (TaskState::Starting, ""),
    ] {
        assert_eq!(seen(&waits, Some(&report(state))).err, err, "{state}");
    }

    let batch = say(&mut passing, &world, TaskState::Running).unwrap();
    let before = world.state.index();
    world.apply(batch).unwrap();
    assert_eq!(world.state.index(), before + 1);
    passing.settle_all(&world.state);
    assert!(
        passing.statuses().is_empty(),
        "overtaken by what is written"
    );
    let task = world.state.task(&id).unwrap();
    assert_eq!(seen(task, None).state, TaskState::Running);
}

#[test]
fn what_something_is_decided_by_is_written() {
    let (world, id, node) = assigned();
    let mut passing = Passing::default();
    let mut is_written = |world: &World, status: TaskStatus| {
        let reports = [(id.clone(), status)];
        passing
            .merge(&world.state, &node, &reports, at(1))
            .is_some()
    };
    let failing = TaskStatus {
        err: "no such image".into(),
        ..report(TaskState::Preparing)
    };
    assert!(is_written(&world, failing), "why it gets no further");
    assert!(!is_written(&world, report(TaskState::Starting)));
    let started = TaskStatus {
        container: Some(Box::default()),
        ..report(TaskState::Starting)
    };
    assert!(
        is_written(&world, started),
        "another service may wait for its start"
    );
}
