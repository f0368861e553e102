//! The write-ahead log: what this manager has promised to Raft, durable before anyone hears of it.
//!
//! A log is a row of segment files `wal-<number>`. Each begins with a header (magic, version, key id, owner, segment
//! number, first sequence number, checksum of the previous segment's end) and is filled with zeros up to its size, so
//! that appending changes no metadata. Records follow: length, CRC32C chained over the record before, sequence number,
//! and the sealed content. The seal also covers the header and the sequence number: a record cannot be moved between
//! nodes, segments or positions.
//!
//! One record is one `Ready`, written and synced before the next, so a crash damages the very last record only. That is
//! the whole repair rule: a bad record that is followed by a good one, or that stands before the last segment, is
//! damage to something already acknowledged, and the log refuses to open.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use shoal_api::planted::{Bug, planted};

use super::{
    disk::{Disk, DiskFile},
    seal::{DataKey, KeyRing, OVERHEAD, Owner},
};
use crate::core::consensus::{LogIndex, record::Record};

const MAGIC: &[u8; 8] = b"SHOALWAL";
const VERSION: u32 = 1;
/// Magic, version, key id, owner, segment number, first sequence number, previous checksum, own checksum.
pub const HEADER: usize = 8 + 4 + 4 + 32 + 8 + 8 + 4 + 4;
/// Length of the sealed content, checksum, sequence number.
pub const RECORD_HEADER: usize = 4 + 4 + 8;
/// Size of a segment. Large enough that a new one is rare, small enough that making one takes a few milliseconds.
pub const SEGMENT_BYTES: u64 = 4 << 20;
/// How far ahead a sequence number may be to be looked at when judging damage.
const SEQUENCE_WINDOW: u64 = 1 << 20;

/// What is left to do with a log that is of no use.
const WAY_OUT: &str = "remove this manager from the cluster and join it again, or, if it is the only one, leave and restore a backup with \
                       `shoal cluster restore`";

/// Why the log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused.
    #[error("cannot {action} {name}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Something that was acknowledged is no longer readable. Wipe the directory and join again.
    #[error("{name} is damaged at byte {offset}: {reason}; {WAY_OUT}")]
    Damaged {
        /// The file.
        name: String,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The files are not ours, or the key is another.
    #[error("{name} cannot be used: {reason}; {WAY_OUT}")]
    Foreign {
        /// The file.
        name: String,
        /// What does not fit.
        reason: &'static str,
    },
}

pub(super) fn disk_error(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Disk {
        action,
        name: name.to_owned(),
        source,
    }
}

/// An open log, positioned at its end.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    keys: KeyRing,
    owner: Owner,
    segment_bytes: u64,
    /// All segments, oldest first; the last one is open.
    segments: VecDeque<Segment>,
    open: Option<OpenSegment>,
    next_sequence: u64,
    checksum: u32,
    appended_bytes: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    /// The highest index mentioned in it; once a snapshot covers that, the segment is of no more use.
    highest_index: LogIndex,
}

#[derive(Debug)]
struct OpenSegment {
    file: Box<dyn DiskFile>,
    name: String,
    header: [u8; HEADER],
    end: u64,
    size: u64,
}

impl Wal {
    /// Opens the log of this owner, repairs its tail, and gives all records in order.
    pub fn open(
        disk: Arc<dyn Disk>,
        keys: KeyRing,
        owner: Owner,
        segment_bytes: u64,
    ) -> Result<(Self, Vec<Record>), WalError> {
        let mut wal = Self {
            disk,
            keys,
            owner,
            segment_bytes,
            segments: VecDeque::new(),
            open: None,
            next_sequence: 1,
            checksum: 0,
            appended_bytes: 0,
        };
        let numbers = wal.list_segments()?;
        let mut records = Vec::new();
        for (position, number) in numbers.iter().enumerate() {
            let is_last = position + 1 == numbers.len();
            wal.read_segment(*number, position == 0, is_last, &mut records)?;
        }
        if planted(Bug::WalDropsLast) {
            records.pop();
        }
        Ok((wal, records))
    }

