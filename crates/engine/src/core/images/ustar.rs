//! Tar headers, read strictly.
//!
//! Archives come from strangers, and two readers that disagree about one archive are how strangers get files past
//! checks. Where the format leaves room, this reader does what Go's `archive/tar` does, as docker reads images
//! with it, or refuses.

use std::collections::BTreeMap;

/// Unit of the format, bytes.
pub const BLOCK: usize = 512;
/// Bytes of one extension record (long names, PAX); as in Go.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// What kind of thing a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    File,
    Directory,
    /// Another name of an earlier member.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// One file, directory or link of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As written, uncleaned.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// Bytes of data that follow; 0 unless it is a file.
    pub size: u64,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds of the era, and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// The archive is damaged, or uses what we do not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTar {
    #[error("archive header is damaged")]
    Checksum,
    #[error("archive header has an invalid number")]
    Number,
    #[error("archive has a malformed extended header")]
    Extension,
    #[error(
        "archive has an extended header of {0} bytes, more than the {EXTENSION_BYTES_MAX} allowed"
    )]
    ExtensionSize(u64),
    #[error("archive entry {0:?} is sparse, which is not supported")]
    Sparse(String),
    #[error("archive entry {0:?} has the unknown type {1:?}")]
    Kind(String, char),
    #[error("archive entry {0:?} has an owner beyond 32 bits")]
    Owner(String),
    #[error("archive entry {0:?} is no file and has data")]
    Data(String),
    #[error("archive entry {0:?} has two names")]
    Names(String),
    #[error("archive does not end where its last entry does")]
    End,
}

/// What the header just read asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read this many bytes (and the padding) and give them to [`Assembler::extension`].
    Extension(u64),
    /// A member, followed by its data.
    Member(Box<Member>),
}

/// Puts members together from headers and the extension records before them.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: Option<u8>,
    pax: BTreeMap<String, Vec<u8>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Assembler {
    /// Takes the next header block, which is not all zeros.
    pub fn header(&mut self, block: &[u8; BLOCK]) -> Result<Step, InvalidTar> {
        check_sum(block)?;
        let kind = block[156];
        let size = number(&block[124..136])
            .and_then(|size| u64::try_from(size).map_err(|_| InvalidTar::Number))?;
        if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            if size > EXTENSION_BYTES_MAX {
                return Err(InvalidTar::ExtensionSize(size));
            }
            self.pending = Some(kind);
            return Ok(Step::Extension(size));
        }
        let extended = std::mem::take(self);
        extended
            .member(block, kind, size)
            .map(|member| Step::Member(Box::new(member)))
    }

    /// Takes the content of the extension record announced last.
    pub fn extension(&mut self, content: &[u8]) -> Result<(), InvalidTar> {
        let text = || until_nul(content).to_vec();
        match self.pending.take() {
            // Readers differ in whether a second one adds to the first or replaces it.
            Some(b'x') => {
                let before = std::mem::replace(&mut self.pax, parse_pax(content)?);
                if before.keys().any(|key| moves(key)) {
                    return Err(InvalidTar::Extension);
                }
            }
            // What it says of the whole archive concerns no image, unless some readers move entries by it.
            Some(b'g') => {
                let records = parse_pax(content)?;
                if records.keys().any(|key| moves(key)) {
                    return Err(InvalidTar::Extension);
                }
            }
            Some(b'L') => self.long_name = Some(text()),
            Some(b'K') => self.long_link = Some(text()),
            _ => {}
        }
        Ok(())
    }

    /// Whether extension records wait for a member that never came.
    pub fn is_dangling(&self) -> bool {
        !self.pax.is_empty() || self.long_name.is_some() || self.long_link.is_some()
    }

    fn member(self, block: &[u8; BLOCK], kind: u8, size: u64) -> Result<Member, InvalidTar> {
        let pax = |key: &str| self.pax.get(key).filter(|value| !value.is_empty());
        let path = self
            .long_name
            .clone()
            .or_else(|| pax("path").cloned())
            .unwrap_or_else(|| header_name(block));
        let link = self.long_link.clone().or_else(|| pax("linkpath").cloned());
        let link = link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        let shown = || String::from_utf8_lossy(&path).into_owned();
        // Go believes GNU's long name, and GNU the one of POSIX.
        let differs = |long: &Option<Vec<u8>>, key: &str| {
            let both = long.as_ref().zip(pax(key));
            both.is_some_and(|(long, other)| long != other)
        };
        if differs(&self.long_name, "path") || differs(&self.long_link, "linkpath") {
            return Err(InvalidTar::Names(shown()));
        }
        if kind == b'S' || self.pax.keys().any(|key| key.starts_with("GNU.sparse.")) {
            return Err(InvalidTar::Sparse(shown()));
        }
        let decimal = |key: &str| -> Result<Option<u64>, InvalidTar> {
            let Some(value) = pax(key) else {
                return Ok(None);
            };
            let text = std::str::from_utf8(value).map_err(|_| InvalidTar::Number)?;
            text.parse().map(Some).map_err(|_| InvalidTar::Number)
        };
        let owner = |key: &str, field: &[u8]| -> Result<u32, InvalidTar> {
            let id = match decimal(key)? {
                Some(id) => id,
                None => u64::try_from(number(field)?).map_err(|_| InvalidTar::Owner(shown()))?,
            };
            // The highest number means "no change" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| InvalidTar::Owner(shown()))
        };
        let device = || -> Result<(u32, u32), InvalidTar> {
            let part = |field: &[u8]| u32::try_from(number(field)?).map_err(|_| InvalidTar::Number);
            Ok((part(&block[329..337])?, part(&block[337..345])?))
        };
        let kind = match kind {
            // Archives older than POSIX mark directories by a slash only.
            b'\0' | b'0' if path.ends_with(b"/") => MemberKind::Directory,
            b'\0' | b'0' | b'7' => MemberKind::File,
            b'1' => MemberKind::HardLink(link),
            b'2' => MemberKind::Symlink(link),
            b'3' => device().map(|(major, minor)| MemberKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| MemberKind::BlockDevice { major, minor })?,
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            other => return Err(InvalidTar::Kind(shown(), char::from(other))),
        };
        let size = match (&kind, decimal("size")?) {
            (MemberKind::File, told) => told.unwrap_or(size),
            // Some writers give another name of a file the file's size.
            (MemberKind::HardLink(_), None) => 0,
            // Go passes over what GNU takes for data.
            (_, told) if told.unwrap_or(size) > 0 => return Err(InvalidTar::Data(shown())),
            _ => 0,
        };
        let xattrs = self
            .pax
            .iter()
            .filter_map(|(key, value)| {
                Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), value.clone()))
            })
            .collect();
        let mode =
            u32::try_from(number(&block[100..108])? & 0o7777).expect("masked to twelve bits");
        let mtime = match pax("mtime") {
            Some(value) => parse_instant(value).ok_or(InvalidTar::Number)?,
            None => (number(&block[136..148])?, 0),
        };
        Ok(Member {
            uid: owner("uid", &block[108..116])?,
            gid: owner("gid", &block[116..124])?,
            path,
            kind,
            size,
            mode,
            mtime,
            xattrs,
        })
    }
}

