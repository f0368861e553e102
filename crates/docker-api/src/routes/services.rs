//! `/services`.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use serde_json::{Value, json};
use shoal_api::{
    ServiceId, TaskState,
    object::{NodeState, Service, Task},
    spec::{Driver, PullAuth, TaskSpec},
};

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, LogSelection, TaskLogLine, TaskSelection},
    call::{Call, Query},
    convert::{image::read_auth, service_read, service_show},
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
    streams::{self, LogFormat},
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &query).await,
        ("POST", ["create"]) => {
            let auth = pull_auth(&call)?;
            let mut spec = service_read::read_service(&call.bytes(), &networks(api).await?)?;
            spec.task.container.pull_auth = auth.unwrap_or_default();
            let created = api.cluster.service_create(spec).await?;
            Ok(reply::created(&json!({
                "ID": created.id.as_str(),
                "Warnings": warnings(&created.warnings),
            })))
        }
        ("GET", [name]) => {
            let mut shown = service_show::service(&find(api, name).await?, None);
            if query.flag("insertDefaults") {
                service_show::with_defaults(&mut shown);
            }
            Ok(reply::ok(&shown))
        }
        ("DELETE", [name]) => {
            let service = find(api, name).await?;
            api.cluster.service_remove(&service.id).await?;
            Ok(reply::done())
        }
        ("POST", [name, "update"]) => update(api, call, name).await,
        ("GET", [name, "logs"]) => {
            let service = find(api, name).await?;
            let spec = &service.spec.task;
            logs(api, &call, LogSelection::Service(service.id), spec).await
        }
        _ => Err(unknown()),
    }
}

/// The networks that services may name.
pub(super) async fn networks(api: &Api) -> ApiResult<service_read::Networks> {
    Ok(service_read::Networks {
        cluster: api.cluster.networks().await?,
        node: api.engine.network_list().await?,
    })
}

fn warnings(warnings: &[String]) -> Value {
    if warnings.is_empty() {
        Value::Null
    } else {
        json!(warnings)
    }
}

/// The credentials of the request, checked; `None` if there are none in it.
fn pull_auth(call: &Call) -> ApiResult<Option<PullAuth>> {
    let header = call.header("X-Registry-Auth");
    let auth = read_auth(header)?;
    Ok(auth.map(|_| PullAuth(header.unwrap_or_default().to_owned())))
}

/// Finds a service; by its id without a list, because that is what progress bars do all the time.
pub(super) async fn find(api: &Api, wanted: &str) -> ApiResult<Service> {
    if let Ok(id) = wanted.parse::<ServiceId>()
        && let Some(service) = api.cluster.service(&id).await?
    {
        return Ok(service);
    }
    let services = api.cluster.services().await?;
    find_in(&services, wanted).cloned()
}

/// Finds a service in a list.
pub(super) fn find_in<'a>(services: &'a [Service], wanted: &str) -> ApiResult<&'a Service> {
    resolve(
        "service",
        services,
        wanted,
        |service| service.id.as_str(),
        |service| &service.spec.annotations.name,
    )
}

async fn update(api: &Api, call: Call, name: &str) -> ApiResult<Reply> {
    let query = call.query.clone();
    let auth = pull_auth(&call)?;
    let version = query.object_version()?;
    let auth_from_previous = match query.text("registryAuthFrom") {
        None | Some("spec") => false,
        Some("previous-spec") => true,
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "invalid value for registryAuthFrom: {other:?}"
            )));
        }
    };
    let rollback = match query.text("rollback") {
        None => false,
        Some("previous") => true,
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "unrecognized rollback option {other}"
            )));
        }
    };
    let mut spec = service_read::read_service(&call.bytes(), &networks(api).await?)?;
    let service = find(api, name).await?;
    // A client that sends no credentials means the ones of before.
    spec.task.container.pull_auth = auth.unwrap_or_else(|| {
        let kept = match &service.previous_spec {
            Some(previous) if auth_from_previous => previous,
            _ => &service.spec,
        };
        kept.task.container.pull_auth.clone()
    });
    let said = api
        .cluster
        .service_update(&service.id, version, spec, rollback)
        .await?;
    Ok(reply::ok(&json!({"Warnings": warnings(&said)})))
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query
        .filters()?
        .only(&["id", "label", "mode", "name", "runtime"])?;
    let mut services = api.cluster.services().await?;
    services.retain(|service| {
        let spec = &service.spec;
        filters.prefix("id", service.id.as_str())
            && filters.prefix("name", &spec.annotations.name)
            && filters.labels("label", &spec.annotations.labels)
            && filters.exact("mode", service_show::mode_name(spec.mode))
            && filters.exact("runtime", "container")
    });
    let mut tasks: BTreeMap<ServiceId, Vec<Task>> = BTreeMap::new();
    let with_status = query.flag("status");
    if with_status && !services.is_empty() {
        let selection = TaskSelection {
            services: services.iter().map(|service| service.id.clone()).collect(),
            nodes: Vec::new(),
        };
        let nodes = api.cluster.nodes().await?;
        let is_down = |task: &Task| {
            let node = nodes
                .iter()
                .find(|view| Some(&view.node.id) == task.node.as_ref());
            let lost = [NodeState::Down, NodeState::Disconnected];
            node.is_some_and(|view| lost.contains(&view.node.status.state))
        };
        for mut task in api.cluster.tasks(selection).await? {
            // What its node said last is no news any more; docker does not count it either.
            if task.status.state == TaskState::Running && is_down(&task) {
                task.status.state = TaskState::Orphaned;
            }
            tasks.entry(task.service.clone()).or_default().push(task);
        }
    }
    let rows: Vec<Value> = services
        .iter()
        .map(|service| {
            let tasks = tasks.get(&service.id).map_or(&[][..], Vec::as_slice);
            service_show::service(service, with_status.then_some(tasks))
        })
        .collect();
    Ok(reply::ok(&rows))
}

/// The logs of a service or task; each line says where it comes from.
pub(super) async fn logs(
    api: &Api,
    call: &Call,
    selection: LogSelection,
    spec: &TaskSpec,
) -> ApiResult<Reply> {
    // Nodes would have nothing to send, and nobody would know why.
    let keeps_nothing = |log: &Driver| {
        let is_cached = log.options.get("cache-disabled").map(String::as_str) != Some("true");
        log.name == "none" || (["syslog", "journald"].contains(&log.name.as_str()) && !is_cached)
    };
    if spec.log_driver.as_ref().is_some_and(keeps_nothing) {
        return Err(ApiError::invalid(
            "configured logging driver does not support reading",
        ));
    }
    let wanted = streams::log_query(&call.query)?;
    let lines = api.cluster.task_logs(selection, wanted).await?;
    let lines = lines.take_until(api.stop.clone().cancelled_owned());
    let format = LogFormat::new(&call.query, spec.container.tty);
    Ok(streams::logs(
        lines,
        format,
        call.minor,
        |line: &TaskLogLine| {
            let origin = BTreeMap::from([
                ("com.docker.swarm.node.id", line.node.to_string()),
                ("com.docker.swarm.service.id", line.service.to_string()),
                ("com.docker.swarm.task.id", line.task.to_string()),
            ]);
            (&line.line, origin)
        },
    ))
}
