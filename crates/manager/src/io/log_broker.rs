//! Brings the output of tasks from the agents that have it to those who want to read it, on the leader.
//!
//! Everybody looks at one table of subscriptions and at nothing else: a subscription keeps in it which nodes it counts
//! on, the stream to an agent compares it with what the agent was told, a publication finds in it where its lines go.
//! Lines pass through channels of few places, so a slow reader slows the agents and nothing piles up here.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use futures_util::StreamExt;
use shoal_api::{
    IdSource, NodeId, RandomIds,
    id::{InvalidId, base36},
    object::Task,
    wire::{LogMessage, LogOptions, LogSelector, SubscribeLogsRequest, SubscriptionMessage},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::{
    grpc::client,
    manager::{Desk, LogStream},
    store::{Notice, Watch},
};
use crate::core::{
    logs::LogScope,
    state::{Event, State},
};

/// Lines that wait for a slow reader, per node.
const LINES_MAX: usize = 64;

/// What goes to a reader.
type Line = Result<LogMessage, Status>;

/// The subscriptions of this manager. Empty unless it leads.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogBroker {
    table: Arc<watch::Sender<BTreeMap<String, Subscription>>>,
}

#[derive(Debug)]
struct Subscription {
    wanted: Wanted,
    shares: BTreeMap<NodeId, Share>,
    /// Publications so far.
    count: u64,
}

/// What a reader asked for.
#[derive(Debug, Clone)]
struct Wanted {
    scope: LogScope,
    /// The scope as agents are told.
    selector: LogSelector,
    options: LogOptions,
}

/// A node's part in a subscription.
#[derive(Debug)]
enum Share {
    /// More may come.
    Open {
        lines: mpsc::Sender<LogMessage>,
        /// The publication in force and its number; the next one takes its place.
        publication: Option<(u64, DropGuard)>,
        from: Resume,
    },
    /// Everything came.
    Over,
    /// The node went away; something may be missing. If it comes back, this is where it goes on.
    Lost(Resume),
}

/// Where in its lines a node is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// Where the reader said.
    Asked,
    /// At the beginning: all of it is new to the reader.
    Start,
    /// After the newest line that came, of this time.
    After(i64),
}

impl Resume {
    fn apply(self, options: &mut LogOptions) {
        match self {
            Self::Asked => {}
            Self::Start => options.tail = -1,
            Self::After(last) => (options.tail, options.since) = (-1, last + 1),
        }
    }
}

impl Share {
    fn open(lines: mpsc::Sender<LogMessage>, from: Resume) -> Self {
        Self::Open {
            lines,
            publication: None,
            from,
        }
    }

    /// Number of the publication in force.
    fn publication(&self) -> Option<u64> {
        match self {
            Self::Open { publication, .. } => publication.as_ref().map(|(number, _)| *number),
            Self::Over | Self::Lost(_) => None,
        }
    }
}

impl LogBroker {
    /// Tells an agent which output is wanted of it, until nobody listens.
    pub(crate) async fn tell(
        &self,
        node: &NodeId,
        agent: &mpsc::Sender<Result<SubscriptionMessage, Status>>,
    ) {
        let mut table = self.table.subscribe();
        let mut told = BTreeSet::new();
        loop {
            let news = news_for(node, &table.borrow_and_update(), &mut told);
            for message in news {
                if agent.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = table.changed() => {} // the sender lives as long as we do
                () = agent.closed() => return,
            }
        }
    }

    /// A node begins to publish.
    pub(crate) fn publication(&self, id: &str, node: &NodeId) -> Result<Publication, Status> {
        let mut answer = Err(Status::not_found("nobody reads these logs"));
        self.table.send_if_modified(|table| {
            let Some(subscription) = table.get_mut(id) else {
                return false;
            };
            let Some(share) = subscription.shares.get_mut(node) else {
                answer = Err(Status::permission_denied(
                    "these logs were not asked of this node",
                ));
                return false;
            };
            let Share::Open {
                lines, publication, ..
            } = share
            else {
                return false;
            };
            if publication.is_some() && !subscription.wanted.options.follow {
                // An agent that begins again after it broke off; what came already cannot be told from what is to come.
                *share = Share::Lost(Resume::Asked);
                return true;
            }
            subscription.count += 1;
            let number = subscription.count;
            let stopped = CancellationToken::new();
            answer = Ok(Publication {
                broker: self.clone(),
                id: id.to_owned(),
                node: node.clone(),
                number,
                scope: subscription.wanted.scope.clone(),
                lines: lines.clone(),
                stopped: stopped.clone(),
                is_whole: false,
            });
            *publication = Some((number, stopped.drop_guard()));
            false
        });
        answer
    }

