//! What agents are sent: each stream is taken from what its agent holds to what the state wants it to hold.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use shoal_api::{
    NodeId, TaskState,
    object::{Task, TaskAttachment},
    wire,
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Command, Dispatcher};
use crate::core::{
    dispatch::{AssignmentSet, assignment_set_with, diff},
    state::Event,
};

/// Positions of an agent that are remembered: where it is if the last message has arrived, and if it has not.
const POSITIONS_MAX: usize = 2;

/// A place in an agent's stream.
pub(super) type Place = mpsc::OwnedPermit<Result<wire::AssignmentsMessage, Status>>;

/// The way to an agent, as long as its session lasts.
pub(super) struct Stream {
    sender: mpsc::Sender<Result<wire::AssignmentsMessage, Status>>,
    /// Whether something may have to be sent.
    pub(super) is_dirty: bool,
    /// Whether a place was asked for and is not there yet.
    pub(super) is_busy: bool,
}

/// Where an agent is: what it holds, under the version that it was told. Outlives its session, so that the next one goes on
/// from there.
#[derive(Default)]
pub(super) struct Cursor {
    /// The newest last.
    positions: VecDeque<Position>,
}

struct Position {
    version: String,
    held: AssignmentSet,
    /// Version under which it was sent the view that it holds.
    view_version: u64,
}

impl Cursor {
    /// Goes back to where an agent says that it is; whether that is known.
    fn rewind(&mut self, version: &str) -> bool {
        let is_there = |position: &Position| position.version == version;
        let known = self.positions.iter().position(is_there);
        self.positions.truncate(known.map_or(0, |place| place + 1));
        known.is_some()
    }

    fn advance(&mut self, position: Position) {
        self.positions.push_back(position);
        if self.positions.len() > POSITIONS_MAX {
            self.positions.pop_front();
        }
    }
}

impl Dispatcher<'_> {
    pub(super) fn subscribe(
        &mut self,
        node: &NodeId,
        session: u64,
    ) -> Result<mpsc::Receiver<Result<wire::AssignmentsMessage, Status>>, Status> {
        // One message may wait while another is on its way; beyond that changes gather in the state.
        let (sender, receiver) = mpsc::channel(1);
        let open = self.session(node, session)?;
        open.stream = Some(Stream {
            sender,
            is_dirty: true,
            is_busy: false,
        });
        let holds = std::mem::take(&mut open.holds);
        self.views.forget(node);
        let cursor = self.cursors.entry(node.clone()).or_default();
        if cursor.rewind(&holds)
            && let Some(position) = cursor.positions.back()
        {
            let view = position.held.view.clone();
            self.views.resume(node, view, position.view_version);
            tracing::debug!(node.id = %node, version = holds, "an agent goes on where it was");
        }
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
        self.encoded.begin_round();
        for node in waiting {
            let Some(session) = self.sessions.get_mut(&node) else {
                continue;
            };
            let Some(stream) = &mut session.stream else {
                continue;
            };
            match stream.sender.clone().try_reserve_owned() {
                Ok(place) => self.send_to(&node, place),
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

    pub(super) fn send_to(&mut self, node: &NodeId, place: Place) {
        let Some(session) = self.sessions.get_mut(node) else {
            return;
        };
        let Some(stream) = &mut session.stream else {
            return;
        };
        stream.is_dirty = false;
        let index = self.state.index();
        let set = assignment_set_with(&self.state, node, &self.slices);
        let view = self.views.refresh(&set.view, node, index);
        self.is_acknowledged_told = false;
        let cursor = self.cursors.entry(node.clone()).or_default();
        let before = cursor.positions.back_mut();
        let held = before.as_ref().filter(|_| session.takes_view_changes);
        let held = held.map(|position| Arc::clone(&position.held.view));
        let changes = match &before {
            Some(position) => diff(&position.held, &set),
            None => diff(&AssignmentSet::default(), &set),
        };
        let applies_to = match before {
            // Where there is nothing to say the agent stays where it is.
            Some(position) if changes.is_empty() && view.is_none() => {
                position.held = set;
                return;
            }
            Some(position) => position.version.clone(),
            None => String::new(),
        };
        // What is new in a view, for agents that understand it; all of it where nothing is known to be held.
        let (whole, change) = match (view, held) {
            (None, _) => (None, None),
            (Some(_), None) => (Some(self.encoded.view(&set.view)), None),
            (Some(_), Some(held)) => (None, Some(self.encoded.view_change(&held, &set.view))),
        };
        session.sent += 1;
        let version = format!("{}.{}", session.id, session.sent);
        let is_first = cursor.positions.is_empty();
        let message = wire::AssignmentsMessage {
            r#type: if is_first {
                wire::assignments_message::Type::Complete.into()
            } else {
                wire::assignments_message::Type::Incremental.into()
            },
            applies_to,
            results_in: version.clone(),
            changes: changes.iter().map(|c| self.encoded.change(c)).collect(),
            view: whole,
            view_change: change,
            view_version: view.unwrap_or_default(),
        };
        cursor.advance(Position {
            version,
            held: set,
            view_version: self.views.version_sent(node).unwrap_or(index),
        });
        place.send(Ok(message));
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

type AsEndpoint = Option<(Option<NodeId>, Box<[TaskAttachment]>, Option<String>, bool)>;

fn as_endpoint(task: &Task) -> AsEndpoint {
    let is_live = (TaskState::Assigned..=TaskState::Running).contains(&task.status.state);
    let serves =
        task.status.state == TaskState::Running && task.desired_state <= TaskState::Complete;
    let container = task
        .status
        .container
        .as_ref()
        .map(|container| container.container_id.clone());
    // What is in no network is nobody's neighbour.
    let is_seen = is_live && !task.networks.is_empty();
    is_seen.then(|| (task.node.clone(), task.networks.clone(), container, serves))
}
