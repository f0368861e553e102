//! The DNS packet format (RFC 1035 §4, RFC 6891), as much of it as a resolver must read and write.
//!
//! Only the header, the question and the OPT record of a query are parsed. Everything else in a packet is passed on
//! untouched or ignored.

use super::short::Bytes;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 12;
/// Longest name on the wire, the root's zero included (RFC 1035 §2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest label (RFC 1035 §2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;
/// Largest UDP reply to a client that does not say what it can take (RFC 1035 §4.2.1).
pub const UDP_BYTES_PLAIN: usize = 512;
/// Largest UDP datagram that we read or send; announced to clients that speak EDNS.
pub const UDP_BYTES_MAX: usize = 4096;
/// Longest question over UDP that we read; what goes through every network without being cut (RFC 9715 §3). A longer one
/// is not understood, and there is TCP for it.
pub const QUESTION_BYTES_MAX: usize = 1232;
/// Largest message over TCP: its length is a 16-bit number (RFC 1035 §4.2.2).
pub const TCP_BYTES_MAX: usize = 65_535;

/// Bytes of the OPT record that answers an OPT record: root name, type, class, ttl, no data.
const OPT_BYTES: usize = 11;
const TYPE_OPT: u16 = 41;

/// Query types that we answer ourselves.
pub mod qtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Host and port of a service (RFC 2782).
    pub const SRV: u16 = 33;
    /// Whatever there is.
    pub const ANY: u16 = 255;
}
/// The Internet class; the only one there is.
pub const CLASS_IN: u16 = 1;
/// Any class, in questions.
pub const CLASS_ANY: u16 = 255;

/// How a query went (RFC 1035 §4.1.1, RFC 6891 §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    /// Answered, possibly with no records.
    NoError = 0,
    /// The packet makes no sense.
    FormErr = 1,
    /// Cannot be answered now.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Not a query.
    NotImp = 4,
    /// A version of EDNS that we do not speak.
    BadVers = 16,
}

/// A packet that is not a query we can work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Nobody to answer to: no header, or itself a reply.
    Drop,
    /// The sender deserves an error; [`write_error`] makes it.
    Reply(Rcode),
}

/// A name as labels on the wire, lower case, without the root's zero byte.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; NAME_BYTES_MAX],
    length: usize,
}

impl Name {
    /// Labels with their length bytes.
    pub fn labels(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Encodes a dotted name; a dot at the end is allowed. `None` if it cannot be a DNS name.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut name = Self {
            bytes: [0; NAME_BYTES_MAX],
            length: 0,
        };
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.') {
            let end = name.length + 1 + label.len();
            if label.is_empty() || label.len() > LABEL_BYTES_MAX || end >= NAME_BYTES_MAX {
                return None;
            }
            name.bytes[name.length] = label.len() as u8;
            name.bytes[name.length + 1..end].copy_from_slice(label.as_bytes());
            name.bytes[name.length + 1..end].make_ascii_lowercase();
            name.length = end;
        }
        Some(name)
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.labels();
        while let [length, tail @ ..] = rest {
            let (label, tail) = tail.split_at(usize::from(*length).min(tail.len()));
            write!(f, "{}.", label.escape_ascii())?;
            rest = tail;
        }
        Ok(())
    }
}

/// What a client said about itself in an OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP reply that it can take.
    pub udp_bytes: u16,
    /// Version of EDNS; 0 is the only one defined.
    pub version: u8,
}

/// A query with one question.
#[derive(Debug, Clone, Copy)]
pub struct Query<'p> {
    packet: &'p [u8],
    question_end: usize,
    /// The name asked for.
    pub name: Name,
    /// Type asked for, see [`qtype`].
    pub qtype: u16,
    /// Class asked for.
    pub qclass: u16,
    /// What the client can take, if it says so.
    pub edns: Option<Edns>,
}

