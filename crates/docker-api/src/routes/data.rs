//! `/secrets` and `/configs`, which differ in little but their names.

use serde_json::{Value, json};
use shoal_api::{
    object::{Config, Secret},
    spec::{Annotations, ConfigSpec, SecretSpec},
};

use super::unknown;
use crate::{
    backend::{ApiResult, ClusterBackend},
    call::{Call, Query},
    convert::cluster,
    reply::{self, Reply},
    resolve::resolve,
    server::Api,
};

/// Secrets.
pub(super) struct Secrets;
/// Configs.
pub(super) struct Configs;

/// A kind of data that the cluster hands to tasks.
pub(super) trait Kind {
    /// Docker's word for one.
    const NAME: &'static str;
    type Object: Send + Sync;
    type Spec: Send;

    fn read(body: &[u8]) -> ApiResult<Self::Spec>;
    fn show(object: &Self::Object) -> Value;
    fn id(object: &Self::Object) -> &str;
    fn annotations(object: &Self::Object) -> &Annotations;

    fn all(
        cluster: &dyn ClusterBackend,
    ) -> impl Future<Output = ApiResult<Vec<Self::Object>>> + Send;
    /// Answers the id.
    fn create(
        cluster: &dyn ClusterBackend,
        spec: Self::Spec,
    ) -> impl Future<Output = ApiResult<String>> + Send;
    fn update(
        cluster: &dyn ClusterBackend,
        object: &Self::Object,
        version: u64,
        spec: Self::Spec,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn remove(
        cluster: &dyn ClusterBackend,
        object: &Self::Object,
    ) -> impl Future<Output = ApiResult<()>> + Send;
}

pub(super) async fn answer<K: Kind>(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    api.manager().await?;
    let cluster = api.cluster.as_ref();
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => list::<K>(cluster, &query).await,
        ("POST", ["create"]) => {
            let id = K::create(cluster, K::read(&call.bytes())?).await?;
            Ok(reply::created(&json!({"ID": id})))
        }
        ("GET", [name]) => {
            let all = K::all(cluster).await?;
            Ok(reply::ok(&K::show(find::<K>(&all, name)?)))
        }
        ("DELETE", [name]) => {
            let all = K::all(cluster).await?;
            K::remove(cluster, find::<K>(&all, name)?).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "update"]) => {
            let version = query.object_version()?;
            let spec = K::read(&call.bytes())?;
            let all = K::all(cluster).await?;
            K::update(cluster, find::<K>(&all, name)?, version, spec).await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

fn find<'a, K: Kind>(all: &'a [K::Object], wanted: &str) -> ApiResult<&'a K::Object> {
    resolve(K::NAME, all, wanted, K::id, |object| {
        &K::annotations(object).name
    })
}

async fn list<K: Kind>(cluster: &dyn ClusterBackend, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&["id", "label", "name", "names"])?;
    let all = K::all(cluster).await?;
    let wanted = all.iter().filter(|object| {
        let annotations = K::annotations(object);
        filters.prefix("id", K::id(object))
            && filters.prefix("name", &annotations.name)
            && filters.exact("names", &annotations.name)
            && filters.labels("label", &annotations.labels)
    });
    let rows: Vec<Value> = wanted.map(K::show).collect();
    Ok(reply::ok(&rows))
}

/// Both are written alike.
macro_rules! kind {
    (
        $kind:ident, $name:literal, $object:ident, $spec:ident,
        $read:ident $show:ident $all:ident $create:ident $update:ident $remove:ident
    ) => {
        impl Kind for $kind {
            const NAME: &'static str = $name;
            type Object = $object;
            type Spec = $spec;

            fn read(body: &[u8]) -> ApiResult<$spec> {
                cluster::$read(body)
            }
            fn show(object: &$object) -> Value {
                cluster::$show(object)
            }
            fn id(object: &$object) -> &str {
                object.id.as_str()
            }
            fn annotations(object: &$object) -> &Annotations {
                &object.spec.annotations
            }
            async fn all(cluster: &dyn ClusterBackend) -> ApiResult<Vec<$object>> {
                cluster.$all().await
            }
            async fn create(cluster: &dyn ClusterBackend, spec: $spec) -> ApiResult<String> {
                Ok(cluster.$create(spec).await?.to_string())
            }
            async fn update(
                cluster: &dyn ClusterBackend,
                object: &$object,
                version: u64,
                spec: $spec,
            ) -> ApiResult<()> {
                cluster.$update(&object.id, version, spec).await
            }
            async fn remove(cluster: &dyn ClusterBackend, object: &$object) -> ApiResult<()> {
                cluster.$remove(&object.id).await
            }
        }
    };
}

kind! {
    Secrets, "secret", Secret, SecretSpec,
    read_secret secret secrets secret_create secret_update secret_remove
}
kind! {
    Configs, "config", Config, ConfigSpec,
    read_config config configs config_create config_update config_remove
}
