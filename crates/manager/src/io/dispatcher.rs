//! The leader's side of all sessions: who is there, what each node has to carry out, what it says of its tasks.
//!
//! One task owns it all and is told by the RPCs through a channel. It keeps a cursor per agent, not a queue: while an
//! agent's stream is busy, changes gather in the state, and the next message takes the agent from where it is to where
//! the state is then. What is to be written down is proposed in rounds, one at a time, and judged anew for each.

mod assignments;
mod encoded;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use shoal_api::{
    NodeId, TaskId, Timestamp,
    object::{Batch, NodeDescription, NodeState, TaskStatus},
    wire,
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use assignments::{Cursor, Place, Stream, Touched};
use encoded::Encoded;

use super::{control_loop::Acknowledged, manager::Desk, raft::ProposeError, store::Notice};
use crate::core::{
    dispatch::{Liveness, NetworkSlices, Verdict, Views, node_seen, node_verdict},
    state::{Event, State},
};

/// RPCs that may wait for the dispatcher.
pub(crate) const COMMANDS_MAX: usize = 4096;
/// Commands taken at once before looking at the state again.
const COMMANDS_PER_ROUND_MAX: usize = 1024;

/// What the RPCs ask of the dispatcher. `node` is the one in the caller's certificate.
pub(crate) enum Command {
    Open {
        node: NodeId,
        description: Box<NodeDescription>,
        address: IpAddr,
        /// Version of the assignments that the agent holds, empty for none.
        holds: String,
        /// Whether it can be told what has changed in a view, rather than all of it.
        takes_view_changes: bool,
        reply: oneshot::Sender<Result<Opened, Status>>,
    },
    Heartbeat {
        node: NodeId,
        session: u64,
        reply: oneshot::Sender<Result<Duration, Status>>,
    },
    /// The node says something else of itself.
    Describe {
        node: NodeId,
        session: u64,
        description: Box<NodeDescription>,
        address: IpAddr,
        reply: oneshot::Sender<Result<(), Status>>,
    },
    Assignments {
        node: NodeId,
        session: u64,
        reply: oneshot::Sender<
            Result<mpsc::Receiver<Result<wire::AssignmentsMessage, Status>>, Status>,
        >,
    },
    Report {
        node: NodeId,
        session: u64,
        statuses: Vec<(TaskId, TaskStatus)>,
        reply: oneshot::Sender<Result<(), Status>>,
    },
    AcknowledgeView {
        node: NodeId,
        session: u64,
        version: u64,
        reply: oneshot::Sender<Result<(), Status>>,
    },
    Closed {
        node: NodeId,
        session: u64,
    },
    /// The node's stream has room for another message.
    Room {
        node: NodeId,
        session: u64,
        place: Place,
    },
}

/// A session that was opened.
pub(crate) struct Opened {
    pub(crate) session: u64,
    /// What the agent must know of the cluster; ends when the session does.
    pub(crate) messages: watch::Receiver<wire::SessionMessage>,
}

struct Session {
    id: u64,
    messages: watch::Sender<wire::SessionMessage>,
    stream: Option<Stream>,
    /// Version of the assignments that the agent held when it opened the session.
    holds: String,
    /// Whether the agent can be told what has changed in a view, rather than all of it.
    takes_view_changes: bool,
    /// Messages of assignments sent in this session.
    sent: u64,
}

struct Report {
    node: NodeId,
    statuses: Vec<(TaskId, TaskStatus)>,
    reply: oneshot::Sender<Result<(), Status>>,
}

struct Dispatcher<'a> {
    desk: &'a Desk,
    commands: mpsc::WeakSender<Command>,
    state: State,
    sessions: BTreeMap<NodeId, Session>,
    next_session: u64,
    liveness: Liveness,
    views: Views,
    /// What nodes of the same networks are told, at the state.
    slices: NetworkSlices,
    /// Where each agent is that this manager has had a session with.
    cursors: BTreeMap<NodeId, Cursor>,
    encoded: Encoded,
    acknowledged: watch::Sender<Acknowledged>,
    is_acknowledged_told: bool,
    /// What sessions said of their nodes and is not yet in the state.
    seen: BTreeMap<NodeId, (NodeDescription, IpAddr)>,
    /// Verdicts that are not yet in the state.
    condemned: BTreeMap<NodeId, &'static str>,
    reports: Vec<Report>,
}

/// What a batch was made of, and what became of it.
type Written = Vec<(Observed, Result<(), ProposeError>)>;

