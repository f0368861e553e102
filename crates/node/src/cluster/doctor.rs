//! Has every node look at its ways to the others, and puts together what they found.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use shoal_api::{
    IdSource, RandomIds,
    doctor::{Answer, Report},
    id::base36,
    object::{Node, NodeState},
    wire::ExecOrder,
};
use shoal_docker_api::backend::ApiResult;
use shoal_manager::Manager;

use super::{api::write_error, processes};
use crate::plane::now;

/// How long a node may take to say what it found; it looks for some seconds.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Asks all nodes at the same time.
pub(super) async fn network(manager: &Arc<Manager>) -> ApiResult<Report> {
    let state = manager.latest().await.map_err(write_error)?;
    let port = state
        .cluster()
        .map_or(shoal_api::network::VXLAN_PORT, |cluster| {
            cluster.spec.data_path_port
        });
    // Of this look alone: one that somebody else asks for at the same time is not mistaken for it.
    let token = base36(RandomIds.next_bits());
    let mut nodes: Vec<&Arc<Node>> = state.nodes().collect();
    nodes.sort_by(|a, b| a.description.hostname.cmp(&b.description.hostname));
    let nodes = nodes.into_iter().map(|node| ask(manager, node, &token));
    Ok(Report::of(port, &join_all(nodes).await))
}

async fn ask(manager: &Arc<Manager>, node: &Node, token: &str) -> Answer {
    let sent_at = now();
    let look = match node.status.state {
        NodeState::Ready => {
            let order = ExecOrder {
                node_id: node.id.to_string(),
                probe: token.to_owned(),
                ..ExecOrder::default()
            };
            processes::ask(manager, order, ANSWER_MAX).await
        }
        state => Err(format!("it is {}", state.as_str())),
    };
    Answer {
        id: node.id.to_string(),
        hostname: node.description.hostname.clone(),
        address: node.description.data_path_addr.or(node.status.addr),
        sent_at,
        received_at: now(),
        look,
    }
}