/// Whether an extended header's record says where an entry is, or how long.
fn moves(key: &str) -> bool {
    matches!(key, "path" | "linkpath" | "size") || key.starts_with("GNU.sparse.")
}

/// Parses PAX records, `length key=value\n` each. The last of equal keys counts.
fn parse_pax(mut content: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, InvalidTar> {
    let mut records = BTreeMap::new();
    while !content.is_empty() {
        let space = content
            .iter()
            .position(|b| *b == b' ')
            .ok_or(InvalidTar::Extension)?;
        let digits = std::str::from_utf8(&content[..space]).map_err(|_| InvalidTar::Extension)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidTar::Extension);
        }
        let length: usize = digits.parse().map_err(|_| InvalidTar::Extension)?;
        if length > content.len() || length <= space + 1 {
            return Err(InvalidTar::Extension);
        }
        let (record, rest) = content.split_at(length);
        let record = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or(InvalidTar::Extension)?;
        let equals = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or(InvalidTar::Extension)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| InvalidTar::Extension)?;
        records.insert(key.to_owned(), record[equals + 1..].to_vec());
        content = rest;
    }
    Ok(records)
}

/// Seconds with an optional fraction, `-1.5` being half a second after -2.
fn parse_instant(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// The name, with the prefix that POSIX (not GNU) archives keep apart.
fn header_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = if &block[257..263] == b"ustar\0" {
        until_nul(&block[345..500])
    } else {
        b""
    };
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Octal digits between spaces and NULs, or a big-endian number marked by its highest bit.
fn number(field: &[u8]) -> Result<i64, InvalidTar> {
    if field[0] & 0x80 != 0 {
        // 0x80 marks a positive number, 0xff a negative one; the rest is two's complement.
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
            value = value.checked_mul(256).ok_or(InvalidTar::Number)? | i64::from(byte);
        }
        return Ok(value);
    }
    let digits: Vec<u8> = field.iter().copied().skip_while(|b| *b == b' ').collect();
    let end = digits
        .iter()
        .position(|b| !(b'0'..=b'7').contains(b))
        .unwrap_or(digits.len());
    if digits[end..].iter().any(|b| *b != 0 && *b != b' ') {
        return Err(InvalidTar::Number);
    }
    Ok(digits[..end]
        .iter()
        .fold(0, |value, digit| value * 8 + i64::from(digit - b'0')))
}

