//! What a manager's log holds, read without its group: to begin anew when the others are gone for good.

use raft::eraftpb::EntryType;

use super::{
    Start, StartError, StateMachine, Vault, membership, snapshot::Snapshots, storage::Storage, wal,
};
use crate::core::consensus::{
    LogIndex, MemberChange, Members,
    log::Log,
    node::restore,
    wire::{Malformed, Reader, Writer},
};

/// A group's state as one of its managers had it.
#[derive(Debug, Clone)]
pub struct Salvaged {
    /// The state, as [`StateMachine::freeze`] has it written.
    pub state: Vec<u8>,
    /// The members.
    pub members: Members,
    /// Index of the last entry.
    pub index: LogIndex,
    /// A term that nobody has had yet.
    pub term: u64,
}

/// Reads snapshot and log into the state machine.
///
/// All entries count, not only those that this manager knows to be committed: an acknowledged one may be among the others,
/// and nobody is left to ask. As etcd's and Consul's recoveries do it.
///
/// # Errors
/// Files that are missing, damaged or not ours.
pub fn salvage(vault: Vault, state: &mut dyn StateMachine) -> Result<Salvaged, StartError> {
    let (storage, kept) = Storage::open(vault, Start::Restart, wal::SEGMENT_BYTES)?;
    drop(storage);
    let mut members = kept.members;
    let snapshot = kept.snapshot;
    let (mut index, snapshot_term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
    if index > 0 {
        members = restore(state, &snapshot)
            .map_err(|_| StartError::Unexpected("the state in the snapshot cannot be read"))?;
    }
    let log = Log::recover(snapshot, kept.records).map_err(StartError::Unexpected)?;
    let mut term = snapshot_term.max(log.hard_state().term);
    for entry in log.entries_after(index) {
        (index, term) = (entry.index, term.max(entry.term));
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => {}
            // What was refused is refused again.
            EntryType::EntryNormal => drop(state.apply(entry.index, &entry.data)),
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                let change = || -> Result<MemberChange, Malformed> {
                    let mut input = Reader::new(&entry.context);
                    input.number()?;
                    input.number()?;
                    MemberChange::decode(&mut input)
                };
                if let Ok(change) = change() {
                    members.apply(&change);
                }
            }
        }
    }
    let mut written = Writer::default();
    state.freeze()(&mut written);
    Ok(Salvaged {
        state: written.finish(),
        members,
        index,
        term: term + 1,
    })
}

/// Writes the log of a group that begins anew with this state, and nothing else, into an empty vault.
///
/// # Errors
/// The vault is not empty, or the disk failed.
pub fn write_anew(vault: &Vault, start: Start) -> Result<(), StartError> {
    let snapshots = Snapshots::new(vault.disk.clone(), vault.key.clone(), vault.owner);
    membership::prepare_place(vault, &snapshots, start).map(drop)
}
