//! Options of a task's container that `docker run` has and Swarm's API lacks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a task's container may have of its host beyond what Swarm's API can say; all empty is docker's default.
///
/// Reached by labels of the service, see [`super::labels`]. Words and meanings are those of `docker run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostOptions {
    /// All capabilities, all devices, no confinement.
    pub privileged: bool,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Rules of the device cgroup, `c 10:200 rwm`.
    pub device_cgroup_rules: Vec<String>,
    /// Devices by their name in the Container Device Interface, `vendor.com/class=name`.
    pub cdi_devices: Vec<String>,
    /// `no-new-privileges`, `seccomp=…`, `apparmor=…`, `label=…`, `systempaths=unconfined`.
    pub security_opt: Vec<String>,
    /// Size of /dev/shm; 0 is the engine's default.
    pub shm_size_bytes: u64,
    /// `none`, `private`, `shareable` or `host`; empty is private.
    pub ipc_mode: String,
    /// `host`; empty is private.
    pub pid_mode: String,
    /// `host`; empty is private.
    pub uts_mode: String,
    /// `host`; empty is the engine's default.
    pub userns_mode: String,
    /// `private` or `host`; empty is the engine's default.
    pub cgroupns_mode: String,
    /// Parent of the container's cgroup; empty is the engine's.
    pub cgroup_parent: String,
    /// NIS domain name.
    pub domainname: String,
    /// When the image is pulled.
    pub pull_policy: PullPolicy,
    /// Processors on which it may run, `0-3,5`; empty is all.
    pub cpuset_cpus: String,
    /// Memory and swap together, −1 is unlimited swap.
    pub memory_swap_bytes: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// Whether the kernel must not kill it when memory runs out.
    pub oom_kill_disable: bool,
}

/// A device of the host in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path on the host.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// Some of `rwm`: read, write, make nodes.
    pub permissions: String,
}

impl std::str::FromStr for Device {
    type Err = String;
    /// Reads `HOST[:CONTAINER][:PERMISSIONS]` as `docker run --device` does.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_mode = |part: &str| !part.is_empty() && part.chars().all(|c| "rwm".contains(c));
        let parts: Vec<&str> = text.split(':').collect();
        let (host, container, mode) = match parts[..] {
            [host] => (host, host, "rwm"),
            [host, mode] if is_mode(mode) => (host, host, mode),
            [host, container] => (host, container, "rwm"),
            [host, container, mode] if is_mode(mode) => (host, container, mode),
            [_, _, mode] => return Err(format!("invalid device mode: {mode}")),
            _ => return Err(format!("invalid device specification: {text}")),
        };
        if !host.starts_with('/') || !container.starts_with('/') {
            return Err(format!(
                "invalid device specification: {text}: paths must be absolute"
            ));
        }
        Ok(Self {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: mode.to_owned(),
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}",
            self.host_path, self.container_path, self.permissions
        )
    }
}

/// When a node pulls the image of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Always tried; what the node has serves if that fails.
    #[default]
    Auto,
    /// Always, and the task fails without it.
    Always,
    /// Only what the node lacks.
    Missing,
    /// Never: the node has it or the task fails.
    Never,
}

/// A service that must have come so far before tasks start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dependency {
    /// Name of the other service; within a stack also without the stack's name.
    pub service: String,
    /// How far it must have come.
    pub condition: DependencyCondition,
    /// Whether its absence, or its lateness, stops this service from starting.
    pub required: bool,
}

/// How far a service must have come (compose-spec, `depends_on`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// A task of each of its slots has started.
    #[default]
    Started,
    /// All its tasks run, and are healthy where that is checked.
    Healthy,
    /// It is a job, or a service that ends, and has ended with success.
    CompletedSuccessfully,
}

impl DependencyCondition {
    /// The compose-spec's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "service_started",
            Self::Healthy => "service_healthy",
            Self::CompletedSuccessfully => "service_completed_successfully",
        }
    }
}

impl std::str::FromStr for DependencyCondition {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Started, Self::Healthy, Self::CompletedSuccessfully]
            .into_iter()
            .find(|condition| condition.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "invalid condition {text:?}: expected service_started, service_healthy or \
                     service_completed_successfully"
                )
            })
    }
}
