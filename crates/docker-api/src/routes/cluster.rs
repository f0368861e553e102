//! `/shoal/cluster`: what Swarm's API has no word for.

use futures_util::StreamExt;

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, ClusterRestore, LocalNodeState},
    call::Call,
    reply::{self, Reply},
    server::Api,
};

/// Largest backup that is taken in; a state of this size does not fit a manager's memory.
const BACKUP_BYTES_MAX: usize = 4 << 30;

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    match (call.method.as_str(), &path[2..]) {
        ("GET", ["backup"]) => {
            api.manager().await?;
            Ok(reply::bytes(api.cluster.cluster_backup().await?))
        }
        ("GET", ["changes"]) => {
            api.manager().await?;
            Ok(super::shoal::pulse(
                api,
                api.cluster.cluster_changes().await?,
            ))
        }
        ("POST", ["restore"]) => {
            match api.cluster.swarm_info().await.state {
                LocalNodeState::Inactive => {}
                LocalNodeState::Locked => return Err(ApiError::swarm_locked()),
                _ => {
                    return Err(ApiError::unavailable(
                        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                         another one.",
                    ));
                }
            }
            let text = |name: &str| call.query.text_or_empty(name).to_owned();
            let mut request = ClusterRestore {
                listen_addr: text("listen"),
                advertise_addr: text("advertise"),
                data_path_addr: text("dataPath"),
                unlock_key: text("unlockKey"),
                backup: Vec::new(),
            };
            let mut body = call.stream();
            while let Some(bytes) = body.next().await {
                let bytes = bytes?;
                if request.backup.len() + bytes.len() > BACKUP_BYTES_MAX {
                    return Err(ApiError::invalid("the backup is larger than 4 GiB"));
                }
                request.backup.extend_from_slice(&bytes);
            }
            let node = api.cluster.cluster_restore(request).await?;
            Ok(reply::ok(&node.as_str()))
        }
        _ => Err(unknown()),
    }
}
