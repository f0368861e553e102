//! Whether a node may go on carrying a task: it is there, not drained, and still what the task asks for.

use shoal_api::{
    object::{Node, NodeState, Task},
    spec::Availability,
};

use super::fleet::Footing;
use crate::core::scheduler::constraint::node_fits;

/// Judges a node as the carrier of a task.
///
/// SwarmKit's constraint enforcer declares an unfit task `rejected` at once; here it is asked to stop like that of a
/// drained node, because its container still runs and its addresses must not be given to others before it has ended.
pub(super) fn footing(node: &Node, task: &Task) -> Footing {
    if is_lost(node) {
        Footing::Lost
    } else if node.spec.availability == Availability::Drain {
        Footing::Leaving
    } else if node.spec.availability == Availability::Active
        && !node_fits(&task.spec.placement, node)
    {
        // A paused node keeps what it has.
        Footing::Leaving
    } else {
        Footing::Firm
    }
}

/// Whether nobody can hear of the node. An unknown one gets the benefit of the doubt: the leader has just begun.
pub(super) fn is_lost(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Down | NodeState::Disconnected)
}
