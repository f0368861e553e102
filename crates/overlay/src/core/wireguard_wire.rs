//! WireGuard over generic netlink: the key of a device, its port, and its peers.
//!
//! Numbers are those of `linux/wireguard.h`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use shoal_api::tunnel::PublicKey;

use super::{
    generic_wire::{self, HEADER_LENGTH},
    netlink::{Message, attribute, attributes, flags, native_u16},
    tunnel::{KEEPALIVE_S, PrivateKey, Tunnel, TunnelPeer, TunnelStep},
};

/// Name of its family, and kind of its interfaces.
pub const FAMILY: &str = "wireguard";
/// Peers per message, so that a list stays far below an attribute's 64 KiB.
const PEERS_PER_MESSAGE_MAX: usize = 300;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

mod device {
    pub(super) const NAME: u16 = 2;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const PORT: u16 = 6;
    pub(super) const PEERS: u16 = 8;
}

mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const ALLOWED: u16 = 9;
    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED: u32 = 2;
}

mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const PREFIX: u16 = 3;
}

const INET: u16 = 2;
const INET6: u16 = 10;

/// Changes a device, in as many messages as it takes.
pub fn set(family: u16, name: &str, step: &TunnelStep) -> Vec<Message> {
    let device = || generic_wire::message(family, SET_DEVICE, 0).text(device::NAME, name);
    let first = step
        .private
        .iter()
        .fold(device(), |m, key| m.attr(device::PRIVATE_KEY, &key.0));
    let first = step
        .port
        .iter()
        .fold(first, |m, port| m.attr(device::PORT, &port.to_ne_bytes()));
    let removed = step.remove.iter().map(|key| (key, None));
    let set = step.set.iter().map(|(key, peer)| (key, Some(peer)));
    let peers: Vec<_> = removed.chain(set).collect();
    let mut messages = vec![first];
    for some in peers.chunks(PEERS_PER_MESSAGE_MAX) {
        messages.push(device().nest(device::PEERS, |m| {
            some.iter()
                .fold(m, |m, (key, peer)| m.nest(0, |m| one_peer(m, key, *peer)))
        }));
    }
    messages
}

fn one_peer(m: Message, key: &PublicKey, peer: Option<&TunnelPeer>) -> Message {
    let m = m.attr(peer::PUBLIC_KEY, &key.0);
    let Some(TunnelPeer { endpoint, address }) = peer else {
        return m.u32(peer::FLAGS, peer::REMOVE);
    };
    let m = m.u32(peer::FLAGS, peer::REPLACE_ALLOWED);
    let m = endpoint
        .iter()
        .fold(m, |m, at| m.attr(peer::ENDPOINT, &socket_address(*at)));
    m.attr(peer::KEEPALIVE, &KEEPALIVE_S.to_ne_bytes())
        .nest(peer::ALLOWED, |m| {
            address.iter().fold(m, |m, address| {
                m.nest(0, |m| {
                    m.attr(allowed::FAMILY, &INET6.to_ne_bytes())
                        .attr(allowed::ADDRESS, &address.octets())
                        .attr(allowed::PREFIX, &[128])
                })
            })
        })
}

/// Asks for a device; the answer comes in parts.
pub fn get(family: u16, name: &str) -> Message {
    generic_wire::message(family, GET_DEVICE, flags::DUMP).text(device::NAME, name)
}

/// A device as it was read, part by part.
#[derive(Debug, Default)]
pub struct Reading {
    private: Option<PrivateKey>,
    public: Option<PublicKey>,
    port: u16,
    peers: BTreeMap<PublicKey, TunnelPeer>,
}

impl Reading {
    /// Takes a part of the answer to [`get`].
    pub fn take(&mut self, body: &[u8]) {
        for (kind, value) in attributes(body.get(HEADER_LENGTH..).unwrap_or_default()) {
            match kind {
                device::PRIVATE_KEY => self.private = key(value).map(PrivateKey),
                device::PUBLIC_KEY => self.public = key(value).map(PublicKey),
                device::PORT => self.port = native_u16(value).unwrap_or(0),
                device::PEERS => {
                    let peers = attributes(value).filter_map(|(_, peer)| read_peer(peer));
                    self.peers.extend(peers);
                }
                _ => {}
            }
        }
    }

    /// The public half of its key, if it has one.
    pub fn public(&self) -> Option<PublicKey> {
        self.public
    }

    /// The device, if it has a key.
    pub fn tunnel(self) -> Option<Tunnel> {
        Some(Tunnel {
            private: self.private?,
            port: self.port,
            peers: self.peers,
        })
    }
}

