//! `/shoal`: what docker's API has no word for.

use futures_util::StreamExt;
use serde_json::{Value, json};
use shoal_api::object::{Revision, Service};

use super::{services::find, task_execs, unknown};
use crate::{
    backend::ApiResult,
    call::Call,
    convert::{service_show, time::instant},
    reply::{self, Reply},
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    match (call.method.as_str(), &path[1..]) {
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
            let changes = api.cluster.service_changes(&service.id).await?;
            let lines = changes.map(|change| change.map(|()| json!({})));
            Ok(reply::json_stream(
                lines.take_until(api.stop.clone().cancelled_owned()),
            ))
        }
        ("GET", ["doctor", "network"]) => Ok(reply::ok(&api.cluster.network_doctor().await?)),
        (_, ["tasks" | "exec", ..]) => task_execs::answer(api, call, path).await,
        _ => Err(unknown()),
    }
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
