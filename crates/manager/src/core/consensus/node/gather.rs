//! What is proposed between two polls goes into the log together.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use shoal_api::planted::{Bug, planted};

use super::{Answer, Caller, MESSAGE_BYTES_MAX, Node};

impl Node {
    /// Appends data to the log; answered with [`Answer::At`] once it is applied here. What is proposed before the next
    /// [`Node::poll`] is appended together.
    pub fn propose(&mut self, data: &Bytes, caller: Caller) {
        let ticket = self.take_ticket();
        let entry = Entry {
            data: data.clone(),
            context: self.context(ticket, None).into(),
            ..Entry::default()
        };
        self.gathered.push((ticket, caller, entry));
    }

    /// Has the library append what has gathered, in a few steps: each makes one message to each peer.
    pub(super) fn propose_gathered(&mut self) {
        let mut gathered = std::mem::take(&mut self.gathered).into_iter().peekable();
        while gathered.peek().is_some() {
            let (mut owed, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((ticket, caller, entry)) = gathered
                .next_if(|(_, _, e)| bytes == 0 || bytes + e.data.len() <= MESSAGE_BYTES_MAX)
            {
                bytes += entry.data.len();
                owed.push((ticket, caller));
                entries.push(entry);
            }
            let mut message = Message {
                from: self.raft_id(),
                ..Message::default()
            };
            message.set_msg_type(MessageType::MsgPropose);
            message.set_entries(entries.into());
            match self.try_propose(|raw| raw.raft.step(message)) {
                Ok(()) if planted(Bug::AckOnAppend) => {
                    let index = self.raw.raft.raft_log.last_index();
                    for (_, caller) in owed {
                        self.answer(caller, Answer::At(index));
                    }
                }
                Ok(()) => self.proposals.extend(owed),
                Err(refused) => {
                    for (_, caller) in owed {
                        self.fail(caller, refused.clone());
                    }
                }
            }
        }
    }
}
