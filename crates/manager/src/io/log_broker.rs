//! Logs of tasks, from the nodes where they run to whoever asked. Lives in the leader's memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use futures_util::Stream;
use shoal_api::{
    NodeId, TaskState,
    object::Task,
    wire::{LogMessage, LogOptions, LogSelector, SubscribeLogsRequest, SubscriptionMessage},
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::store::{Store, Watch};
use crate::core::state::State;

/// Lines on their way to a subscriber; beyond it the nodes wait.
const LINES_AHEAD: usize = 512;
/// Subscriptions that a node may be behind; one that is further behind is taken for gone.
const SUBSCRIPTIONS_AHEAD: usize = 1024;

/// Who wants logs, and who has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogBroker {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    subscriptions: BTreeMap<u64, Subscription>,
    listeners: BTreeMap<NodeId, Listener>,
}

#[derive(Debug)]
struct Subscription {
    selector: LogSelector,
    options: LogOptions,
    lines: mpsc::Sender<Result<LogMessage, Status>>,
    /// Nodes that were told of it.
    told: BTreeSet<NodeId>,
    /// Those of them that have not yet sent everything.
    unfinished: BTreeSet<NodeId>,
    /// Nodes that have some of the lines and cannot be asked.
    missing: BTreeSet<NodeId>,
    /// Ends whoever works for the subscription, with it.
    _alive: DropGuard,
}

#[derive(Debug)]
struct Listener {
    id: u64,
    orders: mpsc::Sender<Result<SubscriptionMessage, Status>>,
}

/// The lines of a subscription. Dropped, the nodes stop sending.
#[derive(Debug)]
pub(crate) struct Subscribed {
    broker: LogBroker,
    id: u64,
    lines: mpsc::Receiver<Result<LogMessage, Status>>,
}

/// A node that listens for subscriptions, until dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    broker: LogBroker,
    node: NodeId,
    id: u64,
}

impl LogBroker {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("nobody panics while holding the broker")
    }

    /// Asks all nodes with matching tasks for their logs. A subscription that follows also asks nodes that get matching
    /// tasks later.
    pub(crate) fn subscribe(&self, store: &Store, request: SubscribeLogsRequest) -> Subscribed {
        let watch = store.watch();
        let (lines, receiver) = mpsc::channel(LINES_AHEAD);
        let alive = CancellationToken::new();
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        let subscription = Subscription {
            selector: request.selector.unwrap_or_default(),
            options: request.options.unwrap_or_default(),
            lines,
            told: BTreeSet::new(),
            unfinished: BTreeSet::new(),
            missing: BTreeSet::new(),
            _alive: alive.clone().drop_guard(),
        };
        if subscription.options.follow {
            tokio::spawn(self.clone().keep_extending(id, watch, alive));
        }
        inner.subscriptions.insert(id, subscription);
        inner.extend(id, &store.state());
        inner.finish_if_done(id);
        Subscribed {
            broker: self.clone(),
            id,
            lines: receiver,
        }
    }

    async fn keep_extending(self, id: u64, mut watch: Watch, alive: CancellationToken) {
        loop {
            tokio::select! {
                () = alive.cancelled() => return,
                notice = watch.next() => self.lock().extend(id, notice.state()),
            }
        }
    }

    /// A node listens from now on.
    pub(crate) fn listen(
        &self,
        node: NodeId,
        state: &State,
    ) -> (
        Listening,
        mpsc::Receiver<Result<SubscriptionMessage, Status>>,
    ) {
        let (orders, receiver) = mpsc::channel(SUBSCRIPTIONS_AHEAD);
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        inner
            .listeners
            .insert(node.clone(), Listener { id, orders });
        let following: Vec<u64> = inner.subscriptions.keys().copied().collect();
        for subscription in following {
            if let Some(known) = inner.subscriptions.get_mut(&subscription) {
                known.told.remove(&node);
                if known.options.follow {
                    inner.extend(subscription, state);
                }
            }
        }
        (
            Listening {
                broker: self.clone(),
                node,
                id,
            },
            receiver,
        )
    }

    /// Where a node's lines for a subscription go; `None` if nobody wants them any more.
    pub(crate) fn lines(
        &self,
        id: u64,
        node: &NodeId,
    ) -> Option<(LogSelector, mpsc::Sender<Result<LogMessage, Status>>)> {
        let inner = self.lock();
        let subscription = inner
            .subscriptions
            .get(&id)
            .filter(|subscription| subscription.told.contains(node))?;
        Some((subscription.selector.clone(), subscription.lines.clone()))
    }

    /// A node has sent everything that it has.
    pub(crate) fn finished(&self, id: u64, node: &NodeId) {
        let mut inner = self.lock();
        if let Some(subscription) = inner.subscriptions.get_mut(&id) {
            subscription.unfinished.remove(node);
        }
        inner.finish_if_done(id);
    }

    /// Ends everything, because this manager leads no longer.
    pub(crate) fn clear(&self) {
        let mut inner = self.lock();
        inner.subscriptions.clear();
        inner.listeners.clear();
    }
}

