//! What flows out of a container and what can be started in a running one: logs, execs, statistics, events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ContainerId, ContainerStatus, Port};
use crate::Timestamp;

/// Which of the three standard streams. The numbers are those of Docker's stream frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum StdStream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

/// One line of output, or a part of a line longer than 16 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub stream: StdStream,
    pub time: Timestamp,
    /// With its newline, if it has one.
    pub bytes: Vec<u8>,
}

/// Which log lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogQuery {
    pub stdout: bool,
    pub stderr: bool,
    /// Go on with lines as they are written, until the container ends.
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only the last so many lines; absent means all.
    pub tail: Option<usize>,
}

/// A further process in a running container: the body of `POST /containers/{id}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub tty: bool,
    pub privileged: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub detach_keys: Option<String>,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
}

/// What is known of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInspect {
    pub id: String,
    pub container: ContainerId,
    pub spec: ExecSpec,
    pub running: bool,
    /// Absent until it has ended.
    pub exit_code: Option<i32>,
    /// As the host sees it; zero when there is none.
    pub pid: i32,
}

/// Use of resources by one container at one instant. Counters only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub read: Timestamp,
    pub cpu: CpuStats,
    pub memory: MemoryStats,
    pub pids: PidsStats,
    pub blkio: BlkioStats,
    /// By interface name inside the container.
    pub networks: BTreeMap<String, InterfaceStats>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    pub total_ns: u64,
    pub user_ns: u64,
    pub kernel_ns: u64,
    /// All the host's CPU time, used or idle.
    pub system_ns: u64,
    pub online_cpus: u32,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    pub usage_bytes: u64,
    /// The host's memory when there is no limit.
    pub limit_bytes: u64,
    /// The kernel's `memory.stat`.
    pub stats: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    pub current: u64,
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioStats {
    pub read_bytes: u64,
    pub write_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Something that happened, as `docker events` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: EventKind,
    /// Docker's word: `create`, `start`, `die`, `health_status: healthy`, `exec_create: ls`, …
    pub action: String,
    pub actor: EventActor,
    pub time: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    Container,
    Image,
    Volume,
    Network,
    Service,
    Node,
    Secret,
    Config,
    /// An extension of Shoal's: a task has come to a state.
    Task,
    Daemon,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventActor {
    pub id: String,
    /// Labels and such things as `name`, `image`, `exitCode`, `signal`.
    pub attributes: BTreeMap<String, String>,
}

/// Which containers are wanted. Kinds are and-ed, the values of one kind or-ed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFilter {
    /// Also those that do not run; implied by `status`.
    pub all: bool,
    pub limit: Option<usize>,
    /// Compute `size_rw`.
    pub size: bool,
    /// Prefixes of ids.
    pub id: Vec<String>,
    /// Parts of names.
    pub name: Vec<String>,
    /// `key` or `key=value`; all of them must match.
    pub label: Vec<String>,
    pub status: Vec<ContainerStatus>,
    pub ancestor: Vec<String>,
    pub exited: Vec<i32>,
    /// `starting`, `healthy`, `unhealthy`, `none`.
    pub health: Vec<String>,
    pub volume: Vec<String>,
    pub network: Vec<String>,
    pub publish: Vec<Port>,
    /// Ids or names: only containers made before / after these.
    pub before: Vec<String>,
    pub since: Vec<String>,
}
