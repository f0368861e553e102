//! Snapshots on disk: `snap-<index>`, sealed, written beside and renamed into place.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Snapshot;
use shoal_api::planted::{Bug, planted};

use super::{
    disk::Disk,
    seal::{DataKey, KeyRing, Owner},
    wal::{WalError, disk_error},
};
use crate::core::consensus::{
    LogIndex,
    wire::{self, Malformed, Reader, Writer},
};

const MAGIC: &[u8; 8] = b"SHOALSNP";
const VERSION: u32 = 1;
/// Magic, version, key id, owner.
const HEADER: usize = 8 + 4 + 4 + 32;
/// How many are kept: the newest, and one to fall back to when it turns out unreadable.
pub const KEPT: usize = 2;

/// The snapshots of one manager.
#[derive(Debug)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    keys: KeyRing,
    owner: Owner,
}

impl Snapshots {
    /// Names where they are kept.
    pub fn new(disk: Arc<dyn Disk>, keys: KeyRing, owner: Owner) -> Self {
        Self { disk, keys, owner }
    }

    /// Goes over to another key with this snapshot; nothing that an older key could open is left.
    pub fn rekey(&mut self, key: DataKey, snapshot: &Snapshot) -> Result<(), WalError> {
        self.keys = key.into();
        self.save(snapshot)?;
        self.prune(1).map(drop)
    }

    /// Reads the newest readable one. Unreadable ones are reported and skipped; whether the log still reaches back
    /// to an older one is for the caller to check.
    pub fn load(&self) -> Result<Option<Snapshot>, WalError> {
        let mut newest_error = None;
        for index in self.indexes()?.into_iter().rev() {
            match self.read(index) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error @ WalError::Foreign { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(snapshot.index = index, error = %error, "cannot read a snapshot");
                    newest_error.get_or_insert(error);
                }
            }
        }
        newest_error.map_or(Ok(None), Err)
    }

    /// Writes a snapshot; it is durable when this returns. Removes those that are no longer needed and returns the
    /// index from which on the log must be kept.
    pub fn save(&self, snapshot: &Snapshot) -> Result<LogIndex, WalError> {
        let mut out = Writer::default();
        wire::encode_snapshot_metadata(&mut out, snapshot.get_metadata());
        out.number(snapshot.data.len() as u64); // a byte string, whose second half need not be copied for it
        let header = self.header(self.keys.current());
        let parts = [&out.finish(), &snapshot.data[..]];
        let sealed = self.keys.current().seal_parts(&parts, &header);
        let name = snapshot_name(snapshot.get_metadata().index);
        let temporary = format!("{name}.tmp");
        let mut file = self
            .disk
            .create(&temporary, 0)
            .map_err(disk_error("create", &temporary))?;
        file.write_at(0, &header)
            .map_err(disk_error("write", &temporary))?;
        file.write_at(HEADER as u64, &sealed)
            .map_err(disk_error("write", &temporary))?;
        if !planted(Bug::SnapshotNoSync) {
            file.sync().map_err(disk_error("sync", &temporary))?;
        }
        self.disk
            .rename(&temporary, &name)
            .map_err(disk_error("rename", &temporary))?;
        self.disk
            .sync_names()
            .map_err(disk_error("sync", "the snapshots' directory"))?;
        self.prune(KEPT)
    }

    /// Removes what [`Self::save`] would have removed had a crash not come between: with every crash there would be one more
    /// for ever. None is removed that is not older than the one that is used, since newer ones may be unreadable.
    pub fn drop_spare(&self, used: LogIndex) -> Result<(), WalError> {
        let mut indexes = self.indexes()?;
        indexes.truncate(indexes.len().saturating_sub(KEPT));
        indexes.retain(|index| *index < used);
        self.remove(&indexes)
    }

    fn prune(&self, keep: usize) -> Result<LogIndex, WalError> {
        let mut indexes = self.indexes()?;
        let kept = indexes.split_off(indexes.len().saturating_sub(keep));
        self.remove(&indexes)?;
        Ok(kept.first().copied().unwrap_or(0))
    }

    fn remove(&self, indexes: &[LogIndex]) -> Result<(), WalError> {
        for index in indexes {
            let name = snapshot_name(*index);
            self.disk
                .remove(&name)
                .map_err(disk_error("remove", &name))?;
        }
        Ok(())
    }

    fn read(&self, index: LogIndex) -> Result<Snapshot, WalError> {
        let name = snapshot_name(index);
        let content = self.disk.read(&name).map_err(disk_error("read", &name))?;
        let damaged = |reason| WalError::Damaged {
            name: name.clone(),
            offset: 0,
            reason,
        };
        let foreign = |reason| WalError::Foreign {
            name: name.clone(),
            reason,
        };
        let (header, sealed) = content
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| damaged("it is cut off"))?;
        let ours = self.header(self.keys.current());
        if header[..8] != ours[..8] {
            return Err(damaged("its header is bad"));
        }
        if header[8..12] != ours[8..12] {
            return Err(foreign("it was written by another version"));
        }
        if header[16..] != ours[16..] {
            return Err(foreign("it belongs to another node or cluster"));
        }
        let id = u32::from_le_bytes(header[12..16].try_into().expect("4 bytes"));
        let key = self.keys.find(id);
        let key = key.ok_or_else(|| foreign("it was sealed with another key"))?;
        let plain = key
            .open(sealed, header)
            .ok_or_else(|| damaged("its content is bad"))?;
        let decode = |plain: &[u8]| -> Result<Snapshot, Malformed> {
            let mut input = Reader::new(plain);
            let mut snapshot = Snapshot::default();
            snapshot.set_metadata(wire::decode_snapshot_metadata(&mut input)?);
            snapshot.data = Bytes::copy_from_slice(input.bytes()?);
            Ok(snapshot)
        };
        let snapshot = decode(&plain).map_err(|_| damaged("its content is malformed"))?;
        if snapshot.get_metadata().index == index {
            Ok(snapshot)
        } else {
            Err(damaged("it has another's name"))
        }
    }

    fn indexes(&self) -> Result<Vec<LogIndex>, WalError> {
        let names = self
            .disk
            .list()
            .map_err(disk_error("list", "the snapshots' directory"))?;
        let mut indexes = Vec::new();
        for name in names {
            let Some(rest) = name.strip_prefix("snap-") else {
                continue;
            };
            if rest.len() == 16
                && let Ok(index) = u64::from_str_radix(rest, 16)
            {
                indexes.push(index);
            } else if rest.ends_with(".tmp") {
                self.disk
                    .remove(&name)
                    .map_err(disk_error("remove", &name))?;
            }
        }
        indexes.sort_unstable();
        Ok(indexes)
    }

    fn header(&self, key: &DataKey) -> [u8; HEADER] {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&key.id().to_le_bytes());
        bytes.extend_from_slice(&self.owner.0);
        bytes
            .try_into()
            .expect("the fields add up to the header's size")
    }
}

