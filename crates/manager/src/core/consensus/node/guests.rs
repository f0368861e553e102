//! Managers whose admission has not reached us. A leader may be one: then the entry that admits it is among what it sends
//! us, and if we did not answer it would never send more.

use raft::eraftpb::{Message, MessageType};

use super::{Effect, Node};
use crate::core::consensus::{Member, RaftId};

/// A learner that has heard of nobody for this many election timeouts speaks up.
const SILENCE: u64 = 4;

impl Node {
    /// Remembers where to answer somebody who is no member yet. A node is a guest under one id, its newest.
    pub(super) fn receive_guest(&mut self, id: RaftId, guest: Member) {
        let is_known = self.members.get(id).is_some() || self.members.was_removed(id);
        if is_known || self.guests.get(&id) == Some(&guest) {
            return;
        }
        self.guests
            .retain(|_, other| other.node_id != guest.node_id);
        self.guests.insert(id, guest.clone());
        self.effects.push_back(Effect::Guest(id, guest));
    }

    /// A learner sends nothing of itself, so one that was removed before it knew is never told so. After a long silence it
    /// speaks to one member after the other: whoever knows of the removal says so, and a leader goes on with it.
    pub(super) fn speak_up(&mut self) {
        let own = self.raw.raft.id;
        let silence = SILENCE * self.limits.election_ticks as u64;
        let heard = self.heard.values().max().copied().unwrap_or(0);
        let is_time = self.ticks >= heard + silence && self.ticks.is_multiple_of(silence);
        if !is_time || self.members.is_voter(own) || self.members.get(own).is_none() {
            return;
        }
        let others = self.members.iter().map(|(id, _)| id);
        let others: Vec<RaftId> = others.filter(|id| *id != own).collect();
        let Some(turn) = (self.ticks / silence).checked_rem(others.len() as u64) else {
            return;
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHeartbeatResponse);
        message.from = own;
        message.to = others[usize::try_from(turn).unwrap_or(0)];
        message.term = self.raw.raft.term;
        self.effects.push_back(Effect::Send(message));
    }

    /// After a change of the members: says who of the guests still is one.
    pub(super) fn tell_guests(&mut self) {
        for (id, guest) in std::mem::take(&mut self.guests) {
            self.receive_guest(id, guest);
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{Entry, Snapshot};

    use super::*;
    use crate::core::consensus::{
        Members,
        node::{
            Kept,
            fixture::{Nothing, limits},
        },
    };

    fn member(name: &str) -> Member {
        Member {
            node_id: name.parse().unwrap(),
            address: format!("{name}:2377"),
        }
    }

    /// Does what the node says, and gives what it would do about others.
    fn settle(node: &mut Node) -> Vec<Effect> {
        let mut seen = Vec::new();
        loop {
            let effects = node.poll();
            if effects.is_empty() {
                return seen;
            }
            for effect in effects {
                match effect {
                    Effect::Persist(_) => node.on_persisted(),
                    other => seen.push(other),
                }
            }
        }
    }

    #[test]
    fn a_leader_of_whose_admission_we_have_not_heard_is_answered() {
        let kept = Kept {
            raft_id: 2,
            members: Members::genesis(1, member("one")),
            snapshot: Snapshot::default(),
            records: Vec::new(),
        };
        let mut node = Node::new(limits(), kept, Box::new(Nothing), 1).unwrap();
        settle(&mut node);
        let mut append = Message {
            from: 7,
            to: 2,
            term: 3,
            ..Message::default()
        };
        append.set_msg_type(MessageType::MsgAppend);
        append.mut_entries().push(Entry {
            term: 3,
            index: 1,
            ..Entry::default()
        });
        node.step(append, Some(member("seven")));
        let effects = settle(&mut node);
        assert!(matches!(&effects[0], Effect::Guest(7, guest) if *guest == member("seven")));
        let answer = effects.iter().find_map(|effect| match effect {
            Effect::Send(message) if message.to == 7 => Some(message),
            _ => None,
        });
        assert_eq!(answer.map(|m| (m.index, m.reject)), Some((1, false)));
    }
}