    fn register(&self, wanted: &Wanted, shares: BTreeMap<NodeId, Share>) -> Registration {
        let id = base36(RandomIds.next_bits());
        let subscription = Subscription {
            wanted: wanted.clone(),
            shares,
            count: 0,
        };
        self.table
            .send_modify(|table| drop(table.insert(id.clone(), subscription)));
        Registration {
            broker: self.clone(),
            id,
        }
    }
}

/// What an agent has to be told, given what it was told.
fn news_for(
    node: &NodeId,
    table: &BTreeMap<String, Subscription>,
    told: &mut BTreeSet<String>,
) -> Vec<SubscriptionMessage> {
    let wanted: BTreeMap<&String, (&Subscription, Resume)> = table
        .iter()
        .filter_map(|(id, subscription)| match subscription.shares.get(node) {
            Some(Share::Open { from, .. }) => Some((id, (subscription, *from))),
            Some(Share::Over | Share::Lost(_)) | None => None,
        })
        .collect();
    let over = told.iter().filter(|id| !wanted.contains_key(id));
    let mut news: Vec<_> = over
        .map(|id| SubscriptionMessage {
            id: id.clone(),
            close: true,
            ..SubscriptionMessage::default()
        })
        .collect();
    for (id, (subscription, from)) in &wanted {
        if told.contains(*id) {
            continue;
        }
        let mut options = subscription.wanted.options;
        from.apply(&mut options);
        news.push(SubscriptionMessage {
            id: (*id).clone(),
            selector: Some(subscription.wanted.selector.clone()),
            options: Some(options),
            close: false,
            exec: None,
        });
    }
    *told = wanted.into_keys().cloned().collect();
    news
}

/// A node's lines on their way to a reader.
#[derive(Debug)]
pub(crate) struct Publication {
    broker: LogBroker,
    id: String,
    node: NodeId,
    number: u64,
    scope: LogScope,
    lines: mpsc::Sender<LogMessage>,
    stopped: CancellationToken,
    is_whole: bool,
}

impl Publication {
    /// The subscription.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Ends when nobody wants more of it.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Takes lines from the node and brings them to the reader, waiting until he takes them. False when he is gone.
    pub(crate) async fn forward(&self, messages: Vec<LogMessage>, state: &State) -> bool {
        let newest = messages.iter().map(|message| message.timestamp).max();
        for mut message in messages {
            // What has no task any more was in flight when it went; of other nodes' tasks this one knows nothing.
            let task = message.task_id.parse().ok().and_then(|id| state.task(&id));
            let is_asked = |task: &&Arc<Task>| {
                task.node.as_ref() == Some(&self.node) && self.scope.covers(task)
            };
            let Some(task) = task.filter(is_asked) else {
                continue;
            };
            self.node.as_str().clone_into(&mut message.node_id);
            task.service.as_str().clone_into(&mut message.service_id);
            let sent = tokio::select! {
                biased;
                () = self.stopped.cancelled() => return false,
                sent = self.lines.send(message) => sent,
            };
            if sent.is_err() {
                return false;
            }
        }
        self.change_share(|share, _| {
            if let (Share::Open { from, .. }, Some(newest)) = (share, newest) {
                *from = match *from {
                    Resume::After(last) => Resume::After(last.max(newest)),
                    Resume::Asked | Resume::Start => Resume::After(newest),
                };
            }
            false
        });
        true
    }

    /// The node has nothing more.
    pub(crate) fn complete(&mut self) {
        self.is_whole = true;
    }

