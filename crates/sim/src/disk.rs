//! A disk that keeps what was synced, and of the rest whatever it likes.
//!
//! Everything that the program does to it is written down in order. A crash happens somewhere in that order: what came
//! after never happened; of what came before and was not synced each sector of 512 bytes, and a first part of the changes
//! of names, may have reached the disk or not.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shoal_manager::io::raft::{
    disk::{Disk, DiskFile},
    wal::{HEADER, RECORD_HEADER},
};

use crate::rng::Rng;

/// What a disk writes as one.
const SECTOR: usize = 512;

type Inode = u64;

#[derive(Debug, Clone)]
enum Op {
    Link(String, Inode),
    Write(Inode, usize, Vec<u8>),
    Sync(Inode),
    Rename(String, String),
    Remove(String),
    SyncNames,
}

/// Names and contents.
#[derive(Debug, Clone, Default)]
struct Files {
    names: BTreeMap<String, Inode>,
    contents: BTreeMap<Inode, Vec<u8>>,
}

impl Files {
    fn rename(&mut self, op: &Op) {
        match op {
            Op::Link(name, inode) => drop(self.names.insert(name.clone(), *inode)),
            Op::Rename(from, to) => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Op::Remove(name) => drop(self.names.remove(name)),
            Op::Write(..) | Op::Sync(_) | Op::SyncNames => {}
        }
    }

    fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8]) {
        let file = self.contents.entry(inode).or_default();
        let end = offset + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset..end].copy_from_slice(bytes);
    }

    fn forget_unnamed(&mut self) {
        let named: std::collections::BTreeSet<_> = self.names.values().copied().collect();
        self.contents.retain(|inode, _| named.contains(inode));
    }
}

#[derive(Debug, Default)]
struct State {
    /// What a reader sees.
    seen: Files,
    /// What is durable for sure, before `journal`.
    durable: Files,
    /// What was done since.
    journal: Vec<Op>,
    next_inode: Inode,
    /// Operations until the disk fails; `None` while it is sound.
    fails_in: Option<u64>,
    /// How often it was made sure of something.
    syncs: u64,
}

impl State {
    fn act(&mut self, op: Op) -> io::Result<()> {
        if let Some(left) = &mut self.fails_in {
            if *left == 0 {
                return Err(io::Error::other("the disk failed"));
            }
            *left -= 1;
        }
        self.seen.rename(&op);
        match &op {
            Op::Write(inode, offset, bytes) => self.seen.write(*inode, *offset, bytes),
            Op::Sync(_) | Op::SyncNames => self.syncs += 1,
            Op::Link(..) | Op::Rename(..) | Op::Remove(_) => {}
        }
        self.journal.push(op);
        Ok(())
    }
}

/// Makes durable what is so for sure after these operations; gives those of them that are not.
fn settle(durable: &mut Files, journal: Vec<Op>) -> Vec<Op> {
    let mut open: Vec<Op> = Vec::new();
    for op in journal {
        match op {
            Op::Sync(inode) => open.retain(|op| match op {
                Op::Write(written, offset, bytes) if *written == inode => {
                    durable.write(inode, *offset, bytes);
                    false
                }
                _ => true,
            }),
            Op::SyncNames => open.retain(|op| {
                durable.rename(op);
                matches!(op, Op::Write(..))
            }),
            op => open.push(op),
        }
    }
    open
}

/// Files of a log.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Segments of the log.
    pub segments: usize,
    /// Up to which index each of the snapshots goes.
    pub snapshots: Vec<u64>,
    /// Files that were not finished.
    pub temporary: usize,
}

