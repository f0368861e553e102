//! What can be seen of a container.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ContainerId, ContainerSpec, EndpointSpec, Port, PortProtocol};
use crate::Timestamp;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerStatus {
    #[default]
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

impl ContainerStatus {
    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Has processes: running or paused.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The life of a container at one instant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub status: ContainerStatus,
    /// Process 1 as the host sees it; zero when there is none.
    pub pid: i32,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why the last start failed; empty when it did not.
    pub error: String,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub health: Option<Health>,
}

/// The verdict of a container's health check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The latest probes, oldest first, at most five.
    pub log: Vec<HealthProbe>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One run of a health check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthProbe {
    pub start: Timestamp,
    pub end: Timestamp,
    /// 0 healthy, 1 unhealthy, 2 reserved, -1 the probe itself failed or timed out.
    pub exit_code: i32,
    /// At most 4 KiB.
    pub output: String,
}

/// One row of `docker ps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSummary {
    pub id: ContainerId,
    pub name: String,
    /// As the user wrote it.
    pub image: String,
    pub image_id: String,
    /// Entry point and command in one line.
    pub command: String,
    pub created: Timestamp,
    pub state: ContainerState,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<PublishedPort>,
    pub mounts: Vec<MountPoint>,
    /// `none`, `host`, `bridge`, `container:<id>` or a network's name.
    pub network_mode: String,
    pub networks: BTreeMap<String, EndpointInfo>,
    /// Bytes in the writable layer, when asked for.
    pub size_rw: Option<u64>,
    /// The same with those of the image, unless that is gone.
    pub size_root_fs: Option<u64>,
    /// Names that others gave it by linking to it: `other/alias`.
    pub link_names: Vec<String>,
}

/// All about one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerInspect {
    pub id: ContainerId,
    /// Without the leading slash that the Engine API shows.
    pub name: String,
    pub created: Timestamp,
    /// The executable and its arguments.
    pub path: String,
    pub args: Vec<String>,
    pub state: ContainerState,
    pub image_id: String,
    pub restart_count: u32,
    /// The spec with the image's configuration merged in: what runs.
    pub spec: ContainerSpec,
    pub network: NetworkSettings,
    pub mounts: Vec<MountPoint>,
    pub resolv_conf_path: PathBuf,
    pub hostname_path: PathBuf,
    pub hosts_path: PathBuf,
    pub log_path: PathBuf,
    pub graph: GraphPaths,
    pub exec_ids: Vec<String>,
    pub size_rw: Option<u64>,
    pub size_root_fs: Option<u64>,
    /// What is said of every line of its log to those who want details.
    pub log_attributes: BTreeMap<String, String>,
}

/// The directories of the container's overlay filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphPaths {
    /// Lowest first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
}

/// A mount as it is, not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// Volume name; empty for others.
    pub name: String,
    pub source: PathBuf,
    pub destination: String,
    pub driver: String,
    /// The options as written, such as `ro,z`.
    pub mode: String,
    pub rw: bool,
    pub propagation: String,
}

/// How a container is reachable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSettings {
    /// Path of the network namespace; absent when it has none of its own or is not running.
    pub sandbox: Option<PathBuf>,
    pub sandbox_id: String,
    pub ports: BTreeMap<Port, Vec<PublishedPort>>,
    /// By network name.
    pub networks: BTreeMap<String, EndpointInfo>,
}

/// One endpoint as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointInfo {
    pub network_id: String,
    pub endpoint_id: String,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv4_prefix_len: u8,
    pub gateway: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub ipv6_prefix_len: u8,
    pub ipv6_gateway: Option<Ipv6Addr>,
    pub mac_address: Option<String>,
    /// Names that resolve to this endpoint.
    pub dns_names: Vec<String>,
    /// What was asked for.
    pub spec: EndpointSpec,
}

/// A container port and where on the host it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub host_ip: Option<IpAddr>,
    /// Absent when the port is exposed but not published.
    pub host_port: Option<u16>,
    pub container_port: u16,
    pub protocol: PortProtocol,
}

/// A named store of data that outlives containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    pub mountpoint: PathBuf,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    /// Made by the engine for a container, without a name given by the user.
    pub anonymous: bool,
}

/// What `volume create` can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeSpec {
    /// Absent makes an anonymous volume with a random name.
    pub name: Option<String>,
    pub driver: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// A file of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// The last part of its path.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// The kernel's `st_mode`.
    pub mode: u32,
    pub mtime: Timestamp,
    /// Where a link leads to, as a path of the container; empty for anything else.
    pub link_target: String,
}

/// How a path of a container differs from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

/// `docker top`: the processes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessList {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}