impl<'p> Query<'p> {
    /// Reads header, question and OPT record of a query.
    pub fn parse(packet: &'p [u8]) -> Result<Self, Malformed> {
        if packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0 {
            return Err(Malformed::Drop);
        }
        if packet[2] & 0x78 != 0 {
            return Err(Malformed::Reply(Rcode::NotImp));
        }
        if u16_at(packet, 4) != Some(1) {
            return Err(Malformed::Reply(Rcode::FormErr));
        }
        Self::parse_sections(packet).ok_or(Malformed::Reply(Rcode::FormErr))
    }

    fn parse_sections(packet: &'p [u8]) -> Option<Self> {
        let mut name = Name {
            bytes: [0; NAME_BYTES_MAX],
            length: 0,
        };
        let mut at = HEADER_BYTES;
        loop {
            let length = usize::from(*packet.get(at)?);
            if length == 0 {
                break;
            }
            // Also refuses compression, which has nothing to point at in a question.
            let end = name.length + 1 + length;
            if length > LABEL_BYTES_MAX || end >= NAME_BYTES_MAX {
                return None;
            }
            name.bytes[name.length..end].copy_from_slice(packet.get(at..at + 1 + length)?);
            // Length bytes are below 64 and so below every letter: the case of the whole run can be folded at once.
            name.bytes[name.length..end].make_ascii_lowercase();
            name.length = end;
            at += 1 + length;
        }
        let (qtype, qclass) = (u16_at(packet, at + 1)?, u16_at(packet, at + 3)?);
        let question_end = at + 5;

        let skip = usize::from(u16_at(packet, 6)?) + usize::from(u16_at(packet, 8)?);
        let additional = usize::from(u16_at(packet, 10)?);
        let mut edns = None;
        let mut at = question_end;
        for index in 0..skip + additional {
            at = skip_name(packet, at)?;
            let (kind, class, data) = (
                u16_at(packet, at)?,
                u16_at(packet, at + 2)?,
                u16_at(packet, at + 8)?,
            );
            if kind == TYPE_OPT && index >= skip {
                let opt = Edns {
                    udp_bytes: class,
                    version: packet[at + 5],
                };
                // More than one OPT is a format error (RFC 6891 §6.1.1).
                if edns.replace(opt).is_some() {
                    return None;
                }
            }
            at += 10 + usize::from(data);
            if at > packet.len() {
                return None;
            }
        }
        Some(Self {
            packet,
            question_end,
            name,
            qtype,
            qclass,
            edns,
        })
    }

    /// The question as it came, in its own case: what an answer must repeat.
    pub fn question(&self) -> &'p [u8] {
        &self.packet[HEADER_BYTES..self.question_end]
    }

    /// Largest reply over UDP that the client can take.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_BYTES_PLAIN, |edns| {
            usize::from(edns.udp_bytes).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX)
        })
    }

    /// Writes a reply with as many records of `set` as fit into `limit` bytes, beginning with number `turn` modulo
    /// their count; the reply says so when some did not fit.
    pub fn write_records(&self, set: &RrSet, turn: u32, limit: usize, out: &mut Vec<u8>) {
        let room = limit
            .saturating_sub(self.question_end + if self.edns.is_some() { OPT_BYTES } else { 0 });
        let count = set.count();
        let first = (turn as usize).checked_rem(count).unwrap_or(0);
        let fitting = set.fitting(first, room);
        self.write_head(Rcode::NoError, fitting, fitting < count, out);
        let to_end = fitting.min(count - first);
        out.extend_from_slice(set.records(first, to_end));
        out.extend_from_slice(set.records(0, fitting - to_end));
        self.write_opt(Rcode::NoError, out);
    }

    /// Writes a reply that carries nothing but a code.
    pub fn write_code(&self, code: Rcode, out: &mut Vec<u8>) {
        self.write_head(code, 0, false, out);
        self.write_opt(code, out);
    }

    /// Writes a reply that asks the client to come back over TCP.
    pub fn write_truncated(&self, out: &mut Vec<u8>) {
        self.write_head(Rcode::NoError, 0, true, out);
        self.write_opt(Rcode::NoError, out);
    }

    fn write_head(&self, code: Rcode, answers: usize, truncated: bool, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.packet[..2]);
        // Reply, authoritative; recursion desired is the client's own bit.
        out.push(0x84 | (u8::from(truncated) << 1) | (self.packet[2] & 1));
        // Recursion available.
        out.push(0x80 | (code as u8 & 0x0f));
        out.extend_from_slice(&[0, 1]);
        // A set that fits into 65,535 bytes has fewer records than that.
        out.extend_from_slice(&(answers as u16).to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, u8::from(self.edns.is_some())]);
        out.extend_from_slice(self.question());
    }

    fn write_opt(&self, code: Rcode, out: &mut Vec<u8>) {
        if self.edns.is_some() {
            out.push(0);
            out.extend_from_slice(&TYPE_OPT.to_be_bytes());
            out.extend_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
            out.extend_from_slice(&[code as u8 >> 4, 0, 0, 0, 0, 0]);
        }
    }
}

