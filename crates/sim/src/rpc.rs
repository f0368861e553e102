//! What agents and managers say to each other, as values.

use std::net::IpAddr;

use shoal_api::{
    TaskId,
    object::{NodeDescription, TaskStatus},
};
use shoal_worker::core::assignment::Message;

/// From an agent to a manager.
#[derive(Debug, Clone)]
pub enum Up {
    /// Opens a session.
    Open {
        /// What the node says of itself.
        description: Box<NodeDescription>,
        /// Where it is.
        address: IpAddr,
        /// The host, as its certificate says.
        host: usize,
    },
    /// Still here.
    Heartbeat(u64),
    /// News of tasks.
    Report(u64, Vec<(TaskId, TaskStatus)>),
    /// This version of the network view is in force.
    AcknowledgeView(u64, u64),
    /// The connection is gone.
    Closed,
}

/// From a manager to an agent.
#[derive(Debug, Clone)]
pub enum Down {
    /// The session is open.
    Opened {
        /// Its number.
        session: u64,
        /// Addresses of the managers.
        managers: Vec<String>,
        /// Nanoseconds between heartbeats.
        period: u64,
    },
    /// Addresses of the managers, which have changed.
    Managers(Vec<String>),
    /// Not here; the leader may be there.
    Redirect(String),
    /// The heartbeat was heard.
    Beaten,
    /// The report is in the state.
    Reported,
    /// What changed about what the node has to do.
    Assignments(Box<Message>),
    /// The connection is gone.
    Closed,
}
