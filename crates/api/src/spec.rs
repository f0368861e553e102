//! What users ask for. A spec is written by the control API on behalf of users and by nobody else.
//!
//! Names and defaults are Swarm's; durations are [`Duration`]s, sizes bytes, CPUs billionths of a CPU.

use std::{collections::BTreeMap, net::IpAddr, ops::Deref, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod endpoint;
mod host;
pub mod labels;

use crate::{ConfigId, NetworkId, SecretId};
pub use crate::{container::ReadOnlyDepth, network::Protocol};
pub use endpoint::{Affinity, EndpointMode, EndpointSpec, FixedAddress, PortConfig, PublishMode};
pub use host::{Dependency, DependencyCondition, Device, HostOptions, PullPolicy};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Labels that many objects have in common and most have none of: a pointer, which copies share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Labels", into = "Labels")]
pub struct SharedLabels(Option<Arc<Labels>>);

impl From<Labels> for SharedLabels {
    fn from(labels: Labels) -> Self {
        Self((!labels.is_empty()).then(|| Arc::new(labels)))
    }
}

impl From<SharedLabels> for Labels {
    fn from(shared: SharedLabels) -> Self {
        shared.0.map(Arc::unwrap_or_clone).unwrap_or_default()
    }
}

impl Deref for SharedLabels {
    type Target = Labels;

    fn deref(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.0.as_deref().unwrap_or(&NONE)
    }
}

/// Name and labels, common to all specs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// Name, unique among objects of the kind.
    pub name: String,
    /// Labels for users and tools.
    pub labels: Labels,
}

/// What a user wants to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// What each task is.
    pub task: TaskSpec,
    /// How many tasks, and where.
    pub mode: ServiceMode,
    /// How an update replaces tasks; `None` is Swarm's default.
    pub update: Option<UpdateConfig>,
    /// How a rollback replaces tasks; `None` is Swarm's default.
    pub rollback: Option<UpdateConfig>,
    /// How the service is reached.
    pub endpoint: EndpointSpec,
    /// Time that each new task of an update has to run, else it counts as failed; `None` is 10 min, 0 is no limit.
    pub progress_deadline: Option<Duration>,
    /// Services that must have come so far before tasks of this one start.
    pub depends_on: Vec<Dependency>,
    /// How long to wait for optional ones; `None` is for ever.
    pub depends_on_timeout: Option<Duration>,
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMode {
    /// A number of interchangeable tasks in slots 1..=replicas.
    Replicated {
        /// Wanted number of tasks.
        replicas: u64,
    },
    /// One task on each node that fits.
    Global,
    /// Tasks that run to completion.
    ReplicatedJob {
        /// Tasks at the same time.
        max_concurrent: u64,
        /// Tasks that must complete.
        total_completions: u64,
    },
    /// One task that runs to completion on each node that fits.
    GlobalJob,
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What a task runs and under which conditions. Shared by all tasks of one spec version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    /// The container.
    pub container: ContainerTaskSpec,
    /// Limits and reservations.
    pub resources: ResourceRequirements,
    /// What happens when the task ends.
    pub restart: RestartPolicy,
    /// Which nodes may run it.
    pub placement: Placement,
    /// Networks to attach, in order; ingress is added by the allocator.
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Log driver; `None` is the node's default.
    pub log_driver: Option<Driver>,
    /// Grows with each `--force`, so that an equal spec still replaces tasks.
    pub force_update: u64,
    /// Container that a user started and that this task only attaches to its network; empty for tasks of services.
    pub attached_container: String,
}

/// The container of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerTaskSpec {
    /// Image reference, pinned with `@sha256:…` where it could be resolved.
    pub image: String,
    /// Labels of the container.
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Hostname, may be a template.
    pub hostname: String,
    /// `NAME=value`, may be templates.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// User, `name|uid[:group|gid]`.
    pub user: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Whether to allocate a terminal.
    pub tty: bool,
    /// Whether standard input stays open.
    pub open_stdin: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether to run an init as process 1.
    pub init: Option<bool>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Signal that asks the process to stop.
    pub stop_signal: String,
    /// Time between that signal and the kill; `None` is 10 s.
    pub stop_grace_period: Option<Duration>,
    /// Health check; `None` is the image's.
    pub healthcheck: Option<HealthConfig>,
    /// Extra lines of /etc/hosts, `IP name…`.
    pub hosts: Vec<String>,
    /// Resolver settings.
    pub dns: Option<DnsConfig>,
    /// Secrets to mount.
    pub secrets: Vec<SecretReference>,
    /// Configs to mount.
    pub configs: Vec<ConfigReference>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities to add to the default set.
    pub cap_add: Vec<String>,
    /// Capabilities to take from the default set.
    pub cap_drop: Vec<String>,
    /// Resource limits of the processes.
    pub ulimits: Vec<Ulimit>,
    /// Adjustment of the out-of-memory score, −1000 to 1000.
    pub oom_score_adj: Option<i64>,
    /// Credentials with which the nodes pull the image.
    pub pull_auth: PullAuth,
    /// What Swarm's API cannot say.
    pub host: HostOptions,
}

