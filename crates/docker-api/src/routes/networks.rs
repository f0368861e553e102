//! `/networks`: those of this host, and on managers those of the cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shoal_api::{object::Network, tunnel::ENCRYPTED_PLUGIN};

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, LocalNetwork, LocalNodeState, NodeView, TaskSelection},
    call::{Call, Query},
    convert::{
        container_create::read_endpoint,
        network::{self, NetworkRequest},
        network_detail,
        service_read::NODE_NETWORKS,
    },
    fields::Fields,
    filters::Filters,
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
    versions,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &query, call.minor).await,
        ("POST", ["create"]) => create(api, call).await,
        ("POST", ["prune"]) => prune(api, &query).await,
        ("GET", [name]) => {
            let mut shown = inspect(api, name, &query).await?;
            versions::network(call.minor, &mut shown);
            Ok(reply::ok(&shown))
        }
        ("DELETE", [name]) => remove(api, name).await,
        ("POST", [name, "connect"]) => connect(api, call, name).await,
        ("POST", [name, "disconnect"]) => {
            let mut f = Fields::body(&call.bytes())?;
            let container: String = f.get("Container")?;
            let force = f.get("Force")?;
            f.finish()?;
            let id = engine_name(api, name).await?;
            api.engine
                .network_disconnect(&id, &container, force)
                .await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

/// Networks of the cluster; none where this node cannot say.
async fn cluster_networks(api: &Api) -> ApiResult<Vec<Network>> {
    match api.manager().await {
        Ok(_) => api.cluster.networks().await,
        Err(_) => Ok(Vec::new()),
    }
}

fn find_local<'a>(networks: &'a [LocalNetwork], name: &str) -> ApiResult<&'a LocalNetwork> {
    resolve("network", networks, name, |n| &n.id, |n| &n.name)
}

fn find_cluster<'a>(networks: &'a [Network], name: &str) -> ApiResult<&'a Network> {
    resolve(
        "network",
        networks,
        name,
        |n| n.id.as_str(),
        |n| &n.spec.annotations.name,
    )
}

/// What a filter of networks asks about.
struct Facts<'a> {
    id: &'a str,
    name: &'a str,
    driver: &'a str,
    scope: &'a str,
    labels: &'a BTreeMap<String, String>,
    builtin: bool,
    used: bool,
}

impl Facts<'_> {
    fn match_all(&self, filters: &Filters, dangling: Option<bool>) -> bool {
        filters.prefix("id", self.id)
            && filters.any("name", |part| self.name.contains(part))
            && filters.exact("driver", self.driver)
            && filters.exact("scope", self.scope)
            && filters.labels("label", self.labels)
            && filters.exact("type", if self.builtin { "builtin" } else { "custom" })
            && dangling.is_none_or(|wanted| (!self.used && !self.builtin) == wanted)
    }
}

