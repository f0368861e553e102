//! The log in memory, as `raft-rs` reads it. What it holds is durable already, or becomes so before anyone relies on it.

use std::cell::Cell;

use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use shoal_api::planted::{Bug, planted};

use super::{LogIndex, record::Record};

/// Entries behind the last compaction, with the state around them.
#[derive(Debug)]
pub(crate) struct Log {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term of the entry before the first one held.
    base: (LogIndex, u64),
    entries: Vec<Entry>,
    /// The newest snapshot, on disk or only made to be sent.
    snapshot: Snapshot,
    /// Set when a peer needs a newer snapshot than there is.
    wants_snapshot: Cell<bool>,
    /// Whether records on disk say something about the log that is no longer so.
    is_void: bool,
}

impl Log {
    /// Puts together what was found on disk: the newest snapshot and the records of the log.
    ///
    /// # Errors
    /// What is missing between the two.
    pub(crate) fn recover(snapshot: Snapshot, records: Vec<Record>) -> Result<Self, &'static str> {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        let mut hard_state = HardState::default();
        let mut entries: Vec<Entry> = Vec::new();
        for record in records {
            hard_state = record.hard_state;
            if record.installed.is_some() && !planted(Bug::LogKeepsInstalled) {
                entries.clear();
            }
            for entry in record.entries {
                if let Some(first) = entries.first().map(|first| first.index) {
                    if entry.index > first + entries.len() as u64 {
                        return Err("the log has a gap");
                    }
                    let kept = usize::try_from(entry.index.saturating_sub(first)).unwrap_or(0);
                    if !planted(Bug::LogKeepsConflict) {
                        entries.truncate(kept);
                    } else if kept < entries.len() {
                        continue;
                    }
                }
                entries.push(entry);
            }
        }
        if entries.first().is_some_and(|first| first.index > index + 1) {
            return Err("the log begins behind the end of the newest readable snapshot");
        }
        // Another leader's snapshot may have been kept just before a crash, with the log not yet cut: what then follows
        // from another history is void.
        let same_history = entries
            .iter()
            .find(|entry| entry.index == index)
            .is_none_or(|entry| entry.term == term);
        let goes_on = same_history && entries.last().is_some_and(|last| last.index >= index);
        let is_void = !goes_on && !entries.is_empty();
        if goes_on {
            entries.retain(|entry| entry.index > index);
        } else {
            entries.clear();
        }
        hard_state.commit = hard_state.commit.max(index);
        if hard_state.term < term {
            (hard_state.term, hard_state.vote) = (term, 0);
        }
        if hard_state.commit > entries.last().map_or(index, |last| last.index) {
            return Err("the log ends before what it says was committed");
        }
        let conf_state = snapshot.get_metadata().get_conf_state().clone();
        let base = (index, term);
        Ok(Self {
            hard_state,
            conf_state,
            base,
            entries,
            snapshot,
            wants_snapshot: Cell::new(false),
            is_void,
        })
    }

    /// What must be on disk before anything is appended: that a snapshot has replaced the log. A crash came between the two;
    /// what is appended now would else be read as the continuation of what was replaced, and dropped with it.
    pub(crate) fn amendment(&self) -> Option<Record> {
        let says = self.is_void && !planted(Bug::SnapshotUnsaid);
        says.then(|| Record {
            hard_state: self.hard_state.clone(),
            entries: Vec::new(),
            installed: Some(self.base),
        })
    }

    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    pub(crate) fn set_commit(&mut self, commit: LogIndex) {
        self.hard_state.commit = commit;
    }

    pub(crate) fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    pub(crate) fn set_conf_state(&mut self, state: ConfState) {
        self.conf_state = state;
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether a peer waits for a newer snapshot; asking forgets it.
    pub(crate) fn take_snapshot_wish(&self) -> bool {
        self.wants_snapshot.take()
    }

    /// An entry that is held.
    pub(crate) fn entry(&self, index: LogIndex) -> Option<&Entry> {
        let position = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    /// The entries behind an index.
    pub(crate) fn entries_after(&self, index: LogIndex) -> Vec<Entry> {
        let first = self.entries.partition_point(|entry| entry.index <= index);
        self.entries[first..].to_vec()
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first
            .index
            .checked_sub(self.base.0 + 1)
            .expect("raft never rewrites what is compacted");
        self.entries
            .truncate(usize::try_from(keep).expect("the log fits into memory"));
        assert_eq!(self.entries.len() as u64, keep, "raft appends without gaps");
        self.entries.extend_from_slice(entries);
    }

    /// Takes over a leader's snapshot in place of everything.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.base = (metadata.index, metadata.term);
        self.conf_state = metadata.get_conf_state().clone();
        self.hard_state.commit = self.hard_state.commit.max(metadata.index);
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Keeps a snapshot that was made here, and forgets entries up to `compact_to`.
    pub(crate) fn set_snapshot(&mut self, snapshot: Snapshot, compact_to: LogIndex) {
        self.snapshot = snapshot;
        if compact_to > self.base.0 {
            let count =
                usize::try_from(compact_to - self.base.0).expect("the log fits into memory");
            let term = self.entries[count - 1].term;
            self.entries.drain(..count);
            self.base = (compact_to, term);
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        let position = |index: u64| usize::try_from(index - self.base.0 - 1).ok();
        let range = position(low)
            .zip(position(high))
            .and_then(|(low, high)| self.entries.get(low..high));
        let mut entries = range.ok_or(StorageError::Unavailable)?.to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let position = index
            .checked_sub(self.base.0 + 1)
            .ok_or(StorageError::Compacted)?;
        let entry = usize::try_from(position)
            .ok()
            .and_then(|position| self.entries.get(position));
        Ok(entry.ok_or(StorageError::Unavailable)?.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let metadata = self.snapshot.get_metadata();
        let state = metadata.get_conf_state();
        // A snapshot that does not know its receiver would be ignored by it; one from before our log's begin would
        // leave a gap.
        let knows_receiver = state.voters.contains(&to) || state.learners.contains(&to);
        if metadata.index >= request_index.max(self.base.0) && knows_receiver {
            return Ok(self.snapshot.clone());
        }
        self.wants_snapshot.set(true);
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(index: u64, term: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot
    }

    fn record(term: u64, indexes: std::ops::Range<u64>) -> Record {
        let mut record = Record::default();
        record.hard_state.term = term;
        for index in indexes {
            let mut entry = Entry::default();
            (entry.term, entry.index) = (term, index);
            record.entries.push(entry);
        }
        record
    }

    fn check(snap: (u64, u64), records: Vec<Record>, want: Result<&[(u64, u64)], &str>) {
        let found = Log::recover(snapshot(snap.0, snap.1), records).map(|log| {
            assert!(log.hard_state.commit >= snap.0 && log.hard_state.term >= snap.1);
            log.entries
                .iter()
                .map(|entry| (entry.index, entry.term))
                .collect::<Vec<_>>()
        });
        assert_eq!(found.as_deref().map_err(|error| *error), want);
    }

    #[test]
    fn snapshot_and_records_make_one_log() {
        check((1, 1), vec![], Ok(&[]));
        check((1, 1), vec![record(1, 2..4)], Ok(&[(2, 1), (3, 1)]));
        check(
            (1, 1),
            vec![record(1, 2..5), record(2, 3..4)],
            Ok(&[(2, 1), (3, 2)]),
        );
        check((3, 1), vec![record(1, 2..5)], Ok(&[(4, 1)]));
        check((9, 1), vec![record(1, 2..5)], Ok(&[]));
        // Installed from a leader with another history, crashed before the log was cut.
        check((3, 2), vec![record(1, 2..6)], Ok(&[]));
        let installed = Record {
            installed: Some((10, 2)),
            ..record(2, 11..12)
        };
        check((10, 2), vec![record(1, 2..6), installed], Ok(&[(11, 2)]));
        // The same crash, and then a life in which more was appended: it begins with saying what had happened.
        for records in [vec![record(1, 2..6)], vec![record(1, 2..12)]] {
            let log = Log::recover(snapshot(10, 2), records.clone()).unwrap();
            let amendment = log.amendment().unwrap();
            let records = [records, vec![amendment, record(2, 11..12)]].concat();
            check((10, 2), records.clone(), Ok(&[(11, 2)]));
            let log = Log::recover(snapshot(10, 2), records).unwrap();
            assert_eq!(log.amendment(), None);
        }
        check(
            (1, 1),
            vec![record(1, 5..6)],
            Err("the log begins behind the end of the newest readable snapshot"),
        );
        check(
            (1, 1),
            vec![record(1, 2..3), record(1, 4..5)],
            Err("the log has a gap"),
        );
        let mut committed = record(1, 2..4);
        committed.hard_state.commit = 4;
        check(
            (1, 1),
            vec![committed],
            Err("the log ends before what it says was committed"),
        );
    }
}
