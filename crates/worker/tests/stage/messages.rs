//! What a manager of the stage sends: tasks and secrets, all of them or what has changed.

use super::*;

/// A task of the service `web`.
pub(crate) fn task(id: &str, state: TaskState, desired: TaskState) -> Task {
    Task {
        id: id.parse().expect("an id"),
        meta: Meta::default(),
        service: "web".parse().expect("an id"),
        slot: 1,
        node: Some("node1".parse().expect("an id")),
        spec_version: 1,
        spec: Arc::new(TaskSpec::default()),
        service_name: "web".into(),
        service_labels: Default::default(),
        desired_state: desired,
        status: TaskStatus {
            state,
            ..TaskStatus::default()
        },
        networks: Box::default(),
        ports: Box::default(),
        attempts: 0,
        start_after: None,
        job_iteration: None,
        drained: false,
        assigned: None,
    }
}

pub(crate) fn task_with_secret(id: &str, secret: &str) -> Task {
    let mut spec = TaskSpec::default();
    let id_of_secret = secret.parse().expect("an id");
    spec.container.secrets = vec![SecretReference {
        id: id_of_secret,
        name: "key".to_owned(),
        target: Default::default(),
    }];
    Task {
        spec: Arc::new(spec),
        ..task(id, TaskState::Assigned, TaskState::Running)
    }
}

pub(crate) fn complete(
    results_in: &str,
    view: Option<&NetworkView>,
    tasks: &[Task],
) -> AssignmentsMessage {
    let mut message = incremental("", results_in, view, tasks);
    message.set_type(assignments_message::Type::Complete);
    message
}

pub(crate) fn incremental(
    applies_to: &str,
    results_in: &str,
    view: Option<&NetworkView>,
    tasks: &[Task],
) -> AssignmentsMessage {
    let items = tasks
        .iter()
        .map(|task| assignment_change::Item::Task(task.into()));
    message(
        applies_to,
        results_in,
        view,
        assignment_change::Action::Update,
        items.collect(),
    )
}

pub(crate) fn secret(
    applies_to: &str,
    results_in: &str,
    id: &str,
    content: &str,
) -> AssignmentsMessage {
    let spec = SecretSpec {
        data: content.as_bytes().to_vec(),
        ..SecretSpec::default()
    };
    let secret = Secret {
        id: id.parse().expect("an id"),
        meta: Meta::default(),
        spec,
    };
    let items = vec![assignment_change::Item::Secret((&secret).into())];
    message(
        applies_to,
        results_in,
        None,
        assignment_change::Action::Update,
        items,
    )
}

pub(crate) fn remove(applies_to: &str, results_in: &str, id: &str) -> AssignmentsMessage {
    let items = vec![assignment_change::Item::Task(wire::Task {
        id: id.to_owned(),
        ..Default::default()
    })];
    message(
        applies_to,
        results_in,
        None,
        assignment_change::Action::Remove,
        items,
    )
}

fn message(
    applies_to: &str,
    results_in: &str,
    view: Option<&NetworkView>,
    action: assignment_change::Action,
    items: Vec<assignment_change::Item>,
) -> AssignmentsMessage {
    let change = |item| {
        wire::encode_change(&AssignmentChange {
            action: action.into(),
            item: Some(item),
        })
    };
    AssignmentsMessage {
        r#type: assignments_message::Type::Incremental.into(),
        applies_to: applies_to.to_owned(),
        results_in: results_in.to_owned(),
        changes: items.into_iter().map(change).collect(),
        view: view.map(wire::encode_view),
        view_version: view.map_or(0, |view| view.version),
        view_change: None,
    }
}
