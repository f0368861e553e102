//! Consensus on the wire: messages in, and managers that want to take part.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use shoal_api::{
    spec::NodeRole,
    wire::{
        RaftJoinRequest, RaftJoinResponse, RaftLeaveRequest, RaftLeaveResponse, RaftMember,
        RaftMessage, SnapshotChunk, StreamMessagesResponse, StreamSnapshotResponse,
        raft_membership_server::RaftMembership, raft_server,
    },
};
use shoal_ca::PeerIdentity;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{authorize::calling_manager, client};
use crate::{
    core::consensus::{Member, RaftId, wire::decode_message},
    io::{manager::Desk, raft::RemoveError},
};

/// Largest snapshot that is taken in; a state of this size does not fit the machine anyway.
const SNAPSHOT_BYTES_MAX: usize = 4 << 30;

/// The `Raft` and `RaftMembership` services.
#[derive(Clone)]
pub(crate) struct RaftService {
    pub(crate) desk: Desk,
}

impl RaftService {
    /// Messages of a member are believed from that member's node alone. Gives who the sender is if we have not heard of it:
    /// its admission may be in the very messages that it sends us, and its certificate says that it is a manager of this
    /// cluster. The same if it is elsewhere now: without an answer there may be no leader to tell its new address to.
    fn check_sender(
        &self,
        from: RaftId,
        addr: &str,
        caller: &PeerIdentity,
    ) -> Result<Option<Member>, Status> {
        let members = self.desk.store.raft().members();
        let members = members.borrow();
        if members.was_removed(from) {
            return Err(client::removed(from));
        }
        match members.get(from) {
            Some(member) if member.node_id == caller.node_id => {
                let has_moved = addr != member.address && is_address(addr);
                Ok(has_moved.then(|| Member {
                    node_id: caller.node_id.clone(),
                    address: addr.to_owned(),
                }))
            }
            Some(_) => Err(Status::permission_denied(format!(
                "raft member {from} is another node"
            ))),
            None if is_address(addr) => Ok(Some(Member {
                node_id: caller.node_id.clone(),
                address: addr.to_owned(),
            })),
            // One that has not heard of itself yet.
            None => Err(Status::failed_precondition(format!(
                "raft member {from} is not known here"
            ))),
        }
    }
}

/// Whether a text is `host:port`.
fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    matches!(port, Some(Ok(_)))
}

#[async_trait]
impl raft_server::Raft for RaftService {
    async fn stream_messages(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<StreamMessagesResponse>, Status> {
        let caller = calling_manager(&request)?;
        let mailbox = self.desk.store.raft().mailbox();
        let mut stream = request.into_inner();
        while let Some(envelope) = stream.message().await? {
            let message = decode_message(&envelope.message)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let sender = self.check_sender(message.from, &envelope.addr, &caller)?;
            mailbox.deliver(message, sender);
        }
        Ok(Response::new(StreamMessagesResponse {}))
    }

    async fn stream_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<StreamSnapshotResponse>, Status> {
        let caller = calling_manager(&request)?;
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("an empty snapshot stream"))?;
        let mut message = decode_message(&first.message)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let sender = self.check_sender(message.from, &first.addr, &caller)?;
        let mut data = first.data;
        while let Some(chunk) = stream.message().await? {
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
            data.extend_from_slice(&chunk.data);
        }
        // Whatever happened on the way: half a state is never taken over.
        if Sha256::digest(&data)[..] != first.digest[..] {
            return Err(Status::data_loss(
                "the snapshot is not the one that was sent",
            ));
        }
        message.mut_snapshot().data = data.into();
        let raft = self.desk.store.raft();
        raft.mailbox().deliver(message, sender);
        Ok(Response::new(StreamSnapshotResponse {}))
    }
}

#[async_trait]
impl RaftMembership for RaftService {
    async fn join(
        &self,
        request: Request<RaftJoinRequest>,
    ) -> Result<Response<RaftJoinResponse>, Status> {
        let caller = calling_manager(&request)?;
        self.desk.require_leader().await?;
        let RaftJoinRequest {
            addr: address,
            raft_id: own_id,
        } = request.into_inner();
        if !is_address(&address) {
            return Err(Status::invalid_argument(format!(
                "{address:?} is not host:port"
            )));
        }
        let member = Member {
            node_id: caller.node_id.clone(),
            address,
        };
        let raft = self.desk.store.raft();
        let failed = |error| self.desk.status_of(error);
        // What a certificate said once may have been overtaken: the role in the state counts.
        let state = self.desk.store.latest().await.map_err(failed)?;
        let wanted = state.node(&caller.node_id).map(|node| node.spec.role);
        if wanted != Some(NodeRole::Manager) {
            return Err(Status::permission_denied(format!(
                "node {} is not to be a manager: promote it first",
                caller.node_id
            )));
        }
        let (raft_id, members) = if own_id == 0 {
            raft.admit(member).await.map_err(failed)?
        } else {
            let raft = self.desk.store.raft();
            raft.relocate(own_id, member).await.map_err(failed)?;
            (own_id, Arc::clone(&raft.members().borrow()))
        };
        let member = |(raft_id, member): (RaftId, &Member)| RaftMember {
            raft_id,
            node_id: member.node_id.to_string(),
            addr: member.address.clone(),
        };
        Ok(Response::new(RaftJoinResponse {
            raft_id,
            members: members.iter().map(member).collect(),
        }))
    }

    async fn leave(
        &self,
        request: Request<RaftLeaveRequest>,
    ) -> Result<Response<RaftLeaveResponse>, Status> {
        let caller = calling_manager(&request)?;
        self.desk.require_leader().await?;
        let node = request.into_inner().node_id;
        // Others are removed by demoting them, which the state decides on.
        if node != caller.node_id.as_str() {
            return Err(Status::permission_denied(format!(
                "node {} may not take node {node:?} out of the managers",
                caller.node_id
            )));
        }
        let raft = self.desk.store.raft();
        let members = Arc::clone(&raft.members().borrow());
        let Some(raft_id) = members
            .iter()
            .find(|(_, member)| member.node_id.as_str() == node)
            .map(|(id, _)| id)
        else {
            return Ok(Response::new(RaftLeaveResponse {})); // gone already
        };
        match raft.remove(raft_id).await {
            Ok(()) => Ok(Response::new(RaftLeaveResponse {})),
            Err(RemoveError::Propose(error)) => Err(self.desk.status_of(error)),
            Err(error @ (RemoveError::Refused(_) | RemoveError::IsLeader)) => {
                Err(Status::failed_precondition(error.to_string()))
            }
        }
    }
}
