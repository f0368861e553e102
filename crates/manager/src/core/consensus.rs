//! Consensus as values: who is a member, what may change about that, and how its records are written down.
//!
//! Raft itself is `raft-rs`; [`node`] makes one machine of it and of everything that is decided around it. `io::raft`
//! drives that machine with a thread, files and a network, the simulator with none of them.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    NodeId,
    planted::{Bug, planted},
};

pub(crate) mod log;
pub mod node;
pub mod record;
pub mod roles;
mod tracing_drain;
pub mod wire;

use wire::{Malformed, Reader, Writer};

/// Identity of a manager in the consensus group. Never given out twice, not even to the same node.
pub type RaftId = u64;

/// Position in the replicated log.
pub type LogIndex = u64;

/// A manager that takes part in consensus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node, as in its certificate. Messages from `raft_id` are believed from this node alone.
    pub node_id: NodeId,
    /// `host:port` of its gRPC server.
    pub address: String,
}

/// All members, and the ids of those that once were. Replicated: changed by committed changes only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    current: BTreeMap<RaftId, Member>,
    voters: BTreeSet<RaftId>,
    removed: BTreeSet<RaftId>,
}

/// One committed change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member that receives the log but does not vote until it has caught up.
    AddLearner(RaftId, Member),
    /// A learner becomes a voter, or a voter tells its new address.
    SetVoter(RaftId, Member),
    /// A member leaves for good.
    Remove(RaftId),
}

/// Why a member cannot be removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemovalRefused {
    /// Nobody would be left.
    #[error("it is the last manager of the cluster")]
    LastVoter,
    /// The ones left could not agree on anything.
    #[error("only {reachable} of the {left} managers left would be reachable, which is no quorum")]
    NoQuorum {
        /// Voters left after the removal.
        left: usize,
        /// How many of them are reachable now.
        reachable: usize,
    },
}

impl Members {
    /// The membership of a cluster's first manager.
    pub fn genesis(raft_id: RaftId, member: Member) -> Self {
        Self {
            current: BTreeMap::from([(raft_id, member)]),
            voters: BTreeSet::from([raft_id]),
            removed: BTreeSet::new(),
        }
    }

    /// The members, by id.
    pub fn iter(&self) -> impl Iterator<Item = (RaftId, &Member)> {
        self.current.iter().map(|(id, member)| (*id, member))
    }

    /// The member of this id.
    pub fn get(&self, raft_id: RaftId) -> Option<&Member> {
        self.current.get(&raft_id)
    }

    /// Whether this member votes, or only receives the log so far.
    pub fn is_voter(&self, raft_id: RaftId) -> bool {
        self.voters.contains(&raft_id)
    }

    /// The id under which a node takes part.
    pub fn id_of(&self, node_id: &NodeId) -> Option<RaftId> {
        self.iter()
            .find(|(_, member)| member.node_id == *node_id)
            .map(|(id, _)| id)
    }

    /// Whether this id was a member once and is no longer.
    pub fn was_removed(&self, raft_id: RaftId) -> bool {
        self.removed.contains(&raft_id)
    }

    /// An id that nobody ever had.
    pub fn next_id(&self) -> RaftId {
        let none = BTreeSet::new();
        let removed = if planted(Bug::RaftIdReused) {
            &none
        } else {
            &self.removed
        };
        let ever = self.current.keys().chain(removed);
        ever.max().map_or(1, |highest| highest + 1)
    }

    /// Applies a committed change. Changes that make no sense (any more) change nothing.
    pub fn apply(&mut self, change: &MemberChange) {
        let id = change.raft_id();
        match change {
            MemberChange::AddLearner(_, member) | MemberChange::SetVoter(_, member) => {
                if self.removed.contains(&id) {
                    return;
                }
                self.current.insert(id, member.clone());
                if matches!(change, MemberChange::SetVoter(..)) {
                    self.voters.insert(id);
                }
            }
            MemberChange::Remove(_) => {
                self.current.remove(&id);
                self.voters.remove(&id);
                self.removed.insert(id);
            }
        }
    }

    /// Writes all of it, for snapshots.
    pub fn encode(&self, out: &mut Writer) {
        out.number(self.current.len() as u64);
        for (id, member) in &self.current {
            out.number(*id);
            member.encode(out);
        }
        for ids in [&self.voters, &self.removed] {
            out.number(ids.len() as u64);
            for id in ids {
                out.number(*id);
            }
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut members = Self::default();
        for _ in 0..input.count()? {
            let id = input.number()?;
            members.current.insert(id, Member::decode(input)?);
        }
        for ids in [&mut members.voters, &mut members.removed] {
            for _ in 0..input.count()? {
                ids.insert(input.number()?);
            }
        }
        Ok(members)
    }
}

impl Member {
    fn encode(&self, out: &mut Writer) {
        out.bytes(self.node_id.as_str().as_bytes());
        out.bytes(self.address.as_bytes());
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            node_id: input.text()?.parse().map_err(|_| Malformed)?,
            address: input.text()?.to_owned(),
        })
    }
}

