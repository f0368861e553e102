//! What the daemon and a shim say to each other.
//!
//! A connection to a shim's socket carries frames: one byte of kind, four bytes of length (big endian), the payload.
//! Kinds 0 to 2 are the bytes of the standard streams and flow once a connection is attached; an empty frame of kind
//! 0 ends standard input. Kind 3 is a JSON message: [`Request`] towards the shim, [`Reply`] back. Replies come in the
//! order of requests; [`Reply::Exited`] comes whenever it is due.

use std::path::PathBuf;

use crate::core::logging::SyslogTarget;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use shoal_api::Timestamp;
use shoal_api::container::StdStream;

/// The version of this protocol. Both sides pass over members that they do not know, and take those that are missing
/// for their defaults, so that a newer daemon takes over the shims of an older one; the number is for what that alone
/// cannot express.
pub const VERSION: u32 = 2;
/// Longest payload either side accepts. Both sides send stream data in far smaller pieces.
pub const FRAME_MAX: usize = 1 << 20;
/// Bytes before the payload.
pub const FRAME_HEADER: usize = 5;
/// The kind of a JSON frame.
pub const KIND_MESSAGE: u8 = 3;
/// Name of a shim's socket in its run directory.
pub const SOCKET_NAME: &str = "s";
/// Name of the file in the run directory that tells the shim what to run; there before it is told to prepare or start.
pub const LAUNCH_NAME: &str = "launch.json";
/// Name of the file in the run directory that holds the program of the container's system call filter, if that was
/// compiled ahead: it is the one of the spec.
pub const FILTER_NAME: &str = "filter.bpf";
/// Name of the directory in the run directory with the sources of mounts that the shim makes ready.
pub const STAGE_NAME: &str = "stage";
/// Name of the file in the container's directory that tells how it ended.
pub const EXIT_NAME: &str = "exit.json";

/// What a shim has to know while it supervises: the message to the process that forks shims. Small, because it
/// stays in the shim's memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Supervise {
    pub id: String,
    /// Counts the starts of this container, so that an old exit record is not taken for a new one.
    pub start: u64,
    /// The container's persistent directory: `upper`, `work`, the exit record.
    pub container_dir: PathBuf,
    /// The container's run directory, mode 0700.
    pub run_dir: PathBuf,
    pub tty: bool,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub log: LogSetup,
    /// Directories of the container's cgroup, one per hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// The container's processes have numbers of their own.
    #[serde(default)]
    pub own_pids: bool,
}

/// What to run: written by the daemon into the run directory, read only by the short-lived process that builds the
/// container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The OCI spec, complete but for the user and what depends on it.
    pub spec: Spec,
    /// As the user wrote it; empty means root.
    pub user: String,
    pub group_add: Vec<String>,
    /// Layer directories, lowest first.
    pub layers: Vec<PathBuf>,
    /// Nothing of the writable layer need survive a crash of the host.
    pub volatile: bool,
    /// Fresh volumes to be filled with what the image has at their targets.
    pub populate: Vec<Populate>,
    /// Make a network namespace of its own with nothing but loopback in it.
    pub loopback_only: bool,
    /// Sources of mounts that are made ready below [`STAGE_NAME`], by number.
    #[serde(default)]
    pub staged: Vec<Staged>,
    /// Keep a process 1 that passes signals on and waits for orphans.
    #[serde(default)]
    pub init: bool,
    /// Look around instead of running anything: the self-test.
    pub probe: bool,
}

/// One fresh volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Populate {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// The volume's directory on the host.
    pub volume: PathBuf,
}

/// The source of a mount, below the run directory and in the builder's mount namespace only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Staged {
    /// A place in a volume.
    Subpath { volume: PathBuf, path: PathBuf },
    /// The shared memory of the container whose process 1 this is.
    Shm { pid: i32 },
    /// Layers of an image, lowest first, to be read, or a place in them.
    Image {
        layers: Vec<PathBuf>,
        subpath: Option<PathBuf>,
    },
    /// A directory of the host whose mounts are the container's and the other way round; it is laid over what is
    /// mounted at `target` already.
    Shared {
        source: PathBuf,
        target: PathBuf,
        /// With all that is mounted below it.
        recursive: bool,
        read_only: bool,
        /// With all that is mounted below it.
        read_only_below: bool,
    },
}

