//! `/swarm`.

use serde_json::json;

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, LocalNodeState, Rotations},
    call::Call,
    convert::cluster,
    fields::Fields,
    reply::{self, Reply},
    server::Api,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", []) => {
            api.manager().await?;
            Ok(reply::ok(&cluster::swarm(
                &api.cluster.swarm_inspect().await?,
            )))
        }
        ("POST", ["init"]) => {
            let request = cluster::read_init(&call.bytes())?;
            if !request.force_new_cluster {
                not_in_one(api).await?;
            }
            Ok(reply::ok(&api.cluster.swarm_init(request).await?.as_str()))
        }
        ("POST", ["join"]) => {
            let request = cluster::read_join(&call.bytes())?;
            not_in_one(api).await?;
            api.cluster.swarm_join(request).await?;
            Ok(reply::done())
        }
        ("POST", ["leave"]) => {
            let force = query.flag("force");
            match api.cluster.swarm_info().await.state {
                LocalNodeState::Inactive => {
                    return Err(ApiError::unavailable("This node is not part of a swarm"));
                }
                LocalNodeState::Locked if !force => return Err(ApiError::swarm_locked()),
                _ => {}
            }
            api.cluster.swarm_leave(force).await?;
            Ok(reply::done())
        }
        ("POST", ["update"]) => {
            api.manager().await?;
            let old = api.cluster.swarm_inspect().await?;
            let (spec, signing_ca) = cluster::read_update(&call.bytes(), &old.cluster.spec)?;
            let rotate = Rotations {
                worker_token: query.flag("rotateWorkerToken"),
                manager_token: query.flag("rotateManagerToken"),
                unlock_key: query.flag("rotateManagerUnlockKey"),
                signing_ca,
            };
            api.cluster
                .swarm_update(query.object_version()?, spec, rotate)
                .await?;
            Ok(reply::done())
        }
        ("GET", ["unlockkey"]) => {
            api.manager().await?;
            let key = api.cluster.swarm_unlock_key().await?;
            Ok(reply::ok(&json!({"UnlockKey": key})))
        }
        ("POST", ["unlock"]) => {
            let mut f = Fields::body(&call.bytes())?;
            let key: String = f.get("UnlockKey")?;
            f.finish()?;
            api.cluster.swarm_unlock(&key).await?;
            Ok(reply::done())
        }
        _ => Err(unknown()),
    }
}

async fn not_in_one(api: &Api) -> ApiResult<()> {
    match api.cluster.swarm_info().await.state {
        LocalNodeState::Inactive => Ok(()),
        LocalNodeState::Locked => Err(ApiError::swarm_locked()),
        _ => Err(ApiError::unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
        )),
    }
}