/// Registry credentials as the Engine API's `X-Registry-Auth` carries them; empty is none. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullAuth(pub String);

impl std::fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "…" })
    }
}

/// A mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// What kind of thing is mounted.
    pub kind: MountKind,
    /// Volume name or host path; empty for an anonymous volume and for tmpfs.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// `bind`: mount propagation, docker's words (`rprivate`, …); empty is the default.
    pub propagation: String,
    /// `bind`: make the host path if it is missing.
    pub create_source: bool,
    /// `bind`: without the mounts below the host path.
    pub non_recursive: bool,
    /// `bind`: how far down it is read-only, if it is.
    pub read_only_depth: ReadOnlyDepth,
    /// `volume`: do not copy the image's content into a new volume.
    pub no_copy: bool,
    /// `volume`: mount this path inside the volume.
    pub subpath: String,
    /// `volume`: labels of a volume that is made.
    pub labels: Labels,
    /// `volume`: driver and its options.
    pub driver: Option<Driver>,
    /// `tmpfs`: size limit, 0 is none.
    pub tmpfs_size_bytes: u64,
    /// `tmpfs`: permission bits, 0 is 01777.
    pub tmpfs_mode: u32,
    /// `tmpfs`: further options, `uid=1000` or `exec`.
    pub tmpfs_options: Vec<String>,
}

/// Kind of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// A named or anonymous volume.
    #[default]
    Volume,
    /// Memory.
    Tmpfs,
}

/// A driver by name with options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Driver {
    /// Name of the driver.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// A health check, as docker's `HealthConfig`. Zero durations and retries are docker's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthConfig {
    /// `[]` inherits, `["NONE"]` disables, `["CMD", …]` or `["CMD-SHELL", …]` runs.
    pub test: Vec<String>,
    /// Time between checks; 0 is 30 s.
    pub interval: Duration,
    /// Time after which a check has failed; 0 is 30 s.
    pub timeout: Duration,
    /// Failures in a row until unhealthy; 0 is 3.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period: Duration,
    /// Time between checks during the start period; 0 is 5 s.
    pub start_interval: Duration,
}

/// Resolver settings of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Upstream servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// resolv.conf options.
    pub options: Vec<String>,
}

/// A resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ulimit {
    /// Name as in setrlimit(2), lower case, without `RLIMIT_`.
    pub name: String,
    /// Soft limit, −1 is unlimited.
    pub soft: i64,
    /// Hard limit, −1 is unlimited.
    pub hard: i64,
}

/// Where a secret or config appears in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileTarget {
    /// File name, below /run/secrets for secrets and / for configs unless absolute.
    pub name: String,
    /// Owner.
    pub uid: String,
    /// Group.
    pub gid: String,
    /// Permission bits.
    pub mode: u32,
}

/// A secret that a task uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    /// The secret.
    pub id: SecretId,
    /// Its name, for messages.
    pub name: String,
    /// The file in the container.
    pub target: FileTarget,
}

/// A config that a task uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReference {
    /// The config.
    pub id: ConfigId,
    /// Its name, for messages.
    pub name: String,
    /// The file in the container.
    pub target: FileTarget,
}

/// Limits and reservations of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// What the task may use at most; enforced by the node.
    pub limits: Resources,
    /// What must be free on a node; used by the scheduler.
    pub reservations: Resources,
}

/// Amounts of resources, 0 is "not said".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// Processes; limits only.
    pub pids: u64,
    /// Generic resources: a kind with either a count or names.
    pub generic: BTreeMap<String, GenericResource>,
}

/// An amount of a generic resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenericResource {
    /// A number of interchangeable things.
    Discrete(u64),
    /// Things with names.
    Named(Vec<String>),
}

/// What happens when a task ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    /// After which ends the task is replaced.
    pub condition: RestartCondition,
    /// Time between the end and the start of the replacement.
    pub delay: Duration,
    /// Replacements at most within `window`; 0 is no limit.
    pub max_attempts: u64,
    /// Window for `max_attempts`; 0 is unbounded.
    pub window: Duration,
    /// Whether each restart in a row waits twice as long as the one before, from `delay` up to 300 s.
    pub backoff: bool,
}

impl Default for RestartPolicy {
    /// SwarmKit's `api/defaults/service.go`.
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
            backoff: false,
        }
    }
}

/// After which ends a task is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartCondition {
    /// Never.
    None,
    /// After a failure.
    OnFailure,
    /// Always.
    #[default]
    Any,
}

