//! What the API needs from the cluster: its members, its objects, and this node's place in it.

use std::{collections::BTreeMap, net::IpAddr};

use async_trait::async_trait;
use shoal_api::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId,
    container::{Event, ExecSpec, LogLine, LogQuery},
    doctor,
    explain::{Explanation, Foresight},
    object::{Cluster, Config, Network, Node, Secret, Service, Task},
    spec::{Availability, ClusterSpec, ConfigSpec, NetworkSpec, NodeSpec, SecretSpec, ServiceSpec},
    stack::VolumesRemoved,
};

use tokio::sync::{mpsc, watch};

use super::{ApiError, ApiResult, Attached, ItemStream, LocalNetwork};
use shoal_api::Timestamp;

/// This node's place in a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwarmInfo {
    /// Whether it is in one.
    pub state: LocalNodeState,
    /// Its identity there.
    pub node_id: Option<NodeId>,
    /// The address that it advertises.
    pub node_addr: Option<IpAddr>,
    /// Whether it is a manager and can answer for the cluster.
    pub control_available: bool,
    /// What goes wrong; empty if nothing does.
    pub error: String,
    /// Managers that it knows.
    pub remote_managers: Vec<RemoteManager>,
}

/// Whether this node is in a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalNodeState {
    /// In none.
    #[default]
    Inactive,
    /// Joining.
    Pending,
    /// In one.
    Active,
    /// In one that it cannot reach.
    Error,
    /// In one whose state on this disk is sealed.
    Locked,
}

impl LocalNodeState {
    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// A manager as other nodes know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteManager {
    /// Identity; unknown while joining.
    pub node_id: Option<NodeId>,
    /// `host:port`.
    pub addr: String,
}

/// What `swarm init` says. Addresses are as the user wrote them: `addr`, `addr:port`, an interface, or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwarmInit {
    /// Where the manager listens; empty is `0.0.0.0:2377`.
    pub listen_addr: String,
    /// Where others reach it.
    pub advertise_addr: String,
    /// Where others reach its data path; empty is the advertised address.
    pub data_path_addr: String,
    /// Start again from this node's state with this node as the only manager.
    pub force_new_cluster: bool,
    /// Whether this node takes tasks.
    pub availability: Availability,
    /// Settings, with defaults filled in.
    pub spec: ClusterSpec,
}

/// What `swarm join` says. Addresses as in [`SwarmInit`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwarmJoin {
    /// Where it listens if it is a manager; empty is `0.0.0.0:2377`.
    pub listen_addr: String,
    /// Where others reach it.
    pub advertise_addr: String,
    /// Where others reach its data path.
    pub data_path_addr: String,
    /// Managers to ask, `host:port`.
    pub remote_addrs: Vec<String>,
    /// The join token; decides the role.
    pub token: String,
    /// Whether this node takes tasks.
    pub availability: Availability,
}

/// What `cluster restore` says. Addresses as in [`SwarmInit`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterRestore {
    /// Where the manager listens.
    pub listen_addr: String,
    /// Where others reach it.
    pub advertise_addr: String,
    /// Where others reach its data path.
    pub data_path_addr: String,
    /// The unlock key, if the backup is sealed.
    pub unlock_key: String,
    /// What [`ClusterBackend::cluster_backup`] gave.
    pub backup: Vec<u8>,
}

/// The cluster as managers show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmView {
    /// The object; its key never reaches a client.
    pub cluster: Cluster,
    /// Whole join token of workers, `SWMTKN-1-…`.
    pub worker_token: String,
    /// Whole join token of managers.
    pub manager_token: String,
    /// The root that nodes trust, and who issues certificates now.
    pub tls: TlsInfo,
}

/// Whom a node trusts and who has issued its certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// PEM of the root certificate.
    pub trust_root: String,
    /// DER of the issuer's subject.
    pub issuer_subject: Vec<u8>,
    /// DER of the issuer's public key.
    pub issuer_public_key: Vec<u8>,
}

/// A certificate authority of the user's own.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningCa {
    /// PEM of the certificate.
    pub cert: String,
    /// PEM of the key.
    pub key: String,
}

impl std::fmt::Debug for SigningCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningCa").finish_non_exhaustive()
    }
}

/// Secrets that `swarm update` makes anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotations {
    /// The workers' join token.
    pub worker_token: bool,
    /// The managers' join token.
    pub manager_token: bool,
    /// The key that opens sealed managers.
    pub unlock_key: bool,
    /// A root to go over to; without it [`ClusterSpec::force_rotate`] says whether a fresh one is wanted.
    pub signing_ca: Option<SigningCa>,
}

/// A node with what only the leader knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The object.
    pub node: Node,
    /// For managers.
    pub manager: Option<ManagerView>,
    /// Its certificate.
    pub tls: TlsInfo,
}

/// A manager as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerView {
    /// Whether it leads.
    pub leader: bool,
    /// Whether the leader hears it; `None` if that is unknown.
    pub reachable: Option<bool>,
    /// `host:port`.
    pub addr: String,
}