/// The sum of all bytes with the sum's own field as spaces; some old writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), InvalidTar> {
    let stored = number(&block[148..156])?;
    let bytes = || {
        block.iter().enumerate().map(|(at, byte)| {
            if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            }
        })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if stored == unsigned || stored == signed {
        return Ok(());
    }
    Err(InvalidTar::Checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(
        name: &str,
        kind: u8,
        size: u64,
        change: impl FnOnce(&mut [u8; BLOCK]),
    ) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        change(&mut block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, b)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*b)
                }
            })
            .sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn member(pax: &str, block: &[u8; BLOCK]) -> Result<Member, InvalidTar> {
        let mut assembler = Assembler {
            pending: Some(b'x'),
            ..Assembler::default()
        };
        assembler.extension(pax.as_bytes())?;
        match assembler.header(block)? {
            Step::Member(member) => Ok(*member),
            Step::Extension(_) => panic!("not a member"),
        }
    }

    #[test]
    fn extensions_override_the_header() {
        let plain = block("a", b'0', 3, |_| {});
        let read = member("", &plain).unwrap();
        assert_eq!(
            (read.path.as_slice(), read.size, read.mode),
            (&b"a"[..], 3, 0o644)
        );
        let read = member(
            "17 path=long/name\n9 size=7\n12 uid=1000\n20 mtime=1000000.25\n",
            &plain,
        );
        assert_eq!(
            read,
            Err(InvalidTar::Extension),
            "a wrong length is not guessed at"
        );
        let read = member(
            "18 path=long/name\n9 size=7\n12 uid=1000\n20 mtime=1000000.25\n",
            &plain,
        )
        .unwrap();
        assert_eq!(
            (read.path.as_slice(), read.size, read.uid, read.mtime),
            (&b"long/name"[..], 7, 1000, (1_000_000, 250_000_000))
        );
    }

    #[test]
    fn a_value_may_hold_newlines_and_cannot_smuggle_records() {
        let record = "39 SCHILY.xattr.user.x=\n12 path=evil\n\n\n";
        let read = member(record, &block("a", b'0', 0, |_| {})).unwrap();
        assert_eq!(read.path, b"a");
        assert_eq!(read.xattrs["user.x"], b"\n12 path=evil\n\n");
    }

    #[test]
    fn only_files_have_data() {
        let data = Err(InvalidTar::Data("a".into()));
        assert_eq!(member("", &block("a", b'2', 512, |_| {})), data);
        assert_eq!(member("9 size=7\n", &block("a", b'5', 0, |_| {})), data);
        assert_eq!(member("9 size=7\n", &block("a", b'1', 0, |_| {})), data);
        assert_eq!(member("", &block("a", b'1', 512, |_| {})).unwrap().size, 0);
    }

    #[test]
    fn what_cannot_be_read_the_same_by_all_is_refused() {
        assert_eq!(
            member("", &block("a", b'S', 0, |_| {})),
            Err(InvalidTar::Sparse("a".into()))
        );
        assert_eq!(
            member("", &block("a", b'Z', 0, |_| {})),
            Err(InvalidTar::Kind("a".into(), 'Z'))
        );
        assert_eq!(
            member("18 uid=4294967296\n", &block("a", b'0', 0, |_| {})),
            Err(InvalidTar::Owner("a".into()))
        );
        assert_eq!(
            member("", &block("a", b'0', 0, |b| b[108..116].fill(0xff))),
            Err(InvalidTar::Owner("a".into()))
        );
        let mut damaged = block("a", b'0', 0, |_| {});
        damaged[0] = b'b';
        assert_eq!(member("", &damaged), Err(InvalidTar::Checksum));
        let mut assembler = Assembler::default();
        assert_eq!(
            assembler.header(&block("a", b'x', 2 << 20, |_| {})),
            Err(InvalidTar::ExtensionSize(2 << 20))
        );
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Ok(256));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(b"0x12\0\0\0\0"), Err(InvalidTar::Number));
        assert_eq!(
            number(&[
                0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            Err(InvalidTar::Number)
        );
    }

    #[test]
    fn instants_before_the_era_round_down() {
        assert_eq!(parse_instant(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(parse_instant(b"1.0000000019"), Some((1, 1)));
        assert_eq!(parse_instant(b"x"), None);
    }
}