/// Writes the reply to a packet for which [`Query::parse`] gave [`Malformed::Reply`]: the header alone.
pub fn write_error(packet: &[u8], code: Rcode, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&packet[..2]);
    out.extend_from_slice(&[
        0x80 | (packet[2] & 0x79),
        0x80 | (code as u8 & 0x0f),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
}

/// Records of one name and type, encoded.
///
/// Their owner is a pointer to the question (RFC 1035 §4.1.4), so the same bytes answer it in every spelling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RrSet {
    bytes: Bytes,
    ends: Ends,
}

/// Where each record of a set ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ends {
    /// All are of this length, as addresses are: nothing is to be fetched from memory for it.
    Every(u32),
    At(Box<[u32]>),
}

impl Default for Ends {
    fn default() -> Self {
        Self::Every(1)
    }
}

impl RrSet {
    /// A set of records of type `kind` with the given data, as many as fit into 4 GiB.
    pub fn new<'d>(kind: u16, ttl_seconds: u32, data: impl Iterator<Item = &'d [u8]>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for data in data {
            let length =
                u16::try_from(data.len()).expect("names and addresses are shorter than 64 KiB");
            bytes.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
            bytes.extend_from_slice(&ttl_seconds.to_be_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(data);
            let Ok(end) = u32::try_from(bytes.len()) else {
                bytes.truncate(ends.last().map_or(0, |end: &u32| *end as usize));
                break;
            };
            ends.push(end);
        }
        let every = ends.first().copied().unwrap_or(1);
        let alike = ends
            .iter()
            .zip(1..)
            .all(|(end, count)| u64::from(*end) == u64::from(every) * count);
        Self {
            bytes: Bytes::from(&bytes[..]),
            ends: if alike {
                Ends::Every(every)
            } else {
                Ends::At(ends.into())
            },
        }
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        match &self.ends {
            Ends::Every(length) => self.bytes.len() / *length as usize,
            Ends::At(ends) => ends.len(),
        }
    }

    /// How many records from number `first` on, and then from the beginning, fit into `room` bytes.
    fn fitting(&self, first: usize, room: usize) -> usize {
        if self.bytes.len() <= room {
            return self.count();
        }
        let lengths = (first..self.count())
            .chain(0..first)
            .scan(0, |sum, record| {
                *sum += self.records(record, 1).len();
                Some(*sum)
            });
        lengths.take_while(|sum| *sum <= room).count()
    }

    /// The bytes of `count` records from number `first` on.
    fn records(&self, first: usize, count: usize) -> &[u8] {
        let start_of = |record: usize| match &self.ends {
            Ends::Every(length) => record * *length as usize,
            Ends::At(ends) => record
                .checked_sub(1)
                .map_or(0, |before| ends[before] as usize),
        };
        &self.bytes[start_of(first)..start_of(first + count)]
    }
}

