//! `/tasks`.

use std::collections::BTreeMap;

use serde_json::Value;
use shoal_api::{
    NetworkId, ServiceId, TaskState,
    object::{Network, Service, Task},
};

use super::{nodes, services, unknown};
use crate::{
    backend::{ApiError, ApiResult, LogSelection, TaskSelection},
    call::{Call, Query},
    convert::service_show,
    filters::has_label,
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &call.query).await,
        ("GET", [id]) => {
            let task = find(api, id).await?;
            Ok(reply::ok(&service_show::task(&task, &networks(api).await?)))
        }
        ("GET", [id, "logs"]) => {
            let task = find(api, id).await?;
            let spec = &task.spec;
            services::logs(api, &call, LogSelection::Task(task.id), spec).await
        }
        _ => Err(unknown()),
    }
}

/// Finds a task by its id or the beginning of it.
pub(super) async fn find(api: &Api, wanted: &str) -> ApiResult<Task> {
    let tasks = api.cluster.tasks(TaskSelection::default()).await?;
    resolve("task", &tasks, wanted, |task| task.id.as_str(), |_| "").cloned()
}

async fn networks(api: &Api) -> ApiResult<BTreeMap<NetworkId, Network>> {
    let networks = api.cluster.networks().await?;
    Ok(networks
        .into_iter()
        .map(|network| (network.id.clone(), network))
        .collect())
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&[
        "_up-to-date",
        "desired-state",
        "id",
        "label",
        "name",
        "node",
        "runtime",
        "service",
    ])?;
    let desired = filters
        .values("desired-state")
        .iter()
        .map(|text| text.parse::<TaskState>().map_err(ApiError::invalid))
        .collect::<ApiResult<Vec<_>>>()?;
    let up_to_date = filters.flag("_up-to-date")?.unwrap_or(false);
    let mut selection = TaskSelection::default();
    let mut services: BTreeMap<ServiceId, Service> = BTreeMap::new();
    let by_service = filters.values("service");
    for wanted in by_service {
        let service = services::find(api, wanted).await?;
        selection.services.push(service.id.clone());
        services.insert(service.id.clone(), service);
    }
    if !filters.values("node").is_empty() {
        let known = api.cluster.nodes().await?;
        for wanted in filters.values("node") {
            selection
                .nodes
                .push(nodes::find(&known, wanted)?.node.id.clone());
        }
    }
    if by_service.is_empty() && !filters.values("label").is_empty() {
        let all = api.cluster.services().await?;
        services = all.into_iter().map(|s| (s.id.clone(), s)).collect();
    }
    let mut tasks = if up_to_date {
        api.cluster.up_to_date_tasks(selection).await?
    } else {
        api.cluster.tasks(selection).await?
    };
    tasks.retain(|task| {
        let service = services.get(&task.service);
        let labelled = filters.values("label").iter().all(|wanted| {
            has_label(&task.spec.container.labels, wanted)
                || service.is_some_and(|s| has_label(&s.spec.annotations.labels, wanted))
        });
        labelled
            && filters.prefix("id", task.id.as_str())
            && filters.prefix("name", &task.name())
            && filters.exact("runtime", "container")
            && (desired.is_empty() || desired.contains(&task.desired_state))
    });
    let networks = networks(api).await?;
    let rows: Vec<Value> = tasks
        .iter()
        .map(|task| service_show::task(task, &networks))
        .collect();
    Ok(reply::ok(&rows))
}
