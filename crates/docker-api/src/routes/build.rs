//! `/build` and `/commit`.

use base64::Engine as _;
use serde::de::DeserializeOwned;
use serde_json::json;
use shoal_api::{
    build::{BuildOptions, CommitOptions},
    container::Resources,
};

use super::{images::reference, unknown};
use crate::{
    backend::{ApiError, ApiResult},
    call::{Call, Query},
    convert::{container_create, image},
    reply::{self, Reply},
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    match (call.method.as_str(), path) {
        ("POST", ["build"]) => {
            let options = read(&call)?;
            let progress = api.engine.image_build(options, call.stream()).await?;
            reply::progress(progress).await
        }
        ("POST", ["build", "prune"]) => prune(api, &call.query).await,
        ("POST", ["commit"]) => commit(api, &call).await,
        _ => Err(unknown()),
    }
}

async fn prune(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&[
        "until",
        "id",
        "parent",
        "type",
        "description",
        "inuse",
        "shared",
        "private",
        "label",
        "label!",
    ])?;
    let mut filter = filters.prune(api.now())?;
    filter.all = query.flag("all");
    // The second is the name since API 1.48.
    for name in ["keep-storage", "reserved-space"] {
        let said: Option<i64> = query.number(name)?;
        let said = u64::try_from(said.unwrap_or(0)).unwrap_or(0);
        filter.keep_bytes = filter.keep_bytes.max(said);
    }
    let pruned = api.engine.build_prune(filter).await?;
    Ok(reply::ok(&json!({
        "CachesDeleted": pruned.deleted,
        "SpaceReclaimed": pruned.space_reclaimed,
    })))
}

async fn commit(api: &Api, call: &Call) -> ApiResult<Reply> {
    let query = &call.query;
    let container = query
        .text("container")
        .ok_or_else(|| ApiError::invalid("the parameter container is missing"))?;
    let name = match query.text("repo") {
        Some(name) => reference(name, query.text_or_empty("tag")),
        None => String::new(),
    };
    let options = CommitOptions {
        name,
        author: query.text_or_empty("author").to_owned(),
        comment: query.text_or_empty("comment").to_owned(),
        pause: query.flag_or("pause", true),
        changes: query.all("changes"),
    };
    let id = api.engine.image_commit(container, options).await?;
    Ok(reply::created(&json!({"Id": id})))
}

/// Reads what the query and the headers say of a build.
fn read(call: &Call) -> ApiResult<BuildOptions> {
    let query = &call.query;
    match query.text("version") {
        None | Some("1") => {}
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "builder version {other:?} is not supported: this is the classic builder, set DOCKER_BUILDKIT=0"
            )));
        }
    }
    for unsupported in ["squash", "outputs"] {
        let asked = query
            .text(unsupported)
            .is_some_and(|text| !matches!(text, "null" | "[]"));
        if asked && (unsupported != "squash" || query.flag(unsupported)) {
            return Err(ApiError::invalid(format!(
                "{unsupported} is not supported by the classic builder"
            )));
        }
    }
    if !matches!(query.text_or_empty("isolation"), "" | "default") {
        return Err(ApiError::invalid("isolation is only supported on Windows"));
    }
    Ok(BuildOptions {
        dockerfile: query.text_or_empty("dockerfile").to_owned(),
        remote: match query.text_or_empty("remote") {
            // What clients say when they send the context themselves.
            "client-session" => String::new(),
            remote => remote.to_owned(),
        },
        tags: query.all("t"),
        quiet: query.flag("q"),
        no_cache: query.flag("nocache"),
        pull: query.flag("pull"),
        keep_containers: !query.flag_or("rm", true),
        remove_failed: query.flag("forcerm"),
        args: json_of(query, "buildargs")?,
        labels: json_of(query, "labels")?,
        cache_from: json_of(query, "cachefrom")?,
        target: query.text_or_empty("target").to_owned(),
        network: container_create::read_network_mode(query.text_or_empty("networkmode")),
        extra_hosts: query.all("extrahosts"),
        resources: resources(query)?,
        shm_size: query.number("shmsize")?.filter(|size| *size > 0),
        ulimits: container_create::read_ulimits(query.text_or_empty("ulimits"))?,
        cgroup_parent: query.text("cgroupparent").map(str::to_owned),
        security_opt: query.all("securityopt"),
        platform: image::read_platform(query.text("platform"))?,
        auths: auths(call.header("X-Registry-Config"))?,
    })
}

fn resources(query: &Query) -> ApiResult<Resources> {
    let amount = |name: &str| -> ApiResult<Option<u64>> {
        match query.number::<i64>(name)? {
            None | Some(0) => Ok(None),
            Some(n) => u64::try_from(n).map(Some).map_err(|_| {
                ApiError::invalid(format!("invalid value for {name}: {n} is negative"))
            }),
        }
    };
    Ok(Resources {
        memory_bytes: amount("memory")?,
        memory_swap_bytes: query.number("memswap")?.filter(|n| *n != 0),
        cpu_shares: amount("cpushares")?,
        cpu_period_us: amount("cpuperiod")?,
        cpu_quota_us: query.number("cpuquota")?.filter(|n| *n != 0),
        cpuset_cpus: query.text("cpusetcpus").map(str::to_owned),
        cpuset_mems: query.text("cpusetmems").map(str::to_owned),
        ..Resources::default()
    })
}

/// A parameter that is JSON; absent and `null` are empty.
fn json_of<T: DeserializeOwned + Default>(query: &Query, name: &str) -> ApiResult<T> {
    let Some(text) = query.text(name) else {
        return Ok(T::default());
    };
    let value: Option<T> = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(format!("invalid value for {name}: {error}")))?;
    Ok(value.unwrap_or_default())
}

/// Reads `X-Registry-Config`: credentials by registry.
fn auths<T: DeserializeOwned + Default>(header: Option<&str>) -> ApiResult<T> {
    let Some(header) = header.filter(|header| !header.is_empty()) else {
        return Ok(T::default());
    };
    let invalid = |why: &dyn std::fmt::Display| {
        ApiError::invalid(format!("invalid X-Registry-Config header: {why}"))
    };
    let json = image::AUTH_BASE64
        .decode(header.replace('+', "-").replace('/', "_"))
        .map_err(|error| invalid(&error))?;
    let value: Option<T> = serde_json::from_slice(&json).map_err(|error| invalid(&error))?;
    Ok(value.unwrap_or_default())
}