/// Whether `reply` is a reply to `query` that was sent with number `id`: same number, same question.
///
/// Together with a fresh port per query this is what keeps strangers from answering (RFC 5452 §9).
pub fn is_reply_to(query: &Query<'_>, id: [u8; 2], reply: &[u8]) -> bool {
    let question = query.question();
    reply.len() >= HEADER_BYTES
        && reply[..2] == id
        && reply[2] & 0x80 != 0
        && match u16_at(reply, 4) {
            // Some servers leave the question out of an error.
            Some(0) => reply[3] & 0x0f != 0,
            Some(1) => reply
                .get(HEADER_BYTES..query.question_end)
                .is_some_and(|q| q.eq_ignore_ascii_case(question)),
            _ => false,
        }
}

/// Whether the reply says that it is incomplete.
pub fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 2 != 0)
}

/// Whether the reply says that its server could not or would not answer.
pub fn is_failure(reply: &[u8]) -> bool {
    reply
        .get(3)
        .is_none_or(|flags| !matches!(flags & 0x0f, 0 | 3))
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

/// Position after the name at `at`.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for `name` with the given OPT size.
    fn packet(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
        let mut packet = vec![
            0xab,
            0xcd,
            1,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            u8::from(edns.is_some()),
        ];
        packet.extend_from_slice(Name::from_text(name).expect("a name").labels());
        packet.push(0);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&CLASS_IN.to_be_bytes());
        if let Some(size) = edns {
            packet.extend_from_slice(&[0, 0, 41]);
            packet.extend_from_slice(&size.to_be_bytes());
            packet.extend_from_slice(&[0; 6]);
        }
        packet
    }

    fn addresses(count: u8) -> RrSet {
        let data: Vec<[u8; 4]> = (0..count).map(|n| [10, 0, 0, n]).collect();
        RrSet::new(qtype::A, 1, data.iter().map(<[u8; 4]>::as_slice))
    }

    fn last_bytes(reply: &[u8], end: usize) -> Vec<u8> {
        reply[end..].chunks(16).map(|record| record[15]).collect()
    }

    #[test]
    fn records_start_at_the_turn_and_wrap_around() {
        let packet = packet("web", qtype::A, None);
        let query = Query::parse(&packet).expect("a query");
        let mut out = Vec::new();
        for (turn, order) in [(0, [0, 1, 2]), (1, [1, 2, 0]), (5, [2, 0, 1])] {
            query.write_records(&addresses(3), turn, 512, &mut out);
            assert_eq!(last_bytes(&out, packet.len()), order);
            assert!(!is_truncated(&out));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let mut out = Vec::new();
        let plain = packet("web", qtype::A, None);
        Query::parse(&plain)
            .expect("a query")
            .write_records(&addresses(100), 99, 512, &mut out);
        assert!(
            is_truncated(&out) && out.len() <= 512 && out.len() > 480,
            "{}",
            out.len()
        );
        assert_eq!(last_bytes(&out, plain.len())[..2], [99, 0]);

        let edns = packet("web", qtype::A, Some(4096));
        let query = Query::parse(&edns).expect("a query");
        query.write_records(&addresses(100), 0, query.udp_limit(), &mut out);
        assert!(!is_truncated(&out));
    }

    #[test]
    fn records_of_unlike_lengths_are_kept_apart() {
        let data = [&[1u8; 4][..], &[2; 9], &[3; 5]];
        let set = RrSet::new(qtype::SRV, 1, data.into_iter());
        assert_eq!(set.count(), 3);
        for (number, data) in data.iter().enumerate() {
            assert_eq!(&set.records(number, 1)[12..], *data);
        }
        assert_eq!(set.fitting(1, 21 + 17), 2);
        assert_eq!(RrSet::new(qtype::A, 1, std::iter::empty()).count(), 0);
    }

    #[test]
    fn nonsense_is_refused_by_kind() {
        let good = packet("web", qtype::A, Some(1232));
        let mut reply = good.clone();
        reply[2] |= 0x80;
        let mut update = good.clone();
        update[2] |= 5 << 3;
        let mut two = good.clone();
        two[5] = 2;
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        assert_eq!(Query::parse(&good[..11]).err(), Some(Malformed::Drop));
        assert_eq!(Query::parse(&reply).err(), Some(Malformed::Drop));
        assert_eq!(
            Query::parse(&update).err(),
            Some(Malformed::Reply(Rcode::NotImp))
        );
        for packet in [&two[..], &pointer, &good[..good.len() - 1], &good[..15]] {
            assert_eq!(
                Query::parse(packet).err(),
                Some(Malformed::Reply(Rcode::FormErr)),
                "{packet:?}"
            );
        }
    }

    #[test]
    fn a_stranger_s_reply_is_not_taken() {
        let packet = packet("web.example", qtype::A, None);
        let query = Query::parse(&packet).expect("a query");
        let mut reply = packet.clone();
        reply[2] |= 0x80;
        assert!(is_reply_to(&query, [0xab, 0xcd], &reply));
        assert!(!is_reply_to(&query, [0xab, 0xce], &reply));
        assert!(!is_reply_to(&query, [0xab, 0xcd], &packet));
        reply[14] ^= 1;
        assert!(!is_reply_to(&query, [0xab, 0xcd], &reply));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), turn: u32, limit in 0usize..5000) {
            let mut out = Vec::new();
            match Query::parse(&bytes) {
                Ok(query) => {
                    query.write_records(&addresses(200), turn, limit.max(HEADER_BYTES + NAME_BYTES_MAX + 4), &mut out);
                    query.write_code(Rcode::BadVers, &mut out);
                    is_reply_to(&query, [0, 0], &bytes);
                    let _ = format!("{query:?}");
                }
                Err(Malformed::Reply(code)) => write_error(&bytes, code, &mut out),
                Err(Malformed::Drop) => {}
            }
        }

        #[test]
        fn no_bytes_of_an_upstream_make_it_panic_and_none_but_a_reply_is_taken(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), honest: bool, cut in 0usize..600,
            at in 0usize..45, value: u8,
        ) {
            let asked = packet("tasks.web.example", qtype::AAAA, Some(1232));
            let query = Query::parse(&asked).expect("a query");
            let (id, mut reply) = ([0xab, 0xcd], bytes);
            if honest {
                // The beginning of a true reply, damaged at one place and cut.
                reply.splice(0..0, asked.iter().copied());
                reply[2] |= 0x80;
                reply[at] = value;
            }
            reply.truncate(cut);
            let (is_truncated, is_failure) = (is_truncated(&reply), is_failure(&reply));
            prop_assert!(!is_truncated || reply[2] & 2 != 0);
            prop_assert_eq!(is_failure, reply.len() < 4 || !matches!(reply[3] & 0x0f, 0 | 3));
            if is_reply_to(&query, id, &reply) {
                prop_assert!(reply.len() >= HEADER_BYTES && reply[2] & 0x80 != 0);
                prop_assert_eq!(&reply[..2], &id);
                let repeats = reply.get(HEADER_BYTES..query.question_end);
                let repeats = repeats.is_some_and(|text| text.eq_ignore_ascii_case(query.question()));
                prop_assert!(repeats || reply[3] & 0x0f != 0, "another question is answered");
            }
        }

        #[test]
        fn no_damage_to_a_query_makes_it_panic(at in 0usize..45, value: u8, cut in 0usize..60) {
            let mut bytes = packet("tasks.web.example", qtype::AAAA, Some(1232));
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            let mut out = Vec::new();
            if let Ok(query) = Query::parse(&bytes) {
                query.write_records(&addresses(3), 1, query.udp_limit(), &mut out);
                prop_assert!(out.len() <= 512 + 4096);
            }
        }
    }
}
