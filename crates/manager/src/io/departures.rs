//! Nodes that leave the cluster of themselves.

use std::time::Duration;

use shoal_api::NodeId;
use tonic::Status;

use super::manager::Desk;
use crate::core::control::node_leaves;

/// How long a manager that leaves may be in the state after it has left the group: one write of this leader.
const SEAT_GIVEN_UP_MAX: Duration = Duration::from_secs(5);

impl Desk {
    /// Forgets a node that leaves and shuts it out; one that is gone already has what it wants.
    pub(crate) async fn depart(&self, node: &NodeId) -> Result<(), Status> {
        let mut watch = self.store.watch_nodes();
        let given_up = async {
            let mut state = self.store.state();
            while state.node(node).is_some_and(|node| node.manager.is_some()) {
                state = watch.next().await;
            }
        };
        // One that keeps its seat is refused below.
        let _ = tokio::time::timeout(SEAT_GIVEN_UP_MAX, given_up).await;
        if self.store.state().node(node).is_none() {
            return Ok(());
        }
        self.decide(|state, cx| node_leaves(state, cx, node))
            .await?;
        tracing::info!(node.id = %node, "a node has left the cluster");
        Ok(())
    }
}
