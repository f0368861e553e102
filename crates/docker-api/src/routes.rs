//! Who answers which path: one file per kind of object.

mod build;
mod cluster;
mod containers;
mod data;
mod execs;
mod images;
mod networks;
mod nodes;
mod services;
mod shoal;
mod swarm;
mod system;
mod task_execs;
mod tasks;
mod volumes;

pub(crate) use task_execs::TaskExecs;

use http::Method;

use crate::{
    backend::{ApiError, ApiResult},
    call::Call,
    reply::{self, Reply},
    server::Api,
};

/// Answers a request.
pub(crate) async fn answer(api: &Api, mut call: Call) -> ApiResult<Reply> {
    let path = std::mem::take(&mut call.path);
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let method = call.method.clone();
    let get = method == Method::GET;
    match path[..] {
        ["_ping"] | ["version"] | ["info"] | ["events"] | ["auth"] | ["system", ..] => {
            system::answer(api, call, &path).await
        }
        ["containers", ..] => containers::answer(api, call, &path).await,
        ["exec", ..] => execs::answer(api, call, &path).await,
        ["images", ..] | ["distribution", ..] => images::answer(api, call, &path).await,
        ["volumes", ..] => volumes::answer(api, call, &path).await,
        ["networks", ..] => networks::answer(api, call, &path).await,
        ["swarm", ..] => swarm::answer(api, call, &path).await,
        ["nodes", ..] => nodes::answer(api, call, &path).await,
        ["services", ..] => services::answer(api, call, &path).await,
        ["shoal", "cluster", ..] => cluster::answer(api, call, &path).await,
        ["shoal", ..] => shoal::answer(api, call, &path).await,
        ["tasks", ..] => tasks::answer(api, call, &path).await,
        ["secrets", ..] => data::answer::<data::Secrets>(api, call, &path).await,
        ["configs", ..] => data::answer::<data::Configs>(api, call, &path).await,
        ["plugins"] if get => Ok(reply::ok(&[(); 0])),
        ["plugins", name, "json"] if get => {
            Err(ApiError::not_found(format!("plugin \"{name}\" not found")))
        }
        ["plugins", ..] => Err(ApiError::not_implemented("installing plugins")),
        ["build", ..] | ["commit"] => build::answer(api, call, &path).await,
        ["session"] | ["grpc"] => Err(ApiError::not_implemented("BuildKit")),
        _ => Err(unknown()),
    }
}

/// Nobody answers this path, or not this method.
fn unknown() -> ApiError {
    ApiError::not_found("page not found")
}
