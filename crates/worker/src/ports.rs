//! What the agent needs of its node: somebody to run containers, and somebody to carry packets and names.
//!
//! Every future of a [`Controller`] may be dropped before it is done, and every method may be called again after a
//! crash: what is done already is not done twice and is no error.

use std::{error::Error, fmt, io, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use shoal_api::{
    container::{ExecSpec, LogLine, LogQuery, StdStream},
    network::NetworkView,
    object::{ContainerStatus, NodeDescription, Task},
    spec::PortConfig,
};
use tokio::{io::AsyncWrite, sync::mpsc};

use crate::core::assignment::TaskFiles;

/// Makes controllers; there is one per node.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Says what the node is and has.
    async fn describe(&self) -> Result<NodeDescription, ExecError>;

    /// Rings whenever what [`Self::describe`] says may have changed, from now on. Closed if it never does.
    fn changes(&self) -> mpsc::Receiver<()> {
        mpsc::channel(1).1
    }

    /// Makes the controller of a task, also of one that an earlier agent has started.
    async fn controller(&self, task: &Task) -> Result<Box<dyn Controller>, ExecError>;

    /// Reads the output of a task's container, the oldest line first. With `query.follow` waits for the container to be
    /// started and goes on until it ends. `None` if there is no container.
    async fn logs(&self, task: &Task, query: &LogQuery) -> Result<Option<LogLines>, ExecError>;

    /// Starts a process in a task's container, beside the task's own.
    async fn exec(&self, task: &Task, _spec: ExecSpec) -> Result<TaskExec, ExecError> {
        Err(ExecError::fatal(format!(
            "task {}: this node starts no further processes",
            task.id
        )))
    }

    /// Sends frames that carry `token` to all other nodes, and listens for theirs; what was found, as JSON of
    /// [`shoal_api::doctor::NodeLook`].
    async fn look_at_network(&self, _token: &str) -> Result<Vec<u8>, ExecError> {
        Err(ExecError::fatal("this node does not look at its network"))
    }

    /// Removes this node's volumes that belong to a stack; what became of them, as JSON of
    /// [`shoal_api::stack::VolumesRemoved`].
    async fn remove_volumes(&self, _stack: &str) -> Result<Vec<u8>, ExecError> {
        Err(ExecError::fatal("this node has no volumes"))
    }
}

/// A process in a task's container, beside the task's own.
pub struct TaskExec {
    /// What it says; ends when it and all holders of its output are gone.
    pub output: mpsc::Receiver<(StdStream, Vec<u8>)>,
    /// Its standard input, if it was asked for; shutting it down closes it.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// What else can be done.
    pub control: Box<dyn ExecControl>,
}

/// What can be done with a process besides reading and writing.
#[async_trait]
pub trait ExecControl: Send + Sync {
    /// Sets the size of its terminal. Does nothing where it has none.
    async fn resize(&self, rows: u16, columns: u16);
    /// Its exit code, once its output has ended.
    async fn exit_code(&self) -> i32;
}

/// Lines of output; few wait, a reader that is slow slows their reading. An error is the last.
pub type LogLines = mpsc::Receiver<io::Result<LogLine>>;

/// Carries out the steps of one task.
#[async_trait]
pub trait Controller: Send + Sync {
    /// Takes note of a changed assignment, other than of its desired state.
    async fn update(&self, task: &Task) -> Result<(), ExecError>;

    /// Makes everything ready: image, networks, volumes, the container with its secrets and configs.
    ///
    /// The network view that names the task's endpoints has been handed to [`NetworkPlane`] before.
    async fn prepare(&self, files: &TaskFiles) -> Result<(), ExecError>;

    /// Starts the process.
    async fn start(&self) -> Result<Started, ExecError>;

    /// Waits until the process is healthy, or over. Fatal if it becomes unhealthy. Asked of what is checked alone.
    async fn become_healthy(&self) -> Result<(), ExecError> {
        Ok(())
    }

    /// Waits for the end of the process. A container that turns unhealthy is stopped, and says so as its reason.
    async fn wait(&self) -> Result<Exit, ExecError>;

    /// Asks the process to stop and kills it after `grace`. What was never started is stopped already.
    async fn shutdown(&self, grace: Duration) -> Result<(), ExecError>;

    /// Removes the container and what belongs to it alone.
    async fn remove(&self) -> Result<(), ExecError>;
}

/// A process that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// The container.
    pub container: ContainerStatus,
    /// Host-mode ports in force.
    pub host_ports: Vec<PortConfig>,
    /// Whether its health is checked and not known yet, so that it does not count as running.
    pub is_checked: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// The container, with its exit code.
    pub container: ContainerStatus,
    /// Why it ended, if not by itself: `unhealthy container`. With a reason the task has failed whatever the code.
    pub reason: Option<String>,
}

/// Carries the packets of the cluster's networks.
#[async_trait]
pub trait NetworkPlane: Send + Sync {
    /// Makes the kernel agree with the view; doing it again changes nothing.
    ///
    /// Called with views in order, never two at a time. Containers that appear later are attached by the view of the
    /// last call. What could not be made to agree is reported, after everything else was.
    async fn converge(&self, want: &Arc<NetworkView>) -> Result<(), Vec<PlaneError>>;
}

/// Answers for the names of the cluster's networks.
pub trait NamePlane: Send + Sync {
    /// Makes the view's names the ones that are answered, at once.
    fn publish(&self, want: &Arc<NetworkView>);
}

/// A part of a view that the kernel would not take.
#[derive(Debug, thiserror::Error)]
#[error("cannot converge {what}")]
pub struct PlaneError {
    /// Network, endpoint or service.
    pub what: String,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

/// What the agent can do about an error of a node's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecErrorKind {
    /// Worth another try.
    Temporary,
    /// Ends the task.
    Fatal,
    /// What was asked for is so already; as good as success.
    AlreadyDone,
    /// Something that it depends on is not there yet; worth another try.
    NotReady,
}

/// An error of a node's part.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExecError {
    kind: ExecErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ExecError {
    /// An error that says what was attempted, without its cause.
    pub fn new(kind: ExecErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error after which the task is over.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::new(ExecErrorKind::Fatal, message)
    }

    /// An error that may not happen again.
    pub fn temporary(message: impl Into<String>) -> Self {
        Self::new(ExecErrorKind::Temporary, message)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// What can be done about it.
    pub fn kind(&self) -> ExecErrorKind {
        self.kind
    }
}

/// Prints an error and its causes, `a: b: c`: for people and for the `err` of a status.
pub(crate) struct Chain<'e>(pub(crate) &'e (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
