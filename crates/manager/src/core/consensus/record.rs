//! What a manager writes down of one step of Raft.

use raft::eraftpb::{Entry, HardState};
use shoal_api::planted::{Bug, planted};

use super::{
    LogIndex,
    wire::{self, Malformed, Reader, Writer},
};

/// What one step of Raft must not forget.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Vote, term and commit index after the step.
    pub hard_state: HardState,
    /// Entries appended; they replace any of the same and higher index.
    pub entries: Vec<Entry>,
    /// Index and term of a snapshot that replaced the log; its file is durable already.
    pub installed: Option<(LogIndex, u64)>,
}

impl Record {
    /// Writes it down.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let mut hard_state = self.hard_state.clone();
        if planted(Bug::WalForgetsVote) {
            hard_state.vote = 0;
        }
        wire::encode_hard_state(&mut out, &hard_state);
        let (index, term) = self.installed.unwrap_or_default();
        out.number(u64::from(self.installed.is_some()));
        out.number(index);
        out.number(term);
        out.number(self.entries.len() as u64);
        for entry in &self.entries {
            wire::encode_entry(&mut out, entry);
        }
        out.finish()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Bytes that it did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let hard_state = wire::decode_hard_state(&mut input)?;
        let installed = match (input.number()?, input.number()?, input.number()?) {
            (0, 0, 0) => None,
            (1, index, term) => Some((index, term)),
            _ => return Err(Malformed),
        };
        let entries = (0..input.count()?)
            .map(|_| wire::decode_entry(&mut input))
            .collect::<Result<_, _>>()?;
        if input.is_empty() {
            Ok(Self {
                hard_state,
                entries,
                installed,
            })
        } else {
            Err(Malformed)
        }
    }

    /// The highest index that it speaks of.
    pub fn highest_index(&self) -> LogIndex {
        let last = self.entries.last().map_or(0, |entry| entry.index);
        last.max(self.installed.map_or(0, |(index, _)| index))
    }
}
