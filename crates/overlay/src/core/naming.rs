//! Names and numbers that follow from ids and addresses, so that a restarted daemon finds what it made before.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use shoal_api::{NetworkId, TaskId};

use super::state::Family;

/// VXLAN device inside a router namespace.
pub const VXLAN: &str = "vx0";

/// Its number there, which rules that send by it must name: ASCII "Shoa", so that no other has it.
pub const VXLAN_INDEX: u32 = 0x5368_6f61;
/// Port of a router namespace on the host's gateway bridge.
pub const UPLINK: &str = "up0";
/// Port of the ingress router on a link of its own to the host: the way of what the host asks at `::1`.
pub const LOOPBACK6: &str = "lo6";
/// Start of the names of endpoint ports inside a router namespace.
pub const ENDPOINT_PREFIX: &str = "e";
/// Start of the file names of router namespaces.
pub const ROUTER_PREFIX: &str = "router-";

/// Part of the link-local addresses that stand for peers.
const PEER_HOP_TAG: u16 = 0x5368;
/// Link-local address of every router on every of its ports: the next hop of its containers for IPv6.
pub const ROUTER_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// FNV-1a, 64 bits: spreads ids over interface names; not a defence against anybody.
pub fn hash64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The better half of [`hash64`].
pub fn hash32(text: &str) -> u32 {
    let [a, b, c, d, ..] = hash64(text.as_bytes()).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Four bytes that stand for an address: the address itself for IPv4, a hash for IPv6, of a kind that can be a next hop: one
/// that begins with 128 to 191.
fn four_bytes(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = hash64(&v6.octets()).to_be_bytes();
            [a & 0x3f | 0x80, b, c, d]
        }
    }
}

/// Ethernet address of whatever owns `address`: locally administered, derived as docker does it.
pub fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = four_bytes(address);
    Mac([0x02, 0x42, a, b, c, d])
}

/// Packet mark, connection mark and routing table that stand for a peer in the ingress router.
pub fn peer_mark(underlay: IpAddr) -> u32 {
    u32::from_be_bytes(four_bytes(underlay))
}

/// Next hop that stands for a peer inside router namespaces; it exists only there, as a permanent neighbour. The ingress
/// router of the peer has that of IPv6 as an address of its tunnel.
pub fn peer_hop(family: Family, underlay: IpAddr) -> IpAddr {
    let [a, b, c, d] = four_bytes(underlay);
    match family {
        Family::V4 => [a, b, c, d].into(),
        Family::V6 => {
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, PEER_HOP_TAG, high, low).into()
        }
    }
}

/// Whether an address is one by which routers know each other.
pub fn is_peer_hop(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xfe80, 0, 0, 0, 0, PEER_HOP_TAG, ..])
}

/// Name of the table of what is done to packets where they enter by an interface. Tables of this name are of the family
/// `netdev`, which has no addresses of its own.
pub fn entry_table(prefix: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{prefix}-4"),
        Family::V6 => format!("{prefix}-6"),
    }
}

/// Whether a table is one of these.
pub fn is_entry_table(name: &str) -> bool {
    name.ends_with("-4") || name.ends_with("-6")
}

/// Whether a table is ours, of whatever family.
pub fn is_own_table(prefix: &str, name: &str) -> bool {
    name == prefix
        || Family::ALL
            .iter()
            .any(|family| name == entry_table(prefix, *family))
}

/// Name of an endpoint's port in its router namespace.
pub fn endpoint_port(task: &TaskId) -> String {
    format!(
        "{ENDPOINT_PREFIX}{:012x}",
        hash64(task.as_str().as_bytes()) >> 16
    )
}

/// Name of a router's port in the host's namespace. `prefix` has at most six characters.
pub fn uplink_port(prefix: &str, network: &NetworkId) -> String {
    format!("{prefix}u{:08x}", hash32(network.as_str()))
}

/// Name of the host's end of that link.
pub fn loopback6_link(prefix: &str) -> String {
    format!("{prefix}lo6")
}

/// Setting that has IPv6 forwarded, below `/proc/sys/net`.
pub const FORWARDING6: &str = "ipv6/conf/all/forwarding";

/// End of the path of the setting that has an interface take routes from routers that advertise themselves.
pub const LISTENS_TO_ROUTERS: &str = "/accept_ra";

/// That setting of an interface.
pub fn listens_to_routers(link: &str) -> String {
    format!("ipv6/conf/{link}{LISTENS_TO_ROUTERS}")
}

/// Name of the tunnel's device in the host's namespace.
pub fn tunnel_link(prefix: &str) -> String {
    format!("{prefix}wg")
}

/// File name of a router namespace's handle.
pub fn router_handle(network: &NetworkId) -> String {
    format!("{ROUTER_PREFIX}{network}")
}

/// The network whose router namespace has this handle.
pub fn network_of_handle(file_name: &str) -> Option<NetworkId> {
    file_name.strip_prefix(ROUTER_PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_the_kernels_fifteen_characters() {
        let network: NetworkId = "f5lxx1zz5pnorynqglhzmsp33".parse().unwrap();
        let task: TaskId = "f5lxx1zz5pnorynqglhzmsp33".parse().unwrap();
        assert!(endpoint_port(&task).len() <= 15);
        assert!(uplink_port("sixsix", &network).len() <= 15);
        assert!(tunnel_link("sixsix").len() <= 15);
        assert!(loopback6_link("sixsix").len() <= 15);
        assert_eq!(network_of_handle(&router_handle(&network)), Some(network));
    }

    #[test]
    fn a_peer_s_hop_is_one_that_routes_can_lead_by() {
        for last in 0..2_000u16 {
            let peer = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last).into();
            let IpAddr::V4(hop) = peer_hop(Family::V4, peer) else {
                panic!("a hop of IPv4");
            };
            assert!((128..=191).contains(&hop.octets()[0]), "{peer}: {hop}");
            assert_eq!(peer_mark(peer), u32::from(hop));
        }
    }

    #[test]
    fn a_peer_is_its_address() {
        let peer: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(mac_of(peer).to_string(), "02:42:c0:00:02:01");
        assert_eq!(peer_mark(peer), 0xc000_0201);
        assert_eq!(peer_hop(Family::V4, peer).to_string(), "192.0.2.1");
        let IpAddr::V6(hop) = peer_hop(Family::V6, peer) else {
            panic!("a hop of IPv6");
        };
        assert!(is_peer_hop(hop) && !is_peer_hop(ROUTER_HOP), "{hop}");
    }
}
