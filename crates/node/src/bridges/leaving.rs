//! How containers leave their networks.

use std::{sync::Arc, time::Duration};

use shoal_api::container::ContainerId;
use shoal_dns::Records;
use shoal_engine::io::network::NetworkError;
use shoal_overlay::netns;

use super::{Bridges, error::BridgesError, member::Member, networks_of, state::State};

/// How long links of ended containers wait for others to go with them. It costs nobody anything but an address, and those
/// who lack one do not wait for it.
const LINKS_WAIT: Duration = Duration::from_millis(200);

impl Bridges {
    /// Takes a container from all of its networks and its ports from the host. One that is in none is no error.
    ///
    /// When this returns nobody is sent to it any more and its ports are free. Its links go, and its addresses become
    /// free, a moment later and together with those of others: each time that links go the kernel holds its network
    /// lock for some 20 ms, for which no start should have to wait.
    pub async fn disconnect(&self, container: &ContainerId) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let Some(member) = self.leave_names(&mut state, container).await? else {
            return Ok(());
        };
        // Kept until the links are gone: a namespace that goes takes them along one by one.
        let space = netns::open(&member.netns).ok();
        let busy = Arc::clone(&self.leaving).read_owned().await;
        self.kernel
            .leave(container.as_str())
            .await
            .map_err(BridgesError::from)?;
        drop(state);
        let (kernel, hurry) = (self.kernel.clone(), Arc::clone(&self.hurry));
        let states = Arc::clone(&self.state);
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(LINKS_WAIT) => {}
                () = hurry.notified() => {}
            }
            if let Err(error) = kernel.sweep().await {
                tracing::warn!(%error, "removing links of containers that have ended");
            }
            let mut state = states.lock().await;
            for endpoint in &member.endpoints {
                state.release(endpoint);
            }
            drop((state, space, busy));
        });
        Ok(())
    }

    /// Waits until all who have left have let go of their addresses. Not while the state is locked.
    pub(super) async fn all_left(&self) {
        self.hurry.notify_waiters();
        drop(self.leaving.write().await);
    }

    /// The same, to the very end.
    pub(super) async fn leave_all(
        &self,
        state: &mut State,
        container: &ContainerId,
    ) -> Result<(), BridgesError> {
        let Some(member) = self.leave_names(state, container).await? else {
            return Ok(());
        };
        let detached = self.kernel.detach_all(container.as_str()).await;
        for endpoint in &member.endpoints {
            state.release(endpoint);
        }
        Ok(detached?)
    }

    /// Takes back names and ports, and forgets the container; returns what is left of it.
    async fn leave_names(
        &self,
        state: &mut State,
        container: &ContainerId,
    ) -> Result<Option<Member>, BridgesError> {
        let Some(member) = state.members.remove(container) else {
            return Ok(None);
        };
        // Names first, so that nobody is sent to what is about to go.
        let mut networks = networks_of(&member);
        if member.endpoints.iter().any(|at| !at.spec.links.is_empty()) {
            // With the names that it alone knew.
            state.records = Records::default();
            networks = state.networks.keys().cloned().collect();
        }
        self.tell_names(state, &networks);
        if !member.published.is_empty()
            && let Err(error) = self.kernel.unpublish(container.as_str()).await
        {
            tracing::warn!(container.id = %container, %error, "taking published ports back");
        }
        self.files.remove_member(container)?;
        Ok(Some(member))
    }
}
