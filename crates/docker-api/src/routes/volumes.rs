//! `/volumes`.

use serde_json::{Value, json};

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult},
    call::{Call, Query},
    convert::volume,
    reply::{self, Reply},
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let engine = &api.engine;
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &call.query).await,
        ("POST", ["create"]) => {
            let spec = volume::read(&call.bytes())?;
            if let Some(name) = spec.name.as_deref().filter(|name| name.len() == 1) {
                return Err(ApiError::invalid(format!(
                    "create {name}: volume name is too short, names should be at least two alphanumeric characters"
                )));
            }
            Ok(reply::created(&volume::volume(
                &engine.volume_create(spec).await?,
            )))
        }
        ("POST", ["prune"]) => {
            let filters = call.query.filters()?.only(&["all", "label", "label!"])?;
            let mut filter = filters.prune(api.now())?;
            // Until 1.41 those with a name went as well.
            filter.all = filters.flag("all")?.unwrap_or(false) || call.minor < 42;
            let pruned = engine.volume_prune(filter).await?;
            Ok(reply::ok(&json!({
                "VolumesDeleted": pruned.deleted,
                "SpaceReclaimed": pruned.space_reclaimed,
            })))
        }
        ("GET", [name]) => Ok(reply::ok(&volume::volume(
            &engine.volume_inspect(name).await?,
        ))),
        ("DELETE", [name]) => {
            engine.volume_remove(name, call.query.flag("force")).await?;
            Ok(reply::no_content())
        }
        ("PUT", [_]) => Err(ApiError::not_implemented("cluster volumes")),
        _ => Err(unknown()),
    }
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query
        .filters()?
        .only(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let used: Vec<String> = if dangling.is_some() {
        let usage = api.engine.disk_usage().await?;
        let used = usage.volumes.into_iter().filter(|(_, _, users)| *users > 0);
        used.map(|(volume, _, _)| volume.name).collect()
    } else {
        Vec::new()
    };
    let volumes: Vec<Value> = api
        .engine
        .volume_list()
        .await?
        .iter()
        .filter(|volume| {
            filters.exact("driver", &volume.driver)
                && filters.labels("label", &volume.labels)
                && filters.any("name", |part| volume.name.contains(part))
                && dangling.is_none_or(|wanted| used.contains(&volume.name) != wanted)
        })
        .map(volume::volume)
        .collect();
    Ok(reply::ok(&json!({"Volumes": volumes, "Warnings": null})))
}
