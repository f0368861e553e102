//! One session with one manager.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use rustls::ClientConfig;
use shoal_api::{
    TaskId, TaskState, Timestamp,
    object::{NodeDescription, TaskStatus},
    wire::{
        self, DecodeError, assignment_change, assignments_message,
        dispatcher_client::DispatcherClient, update_task_status_request::Update,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::{
    foreman::{Command, Outbox},
    logs::{self, Readable},
    plane::Settled,
};
use crate::{
    core::assignment::{Gap, Item, ItemKey, Message},
    ports::{Chain, ExecError, Executor},
};

/// How long a manager may take to answer (SwarmKit's agent: 5 s).
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest time that a heartbeat may take, however short its period.
const HEARTBEAT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Largest message of the assignment stream: a complete one names every task and endpoint of the node's networks.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Why a session ended. All of them lead to a new one.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot describe this node")]
    Describe(#[source] ExecError),
    #[error("{call} failed")]
    Call {
        call: &'static str,
        source: Box<Status>,
    },
    #[error("{call} was not answered in time")]
    Timeout { call: &'static str },
    #[error("the manager closed the {stream} stream")]
    Closed { stream: &'static str },
    #[error("the manager sent what cannot be understood")]
    Decode(#[source] DecodeError),
    #[error("a message was missed")]
    Gap(#[source] Gap),
    #[error("the leader is {leader}")]
    Redirected { leader: String },
    #[error("the node's certificate was renewed")]
    Renewed,
    #[error("the agent ends")]
    Ending,
}

impl SessionError {
    /// The manager's words, if it wants no session with this node.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Call {
                call: "Session",
                source,
            } if source.code() == Code::PermissionDenied => Some(source.message()),
            _ => None,
        }
    }
}

/// What all sessions of an agent have in common.
pub(super) struct Desk {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) version: watch::Receiver<String>,
    pub(super) settled: watch::Receiver<Settled>,
    pub(super) readable: watch::Receiver<Readable>,
}

/// The manager of a session.
pub(super) struct Peer {
    pub(super) address: String,
    pub(super) tls: Arc<ClientConfig>,
}

/// Holds a session until it breaks.
///
/// `on_message` sees every message of the session stream and may end the session.
pub(super) async fn hold(
    desk: &Desk,
    peer: Peer,
    channel: Channel,
    on_message: impl FnMut(&wire::SessionMessage) -> Result<(), SessionError>,
) -> Result<Infallible, SessionError> {
    let mut client =
        DispatcherClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let changes = desk.executor.changes();
    let description = describe(desk).await?;
    let request = wire::SessionRequest {
        description: Some((&description).into()),
        session_id: String::new(),
        assignments_version: desk.version.borrow().clone(),
        takes_view_changes: true,
    };
    let mut stream = within("Session", client.session(Request::new(request))).await?;
    let mut on_message = on_message;
    let first = within("Session", async {
        stream.message().await.map(tonic::Response::new)
    })
    .await?;
    let first = first.ok_or(SessionError::Closed { stream: "session" })?;
    on_message(&first)?;

    let session_id = first.session_id.clone();
    let (period, periods) = watch::channel(Duration::from_millis(first.heartbeat_period_ms));
    desk.outbox.lost();
    let source = logs::Source {
        executor: Arc::clone(&desk.executor),
        tasks: desk.readable.clone(),
        manager: peer.address,
        tls: peer.tls,
    };
    tokio::select! {
        ended = follow(stream, |message| {
            period.send_replace(Duration::from_millis(message.heartbeat_period_ms));
            on_message(message)
        }) => ended,
        ended = beat(client.clone(), &session_id, periods) => ended,
        ended = take_assignments(client.clone(), &session_id, desk) => ended,
        ended = report(client.clone(), &session_id, &desk.outbox) => ended,
        ended = describe_again(client.clone(), &session_id, desk, description, changes) => ended,
        ended = acknowledge(client.clone(), &session_id, desk.settled.clone()) => ended,
        never = logs::serve(channel, source) => match never {},
    }
}

async fn describe(desk: &Desk) -> Result<NodeDescription, SessionError> {
    timeout(CALL_TIMEOUT, desk.executor.describe())
        .await
        .map_err(|_| SessionError::Timeout {
            call: "description of this node",
        })?
        .map_err(SessionError::Describe)
}

/// Tells the manager whenever the node has something else to say of itself.
async fn describe_again(
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    desk: &Desk,
    mut said: NodeDescription,
    mut changes: mpsc::Receiver<()>,
) -> Result<Infallible, SessionError> {
    while changes.recv().await.is_some() {
        let description = describe(desk).await?;
        if description == said {
            continue;
        }
        let request = wire::DescribeRequest {
            session_id: session_id.to_owned(),
            description: Some((&description).into()),
        };
        within("Describe", client.describe(Request::new(request))).await?;
        said = description;
    }
    pending().await
}

/// Makes a call and gives up on it after [`CALL_TIMEOUT`].
async fn within<T>(
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, SessionError> {
    within_time(CALL_TIMEOUT, call, answer).await
}

async fn within_time<T>(
    limit: Duration,
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, SessionError> {
    match timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(SessionError::Call {
            call,
            source: Box::new(status),
        }),
        Err(_) => Err(SessionError::Timeout { call }),
    }
}

async fn follow(
    mut stream: Streaming<wire::SessionMessage>,
    mut on_message: impl FnMut(&wire::SessionMessage) -> Result<(), SessionError>,
) -> Result<Infallible, SessionError> {
    loop {
        match stream.message().await {
            Ok(Some(message)) => on_message(&message)?,
            Ok(None) => return Err(SessionError::Closed { stream: "session" }),
            Err(status) => {
                return Err(SessionError::Call {
                    call: "Session",
                    source: Box::new(status),
                });
            }
        }
    }
}

async fn beat(
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    mut periods: watch::Receiver<Duration>,
) -> Result<Infallible, SessionError> {
    let mut period = *periods.borrow_and_update();
    loop {
        tokio::select! {
            () = sleep(period) => {}
            Ok(()) = periods.changed() => {
                period = *periods.borrow_and_update();
                continue;
            }
        }
        let request = wire::HeartbeatRequest {
            session_id: session_id.to_owned(),
        };
        let limit = period.max(HEARTBEAT_TIMEOUT_MIN);
        let answer =
            within_time(limit, "Heartbeat", client.heartbeat(Request::new(request))).await?;
        if answer.period_ms > 0 {
            period = Duration::from_millis(answer.period_ms);
        }
    }
}

async fn take_assignments(
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    desk: &Desk,
) -> Result<Infallible, SessionError> {
    let request = wire::AssignmentsRequest {
        session_id: session_id.to_owned(),
    };
    let mut stream = within("Assignments", client.assignments(Request::new(request))).await?;
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                return Err(SessionError::Closed {
                    stream: "assignment",
                });
            }
            Err(status) => {
                return Err(SessionError::Call {
                    call: "Assignments",
                    source: Box::new(status),
                });
            }
        };
        let (message, refused) = decode(message).map_err(SessionError::Decode)?;
        refuse(&mut client, session_id, refused).await?;
        let (done, applied) = oneshot::channel();
        let command = Command::Apply(Box::new(message), done);
        desk.commands
            .send(command)
            .await
            .map_err(|_| SessionError::Ending)?;
        applied
            .await
            .map_err(|_| SessionError::Ending)?
            .map_err(SessionError::Gap)?;
    }
}