/// Which nodes may run a task, and which are liked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `key==value` or `key!=value`, all must hold.
    pub constraints: Vec<String>,
    /// Spread over the values of these node attributes, in order of weight (`spread=node.labels.zone`).
    pub spread: Vec<String>,
    /// Tasks of the service per node at most; 0 is no limit.
    pub max_replicas: u64,
    /// Platforms of the image; empty is any.
    pub platforms: Vec<Platform>,
    /// Whether tasks run only where their named volumes are, once some node has them. From a label.
    pub stay_with_volumes: bool,
}

/// Operating system and processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name: `amd64`, `arm64`, …
    pub architecture: String,
}

/// A network that tasks attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentSpec {
    /// The network, or the predefined node network `host` by its name in `target_name`.
    pub target: NetworkTarget,
    /// Names of the service in this network besides its own.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Fixed addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Options of the driver.
    #[serde(default)]
    pub driver_options: BTreeMap<String, String>,
}

/// What an attachment leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkTarget {
    /// A cluster network.
    Cluster(NetworkId),
    /// A network of the node itself, for instance `host` or `bridge`.
    Node(String),
}

/// How an update replaces tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots at the same time; 0 is all.
    pub parallelism: u64,
    /// Pause after each batch.
    pub delay: Duration,
    /// What to do when too many fail.
    pub failure_action: FailureAction,
    /// How long a new task is watched after it runs.
    pub monitor: Duration,
    /// Share of failures that is tolerated.
    pub max_failure_ratio: f32,
    /// Whether the old task stops before the new one starts.
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    /// SwarmKit's `api/defaults/service.go`.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// What an update does when too many tasks fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// Stops where it is.
    #[default]
    Pause,
    /// Goes on.
    Continue,
    /// Goes back to the previous spec.
    Rollback,
}

/// Order of stop and start in an update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateOrder {
    /// The old task stops, then the new one starts.
    #[default]
    StopFirst,
    /// The new task runs, then the old one stops.
    StartFirst,
}

/// What a user may say of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Name (usually empty) and labels.
    pub annotations: Annotations,
    /// Wanted role.
    pub role: NodeRole,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// Role of a node.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Runs tasks.
    #[default]
    Worker,
    /// Also keeps the cluster's state.
    Manager,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// Takes tasks.
    #[default]
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Gives its tasks away.
    Drain,
}

/// A cluster network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// Driver and options; `overlay`.
    pub driver: Driver,
    /// Whether it has no way out.
    pub internal: bool,
    /// Whether plain containers may join.
    pub attachable: bool,
    /// Whether it is the ingress network.
    pub ingress: bool,
    /// Whether it has IPv6 too.
    pub ipv6: bool,
    /// Subnets asked for; empty lets the allocator choose.
    pub ipam: Vec<IpamConfig>,
}

/// A subnet asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfig {
    /// The subnet.
    pub subnet: Option<IpNet>,
    /// Part of it from which addresses are given.
    #[serde(default)]
    pub ip_range: Option<IpNet>,
    /// The gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A secret. The data travels to tasks only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// 1 to 512,000 bytes (SwarmKit's `api/validation/secrets.go`).
    pub data: Vec<u8>,
    /// If the data is a template, its driver: [`crate::template::task::DRIVER`].
    pub templating: Option<Driver>,
}

impl std::fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = self.data.len();
        f.debug_struct("SecretSpec")
            .field("annotations", &self.annotations)
            .field("data_bytes", &size)
            .field("templating", &self.templating)
            .finish()
    }
}

/// A config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// 1 to 1,024,000 bytes.
    pub data: Vec<u8>,
    /// If the data is a template, its driver: [`crate::template::task::DRIVER`].
    pub templating: Option<Driver>,
}

/// Settings of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    /// Name, `default`, and labels.
    pub annotations: Annotations,
    /// Finished tasks kept per slot, the current one included; negative keeps all.
    pub task_history_limit: i64,
    /// Log entries between snapshots.
    pub snapshot_interval: u64,
    /// Period of agents' heartbeats.
    pub heartbeat_period: Duration,
    /// Validity of node certificates.
    pub cert_expiry: Duration,
    /// Pools from which subnets are cut.
    pub default_address_pools: Vec<IpNet>,
    /// Prefix length of the subnets cut from them.
    pub subnet_size: u8,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// Whether managers' disks are sealed.
    pub autolock: bool,
    /// Raised to have the root certificate replaced.
    pub force_rotate: u64,
}

impl Default for ClusterSpec {
    /// `docker swarm init`'s defaults, but for the heartbeat, which is what makes failover quick.
    fn default() -> Self {
        Self {
            annotations: Annotations {
                name: "default".to_owned(),
                labels: Labels::new(),
            },
            task_history_limit: 5,
            snapshot_interval: 10_000,
            heartbeat_period: Duration::from_millis(500),
            cert_expiry: Duration::from_secs(90 * 24 * 3_600),
            default_address_pools: vec!["10.0.0.0/8".parse().expect("a literal prefix")],
            subnet_size: 24,
            data_path_port: crate::network::VXLAN_PORT,
            autolock: false,
            force_rotate: 0,
        }
    }
}