impl MemberChange {
    /// The id that it is about.
    pub fn raft_id(&self) -> RaftId {
        match self {
            Self::AddLearner(id, _) | Self::SetVoter(id, _) | Self::Remove(id) => *id,
        }
    }

    /// Writes it, for the context of a log entry.
    pub fn encode(&self, out: &mut Writer) {
        let (kind, member) = match self {
            Self::AddLearner(_, member) => (1, Some(member)),
            Self::SetVoter(_, member) => (2, Some(member)),
            Self::Remove(_) => (3, None),
        };
        out.number(kind);
        out.number(self.raft_id());
        if let Some(member) = member {
            member.encode(out);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (kind, id) = (input.number()?, input.number()?);
        match kind {
            1 => Ok(Self::AddLearner(id, Member::decode(input)?)),
            2 => Ok(Self::SetVoter(id, Member::decode(input)?)),
            3 => Ok(Self::Remove(id)),
            _ => Err(Malformed),
        }
    }
}

/// Whether the cluster would still agree on things without this voter.
///
/// `reachable` are the voters heard of lately, the asking leader included. As SwarmKit's `CanRemoveMember`.
pub fn may_remove(
    voters: &BTreeSet<RaftId>,
    reachable: &BTreeSet<RaftId>,
    leaving: RaftId,
) -> Result<(), RemovalRefused> {
    if !voters.contains(&leaving) {
        return Ok(());
    }
    let left = voters.len() - 1;
    if left == 0 {
        return Err(RemovalRefused::LastVoter);
    }
    let reachable = voters
        .intersection(reachable)
        .filter(|id| **id != leaving)
        .count();
    if reachable < left / 2 + 1 {
        return Err(RemovalRefused::NoQuorum { left, reachable });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            node_id: name.parse().unwrap(),
            address: format!("{name}:2377"),
        }
    }

    #[test]
    fn an_id_is_never_given_out_twice() {
        let mut members = Members::genesis(1, member("a"));
        assert_eq!(members.next_id(), 2);
        members.apply(&MemberChange::AddLearner(2, member("b")));
        members.apply(&MemberChange::Remove(2));
        assert_eq!(members.next_id(), 3);
        members.apply(&MemberChange::SetVoter(2, member("b"))); // late, after the removal
        assert_eq!(members.get(2), None);
        assert!(members.was_removed(2));
    }

    #[test]
    fn a_removal_leaves_a_quorum() {
        let set = |ids: &[RaftId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let check = |voters: &[RaftId], reachable: &[RaftId], leaving| {
            may_remove(&set(voters), &set(reachable), leaving)
                .map_err(|refused| refused.to_string())
        };
        assert_eq!(check(&[1, 2, 3], &[1, 2, 3], 3), Ok(()));
        assert_eq!(check(&[1, 2, 3], &[1, 2], 3), Ok(()));
        assert_eq!(check(&[1, 2], &[1, 2], 2), Ok(()));
        assert_eq!(check(&[1, 2], &[1, 2], 7), Ok(()));
        assert_eq!(
            check(&[1], &[1], 1),
            Err("it is the last manager of the cluster".into())
        );
        let refused = "only 1 of the 2 managers left would be reachable, which is no quorum";
        assert_eq!(check(&[1, 2, 3], &[1, 2], 2), Err(refused.into()));
    }

    #[test]
    fn members_and_changes_are_read_back() {
        let mut members = Members::genesis(1, member("a"));
        for change in [
            MemberChange::AddLearner(2, member("b")),
            MemberChange::SetVoter(2, member("c")),
            MemberChange::Remove(1),
        ] {
            let mut out = Writer::default();
            change.encode(&mut out);
            let bytes = out.finish();
            assert_eq!(
                MemberChange::decode(&mut Reader::new(&bytes)).unwrap(),
                change
            );
            members.apply(&change);
        }
        let mut out = Writer::default();
        members.encode(&mut out);
        let bytes = out.finish();
        assert_eq!(Members::decode(&mut Reader::new(&bytes)).unwrap(), members);
        assert_eq!(members.id_of(&"c".parse().unwrap()), Some(2));
    }
}
