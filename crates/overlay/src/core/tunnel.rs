//! The tunnel of encrypted networks: one WireGuard device in the host's namespace.
//!
//! Every key of every node has an address of its own inside the tunnel, which follows from the key. VXLAN of encrypted
//! networks leads to these addresses and to no others, so a packet is for the holder of a key or it is for nobody; and while
//! a node changes its key, the old and the new one are different places, both of which are reached.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv6Addr, SocketAddr},
};

use ipnet::Ipv6Net;
use shoal_api::tunnel::PublicKey;

/// A unique local subnet (RFC 4193) that exists inside the tunnel alone.
const SUBNET: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd53, 0x686f, 0x616c, 2, 0, 0, 0, 0), 64);
/// Seconds between packets to a silent peer: handshakes are made before anybody waits for one, and also by a node whose device
/// was made anew, which the others cannot know of.
pub const KEEPALIVE_S: u16 = 25;

/// The private half of a key. It is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PrivateKey {
    /// A key of random bytes, with the bits set that all keys have in common (RFC 7748 §5).
    pub fn of(mut random: [u8; 32]) -> Self {
        random[0] &= 248;
        random[31] = (random[31] & 127) | 64;
        Self(random)
    }
}

/// What the device is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// This node's key.
    pub private: PrivateKey,
    /// UDP port at which it listens.
    pub port: u16,
    /// Keys of other nodes.
    pub peers: BTreeMap<PublicKey, TunnelPeer>,
}

/// Where a key of another node is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Its node's address and port on the underlay; `None` only where it was read back and is not known yet.
    pub endpoint: Option<SocketAddr>,
    /// Its address inside the tunnel; `None` only where it was read back and there is none.
    pub address: Option<Ipv6Addr>,
}

/// What must change on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelStep {
    /// Its key.
    pub private: Option<PrivateKey>,
    /// Its port.
    pub port: Option<u16>,
    /// Peers that go.
    pub remove: Vec<PublicKey>,
    /// Peers that come or change.
    pub set: BTreeMap<PublicKey, TunnelPeer>,
}

/// The subnet of all addresses inside the tunnel.
pub fn subnet() -> Ipv6Net {
    SUBNET
}

/// The address of a key inside the tunnel.
pub fn address(key: &PublicKey) -> Ipv6Addr {
    let mut octets = SUBNET.network().octets();
    octets[8..].copy_from_slice(&key.0[..8]);
    octets.into()
}

/// What leads from the device as it is to the wanted one; `None` if nothing does.
pub fn step(want: &Tunnel, have: Option<&Tunnel>) -> Option<TunnelStep> {
    let nobody = BTreeMap::new();
    let held = have.map_or(&nobody, |have| &have.peers);
    let step = TunnelStep {
        private: (have.map(|have| &have.private) != Some(&want.private))
            .then(|| want.private.clone()),
        port: (have.map(|have| have.port) != Some(want.port)).then_some(want.port),
        remove: held
            .keys()
            .filter(|key| !want.peers.contains_key(*key))
            .copied()
            .collect(),
        set: want
            .peers
            .iter()
            .filter(|(key, peer)| held.get(*key) != Some(*peer))
            .map(|(key, peer)| (*key, *peer))
            .collect(),
    };
    (step != TunnelStep::default()).then_some(step)
}

/// Whether two devices have the same key, port and peers with the same addresses; where a peer is found a device learns from
/// its packets.
pub fn is_same(one: &Tunnel, other: &Tunnel) -> bool {
    let addresses = |tunnel: &Tunnel| -> BTreeMap<PublicKey, Option<Ipv6Addr>> {
        let peers = tunnel.peers.iter();
        peers.map(|(key, peer)| (*key, peer.address)).collect()
    };
    (&one.private, one.port) == (&other.private, other.port) && addresses(one) == addresses(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_to_nobody() {
        let key = PrivateKey::of([7; 32]);
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
    }

    #[test]
    fn only_what_differs_changes() {
        let peer = |n: u8| {
            let key = PublicKey([n; 32]);
            let peer = TunnelPeer {
                endpoint: Some(([192, 0, 2, n], 51820).into()),
                address: Some(address(&key)),
            };
            (key, peer)
        };
        let tunnel = |private, peers: &[u8]| Tunnel {
            private: PrivateKey([private; 32]),
            port: 51820,
            peers: peers.iter().map(|n| peer(*n)).collect(),
        };
        let want = tunnel(1, &[2, 3]);
        assert_eq!(step(&want, Some(&want)), None);
        let mut moved = want.clone();
        for peer in moved.peers.values_mut() {
            peer.endpoint = Some(([192, 0, 2, 99], 1).into());
        }
        assert!(is_same(&want, &moved) && step(&want, Some(&moved)).is_some());
        assert!(!is_same(&want, &tunnel(1, &[2])), "a peer is missing");
        let fresh = step(&want, None).expect("everything is missing");
        assert_eq!((fresh.port, fresh.set.len()), (Some(51820), 2));
        let other = step(&want, Some(&tunnel(1, &[3, 4]))).expect("peers differ");
        assert_eq!((other.private, other.port), (None, None));
        assert_eq!(other.remove, [PublicKey([4; 32])]);
        assert_eq!(other.set, BTreeMap::from([peer(2)]));
        let turned = step(&want, Some(&tunnel(9, &[2, 3]))).expect("the key differs");
        assert_eq!(turned.private, Some(PrivateKey([1; 32])));
    }
}
