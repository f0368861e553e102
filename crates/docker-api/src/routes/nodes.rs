//! `/nodes`.

use serde_json::Value;
use shoal_api::NodeId;

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, NodeView},
    call::{Call, Query},
    convert::cluster,
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let swarm = api.manager().await?;
    // Clients say `self` for the node that they talk to.
    let own = swarm.node_id.as_ref().map_or("self", |id| id.as_str());
    let named = |name: &str| {
        if name == "self" {
            own.to_owned()
        } else {
            name.to_owned()
        }
    };
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &query).await,
        ("GET", [name]) => {
            let nodes = api.cluster.nodes().await?;
            let found = find(&nodes, &named(name))?;
            Ok(reply::ok(&cluster::node(found)))
        }
        ("DELETE", [name]) => {
            let nodes = api.cluster.nodes().await?;
            let id = match find(&nodes, &named(name)) {
                Ok(found) => &found.node.id,
                Err(unknown) => return has_departed(api, name, unknown).await,
            };
            api.cluster.node_remove(id, query.flag("force")).await?;
            Ok(reply::done())
        }
        ("POST", [name, "update"]) => {
            let version = query.object_version()?;
            let spec = cluster::read_node(&call.bytes())?;
            let nodes = api.cluster.nodes().await?;
            let id = &find(&nodes, &named(name))?.node.id;
            api.cluster.node_update(id, version, spec).await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

/// Done, if no node but one that left of itself is meant: scripts for Swarm remove what has left.
async fn has_departed(api: &Api, wanted: &str, unknown: ApiError) -> ApiResult<Reply> {
    let departed = api.cluster.departed_nodes().await?;
    let is_meant = |(id, hostname): &(NodeId, String)| {
        hostname == wanted || (!wanted.is_empty() && id.as_str().starts_with(wanted))
    };
    match departed.iter().any(is_meant) {
        true => Ok(reply::done()),
        false => Err(unknown),
    }
}

/// Finds a node by id, hostname or prefix of the id.
pub(super) fn find<'a>(nodes: &'a [NodeView], wanted: &str) -> ApiResult<&'a NodeView> {
    resolve(
        "node",
        nodes,
        wanted,
        |view| view.node.id.as_str(),
        |view| &view.node.description.hostname,
    )
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters =
        query
            .filters()?
            .only(&["id", "label", "membership", "name", "node.label", "role"])?;
    let nodes: Vec<Value> = api
        .cluster
        .nodes()
        .await?
        .iter()
        .filter(|view| {
            let node = &view.node;
            filters.prefix("id", node.id.as_str())
                && filters.prefix("name", &node.description.hostname)
                && filters.labels("label", &node.description.engine_labels)
                && filters.labels("node.label", &node.spec.annotations.labels)
                && filters.exact("role", cluster::role(node.role))
                // A node is in the cluster once it has its certificate; there is no other membership.
                && filters.exact("membership", "accepted")
        })
        .map(|view| cluster::node(view))
        .collect();
    Ok(reply::ok(&nodes))
}