/// Something to be written down.
enum Observed {
    Seen(NodeId),
    Condemned(NodeId),
    Reports(Vec<Report>),
}

/// Serves sessions for as long as this manager leads.
pub(crate) async fn run(
    desk: &Desk,
    mut inbox: mpsc::Receiver<Command>,
    commands: mpsc::WeakSender<Command>,
    acknowledged: watch::Sender<Acknowledged>,
) {
    let mut watch = desk.store.watch();
    let state = desk.store.state();
    // What an earlier leader was told, agents tell again.
    desk.passing.clear();
    let mut members = desk.store.raft().members();
    let liveness = Liveness::begin(&state, heartbeat_period(&state), Timestamp::now());
    let mut dispatcher = Dispatcher {
        desk,
        commands,
        state,
        sessions: BTreeMap::new(),
        // Sessions of an earlier leadership must not be taken for ours.
        next_session: u64::from_le_bytes(random()) >> 1,
        liveness,
        views: Views::default(),
        slices: NetworkSlices::default(),
        cursors: BTreeMap::new(),
        encoded: Encoded::default(),
        acknowledged,
        is_acknowledged_told: true,
        seen: BTreeMap::new(),
        condemned: BTreeMap::new(),
        reports: Vec::new(),
    };
    let mut writing: Option<BoxFuture<'_, Written>> = None;
    let mut inputs = Vec::with_capacity(COMMANDS_PER_ROUND_MAX);
    loop {
        if writing.is_none() {
            writing = dispatcher.next_writes();
        }
        dispatcher.send_assignments();
        dispatcher.tell_acknowledged();
        let deadline = dispatcher.liveness.next_deadline();
        let due = async {
            match deadline {
                // The moment at which a silent node is given up, if it stays silent.
                Some(at) => tokio::time::sleep(at.since(Timestamp::now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            count = inbox.recv_many(&mut inputs, COMMANDS_PER_ROUND_MAX) => {
                if count == 0 {
                    return;
                }
                for command in inputs.drain(..) {
                    dispatcher.handle(command);
                }
            }
            notice = watch.next() => {
                dispatcher.take_note(&notice);
                while let Some(notice) = watch.try_next() {
                    dispatcher.take_note(&notice);
                }
            }
            written = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                writing = None;
                // What the round wrote is in the state now, and must be seen before the next one is judged.
                while let Some(notice) = watch.try_next() {
                    dispatcher.take_note(&notice);
                }
                if !dispatcher.settle(written) {
                    return;
                }
            }
            Ok(()) = members.changed() => dispatcher.tell_everyone(),
            () = due => dispatcher.judge(),
        }
    }
}

impl Dispatcher<'_> {
    fn handle(&mut self, command: Command) {
        let now = Timestamp::now();
        // Whoever asked may be gone; its session will be closed.
        match command {
            Command::Open {
                node,
                description,
                address,
                holds,
                takes_view_changes,
                reply,
            } => {
                let holds = (holds, takes_view_changes);
                drop(reply.send(self.open(node, *description, address, holds, now)));
            }
            Command::Heartbeat {
                node,
                session,
                reply,
            } => {
                let answer = if self.liveness.heartbeat(&node, session, now) {
                    Ok(heartbeat_period(&self.state))
                } else {
                    Err(no_session())
                };
                drop(reply.send(answer));
            }
            Command::Describe {
                node,
                session,
                description,
                address,
                reply,
            } => {
                let answer = self.session(&node, session).map(drop);
                if answer.is_ok() {
                    self.seen.insert(node, (*description, address));
                }
                drop(reply.send(answer));
            }
            Command::Assignments {
                node,
                session,
                reply,
            } => drop(reply.send(self.subscribe(&node, session))),
            Command::Report {
                node,
                session,
                statuses,
                reply,
            } => match self.session(&node, session) {
                Ok(_) => self.reports.push(Report {
                    node,
                    statuses,
                    reply,
                }),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::AcknowledgeView {
                node,
                session,
                version,
                reply,
            } => {
                let answer = self.session(&node, session).map(drop);
                if answer.is_ok() {
                    self.views.acknowledge(&node, version);
                    self.is_acknowledged_told = false;
                }
                drop(reply.send(answer));
            }
            Command::Closed { node, session } => {
                self.liveness.closed(&node, session, now);
                if self.session(&node, session).is_ok() {
                    tracing::info!(node.id = %node, "a session was closed");
                    self.drop_session(&node);
                }
            }
            Command::Room {
                node,
                session,
                place,
            } => {
                if let Ok(Session {
                    stream: Some(stream),
                    ..
                }) = self.session(&node, session)
                {
                    stream.is_busy = false;
                    self.send_to(&node, place);
                }
            }
        }
    }

    fn open(
        &mut self,
        node: NodeId,
        description: NodeDescription,
        address: IpAddr,
        (holds, takes_view_changes): (String, bool),
        now: Timestamp,
    ) -> Result<Opened, Status> {
        if self.state.node(&node).is_none() {
            return Err(Status::permission_denied(format!(
                "node {node} is not part of the cluster"
            )));
        }
        self.drop_session(&node);
        self.next_session += 1;
        let id = self.next_session;
        self.liveness.opened(node.clone(), id, now);
        self.condemned.remove(&node);
        self.seen.insert(node.clone(), (description, address));
        let (messages, receiver) = watch::channel(self.message_for(&node, id));
        self.sessions.insert(
            node.clone(),
            Session {
                id,
                messages,
                stream: None,
                holds,
                takes_view_changes,
                sent: 0,
            },
        );
        tracing::info!(node.id = %node, session.id = id, peer = %address, "a session was opened");
        Ok(Opened {
            session: id,
            messages: receiver,
        })
    }

    fn session(&mut self, node: &NodeId, session: u64) -> Result<&mut Session, Status> {
        self.sessions
            .get_mut(node)
            .filter(|open| open.id == session)
            .ok_or_else(no_session)
    }

    fn drop_session(&mut self, node: &NodeId) {
        self.sessions.remove(node);
        self.views.forget(node);
        self.is_acknowledged_told = false;
    }

    fn message_for(&self, node: &NodeId, session: u64) -> wire::SessionMessage {
        let state = &self.state;
        wire::SessionMessage {
            session_id: session.to_string(),
            node: state.node(node).map(|node| node.as_ref().into()),
            managers: self.desk.manager_addresses(),
            leader: self.desk.own_address(),
            heartbeat_period_ms: u64::try_from(heartbeat_period(state).as_millis())
                .unwrap_or(u64::MAX),
            root_pem: state
                .cluster()
                .map(|cluster| cluster.root_ca_cert.clone())
                .unwrap_or_default(),
            incoming_root_pem: state
                .cluster()
                .and_then(|cluster| Some(cluster.root_rotation.as_ref()?.ca_cert.clone()))
                .unwrap_or_default(),
        }
    }

    fn tell_everyone(&mut self) {
        self.sessions.keys().for_each(|node| self.tell(node));
    }

    fn tell(&self, node: &NodeId) {
        let Some(session) = self.sessions.get(node) else {
            return;
        };
        let message = self.message_for(node, session.id);
        session.messages.send_if_modified(|told| {
            let is_news = *told != message;
            *told = message;
            is_news
        });
    }

    fn tell_acknowledged(&mut self) {
        if std::mem::replace(&mut self.is_acknowledged_told, true) {
            return;
        }
        let acked = self.views.acked();
        self.acknowledged.send_if_modified(|told| {
            let is_news = **told != *acked;
            if is_news {
                *told = Arc::new(acked.clone());
            }
            is_news
        });
    }

    fn take_note(&mut self, notice: &Notice) {
        let Some(state) = notice.state() else {
            return;
        };
        self.state = state.clone();
        self.slices = std::mem::take(&mut self.slices).next();
        let touched = match notice {
            Notice::Everything { .. } => Touched::Everyone,
            Notice::Applied { events, .. } | Notice::Made(events) => Touched::by(events),
        };
        for (node, session) in &mut self.sessions {
            if let Some(stream) = &mut session.stream {
                stream.is_dirty |= touched.contains(node);
            }
        }
        let events = match notice {
            Notice::Everything { state } => {
                self.desk.passing.lock().settle_all(state);
                self.tell_everyone();
                return;
            }
            Notice::Applied { state, events } => {
                self.desk.passing.lock().settle(state, events);
                self.desk.passing.tell();
                events
            }
            Notice::Made(events) => events,
        };
        for event in events.iter() {
            match event {
                Event::Cluster(_) => {
                    self.liveness.set_period(heartbeat_period(&self.state));
                    self.tell_everyone();
                }
                Event::Node(delta) if delta.is_deleted() => {
                    let node = delta.any().id.clone();
                    self.drop_session(&node);
                    self.cursors.remove(&node);
                    self.liveness.forget(&node);
                    self.seen.remove(&node);
                    self.condemned.remove(&node);
                }
                // Where managers are reached is told with the membership.
                Event::Node(delta) => self.tell(&delta.any().id),
                _ => {}
            }
        }
    }

    fn judge(&mut self) {
        for Verdict::Down { node, message } in self.liveness.verdicts(Timestamp::now()) {
            tracing::warn!(node.id = %node, "{message}: the node is down");
            self.drop_session(&node);
            self.seen.remove(&node);
            self.condemned.insert(node, message);
        }
    }

    /// Everything that is to be written down now, as one round.
    fn next_writes<'a>(&mut self) -> Option<BoxFuture<'a, Written>>
    where
        Self: 'a,
    {
        let now = Timestamp::now();
        let state = &self.state;
        let mut batches: Vec<(Observed, Batch)> = Vec::new();
        self.seen.retain(|node, (description, address)| {
            let batch = node_seen(state, node, description, Some(*address), now);
            let is_news = batch.is_some();
            batches.extend(batch.map(|batch| (Observed::Seen(node.clone()), batch)));
            is_news
        });
        self.condemned.retain(|node, message| {
            let batch = node_verdict(state, node, NodeState::Down, message, now);
            let is_news = batch.is_some();
            batches.extend(batch.map(|batch| (Observed::Condemned(node.clone()), batch)));
            is_news
        });
        let mut passing = self.desk.passing.lock();
        let mut by_node: BTreeMap<NodeId, Vec<Report>> = BTreeMap::new();
        for report in self.reports.drain(..) {
            by_node.entry(report.node.clone()).or_default().push(report);
        }
        for (node, reports) in by_node {
            let statuses: Vec<_> = reports
                .iter()
                .flat_map(|report| report.statuses.iter().cloned())
                .collect();
            match passing.merge(state, &node, &statuses, now) {
                Some(batch) => batches.push((Observed::Reports(reports), batch)),
                // No news to the cluster: delivered all the same.
                None => answer(reports, &Ok(())),
            }
        }
        drop(passing);
        self.desk.passing.tell();
        if batches.is_empty() {
            return None;
        }
        let store = self.desk.store.clone();
        let round = async move {
            let outcomes = join_all(batches.iter().map(|(_, batch)| store.propose(batch))).await;
            let observed = batches.into_iter().map(|(observed, _)| observed);
            observed
                .zip(outcomes.into_iter().map(|outcome| outcome.map(|_| ())))
                .collect()
        };
        Some(round.boxed())
    }

    /// Takes in what became of a round; whether this manager still leads.
    fn settle(&mut self, written: Written) -> bool {
        let mut leads = true;
        for (observed, outcome) in written {
            match (observed, outcome) {
                (Observed::Reports(reports), Ok(())) => answer(reports, &Ok(())),
                // Judged anew with the next round, where what is known is no news.
                (Observed::Seen(_) | Observed::Condemned(_), Ok(())) => {}
                (observed, Err(ProposeError::Rejected(rejected))) => {
                    let is_stale = rejected.is_stale();
                    if !is_stale {
                        tracing::error!(%rejected, "an observation breaks the rules of the state");
                    }
                    match observed {
                        Observed::Reports(reports) if is_stale => self.reports.extend(reports),
                        Observed::Reports(reports) => {
                            answer(reports, &Err(Status::aborted(rejected.to_string())))
                        }
                        Observed::Seen(node) if !is_stale => {
                            self.seen.remove(&node);
                        }
                        Observed::Condemned(node) if !is_stale => {
                            self.condemned.remove(&node);
                        }
                        Observed::Seen(_) | Observed::Condemned(_) => {}
                    }
                }
                (observed, Err(error)) => {
                    leads = false;
                    if let Observed::Reports(reports) = observed {
                        answer(reports, &Err(self.desk.status_of(error)));
                    }
                }
            }
        }
        leads
    }
}

fn answer(reports: Vec<Report>, outcome: &Result<(), Status>) {
    for report in reports {
        drop(report.reply.send(outcome.clone())); // the agent may be gone
    }
}

fn heartbeat_period(state: &State) -> Duration {
    state.cluster().map_or(Duration::from_secs(1), |cluster| {
        cluster.spec.heartbeat_period
    })
}

fn no_session() -> Status {
    Status::not_found("there is no such session")
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes after boot");
    bytes
}
