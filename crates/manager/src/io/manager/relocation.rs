//! A manager whose address has changed tells the others; until then they look for it where it was.

use std::{sync::Arc, time::Duration};

use shoal_api::wire::{RaftJoinRequest, raft_membership_client::RaftMembershipClient};
use tonic::Request;

use super::{Desk, client};
use crate::core::consensus::Member;

/// Pause before the managers are asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Makes this address the one at which the others reach this manager, if it is not.
pub(super) async fn announce(desk: Desk, advertise: String) {
    let raft = desk.store.raft();
    let raft_id = raft.raft_id();
    let node_id = desk.identity().peer().node_id.clone();
    loop {
        let known = raft.members().borrow().get(raft_id).cloned();
        // Not a member yet, or no longer: admission tells the address by itself.
        if known.is_none_or(|member| member.address == advertise) {
            return;
        }
        tracing::info!(
            address = advertise,
            "telling the managers where this one is now"
        );
        let member = Member {
            node_id: node_id.clone(),
            address: advertise.clone(),
        };
        if raft.relocate(raft_id, member).await.is_ok() {
            return;
        }
        let tls = Arc::clone(&desk.client_tls.borrow());
        let own = |address: &String| *address == advertise;
        for address in desk.manager_addresses().into_iter().filter(|a| !own(a)) {
            let answer = client::call_leader(&address, &tls, |channel| {
                let request = Request::new(RaftJoinRequest {
                    addr: advertise.clone(),
                    raft_id,
                });
                async move { RaftMembershipClient::new(channel).join(request).await }
            });
            match answer.await {
                Ok(_) => return,
                Err(status) => {
                    tracing::debug!(manager = address, %status, "telling a new address")
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
