//! How a manager gets its place in the group: one that it founds, is admitted to, or has already.

use std::sync::Arc;

use rustls::ClientConfig;
use shoal_api::wire::{RaftJoinRequest, raft_membership_client::RaftMembershipClient};
use shoal_ca::NodeIdentity;
use tokio::sync::watch;
use tonic::{Request, Status};

use super::{Begin, ManagerConfig, ManagerError, client};
use crate::{
    core::consensus::{Member, MemberChange, Members},
    io::raft::{Start, Vault, membership::has_place},
};

/// Finds the way into the group.
pub(super) async fn place(
    config: &ManagerConfig,
    vault: &Vault,
    identity: &NodeIdentity,
    tls: &watch::Receiver<Arc<ClientConfig>>,
    begin: Begin,
) -> Result<Start, ManagerError> {
    match begin {
        Begin::Restart => Ok(Start::Restart),
        Begin::Anew(anew) => {
            Ok(anew.start(identity.peer().node_id.clone(), config.advertise.clone()))
        }
        Begin::Found { state } => {
            let node_id = identity.peer().node_id.clone();
            Ok(Start::Bootstrap {
                member: Member {
                    node_id,
                    address: config.advertise.clone(),
                },
                state,
            })
        }
        // A join whose first attempt got this far has its place.
        Begin::Join { .. } if has_place(vault)? => Ok(Start::Restart),
        Begin::Join { managers } => {
            let mut refused = Status::unavailable("no manager is known");
            for manager in managers {
                let tls = Arc::clone(&tls.borrow());
                let answer = client::call_leader(&manager, &tls, |channel| {
                    let request = Request::new(RaftJoinRequest {
                        addr: config.advertise.clone(),
                        raft_id: 0,
                    });
                    async move { RaftMembershipClient::new(channel).join(request).await }
                });
                match answer.await {
                    Ok(answer) => {
                        let mut members = Members::default();
                        for member in answer.members {
                            let node_id = member.node_id.parse();
                            let node_id = node_id.map_err(|error| join_failed(&error))?;
                            let address = member.addr;
                            members.apply(&MemberChange::SetVoter(
                                member.raft_id,
                                Member { node_id, address },
                            ));
                        }
                        return Ok(Start::Join {
                            raft_id: answer.raft_id,
                            members,
                        });
                    }
                    Err(status) => refused = status,
                }
            }
            Err(ManagerError::Join(Box::new(refused)))
        }
    }
}

fn join_failed(error: &dyn std::error::Error) -> ManagerError {
    ManagerError::Join(Box::new(Status::internal(error.to_string())))
}
