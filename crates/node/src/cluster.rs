//! This node's place in a cluster: none, or an identity with an agent, and a manager where the role says so.

mod address;
mod api;
mod events;
mod membership;
mod processes;
mod seat;
mod upkeep;

use std::{path::PathBuf, sync::Arc};

use shoal_api::spec::Availability;
use shoal_ca::{NodeIdentity, Role};
use shoal_manager::{Begin, JoinError, Manager, ManagerError, NewCluster, join_cluster};
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
use membership::{Membership, MembershipFiles};
use seat::Seat;
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
    /// An address that cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The data path cannot work on this kernel.
    #[error("this node cannot take part in a swarm: {0}")]
    NoDataPath(String),
    /// Not admitted.
    #[error(transparent)]
    Join(#[from] JoinError),
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
        let (active, changing) = Default::default();
        Self {
            config,
            engine,
            networks,
            plane,
            no_data_path,
            active,
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
        match self.files().load()? {
            Some((identity, membership)) => self.activate(identity, membership, None).await,
            None => Ok(()),
        }
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
        self.remember(&founding.identity, &membership)?;
        let begun = self
            .activate(
                founding.identity,
                membership,
                Some(Begin::Found {
                    state: founding.state,
                }),
            )
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
                    self.remember(&identity, &membership)?;
                    let managers = membership.managers.clone();
                    let begun = self
                        .activate(identity, membership, Some(Begin::Join { managers }))
                        .await;
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
        if let Some(manager) = active.seat.manager()
            && let Err(error) = manager.leave().await
        {
            // With force the node goes whether or not the others can agree to it.
            tracing::warn!(%error, "leaving the managers");
        }
        active.agent.leave().await;
        active.seat.stop_manager().await;
        self.forget().await
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
            managers,
        })
    }

    fn remember(
        &self,
        identity: &NodeIdentity,
        membership: &Membership,
    ) -> Result<(), ClusterError> {
        let files = self.files();
        files.save(membership)?;
        files.save_identity(identity)
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
    ) -> Result<(), ClusterError> {
        let files = self.files();
        self.plane.set_identity(identity.peer().node_id.clone());
        let executor = Arc::new(self.executor(&membership));
        let mut managers = membership.managers.clone();
        let role = identity.peer().role;
        let advertise = membership.advertise.to_string();
        let seat = Arc::new(Seat::new(files.clone(), identity, membership)?);
        match (role, begin) {
            (Role::Manager, Some(begin)) => seat.start_manager(begin).await?,
            (Role::Manager, None) => {
                if let Err(error) = seat.restart_manager().await {
                    tracing::error!(error = chain(&error), "cannot start the manager yet");
                }
            }
            // Whatever an interrupted demotion left.
            (Role::Worker, _) => files.forget_manager()?,
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
