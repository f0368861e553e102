//! A manager's own place in the group, as it keeps it on disk.

use raft::eraftpb::Snapshot;

use super::{
    Start, StartError, Vault,
    snapshot::Snapshots,
    wal::{WalError, disk_error},
};
use crate::core::consensus::{
    LogIndex, Members, RaftId,
    node::snapshot_data,
    wire::{Malformed, Reader, Writer},
};

/// File with our raft id and the members that we were told of when admitted.
const PLACE: &str = "place";

/// Finds or takes our place in the group: our raft id, and the members as far as we were told.
///
/// The place file is written last: until it stands, nothing was promised to anyone.
pub(super) fn prepare_place(
    vault: &Vault,
    snapshots: &Snapshots,
    start: Start,
) -> Result<(RaftId, Members), StartError> {
    let found = read_place(vault)?;
    match (start, found) {
        (Start::Restart, Some(place)) => Ok(place),
        (Start::Restart, None) => Err(StartError::Unexpected("there is no log to start from")),
        (Start::Bootstrap { .. } | Start::Join { .. } | Start::Anew { .. }, Some(_)) => {
            Err(StartError::Unexpected("there is a log already"))
        }
        (Start::Bootstrap { member, state }, None) => {
            let raft_id = 1;
            let members = Members::genesis(raft_id, member);
            begin(vault, snapshots, (raft_id, members), &state, (1, 1))
        }
        (
            Start::Anew {
                raft_id,
                members,
                state,
                index,
                term,
            },
            None,
        ) => begin(vault, snapshots, (raft_id, members), &state, (index, term)),
        (Start::Join { raft_id, members }, None) => {
            write_place(vault, raft_id, &members)?;
            Ok((raft_id, members))
        }
    }
}

/// Begins a log with a snapshot of a group of one.
fn begin(
    vault: &Vault,
    snapshots: &Snapshots,
    place: (RaftId, Members),
    state: &[u8],
    at: (LogIndex, u64),
) -> Result<(RaftId, Members), StartError> {
    let (raft_id, members) = place;
    let mut genesis = Snapshot {
        data: snapshot_data(&members, state.len(), |out| out.buffer().extend(state)),
        ..Snapshot::default()
    };
    let metadata = genesis.mut_metadata();
    (metadata.index, metadata.term) = at;
    metadata.mut_conf_state().voters = vec![raft_id];
    snapshots.save(&genesis)?;
    write_place(vault, raft_id, &members)?;
    Ok((raft_id, members))
}

/// Whether this vault holds a place in a group, so that [`Start::Restart`] is the way to start.
pub fn has_place(vault: &Vault) -> Result<bool, WalError> {
    read_place(vault).map(|place| place.is_some())
}

/// Seals our place with the current key.
pub(super) fn reseal_place(vault: &Vault) -> Result<(), WalError> {
    match read_place(vault)? {
        Some((raft_id, members)) => write_place(vault, raft_id, &members),
        None => Ok(()),
    }
}

fn read_place(vault: &Vault) -> Result<Option<(RaftId, Members)>, WalError> {
    let names = vault
        .disk
        .list()
        .map_err(disk_error("list", "the log's directory"))?;
    if !names.iter().any(|name| name == PLACE) {
        return Ok(None);
    }
    let sealed = vault.disk.read(PLACE).map_err(disk_error("read", PLACE))?;
    let plain = vault
        .key
        .iter()
        .find_map(|key| key.open(&sealed, &about(vault)))
        .ok_or_else(|| WalError::Foreign {
            name: PLACE.to_owned(),
            reason: "it is damaged, or belongs to another node, or was sealed with another key",
        })?;
    let decode = || -> Result<_, Malformed> {
        let mut input = Reader::new(&plain);
        Ok((input.number()?, Members::decode(&mut input)?))
    };
    decode().map(Some).map_err(|_| WalError::Foreign {
        name: PLACE.to_owned(),
        reason: "it was written by another version",
    })
}

fn write_place(vault: &Vault, raft_id: RaftId, members: &Members) -> Result<(), WalError> {
    let mut out = Writer::default();
    out.number(raft_id);
    members.encode(&mut out);
    let sealed = vault.key.current().seal(&out.finish(), &about(vault));
    let temporary = format!("{PLACE}.tmp");
    let mut file = vault
        .disk
        .create(&temporary, 0)
        .map_err(disk_error("create", &temporary))?;
    file.write_at(0, &sealed)
        .map_err(disk_error("write", &temporary))?;
    file.sync().map_err(disk_error("sync", &temporary))?;
    vault
        .disk
        .rename(&temporary, PLACE)
        .map_err(disk_error("rename", &temporary))?;
    vault
        .disk
        .sync_names()
        .map_err(disk_error("sync", "the log's directory"))
}

fn about(vault: &Vault) -> Vec<u8> {
    [b"shoal place 1".as_slice(), &vault.owner.0].concat()
}
