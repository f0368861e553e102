//! The output of this node's tasks, for whoever asked a manager for it.
//!
//! Lines travel on a connection of their own per reader: one who reads slowly must not hold up the session, or others.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;
use shoal_api::{
    TaskId, TaskState,
    container::{LogLine, LogQuery},
    object::Task,
    wire::{
        ListenSubscriptionsRequest, LogMessage, LogSelector, PublishLogsMessage,
        SubscriptionMessage, log_broker_client::LogBrokerClient,
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, transport::Channel};

use super::{
    agent::random,
    dial::{DialError, dial},
    exec,
};
use crate::{
    core::session::Backoff,
    ports::{Chain, Executor},
};

/// Lines in a batch.
const LINES_MAX: usize = 64;
/// Bytes of lines after which a batch is full.
const BATCH_BYTES: usize = 256 << 10;
/// After this time without trouble earlier trouble is forgotten.
const HELD: Duration = Duration::from_secs(10);

/// The tasks of this node, as of the last change of which of them may have output.
pub(super) type Readable = BTreeMap<TaskId, Task>;

/// Notes which tasks there are and whether they have a container.
pub(super) fn show(readable: &watch::Sender<Readable>, id: &TaskId, task: Option<&Task>) {
    readable.send_if_modified(|shown| match task {
        None => shown.remove(id).is_some(),
        Some(task) => {
            let is_news = shown
                .get(id)
                .is_none_or(|shown| has_container(shown) != has_container(task));
            if is_news {
                shown.insert(id.clone(), task.clone());
            }
            is_news
        }
    });
}

/// Containers are made before a task is ready; whether there still is one the node will say.
fn has_container(task: &Task) -> bool {
    task.status.state >= TaskState::Ready
}

/// Where to find the output, and where to call.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) tasks: watch::Receiver<Readable>,
    /// The manager of the session.
    pub(super) manager: String,
    pub(super) tls: Arc<ClientConfig>,
}

/// Why listening has to begin anew. Nothing of it may harm the session.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error("cannot listen for subscriptions")]
    Listen(#[source] Box<Status>),
    #[error("the manager closed the subscription stream")]
    Closed,
    #[error("cannot connect for the logs of a subscription")]
    Dial(#[source] DialError),
    #[error("the logs of a subscription broke off")]
    Publish(#[source] Box<Status>),
}

/// Does what a manager's subscriptions ask for, for as long as its session lasts.
pub(super) async fn serve(channel: Channel, source: Source) -> Infallible {
    let mut publisher = Publisher {
        source,
        publications: JoinSet::new(),
        open: BTreeMap::new(),
    };
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        match publisher.listen(channel.clone()).await {
            // A manager that knows nothing of logs still is a manager.
            Err(LogsError::Listen(status)) if status.code() == Code::Unimplemented => {
                return pending().await;
            }
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "listening for subscriptions anew")
            }
        }
        if began.elapsed() >= HELD {
            backoff.reset();
        }
        sleep(backoff.next_pause(random())).await;
    }
}

/// What is being published in a session.
struct Publisher {
    source: Source,
    publications: JoinSet<Result<(), LogsError>>,
    open: BTreeMap<String, AbortHandle>,
}

