//! `/configs`.

use serde_json::{Value, json};
use shoal_api::object::Config;

use super::unknown;
use crate::{
    backend::ApiResult,
    call::{Call, Query},
    convert::cluster,
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list(api, &query).await,
        ("POST", ["create"]) => {
            let spec = cluster::read_config(&call.bytes())?;
            let id = api.cluster.config_create(spec).await?;
            Ok(reply::created(&json!({"ID": id.as_str()})))
        }
        ("GET", [name]) => {
            let configs = api.cluster.configs().await?;
            Ok(reply::ok(&cluster::config(find(&configs, name)?)))
        }
        ("DELETE", [name]) => {
            let configs = api.cluster.configs().await?;
            api.cluster.config_remove(&find(&configs, name)?.id).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "update"]) => {
            let version = query.object_version()?;
            let spec = cluster::read_config(&call.bytes())?;
            let configs = api.cluster.configs().await?;
            let id = &find(&configs, name)?.id;
            api.cluster.config_update(id, version, spec).await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

fn find<'a>(configs: &'a [Config], wanted: &str) -> ApiResult<&'a Config> {
    resolve(
        "config",
        configs,
        wanted,
        |config| config.id.as_str(),
        |config| &config.spec.annotations.name,
    )
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&["id", "label", "name", "names"])?;
    let rows: Vec<Value> = api
        .cluster
        .configs()
        .await?
        .iter()
        .filter(|config| {
            let annotations = &config.spec.annotations;
            filters.prefix("id", config.id.as_str())
                && filters.prefix("name", &annotations.name)
                && filters.exact("names", &annotations.name)
                && filters.labels("label", &annotations.labels)
        })
        .map(cluster::config)
        .collect();
    Ok(reply::ok(&rows))
}
