//! What the nodes hold of a stack, and how it goes.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use shoal_api::{
    object::{Node, NodeState},
    stack::VolumesRemoved,
    wire::ExecOrder,
};
use shoal_docker_api::backend::ApiResult;
use shoal_manager::Manager;

use super::{api::write_error, processes};
use crate::executor::VOLUME_RELEASE_MAX;

/// How long a node may take: for volumes that are still held, and to answer.
const ANSWER_MAX: Duration = VOLUME_RELEASE_MAX.saturating_add(Duration::from_secs(10));

/// Has all nodes remove the volumes of a stack. Nodes that cannot be asked are named among those that keep theirs.
pub(super) async fn remove_volumes(
    manager: &Arc<Manager>,
    stack: &str,
) -> ApiResult<Vec<VolumesRemoved>> {
    let state = manager.latest().await.map_err(write_error)?;
    let mut nodes: Vec<&Arc<Node>> = state.nodes().collect();
    nodes.sort_by(|a, b| a.description.hostname.cmp(&b.description.hostname));
    let nodes = nodes.into_iter().map(|node| ask(manager, node, stack));
    Ok(join_all(nodes).await)
}

async fn ask(manager: &Arc<Manager>, node: &Node, stack: &str) -> VolumesRemoved {
    let answer = match node.status.state {
        NodeState::Ready => {
            let order = ExecOrder {
                node_id: node.id.to_string(),
                volumes_of_stack: stack.to_owned(),
                ..ExecOrder::default()
            };
            processes::ask(manager, order, ANSWER_MAX).await
        }
        state => Err(format!("it is {}", state.as_str())),
    };
    let mut removed = answer.unwrap_or_else(|why| VolumesRemoved {
        kept: vec![format!("cannot ask the node for its volumes: {why}")],
        ..VolumesRemoved::default()
    });
    removed.node.clone_from(&node.description.hostname);
    removed
}
