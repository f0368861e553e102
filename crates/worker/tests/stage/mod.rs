//! What the tests of the agent play with: a certificate authority, managers, and a node that takes notes.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use shoal_api::{
    ClusterId, ObjectId, TaskState, Timestamp,
    container::{LogLine, LogQuery, StdStream},
    network::NetworkView,
    object::{Meta, NodeDescription, Secret, Task, TaskStatus},
    spec::{SecretReference, SecretSpec, TaskSpec},
    wire::{
        self, AssignmentChange, AssignmentsMessage, SubscriptionMessage, assignment_change,
        assignments_message,
        dispatcher_server::{Dispatcher, DispatcherServer},
        log_broker_server::{LogBroker, LogBrokerServer},
    },
};
use shoal_ca::{
    ClientAuth, NODE_CERTIFICATE_VALIDITY, NodeIdentity, NodeKey, Role, RootCa, Subject,
};
use shoal_worker::{
    Agent, AgentConfig, Controller, ExecError, Executor, Exit, LogLines, NamePlane, NetworkPlane,
    PlaneError, Started, TaskFiles,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::server::Connected};

mod messages;

pub(crate) use messages::{complete, incremental, remove, secret, task, task_with_secret};

/// A cluster's root, and identities under it.
pub(crate) struct Authority {
    root: RootCa,
    cluster: ClusterId,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self {
            root: RootCa::create(SystemTime::now()).expect("a root"),
            cluster: ClusterId::random(),
        }
    }

    fn identity(&self, role: Role) -> NodeIdentity {
        let key = NodeKey::generate().expect("a key");
        let subject = Subject {
            node_id: shoal_api::NodeId::random(),
            role,
            cluster_id: self.cluster.clone(),
        };
        let request = key.request_pem().expect("a request");
        let certificate = self
            .root
            .issue(
                &request,
                &subject,
                NODE_CERTIFICATE_VALIDITY,
                SystemTime::now(),
            )
            .expect("a certificate");
        NodeIdentity::new(self.root.certificate().clone(), certificate, key.pem())
            .expect("an identity")
    }
}

/// What a manager hears.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Status(String, TaskState),
    Acknowledged(u64),
    Heartbeat,
    /// Lines of one message, each with its task.
    Lines(Vec<(String, String)>),
    /// The publisher has no more.
    Published(String),
    /// A stream of publications ended, with or without that.
    Unpublished,
    /// The node says that it leaves.
    Left,
}

/// A session as the manager sees it; dropping it closes its streams.
pub(crate) struct Session {
    pub(crate) request: wire::SessionRequest,
    _messages: mpsc::Sender<Result<wire::SessionMessage, Status>>,
    assignments: mpsc::Sender<Result<AssignmentsMessage, Status>>,
    subscriptions: mpsc::Sender<Result<SubscriptionMessage, Status>>,
}

impl Session {
    pub(crate) async fn assign(&self, message: AssignmentsMessage) {
        self.assignments
            .send(Ok(message))
            .await
            .expect("the agent listens");
    }

    pub(crate) async fn subscribe(&self, message: SubscriptionMessage) {
        self.subscriptions
            .send(Ok(message))
            .await
            .expect("the agent listens");
    }
}

type Opened = (
    wire::SessionRequest,
    mpsc::Sender<Result<wire::SessionMessage, Status>>,
);

/// A manager that the test plays.
pub(crate) struct Manager {
    pub(crate) address: String,
    sessions: mpsc::UnboundedReceiver<Opened>,
    streams: mpsc::UnboundedReceiver<mpsc::Sender<Result<AssignmentsMessage, Status>>>,
    listeners: mpsc::UnboundedReceiver<mpsc::Sender<Result<SubscriptionMessage, Status>>>,
    events: mpsc::UnboundedReceiver<Event>,
    heard: Vec<Event>,
    /// Makes the next publication fail after its first message.
    pub(crate) breaks: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

impl Manager {
    pub(crate) async fn start(authority: &Authority) -> Self {
        Self::led_by(authority, "").await
    }

    pub(crate) async fn led_by(authority: &Authority, leader: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let config =
            shoal_ca::server_config(&authority.identity(Role::Manager), ClientAuth::Required)
                .expect("a config");
        let (opened, sessions) = mpsc::unbounded_channel();
        let (opened_streams, streams) = mpsc::unbounded_channel();
        let (listens, listeners) = mpsc::unbounded_channel();
        let (told, events) = mpsc::unbounded_channel();
        let breaks = Arc::new(AtomicBool::new(false));
        let ears = Ears {
            breaks: Arc::clone(&breaks),
            opened,
            opened_streams,
            listens,
            told,
            leader: leader.to_owned(),
        };
        let server = tokio::spawn(serve(listener, TlsAcceptor::from(config), ears));
        Self {
            address,
            sessions,
            streams,
            listeners,
            events,
            heard: Vec::new(),
            breaks,
            server,
        }
    }

    /// The next session, once the agent asks for its assignments.
    pub(crate) async fn session(&mut self) -> Session {
        let (request, messages) = self.sessions.recv().await.expect("the server runs");
        let assignments = self.streams.recv().await.expect("the server runs");
        let subscriptions = self.listeners.recv().await.expect("the server runs");
        Session {
            request,
            _messages: messages,
            assignments,
            subscriptions,
        }
    }

