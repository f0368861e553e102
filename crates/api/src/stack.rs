//! Stacks: services, networks and data that were deployed together from one compose file. The cluster knows them by a
//! label alone.

use serde::{Deserialize, Serialize};

/// The label that names the stack of an object; docker's.
pub const NAMESPACE: &str = "com.docker.stack.namespace";

/// What became of a stack's volumes on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumesRemoved {
    /// Hostname of the node.
    pub node: String,
    /// Names of those that are gone.
    pub removed: Vec<String>,
    /// Why others are not, one reason each.
    pub kept: Vec<String>,
}