    /// Appends a record. It is durable when this returns; after an error nothing is known and the process must end.
    pub fn append(&mut self, record: &Record) -> Result<(), WalError> {
        let plain = record.encode();
        let size = (RECORD_HEADER + OVERHEAD + plain.len()) as u64;
        if self
            .open
            .as_ref()
            .is_none_or(|open| open.end + size > open.size)
        {
            self.start_segment(size)?;
        }
        let open = self
            .open
            .as_mut()
            .expect("a segment was started if none was open");
        let sequence = self.next_sequence;
        let sealed = self
            .keys
            .current()
            .seal(&plain, &about(&open.header, sequence));
        let checksum = chain(self.checksum, sequence, &sealed);
        let mut bytes = Vec::with_capacity(RECORD_HEADER + sealed.len());
        let length = u32::try_from(sealed.len())
            .expect("a record is bounded by raft's limits, far below 4 GiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&sealed);
        open.file
            .write_at(open.end, &bytes)
            .map_err(disk_error("write", &open.name))?;
        if !planted(Bug::WalNoSync) {
            open.file.sync().map_err(disk_error("sync", &open.name))?;
        }
        open.end += bytes.len() as u64;
        self.appended_bytes += bytes.len() as u64;
        self.next_sequence += 1;
        self.checksum = checksum;
        let segment = self.segments.back_mut().expect("a segment is open");
        segment.highest_index = segment.highest_index.max(record.highest_index());
        Ok(())
    }

    /// Bytes of the records appended since it was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// Goes over to another key: what the log must still say is written anew as one record, and nothing that an older key
    /// could open is left. A durable snapshot must cover everything before the record.
    pub fn rekey(&mut self, key: DataKey, record: &Record) -> Result<(), WalError> {
        self.keys = key.into();
        self.open = None;
        self.append(record)?;
        while self.segments.len() > 1 {
            self.remove_oldest()?;
        }
        self.disk
            .sync_names()
            .map_err(disk_error("sync", "the log's directory"))
    }

    fn remove_oldest(&mut self) -> Result<(), WalError> {
        if let Some(segment) = self.segments.pop_front() {
            let name = segment_name(segment.number);
            self.disk
                .remove(&name)
                .map_err(disk_error("remove", &name))?;
        }
        Ok(())
    }

    /// Removes segments that say nothing about entries above `index`. A durable snapshot must cover that index.
    pub fn release(&mut self, index: LogIndex) -> Result<(), WalError> {
        let mut removed = false;
        while self.segments.len() > usize::from(!planted(Bug::WalReleasesAll))
            && (self.segments[0].highest_index <= index || planted(Bug::WalReleasesAll))
            && !planted(Bug::WalNeverCut)
        {
            self.remove_oldest()?;
            removed = true;
        }
        if removed {
            self.disk
                .sync_names()
                .map_err(disk_error("sync", "the log's directory"))?;
        }
        Ok(())
    }

    fn list_segments(&self) -> Result<Vec<u64>, WalError> {
        let names = self
            .disk
            .list()
            .map_err(disk_error("list", "the log's directory"))?;
        let mut numbers = Vec::new();
        for name in names {
            if let Some(number) = segment_number(&name) {
                numbers.push(number);
            } else if name.starts_with("wal-") && name.ends_with(".tmp") {
                // A segment whose making was cut short; nothing was ever written to it.
                self.disk
                    .remove(&name)
                    .map_err(disk_error("remove", &name))?;
            }
        }
        numbers.sort_unstable();
        if let Some(gap) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            let reason = "the segment is missing";
            return Err(WalError::Damaged {
                name: segment_name(gap[0] + 1),
                offset: 0,
                reason,
            });
        }
        Ok(numbers)
    }

    fn start_segment(&mut self, record_size: u64) -> Result<(), WalError> {
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let name = segment_name(number);
        let temporary = format!("{name}.tmp");
        let size = self.segment_bytes.max(HEADER as u64 + record_size);
        let header = self.header(number);
        let mut file = self
            .disk
            .create(&temporary, size)
            .map_err(disk_error("create", &temporary))?;
        file.write_at(0, &header)
            .map_err(disk_error("write", &temporary))?;
        file.sync().map_err(disk_error("sync", &temporary))?;
        self.disk
            .rename(&temporary, &name)
            .map_err(disk_error("rename", &temporary))?;
        if !planted(Bug::WalSegmentUnnamed) {
            self.disk
                .sync_names()
                .map_err(disk_error("sync", "the log's directory"))?;
        }
        self.segments.push_back(Segment {
            number,
            highest_index: 0,
        });
        self.open = Some(OpenSegment {
            file,
            name,
            header,
            end: HEADER as u64,
            size,
        });
        Ok(())
    }

