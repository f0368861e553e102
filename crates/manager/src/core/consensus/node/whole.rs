//! The whole of what a manager holds, to be written down at once.

use raft::eraftpb::Snapshot;

use super::{Node, snapshot_data};
use crate::core::consensus::record::Record;

impl Node {
    /// Everything that a log begun anew must hold: the state as it is applied, and what is durable beyond it. Not while an
    /// [`Effect::Persist`] is being carried out.
    pub fn whole(&self) -> (Snapshot, Record) {
        let record = Record {
            hard_state: self.raw.store().hard_state().clone(),
            entries: self.raw.store().entries_after(self.applied),
            installed: None,
        };
        (self.make_snapshot(), record)
    }

    pub(super) fn make_snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            data: snapshot_data(&self.members, &self.state.snapshot()),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.applied, self.applied_term);
        metadata.set_conf_state(self.raw.store().conf_state().clone());
        snapshot
    }
}
