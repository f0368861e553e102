//! Frames that try the way from one node's tunnels to another's.
//!
//! They look like every other packet of the ingress network, down to the identifier and the addresses, and are of an
//! Ethernet type that no protocol stack takes, so that they end where they are heard.

use std::net::IpAddr;

use super::naming::{self, Mac};

/// IEEE's type for experiments within one network (IEEE 802-2014 §9.2.3).
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of an Ethernet header.
pub const ETHER_HEADER: usize = 14;
/// Flag of a VXLAN header that carries an identifier (RFC 7348 §5).
const HAS_VNI: u8 = 0x08;
/// Longest token.
pub const TOKEN_BYTES_MAX: usize = 64;

/// A VXLAN packet's payload for UDP: the header, then a frame whose inside has `bytes` bytes, or as many as the token needs.
pub fn packet(vni: u32, from: IpAddr, to: IpAddr, token: &str, bytes: usize) -> Vec<u8> {
    let (Mac(from), Mac(to)) = (naming::mac_of(from), naming::mac_of(to));
    let mut packet = vec![HAS_VNI, 0, 0, 0];
    packet.extend_from_slice(&(vni << 8).to_be_bytes());
    packet.extend_from_slice(&to);
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&ETHER_TYPE);
    let inside = packet.len();
    packet.push(u8::try_from(token.len()).unwrap_or(u8::MAX));
    packet.extend_from_slice(token.as_bytes());
    packet.resize((inside + bytes).max(packet.len()), 0);
    packet
}

/// Reads a frame as it was heard: who sent it, if it carries this token, and how many bytes are inside.
pub fn read(frame: &[u8], token: &str) -> Option<(Mac, usize)> {
    let (header, inside) = frame.split_at_checked(ETHER_HEADER)?;
    let from = Mac(header.get(6..12)?.try_into().ok()?);
    let (length, rest) = inside.split_first()?;
    let is_ours =
        header[12..] == ETHER_TYPE && rest.get(..usize::from(*length)) == Some(token.as_bytes());
    is_ours.then_some((from, inside.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_heard_and_nothing_else() {
        let (from, to) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        for (bytes, inside) in [(0, 4), (1450, 1450)] {
            let packet = packet(0x1234, from, to, "abc", bytes);
            assert_eq!(packet[..8], [8, 0, 0, 0, 0, 0x12, 0x34, 0]);
            let frame = &packet[8..];
            assert_eq!(read(frame, "abc"), Some((naming::mac_of(from), inside)));
            assert_eq!(read(frame, "abd"), None);
            for cut in 0..17 {
                assert_eq!(read(&frame[..cut], "abc"), None, "cut at {cut}");
            }
        }
    }
}