    fn header(&self, number: u64) -> [u8; HEADER] {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.keys.current().id().to_le_bytes());
        bytes.extend_from_slice(&self.owner.0);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&self.next_sequence.to_le_bytes());
        bytes.extend_from_slice(&self.checksum.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
            .try_into()
            .expect("the fields add up to the header's size")
    }

    fn read_segment(
        &mut self,
        number: u64,
        is_first: bool,
        is_last: bool,
        records: &mut Vec<Record>,
    ) -> Result<(), WalError> {
        let name = segment_name(number);
        let content = self.disk.read(&name).map_err(disk_error("read", &name))?;
        let (header, key) = self.check_header(&name, &content, number, is_first)?;
        let mut highest_index = 0;
        let mut at = HEADER;
        while let Some((record, end)) = self.read_record(&content, at, &header, &key) {
            highest_index = highest_index.max(record.highest_index());
            records.push(record);
            at = end;
        }
        self.segments.push_back(Segment {
            number,
            highest_index,
        });
        if !is_last {
            // What ended here is checked against the next segment's header.
            return Ok(());
        }
        let offset = at as u64;
        if self.has_record_after(&content, at, &header, &key) && !planted(Bug::WalSkipsDamage) {
            return Err(WalError::Damaged {
                name,
                offset,
                reason: "good records follow a bad one",
            });
        }
        let mut file = self.disk.open(&name).map_err(disk_error("open", &name))?;
        let garbage = last_nonzero(&content, at..content.len());
        if let Some(end) = garbage {
            tracing::warn!(
                log.file = name,
                log.offset = offset,
                "the last write was cut short; dropping it"
            );
            file.write_at(offset, &vec![0; end - at])
                .map_err(disk_error("write", &name))?;
            file.sync().map_err(disk_error("sync", &name))?;
        }
        // What an older key has sealed is read to its end and written no more.
        self.open = (key.id() == self.keys.current().id()).then_some(OpenSegment {
            file,
            name,
            header,
            end: offset,
            size: content.len() as u64,
        });
        Ok(())
    }

    /// Checks a segment's header and that the segment before it ended where this one begins.
    fn check_header(
        &mut self,
        name: &str,
        content: &[u8],
        number: u64,
        is_first: bool,
    ) -> Result<([u8; HEADER], DataKey), WalError> {
        let damaged = |reason| WalError::Damaged {
            name: name.to_owned(),
            offset: 0,
            reason,
        };
        let foreign = |reason| WalError::Foreign {
            name: name.to_owned(),
            reason,
        };
        let header = content
            .first_chunk::<HEADER>()
            .ok_or_else(|| damaged("it is cut off"))?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if word(HEADER - 4) != crc32c::crc32c(&header[..HEADER - 4]) || header[..8] != *MAGIC {
            return Err(damaged("its header is bad"));
        }
        if word(8) != VERSION {
            return Err(foreign("it was written by another version"));
        }
        if header[16..48] != self.owner.0 {
            return Err(foreign("it belongs to another node or cluster"));
        }
        let key = self.keys.find(word(12)).cloned();
        let key = key.ok_or_else(|| foreign("it was sealed with another key"))?;
        if is_first {
            (self.next_sequence, self.checksum) = (long(56), word(64));
        }
        if long(48) != number || long(56) != self.next_sequence || word(64) != self.checksum {
            return Err(damaged("the end of the segment before it is missing"));
        }
        Ok((*header, key))
    }

    /// Reads the record at `at`, if a good one with the expected number and checksum stands there.
    fn read_record(
        &mut self,
        content: &[u8],
        at: usize,
        header: &[u8; HEADER],
        key: &DataKey,
    ) -> Option<(Record, usize)> {
        let (checksum, sequence, body) = split_record(content, at)?;
        let sealed = &content[body.clone()];
        if sequence != self.next_sequence || checksum != chain(self.checksum, sequence, sealed) {
            return None;
        }
        let plain = key.open(sealed, &about(header, sequence))?;
        let record = Record::decode(&plain).ok()?;
        self.next_sequence += 1;
        self.checksum = checksum;
        Some((record, body.end))
    }

    /// Whether anywhere behind `at` stands a record that was sealed for this segment and a later position.
    fn has_record_after(
        &self,
        content: &[u8],
        at: usize,
        header: &[u8; HEADER],
        key: &DataKey,
    ) -> bool {
        let Some(end) = last_nonzero(content, at..content.len()) else {
            return false;
        };
        (at + 1..end).any(|at| {
            split_record(content, at).is_some_and(|(_, sequence, body)| {
                (self.next_sequence..self.next_sequence + SEQUENCE_WINDOW).contains(&sequence)
                    && key.open(&content[body], &about(header, sequence)).is_some()
            })
        })
    }
}

/// What a record's header at `at` says: checksum, sequence number, and where the sealed content stands.
fn split_record(content: &[u8], at: usize) -> Option<(u32, u64, Range<usize>)> {
    let header = content.get(at..)?.first_chunk::<RECORD_HEADER>()?;
    let length = u32::from_le_bytes(header[..4].try_into().expect("4 bytes")) as usize;
    let body = at + RECORD_HEADER..(at + RECORD_HEADER).checked_add(length)?;
    if length < OVERHEAD || body.end > content.len() {
        return None;
    }
    let checksum = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes"));
    let sequence = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
    Some((checksum, sequence, body))
}

fn chain(previous: u32, sequence: u64, sealed: &[u8]) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c_append(previous, &sequence.to_le_bytes()),
        sealed,
    )
}

fn about(header: &[u8; HEADER], sequence: u64) -> Vec<u8> {
    [&header[..], &sequence.to_le_bytes()].concat()
}

/// The end of the last byte in `range` that is not zero.
fn last_nonzero(content: &[u8], range: Range<usize>) -> Option<usize> {
    let start = range.start;
    content[range]
        .iter()
        .rposition(|byte| *byte != 0)
        .map(|position| start + position + 1)
}

fn segment_name(number: u64) -> String {
    format!("wal-{number:016x}")
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name
        .strip_prefix("wal-")
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests;
