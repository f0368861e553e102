//! What a user may ask of a container: the body of `POST /containers/create`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything a new container is made of. `Default` with an `image` is what `docker run IMAGE` sends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// The wanted name, without a leading slash; absent lets the engine invent one.
    pub name: Option<String>,
    /// Image reference or id, as the user wrote it.
    pub image: String,
    /// Replaces the image's entry point; `Some(vec![])` clears it (and the image's command with it).
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// `KEY=value`, laid over the image's; a bare `KEY` removes the variable.
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`, resolved in the container's own `/etc/passwd` and `/etc/group`.
    pub user: Option<String>,
    /// Absent means the first twelve digits of the id.
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub tty: bool,
    pub open_stdin: bool,
    /// Standard input closes when the first attached client goes.
    pub stdin_once: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    /// Name or number; absent means the image's, else `SIGTERM`.
    pub stop_signal: Option<String>,
    /// Grace between the stop signal and the kill; absent means 10 s.
    pub stop_timeout: Option<Duration>,
    /// Absent means the image's.
    pub healthcheck: Option<HealthCheck>,
    /// Ports that the container listens on, published only with `publish_all_ports`.
    pub exposed_ports: BTreeSet<Port>,
    /// Anonymous volumes at these paths (`Config.Volumes`).
    pub volumes: BTreeSet<String>,
    /// The kernel namespaces, rights, limits and mounts (`HostConfig`).
    pub host: HostSpec,
    /// Networks by name or id with the settings of this endpoint; the first is `host.network_mode` when that is a network.
    pub endpoints: BTreeMap<String, EndpointSpec>,
}

/// A health check. Absent durations are Docker's: 30 s interval and timeout, no start period, 3 retries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// `[]` inherits the image's test, `["NONE"]` disables, else `["CMD", …]` or `["CMD-SHELL", command]`.
    pub test: Vec<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    /// Interval while the start period lasts; absent means 5 s.
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

/// The part of a container's spec that concerns this host (`HostConfig`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSpec {
    /// `source:target[:options]`; a source without a slash is a named volume.
    pub binds: Vec<String>,
    pub mounts: Vec<MountSpec>,
    /// Target to mount options.
    pub tmpfs: BTreeMap<String, String>,
    pub volumes_from: Vec<String>,
    pub volume_driver: Option<String>,
    pub network_mode: NetworkMode,
    pub port_bindings: BTreeMap<Port, Vec<PortBinding>>,
    pub publish_all_ports: bool,
    pub links: Vec<String>,
    pub dns: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    /// `name:address` or `name:host-gateway`.
    pub extra_hosts: Vec<String>,
    pub restart: RestartPolicy,
    pub auto_remove: bool,
    pub privileged: bool,
    /// Names with or without `CAP_`, or `ALL`.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub security_opt: Vec<String>,
    pub readonly_rootfs: bool,
    pub devices: Vec<DeviceSpec>,
    pub device_cgroup_rules: Vec<String>,
    /// Requests for GPUs and the like.
    pub device_requests: Vec<DeviceRequest>,
    pub ulimits: Vec<Ulimit>,
    pub sysctls: BTreeMap<String, String>,
    pub resources: Resources,
    /// Size of `/dev/shm`; absent means 64 MiB.
    pub shm_size: Option<u64>,
    /// Run a small init as process 1; absent means the engine's default (no).
    pub init: Option<bool>,
    pub log: LogConfig,
    pub group_add: Vec<String>,
    pub pid_mode: Option<String>,
    pub ipc_mode: Option<String>,
    pub uts_mode: Option<String>,
    pub userns_mode: Option<String>,
    pub cgroupns_mode: Option<String>,
    pub cgroup_parent: Option<String>,
    pub oom_score_adj: i32,
    /// Rows and columns that the terminal of process 1 begins with.
    pub console_size: Option<(u16, u16)>,
    /// OCI runtime; only the built-in one exists.
    pub runtime: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub storage_opt: BTreeMap<String, String>,
    /// Absent means the engine's defaults.
    pub masked_paths: Option<Vec<String>>,
    /// Absent means the engine's defaults.
    pub readonly_paths: Option<Vec<String>>,
}

/// Which network stack a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The engine's default network, `bridge`.
    #[default]
    Default,
    /// A namespace with nothing but loopback.
    None,
    /// The host's own.
    Host,
    /// That of another container, by name or id.
    Container(String),
    /// A network by name or id (also `bridge`).
    Network(String),
}

/// How one container takes part in one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub aliases: Vec<String>,
    pub links: Vec<String>,
    /// A wanted address; absent lets the network choose.
    pub ipv4: Option<std::net::Ipv4Addr>,
    pub ipv6: Option<std::net::Ipv6Addr>,
    pub link_local: Vec<IpAddr>,
    pub mac_address: Option<String>,
    pub driver_opts: BTreeMap<String, String>,
    pub gw_priority: i64,
}

/// A transport protocol of a published port.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl PortProtocol {
    /// As in `80/tcp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the container, written `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    pub number: u16,
    pub protocol: PortProtocol,
}

/// The text is not `PORT[/PROTOCOL]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid port specification: {0:?}")]
pub struct InvalidPort(pub String);