fn snapshot_name(index: LogIndex) -> String {
    format!("snap-{index:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::raft::disk::OsDisk;

    #[test]
    fn what_a_crash_has_left_goes_at_the_next_start_unless_it_is_all_that_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(OsDisk::open(directory.path()).unwrap());
        let owner = Owner::new(&"cluster".parse().unwrap(), &"node1".parse().unwrap());
        let snapshots = Snapshots::new(disk, DataKey::new([7; 32]).into(), owner);
        let path = |index| directory.path().join(snapshot_name(index));
        let save = |index| {
            let mut snapshot = Snapshot::default();
            snapshot.mut_metadata().index = index;
            snapshots.save(&snapshot).unwrap();
            std::fs::read(path(index)).unwrap()
        };
        // As many crashes took back what was removed.
        let files: Vec<_> = (1..=5).map(|index| (index, save(index))).collect();
        let restore = || {
            for (index, content) in &files {
                std::fs::write(path(*index), content).unwrap();
            }
        };
        let load = || {
            let newest = snapshots.load().unwrap().unwrap().get_metadata().index;
            snapshots.drop_spare(newest).unwrap();
            (newest, snapshots.indexes().unwrap())
        };
        restore();
        assert_eq!(load(), (5, vec![4, 5]));
        restore();
        for index in [3, 4, 5] {
            std::fs::write(path(index), b"nothing that could be read").unwrap();
        }
        assert_eq!(load(), (2, vec![2, 3, 4, 5]));
    }
}