fn read_peer(bytes: &[u8]) -> Option<(PublicKey, TunnelPeer)> {
    let public = key(attribute(bytes, peer::PUBLIC_KEY)?).map(PublicKey)?;
    let allowed = attribute(bytes, peer::ALLOWED).unwrap_or_default();
    let mut allowed = attributes(allowed).filter_map(|(_, one)| {
        let octets: [u8; 16] = attribute(one, allowed::ADDRESS)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets))
    });
    let address = allowed.next();
    let peer = TunnelPeer {
        endpoint: attribute(bytes, peer::ENDPOINT).and_then(read_socket_address),
        // More than one is not ours.
        address: address.filter(|_| allowed.next().is_none()),
    };
    Some((public, peer))
}

fn key(bytes: &[u8]) -> Option<[u8; 32]> {
    bytes.try_into().ok()
}

/// An address and port as `sockaddr_in` or `sockaddr_in6`.
fn socket_address(at: SocketAddr) -> Vec<u8> {
    let port = at.port().to_be_bytes();
    match at.ip() {
        IpAddr::V4(v4) => [&INET.to_ne_bytes()[..], &port, &v4.octets(), &[0; 8]].concat(),
        IpAddr::V6(v6) => [
            &INET6.to_ne_bytes()[..],
            &port,
            &[0; 4],
            &v6.octets(),
            &[0; 4],
        ]
        .concat(),
    }
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip = match native_u16(bytes)? {
        INET => IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?),
        INET6 => IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{netlink::messages, tunnel};

    fn step_of(peers: &[(u8, SocketAddr)]) -> TunnelStep {
        let set = peers.iter().map(|(n, at)| {
            let key = PublicKey([*n; 32]);
            let peer = TunnelPeer {
                endpoint: Some(*at),
                address: Some(tunnel::address(&key)),
            };
            (key, peer)
        });
        TunnelStep {
            private: Some(PrivateKey::of([1; 32])),
            port: Some(51820),
            remove: Vec::new(),
            set: set.collect(),
        }
    }

    /// The attributes as `linux/wireguard.h` lays them out, on a machine that counts from the little end.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_peer_is_laid_out_as_the_kernel_reads_it() {
        let step = TunnelStep {
            private: None,
            port: None,
            ..step_of(&[(9, "192.0.2.2:51820".parse().expect("an address"))])
        };
        let bytes = set(0x1d, "wg", &step).remove(1).finish(7, flags::ACK);
        let nines = [9; 32];
        #[rustfmt::skip]
        let expected: Vec<u8> = [
            &[152, 0, 0, 0, 0x1d, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0][..], // length, family, REQUEST|ACK, sequence, port
            &[1, 1, 0, 0],                            // SET_DEVICE, version 1
            &[7, 0, 2, 0, b'w', b'g', 0, 0],          // IFNAME
            &[124, 0, 8, 0x80],                       // PEERS, nested
            &[120, 0, 0, 0x80],                       // a peer, nested
            &[36, 0, 1, 0], &nines,                   // PUBLIC_KEY
            &[8, 0, 3, 0, 2, 0, 0, 0],                // FLAGS: REPLACE_ALLOWEDIPS
            &[20, 0, 4, 0, 2, 0, 0xca, 0x6c, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0], // ENDPOINT: sockaddr_in
            &[6, 0, 5, 0, 25, 0, 0, 0],               // PERSISTENT_KEEPALIVE_INTERVAL
            &[44, 0, 9, 0x80],                        // ALLOWEDIPS, nested
            &[40, 0, 0, 0x80],                        // one, nested
            &[6, 0, 1, 0, 10, 0, 0, 0],               // FAMILY: INET6
            &[20, 0, 2, 0, 0xfd, 0x53, 0x68, 0x6f, 0x61, 0x6c, 0, 2, 9, 9, 9, 9, 9, 9, 9, 9], // IPADDR
            &[5, 0, 3, 0, 128, 0, 0, 0],              // CIDR_MASK
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let six = "[2001:db8::2]:7".parse().expect("an address");
        let four = "192.0.2.2:51820".parse().expect("an address");
        let step = step_of(&[(8, six), (9, four)]);
        let mut reading = Reading::default();
        for message in set(0x1d, "wg", &step) {
            let bytes = message.finish(1, 0);
            reading.take(messages(&bytes).next().expect("one message").body);
        }
        let tunnel = reading.tunnel().expect("it has a key");
        assert_eq!((Some(tunnel.port), tunnel.peers), (step.port, step.set));
        assert!(Reading::default().tunnel().is_none(), "no key, no tunnel");
        let mut cut = Reading::default();
        cut.take(&[0; 3]);
        cut.take(&[0, 1, 0, 0, 30, 0, 3, 0, 1]);
        assert!(cut.tunnel().is_none(), "truncated");
    }

    #[test]
    fn many_peers_travel_in_several_messages() {
        let at = "192.0.2.2:1".parse().expect("an address");
        let mut step = step_of(&[]);
        for n in 0..700u16 {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            let peer = TunnelPeer {
                endpoint: Some(at),
                address: None,
            };
            step.set.insert(PublicKey(key), peer);
        }
        assert_eq!(set(1, "wg", &step).len(), 1 + 3);
    }
}
