//! Containers of users on the cluster's attachable networks.
//!
//! The cluster sees such a container as a task of this node. It lasts as long as the container is attached: what ends
//! is reported by the agent like the end of any task, again and again until a manager has heard it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use shoal_api::{
    TaskId,
    container::ContainerId,
    id::{IdSource, RandomIds},
    wire::AttachRequest,
};
use shoal_engine::io::network::NetworkError;
use shoal_worker::io::calls::{AgentCalls, CallError};
use tokio_util::sync::CancellationToken;

/// Which containers are attached, and the way to ask for more.
#[derive(Debug, Default)]
pub struct Attachments {
    calls: Mutex<Option<AgentCalls>>,
    held: Mutex<BTreeMap<TaskId, Held>>,
}

#[derive(Debug)]
struct Held {
    container: ContainerId,
    ended: CancellationToken,
}

impl Attachments {
    fn held(&self) -> MutexGuard<'_, BTreeMap<TaskId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, Option<AgentCalls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how managers are asked; `None` while this node is in no cluster.
    pub fn set_calls(&self, calls: Option<AgentCalls>) {
        *self.calls() = calls;
    }

    /// Whether this node is in a cluster that can be asked.
    pub fn is_in_cluster(&self) -> bool {
        self.calls().is_some()
    }

    /// Asks for a place of a container; the request's id is filled in. The place is held until [`Self::end`].
    pub async fn ask(
        &self,
        container: &ContainerId,
        mut request: AttachRequest,
    ) -> Result<TaskId, NetworkError> {
        let network = request.network.clone();
        let Some(calls) = self.calls().clone() else {
            return Err(NetworkError::NotFound(network));
        };
        let id: TaskId = (&mut RandomIds as &mut dyn IdSource).next();
        request.attachment_id = id.to_string();
        // Before it is asked for: the agent may hear of the task before we hear the answer.
        self.adopt(id.clone(), container.clone());
        let refused = match calls.attach(request).await {
            Ok(()) => return Ok(id),
            Err(CallError::NotFound(_)) => NetworkError::NotFound(network),
            Err(error) => {
                NetworkError::Failed(format!("Could not attach to network {network}: {error}"))
            }
        };
        self.end(&id);
        Err(refused)
    }

    /// Takes up a place that was given to a container before.
    pub fn adopt(&self, id: TaskId, container: ContainerId) {
        let ended = CancellationToken::new();
        self.held().insert(id, Held { container, ended });
    }

    /// The places of a container.
    pub fn of(&self, container: &ContainerId) -> Vec<TaskId> {
        let held = self.held();
        let of = held.iter().filter(|(_, held)| held.container == *container);
        of.map(|(id, _)| id.clone()).collect()
    }

    /// The container that has a place.
    pub fn container(&self, id: &TaskId) -> Option<ContainerId> {
        self.held().get(id).map(|held| held.container.clone())
    }

    /// What tells the end of a place; `None` if there is no such place.
    pub fn ended(&self, id: &TaskId) -> Option<CancellationToken> {
        self.held().get(id).map(|held| held.ended.clone())
    }

    /// Gives a place back.
    pub fn end(&self, id: &TaskId) {
        if let Some(held) = self.held().remove(id) {
            held.ended.cancel();
        }
    }
}