    /// Waits until the agent listens for subscriptions anew.
    pub(crate) async fn listens_anew(&mut self, session: &mut Session) {
        session.subscriptions = self.listeners.recv().await.expect("the server runs");
    }

    /// The next message of a publication.
    pub(crate) async fn published(&mut self) -> Event {
        loop {
            let heard = self.events.recv().await.expect("the server runs");
            if matches!(
                heard,
                Event::Lines(_) | Event::Published(_) | Event::Unpublished
            ) {
                return heard;
            }
        }
    }

    /// Waits for an event that comes from now on.
    pub(crate) async fn until(&mut self, event: &Event) {
        loop {
            let heard = self.events.recv().await.expect("the server runs");
            self.heard.push(heard.clone());
            if heard == *event {
                return;
            }
        }
    }

    /// Waits for an event unless it has come already.
    pub(crate) async fn seen(&mut self, event: &Event) {
        if !self.heard.contains(event) {
            self.until(event).await;
        }
    }

    pub(crate) fn heard_nothing(&mut self) {
        assert!(self.sessions.try_recv().is_err() && self.events.try_recv().is_err());
    }

    /// Dies with all its connections.
    pub(crate) async fn stop(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, ears: Ears) {
    let (accepted, incoming) = mpsc::channel::<io::Result<Tls>>(1);
    let mut tasks = JoinSet::new();
    let router = tonic::transport::Server::builder()
        .add_service(DispatcherServer::new(ears.clone()))
        .add_service(LogBrokerServer::new(ears));
    tasks.spawn(async move {
        router
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .expect("served");
    });
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        // A client that does not like our certificate is not served; that is all.
        if let Ok(stream) = acceptor.accept(stream).await {
            accepted
                .send(Ok(Tls(stream)))
                .await
                .expect("the server runs");
        }
    }
}

struct Tls(TlsStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}
impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}
impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Ears {
    opened: mpsc::UnboundedSender<Opened>,
    opened_streams: mpsc::UnboundedSender<mpsc::Sender<Result<AssignmentsMessage, Status>>>,
    listens: mpsc::UnboundedSender<mpsc::Sender<Result<SubscriptionMessage, Status>>>,
    told: mpsc::UnboundedSender<Event>,
    leader: String,
    /// Whether the next publication fails after its first message.
    breaks: Arc<AtomicBool>,
}

#[async_trait]
impl Dispatcher for Ears {
    type SessionStream = ReceiverStream<Result<wire::SessionMessage, Status>>;
    type AssignmentsStream = ReceiverStream<Result<AssignmentsMessage, Status>>;

