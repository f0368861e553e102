//! A manager as its node sees it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ServerConfig};
use shoal_api::{
    RandomIds, Timestamp,
    object::Object,
    wire::{
        RaftLeaveRequest, control_server::ControlServer, dispatcher_server::DispatcherServer,
        exec_broker_server::ExecBrokerServer, execs_server::ExecsServer,
        log_broker_server::LogBrokerServer, logs_server::LogsServer, node_ca_server::NodeCaServer,
        raft_membership_client::RaftMembershipClient, raft_membership_server::RaftMembershipServer,
        raft_server::RaftServer,
    },
};
use shoal_ca::{CaError, ClientAuth, NodeIdentity, UnlockKey, client_config, server_config};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::Server};

use super::{
    dispatcher::Command,
    exec_broker::ExecBroker,
    grpc::{
        CaService, ControlService, DispatcherService, ExecService, LogsService, RaftService,
        authorize::Authorize, client, server,
    },
    keys::{self, NodeLock},
    leader,
    log_broker::LogBroker,
    raft::{
        Leadership, ProposeError, Raft, RaftConfig, StartError, Vault, disk::OsDisk,
        membership::has_place, seal::Owner, transport::GrpcTransport, wal::WalError,
    },
    store::{NodeWatch, Replica, Store, Watch},
};
use crate::core::{
    consensus::Members,
    control::{Intent, Turn, Write},
    reconcile::Ctx,
    state::{Rejected, State},
    validate::Refusal,
};

mod exec;
mod forward;
mod founding;
mod locking;
mod logs;
mod passing;
mod place;
mod recovery;
mod relocation;

use forward::Line;
use locking::Keys;
use passing::Board;
use place::place;

pub(crate) use forward::WishName;

pub use exec::ExecStream;
pub use founding::{Founding, NewCluster};
pub use locking::is_locked;
pub use logs::LogStream;
pub use recovery::{Anew, Backup, BackupError, RestoreError, read_backup};

/// How long a write may wait for a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// When a leader that could not be reached is tried again, if no other one is elected before.
const LEADER_RETRY: Duration = Duration::from_millis(100);
/// How long a call may wait for the end of an election.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message among managers: a batch of entries, of which one may be large by itself.
const RAFT_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Largest request of somebody who need not show a certificate.
const ADMISSION_BYTES_MAX: usize = 64 << 10;
/// Largest report of a node's task statuses.
const REPORT_BYTES_MAX: usize = 16 << 20;

/// Where a manager lives.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Directory of the log and its key, for this manager alone.
    pub directory: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// `host:port` at which other nodes reach it.
    pub advertise: String,
    /// What seals the key, where the cluster locks its managers.
    pub lock: Option<NodeLock>,
    /// Times and sizes of consensus.
    pub raft: RaftConfig,
}

/// How a manager comes into being.
#[derive(Debug, Clone)]
pub enum Begin {
    /// As the first one, of a cluster that [`NewCluster::found`] made.
    Found {
        /// [`Founding::state`].
        state: Vec<u8>,
    },
    /// Admitted by one of these managers (`host:port`).
    Join {
        /// Whom to ask.
        managers: Vec<String>,
    },
    /// As the only one of a cluster that was, from a backup.
    Anew(Box<Anew>),
    /// With the log that it has.
    Restart,
}

/// Why a manager cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Its identity is of no use.
    #[error(transparent)]
    Identity(#[from] CaError),
    /// Its port is taken, for instance.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its directory cannot be used.
    #[error("cannot use {directory}")]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its log cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No manager admitted it.
    #[error("cannot join the managers: {}", .0.message())]
    Join(Box<Status>),
    /// It has stopped meanwhile.
    #[error("the manager has stopped")]
    Stopped,
    /// The cluster to be founded makes no sense.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<WalError> for ManagerError {
    fn from(error: WalError) -> Self {
        Self::Start(error.into())
    }
}