/// A disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time for what was done so far has passed: a crash can no longer come in the middle of it.
    pub fn pass(&self) {
        let mut state = self.state();
        let journal = std::mem::take(&mut state.journal);
        state.journal = settle(&mut state.durable, journal);
    }

    /// The power goes, or the process: what is on the disk is decided by `rng`.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.state();
        let cut = rng.range(0, state.journal.len() as u64 + 1) as usize;
        let mut left = state.durable.clone();
        let open = settle(&mut left, state.journal[..cut].to_vec());
        let mood = rng.index(3); // nothing more, everything, or some of it
        let names = open.iter().filter(|op| !matches!(op, Op::Write(..)));
        let kept = match mood {
            0 => 0,
            1 => usize::MAX,
            _ => rng.index(names.clone().count() + 1),
        };
        names.take(kept).for_each(|op| left.rename(op));
        for op in &open {
            let Op::Write(inode, offset, bytes) = op else {
                continue;
            };
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                if mood == 1 || mood == 2 && rng.chance(500_000) {
                    left.write(*inode, offset + at, &bytes[at..end]);
                }
                at = end;
            }
        }
        for inode in left.names.values() {
            left.contents.entry(*inode).or_default();
        }
        left.forget_unnamed();
        state.seen = left.clone();
        state.durable = left;
        state.journal.clear();
        state.fails_in = None;
    }

    /// Lets it fail after so many operations.
    pub fn fail_in(&self, operations: u64) {
        self.state().fails_in = Some(operations);
    }

    /// Whether it fails.
    pub fn has_failed(&self) -> bool {
        self.state().fails_in == Some(0)
    }

    /// Empties it.
    pub fn wipe(&self) {
        *self.state() = State::default();
    }

    /// Flips a bit of a record of the log that others follow. Returns whether there was one.
    pub fn rot(&self, rng: &mut Rng) -> bool {
        let mut state = self.state();
        let logs = state
            .seen
            .names
            .iter()
            .filter(|(name, _)| name.starts_with("wal-") && !name.ends_with(".tmp"));
        let Some(inode) = logs.last().map(|(_, inode)| *inode) else {
            return false;
        };
        let content = &state.seen.contents[&inode];
        let mut records = Vec::new();
        let mut at = HEADER;
        while let Some(length) = content.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
            let length = u32::from_le_bytes(*length) as usize;
            if length == 0 {
                break;
            }
            records.push(at..at + RECORD_HEADER + length);
            at += RECORD_HEADER + length;
        }
        // The last one may be dropped as one that was cut short.
        let Some(followed) = records.len().checked_sub(2).filter(|left| *left > 0) else {
            return false;
        };
        let record = records[rng.index(followed)].clone();
        let place = rng.range(record.start as u64 + 4, record.end as u64) as usize;
        let bit = 1 << rng.index(8);
        let State { seen, durable, .. } = &mut *state;
        for files in [seen, durable] {
            if let Some(byte) = files
                .contents
                .get_mut(&inode)
                .and_then(|c| c.get_mut(place))
            {
                *byte ^= bit;
            }
        }
        true
    }

    /// What is on it.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        let mut usage = Usage::default();
        for name in state.seen.names.keys() {
            if name.ends_with(".tmp") {
                usage.temporary += 1;
            } else if let Some(index) = name.strip_prefix("snap-") {
                usage.snapshots.extend(u64::from_str_radix(index, 16));
            } else if name.starts_with("wal-") {
                usage.segments += 1;
            }
        }
        usage.snapshots.sort_unstable();
        usage
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().seen.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.seen.names.get(name);
        let content = inode.and_then(|inode| state.seen.contents.get(inode));
        content.cloned().ok_or_else(not_found)
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.next_inode += 1;
        let inode = state.next_inode;
        state.act(Op::Link(name.to_owned(), inode))?;
        state.act(Op::Write(inode, 0, vec![0; size as usize]))?;
        Ok(Box::new(SimFile(self.clone(), inode)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.state().seen.names.get(name).copied();
        Ok(Box::new(SimFile(
            self.clone(),
            inode.ok_or_else(not_found)?,
        )))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().act(Op::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().act(Op::Remove(name.to_owned()))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.state().act(Op::SyncNames)
    }
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

#[derive(Debug)]
struct SimFile(SimDisk, Inode);

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0
            .state()
            .act(Op::Write(self.1, offset as usize, bytes.to_vec()))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.state().act(Op::Sync(self.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..200 {
            let disk = SimDisk::default();
            let mut file = disk.create("a.tmp", 0).unwrap();
            file.write_at(0, b"sure").unwrap();
            file.sync().unwrap();
            disk.rename("a.tmp", "a").unwrap();
            disk.sync_names().unwrap();
            disk.pass();
            file.write_at(4, b" or not").unwrap();
            disk.crash(&mut Rng::new(seed));
            let content = disk.read("a").unwrap();
            assert_eq!(content[..4], *b"sure");
            if content.len() > 4 {
                kept += 1;
            } else {
                lost += 1;
            }
        }
        assert!(kept > 20 && lost > 20, "{kept} kept, {lost} lost");
    }
}
