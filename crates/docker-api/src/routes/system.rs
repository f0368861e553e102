//! `/_ping`, `/version`, `/info`, `/events`, `/system/df`, `/auth`.

use futures_util::{StreamExt, future, stream};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use shoal_api::{
    container::{Event, EventKind},
    spec::NodeRole,
};

use super::unknown;
use crate::{
    backend::{ApiResult, LocalNodeState},
    call::Call,
    convert::system,
    filters::{Filters, has_label},
    reply::{self, Reply},
    server::Api,
    versions,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    match (call.method.as_str(), path) {
        ("GET" | "HEAD", ["_ping"]) => Ok(ping(api).await),
        ("GET", ["version"]) => Ok(reply::ok(&system::version(&api.engine.version().await?))),
        ("GET", ["info"]) => info(api, call.minor).await,
        ("GET", ["events"]) => events(api, &call).await,
        ("GET", ["system", "df"]) => {
            let usage = api.engine.disk_usage().await?;
            Ok(reply::ok(&system::disk_usage(&usage, api.now())))
        }
        ("POST", ["auth"]) => login(api, call).await,
        _ => Err(unknown()),
    }
}

async fn ping(api: &Api) -> Reply {
    let swarm = api.cluster.swarm_info().await;
    let mut reply = reply::text(StatusCode::OK, "OK");
    let headers = reply.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert(
        "Swarm",
        HeaderValue::from_static(system::swarm_header(&swarm)),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    reply
}

async fn info(api: &Api, minor: u32) -> ApiResult<Reply> {
    let engine = api.engine.info().await?;
    let mut swarm = api.cluster.swarm_info().await;
    let mut summary = None;
    if swarm.state == LocalNodeState::Active && swarm.control_available {
        let (nodes, cluster) = tokio::join!(api.cluster.nodes(), api.cluster.swarm_inspect());
        // Without a leader this node's own state is still worth showing.
        match (nodes, cluster) {
            (Ok(nodes), Ok(view)) => {
                let manager =
                    |node: &&crate::backend::NodeView| node.node.role == NodeRole::Manager;
                summary = Some(system::ClusterSummary {
                    nodes: nodes.len(),
                    managers: nodes.iter().filter(manager).count(),
                    cluster: view.cluster,
                    tls: view.tls,
                });
            }
            (Err(error), _) | (_, Err(error)) => swarm.error = error.message,
        }
    }
    let mut shown = system::info(&engine, &swarm, summary.as_ref(), api.now());
    versions::info(minor, &mut shown);
    Ok(reply::ok(&shown))
}

async fn login(api: &Api, call: Call) -> ApiResult<Reply> {
    let body = call.bytes();
    let auth = serde_json::from_slice(&body)
        .map_err(|error| crate::ApiError::invalid(format!("invalid JSON: {error}")))?;
    api.engine.registry_login(auth).await?;
    Ok(reply::ok(
        &json!({"Status": "Login Succeeded", "IdentityToken": ""}),
    ))
}

/// Filters of `/events`, docker's.
const EVENT_FILTERS: [&str; 16] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "task",
    "type",
    "volume",
    "builder",
];

async fn events(api: &Api, call: &Call) -> ApiResult<Reply> {
    let (since, until) = (call.query.instant("since")?, call.query.instant("until")?);
    let filters = call.query.filters()?.only(&EVENT_FILTERS)?;
    // An extension, so only whoever knows of it is told.
    let asks = |filter: &str| !filters.values(filter).is_empty();
    let with_tasks = call.query.flag("tasks")
        || asks("task")
        || filters.values("type").iter().any(|kind| kind == "task");
    let local = api.engine.events(since, until).await?;
    let local = local.map(|event| event.map(|event| (event, "local")));
    let cluster = if api.manager().await.is_ok() {
        api.cluster.events(since, until).await?
    } else {
        stream::empty().boxed()
    };
    let cluster = cluster.map(|event| event.map(|event| (event, "swarm")));
    let wanted = stream::select(local, cluster).filter_map(move |event| {
        future::ready(match event {
            Ok((event, scope)) => {
                let is_told = with_tasks || event.kind != EventKind::Task;
                (is_told && matches(&filters, &event, scope))
                    .then(|| Ok(system::event(&event, scope)))
            }
            Err(error) => Some(Err(error)),
        })
    });
    // A stop of the server ends the stream, not only its end.
    Ok(reply::json_stream(
        wanted.take_until(api.stop.clone().cancelled_owned()),
    ))
}

fn matches(filters: &Filters, event: &Event, scope: &str) -> bool {
    let attributes = &event.actor.attributes;
    let named = |kind: EventKind, filter: &str, other: Option<&str>| {
        filters.any(filter, |wanted| {
            let is = |text: &str| text == wanted || text.split(':').next() == Some(wanted);
            (event.kind == kind
                && (event.actor.id.starts_with(wanted)
                    || attributes.get("name").is_some_and(|name| is(name))))
                || other.is_some_and(|name| attributes.get(name).is_some_and(|value| is(value)))
        })
    };
    filters.exact("type", system::event_kind(event.kind))
        && filters.exact("scope", scope)
        // `exec_start: ls` is an `exec_start`.
        && filters.any("event", |wanted| {
            event.action == wanted || event.action.split(':').next() == Some(wanted)
        })
        && filters
            .values("label")
            .iter()
            .all(|wanted| has_label(attributes, wanted))
        && named(EventKind::Container, "container", Some("container"))
        && named(EventKind::Image, "image", Some("image"))
        && named(EventKind::Volume, "volume", None)
        && named(EventKind::Network, "network", None)
        && named(EventKind::Daemon, "daemon", None)
        && named(EventKind::Node, "node", None)
        && named(EventKind::Service, "service", Some("service.name"))
        && named(EventKind::Task, "task", None)
        && named(EventKind::Secret, "secret", None)
        && named(EventKind::Config, "config", None)
}