impl std::str::FromStr for Port {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPort(text.to_owned());
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => PortProtocol::Tcp,
            "udp" => PortProtocol::Udp,
            "sctp" => PortProtocol::Sctp,
            _ => return Err(invalid()),
        };
        let number = number.parse().map_err(|_| invalid())?;
        Ok(Self { number, protocol })
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

impl TryFrom<String> for Port {
    type Error = InvalidPort;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

/// Where on the host a container port is published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortBinding {
    /// Absent means every address of the host.
    pub host_ip: Option<IpAddr>,
    /// The first and last port to choose from; absent lets the engine choose.
    pub host_ports: Option<(u16, u16)>,
}

/// A mount in the long form (`--mount`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountKind {
    /// A directory or file of the host.
    Bind {
        source: String,
        #[serde(default)]
        propagation: Propagation,
        #[serde(default)]
        non_recursive: bool,
        /// Make the source directory when it is missing, as `-v` does.
        #[serde(default)]
        create_source: bool,
        /// How far down it is read-only, if it is.
        #[serde(default)]
        read_only_depth: ReadOnlyDepth,
    },
    /// A volume; without a name an anonymous one.
    Volume {
        name: Option<String>,
        /// Leave a fresh volume empty instead of copying what the image has at the target.
        #[serde(default)]
        no_copy: bool,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        driver: Option<String>,
        #[serde(default)]
        driver_opts: BTreeMap<String, String>,
        #[serde(default)]
        subpath: Option<String>,
    },
    /// Memory.
    Tmpfs {
        #[serde(default)]
        size: Option<u64>,
        #[serde(default)]
        mode: Option<u32>,
    },
    /// The files of an image, to be read.
    Image {
        /// Reference or id.
        source: String,
        /// The part of them that is mounted, instead of all.
        #[serde(default)]
        subpath: Option<String>,
    },
}

/// How far down a read-only bind mount is read-only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnlyDepth {
    /// With all that is mounted below it, where the kernel can do that.
    #[default]
    AsPossible,
    /// Itself alone.
    Itself,
    /// With all that is mounted below it, or not at all.
    All,
}

/// How mounts made later travel between host and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    #[default]
    Rprivate,
    Private,
    Rshared,
    Shared,
    Rslave,
    Slave,
}

impl Propagation {
    /// The mount option's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rprivate => "rprivate",
            Self::Private => "private",
            Self::Rshared => "rshared",
            Self::Shared => "shared",
            Self::Rslave => "rslave",
            Self::Slave => "slave",
        }
    }
}

/// When the engine starts a container again by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    Always,
    UnlessStopped,
    OnFailure {
        /// Zero means without end.
        #[serde(default)]
        max_retries: u32,
    },
}

/// A device node of the host, made visible in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    pub host_path: String,
    pub container_path: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Devices that are not named by path: by their names of the Container Device Interface, or as so many of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRequest {
    /// `cdi` for names; else empty or a vendor.
    pub driver: String,
    /// How many; -1 is all.
    pub count: i64,
    pub device_ids: Vec<String>,
    /// Sets of which one must be met.
    pub capabilities: Vec<Vec<String>>,
    pub options: BTreeMap<String, String>,
}

impl DeviceRequest {
    /// Devices by name.
    pub fn named(names: Vec<String>) -> Self {
        Self {
            driver: "cdi".to_owned(),
            device_ids: names,
            ..Self::default()
        }
    }
}

/// One `setrlimit`; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As in `nofile`.
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// Limits of the container's cgroup. Absent is unlimited (or the kernel's default).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub memory_bytes: Option<u64>,
    pub memory_reservation_bytes: Option<u64>,
    /// Memory and swap together; -1 is unlimited swap.
    pub memory_swap_bytes: Option<i64>,
    pub memory_swappiness: Option<u64>,
    pub kernel_memory_tcp_bytes: Option<u64>,
    pub oom_kill_disable: bool,
    /// Billionths of a CPU; excludes `cpu_quota` and `cpu_period`.
    pub nano_cpus: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub cpu_realtime_period_us: Option<u64>,
    pub cpu_realtime_runtime_us: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Zero and below mean unlimited.
    pub pids: Option<i64>,
    pub blkio_weight: Option<u16>,
    /// Per-device block I/O limits, in Docker's field names.
    pub blkio_devices: BTreeMap<String, Vec<String>>,
}

/// Where the container's output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `json-file` (also when absent) or `none`.
    pub driver: Option<String>,
    pub options: BTreeMap<String, String>,
}