    /// Changes the share if this publication still is the one in force. `change` says whether others must look; it is told
    /// whether the reader follows.
    fn change_share(&self, change: impl FnOnce(&mut Share, bool) -> bool) {
        self.broker.table.send_if_modified(|table| {
            let Some(subscription) = table.get_mut(&self.id) else {
                return false;
            };
            let follow = subscription.wanted.options.follow;
            match subscription.shares.get_mut(&self.node) {
                Some(share) if share.publication() == Some(self.number) => change(share, follow),
                _ => false,
            }
        });
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.change_share(|share, follow| {
            *share = match (self.is_whole, follow) {
                (true, _) => Share::Over,
                (false, false) => Share::Lost(Resume::Asked),
                // Who follows waits for the node to come back.
                (false, true) => return false,
            };
            true
        });
    }
}

/// A subscription in the table; dropping it takes it out, and all agents are told.
struct Registration {
    broker: LogBroker,
    id: String,
}

impl Registration {
    /// Gives up on nodes that went away and, if there is a `place` for their lines, counts on nodes that have come; those
    /// that are `new` begin there.
    fn count_on(
        &self,
        nodes: &BTreeMap<NodeId, bool>,
        place: Option<&mpsc::Sender<LogMessage>>,
        new: Resume,
    ) {
        let is_there = |node: &NodeId| nodes.get(node).copied().unwrap_or(false);
        self.broker.table.send_if_modified(|table| {
            let Some(Subscription { shares, .. }) = table.get_mut(&self.id) else {
                return false;
            };
            let mut is_changed = false;
            for (node, share) in shares.iter_mut() {
                if let Share::Open { from, .. } = share
                    && !is_there(node)
                {
                    *share = Share::Lost(*from);
                    is_changed = true;
                }
            }
            let Some(place) = place else {
                return is_changed;
            };
            for node in nodes.keys() {
                let share = shares.get(node);
                let from = match share {
                    Some(Share::Lost(from)) => *from,
                    None => new,
                    Some(Share::Open { .. } | Share::Over) => continue,
                };
                if is_there(node) {
                    shares.insert(node.clone(), Share::open(place.clone(), from));
                    is_changed = true;
                } else {
                    shares.insert(node.clone(), Share::Lost(from));
                }
            }
            is_changed
        });
    }

    /// The nodes of which something may be missing.
    fn lost(&self) -> Vec<NodeId> {
        let table = self.broker.table.borrow();
        let shares = table
            .get(&self.id)
            .into_iter()
            .flat_map(|subscription| &subscription.shares);
        let lost = shares.filter(|(_, share)| matches!(share, Share::Lost(_)));
        lost.map(|(node, _)| node.clone()).collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.broker
            .table
            .send_if_modified(|table| table.remove(&self.id).is_some());
    }
}

impl Desk {
    /// Subscribes to output. The reader gets what there is in the order of time, or with `follow` everything as it comes.
    ///
    /// # Errors
    /// This manager does not lead. When it ceases to, that is the last the reader gets.
    pub(crate) async fn read_logs(
        &self,
        request: SubscribeLogsRequest,
    ) -> Result<LogStream, Status> {
        let selector = request.selector.unwrap_or_default();
        let wanted = Wanted {
            scope: scope(&selector).map_err(|error| Status::invalid_argument(error.to_string()))?,
            selector,
            options: request.options.unwrap_or_default(),
        };
        self.require_leader().await?;
        let mut leadership = self.store.raft().leadership();
        let term = leadership.borrow().term;
        let state = self.store.latest().await;
        let state = state.map_err(|error| self.status_of(error))?;
        let (reader, lines) = mpsc::channel(LINES_MAX);
        let desk = self.clone();
        tokio::spawn(async move {
            let reading = async {
                if wanted.options.follow {
                    follow(&desk, &wanted, state, &reader).await;
                } else {
                    read(&desk, &wanted, state, &reader).await;
                }
            };
            let dethroned = async {
                drop(
                    leadership
                        .wait_for(|now| !now.is_leader || now.term != term)
                        .await,
                );
            };
            tokio::select! {
                () = reading => {}
                () = reader.closed() => {}
                () = dethroned => {
                    let lost = client::not_leader(desk.leader_address().as_deref());
                    let _ = reader.send(Err(lost)).await; // whoever reads may have gone too
                }
            }
        });
        Ok(ReceiverStream::new(lines).boxed())
    }
}

