//! What the cluster knows: specs together with everything that was decided and observed about them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Actor, ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId, TaskState,
    Timestamp, Words,
    network::Subnet,
    spec::{
        ClusterSpec, ConfigSpec, EndpointSpec, NetworkSpec, NodeRole, NodeSpec, Platform,
        PortConfig, Resources, SecretSpec, ServiceSpec, SharedLabels, TaskSpec,
    },
    tunnel::TunnelKey,
};

/// When an object changed, in the order of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Raft index of the last change; an update must name the version that it read.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Identity, also the common name of its certificate.
    pub id: NodeId,
    /// Versions and times.
    pub meta: Meta,
    /// What the user said. Writer: user.
    pub spec: NodeSpec,
    /// What the node said of itself. Writer: dispatcher.
    pub description: NodeDescription,
    /// Whether it is there. Writer: dispatcher.
    pub status: NodeStatus,
    /// Role in force. Writer: dispatcher (membership).
    pub role: NodeRole,
    /// Raft membership, for managers. Writer: dispatcher (membership).
    pub manager: Option<ManagerInfo>,
    /// When the availability of `spec` last changed. Writer: user.
    pub availability_since: Timestamp,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    /// Hostname.
    pub hostname: String,
    /// Operating system and processor.
    pub platform: Platform,
    /// What it has.
    pub resources: Resources,
    /// Version of Shoal.
    pub engine_version: String,
    /// Labels of the engine's configuration.
    pub engine_labels: BTreeMap<String, String>,
    /// Drivers, `Volume/local`, `Network/overlay`, `Log/json-file`, …
    pub plugins: Vec<String>,
    /// Address at which other nodes reach its data path; `None` is the address of its session.
    pub data_path_addr: Option<IpAddr>,
    /// Which authority issued its certificate, as the digest of that authority's root. Filled in by the manager of its
    /// session, who has seen the certificate; what the node says of it does not count.
    pub certificate_issuer: String,
    /// Names of its volumes, without those that nobody named.
    pub volumes: Vec<String>,
    /// Keys of its tunnel for encrypted networks, the one in use first; none if its kernel has no WireGuard.
    pub tunnel_keys: Vec<TunnelKey>,
}

/// Whether a node is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// State.
    pub state: NodeState,
    /// Why.
    pub message: String,
    /// Address that its sessions come from or that it advertises.
    pub addr: Option<IpAddr>,
    /// Since when.
    pub since: Timestamp,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Not heard of since this manager leads.
    #[default]
    Unknown,
    /// Not reachable.
    Down,
    /// In session.
    Ready,
    /// Left by itself.
    Disconnected,
}

impl NodeState {
    /// Name as docker's REST API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
        }
    }
}

/// A manager's place in the Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerInfo {
    /// Raft id, never reused.
    pub raft_id: u64,
    /// `host:port` of its gRPC server.
    pub addr: String,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub id: ServiceId,
    /// Versions and times.
    pub meta: Meta,
    /// What the user wants. Writer: user; a rollback restores an earlier one.
    pub spec: Arc<ServiceSpec>,
    /// Raft index at which the task part of `spec` last changed. Writer: user.
    pub spec_version: u64,
    /// The spec before the last change. Writer: user.
    pub previous_spec: Option<Arc<ServiceSpec>>,
    /// Version that `previous_spec` had. Writer: user.
    pub previous_spec_version: u64,
    /// Virtual addresses and ports in force. Writer: allocator.
    pub endpoint: Option<ServiceEndpoint>,
    /// How the last update went. Writer: orchestrator.
    pub update_status: Option<UpdateStatus>,
    /// Run number and start of a job. Writer: user (bumped with each update).
    pub job: Option<JobStatus>,
    /// Number of `spec`, counted from 1 and never used twice. Writer: user; a rollback by itself counts too.
    pub revision: u64,
    /// Earlier specs, oldest first, at most [`HISTORY_MAX`]. Writer: as `revision`.
    pub history: Vec<Revision>,
}

/// Earlier specs that a service keeps.
pub const HISTORY_MAX: usize = 10;

/// A spec that a service had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number.
    pub number: u64,
    /// The spec.
    pub spec: Arc<ServiceSpec>,
    /// Version of its task part.
    pub spec_version: u64,
    /// When another one took its place.
    pub replaced_at: Timestamp,
}

/// Virtual addresses and ports of a service, as allocated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// The endpoint spec that this fulfils.
    pub spec: EndpointSpec,
    /// Ports with their published numbers filled in.
    pub ports: Vec<PortConfig>,
    /// Virtual addresses, one or two (IPv4, IPv6) per network.
    pub virtual_ips: Vec<VirtualIp>,
}

/// A virtual address of a service in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    /// The network.
    pub network: NetworkId,
    /// The address with the prefix of its subnet.
    pub addr: IpNet,
}

/// How an update goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Where it stands.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// In Swarm's words.
    pub message: String,
}