/// Where output goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogSetup {
    /// Absent keeps nothing here.
    pub file: Option<LogFile>,
    /// A service that takes it too.
    pub remote: Option<RemoteLog>,
    /// Bytes of lines that may wait for the log, if the container is not to (`mode=non-blocking`).
    #[serde(default)]
    pub buffer: Option<u64>,
}

/// A log service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RemoteLog {
    Syslog {
        target: SyslogTarget,
        tag: String,
        /// Process that is named as the sender.
        pid: u32,
    },
    Journal {
        fields: Vec<(String, String)>,
    },
}

/// A log in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogFile {
    pub path: PathBuf,
    /// Rotate before the file grows beyond this many bytes.
    pub max_size: Option<u64>,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// In the compact form instead of JSON.
    pub compact: bool,
    /// Compress what is no longer written.
    pub compress: bool,
    /// What is said of every line, as a JSON object; empty says nothing.
    pub attributes: String,
}

/// What is asked of a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Build the container as far as it goes while its network is not there yet. Only once, and not answered.
    Prepare,
    /// Run the container, building it first if that has not begun. Only once; answered by `Started` or `Failed`.
    Start,
    /// What became of the container; answered by `State`.
    State,
    /// Send a signal to process 1, or with `exec` to that process.
    Kill { exec: Option<String>, signal: i32 },
    /// Set a terminal's size. Without `exec` that of process 1.
    Resize {
        exec: Option<String>,
        rows: u16,
        cols: u16,
    },
    /// Turn this connection into the streams of process 1; answered by `Done`.
    Attach(Streams),
    /// Start a process in the container and turn this connection into its streams.
    Exec(Box<ExecLaunch>),
}

/// Which streams a connection wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Streams {
    pub(crate) fn wants(self, stream: StdStream) -> bool {
        match stream {
            StdStream::Stdin => self.stdin,
            StdStream::Stdout => self.stdout,
            StdStream::Stderr => self.stderr,
        }
    }
}

/// A further process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecLaunch {
    pub id: String,
    pub args: Vec<String>,
    /// Laid over the environment of the container's own process.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    /// Absent means the user of the container's own process.
    pub user: Option<String>,
    pub tty: bool,
    pub console_size: Option<(u16, u16)>,
    pub privileged: bool,
    pub streams: Streams,
}

/// What a shim answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Started {
        pid: i32,
        at: Timestamp,
    },
    Failed(Failure),
    State {
        start: u64,
        pid: i32,
        started_at: Timestamp,
        exit: Option<Exit>,
        /// Version of this protocol that the shim speaks; one that does not say so speaks the first.
        #[serde(default)]
        version: u32,
        /// Execs that run.
        #[serde(default)]
        execs: Vec<String>,
        /// Execs that ended while no daemon listened, the latest of them.
        #[serde(default)]
        ended_execs: Vec<(String, Exit)>,
    },
    /// Process 1 ended, or with `exec` that process.
    Exited {
        exec: Option<String>,
        exit: Exit,
    },
}

/// Why a process could not be started, with Docker's exit code for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// 126 cannot be invoked, 127 not found, 128 anything else.
    pub exit_code: i32,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            exit_code: 128,
            message: message.into(),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, or 128 plus the signal that ended it.
    pub code: i32,
    pub at: Timestamp,
    pub oom_killed: bool,
}

/// The exit record on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub start: u64,
    pub started_at: Timestamp,
    pub exit: Exit,
}

/// Writes one frame at the end of `out`.
pub fn push_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("frames are cut far below 4 GiB");
    out.reserve(FRAME_HEADER + payload.len());
    out.push(kind);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Writes one JSON message at the end of `out`.
pub fn push_message<T: Serialize>(out: &mut Vec<u8>, message: &T) {
    let json = serde_json::to_vec(message).expect("messages hold nothing that JSON cannot say");
    push_frame(out, KIND_MESSAGE, &json);
}

/// Reads a header: the kind and the length of the payload. `None` when the peer talks nonsense.
pub fn parse_header(header: [u8; FRAME_HEADER]) -> Option<(u8, usize)> {
    let [kind, len @ ..] = header;
    let len = u32::from_be_bytes(len) as usize;
    (kind <= KIND_MESSAGE && len <= FRAME_MAX).then_some((kind, len))
}

/// The standard stream of a frame's kind.
pub fn stream_of(kind: u8) -> Option<StdStream> {
    match kind {
        0 => Some(StdStream::Stdin),
        1 => Some(StdStream::Stdout),
        2 => Some(StdStream::Stderr),
        _ => None,
    }
}
