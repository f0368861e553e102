//! Autolock as a manager carries it out: its data key sealed, and never one that was plain.

use std::{io, path::PathBuf};

use shoal_ca::UnlockKey;
use tokio::sync::watch;

use super::{Manager, ManagerError};
use crate::{
    core::state::State,
    io::{
        keys::{self, NodeLock},
        raft::seal::{DataKey, KeyRing},
        store::Store,
    },
};

/// The data keys of a running manager, and how they are kept.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) directory: PathBuf,
    pub(super) ring: KeyRing,
    pub(super) lock: Option<NodeLock>,
}

impl Keys {
    fn save(&self) -> Result<(), ManagerError> {
        let saved = keys::save(&self.directory, &self.ring, self.lock.as_ref());
        saved.map_err(|source: io::Error| ManagerError::Directory {
            directory: self.directory.clone(),
            source,
        })
    }
}

/// The key under which the cluster wants managers to seal their disks.
pub(super) fn unlock_key(state: &State) -> Option<UnlockKey> {
    UnlockKey::from_bytes(&state.cluster()?.unlock_key)
}

/// Tells of every change of that key, until consensus stops.
pub(super) async fn follow(store: Store, told: watch::Sender<Option<UnlockKey>>) {
    let mut watch = store.watch_nodes();
    let mut state = store.state();
    loop {
        let now = unlock_key(&state);
        told.send_if_modified(|told| {
            let is_news = *told != now;
            *told = now;
            is_news
        });
        state = watch.next().await;
    }
}

impl Manager {
    /// The key under which the cluster wants managers to seal their disks, `None` without autolock: now and from now on,
    /// as far as this manager knows. What is done about it is decided on [`Manager::latest`].
    pub fn unlock_key(&self) -> watch::Receiver<Option<UnlockKey>> {
        let mut unlock_key = self.unlock_key.clone();
        unlock_key.mark_unchanged(); // what is now is read, what comes is waited for
        unlock_key
    }

    /// Keeps the data key under this lock from now on, or plain. A data key that was plain is replaced: once this has
    /// returned, nothing is left on disk that it could open.
    pub async fn reseal(&self, lock: Option<NodeLock>) -> Result<(), ManagerError> {
        let mut keys = self.keys.lock().await;
        if lock.is_some() && keys.lock.is_none() {
            keys.ring = keys.ring.succeeded_by(DataKey::generate());
        }
        keys.lock = lock;
        keys.save()?;
        self.retire_old_keys(&mut keys).await
    }

    /// Ends what a rotation of the data key has left undone when the process ended in its middle.
    pub async fn finish_rekeying(&self) -> Result<(), ManagerError> {
        let mut keys = self.keys.lock().await;
        self.retire_old_keys(&mut keys).await
    }

    async fn retire_old_keys(&self, keys: &mut Keys) -> Result<(), ManagerError> {
        if !keys.ring.has_older() {
            return Ok(());
        }
        let current = keys.ring.current().clone();
        let rekeyed = self.desk.store.raft().rekey(current.clone()).await;
        rekeyed.map_err(|_| ManagerError::Stopped)?;
        keys.ring = current.into();
        keys.save()?;
        tracing::info!("the log is sealed with a new data key");
        Ok(())
    }
}

/// Whether a manager's data key in this directory is sealed.
pub fn is_locked(directory: &std::path::Path) -> io::Result<bool> {
    keys::is_sealed(directory)
}
