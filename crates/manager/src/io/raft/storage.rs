//! A manager's log and snapshots on its disk as one: found at the start, written to in the order that makes it safe.

use std::sync::{Arc, Mutex, MutexGuard};

use raft::eraftpb::Snapshot;
use shoal_api::planted::{Bug, planted};

use super::{
    Start, StartError, Vault, membership,
    seal::DataKey,
    snapshot::Snapshots,
    wal::{Wal, WalError},
};
use crate::core::consensus::{
    LogIndex,
    node::{Kept, Persist},
    record::Record,
};

/// An open log with the snapshots beside it.
#[derive(Debug)]
pub struct Storage {
    wal: Wal,
    /// Written to by one thread at a time.
    snapshots: Arc<Mutex<Snapshots>>,
    vault: Vault,
}

impl Storage {
    /// Opens what is there, or makes it as `start` says, and reads it.
    ///
    /// # Errors
    /// Files that are missing, damaged or not ours.
    pub fn open(
        vault: Vault,
        start: Start,
        segment_bytes: u64,
    ) -> Result<(Self, Kept), StartError> {
        let snapshots = Snapshots::new(vault.disk.clone(), vault.key.clone(), vault.owner);
        let (raft_id, members) = membership::prepare_place(&vault, &snapshots, start)?;
        let (wal, records) = Wal::open(
            vault.disk.clone(),
            vault.key.clone(),
            vault.owner,
            segment_bytes,
        )?;
        let snapshot = snapshots.load()?.unwrap_or_default();
        snapshots.drop_spare(snapshot.get_metadata().index)?;
        let kept = Kept {
            raft_id,
            members,
            snapshot,
            records,
        };
        let storage = Self {
            wal,
            snapshots: Arc::new(Mutex::new(snapshots)),
            vault,
        };
        Ok((storage, kept))
    }

    /// Goes over to another data key. Everything is written anew under it, beginning with this snapshot and the record of
    /// what follows it; nothing that an older key could open is left. Until this has returned both keys are needed.
    ///
    /// # Errors
    /// The disk failed; the process must end.
    pub fn rekey(
        &mut self,
        key: DataKey,
        snapshot: &Snapshot,
        record: &Record,
    ) -> Result<(), WalError> {
        lock(&self.snapshots).rekey(key.clone(), snapshot)?;
        self.vault.key = self.vault.key.succeeded_by(key.clone());
        membership::reseal_place(&self.vault)?;
        self.wal.rekey(key.clone(), record)?;
        self.vault.key = key.into();
        Ok(())
    }

    /// Makes durable what a step of Raft must not forget.
    ///
    /// # Errors
    /// The disk failed; what is on it is then unknown, and the process must end.
    pub fn persist(&mut self, persist: &Persist) -> Result<(), WalError> {
        if let Some(snapshot) = &persist.snapshot {
            lock(&self.snapshots).save(snapshot)?;
        }
        if let Some(record) = &persist.record
            && !(planted(Bug::WalForgetsTerm) && record.entries.is_empty())
        {
            self.wal.append(record)?;
        }
        Ok(())
    }

    /// Bytes of the records written to the log since it was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.wal.appended_bytes()
    }

    /// A way to keep a snapshot of one's own, which covers everything up to `index`, beside everything else and on any
    /// thread.
    ///
    /// # Errors
    /// The disk failed; the process must end.
    pub fn keeper(&mut self, index: LogIndex) -> Result<Keeper, WalError> {
        if planted(Bug::SnapshotCutFirst) {
            self.wal.release(index)?;
        }
        Ok(Keeper(Arc::clone(&self.snapshots)))
    }

    /// Cuts off the log what snapshots cover that are durable, see [`Keeper::keep`].
    ///
    /// # Errors
    /// The disk failed; the process must end.
    pub fn release(&mut self, keep_from: LogIndex) -> Result<(), WalError> {
        self.wal.release(keep_from)
    }
}

/// Keeps snapshots.
#[derive(Debug)]
pub struct Keeper(Arc<Mutex<Snapshots>>);

impl Keeper {
    /// Makes a snapshot durable; returns the index up to which the log may be cut off.
    ///
    /// # Errors
    /// The disk failed; the process must end.
    pub fn keep(&self, snapshot: &Snapshot) -> Result<LogIndex, WalError> {
        lock(&self.0).save(snapshot)
    }
}

fn lock(snapshots: &Mutex<Snapshots>) -> MutexGuard<'_, Snapshots> {
    snapshots
        .lock()
        .expect("a failed write ends the process before anybody else looks")
}
