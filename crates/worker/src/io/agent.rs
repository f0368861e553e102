//! The agent as its node sees it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use rustls::ClientConfig;
use shoal_api::object::Node;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    calls::AgentCalls,
    dial::dial,
    foreman::{Command, Foreman, Inherited, Outbox},
    ledger::{Ledger, LedgerError},
    plane::Plane,
    session::{Desk, Peer, SessionError, hold},
};
use crate::{
    core::{
        assignment::Assignments,
        session::{Call, Managers},
    },
    ports::{Chain, Executor, NamePlane, NetworkPlane},
};

/// The node's side of TLS as it is now.
type Tls = watch::Receiver<Arc<ClientConfig>>;

/// Messages between session and foreman; one is in hand while the next is read.
const COMMANDS_MAX: usize = 2;

/// What an agent must know.
#[derive(Debug)]
pub struct AgentConfig {
    /// `host:port` of managers. Those that a manager named to an earlier agent are called as well.
    pub managers: Vec<String>,
    /// File of the ledger; its directory exists.
    pub ledger: PathBuf,
    /// The node's side of TLS, see [`shoal_ca::client_config`]. A renewed one is used from the next session on.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
}

/// Why an agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its ledger cannot be read.
    #[error("cannot take up the tasks of this node")]
    Ledger(#[source] LedgerError),
}

/// What the agent knows of the cluster from its session.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionState {
    /// Manager of the session, `None` between sessions.
    pub manager: Option<String>,
    /// Managers of the cluster, `host:port`.
    pub managers: Vec<String>,
    /// The leader as told, empty if unknown.
    pub leader: String,
    /// This node as the cluster sees it: its role, for instance, or its availability.
    pub node: Option<Node>,
    /// PEM of the cluster's root certificates, empty if not told.
    pub root_pem: String,
    /// PEM of a root that is on its way in, from which the node shall have a certificate; empty if there is none.
    pub incoming_root_pem: String,
    /// Why managers refuse this node, in the words of the last one that did; `None` as soon as one takes it again.
    ///
    /// A node that was removed from the cluster is refused for good.
    pub refused: Option<String>,
}

/// A running agent. Dropping it stops the agent, not its tasks.
#[derive(Debug)]
pub struct Agent {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<SessionState>,
    tasks: JoinSet<()>,
    closed: oneshot::Receiver<()>,
    /// `None` when it has lost its keys.
    tls: Option<Tls>,
}

impl Agent {
    /// Takes up the tasks of an earlier agent, at once and without a manager, and looks for a session.
    pub async fn start(
        config: AgentConfig,
        executor: Arc<dyn Executor>,
        network: Arc<dyn NetworkPlane>,
        names: Arc<dyn NamePlane>,
    ) -> Result<Self, AgentError> {
        let AgentConfig {
            managers,
            ledger,
            tls,
        } = config;
        let session = Some((managers, tls));
        Self::begin(ledger, session, executor, network, names).await
    }

    /// Takes up the tasks of an earlier agent without ever looking for a session: the node has lost its keys.
    pub async fn orphaned(
        ledger: PathBuf,
        executor: Arc<dyn Executor>,
        network: Arc<dyn NetworkPlane>,
        names: Arc<dyn NamePlane>,
    ) -> Result<Self, AgentError> {
        Self::begin(ledger, None, executor, network, names).await
    }

