//! What happens to the cluster's objects, as docker tells it.

use std::collections::BTreeMap;

use shoal_api::{
    NodeId, Timestamp,
    container::{Event, EventActor, EventKind},
    object::{Network, Node, NodeState, Service, Task, UpdateState},
    spec::{Annotations, Availability, NodeRole, ServiceMode},
};
use shoal_manager::core::state::{Delta, Event as Change};

/// The event of a change, if users are told of it (moby's `daemon/cluster/noderunner.go` and `daemon/events.go`). Events of
/// tasks are an extension: one for each state that is written down.
pub(super) fn event(change: &Change, now: Timestamp) -> Option<Event> {
    let (kind, id, action, attributes) = match change {
        Change::Service(delta) => {
            let action = action(delta, |service| {
                (service.spec.clone(), update_state(service))
            })?;
            let id = delta.any().id.to_string();
            (EventKind::Service, id, action, service(delta))
        }
        Change::Node(delta) => {
            let action = action(delta, |node| {
                let leads = node.manager.as_ref().map(|manager| manager.raft_id);
                (node.spec.clone(), node.status.state, node.role, leads)
            })?;
            (
                EventKind::Node,
                delta.any().id.to_string(),
                action,
                node(delta),
            )
        }
        Change::Secret(delta) => {
            let action = action(delta, |secret| secret.spec.annotations.clone())?;
            let secret = delta.any();
            let names = named(&secret.spec.annotations);
            (EventKind::Secret, secret.id.to_string(), action, names)
        }
        Change::Config(delta) => {
            let action = action(delta, |config| config.spec.annotations.clone())?;
            let config = delta.any();
            let names = named(&config.spec.annotations);
            (EventKind::Config, config.id.to_string(), action, names)
        }
        Change::Network(delta) => {
            let action = action(delta, |network| network.spec.clone())?;
            let network: &Network = delta.any();
            let mut names = named(&network.spec.annotations);
            names.insert("type".to_owned(), network.spec.driver.name.clone());
            (EventKind::Network, network.id.to_string(), action, names)
        }
        Change::Task(delta) => {
            let new = delta.new.as_ref()?;
            let changed = delta.changed(|task| task.status.state);
            let attributes = task(new);
            let action = new.status.state.to_string();
            changed.then_some(())?;
            return Some(Event {
                kind: EventKind::Task,
                action,
                actor: EventActor {
                    id: new.id.to_string(),
                    attributes,
                },
                time: now,
            });
        }
        Change::Cluster(_) => return None,
    };
    Some(Event {
        kind,
        action: action.to_owned(),
        actor: EventActor { id, attributes },
        time: now,
    })
}

/// `create`, `update` or `remove`; nothing if what users see of it is as it was.
fn action<T, F: PartialEq>(delta: &Delta<T>, seen: impl Fn(&T) -> F) -> Option<&'static str> {
    if delta.is_created() {
        Some("create")
    } else if delta.is_deleted() {
        Some("remove")
    } else {
        delta.changed(seen).then_some("update")
    }
}

fn named(annotations: &Annotations) -> BTreeMap<String, String> {
    BTreeMap::from([("name".to_owned(), annotations.name.clone())])
}

/// Notes what a field was and is, where that differs.
fn differs<T, F: ToString + PartialEq>(
    attributes: &mut BTreeMap<String, String>,
    delta: &Delta<T>,
    name: &str,
    of: impl Fn(&T) -> F,
) {
    if let (Some(old), Some(new)) = (&delta.old, &delta.new) {
        let (old, new) = (of(old), of(new));
        if old != new {
            attributes.insert(format!("{name}.old"), old.to_string());
            attributes.insert(format!("{name}.new"), new.to_string());
        }
    }
}

fn service(delta: &Delta<Service>) -> BTreeMap<String, String> {
    let mut out = named(&delta.any().spec.annotations);
    differs(&mut out, delta, "updatestate", update_state);
    differs(&mut out, delta, "replicas", |service| {
        match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            _ => 0,
        }
    });
    differs(&mut out, delta, "image", |service| {
        service.spec.task.container.image.clone()
    });
    out
}

fn update_state(service: &Service) -> &'static str {
    let state = service.update_status.as_ref().map(|status| status.state);
    match state {
        None => "",
        Some(UpdateState::Updating) => "updating",
        Some(UpdateState::Paused) => "paused",
        Some(UpdateState::Completed) => "completed",
        Some(UpdateState::RollbackStarted) => "rollback_started",
        Some(UpdateState::RollbackPaused) => "rollback_paused",
        Some(UpdateState::RollbackCompleted) => "rollback_completed",
    }
}

fn node(delta: &Delta<Node>) -> BTreeMap<String, String> {
    let node = delta.any();
    let name = if node.spec.annotations.name.is_empty() {
        node.description.hostname.clone()
    } else {
        node.spec.annotations.name.clone()
    };
    let mut out = BTreeMap::from([("name".to_owned(), name)]);
    differs(&mut out, delta, "state", |node| match node.status.state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    });
    differs(&mut out, delta, "availability", |node| {
        match node.spec.availability {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        }
    });
    differs(&mut out, delta, "role", |node| match node.role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    });
    out
}

fn task(task: &Task) -> BTreeMap<String, String> {
    let mut out = BTreeMap::from([
        ("name".to_owned(), task.name()),
        ("service.id".to_owned(), task.service.to_string()),
        ("service.name".to_owned(), task.service_name.to_string()),
        ("desired".to_owned(), task.desired_state.to_string()),
        ("message".to_owned(), task.status.message.to_string()),
    ]);
    let node = task.node.as_ref().map(NodeId::to_string);
    let container = task.status.container.as_ref();
    for (name, value) in [
        ("node.id", node),
        ("err", Some(task.status.err.to_string())),
        ("container.id", container.map(|it| it.container_id.clone())),
        (
            "exitCode",
            container
                .filter(|_| task.status.state.is_terminal())
                .map(|it| it.exit_code.to_string()),
        ),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            out.insert(name.to_owned(), value);
        }
    }
    out
}
