//! Places of containers in attachable networks, asked for by their nodes.

use std::time::Duration;

use shoal_api::{NetworkId, NodeId, TaskId, TaskState, Timestamp, id::RandomIds};
use tonic::Status;

use super::{grpc::control::to_status, manager::Desk, raft::ProposeError};
use crate::core::{
    control::{
        AttachmentWish, Decision, attachable_network, create_attachment, give_up_attachment,
    },
    reconcile::Ctx,
    state::State,
    validate::Refusal,
};

/// How long a place may take: addresses and a confirmation, both of which need no node.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
/// Proposals before giving up on a place in a state that keeps changing.
const PROPOSALS_MAX: usize = 8;

/// What has become of a place that was asked for.
enum Place {
    Given,
    Waiting,
    Refused(String),
}

impl Desk {
    /// Gives a container of `node` a place in a network; a place that it has already is no error.
    pub(crate) async fn attach(
        &self,
        node: &NodeId,
        wish: &AttachmentWish,
    ) -> Result<NetworkId, Status> {
        let mut watch = self.store.watch();
        // What is refused is refused by the state of now.
        let latest = self.store.latest().await;
        latest.map_err(|error| Status::unavailable(error.to_string()))?;
        let refused = |refusal: Refusal| to_status(&refusal);
        let network = attachable_network(&self.store.state(), &wish.network).map_err(refused)?;
        if self.store.state().task(&wish.id).is_none() {
            self.decide(|state, cx| create_attachment(state, cx, node, wish))
                .await?;
        }
        let settled = async {
            loop {
                match place(&self.store.state(), &wish.id) {
                    Place::Waiting => drop(watch.next().await),
                    settled => return settled,
                }
            }
        };
        let why = match tokio::time::timeout(ATTACH_TIMEOUT, settled).await {
            Ok(Place::Given) => return Ok(network),
            Ok(Place::Refused(why)) => why,
            Ok(Place::Waiting) | Err(_) => "the place was not given in time".to_owned(),
        };
        if let Some(task) = self.store.state().task(&wish.id).cloned() {
            let given_up = self.decide(|state, cx| {
                let task = state.task(&wish.id).unwrap_or(&task);
                Ok(give_up_attachment(cx, task))
            });
            if let Err(error) = given_up.await {
                tracing::warn!(task.id = %wish.id, %error, "giving up a place in a network");
            }
        }
        Err(Status::failed_precondition(why))
    }

    /// Decides until the state that was decided on is the one that is changed.
    pub(super) async fn decide(
        &self,
        decision: impl Fn(&State, &mut Ctx<'_>) -> Result<Decision, Refusal>,
    ) -> Result<(), Status> {
        for _ in 0..PROPOSALS_MAX {
            let decided = {
                let mut cx = Ctx {
                    now: Timestamp::now(),
                    ids: &mut RandomIds,
                };
                decision(&self.store.state(), &mut cx).map_err(|refusal| to_status(&refusal))?
            };
            match self.store.propose(&decided.batch).await {
                Ok(_) => return Ok(()),
                Err(ProposeError::Rejected(rejected)) if rejected.is_stale() => {}
                Err(ProposeError::Rejected(rejected)) => {
                    return Err(to_status(&Refusal::from(rejected)));
                }
                Err(error) => return Err(Status::unavailable(error.to_string())),
            }
        }
        Err(Status::aborted("the state keeps changing"))
    }
}

fn place(state: &State, id: &TaskId) -> Place {
    match state.task(id) {
        None => Place::Refused("the place was taken back".to_owned()),
        Some(task) if task.status.state.is_terminal() => {
            Place::Refused("the place was given back".to_owned())
        }
        Some(task) if task.status.state >= TaskState::Assigned => Place::Given,
        Some(task) if !task.status.err.is_empty() => Place::Refused(task.status.err.to_string()),
        Some(_) => Place::Waiting,
    }
}