impl Publisher {
    /// Listens until something breaks. What was asked for earlier and is still asked for goes on.
    async fn listen(&mut self, channel: Channel) -> Result<Infallible, LogsError> {
        let mut client = LogBrokerClient::new(channel);
        let request = Request::new(ListenSubscriptionsRequest {});
        let answer = client.listen_subscriptions(request).await;
        let mut orders = answer
            .map_err(|status| LogsError::Listen(Box::new(status)))?
            .into_inner();
        loop {
            tokio::select! {
                order = orders.message() => match order {
                    Ok(Some(order)) => self.carry_out(order),
                    Ok(None) => return Err(LogsError::Closed),
                    Err(status) => return Err(LogsError::Listen(Box::new(status))),
                },
                Some(ended) = self.publications.join_next() => {
                    self.open.retain(|_, publication| !publication.is_finished());
                    // Whoever listens anew is told again what is wanted.
                    if let Ok(Err(error)) = ended {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, order: SubscriptionMessage) {
        if let Some(process) = order.exec {
            let carrying = exec::carry(process, self.source.clone());
            self.publications.spawn(async move {
                carrying.await;
                Ok(())
            });
        } else if order.close {
            if let Some(publication) = self.open.remove(&order.id) {
                publication.abort();
            }
        } else if self
            .open
            .get(&order.id)
            .is_none_or(AbortHandle::is_finished)
        {
            let id = order.id.clone();
            let publication = publish(order, self.source.clone());
            self.open.insert(id, self.publications.spawn(publication));
        }
    }
}

/// Sends what a subscription asks for.
async fn publish(order: SubscriptionMessage, source: Source) -> Result<(), LogsError> {
    let channel = dial(&source.manager, Arc::clone(&source.tls)).await;
    let channel = channel.map_err(LogsError::Dial)?;
    let (sender, messages) = mpsc::channel(1);
    let query = LogQuery::from(&order.options.unwrap_or_default());
    let selector = order.selector.unwrap_or_default();
    let outlet = Outlet {
        id: order.id,
        sender,
    };
    let feeding = async move {
        let fed = if query.follow {
            follow(source, &selector, query, &outlet).await
        } else {
            read(source, &selector, query, &outlet).await
        };
        if fed.is_ok() {
            let _ = outlet.send(Vec::new(), true).await; // the answer to the call says why, if it fails
        }
        drop(outlet); // ends the stream, and that ends the call
        pending::<Infallible>().await
    };
    let mut client = LogBrokerClient::new(channel);
    let answer = tokio::select! {
        answer = client.publish_logs(Request::new(ReceiverStream::new(messages))) => answer,
        never = feeding => match never {},
    };
    match answer {
        Ok(_) => Ok(()),
        Err(status) if is_refusal(&status) => {
            tracing::debug!(error = %Chain(&status), "a manager wants no more logs");
            Ok(())
        }
        Err(status) => Err(LogsError::Publish(Box::new(status))),
    }
}

/// Whether the manager has spoken, rather than the way to it.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::PermissionDenied | Code::InvalidArgument
    )
}

/// Nobody takes more lines.
struct Gone;

struct Outlet {
    id: String,
    sender: mpsc::Sender<PublishLogsMessage>,
}

impl Outlet {
    async fn send(&self, messages: Vec<LogMessage>, close: bool) -> Result<(), Gone> {
        let message = PublishLogsMessage {
            subscription_id: self.id.clone(),
            messages,
            close,
        };
        self.sender.send(message).await.map_err(|_| Gone)
    }
}

/// Sends what there is now, the oldest line of all tasks first.
async fn read(
    source: Source,
    selector: &LogSelector,
    query: LogQuery,
    outlet: &Outlet,
) -> Result<(), Gone> {
    let wanted: Vec<Task> = {
        let tasks = source.tasks.borrow();
        let wanted = tasks.values().filter(|task| selects(selector, task));
        wanted.cloned().collect()
    };
    let mut readers = JoinSet::new();
    let mut lines: Vec<mpsc::Receiver<LogMessage>> = Vec::new();
    for task in wanted {
        let (sender, receiver) = mpsc::channel(LINES_MAX);
        readers.spawn(pass_on(
            Arc::clone(&source.executor),
            task,
            query.clone(),
            sender,
        ));
        lines.push(receiver);
    }
    let mut heads = BTreeMap::new();
    for (place, lines) in lines.iter_mut().enumerate() {
        if let Some(line) = lines.recv().await {
            heads.insert((line.timestamp, place), line);
        }
    }
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(((_, place), line)) = heads.pop_first() {
        bytes += line.data.len();
        batch.push(line);
        if batch.len() >= LINES_MAX || bytes >= BATCH_BYTES {
            outlet.send(std::mem::take(&mut batch), false).await?;
            bytes = 0;
        }
        if let Some(line) = lines[place].recv().await {
            heads.insert((line.timestamp, place), line);
        }
    }
    outlet.send(batch, false).await
}

/// Sends what there is and what comes, of tasks that are here and of those that will be. Ends when single tasks were asked
/// for and have ended.
async fn follow(
    mut source: Source,
    selector: &LogSelector,
    mut query: LogQuery,
    outlet: &Outlet,
) -> Result<(), Gone> {
    let (sender, mut lines) = mpsc::channel(LINES_MAX);
    let mut readers = JoinSet::new();
    let mut begun = BTreeSet::new();
    loop {
        let mut waits_for_more = !selector.service_ids.is_empty();
        {
            let tasks = source.tasks.borrow_and_update();
            for task in tasks.values().filter(|task| selects(selector, task)) {
                if !has_container(task) {
                    waits_for_more = true;
                } else if begun.insert(task.id.clone()) {
                    let executor = Arc::clone(&source.executor);
                    readers.spawn(pass_on(
                        executor,
                        task.clone(),
                        query.clone(),
                        sender.clone(),
                    ));
                }
            }
        }
        // Of those that come later nothing is old.
        query.tail = None;
        let mut batch = Vec::with_capacity(LINES_MAX);
        tokio::select! {
            biased;
            _ = lines.recv_many(&mut batch, LINES_MAX) => {
                batch.sort_by_key(|line: &LogMessage| line.timestamp);
                outlet.send(batch, false).await?;
            }
            changed = source.tasks.changed() => changed.map_err(|_| Gone)?,
            Some(_) = readers.join_next() => {}
        }
        if readers.is_empty() && lines.is_empty() && !begun.is_empty() && !waits_for_more {
            return Ok(());
        }
    }
}

/// Passes the lines of a task on.
async fn pass_on(
    executor: Arc<dyn Executor>,
    task: Task,
    query: LogQuery,
    out: mpsc::Sender<LogMessage>,
) {
    let mut lines = match executor.logs(&task, &query).await {
        Ok(Some(lines)) => lines,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(task.id = %task.id, error = %Chain(&error), "cannot read the logs of a task");
            return;
        }
    };
    while let Some(line) = lines.recv().await {
        match line {
            Ok(line) => {
                if out.send(message(&task, line)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(task.id = %task.id, %error, "the logs of a task cannot be read to their end");
                return;
            }
        }
    }
}

/// A line as it travels; the manager knows who we are.
fn message(task: &Task, line: LogLine) -> LogMessage {
    LogMessage {
        service_id: task.service.to_string(),
        task_id: task.id.to_string(),
        node_id: String::new(),
        timestamp: line.time.0,
        stream: line.stream as u32,
        data: line.bytes,
    }
}

fn selects(selector: &LogSelector, task: &Task) -> bool {
    let service = selector.service_ids.iter();
    let mut services = service.map(String::as_str);
    services.any(|id| id == task.service.as_str())
        || selector.task_ids.iter().any(|id| id == task.id.as_str())
}