/// Brings what there is now, in the order of time. Each node's lines are in that order already.
async fn read(desk: &Desk, wanted: &Wanted, mut state: State, reader: &mpsc::Sender<Line>) {
    let mut watch = desk.store.watch();
    let (mut shares, mut sources) = (BTreeMap::new(), Vec::new());
    for (node, is_there) in wanted.scope.nodes(&state) {
        let share = if is_there {
            let (sender, source) = mpsc::channel(LINES_MAX);
            sources.push(source);
            Share::open(sender, Resume::Asked)
        } else {
            Share::Lost(Resume::Asked)
        };
        shares.insert(node, share);
    }
    let registration = desk.logs.register(wanted, shares);
    let supervising = async {
        loop {
            state = next_state(&mut watch).await;
            registration.count_on(&wanted.scope.nodes(&state), None, Resume::Asked);
        }
    };
    let merging = async {
        let mut heads = BTreeMap::new();
        for (place, source) in sources.iter_mut().enumerate() {
            if let Some(line) = source.recv().await {
                heads.insert((line.timestamp, place), line);
            }
        }
        while let Some(((_, place), line)) = heads.pop_first() {
            if reader.send(Ok(line)).await.is_err() {
                return;
            }
            if let Some(line) = sources[place].recv().await {
                heads.insert((line.timestamp, place), line);
            }
        }
    };
    tokio::select! {
        () = supervising => {}
        () = merging => {}
    }
    let lost = registration.lost();
    if !lost.is_empty() {
        let lost: Vec<_> = lost
            .iter()
            .map(|node| format!("node {node} is not available"))
            .collect();
        // SwarmKit's words (`manager/logbroker`).
        let warning = Status::unknown(format!(
            "warning: incomplete log stream. some logs could not be retrieved for the following reasons: {}",
            lost.join(", ")
        ));
        let _ = reader.send(Err(warning)).await; // whoever reads may have gone
    }
}

/// Brings what there is and what comes. Ends when nothing can come any more.
async fn follow(desk: &Desk, wanted: &Wanted, mut state: State, reader: &mpsc::Sender<Line>) {
    let mut watch = desk.store.watch();
    let (sender, mut lines) = mpsc::channel(LINES_MAX);
    let registration = desk.logs.register(wanted, BTreeMap::new());
    let supervising = async {
        let (mut place, mut new) = (Some(sender), Resume::Asked);
        loop {
            registration.count_on(&wanted.scope.nodes(&state), place.as_ref(), new);
            new = Resume::Start;
            if !wanted.scope.may_go_on(&state) {
                place = None;
            }
            state = next_state(&mut watch).await;
        }
    };
    let forwarding = async {
        let mut batch = Vec::with_capacity(LINES_MAX);
        while lines.recv_many(&mut batch, LINES_MAX).await > 0 {
            batch.sort_by_key(|line: &LogMessage| line.timestamp);
            for line in mem::take(&mut batch) {
                if reader.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = supervising => {}
        () = forwarding => {}
    }
}

/// Waits until something changes that logs depend on.
async fn next_state(watch: &mut Watch) -> State {
    loop {
        match watch.next().await {
            Notice::Everything { state } => return state,
            Notice::Made(_) => {}
            Notice::Applied { state, events } => {
                let matters = |event: &Event| {
                    matches!(event, Event::Node(_) | Event::Service(_) | Event::Task(_))
                };
                if events.iter().any(matters) {
                    return state;
                }
            }
        }
    }
}

/// Reads a selector.
fn scope(selector: &LogSelector) -> Result<LogScope, InvalidId> {
    Ok(LogScope {
        services: selector
            .service_ids
            .iter()
            .map(|id| id.parse())
            .collect::<Result<_, _>>()?,
        tasks: selector
            .task_ids
            .iter()
            .map(|id| id.parse())
            .collect::<Result<_, _>>()?,
    })
}
