//! This node's place in a cluster: none, or an identity with an agent, and a manager where the role says so.

mod address;
mod api;
mod authority;
mod changes;
mod doctor;
mod events;
mod membership;
mod processes;
mod recovery;
mod seat;
mod stacks;
mod upkeep;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_api::spec::Availability;
use shoal_ca::{NodeIdentity, Role, UnlockKey};
use shoal_manager::{
    Begin, JoinError, Manager, ManagerError, NewCluster, RestoreError, WriteError, join_cluster,
};
use shoal_worker::{
    io::agent::{Agent, AgentConfig, AgentError},
    ports::Executor,
};
use tokio::sync::{Mutex, RwLock};

use crate::{
    config::DaemonConfig,
    executor::NodeExecutor,
    network::{NodeNetworks, chain},
    plane::ClusterPlane,
};
use membership::{Membership, MembershipFiles, Stored, at};
use seat::{Lock, Seat};
use upkeep::Upkeep;

pub use address::AddressError;

/// Default port of the cluster (SEMANTICS of `swarm init`).
pub const CLUSTER_PORT: u16 = 2377;

/// Why this node cannot begin to be, be, or cease to be part of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// In docker's words.
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyIn,
    /// In docker's words.
    #[error("This node is not part of a swarm")]
    NotIn,
    /// A manager that leaves may take the quorum with it. Docker's words.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. {0} Use `--force` to suppress this message."
    )]
    ManagerLeaves(String),
    /// In docker's words.
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
    )]
    Locked,
    /// In docker's words.
    #[error("swarm is not locked")]
    NotLocked,
    /// In SwarmKit's words.
    #[error("invalid key string")]
    NoUnlockKey,
    /// In docker's words.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongUnlockKey,
    /// The cluster's settings cannot be read.
    #[error("cannot read the swarm's settings: {0}")]
    Settings(WriteError),
    /// An address that cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The data path cannot work on this kernel.
    #[error("this node cannot take part in a swarm: {0}")]
    NoDataPath(String),
    /// In docker's words.
    #[error(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this \
         command on a manager node or promote the current node to a manager."
    )]
    NotManager,
    /// A backup that cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Not admitted.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Admitted, and no part of the cluster yet. In docker's words.
    #[error(
        "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \
         \"docker info\" command to see the current swarm status of your node."
    )]
    JoinTakesLong,
    /// The manager cannot begin.
    #[error("cannot start the manager: {}", chain(.0))]
    Manager(#[from] ManagerError),
    /// The agent cannot begin.
    #[error("cannot start the agent: {}", chain(.0))]
    Agent(#[from] AgentError),
    /// What this node is cannot be kept or read.
    #[error("cannot use {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates cannot be kept or read.
    #[error("cannot use the node's certificate: {}", chain(.0))]
    Identity(#[from] shoal_ca::CaError),
    /// The node cannot describe itself.
    #[error("cannot describe this node: {0}")]
    Describe(String),
}

/// How long a join waits for the node to be a part of the cluster. Docker's.
const JOIN_MAX: Duration = Duration::from_secs(20);

/// A membership that is in force.
struct Active {
    seat: Arc<Seat>,
    agent: Agent,
    upkeep: Upkeep,
}

/// This node's place in a cluster.
pub struct ClusterNode {
    config: Arc<DaemonConfig>,
    engine: shoal_engine::io::Engine,
    networks: Arc<NodeNetworks>,
    plane: Arc<ClusterPlane>,
    /// Why overlay networks cannot be had here, if they cannot.
    no_data_path: Option<String>,
    active: RwLock<Option<Active>>,
    /// Whether an earlier membership waits for the unlock key.
    is_locked: AtomicBool,
    /// Held while the place changes.
    changing: Mutex<()>,
}

impl ClusterNode {
    /// A node that is in no cluster yet; [`ClusterNode::resume`] takes up an earlier membership.
    pub fn new(
        config: Arc<DaemonConfig>,
        engine: shoal_engine::io::Engine,
        networks: Arc<NodeNetworks>,
        plane: Arc<ClusterPlane>,
        no_data_path: Option<String>,
    ) -> Self {
        let (active, is_locked, changing) = Default::default();
        Self {
            config,
            engine,
            networks,
            plane,
            no_data_path,
            active,
            is_locked,
            changing,
        }
    }

    fn files(&self) -> MembershipFiles {
        MembershipFiles::new(self.config.data_root.join("swarm"))
    }

    fn executor(&self, membership: &Membership) -> NodeExecutor {
        NodeExecutor::new(
            self.engine.clone(),
            Arc::clone(&self.networks),
            Arc::clone(&self.plane),
            Arc::clone(&self.config),
            Some(membership.data_path),
        )
    }

    /// Takes up the membership that an earlier daemon left.
    pub async fn resume(&self) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        match self.files().load(None)? {
            Stored::Open(identity, mut membership) => {
                self.settle_address(&mut membership)?;
                self.activate(*identity, membership, None, None).await
            }
            Stored::Locked => {
                self.is_locked.store(true, Ordering::Relaxed);
                tracing::warn!("the swarm is locked: containers go on, `swarm unlock` opens it");
                Ok(())
            }
            Stored::Nothing => Ok(()),
        }
    }

    /// Takes up the membership of a locked manager.
    async fn unlock(&self, key: &str) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        if self.active.read().await.is_some() {
            return Err(ClusterError::NotLocked);
        }
        if !self.is_locked() {
            return Err(ClusterError::NotIn);
        }
        let key = UnlockKey::parse(key).ok_or(ClusterError::NoUnlockKey)?;
        let files = self.files();
        let opened = files.lock().open(&key).map_err(at(&files.manager()))?;
        let lock = opened.ok_or(ClusterError::WrongUnlockKey)?;
        let Stored::Open(identity, mut membership) = files.load(Some(&lock))? else {
            return Err(ClusterError::WrongUnlockKey);
        };
        self.settle_address(&mut membership)?;
        let lock = Lock {
            key,
            lock,
            is_settled: false,
        };
        self.activate(*identity, membership, None, Some(lock))
            .await?;
        self.is_locked.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn is_locked(&self) -> bool {
        self.is_locked.load(Ordering::Relaxed)
    }

    /// Makes a cluster of this node.
    async fn init(&self, request: Init) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        self.require_inactive().await?;
        let membership = self.membership(&request.place, Vec::new())?;
        let description = self.executor(&membership).describe().await;
        let founding = NewCluster {
            spec: request.spec,
            availability: request.place.availability,
            description: description.map_err(|error| ClusterError::Describe(chain(&error)))?,
            address: membership.advertise.ip(),
            advertise: membership.advertise.to_string(),
        }
        .found()?;
        let files = self.files();
        // Sealed before anything is written that the keys could open.
        let lock = self.make_lock(founding.unlock_key)?;
        files.save(&membership)?;
        files.save_identity(&founding.identity, lock.as_ref().map(|lock| &lock.lock))?;
        let begin = Begin::Found {
            state: founding.state,
        };
        let begun = self
            .activate(founding.identity, membership, Some(begin), lock)
            .await;
        self.forget_unless(begun).await
    }

    /// Joins the cluster that a token is for.
    async fn join(
        &self,
        place: Place,
        remotes: Vec<String>,
        token: &str,
    ) -> Result<(), ClusterError> {
        self.begin_to_join(place, remotes, token).await?;
        let joined = tokio::time::timeout(JOIN_MAX, self.takes_part()).await;
        joined.map_err(|_| ClusterError::JoinTakesLong)
    }

    /// Waits until the node is a whole part of its cluster: a manager serves it, and where it is to be one it votes, so that
    /// the others can do without one more of them.
    async fn takes_part(&self) {
        let (manager, mut session) = match &*self.active.read().await {
            Some(active) => (active.seat.manager(), active.agent.state()),
            None => return, // left at once
        };
        if let Some(manager) = manager {
            manager.votes().await;
        }
        // An agent that ends meanwhile is not waited for.
        let _ = session.wait_for(|session| session.manager.is_some()).await;
    }

    async fn begin_to_join(
        &self,
        place: Place,
        remotes: Vec<String>,
        token: &str,
    ) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        self.require_inactive().await?;
        let mut refused = None;
        for remote in &remotes {
            let remote = address::with_port(remote, CLUSTER_PORT);
            let hostname = self.config.hostname();
            match join_cluster(&remote, token, &hostname, place.availability).await {
                Ok(identity) => {
                    // Only now is it known which way leads to the managers.
                    let membership = self.membership(&place, vec![remote])?;
                    let files = self.files();
                    files.save(&membership)?;
                    files.save_identity(&identity, None)?;
                    let managers = membership.managers.clone();
                    let begin = Some(Begin::Join { managers });
                    let begun = self.activate(identity, membership, begin, None).await;
                    self.forget_unless(begun).await?;
                    return Ok(());
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.map_or_else(
            || AddressError::new("remote address", "", "expected HOST:PORT of a manager").into(),
            ClusterError::from,
        ))
    }

    /// Leaves the cluster; what belongs to it alone is gone afterwards.
    async fn leave(&self, force: bool) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        if self.is_locked() {
            return self.leave_locked(force).await;
        }
        {
            let active = self.active.read().await;
            let active = active.as_ref().ok_or(ClusterError::NotIn)?;
            if let Some(manager) = active.seat.manager().filter(|_| !force) {
                return Err(ClusterError::ManagerLeaves(quorum_warning(&manager)));
            }
        }
        let Some(active) = self.active.write().await.take() else {
            return Err(ClusterError::NotIn);
        };
        self.networks.attachments().set_calls(None);
        active.upkeep.stop().await;
        let has_given_up_seat = match active.seat.manager() {
            None => true,
            Some(manager) => match manager.leave().await {
                Ok(()) => true,
                // With force the node goes whether or not the others can agree to it.
                Err(error) => {
                    tracing::warn!(%error, "leaving the managers");
                    false
                }
            },
        };
        // Told first: names and load balancers stop leading here while the tasks still answer.
        if has_given_up_seat && let Err(error) = active.agent.calls().leave().await {
            tracing::warn!(
                error = chain(&error),
                "leaving unheard: to the others this node is down"
            );
        }
        active.agent.leave().await;
        active.seat.stop_manager().await;
        self.forget().await
    }

    /// Leaves without a word to anybody: the keys to speak with are sealed. The others see a node that is down.
    async fn leave_locked(&self, force: bool) -> Result<(), ClusterError> {
        if !force {
            return Err(ClusterError::Locked);
        }
        // Somebody must take down what the cluster's tasks are here.
        let files = self.files();
        let membership = files.load_membership()?;
        let agent = Agent::orphaned(
            files.ledger(),
            Arc::new(self.executor(&membership)),
            Arc::clone(&self.plane) as _,
            Arc::clone(&self.plane) as _,
        );
        agent.await?.leave().await;
        self.forget().await?;
        self.is_locked.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Stops agent and manager and leaves everything as it is, for the next daemon.
    pub async fn stop(&self) {
        let _changing = self.changing.lock().await;
        if let Some(active) = self.active.write().await.take() {
            active.upkeep.stop().await;
            active.agent.stop().await;
            active.seat.stop_manager().await;
        }
    }

    async fn require_inactive(&self) -> Result<(), ClusterError> {
        if self.active.read().await.is_some() {
            return Err(ClusterError::AlreadyIn);
        }
        if self.is_locked() {
            return Err(ClusterError::Locked);
        }
        match &self.no_data_path {
            Some(reason) => Err(ClusterError::NoDataPath(reason.clone())),
            None => Ok(()),
        }
    }

    fn membership(&self, place: &Place, managers: Vec<String>) -> Result<Membership, ClusterError> {
        let listen = address::listen(&place.listen)?;
        let towards = managers.first().map(String::as_str);
        let advertise = address::advertise(&place.advertise, listen, towards)?;
        let data_path = address::data_path(&place.data_path)?.unwrap_or_else(|| advertise.ip());
        Ok(Membership {
            listen,
            advertise,
            data_path,
            is_own_address: recovery::is_own(advertise.ip()),
            managers,
        })
    }

    /// Undoes a beginning that failed.
    async fn forget_unless(&self, begun: Result<(), ClusterError>) -> Result<(), ClusterError> {
        if begun.is_err() {
            self.forget().await?;
        }
        begun
    }

    async fn forget(&self) -> Result<(), ClusterError> {
        if let Err(errors) = self.plane.leave().await {
            for error in errors {
                tracing::warn!(error = chain(&error), "taking down the cluster's networks");
            }
        }
        self.files().forget()
    }

    /// Starts manager (if the certificate says so), agent and upkeep. A membership that only goes on needs no `begin`:
    /// what cannot start at once its upkeep will try again.
    async fn activate(
        &self,
        identity: NodeIdentity,
        membership: Membership,
        begin: Option<Begin>,
        lock: Option<Lock>,
    ) -> Result<(), ClusterError> {
        let files = self.files();
        self.plane.set_identity(identity.peer().node_id.clone());
        let executor = Arc::new(self.executor(&membership));
        let mut managers = membership.managers.clone();
        let role = identity.peer().role;
        let advertise = membership.advertise.to_string();
        let seat = Arc::new(Seat::new(
            files.clone(),
            identity,
            membership,
            lock,
            self.config.raft.clone(),
        )?);
        match (role, begin) {
            (Role::Manager, Some(begin)) => seat.start_manager(begin).await?,
            (Role::Manager, None) => {
                if let Err(error) = seat.restart_manager().await {
                    tracing::error!(error = chain(&error), "cannot start the manager yet");
                }
            }
            // Whatever an interrupted demotion left.
            (Role::Worker, _) => {
                files.forget_manager()?;
                files.forget_lock()?;
            }
        }
        if role == Role::Manager {
            managers.insert(0, advertise);
        }
        let config = AgentConfig {
            managers,
            ledger: files.ledger(),
            tls: seat.tls(),
        };
        let agent = Agent::start(
            config,
            executor,
            Arc::clone(&self.plane) as _,
            Arc::clone(&self.plane) as _,
        )
        .await?;
        self.networks.attachments().set_calls(Some(agent.calls()));
        let upkeep = Upkeep::start(Arc::clone(&seat), agent.state());
        *self.active.write().await = Some(Active {
            seat,
            agent,
            upkeep,
        });
        Ok(())
    }

    async fn manager(&self) -> Option<Arc<Manager>> {
        self.active
            .read()
            .await
            .as_ref()
            .and_then(|active| active.seat.manager())
    }
}

/// What is lost when a manager leaves, in docker's words.
fn quorum_warning(manager: &Manager) -> String {
    let managers = manager.members().borrow().iter().count();
    match managers {
        1 => "Removing the last manager erases all current state of the swarm.".to_owned(),
        2 => "Removing this node leaves 1 managers out of 2. Without a Raft quorum your swarm will be inaccessible."
            .to_owned(),
        _ => format!(
            "Removing this node leaves {} managers out of {managers}. The only way to restore a swarm that has lost \
             consensus is to reinitialize it with `--force-new-cluster`.",
            managers - 1
        ),
    }
}

/// Where a node lives and whether it takes tasks, as the user wrote it.
#[derive(Debug, Clone, Default)]
struct Place {
    listen: String,
    advertise: String,
    data_path: String,
    availability: Availability,
}

/// A cluster to be made.
#[derive(Debug, Clone)]
struct Init {
    place: Place,
    spec: shoal_api::spec::ClusterSpec,
}
