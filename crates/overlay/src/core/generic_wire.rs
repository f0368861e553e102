//! Generic netlink, by which the kernel's parts without a protocol of their own are spoken to: numbers of families, and the
//! header of their messages (`linux/genetlink.h`).

use super::netlink::{Message, attribute, native_u16};

/// Message type by which generic netlink tells the number of a family.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const VERSION: u8 = 1;
/// Bytes of the header after netlink's.
pub const HEADER_LENGTH: usize = 4;

/// Asks for the number of a family.
pub fn ask_family(name: &str) -> Message {
    message(CONTROL, GET_FAMILY, 0).text(FAMILY_NAME, name)
}

/// The number from an answer to [`ask_family`].
pub fn read_family(body: &[u8]) -> Option<u16> {
    native_u16(attribute(body.get(HEADER_LENGTH..)?, FAMILY_ID)?)
}

/// A message to a family, without attributes.
pub fn message(family: u16, command: u8, flags: u16) -> Message {
    Message::new(family, flags, &[command, VERSION, 0, 0])
}
