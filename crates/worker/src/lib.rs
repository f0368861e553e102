//! The agent: carries out, on one node, what the managers assign to it.
//!
//! `core` decides: what an assignment message changes, which step a task takes next, which statuses go out together,
//! whom to call when a manager is gone. `io` acts: the session with a manager, one task runner per task, the ledger.
//! What it needs of the node (containers, networks, names) it asks for through the traits in [`ports`].
//!
//! Tasks that run, and what connects them:
//! - *session*: one at a time, to one manager; hands assignment messages to the *foreman* and sends what the reporter
//!   holds. It may die at any moment; everything below lives on without it.
//! - *foreman*: owns the set of assignments; writes the ledger, hands views to the *plane* task and orders to runners,
//!   collects their statuses.
//! - *plane*: converges the newest view, again and again until it succeeds, and says which version is in force.
//! - *runner*: one per task; walks it through its life.
//! - *logs*: beside a session, one task per reader of output, and one per process that a user wants beside a task's own;
//!   ends with the session.
//! - *ledger*: a thread that commits rows, many at once when they come fast.

pub mod core {
    //! Decides; pure.
    pub mod assignment;
    pub mod reporter;
    pub mod session;
    pub mod task_machine;
}
pub mod io {
    //! Acts.
    pub mod agent;
    pub mod calls;
    mod dial;
    mod exec;
    mod foreman;
    pub mod ledger;
    mod logs;
    mod plane;
    mod session;
    pub mod task_runner;
}
pub mod ports;

pub use crate::{
    core::{assignment::TaskFiles, session::Backoff},
    io::agent::{Agent, AgentConfig, AgentError, SessionState},
    ports::{
        Controller, ExecControl, ExecError, ExecErrorKind, Executor, Exit, LogLines, NamePlane,
        NetworkPlane, PlaneError, Started, TaskExec,
    },
};