async fn list(api: &Api, query: &Query, minor: u32) -> ApiResult<Reply> {
    let filters = query
        .filters()?
        .only(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let dangling = filters.flag("dangling")?;
    let mut rows: Vec<Value> = Vec::new();
    for network in &api.engine.network_list().await? {
        let facts = Facts {
            id: &network.id,
            name: &network.name,
            driver: &network.driver,
            scope: "local",
            labels: &network.labels,
            builtin: NODE_NETWORKS.contains(&network.name.as_str()),
            used: !network.containers.is_empty(),
        };
        if facts.match_all(&filters, dangling) {
            rows.push(network::local(network, false));
        }
    }
    for network in &cluster_networks(api).await? {
        let facts = Facts {
            id: network.id.as_str(),
            name: &network.spec.annotations.name,
            driver: "overlay",
            scope: "swarm",
            labels: &network.spec.annotations.labels,
            builtin: network.spec.ingress,
            // Which tasks use it only matters for a prune, which asks the manager.
            used: true,
        };
        if facts.match_all(&filters, dangling) {
            rows.push(network::cluster(network));
        }
    }
    // A worker knows of the cluster's networks only those that it carries.
    for network in carried_by_worker(api).await {
        let facts = Facts {
            id: &network.id,
            name: &network.name,
            driver: "overlay",
            scope: "swarm",
            labels: &network.labels,
            builtin: network.ingress,
            used: true,
        };
        if facts.match_all(&filters, dangling) {
            rows.push(network::local(&network, false));
        }
    }
    for row in &mut rows {
        versions::network(minor, row);
    }
    Ok(reply::ok(&rows))
}

/// The networks of the cluster that this node carries, if it cannot ask for all of them.
async fn carried_by_worker(api: &Api) -> Vec<LocalNetwork> {
    match api.manager().await {
        Ok(_) => Vec::new(),
        Err(_) => api.cluster.carried_networks().await,
    }
}

async fn inspect(api: &Api, name: &str, query: &Query) -> ApiResult<Value> {
    let scope = query.text("scope");
    if scope.is_some_and(|scope| !["local", "swarm"].contains(&scope)) {
        return Err(ApiError::not_found(format!("network {name} not found")));
    }
    if scope != Some("swarm") {
        let networks = api.engine.network_list().await?;
        if let Ok(found) = find_local(&networks, name) {
            return Ok(network::local(found, true));
        }
    }
    if scope != Some("local") {
        let networks = cluster_networks(api).await?;
        match find_cluster(&networks, name) {
            Ok(found) => {
                let carried = api.cluster.carried_networks().await;
                let here = carried
                    .iter()
                    .find(|network| network.id == found.id.as_str());
                let mut shown = network::cluster(found);
                if let Some(here) = here {
                    shown["Containers"] = network::members(here);
                }
                if query.flag("verbose") {
                    detail(api, found, &mut shown).await?;
                }
                return Ok(shown);
            }
            Err(_) if scope == Some("swarm") && NODE_NETWORKS.contains(&name) => {
                return Ok(network::of_every_node(name));
            }
            Err(error) => {
                let carried = carried_by_worker(api).await;
                let found = find_local(&carried, name).map_err(|_| error)?;
                return Ok(network::local(found, true));
            }
        }
    }
    Err(ApiError::not_found(format!("network {name} not found")))
}

/// Adds who uses a network of the cluster.
async fn detail(api: &Api, found: &Network, shown: &mut Value) -> ApiResult<()> {
    let services = api.cluster.services().await?;
    let everything = TaskSelection {
        services: Vec::new(),
        nodes: Vec::new(),
    };
    let mut tasks = api.cluster.tasks(everything).await?;
    tasks.extend(api.cluster.attachments().await?);
    let nodes = api.cluster.nodes().await?;
    let nodes: Vec<_> = nodes.into_iter().map(|view| view.node).collect();
    network_detail::add(shown, found, &services, &tasks, &nodes);
    Ok(())
}

async fn create(api: &Api, call: Call) -> ApiResult<Reply> {
    let mut warning = String::new();
    let id = match network::read(&call.bytes())? {
        NetworkRequest::Local(spec) => {
            if NODE_NETWORKS.contains(&spec.name.as_str()) {
                return Err(ApiError::forbidden(format!(
                    "operation is not permitted on predefined {} network",
                    spec.name
                )));
            }
            api.engine.network_create(spec).await?
        }
        NetworkRequest::Cluster(spec) => {
            api.manager().await?;
            let encrypted = spec.is_encrypted();
            let mut warnings: Vec<String> = network::without_effect(&spec).into_iter().collect();
            let id = api.cluster.network_create(spec).await?.to_string();
            if encrypted {
                warnings.extend(without_encryption(&api.cluster.nodes().await?));
            }
            warning = warnings.join("; ");
            id
        }
    };
    Ok(reply::created(&json!({"Id": id, "Warning": warning})))
}

/// Says which nodes cannot carry an encrypted network; nothing if all can.
fn without_encryption(nodes: &[NodeView]) -> Option<String> {
    let cannot = |view: &&NodeView| {
        let mut plugins = view.node.description.plugins.iter();
        !plugins.any(|plugin| plugin == ENCRYPTED_PLUGIN)
    };
    let mut names: Vec<&str> = nodes
        .iter()
        .filter(cannot)
        .map(|view| &*view.node.description.hostname)
        .collect();
    if names.is_empty() {
        return None;
    }
    names.sort_unstable();
    Some(format!(
        "nothing in this network can run on {}: the kernel there lacks WireGuard (CONFIG_WIREGUARD), and packets of an \
         encrypted network are not sent in plain text",
        names.join(", ")
    ))
}

async fn remove(api: &Api, name: &str) -> ApiResult<Reply> {
    let local = api.engine.network_list().await?;
    match find_local(&local, name) {
        Ok(found) if NODE_NETWORKS.contains(&found.name.as_str()) => {
            return Err(ApiError::forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                found.name
            )));
        }
        Ok(found) => api.engine.network_remove(&found.id).await?,
        Err(_) => {
            let networks = cluster_networks(api).await?;
            let found = find_cluster(&networks, name)?;
            api.cluster.network_remove(&found.id).await?;
        }
    }
    Ok(reply::no_content())
}

/// What the engine is told to name a network by: the id of one of this host, the name of one of the cluster.
async fn engine_name(api: &Api, name: &str) -> ApiResult<String> {
    let local = api.engine.network_list().await?;
    let missing = match find_local(&local, name) {
        Ok(found) => return Ok(found.id.clone()),
        Err(missing) => missing,
    };
    if api.manager().await.is_ok() {
        let networks = cluster_networks(api).await?;
        let found = find_cluster(&networks, name).map_err(|_| missing)?;
        return Ok(found.spec.annotations.name.clone());
    }
    // A worker does not know the networks that it does not carry; a manager will say whether there is one.
    match api.cluster.swarm_info().await.state {
        LocalNodeState::Active => Ok(name.to_owned()),
        _ => Err(missing),
    }
}

async fn connect(api: &Api, call: Call, name: &str) -> ApiResult<Reply> {
    let mut f = Fields::body(&call.bytes())?;
    let container: String = f.get("Container")?;
    let endpoint = read_endpoint(f.object_or_empty("EndpointConfig")?)?;
    f.finish()?;
    let id = engine_name(api, name).await?;
    api.engine
        .network_connect(&id, &container, endpoint)
        .await?;
    Ok(reply::done())
}

/// Removes networks that nothing uses: the engine knows about its own, the manager refuses those in use.
async fn prune(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&["until", "label", "label!"])?;
    let filter = filters.prune(api.now())?;
    let mut deleted = api.engine.network_prune(filter.clone()).await?.deleted;
    for network in cluster_networks(api).await? {
        let wanted = !network.spec.ingress
            && filter.takes(network.meta.created_at, &network.spec.annotations.labels);
        if wanted && api.cluster.network_remove(&network.id).await.is_ok() {
            deleted.push(network.spec.annotations.name);
        }
    }
    Ok(reply::ok(&json!({"NetworksDeleted": deleted})))
}
