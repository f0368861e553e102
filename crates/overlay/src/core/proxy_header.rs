//! The header that tells a task who its client is (PROXY protocol, version 2).

use std::net::{IpAddr, SocketAddr};

/// What every header begins with (§2.2 of the protocol's specification).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of a client.
const VERSION_AND_COMMAND: u8 = 0x21;
/// Byte streams over IPv4 and over IPv6.
const STREAM_V4: u8 = 0x11;
const STREAM_V6: u8 = 0x21;

/// The header of a connection from `client` to a node's `server`, both as the node saw them.
pub fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (family, addresses) = match (client.ip(), server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (STREAM_V4, [&from.octets()[..], &to.octets()[..]].concat())
        }
        (from, to) => {
            let (from, to) = (as_v6(from), as_v6(to));
            (STREAM_V6, [&from[..], &to[..]].concat())
        }
    };
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    let length = u8::try_from(addresses.len() + ports.len()).expect("36 bytes at most");
    [
        &SIGNATURE[..],
        &[VERSION_AND_COMMAND, family, 0, length],
        &addresses,
        &ports,
    ]
    .concat()
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_bytes_of_the_specification() {
        let header = |from: &str, to: &str| header(from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(
            header("192.0.2.99:1234", "192.0.2.1:8080"),
            [
                0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11,
                0, 12, 192, 0, 2, 99, 192, 0, 2, 1, 0x04, 0xd2, 0x1f, 0x90
            ]
        );
        let v6 = header("[2001:db8::99]:1234", "[2001:db8::1]:8080");
        assert_eq!(v6[13..16], [0x21, 0, 36]);
        assert_eq!(v6.len(), 16 + 36);
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(v6[31], 0x99);
    }
}
