//! Managers whose admission has not reached us. A leader may be one: then the entry that admits it is among what it sends
//! us, and if we did not answer it would never send more. And members that are elsewhere than the log says: where they are
//! is written there by a leader, whom it may take their votes to elect.

use raft::eraftpb::{Message, MessageType};

use super::{Effect, Node};
use crate::core::consensus::{Member, RaftId};

/// A learner that has heard of nobody for this many election timeouts speaks up.
const SILENCE: u64 = 4;

impl Node {
    /// Remembers where to answer somebody who is no member yet, or has moved. A node is a guest under one id, its newest.
    pub(super) fn receive_guest(&mut self, id: RaftId, guest: Member) {
        let is_known = match self.members.get(id) {
            Some(known) => known.node_id != guest.node_id || known.address == guest.address,
            None => self.members.was_removed(id),
        };
        if is_known {
            self.guests.remove(&id);
            return;
        }
        if self.guests.get(&id) == Some(&guest) {
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

    /// A member that knows of itself only as 2, and of a first one.
    fn kept() -> Kept {
        Kept {
            raft_id: 2,
            members: Members::genesis(1, member("one")),
            snapshot: Snapshot::default(),
            records: Vec::new(),
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
    fn a_member_is_answered_where_it_is_now_until_the_members_say_so() {
        let moved = |address: &str| Member {
            address: address.to_owned(),
            ..member("one")
        };
        let mut node = Node::new(limits(), kept(), Box::new(Nothing), 1).unwrap();
        settle(&mut node);
        let mut ask = |from: Member| {
            let mut message = Message {
                from: 1,
                to: 2,
                term: 1,
                ..Message::default()
            };
            message.set_msg_type(MessageType::MsgHeartbeat);
            node.step(message, Some(from));
            let told = settle(&mut node)
                .into_iter()
                .find_map(|effect| match effect {
                    Effect::Guest(1, guest) => Some(guest),
                    _ => None,
                });
            told.map(|guest| guest.address)
        };
        assert_eq!(ask(moved("elsewhere:1")), Some("elsewhere:1".to_owned()));
        assert_eq!(ask(moved("elsewhere:1")), None, "it is told once");
        assert_eq!(ask(moved("again:1")), Some("again:1".to_owned()));
        assert_eq!(ask(member("one")), None, "that is where the members say");
        assert_eq!(ask(member("two")), None, "that is somebody else");
    }

    #[test]
    fn a_leader_of_whose_admission_we_have_not_heard_is_answered() {
        let mut node = Node::new(limits(), kept(), Box::new(Nothing), 1).unwrap();
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
