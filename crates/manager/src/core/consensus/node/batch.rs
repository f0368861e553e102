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
    use raft::eraftpb::Entry;

    use super::*;

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
}
