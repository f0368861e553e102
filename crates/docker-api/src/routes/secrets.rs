//! `/secrets`.

use serde_json::{Value, json};
use shoal_api::object::Secret;

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
            let spec = cluster::read_secret(&call.bytes())?;
            let id = api.cluster.secret_create(spec).await?;
            Ok(reply::created(&json!({"ID": id.as_str()})))
        }
        ("GET", [name]) => {
            let secrets = api.cluster.secrets().await?;
            Ok(reply::ok(&cluster::secret(find(&secrets, name)?)))
        }
        ("DELETE", [name]) => {
            let secrets = api.cluster.secrets().await?;
            api.cluster.secret_remove(&find(&secrets, name)?.id).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "update"]) => {
            let version = query.object_version()?;
            let spec = cluster::read_secret(&call.bytes())?;
            let secrets = api.cluster.secrets().await?;
            let id = &find(&secrets, name)?.id;
            api.cluster.secret_update(id, version, spec).await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

fn find<'a>(secrets: &'a [Secret], wanted: &str) -> ApiResult<&'a Secret> {
    resolve(
        "secret",
        secrets,
        wanted,
        |secret| secret.id.as_str(),
        |secret| &secret.spec.annotations.name,
    )
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&["id", "label", "name", "names"])?;
    let rows: Vec<Value> = api
        .cluster
        .secrets()
        .await?
        .iter()
        .filter(|secret| {
            let annotations = &secret.spec.annotations;
            filters.prefix("id", secret.id.as_str())
                && filters.prefix("name", &annotations.name)
                && filters.exact("names", &annotations.name)
                && filters.labels("label", &annotations.labels)
        })
        .map(cluster::secret)
        .collect();
    Ok(reply::ok(&rows))
}
