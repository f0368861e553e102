//! What agents are sent: each stream is taken from what its agent holds to what the state wants it to hold.

use std::collections::BTreeSet;

use shoal_api::{
    NodeId, TaskState,
    object::{Task, TaskAttachment},
    wire,
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Command, Dispatcher};
use crate::core::{
    dispatch::{AssignmentChange, AssignmentSet, NetworkSlices, assignment_set_with, diff},
    state::Event,
};

/// A place in an agent's stream.
pub(super) type Place = mpsc::OwnedPermit<Result<wire::AssignmentsMessage, Status>>;

/// Where an agent is.
pub(super) struct Stream {
    sender: mpsc::Sender<Result<wire::AssignmentsMessage, Status>>,
    held: AssignmentSet,
    /// Number of messages sent; the next one applies to this.
    count: u64,
    /// Whether something may have to be sent.
    pub(super) is_dirty: bool,
    /// Whether a place was asked for and is not there yet.
    pub(super) is_busy: bool,
}

impl Dispatcher<'_> {
    pub(super) fn subscribe(
        &mut self,
        node: &NodeId,
        session: u64,
    ) -> Result<mpsc::Receiver<Result<wire::AssignmentsMessage, Status>>, Status> {
        // One message may wait while another is on its way; beyond that changes gather in the state.
        let (sender, receiver) = mpsc::channel(1);
        self.session(node, session)?.stream = Some(Stream {
            sender,
            held: AssignmentSet::default(),
            count: 0,
            is_dirty: true,
            is_busy: false,
        });
        self.views.forget(node);
        Ok(receiver)
    }

    /// Takes every agent to where the state is, as far as their streams have room.
    pub(super) fn send_assignments(&mut self) {
        let is_waiting = |stream: &Stream| stream.is_dirty && !stream.is_busy;
        let waiting: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.stream.as_ref().is_some_and(is_waiting))
            .map(|(node, _)| node.clone())
            .collect();
        if waiting.is_empty() {
            return;
        }
        // What nodes of a network have in common is computed once for all of them.
        let slices = NetworkSlices::default();
        for node in waiting {
            let Some(session) = self.sessions.get_mut(&node) else {
                continue;
            };
            let Some(stream) = &mut session.stream else {
                continue;
            };
            match stream.sender.clone().try_reserve_owned() {
                Ok(place) => self.send_to(&node, place, &slices),
                Err(_) => {
                    stream.is_busy = true;
                    let (sender, commands, session) =
                        (stream.sender.clone(), self.commands.clone(), session.id);
                    tokio::spawn(async move {
                        if let Ok(place) = sender.reserve_owned().await
                            && let Some(commands) = commands.upgrade()
                        {
                            let _ = commands
                                .send(Command::Room {
                                    node,
                                    session,
                                    place,
                                })
                                .await; // no longer leading
                        }
                    });
                }
            }
        }
    }

    pub(super) fn send_to(&mut self, node: &NodeId, place: Place, slices: &NetworkSlices) {
        let Some(session) = self.sessions.get_mut(node) else {
            return;
        };
        let Some(stream) = &mut session.stream else {
            return;
        };
        stream.is_dirty = false;
        let set = assignment_set_with(&self.state, node, slices);
        let view = self.views.refresh(&set.view, node);
        let changes = diff(&stream.held, &set);
        let is_first = stream.count == 0;
        if is_first || !changes.is_empty() || view.is_some() {
            let version = |count: u64| {
                if count == 0 {
                    String::new()
                } else {
                    format!("{}.{count}", session.id)
                }
            };
            let message = wire::AssignmentsMessage {
                r#type: if is_first {
                    wire::assignments_message::Type::Complete.into()
                } else {
                    wire::assignments_message::Type::Incremental.into()
                },
                applies_to: version(stream.count),
                results_in: version(stream.count + 1),
                changes: changes.iter().map(to_wire).collect(),
                view: view.as_ref().map(Into::into),
            };
            stream.count += 1;
            place.send(Ok(message));
        }
        stream.held = set;
        self.tell_acknowledged();
    }
}

/// Whose assignments may differ after a batch.
pub(super) enum Touched {
    Everyone,
    Nodes(BTreeSet<NodeId>),
}

impl Touched {
    pub(super) fn by(events: &[Event]) -> Self {
        let mut nodes = BTreeSet::new();
        for event in events {
            match event {
                // What others see of a task: where it is, its addresses, its names, whether it serves.
                Event::Task(delta) if !delta.changed(as_endpoint) => {
                    nodes.extend(
                        [&delta.old, &delta.new]
                            .into_iter()
                            .flatten()
                            .filter_map(|task| task.node.clone()),
                    );
                }
                _ => return Self::Everyone,
            }
        }
        Self::Nodes(nodes)
    }

    pub(super) fn contains(&self, node: &NodeId) -> bool {
        match self {
            Self::Everyone => true,
            Self::Nodes(nodes) => nodes.contains(node),
        }
    }
}

type AsEndpoint = Option<(Option<NodeId>, Vec<TaskAttachment>, Option<String>, bool)>;

fn as_endpoint(task: &Task) -> AsEndpoint {
    let is_live = (TaskState::Assigned..=TaskState::Running).contains(&task.status.state);
    let serves =
        task.status.state == TaskState::Running && task.desired_state <= TaskState::Complete;
    let container = task
        .status
        .container
        .as_ref()
        .map(|container| container.container_id.clone());
    is_live.then(|| (task.node.clone(), task.networks.clone(), container, serves))
}

fn to_wire(change: &AssignmentChange) -> wire::AssignmentChange {
    use wire::assignment_change::{Action, Item};
    let id = |id: &str| id.to_owned();
    let (action, item) = match change {
        AssignmentChange::PutSecret(secret) => {
            (Action::Update, Item::Secret(secret.as_ref().into()))
        }
        AssignmentChange::PutConfig(config) => {
            (Action::Update, Item::Config(config.as_ref().into()))
        }
        AssignmentChange::PutTask(task) => (Action::Update, Item::Task(task.as_ref().into())),
        AssignmentChange::RemoveTask(task) => (
            Action::Remove,
            Item::Task(wire::Task {
                id: id(task.as_str()),
                ..Default::default()
            }),
        ),
        AssignmentChange::RemoveConfig(config) => (
            Action::Remove,
            Item::Config(wire::Config {
                id: id(config.as_str()),
                ..Default::default()
            }),
        ),
        AssignmentChange::RemoveSecret(secret) => (
            Action::Remove,
            Item::Secret(wire::Secret {
                id: id(secret.as_str()),
                ..Default::default()
            }),
        ),
    };
    wire::AssignmentChange {
        action: action.into(),
        item: Some(item),
    }
}