/// Why a write came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It makes no sense, in words for the user.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too few managers are there. Docker's words.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half \
         of the managers are online. If the others are lost for good, run `shoal cluster recover` on this manager."
    )]
    NoLeader,
    /// The leader changed on the way: it may or may not have come to pass.
    #[error("the leader changed before the write was decided")]
    Lost,
    /// The leader answered with something else.
    #[error("{}", .0.message())]
    Forward(Box<Status>),
}

/// A running manager. Dropping it stops it as a crash would.
#[derive(Debug)]
pub struct Manager {
    desk: Desk,
    identity: watch::Sender<Arc<NodeIdentity>>,
    server_tls: watch::Sender<Arc<ServerConfig>>,
    client_tls: watch::Sender<Arc<ClientConfig>>,
    address: SocketAddr,
    keys: Mutex<Keys>,
    /// The key under which the cluster wants managers to seal their disks, as far as this one knows.
    unlock_key: watch::Receiver<Option<UnlockKey>>,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

/// What every service of a manager needs.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) store: Store,
    identity: watch::Receiver<Arc<NodeIdentity>>,
    client_tls: watch::Receiver<Arc<ClientConfig>>,
    /// To the leader, for writes.
    writes: Line,
    /// To the leader, for questions whose answers take long: a connection carries so many calls at once and no more.
    questions: Line,
    /// Where sessions are served, while this manager leads.
    dispatcher: watch::Sender<Option<mpsc::Sender<Command>>>,
    /// Where tasks are on their way to running, while this manager leads.
    pub(crate) passing: Board,
    pub(crate) logs: LogBroker,
    pub(crate) execs: ExecBroker,
}

impl Manager {
    /// Starts a manager: listens, takes its place among the managers, and leads when it is elected.
    pub async fn start(
        config: ManagerConfig,
        identity: NodeIdentity,
        begin: Begin,
    ) -> Result<Self, ManagerError> {
        let in_directory = |source| ManagerError::Directory {
            directory: config.directory.clone(),
            source,
        };
        let keys = keys::load_or_make(&config.directory, config.lock.as_ref());
        let keys = keys.map_err(in_directory)?;
        let log = recovery::log_directory(&config.directory).map_err(in_directory)?;
        let vault = Vault {
            disk: Arc::new(OsDisk::open(&log).map_err(in_directory)?),
            key: keys.clone(),
            owner: Owner::new(&identity.peer().cluster_id, &identity.peer().node_id),
        };
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|source| ManagerError::Listen {
            address: config.listen,
            source,
        })?;
        let address = listener
            .local_addr()
            .map_err(|source| ManagerError::Listen {
                address: config.listen,
                source,
            })?;

        let (server_tls, server_tls_now) =
            watch::channel(server_config(&identity, ClientAuth::Optional)?);
        let (client_tls, client_tls_now) =
            watch::channel(client_config(identity.root(), Some(&identity))?);
        let (identity, identity_now) = watch::channel(Arc::new(identity));

