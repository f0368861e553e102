//! One at a time per blob, so that two pulls of one layer fetch it once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::core::images::Digest;

/// Locks by digest. A lock exists while somebody holds or awaits it.
#[derive(Default)]
pub(super) struct Flights(Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

/// The right to bring one blob.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    digest: Digest,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits until nobody else brings this blob.
    pub(super) async fn board(&self, digest: &Digest) -> Flight<'_> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(digest.clone()).or_default())
        };
        // Made before the wait: a waiter that is dropped tidies up as well.
        let mut flight = Flight {
            flights: self,
            digest: digest.clone(),
            guard: None,
        };
        flight.guard = Some(lock.lock_owned().await);
        flight
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut locks = self
            .flights
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        if locks
            .get(&self.digest)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&self.digest);
        }
    }
}
