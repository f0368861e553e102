//! A manager's log and snapshots on its disk as one: found at the start, written to in the order that makes it safe.

use shoal_api::planted::{Bug, planted};

use super::{
    Start, StartError, Vault, membership,
    snapshot::Snapshots,
    wal::{Wal, WalError},
};
use crate::core::consensus::node::{Kept, Persist};

/// An open log with the snapshots beside it.
#[derive(Debug)]
pub struct Storage {
    wal: Wal,
    snapshots: Snapshots,
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
        let (wal, records) = Wal::open(vault.disk, vault.key, vault.owner, segment_bytes)?;
        let snapshot = snapshots.load()?.unwrap_or_default();
        let kept = Kept {
            raft_id,
            members,
            snapshot,
            records,
        };
        Ok((Self { wal, snapshots }, kept))
    }

    /// Makes durable what a step of Raft must not forget.
    ///
    /// # Errors
    /// The disk failed; what is on it is then unknown, and the process must end.
    pub fn persist(&mut self, persist: &Persist) -> Result<(), WalError> {
        if planted(Bug::SnapshotCutFirst)
            && let (Some(snapshot), true) = (&persist.snapshot, persist.cuts_log)
        {
            self.wal.release(snapshot.get_metadata().index)?;
        }
        let keep_from = match &persist.snapshot {
            Some(snapshot) => self.snapshots.save(snapshot)?,
            None => 0,
        };
        if let Some(record) = &persist.record
            && !(planted(Bug::WalForgetsTerm) && record.entries.is_empty())
        {
            self.wal.append(record)?;
        }
        if persist.cuts_log {
            self.wal.release(keep_from)?;
        }
        Ok(())
    }
}