impl Stream for Subscribed {
    type Item = Result<LogMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.lines.poll_recv(cx)
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        let mut inner = self.broker.lock();
        if let Some(subscription) = inner.subscriptions.remove(&self.id) {
            let close = SubscriptionMessage {
                id: self.id.to_string(),
                close: true,
                ..SubscriptionMessage::default()
            };
            for node in subscription.told {
                inner.order(&node, close.clone());
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut inner = self.broker.lock();
        if inner
            .listeners
            .get(&self.node)
            .is_none_or(|listener| listener.id != self.id)
        {
            return;
        }
        inner.listeners.remove(&self.node);
        let ids: Vec<u64> = inner.subscriptions.keys().copied().collect();
        for id in ids {
            if let Some(subscription) = inner.subscriptions.get_mut(&id)
                && subscription.unfinished.remove(&self.node)
            {
                subscription.missing.insert(self.node.clone());
            }
            inner.finish_if_done(id);
        }
    }
}

impl Inner {
    fn extend(&mut self, id: u64, state: &State) {
        let Some(subscription) = self.subscriptions.get(&id) else {
            return;
        };
        let order = SubscriptionMessage {
            id: id.to_string(),
            selector: Some(subscription.selector.clone()),
            options: Some(subscription.options),
            close: false,
        };
        let nodes: BTreeSet<NodeId> = selected(&subscription.selector, state)
            .filter(|task| task.status.state > TaskState::Assigned)
            .filter_map(|task| task.node.clone())
            .filter(|node| !subscription.told.contains(node))
            .collect();
        for node in nodes {
            let is_told = self.order(&node, order.clone());
            if let Some(subscription) = self.subscriptions.get_mut(&id) {
                if is_told {
                    subscription.told.insert(node.clone());
                    subscription.unfinished.insert(node);
                } else {
                    subscription.missing.insert(node);
                }
            }
        }
    }

    /// Tells a node; whether it listens.
    fn order(&mut self, node: &NodeId, order: SubscriptionMessage) -> bool {
        let Some(listener) = self.listeners.get(node) else {
            return false;
        };
        let is_told = listener.orders.try_send(Ok(order)).is_ok();
        if !is_told {
            self.listeners.remove(node);
        }
        is_told
    }

    /// Ends a subscription that does not follow once all nodes have answered, naming those that could not.
    fn finish_if_done(&mut self, id: u64) {
        let is_done = |subscription: &Subscription| {
            !subscription.options.follow && subscription.unfinished.is_empty()
        };
        if !self.subscriptions.get(&id).is_some_and(is_done) {
            return;
        }
        let Some(subscription) = self.subscriptions.remove(&id) else {
            return;
        };
        if subscription.missing.is_empty() {
            return;
        }
        let nodes: Vec<&str> = subscription.missing.iter().map(NodeId::as_str).collect();
        // SwarmKit's words (`manager/logbroker`).
        let warning = Status::unavailable(format!(
            "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node {} is \
             not available",
            nodes.join(", node ")
        ));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { subscription.lines.send(Err(warning)).await });
        }
    }
}

/// The tasks that a selector means, now.
fn selected<'a>(
    selector: &'a LogSelector,
    state: &'a State,
) -> impl Iterator<Item = &'a Arc<Task>> {
    // Ids that cannot be ids mean nothing.
    let services = selector
        .service_ids
        .iter()
        .filter_map(|id| state.service(&id.parse().ok()?));
    let of_services = services.flat_map(|service| state.tasks_of_service(&service.id));
    of_services.chain(
        selector
            .task_ids
            .iter()
            .filter_map(|id| state.task(&id.parse().ok()?)),
    )
}

/// Whether a selector means a task.
pub(crate) fn selects(selector: &LogSelector, task: &Task) -> bool {
    selector
        .service_ids
        .iter()
        .any(|id| id == task.service.as_str())
        || selector.task_ids.iter().any(|id| id == task.id.as_str())
}
