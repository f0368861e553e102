//! How Raft's values are written: on our wire, in the log and in snapshots.
//!
//! An encoding of our own, so that no byte of a peer or a disk reaches the parser that `raft-rs` brings along
//! (protobuf 2, RUSTSEC-2024-0437). Numbers are LEB128, byte strings carry their length, fields stand in a fixed order.
//! A reader never reserves more memory than the input is long.

use bytes::Bytes;
use raft::eraftpb::{
    ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

/// Bytes that are not what they should be: cut off, of another version, or made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed consensus record")]
pub struct Malformed;

/// First byte of an encoded message; a changed layout takes the next number.
const MESSAGE_VERSION: u8 = 1;

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

/// Bytes of a part's length, see [`Writer::part`]: enough for 32 GiB.
const PART_LENGTH_BYTES: usize = 5;

impl Writer {
    /// Has room for so many bytes at once.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A number, 1 to 10 bytes.
    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A byte string with its length.
    pub fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A byte string of what `write` writes, which is not held a second time: room is left for its length, whose number then
    /// has leading zeros.
    pub fn part(&mut self, write: impl FnOnce(&mut Self)) {
        let start = self.0.len() + PART_LENGTH_BYTES;
        self.0.resize(start, 0);
        write(self);
        let mut length = self.0.len() - start;
        for byte in &mut self.0[start - PART_LENGTH_BYTES..start] {
            *byte = (length & 0x7f) as u8 | 0x80;
            length >>= 7;
        }
        assert_eq!(length, 0, "a part is far below 32 GiB");
        self.0[start - 1] &= 0x7f;
    }

    /// The buffer itself, for what has an encoding of its own.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes values off a buffer.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the start of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The next number.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// The next number as the count of items that follow; each takes a byte at least.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        if count > self.0.len() {
            Err(Malformed)
        } else {
            Ok(count)
        }
    }

    /// The next byte string.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.count()?;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }

    /// The next byte string, as text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn owned_bytes(&mut self) -> Result<Bytes, Malformed> {
        self.bytes().map(Bytes::copy_from_slice)
    }
}

/// Writes a message for a peer.
pub fn encode_message(message: &Message) -> Vec<u8> {
    let mut out = Writer(vec![MESSAGE_VERSION]);
    out.number(message.get_msg_type() as u64);
    for number in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        u64::from(message.reject),
        message.reject_hint,
        message.deprecated_priority,
        message.priority as u64, // two's complement, read back the same way
    ] {
        out.number(number);
    }
    out.bytes(&message.context);
    out.number(message.entries.len() as u64);
    for entry in &message.entries {
        encode_entry(&mut out, entry);
    }
    match message.snapshot.as_ref() {
        None => out.number(0),
        Some(snapshot) => {
            out.number(1);
            encode_snapshot_metadata(&mut out, snapshot.get_metadata());
            out.bytes(&snapshot.data);
        }
    }
    out.finish()
}

/// Reads a message of a peer.
pub fn decode_message(input: &[u8]) -> Result<Message, Malformed> {
    let (version, rest) = input.split_first().ok_or(Malformed)?;
    if *version != MESSAGE_VERSION {
        return Err(Malformed);
    }
    let mut input = Reader(rest);
    let mut message = Message::default();
    let kind = input.number()?;
    let kind = MESSAGE_TYPES
        .into_iter()
        .find(|known| *known as u64 == kind)
        .ok_or(Malformed)?;
    message.set_msg_type(kind);
    message.to = input.number()?;
    message.from = input.number()?;
    message.term = input.number()?;
    message.log_term = input.number()?;
    message.index = input.number()?;
    message.commit = input.number()?;
    message.commit_term = input.number()?;
    message.request_snapshot = input.number()?;
    message.reject = input.flag()?;
    message.reject_hint = input.number()?;
    message.deprecated_priority = input.number()?;
    message.priority = input.number()? as i64; // two's complement, as written
    message.context = input.owned_bytes()?;
    let mut entries = Vec::new();
    for _ in 0..input.count()? {
        entries.push(decode_entry(&mut input)?);
    }
    message.set_entries(entries.into());
    if input.flag()? {
        let metadata = decode_snapshot_metadata(&mut input)?;
        let mut snapshot = Snapshot {
            data: input.owned_bytes()?,
            ..Snapshot::default()
        };
        snapshot.set_metadata(metadata);
        message.set_snapshot(snapshot);
    }
    if input.is_empty() {
        Ok(message)
    } else {
        Err(Malformed)
    }
}

/// The messages that travel; the others are a node's notes to itself and are refused from a peer.
const MESSAGE_TYPES: [MessageType; 13] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Writes one entry of the log.
pub fn encode_entry(out: &mut Writer, entry: &Entry) {
    out.number(match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    });
    out.number(entry.term);
    out.number(entry.index);
    out.bytes(&entry.data);
    out.bytes(&entry.context);
}