        let own = Arc::clone(&identity_now.borrow());
        let start = place(&config, &vault, &own, &client_tls_now, begin).await?;
        let replica = Replica::default();
        let runtime = Handle::current();
        let raft = {
            let tls = client_tls_now.clone();
            Raft::start(config.raft, vault, start, replica.clone(), |mailbox| {
                Box::new(GrpcTransport::new(runtime, mailbox, tls, &config.advertise))
            })?
        };
        let desk = Desk {
            store: Store::new(replica.clone(), raft),
            identity: identity_now,
            client_tls: client_tls_now,
            writes: Line::default(),
            questions: Line::default(),
            dispatcher: watch::Sender::default(),
            passing: Board::default(),
            logs: LogBroker::default(),
            execs: ExecBroker::default(),
        };
        let stop = CancellationToken::new();
        let gate = server::Gate::default();
        let mut tasks = JoinSet::new();
        let raft_service = RaftService { desk: desk.clone() };
        let logs_service = LogsService { desk: desk.clone() };
        let exec_service = ExecService { desk: desk.clone() };
        let serving = Server::builder()
            .layer(Authorize::new(replica))
            .add_service(
                NodeCaServer::new(CaService::new(desk.clone()))
                    .max_decoding_message_size(ADMISSION_BYTES_MAX),
            )
            .add_service(
                DispatcherServer::new(DispatcherService { desk: desk.clone() })
                    .max_decoding_message_size(REPORT_BYTES_MAX),
            )
            .add_service(ControlServer::new(ControlService { desk: desk.clone() }))
            .add_service(
                RaftServer::new(raft_service.clone())
                    .max_decoding_message_size(RAFT_MESSAGE_BYTES_MAX),
            )
            .add_service(RaftMembershipServer::new(raft_service))
            .add_service(LogBrokerServer::new(logs_service.clone()))
            .add_service(LogsServer::new(logs_service))
            .add_service(ExecBrokerServer::new(exec_service.clone()))
            .add_service(ExecsServer::new(exec_service))
            .serve_with_incoming(server::accept(
                listener,
                server_tls_now,
                gate.clone(),
                stop.clone(),
            ));
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the manager's server ended");
            }
        });
        tasks.spawn(leader::run(desk.clone()));
        tasks.spawn(relocation::announce(desk.clone(), config.advertise.clone()));
        tasks.spawn(shut_out(desk.store.clone(), gate));
        let (unlock_key_holder, unlock_key) =
            watch::channel(locking::unlock_key(&desk.store.state()));
        tasks.spawn(locking::follow(desk.store.clone(), unlock_key_holder));
        let keys = Keys {
            directory: config.directory,
            ring: keys,
            lock: config.lock,
        };
        Ok(Self {
            desk,
            identity,
            server_tls,
            client_tls,
            address,
            keys: Mutex::new(keys),
            unlock_key,
            stop,
            tasks: Mutex::new(tasks),
        })
    }

    /// Whether a manager was here before and [`Begin::Restart`] is the way to begin.
    pub fn has_log(
        directory: &Path,
        identity: &NodeIdentity,
        lock: Option<&NodeLock>,
    ) -> Result<bool, ManagerError> {
        if !keys::exists(directory) {
            return Ok(false);
        }
        let in_directory = |source| ManagerError::Directory {
            directory: directory.to_owned(),
            source,
        };
        let log = recovery::log_directory(directory).map_err(in_directory)?;
        let vault = Vault {
            disk: Arc::new(OsDisk::open(&log).map_err(in_directory)?),
            key: keys::load_or_make(directory, lock).map_err(in_directory)?,
            owner: Owner::new(&identity.peer().cluster_id, &identity.peer().node_id),
        };
        Ok(has_place(&vault)?)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The state as of the last batch applied here. May be behind the leader's.
    pub fn state(&self) -> State {
        self.desk.store.state()
    }

    /// The state with everything in it that anybody was told before this call.
    pub async fn latest(&self) -> Result<State, WriteError> {
        self.desk.latest().await
    }

    /// Sees every change of the state from now on. Take the state afterwards, then nothing is missed.
    pub fn watch(&self) -> Watch {
        self.desk.store.watch()
    }

    /// The same for nodes and the cluster itself alone.
    pub fn watch_nodes(&self) -> NodeWatch {
        self.desk.store.watch_nodes()
    }

    /// Carries out what a user wants, here or at the leader. Returns the object as written; `None` after a removal.
    pub async fn write(&self, intent: Intent) -> Result<Option<Object>, WriteError> {
        self.desk.write(intent).await
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.desk.store.raft().leadership()
    }

    /// The managers, now and from now on.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.desk.store.raft().members()
    }

    /// Waits until this manager votes, which it does when it has caught up with the others.
    pub async fn votes(&self) {
        let raft_id = self.desk.store.raft().raft_id();
        let mut members = self.members();
        // One that has stopped does not come to vote.
        let _ = members.wait_for(|members| members.is_voter(raft_id)).await;
    }

    /// Bytes that this manager has written to its log since its start.
    pub fn log_bytes(&self) -> u64 {
        self.desk.store.raft().log_bytes()
    }

    /// `host:port` of all managers, the leader first.
    pub fn manager_addresses(&self) -> Vec<String> {
        self.desk.manager_addresses()
    }

    /// The join tokens (worker's, manager's), as handed to people; `None` before there is a cluster.
    pub fn join_tokens(&self) -> Option<(String, String)> {
        founding::join_tokens(&self.state())
    }

    /// Uses a renewed certificate from now on, for new connections.
    pub fn set_identity(&self, identity: NodeIdentity) -> Result<(), ManagerError> {
        self.server_tls
            .send_replace(server_config(&identity, ClientAuth::Optional)?);
        self.client_tls
            .send_replace(client_config(identity.root(), Some(&identity))?);
        self.identity.send_replace(Arc::new(identity));
        Ok(())
    }

    /// Hands leadership over and stops. What was acknowledged stays, for [`Begin::Restart`]. Whoever still asks it for
    /// something is refused.
    pub async fn stop(&self) {
        self.desk.store.raft().shutdown().await;
        self.stop.cancel();
        self.tasks.lock().await.shutdown().await;
    }

    /// Takes this manager out of the group, for good. Call [`Self::stop`] afterwards and forget its directory.
    ///
    /// # Errors
    /// The managers left could not agree on anything; `force` stops it all the same.
    pub async fn leave(&self) -> Result<(), WriteError> {
        let raft = self.desk.store.raft();
        let members = Arc::clone(&raft.members().borrow());
        if members.iter().count() <= 1 {
            return Err(Refusal::precondition("it is the last manager of the cluster").into());
        }
        let _ = raft.transfer().await; // what cannot be handed over the leader will refuse below
        let node_id = self.desk.identity().peer().node_id.to_string();
        let others: Vec<String> = self.desk.manager_addresses();
        let mut refused = WriteError::NoLeader;
        for address in others {
            let tls = Arc::clone(&self.desk.client_tls.borrow());
            let request = RaftLeaveRequest {
                node_id: node_id.clone(),
            };
            let answer = client::call_leader(&address, &tls, |channel| {
                let request = Request::new(request.clone());
                async move { RaftMembershipClient::new(channel).leave(request).await }
            });
            match answer.await {
                Ok(_) => return Ok(()),
                Err(status) => refused = WriteError::Forward(Box::new(status)),
            }
        }
        Err(refused)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Desk {
    pub(crate) fn identity(&self) -> Arc<NodeIdentity> {
        Arc::clone(&self.identity.borrow())
    }

    pub(crate) fn leadership(&self) -> Leadership {
        *self.store.raft().leadership().borrow()
    }

    /// `host:port` of the leader, if one is known and it is not this manager.
    pub(crate) fn leader_address(&self) -> Option<String> {
        let raft = self.store.raft();
        let leader = self
            .leadership()
            .leader
            .filter(|leader| *leader != raft.raft_id())?;
        let members = raft.members();
        let members = members.borrow();
        members.get(leader).map(|member| member.address.clone())
    }

    /// `host:port` of this manager, as the others know it.
    pub(crate) fn own_address(&self) -> String {
        let raft = self.store.raft();
        let members = raft.members();
        let members = members.borrow();
        members
            .get(raft.raft_id())
            .map(|member| member.address.clone())
            .unwrap_or_default()
    }

    /// Where sessions are served; refused when this manager does not lead.
    pub(crate) async fn dispatcher(&self) -> Result<mpsc::Sender<Command>, Status> {
        self.require_leader().await?;
        let mut dispatcher = self.dispatcher.subscribe();
        let announced = dispatcher.wait_for(|dispatcher| dispatcher.is_some());
        let announced = tokio::time::timeout(ELECTION_TIMEOUT, announced).await;
        let dispatcher = announced.ok().and_then(|announced| announced.ok()?.clone());
        dispatcher.ok_or_else(|| client::not_leader(self.leader_address().as_deref()))
    }

    pub(crate) fn announce_dispatcher(&self, dispatcher: Option<mpsc::Sender<Command>>) {
        self.dispatcher.send_replace(dispatcher);
    }

    pub(crate) fn manager_addresses(&self) -> Vec<String> {
        let leader = self.leadership().leader;
        let members = Arc::clone(&self.store.raft().members().borrow());
        let (first, others): (Vec<_>, Vec<_>) =
            members.iter().partition(|(id, _)| Some(*id) == leader);
        first
            .into_iter()
            .chain(others)
            .map(|(_, member)| member.address.clone())
            .collect()
    }

    /// Refuses what only a leader can answer; waits for the end of an election.
    pub(crate) async fn require_leader(&self) -> Result<(), Status> {
        let own = self.store.raft().raft_id();
        let mut leadership = self.store.raft().leadership();
        if leadership.borrow().is_leader {
            return Ok(());
        }
        let settled = leadership
            .wait_for(|now| now.is_leader || now.leader.is_some_and(|leader| leader != own));
        match tokio::time::timeout(ELECTION_TIMEOUT, settled).await {
            Ok(Ok(now)) if now.is_leader => Ok(()),
            _ => Err(client::not_leader(self.leader_address().as_deref())),
        }
    }

    async fn latest(&self) -> Result<State, WriteError> {
        let mut leadership = self.store.raft().leadership();
        let waiting = async {
            loop {
                match self.store.latest().await {
                    Ok(state) => return Ok(state),
                    Err(ProposeError::Stopped) => return Err(WriteError::NoLeader),
                    Err(_) => drop(wait_for_change(&mut leadership).await), // said above
                }
            }
        };
        tokio::time::timeout(LEADER_TIMEOUT, waiting)
            .await
            .unwrap_or(Err(WriteError::NoLeader))
    }

    /// Decides on an intent and proposes the decision. One with a name is carried out once, however often it comes.
    pub(crate) async fn write_as_leader(
        &self,
        intent: Intent,
        name: Option<WishName>,
    ) -> Result<Option<Object>, WriteError> {
        let mut write = Write::new(intent);
        loop {
            if !self.leadership().is_leader {
                return Err(WriteError::NoLeader);
            }
            let turn = self.store.look(|state| {
                if let Some((_, about)) = name.and_then(|name| state.granted(name.id)) {
                    return Err(state.object(about));
                }
                let (now, ids) = (Timestamp::now(), &mut RandomIds);
                Ok(write.next(state, &mut Ctx { now, ids }))
            });
            let failed = match turn {
                Err(granted) => return Ok(granted),
                Ok(Turn::Refuse(refusal)) => return Err(refusal.into()),
                Ok(Turn::Confirm) => self.store.latest().await.err(),
                Ok(Turn::Propose(mut decision)) => {
                    decision.batch.wish = name.map(|name| name.about(&decision.key));
                    match self.store.propose(&decision.batch).await {
                        Ok(_) => return Ok(self.store.object(&decision.key)),
                        Err(ProposeError::Rejected(Rejected::Granted { about })) => {
                            return Ok(self.store.object(&about));
                        }
                        Err(ProposeError::Rejected(rejected)) => {
                            if let Some(refusal) = write.rejected(rejected) {
                                return Err(refusal.into());
                            }
                            None
                        }
                        Err(failed) => Some(failed),
                    }
                }
            };
            match failed {
                None => {}
                Some(ProposeError::NotLeader { .. }) => return Err(WriteError::NoLeader),
                Some(_) => return Err(WriteError::Lost),
            }
        }
    }
}

/// Cuts what nodes have open that may no longer take part, until consensus stops.
async fn shut_out(store: Store, gate: server::Gate) {
    let mut watch = store.watch_nodes();
    loop {
        let state = watch.next().await;
        let Some(cluster) = state.cluster() else {
            continue;
        };
        for node in gate.nodes() {
            if cluster.blacklisted.contains_key(&node) {
                tracing::info!(node.id = %node, "shutting out a removed node");
                gate.shut(&node);
            }
        }
    }
}

/// Waits for another leader, or for the one there is to become reachable; an error is the end of consensus.
async fn wait_for_change(
    leadership: &mut watch::Receiver<Leadership>,
) -> Result<(), watch::error::RecvError> {
    let changed = tokio::time::timeout(LEADER_RETRY, leadership.changed());
    changed.await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests;