/// Where an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Replacing tasks.
    Updating,
    /// Stopped after failures.
    Paused,
    /// Done.
    Completed,
    /// Going back to the previous spec.
    RollbackStarted,
    /// Stopped while going back.
    RollbackPaused,
    /// Back at the previous spec.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether tasks are being replaced.
    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }

    /// Name as docker's REST API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

/// Which run of a job this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Grows with every update.
    pub iteration: u64,
    /// When it began.
    pub last_execution: Timestamp,
}

/// One attempt to run a service's container on one node. Small: the spec is shared by version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// Versions and times.
    pub meta: Meta,
    /// Its service. Writer: orchestrator.
    pub service: ServiceId,
    /// Slot, 1-based, of a replicated service; 0 for global ones. Writer: orchestrator.
    pub slot: u64,
    /// Its node: from the scheduler, or from the orchestrator at birth for global services.
    pub node: Option<NodeId>,
    /// Version of the service's spec that it was made of. Writer: orchestrator.
    pub spec_version: u64,
    /// What it runs; shared with its siblings in memory. Writer: orchestrator.
    pub spec: Arc<TaskSpec>,
    /// Name, labels and endpoint of the service at that version. Writer: orchestrator.
    pub service_name: Arc<str>,
    /// Labels of the service at its birth, if it may name them in templates; else empty. Writer: orchestrator.
    pub service_labels: SharedLabels,
    /// What it should be, never lowered. Writer: orchestrator.
    pub desired_state: TaskState,
    /// What it is. Each state has one writer, see [`crate::may_move`].
    pub status: TaskStatus,
    /// Attachments, ingress first. Writer: allocator.
    pub networks: Box<[TaskAttachment]>,
    /// Ports published at the time of its birth, ingress ones numbered. Writer: allocator.
    pub ports: Box<[PortConfig]>,
    /// Earlier failures in this slot that count against the restart policy. Writer: orchestrator.
    pub attempts: u64,
    /// Not started before this time, set by a restart delay. Writer: orchestrator.
    pub start_after: Option<Timestamp>,
    /// Run of the job that it belongs to. Writer: orchestrator.
    pub job_iteration: Option<u64>,
    /// Whether every node has been told to send it no new traffic, so that it may be stopped. Writer: dispatcher.
    pub drained: bool,
    /// Generic resources of its node that are its alone; nothing else is said here. Writer: scheduler.
    pub assigned: Option<Arc<Resources>>,
}

impl Task {
    /// Whether it only attaches a container, which a user started, to a network; it has no service then.
    pub fn is_attachment(&self) -> bool {
        !self.spec.attached_container.is_empty()
    }

    /// The task's name: `service.slot.id`, or `service.node.id` for global services (SwarmKit's `api/naming`).
    pub fn name(&self) -> String {
        match (self.slot, &self.node) {
            (0, Some(node)) => format!("{}.{node}.{}", self.service_name, self.id),
            (slot, _) => format!("{}.{slot}.{}", self.service_name, self.id),
        }
    }
}

/// What a task is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Observed state.
    pub state: TaskState,
    /// When it was observed, by the observer's clock.
    pub at: Timestamp,
    /// What is going on, in Swarm's words.
    pub message: Words,
    /// What went wrong; empty if nothing did.
    pub err: Words,
    /// The container, once there is one.
    pub container: Option<Box<ContainerStatus>>,
    /// Host-mode ports in force.
    pub host_ports: Box<[PortConfig]>,
    /// When it came to run, by the observer's clock; kept once it has ended. Updates judge early ends by it.
    #[serde(default)]
    pub running_since: Option<Timestamp>,
}

/// A task's container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id in the engine of the node.
    pub container_id: String,
    /// Process id on the node, 0 when it does not run.
    pub pid: u32,
    /// Exit code, once over.
    pub exit_code: i64,
}

/// One task's place in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAttachment {
    /// The network.
    pub network: NetworkId,
    /// Addresses with the prefix of their subnet.
    pub addresses: Vec<IpNet>,
    /// Names of the service in this network besides its own.
    pub aliases: Vec<String>,
}

/// A cluster network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Identity.
    pub id: NetworkId,
    /// Versions and times.
    pub meta: Meta,
    /// What the user wants. Writer: user.
    pub spec: NetworkSpec,
    /// What was allocated. Writer: allocator.
    pub allocated: Option<NetworkAllocation>,
}

/// What the allocator gave a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAllocation {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Subnets and gateways, IPv4 first.
    pub subnets: Vec<Subnet>,
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Identity.
    pub id: SecretId,
    /// Versions and times.
    pub meta: Meta,
    /// Writer: user.
    pub spec: SecretSpec,
}

/// A config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Identity.
    pub id: ConfigId,
    /// Versions and times.
    pub meta: Meta,
    /// Writer: user.
    pub spec: ConfigSpec,
}