    async fn session(
        &self,
        request: Request<wire::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (messages, stream) = mpsc::channel(10);
        let message = wire::SessionMessage {
            session_id: "session".to_owned(),
            leader: self.leader.clone(),
            heartbeat_period_ms: 50,
            ..Default::default()
        };
        messages.send(Ok(message)).await.expect("there is room");
        let _ = self.opened.send((request.into_inner(), messages));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        assert_eq!(request.into_inner().session_id, "session");
        Ok(Response::new(wire::DescribeResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        assert_eq!(request.into_inner().session_id, "session");
        let _ = self.told.send(Event::Heartbeat);
        Ok(Response::new(wire::HeartbeatResponse { period_ms: 50 }))
    }

    async fn assignments(
        &self,
        request: Request<wire::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        assert_eq!(request.into_inner().session_id, "session");
        let (assignments, stream) = mpsc::channel(10);
        let _ = self.opened_streams.send(assignments);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn update_task_status(
        &self,
        request: Request<wire::UpdateTaskStatusRequest>,
    ) -> Result<Response<wire::UpdateTaskStatusResponse>, Status> {
        for update in request.into_inner().updates {
            let status: TaskStatus = update
                .status
                .expect("a status")
                .try_into()
                .expect("readable");
            let _ = self.told.send(Event::Status(update.task_id, status.state));
        }
        Ok(Response::new(wire::UpdateTaskStatusResponse {}))
    }

    async fn acknowledge_view(
        &self,
        request: Request<wire::AcknowledgeViewRequest>,
    ) -> Result<Response<wire::AcknowledgeViewResponse>, Status> {
        let _ = self
            .told
            .send(Event::Acknowledged(request.into_inner().version));
        Ok(Response::new(wire::AcknowledgeViewResponse {}))
    }

    async fn attach(
        &self,
        _: Request<wire::AttachRequest>,
    ) -> Result<Response<wire::AttachResponse>, Status> {
        Err(Status::unimplemented("no networks on this stage"))
    }

    async fn leave(
        &self,
        _: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveResponse>, Status> {
        let _ = self.told.send(Event::Left);
        Ok(Response::new(wire::LeaveResponse {}))
    }
}

#[async_trait]
impl LogBroker for Ears {
    type ListenSubscriptionsStream = ReceiverStream<Result<SubscriptionMessage, Status>>;

    async fn listen_subscriptions(
        &self,
        _: Request<wire::ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let (subscriptions, stream) = mpsc::channel(10);
        let _ = self.listens.send(subscriptions);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_logs(
        &self,
        request: Request<tonic::Streaming<wire::PublishLogsMessage>>,
    ) -> Result<Response<wire::PublishLogsResponse>, Status> {
        let mut stream = request.into_inner();
        let breaks = self.breaks.swap(false, Ordering::Relaxed);
        while let Ok(Some(message)) = stream.message().await {
            let lines = message.messages.into_iter();
            let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
            let lines: Vec<_> = lines.map(|line| (line.task_id, text(&line.data))).collect();
            if !lines.is_empty() {
                let _ = self.told.send(Event::Lines(lines));
            }
            if breaks {
                return Err(Status::unavailable("the connection broke"));
            }
            if message.close {
                let _ = self.told.send(Event::Published(message.subscription_id));
            }
        }
        let _ = self.told.send(Event::Unpublished);
        Ok(Response::new(wire::PublishLogsResponse {}))
    }
}

/// A node that writes down what it is asked to do, and does it at once; its processes run for ever.
#[derive(Clone)]
pub(crate) struct Notes(Arc<watch::Sender<Vec<String>>>);

impl Default for Notes {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl Notes {
    pub(crate) async fn agent(
        &self,
        authority: &Authority,
        directory: &Path,
        managers: &[&str],
    ) -> Agent {
        let identity = authority.identity(Role::Worker);
        let tls = shoal_ca::client_config(authority.root.certificate(), Some(&identity))
            .expect("a config");
        let config = AgentConfig {
            managers: managers
                .iter()
                .map(|address| (*address).to_owned())
                .collect(),
            ledger: directory.join("ledger"),
            tls: watch::Sender::new(tls).subscribe(),
        };
        let node = Arc::new(self.clone());
        Agent::start(config, node.clone(), node.clone(), node)
            .await
            .expect("an agent")
    }

    fn take(&self, line: String) {
        self.0.send_modify(|lines| lines.push(line));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    pub(crate) async fn until(&self, line: &str) {
        self.0
            .subscribe()
            .wait_for(|lines| lines.iter().any(|l| l == line))
            .await
            .expect("notes are kept");
    }
}

#[async_trait]
impl Executor for Notes {
    async fn describe(&self) -> Result<NodeDescription, ExecError> {
        Ok(NodeDescription {
            hostname: "worker-7".to_owned(),
            ..NodeDescription::default()
        })
    }
    async fn controller(&self, task: &Task) -> Result<Box<dyn Controller>, ExecError> {
        Ok(Box::new(Hand {
            notes: self.clone(),
            id: task.id.to_string(),
            updates: Mutex::new(0),
        }))
    }
    async fn logs(&self, task: &Task, query: &LogQuery) -> Result<Option<LogLines>, ExecError> {
        let (sender, lines) = mpsc::channel(1);
        let (follow, output) = (query.follow, Self::output(task));
        tokio::spawn(async move {
            for line in output {
                if sender.send(Ok(line)).await.is_err() {
                    return;
                }
            }
            if follow {
                sender.closed().await; // its processes run for ever
            }
        });
        Ok(Some(lines))
    }
}

impl Notes {
    /// The whole output of a task: two lines, of which the second is from later than those of all tasks before it.
    fn output(task: &Task) -> [LogLine; 2] {
        let number: i64 = task.id.as_str()[1..].parse().expect("t and a number");
        [("a", number), ("b", 10 + number)].map(|(text, time)| LogLine {
            stream: StdStream::Stdout,
            time: Timestamp(time),
            bytes: text.into(),
        })
    }
}

#[async_trait]
impl NetworkPlane for Notes {
    async fn converge(&self, want: &Arc<NetworkView>) -> Result<(), Vec<PlaneError>> {
        self.take(format!("converge {}", want.version));
        Ok(())
    }
}

impl NamePlane for Notes {
    fn publish(&self, want: &Arc<NetworkView>) {
        self.take(format!("publish {}", want.version));
    }
}

struct Hand {
    notes: Notes,
    id: String,
    updates: Mutex<u32>,
}

#[async_trait]
impl Controller for Hand {
    async fn update(&self, _: &Task) -> Result<(), ExecError> {
        *self.updates.lock().expect("whole") += 1;
        Ok(())
    }
    async fn prepare(&self, _: &TaskFiles) -> Result<(), ExecError> {
        self.notes.take(format!("prepare {}", self.id));
        Ok(())
    }
    async fn start(&self) -> Result<Started, ExecError> {
        self.notes.take(format!("start {}", self.id));
        Ok(Started::default())
    }
    async fn wait(&self) -> Result<Exit, ExecError> {
        self.notes.take(format!("wait {}", self.id));
        std::future::pending().await
    }
    async fn shutdown(&self, _: Duration) -> Result<(), ExecError> {
        self.notes.take(format!("shutdown {}", self.id));
        Ok(())
    }
    async fn remove(&self) -> Result<(), ExecError> {
        self.notes.take(format!("remove {}", self.id));
        Ok(())
    }
}
