//! Repairs the networks of this host as soon as the kernel tells that somebody has changed them.

use super::Bridges;
use crate::{
    network::chain,
    plane::{REPAIR_PAUSE, REPAIR_RETRY_PAUSE},
};

impl Bridges {
    /// Repairs what somebody else changes in the kernel, as soon as the kernel tells. Never ends.
    pub async fn keep(&self) {
        let mut failed = false;
        loop {
            tokio::select! {
                () = self.kernel.disturbed() => {}
                () = tokio::time::sleep(REPAIR_RETRY_PAUSE), if failed => {}
            }
            tracing::info!("repairing the networks of this host, which somebody has changed");
            let repaired = self.kernel.converge().await;
            failed = repaired.is_err();
            if let Err(error) = repaired {
                let error = chain(&error);
                tracing::error!(error, "the networks of this host are not repaired");
            }
            tokio::time::sleep(REPAIR_PAUSE).await;
        }
    }
}
