//! Handing leadership over: to whom, and how long to wait for it.

use raft::StateRole;

use super::{Answer, Caller, Node};
use crate::core::consensus::RaftId;

/// A handover that somebody waits for.
pub(super) struct Transfer {
    deadline: u64,
    callers: Vec<Caller>,
}

impl Node {
    /// Hands leadership over, if this manager leads and another one can; answered with [`Answer::Done`] when settled.
    pub fn transfer(&mut self, caller: Caller) {
        if let Some(transfer) = &mut self.transfer {
            transfer.callers.push(caller);
            return;
        }
        let heir = self.is_leader().then(|| self.best_heir()).flatten();
        if let Some(heir) = heir {
            self.raw.transfer_leader(heir);
        }
        let patience = if heir.is_some() {
            2 * self.limits.election_ticks as u64
        } else {
            0
        };
        self.transfer = Some(Transfer {
            deadline: self.ticks + patience,
            callers: vec![caller],
        });
        self.settle_transfer();
    }

    /// The voter that was heard of lately and has the most of the log.
    fn best_heir(&self) -> Option<RaftId> {
        let voters = &self.raw.store().conf_state().voters;
        let reachable = self.reachable();
        let progress = |id: &RaftId| {
            self.raw
                .raft
                .prs()
                .get(*id)
                .map_or(0, |progress| progress.matched)
        };
        voters
            .iter()
            .filter(|id| **id != self.raft_id() && reachable.contains(id))
            .max_by_key(|id| progress(id))
            .copied()
    }

    pub(super) fn settle_transfer(&mut self) {
        let settled = |transfer: &Transfer| {
            self.raw.raft.state != StateRole::Leader || self.ticks >= transfer.deadline
        };
        if self.transfer.as_ref().is_some_and(settled) {
            for caller in self.transfer.take().into_iter().flat_map(|t| t.callers) {
                self.answer(caller, Answer::Done);
            }
        }
    }
}
