//! Appends to one peer that follow on each other travel as one message.

use raft::eraftpb::{Message, MessageType};

use super::MESSAGE_BYTES_MAX;

/// Joins each append with the one before it to the same peer, where the entries of the two follow on each other.
pub(super) fn batches(messages: Vec<Message>) -> Vec<Message> {
    let mut joined: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let before = joined.iter_mut().rev().find(|m| m.to == message.to);
        match before {
            Some(before) if follows(before, &message) => {
                before.commit = before.commit.max(message.commit);
                before.entries.extend(message.entries);
            }
            _ => joined.push(message),
        }
    }
    joined
}

fn follows(before: &Message, message: &Message) -> bool {
    let is_append = |m: &Message| m.get_msg_type() == MessageType::MsgAppend;
    // An append without entries asks for an answer of its own.
    let Some(last) = before.entries.last().filter(|_| is_append(before)) else {
        return false;
    };
    let bytes = |m: &Message| {
        m.entries
            .iter()
            .map(|e| e.data.len() + e.context.len())
            .sum::<usize>()
    };
    is_append(message)
        && (message.term, message.from) == (before.term, before.from)
        && (message.index, message.log_term) == (last.index, last.term)
        && bytes(before) + bytes(message) <= MESSAGE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft::eraftpb::{Entry, Snapshot};

    use super::*;
    use crate::core::consensus::{
        Member, MemberChange, Members,
        node::{
            Effect, Kept, Node,
            fixture::{Nothing, limits},
            snapshot_data,
        },
    };

    fn append(to: u64, after: u64, entries: &[u64], commit: u64) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.to, message.term, message.index, message.log_term) = (to, 2, after, 2);
        message.commit = commit;
        for index in entries {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (*index, 2);
            message.entries.push(entry);
        }
        message
    }

    fn check(messages: Vec<Message>, want: &[(u64, u64, &[u64], u64)]) {
        let joined = batches(messages);
        let found: Vec<(u64, u64, Vec<u64>, u64)> = joined
            .iter()
            .map(|m| {
                (
                    m.to,
                    m.index,
                    m.entries.iter().map(|e| e.index).collect(),
                    m.commit,
                )
            })
            .collect();
        let want: Vec<_> = want
            .iter()
            .map(|(to, at, e, c)| (*to, *at, e.to_vec(), *c))
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn only_entries_that_follow_on_each_other_are_joined() {
        check(
            vec![
                append(2, 7, &[8], 7),
                append(3, 7, &[8], 7),
                append(2, 8, &[9, 10], 8),
            ],
            &[(2, 7, &[8, 9, 10], 8), (3, 7, &[8], 7)],
        );
        // A probe, and after its refusal an earlier beginning: the library would join these.
        check(
            vec![append(2, 73, &[], 72), append(2, 69, &[70, 71], 72)],
            &[(2, 73, &[], 72), (2, 69, &[70, 71], 72)],
        );
        // A gap, and a repetition.
        check(
            vec![
                append(2, 7, &[8], 7),
                append(2, 9, &[10], 7),
                append(2, 9, &[10], 7),
            ],
            &[(2, 7, &[8], 7), (2, 9, &[10], 7), (2, 9, &[10], 7)],
        );
    }

    /// The first of three, which begins with a snapshot that all have, and leads.
    fn leader_of_three() -> Node {
        let member = |id: u64| Member {
            node_id: format!("node{id}").parse().unwrap(),
            address: format!("10.0.0.{id}:2377"),
        };
        let mut members = Members::genesis(1, member(1));
        for id in [2, 3] {
            members.apply(&MemberChange::SetVoter(id, member(id)));
        }
        let mut snapshot = Snapshot {
            data: snapshot_data(&members, 0, |_| {}),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (1, 1);
        metadata.mut_conf_state().voters = vec![1, 2, 3];
        let kept = Kept {
            raft_id: 1,
            members,
            snapshot,
            records: Vec::new(),
        };
        let mut node = Node::new(limits(), kept, Box::new(Nothing), 1).unwrap();
        while !node.leadership().is_leader {
            node.tick();
            loop {
                let effects = node.poll();
                if effects.is_empty() {
                    break;
                }
                for effect in effects {
                    match effect {
                        Effect::Send(message) => agree(&mut node, &message),
                        Effect::Persist(_) => node.on_persisted(),
                        _ => {}
                    }
                }
            }
        }
        node
    }

    /// Lets the second manager agree with what it is asked.
    fn agree(node: &mut Node, asked: &Message) {
        let answer = match asked.get_msg_type() {
            MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
            MessageType::MsgAppend => MessageType::MsgAppendResponse,
            _ => return,
        };
        if asked.to != 2 {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(answer);
        (message.from, message.to, message.term) = (2, 1, asked.term);
        message.index = asked.entries.last().map_or(asked.index, |last| last.index);
        node.step(message, None);
    }

    /// Which entries go to the second manager, and when the own disk is asked for them.
    fn order(effects: &[Effect]) -> Vec<String> {
        let tell = |effect: &Effect| match effect {
            Effect::Send(message)
                if message.to == 2 && message.get_msg_type() == MessageType::MsgAppend =>
            {
                Some(format!("append{}", message.entries.len()))
            }
            Effect::Persist(_) => Some("persist".to_owned()),
            _ => None,
        };
        effects.iter().filter_map(tell).collect()
    }

    #[test]
    fn appends_travel_while_the_disk_works_and_before_earlier_ones_are_acknowledged() {
        let mut node = leader_of_three();
        // One round is not one round trip: what is proposed next goes after the first, which nobody has acknowledged.
        for (round, caller) in [1, 2, 3].into_iter().enumerate() {
            node.propose(&Bytes::from(format!("line {round}")), caller);
            assert_eq!(order(&node.poll()), ["append1", "persist"], "round {round}");
            node.on_persisted();
        }
        // What is proposed together is one entry or one message of several.
        node.propose(&Bytes::from_static(b"a"), 4);
        node.propose(&Bytes::from_static(b"b"), 5);
        let told = order(&node.poll());
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[1], "persist");
    }
}