/// Tells the manager of tasks that this node cannot even read; a newer manager may know more than we do.
async fn refuse(
    client: &mut DispatcherClient<Channel>,
    session_id: &str,
    refused: Vec<(TaskId, DecodeError)>,
) -> Result<(), SessionError> {
    if refused.is_empty() {
        return Ok(());
    }
    let updates = refused.into_iter().map(|(task, error)| {
        tracing::error!(task.id = %task, error = %Chain(&error), "cannot understand a task");
        let status = TaskStatus {
            state: TaskState::Rejected,
            at: Timestamp::now(),
            err: Chain(&error).to_string().into(),
            ..TaskStatus::default()
        };
        (task, status)
    });
    send(client, session_id, &updates.collect::<Vec<_>>()).await
}

async fn report(
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    outbox: &Outbox,
) -> Result<Infallible, SessionError> {
    loop {
        let report = outbox.next_report().await;
        send(&mut client, session_id, &report).await?;
        outbox.delivered();
    }
}

async fn send(
    client: &mut DispatcherClient<Channel>,
    session_id: &str,
    report: &[(TaskId, TaskStatus)],
) -> Result<(), SessionError> {
    let update = |(task, status): &(TaskId, TaskStatus)| Update {
        task_id: task.to_string(),
        status: Some(status.into()),
    };
    let request = wire::UpdateTaskStatusRequest {
        session_id: session_id.to_owned(),
        updates: report.iter().map(update).collect(),
    };
    within(
        "UpdateTaskStatus",
        client.update_task_status(Request::new(request)),
    )
    .await
    .map(drop)
}

/// Says which view is in force, now and whenever it changes.
async fn acknowledge(
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    mut settled: watch::Receiver<Settled>,
) -> Result<Infallible, SessionError> {
    let mut said = None;
    loop {
        let version = settled.borrow_and_update().version;
        if let Some(version) = version.filter(|version| said != Some(*version)) {
            let request = wire::AcknowledgeViewRequest {
                session_id: session_id.to_owned(),
                version,
            };
            within(
                "AcknowledgeView",
                client.acknowledge_view(Request::new(request)),
            )
            .await?;
            said = Some(version);
        }
        if settled.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Reads a message. A task that cannot be read is left out and named beside it; anything else spoils the message.
fn decode(
    message: wire::AssignmentsMessage,
) -> Result<(Message, Vec<(TaskId, DecodeError)>), DecodeError> {
    use assignment_change::Item as Wire;
    let mut decoded = Message {
        complete: message.r#type() == assignments_message::Type::Complete,
        view: message.read_view()?,
        applies_to: message.applies_to.clone(),
        results_in: message.results_in.clone(),
        ..Message::default()
    };
    let mut refused = Vec::new();
    for change in message.read_changes()? {
        let removal = change.action() == assignment_change::Action::Remove;
        match (change.item, removal) {
            (Some(Wire::Task(task)), true) => decoded
                .removals
                .extend(task.id.parse().ok().map(ItemKey::Task)),
            (Some(Wire::Secret(secret)), true) => decoded
                .removals
                .extend(secret.id.parse().ok().map(ItemKey::Secret)),
            (Some(Wire::Config(config)), true) => decoded
                .removals
                .extend(config.id.parse().ok().map(ItemKey::Config)),
            (Some(Wire::Task(task)), false) => {
                let id = task.id.parse();
                match (task.try_into(), id) {
                    (Ok(task), _) => decoded.updates.push(Item::Task(Box::new(task))),
                    (Err(error), Ok(id)) => refused.push((id, error)),
                    (Err(error), Err(_)) => return Err(error),
                }
            }
            (Some(Wire::Secret(secret)), false) => {
                decoded.updates.push(Item::Secret(secret.try_into()?))
            }
            (Some(Wire::Config(config)), false) => {
                decoded.updates.push(Item::Config(config.try_into()?))
            }
            // An item of a kind that only newer agents know.
            (None, _) => {}
        }
    }
    Ok((decoded, refused))
}