/// The cluster itself; there is exactly one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identity, also the organisation in all certificates.
    pub id: ClusterId,
    /// Versions and times.
    pub meta: Meta,
    /// Writer: user.
    pub spec: ClusterSpec,
    /// PEM of the root certificate. Writer: user.
    pub root_ca_cert: String,
    /// PEM of the root's key. Writer: user. Never leaves managers.
    pub root_ca_key: String,
    /// Secret part of the worker join token, 25 characters of base 36. Writer: user.
    pub worker_token: String,
    /// Secret part of the manager join token. Writer: user.
    pub manager_token: String,
    /// Identities that may not come back, with the end of their certificates. Writers: dispatcher (membership), and the
    /// user who removes a node.
    pub blacklisted: BTreeMap<NodeId, Timestamp>,
    /// Hostnames of those among [`Self::blacklisted`] that left of themselves: whoever removes them afterwards has what
    /// he wants. Writer: dispatcher (membership).
    pub departed: BTreeMap<NodeId, String>,
    /// Greatest Raft id ever given; ids are never reused. Writer: dispatcher (membership).
    pub last_raft_id: u64,
    /// Key under which managers seal their disks, 32 bytes; empty without autolock. Writer: user. Never leaves managers.
    pub unlock_key: Vec<u8>,
    /// A new root on its way in. Begun by the user, ended by the dispatcher when all nodes have certificates from it.
    pub root_rotation: Option<RootRotation>,
}

/// A new root certificate on its way in: nodes get certificates from it, which those that trust the old root believe
/// because of the cross-signed one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRotation {
    /// PEM of the new root certificate.
    pub ca_cert: String,
    /// PEM of its key.
    pub ca_key: String,
    /// PEM of a certificate of the new root's key by the old root.
    pub cross_signed: String,
}

impl std::fmt::Debug for RootRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootRotation").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// Any object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// A member.
    Node(Node),
    /// A service.
    Service(Service),
    /// A task.
    Task(Task),
    /// A network.
    Network(Network),
    /// A secret.
    Secret(Secret),
    /// A config.
    Config(Config),
    /// The cluster.
    Cluster(Cluster),
}

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKey {
    /// A member.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
    /// A network.
    Network(NetworkId),
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
    /// The cluster.
    Cluster,
}

impl Object {
    /// The object's name in the state.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Node(o) => ObjectKey::Node(o.id.clone()),
            Self::Service(o) => ObjectKey::Service(o.id.clone()),
            Self::Task(o) => ObjectKey::Task(o.id.clone()),
            Self::Network(o) => ObjectKey::Network(o.id.clone()),
            Self::Secret(o) => ObjectKey::Secret(o.id.clone()),
            Self::Config(o) => ObjectKey::Config(o.id.clone()),
            Self::Cluster(_) => ObjectKey::Cluster,
        }
    }

    /// Versions and times.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Node(o) => &o.meta,
            Self::Service(o) => &o.meta,
            Self::Task(o) => &o.meta,
            Self::Network(o) => &o.meta,
            Self::Secret(o) => &o.meta,
            Self::Config(o) => &o.meta,
            Self::Cluster(o) => &o.meta,
        }
    }

    /// Versions and times, to be set by `State::apply` alone.
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Node(o) => &mut o.meta,
            Self::Service(o) => &mut o.meta,
            Self::Task(o) => &mut o.meta,
            Self::Network(o) => &mut o.meta,
            Self::Secret(o) => &mut o.meta,
            Self::Config(o) => &mut o.meta,
            Self::Cluster(o) => &mut o.meta,
        }
    }
}

/// A set of changes that happen together or not at all: the unit of the Raft log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Who proposes it; may only change the facts that it owns.
    pub actor: Actor,
    /// The proposer's clock; becomes `updated_at` on every manager alike.
    pub at: Timestamp,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The wish of a user that they grant, where that shall happen once at most.
    #[serde(default)]
    pub wish: Option<Wish>,
}

/// What a user asked for, by a name that it keeps however often it is passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Its name: 128 random bits.
    pub id: u128,
    /// The object that it is about.
    pub about: ObjectKey,
    /// Of a wish that may have been granted already: what was decided up to this index was decided before it was made.
    pub since: Option<u64>,
}

/// A wish that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// By the entry at this index.
    pub index: u64,
    /// Name of the wish.
    pub id: u128,
    /// The object that it was about.
    pub about: ObjectKey,
}

/// The wishes that are remembered, as snapshots keep them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// Index of the latest one that is remembered no more.
    pub forgotten: u64,
    /// In the order in which they were granted.
    pub granted: Vec<Granted>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Makes or replaces an object.
    Put {
        /// The object as it shall be; its `meta` is set by `apply`.
        object: Box<Object>,
        /// What must be there before.
        expect: Expect,
    },
    /// Deletes an object.
    Delete {
        /// Which one.
        key: ObjectKey,
        /// What must be there before.
        expect: Expect,
    },
}

/// What must be true of the stored object for a change to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// It does not exist.
    Absent,
    /// It has this version.
    Version(u64),
}

/// What a session with a manager tells an agent, besides its assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Period of heartbeats.
    pub heartbeat_period: Duration,
    /// `host:port` of all managers.
    pub managers: Vec<String>,
    /// Role that the node should have.
    pub role: NodeRole,
}
