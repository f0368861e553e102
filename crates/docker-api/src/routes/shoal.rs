//! `/shoal`: what docker's API has no word for.

use futures_util::StreamExt;
use serde_json::{Value, json};
use shoal_api::object::{Revision, Service};

use super::{
    services::{find, networks},
    task_execs, unknown,
};
use crate::{
    backend::{ApiError, ApiResult, ItemStream},
    call::Call,
    convert::{service_read, service_show, time::instant},
    reply::{self, Reply},
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    match (call.method.as_str(), &path[1..]) {
        ("POST", ["services", "check"]) => {
            let networks = networks(api).await?;
            let said: Vec<Value> = serde_json::from_slice(&call.bytes())
                .map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
            let mut specs = Vec::new();
            let mut refused = Vec::new();
            for spec in said {
                match service_read::read_service(spec.to_string().as_bytes(), &networks) {
                    Ok(spec) => specs.push(spec),
                    Err(error) => {
                        let name = spec["Name"].as_str().unwrap_or_default().to_owned();
                        refused.push((name, error));
                    }
                }
            }
            let checked = api.cluster.services_check(specs).await?;
            refused.extend(checked.refused);
            let refused: Vec<Value> = refused
                .into_iter()
                .map(|(name, error)| json!({"Name": name, "Message": error.message}))
                .collect();
            let foreseen = checked.foreseen;
            Ok(reply::ok(
                &json!({"Refused": refused, "Foreseen": foreseen}),
            ))
        }
        ("GET", ["services", name, "explain"]) => {
            let service = find(api, name).await?;
            Ok(reply::ok(&api.cluster.service_explain(&service.id).await?))
        }
        ("GET", ["services", name, "history"]) => Ok(reply::ok(&history(&find(api, name).await?))),
        ("POST", ["services", name, "rollback"]) => {
            let service = find(api, name).await?;
            let to = call.query.number("to")?;
            // Without a version the user means the service as it is now.
            let version = call.query.number("version")?;
            let version = version.unwrap_or(service.meta.version);
            let said = api
                .cluster
                .service_rollback(&service.id, version, to)
                .await?;
            Ok(reply::ok(&json!({"Warnings": said})))
        }
        ("GET", ["services", name, "changes"]) => {
            let service = find(api, name).await?;
            Ok(pulse(api, api.cluster.service_changes(&service.id).await?))
        }
        ("DELETE", ["stacks", name, "volumes"]) => {
            Ok(reply::ok(&api.cluster.stack_volumes_remove(name).await?))
        }
        ("GET", ["doctor", "network"]) => Ok(reply::ok(&api.cluster.network_doctor().await?)),
        (_, ["tasks" | "exec", ..]) => task_execs::answer(api, call, path).await,
        _ => Err(unknown()),
    }
}

/// An empty object for each change.
pub(super) fn pulse(api: &Api, changes: ItemStream<()>) -> Reply {
    let lines = changes.map(|change| change.map(|()| json!({})));
    reply::json_stream(lines.take_until(api.stop.clone().cancelled_owned()))
}

/// All specs that a service has had, as far as they are kept, and the one that it has; the newest first.
fn history(service: &Service) -> Vec<Value> {
    let earlier = |revision: &Revision| {
        json!({
            "Revision": revision.number,
            "ReplacedAt": instant(revision.replaced_at),
            "Current": false,
            "Spec": service_show::spec(&revision.spec),
        })
    };
    let current = json!({
        "Revision": service.revision,
        "Current": true,
        "Spec": service_show::spec(&service.spec),
    });
    let earlier = service.history.iter().rev().map(earlier);
    [current].into_iter().chain(earlier).collect()
}