/// A service was made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedService {
    /// Its identity.
    pub id: ServiceId,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Which tasks are wanted; kinds are and-ed, the values of one kind or-ed, empty is any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskSelection {
    /// Of these services.
    pub services: Vec<ServiceId>,
    /// On these nodes.
    pub nodes: Vec<NodeId>,
}

/// Whose logs are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSelection {
    /// All tasks of a service.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

/// A line of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLogLine {
    /// Where it ran.
    pub node: NodeId,
    /// Its service.
    pub service: ServiceId,
    /// The task.
    pub task: TaskId,
    /// The line.
    pub line: LogLine,
}

/// A process beside a task's own.
#[derive(Debug)]
pub struct TaskExec {
    /// Its streams.
    pub streams: Attached,
    /// Takes new sizes of its terminal, as rows and columns.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Its exit code, once it has ended. Without a value and a sender nobody knows how it did.
    pub exit: watch::Receiver<Option<i32>>,
}

/// What became of services that were only looked at.
#[derive(Debug)]
pub struct ServicesChecked {
    /// What would be refused, by the service's name.
    pub refused: Vec<(String, ApiError)>,
    /// Where the tasks of those that would be new would go.
    pub foreseen: Vec<Foresight>,
}

/// The cluster. On a node that is no manager everything but [`ClusterBackend::swarm_info`], init, join, leave and
/// unlock answers [`ApiError::no_swarm`], [`ApiError::not_a_manager`] or [`ApiError::swarm_locked`]; the routes check
/// that by `swarm_info` before they call.
///
/// Objects are addressed by exact ids; the routes turn names and prefixes into ids. An update names the version that
/// it read and fails with a 500 `rpc error: code = Unknown desc = update out of sequence` if there is a newer one.
#[async_trait]
pub trait ClusterBackend: Send + Sync + 'static {
    /// This node's place. Cheap: each request asks, from memory.
    async fn swarm_info(&self) -> SwarmInfo;
    /// Makes a cluster of this node; answers its id there.
    async fn swarm_init(&self, request: SwarmInit) -> ApiResult<NodeId>;
    /// Joins one; answers once the node is in it.
    async fn swarm_join(&self, request: SwarmJoin) -> ApiResult<()>;
    /// Leaves it.
    async fn swarm_leave(&self, force: bool) -> ApiResult<()>;
    /// Settings and join tokens.
    async fn swarm_inspect(&self) -> ApiResult<SwarmView>;
    /// Replaces the settings.
    async fn swarm_update(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotate: Rotations,
    ) -> ApiResult<()>;
    /// Opens a sealed manager.
    async fn swarm_unlock(&self, _key: &str) -> ApiResult<()> {
        Err(ApiError::not_implemented("unlocking a swarm"))
    }
    /// The key that opens sealed managers; empty without autolock.
    async fn swarm_unlock_key(&self) -> ApiResult<String> {
        Err(ApiError::not_implemented("the unlock key of a swarm"))
    }
    /// Everything that the cluster is, in a form that [`Self::cluster_restore`] takes.
    async fn cluster_backup(&self) -> ApiResult<Vec<u8>> {
        Err(ApiError::not_implemented("a backup of the swarm"))
    }
    /// Makes this node the only manager of the cluster in a backup; answers its id there. A backup of a locked cluster
    /// needs its unlock key.
    async fn cluster_restore(&self, _request: ClusterRestore) -> ApiResult<NodeId> {
        Err(ApiError::not_implemented("restoring a swarm"))
    }

    /// All nodes.
    async fn nodes(&self) -> ApiResult<Vec<NodeView>>;
    /// Replaces a node's spec.
    async fn node_update(&self, id: &NodeId, version: u64, spec: NodeSpec) -> ApiResult<()>;
    /// Forgets a node.
    async fn node_remove(&self, id: &NodeId, force: bool) -> ApiResult<()>;
    /// Nodes that left of themselves, with their hostnames.
    async fn departed_nodes(&self) -> ApiResult<Vec<(NodeId, String)>> {
        Ok(Vec::new())
    }

    /// All services.
    async fn services(&self) -> ApiResult<Vec<Service>>;
    /// The service of this id. Progress bars ask five times a second; override it where that is cheaper than a list.
    async fn service(&self, id: &ServiceId) -> ApiResult<Option<Service>> {
        let services = self.services().await?;
        Ok(services.into_iter().find(|service| service.id == *id))
    }
    /// Makes one. Credentials for the image are in the spec.
    async fn service_create(&self, spec: ServiceSpec) -> ApiResult<CreatedService>;
    /// Gives it the spec of an earlier revision, or the one before; answers warnings.
    async fn service_rollback(
        &self,
        _id: &ServiceId,
        _version: u64,
        _to: Option<u64>,
    ) -> ApiResult<Vec<String>> {
        Err(ApiError::not_implemented("going back to earlier revisions"))
    }
    /// Says for every node why its next task could run there or not.
    async fn service_explain(&self, _id: &ServiceId) -> ApiResult<Explanation> {
        Err(ApiError::not_implemented("explaining placements"))
    }
    /// Replaces its spec, or with `rollback` ignores the given one and goes back to the previous; answers warnings.
    async fn service_update(
        &self,
        id: &ServiceId,
        version: u64,
        spec: ServiceSpec,
        rollback: bool,
    ) -> ApiResult<Vec<String>>;
    /// Says what would be if these services were made or updated one after the other; nothing is.
    async fn services_check(&self, _specs: Vec<ServiceSpec>) -> ApiResult<ServicesChecked> {
        Err(ApiError::not_implemented("checking services"))
    }
    /// Removes it with its tasks.
    async fn service_remove(&self, id: &ServiceId) -> ApiResult<()>;

    /// Tasks.
    async fn tasks(&self, selection: TaskSelection) -> ApiResult<Vec<Task>>;
    /// Those of them that no update of their service has to replace. `docker service update` waits until they run.
    ///
    /// By itself this is those of the service's spec version; override it where an update may leave tasks as they are.
    async fn up_to_date_tasks(&self, selection: TaskSelection) -> ApiResult<Vec<Task>> {
        let mut tasks = self.tasks(selection).await?;
        let services = self.services().await?;
        let versions: BTreeMap<_, _> = services
            .iter()
            .map(|service| (&service.id, service.spec_version))
            .collect();
        tasks.retain(|task| {
            versions
                .get(&task.service)
                .is_none_or(|version| *version == task.spec_version)
        });
        Ok(tasks)
    }
    /// Output of tasks, wherever they run.
    async fn task_logs(
        &self,
        _selection: LogSelection,
        _query: LogQuery,
    ) -> ApiResult<ItemStream<TaskLogLine>> {
        Err(ApiError::not_implemented("reading the logs of services"))
    }

    /// Starts a process beside a task's own, wherever the task runs.
    async fn task_exec(&self, _task: &TaskId, _spec: ExecSpec) -> ApiResult<TaskExec> {
        Err(ApiError::not_implemented("a process in a task"))
    }
    /// Says whenever something of a service changes: itself, or one of its tasks. Ends when it is gone. What happens while
    /// nobody looks is said once.
    async fn service_changes(&self, _id: &ServiceId) -> ApiResult<ItemStream<()>> {
        Err(ApiError::not_implemented("watching a service"))
    }

    /// Removes the volumes of a stack on all nodes; says for each node what became of them.
    async fn stack_volumes_remove(&self, _stack: &str) -> ApiResult<Vec<VolumesRemoved>> {
        Err(ApiError::not_implemented("removing the volumes of a stack"))
    }
    /// Says whenever the cluster's settings or one of its nodes change.
    async fn cluster_changes(&self) -> ApiResult<ItemStream<()>> {
        Err(ApiError::not_implemented("watching the cluster"))
    }

    /// The cluster's networks that this node carries, with the containers that it has in them; managers and workers alike.
    async fn carried_networks(&self) -> Vec<LocalNetwork> {
        Vec::new()
    }
    /// The places that plain containers have in the cluster's networks; they have tasks of no service.
    async fn attachments(&self) -> ApiResult<Vec<Task>> {
        Ok(Vec::new())
    }
    /// Has every node look at its ways to the others.
    async fn network_doctor(&self) -> ApiResult<doctor::Report> {
        Err(ApiError::not_implemented(
            "a look at the network between nodes",
        ))
    }
    /// All cluster networks.
    async fn networks(&self) -> ApiResult<Vec<Network>>;
    /// Makes one.
    async fn network_create(&self, spec: NetworkSpec) -> ApiResult<NetworkId>;
    /// Removes one that nothing uses.
    async fn network_remove(&self, id: &NetworkId) -> ApiResult<()>;

    /// All secrets; the data may be left out.
    async fn secrets(&self) -> ApiResult<Vec<Secret>>;
    /// Makes one.
    async fn secret_create(&self, spec: SecretSpec) -> ApiResult<SecretId>;
    /// Replaces its labels; empty data means "as it is".
    async fn secret_update(&self, id: &SecretId, version: u64, spec: SecretSpec) -> ApiResult<()>;
    /// Removes one that no service uses.
    async fn secret_remove(&self, id: &SecretId) -> ApiResult<()>;

    /// All configs.
    async fn configs(&self) -> ApiResult<Vec<Config>>;
    /// Makes one.
    async fn config_create(&self, spec: ConfigSpec) -> ApiResult<ConfigId>;
    /// Replaces its labels.
    async fn config_update(&self, id: &ConfigId, version: u64, spec: ConfigSpec) -> ApiResult<()>;
    /// Removes one that no service uses.
    async fn config_remove(&self, id: &ConfigId) -> ApiResult<()>;

    /// What happens to cluster objects.
    async fn events(
        &self,
        _since: Option<Timestamp>,
        _until: Option<Timestamp>,
    ) -> ApiResult<ItemStream<Event>> {
        Ok(Box::pin(futures_util::stream::empty()))
    }
}
