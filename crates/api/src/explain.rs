//! Why the tasks of a service are where they are, or nowhere.

use serde::Serialize;

use crate::{NodeId, ServiceId, TaskId};

/// What stands between a service and its nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Explanation {
    /// The service.
    pub service: ServiceId,
    /// What its tasks wait for before they start; empty if they may.
    pub gate: String,
    /// In one line, as pending tasks say it; empty if a node is open to one more task.
    pub verdict: String,
    /// All nodes by id.
    pub nodes: Vec<NodeVerdict>,
    /// Tasks that have no node yet.
    pub waiting: Vec<WaitingTask>,
}

/// What speaks for and against a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeVerdict {
    /// The node.
    pub node: NodeId,
    /// Its hostname.
    pub hostname: String,
    /// Everything that keeps it from running one more task; empty if nothing does.
    pub reasons: Vec<String>,
    /// Active tasks of the service on it.
    pub service_tasks: u64,
    /// Active tasks of all services on it.
    pub tasks: u64,
    /// Recent failures of this spec on it, if they are so many that it is avoided.
    pub failures: usize,
    /// Whether the next task goes there.
    pub next: bool,
}

/// A task without a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct WaitingTask {
    /// The task.
    pub task: TaskId,
    /// Its slot.
    pub slot: u64,
    /// What it says itself.
    pub err: String,
}

/// Where the tasks of a service that is yet to be made would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Foresight {
    /// The service's name.
    pub name: String,
    /// Tasks that it would have; of a global service as many as there are nodes.
    pub wanted: u64,
    /// Tasks by hostname, in the order of the nodes' ids.
    pub places: Vec<(String, u64)>,
    /// Why not all of them have a place: each node counts once, by the first reason; empty if they have.
    pub why: String,
}
