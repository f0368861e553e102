//! Netlink messages: a header, a fixed part, then attributes of type, length and value (RFC 3549 §2.3).

/// Bytes of a message header.
pub const HEADER_LENGTH: usize = 16;

/// Header flags, from `linux/netlink.h`.
pub mod flags {
    /// Every request has it.
    pub const REQUEST: u16 = 0x1;
    /// Asks for an acknowledgement.
    pub const ACK: u16 = 0x4;
    /// Asks for everything.
    pub const DUMP: u16 = 0x300;
    /// Replaces what exists.
    pub const REPLACE: u16 = 0x100;
    /// Fails if it exists.
    pub const EXCL: u16 = 0x200;
    /// Makes it if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Marks an attribute that holds attributes.
    pub const NESTED: u16 = 0x8000;
}

/// A message under construction, or several one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a message with its fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Appends an attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// Appends an attribute of a native 32-bit number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute of a 32-bit number in network byte order.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute of a string with its terminating zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends an attribute that holds those that `fill` appends.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.push(kind | flags::NESTED, &[]);
        let mut filled = fill(self);
        let length = filled.bytes.len() - start;
        let length = u16::try_from(length).expect("an attribute holds at most 64 KiB");
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Appends bytes as they are, as the fixed part inside a nested attribute.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Only attributes, without a header: for what is compared or nested elsewhere.
    pub fn bare() -> Self {
        Self::default()
    }

    /// The attributes of a bare message.
    pub fn into_bare(self) -> Vec<u8> {
        self.bytes
    }

    /// Fills in length, flags and sequence number.
    pub fn finish(mut self, sequence: u32, more_flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are far below 4 GiB");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more_flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute holds at most 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Type.
    pub kind: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// Port of the socket whose request caused it; 0 for the kernel itself.
    pub port: u32,
    /// Everything after the header.
    pub body: &'a [u8],
}

/// Cuts a datagram into messages; stops at the first one that does not fit.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = native_u32(datagram.get(0..4)?)? as usize;
        let message = datagram.get(..length)?;
        let kind = native_u16(message.get(4..6)?)?;
        let sequence = native_u32(message.get(8..12)?)?;
        let port = native_u32(message.get(12..16)?)?;
        let body = message.get(HEADER_LENGTH..)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Received {
            kind,
            sequence,
            port,
            body,
        })
    })
}

/// Cuts attributes; the flag bits of their types are removed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(native_u16(bytes.get(0..2)?)?);
        let kind = native_u16(bytes.get(2..4)?)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this type.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// A string up to its terminating zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A native 16-bit number.
pub fn native_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// A native 32-bit number.
pub fn native_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Message::new(16, flags::ACK, &[7; 16])
            .text(3, "eth0")
            .nest(18, |m| m.text(1, "veth"))
            .finish(9, 0);
        let read = messages(&bytes).next().unwrap();
        assert_eq!((read.kind, read.sequence), (16, 9));
        assert_eq!(text(attribute(&read.body[16..], 3).unwrap()), "eth0");
        assert_eq!(
            text(attribute(attribute(&read.body[16..], 18).unwrap(), 1).unwrap()),
            "veth"
        );
    }

    #[test]
    fn rubbish_ends_the_reading() {
        assert_eq!(messages(&[255; 40]).count(), 0);
        assert_eq!(messages(&[0; 40]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 9]).count(), 0);
    }
}