/// Reads one entry of the log.
pub fn decode_entry(input: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let mut entry = Entry::default();
    entry.set_entry_type(match input.number()? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(Malformed),
    });
    entry.term = input.number()?;
    entry.index = input.number()?;
    entry.data = input.owned_bytes()?;
    entry.context = input.owned_bytes()?;
    Ok(entry)
}

/// Writes a node's vote, term and commit index.
pub fn encode_hard_state(out: &mut Writer, state: &HardState) {
    for number in [state.term, state.vote, state.commit] {
        out.number(number);
    }
}

/// Reads a node's vote, term and commit index.
pub fn decode_hard_state(input: &mut Reader<'_>) -> Result<HardState, Malformed> {
    Ok(HardState {
        term: input.number()?,
        vote: input.number()?,
        commit: input.number()?,
        ..HardState::default()
    })
}

/// Writes where a snapshot stands in the log and who voted then.
pub fn encode_snapshot_metadata(out: &mut Writer, metadata: &SnapshotMetadata) {
    out.number(metadata.index);
    out.number(metadata.term);
    let state = metadata.get_conf_state();
    for ids in [
        &state.voters,
        &state.learners,
        &state.voters_outgoing,
        &state.learners_next,
    ] {
        out.number(ids.len() as u64);
        for id in ids {
            out.number(*id);
        }
    }
    out.number(u64::from(state.auto_leave));
}

/// Reads where a snapshot stands in the log and who voted then.
pub fn decode_snapshot_metadata(input: &mut Reader<'_>) -> Result<SnapshotMetadata, Malformed> {
    let mut metadata = SnapshotMetadata {
        index: input.number()?,
        term: input.number()?,
        ..SnapshotMetadata::default()
    };
    let mut state = ConfState::default();
    for ids in [
        &mut state.voters,
        &mut state.learners,
        &mut state.voters_outgoing,
        &mut state.learners_next,
    ] {
        for _ in 0..input.count()? {
            ids.push(input.number()?);
        }
    }
    state.auto_leave = input.flag()?;
    metadata.set_conf_state(state);
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.to, message.from, message.term, message.priority) = (2, u64::MAX, 1 << 40, -3);
        message.reject = true;
        message.context = Bytes::from_static(b"context");
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        (entry.term, entry.index) = (7, 8);
        (entry.data, entry.context) = (Bytes::from(vec![9; 300]), Bytes::from_static(b"c"));
        message.set_entries(vec![entry, Entry::default()].into());
        let mut snapshot = Snapshot {
            data: Bytes::from_static(b"state"),
            ..Snapshot::default()
        };
        snapshot.mut_metadata().index = 5;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 300];
        message.set_snapshot(snapshot);
        message
    }

    #[test]
    fn messages_are_read_back() {
        for message in [sample(), {
            let mut heartbeat = Message::default();
            heartbeat.set_msg_type(MessageType::MsgHeartbeat);
            heartbeat
        }] {
            assert_eq!(decode_message(&encode_message(&message)), Ok(message));
        }
    }

    #[test]
    fn a_part_is_read_as_the_byte_string_that_it_is() {
        for length in [0, 1, 127, 128, 300, 70_000] {
            let text = vec![b'x'; length];
            let mut out = Writer::default();
            out.number(7);
            out.part(|out| {
                out.bytes(b"first");
                out.part(|out| out.buffer().extend_from_slice(&text));
            });
            out.bytes(b"behind");
            let all = out.finish();
            let mut input = Reader::new(&all);
            assert_eq!(input.number(), Ok(7));
            let mut part = Reader::new(input.bytes().unwrap());
            assert_eq!(part.bytes(), Ok(&b"first"[..]));
            assert_eq!(part.bytes(), Ok(text.as_slice()));
            assert!(part.is_empty());
            assert_eq!(input.bytes(), Ok(&b"behind"[..]));
            assert!(input.is_empty());
        }
    }

    #[test]
    fn what_is_cut_off_or_appended_is_refused() {
        let bytes = encode_message(&sample());
        for end in 0..bytes.len() {
            assert_eq!(decode_message(&bytes[..end]), Err(Malformed));
        }
        assert_eq!(decode_message(&[&bytes[..], b"x"].concat()), Err(Malformed));
    }

    #[test]
    fn a_flipped_bit_never_panics() {
        let bytes = encode_message(&sample());
        for position in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[position / 8] ^= 1 << (position % 8);
            let _ = decode_message(&flipped); // either refused or another message
        }
    }

    #[test]
    fn a_nodes_notes_to_itself_are_refused_from_a_peer() {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHup);
        assert_eq!(decode_message(&encode_message(&message)), Err(Malformed));
    }
}