    async fn begin(
        ledger: PathBuf,
        session: Option<(Vec<String>, Tls)>,
        executor: Arc<dyn Executor>,
        network: Arc<dyn NetworkPlane>,
        names: Arc<dyn NamePlane>,
    ) -> Result<Self, AgentError> {
        let path = ledger;
        let opened = tokio::task::spawn_blocking(move || Ledger::open(&path)).await;
        let (ledger, remembered, closed) = opened
            .expect("opening the ledger does not panic")
            .map_err(AgentError::Ledger)?;

        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let outbox = Arc::new(Outbox::default());
        let assignments = Assignments::adopted(remembered.tasks, remembered.withheld);
        let (version_holder, version) = watch::channel(assignments.version().to_owned());
        let (readable_holder, readable) = watch::channel(BTreeMap::new());
        let (plane, plane_work) = Plane::new(network, names);
        let desk = Desk {
            executor: Arc::clone(&executor),
            commands: commands.clone(),
            outbox: Arc::clone(&outbox),
            version,
            settled: plane.settled(),
            readable,
        };
        let foreman = Foreman::new(
            executor,
            plane,
            ledger,
            outbox,
            version_holder,
            readable_holder,
            Inherited {
                assignments,
                view: remembered.view,
            },
        );
        let (state_holder, state) = watch::channel(SessionState::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(plane_work);
        tasks.spawn(foreman.run(receiver));
        let tls = session.as_ref().map(|(_, tls)| tls.clone());
        if let Some((mut managers, tls)) = session {
            managers.extend(remembered.managers);
            let mut seen = std::collections::BTreeSet::new();
            managers.retain(|address| seen.insert(address.clone()));
            tasks.spawn(keep_session(
                desk,
                Managers::new(managers),
                tls,
                state_holder,
            ));
        }
        Ok(Self {
            commands,
            state,
            tasks,
            closed,
            tls,
        })
    }

    /// What the session tells, to be watched.
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// A way to ask managers for something, apart from the session.
    pub fn calls(&self) -> AgentCalls {
        AgentCalls {
            state: self.state.clone(),
            tls: self.tls.clone(),
        }
    }

    /// Stops the agent and waits until it has let go of its files. Its tasks run on, for the next agent to take up.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        // An error says that the ledger's thread is gone, and its file with it.
        let _ = self.closed.await;
    }

    /// Ends the node's part in the cluster: stops and removes its tasks, takes down its networks, forgets everything.
    pub async fn leave(self) {
        let (done, left) = oneshot::channel();
        // Without a foreman there is nothing to leave.
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
        self.stop().await;
    }
}

/// Goes from session to session, for ever.
async fn keep_session(
    desk: Desk,
    mut managers: Managers,
    mut tls: Tls,
    state: watch::Sender<SessionState>,
) {
    loop {
        let address = match managers.next_call(random()) {
            Call::Now(address) => address,
            Call::After(pause) => {
                sleep(pause).await;
                continue;
            }
        };
        let current = Arc::clone(&tls.borrow_and_update());
        let channel = match dial(&address, Arc::clone(&current)).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::info!(manager = address, error = %Chain(&error), "cannot reach a manager");
                continue;
            }
        };
        let began = Instant::now();
        let known = managers.known().to_vec();
        let peer = Peer {
            address: address.clone(),
            tls: current,
        };
        let held = hold(&desk, peer, channel, |message| {
            if managers.redirect(&address, &message.leader) {
                return Err(SessionError::Redirected {
                    leader: message.leader.clone(),
                });
            }
            if managers.update(message.managers.clone()) {
                // When the foreman is busy it is told at the end of the session.
                let _ = desk
                    .commands
                    .try_send(Command::Managers(managers.known().to_vec()));
            }
            let node = message
                .node
                .clone()
                .map(Node::try_from)
                .transpose()
                .map_err(SessionError::Decode)?;
            state.send_replace(SessionState {
                manager: Some(address.clone()),
                managers: managers.known().to_vec(),
                leader: message.leader.clone(),
                node,
                root_pem: message.root_pem.clone(),
                incoming_root_pem: message.incoming_root_pem.clone(),
                refused: None,
            });
            Ok(())
        });
        // A session does not outlive its certificate; with the next one it goes on before anybody misses it.
        let ended = tokio::select! {
            ended = held => ended,
            Ok(()) = tls.changed() => Err(SessionError::Renewed),
        };
        let Err(error) = ended;
        if matches!(error, SessionError::Renewed) {
            managers.redirect("", &address);
        }
        tracing::info!(manager = address, error = %Chain(&error), "a session ended");
        state.send_modify(|state| {
            state.manager = None;
            if let Some(refusal) = error.refusal() {
                state.refused = Some(refusal.to_owned());
            }
        });
        managers.on_session_end(&address, began.elapsed(), random());
        if managers.known() != known {
            let _ = desk
                .commands
                .send(Command::Managers(managers.known().to_vec()))
                .await;
        }
    }
}

pub(super) fn random() -> u32 {
    getrandom::u32().expect("the operating system gives random bytes after boot")
}
