//! The whole of what a manager holds, to be written down at once.

use bytes::Bytes;
use raft::eraftpb::{Snapshot, SnapshotMetadata};

use super::{Frozen, Node};
use crate::core::consensus::{Members, record::Record, wire::Writer};

impl Node {
    /// Everything that a log begun anew must hold: the state as it is applied, and what is durable beyond it. Not while an
    /// [`Effect::Persist`] is being carried out.
    pub fn whole(&self) -> (Snapshot, Record) {
        let record = Record {
            hard_state: self.raw.store().hard_state().clone(),
            entries: self.raw.store().entries_after(self.applied),
            installed: None,
        };
        (self.freeze().write(), record)
    }

    /// The state as it is applied, to be written down later.
    pub(super) fn freeze(&self) -> Frozen {
        let mut metadata = SnapshotMetadata::default();
        (metadata.index, metadata.term) = (self.applied, self.applied_term);
        metadata.set_conf_state(self.raw.store().conf_state().clone());
        // What was there, and what came since.
        let bytes = self.raw.store().snapshot().data.len() as u64 + self.applied_bytes;
        Frozen {
            metadata,
            members: self.members.clone(),
            state: self.state.freeze(),
            bytes_expected: usize::try_from(bytes).unwrap_or(0),
        }
    }
}

/// Writes what [`super::restore`] reads, about so many bytes.
pub(crate) fn snapshot_data(
    members: &Members,
    bytes_expected: usize,
    state: impl FnOnce(&mut Writer),
) -> Bytes {
    let mut out = Writer::with_capacity(bytes_expected);
    members.encode(&mut out);
    out.part(state);
    out.finish().into()
}
