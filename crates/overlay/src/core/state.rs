//! The kernel state that the overlay wants, as a value.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use shoal_api::NetworkId;

use super::{
    ipvs_wire::{Service, ServiceKey},
    naming::Mac,
    nft::Table,
    tunnel::Tunnel,
};

/// Protocol number of routes and rules of cluster networks, so that those of others are left alone. Unassigned in
/// `rtnetlink.h`.
pub const OVERLAY_PROTOCOL: u8 = 83;
/// The same for routes of this host's own bridge networks.
pub const BRIDGE_PROTOCOL: u8 = 84;

/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;
/// The kernel's table of its own addresses.
pub const LOCAL_TABLE: u32 = 255;
/// Priority of our policy rules: before the main table's 32766.
pub const RULE_PRIORITY: u32 = 1_000;

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// The host's.
    Host,
    /// The router namespace of a network; made and removed by us.
    Router(NetworkId),
    /// A container's, by the id of its task or container; made and removed by the engine.
    Container(String),
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Router(network) => write!(f, "router of network {network}"),
            Self::Container(id) => write!(f, "container {id}"),
        }
    }
}

/// What every namespace should hold of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelState {
    /// By namespace.
    pub spaces: BTreeMap<Space, SpaceState>,
}

/// What one namespace should hold of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpaceState {
    /// Interfaces by name; the container ends of veth pairs are part of their router end.
    pub links: BTreeMap<String, Link>,
    /// Everything that refers to interfaces by name.
    pub objects: Objects,
    /// Our nftables tables.
    pub tables: BTreeMap<(Family, String), Table>,
    /// Services of IPVS.
    pub ipvs: BTreeMap<ServiceKey, Service>,
    /// Seconds after which IPVS forgets a silent TCP connection, where it distributes any.
    pub ipvs_idle_s: Option<u32>,
    /// The tunnel's device, by name.
    pub tunnel: Option<(String, Tunnel)>,
}

/// Addresses, routes and settings of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// Interface and address.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Our routes.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours by interface and address.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Forwarding entries of VXLAN devices: which remote node has an Ethernet address.
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
    /// Our policy rules.
    pub rules: BTreeSet<Rule>,
    /// Kernel settings by path below `/proc/sys/net`.
    pub settings: BTreeMap<String, String>,
}

/// An interface, always up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Ethernet address, where it matters.
    pub mac: Option<Mac>,
    /// MTU in bytes, where it matters.
    pub mtu: Option<u32>,
    /// Bridge it belongs to.
    pub master: Option<String>,
    /// Whether it may talk to the bridge's other isolated ports (false) or only to the bridge (true).
    pub isolated: bool,
    /// Whether the bridge may send a frame back by the port it came by, as to a container that asks itself.
    pub hairpin: bool,
}

/// Kind of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN device whose UDP socket stays in the host's namespace.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Underlay address of this node; the unspecified one if packets may leave from any.
        local: IpAddr,
    },
    /// A WireGuard device, whose UDP socket stays in the namespace where it was made.
    Wireguard,
    /// One end of a veth pair; it owns the other end.
    Veth {
        /// The other end.
        peer: VethPeer,
    },
}

/// The far end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethPeer {
    /// Namespace it lives in.
    pub space: Space,
    /// Name there.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes, where it matters.
    pub mtu: Option<u32>,
    /// Whether it speaks IPv6. Otherwise it makes itself no address of that kind, and tells nobody of it: each of a
    /// bridge's ports would hear of each that comes.
    pub ipv6: bool,
}

/// A route of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub kind: RouteKind,
    /// Routing table; 254 is the main one.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
    /// Next hop; taken to be on the link.
    pub via: Option<IpAddr>,
    /// Longest packet in bytes, where that is less than the interface takes.
    pub mtu: Option<u32>,
    /// Interface; that of loopback for one that leads nowhere.
    pub link: String,
    /// Whose it is.
    pub protocol: u8,
}

impl Route {
    /// The main table's route of cluster networks to what an interface leads to.
    pub fn on(link: &str, to: IpNet) -> Self {
        Self {
            kind: RouteKind::Unicast,
            table: MAIN_TABLE,
            to,
            via: None,
            mtu: None,
            link: link.to_owned(),
            protocol: OVERLAY_PROTOCOL,
        }
    }

    /// The route that makes an address this host's own.
    pub fn own(link: &str, to: IpNet) -> Self {
        Self {
            kind: RouteKind::Local,
            table: LOCAL_TABLE,
            ..Self::on(link, to)
        }
    }
}

/// Kind of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Leads on.
    Unicast,
    /// Leads to this host itself.
    Local,
    /// Leads nowhere, and nobody is told.
    Blackhole,
}

/// A policy rule of ours: which packets look into which table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Family of the packets.
    pub family: Family,
    /// Source of the packets.
    pub from: Option<IpNet>,
    /// Mark of the packets.
    pub mark: Option<u32>,
    /// IP protocol of the packets, and the port that they are from.
    pub source_port: Option<(u8, u16)>,
    /// Routes of at most this prefix length do not count.
    pub suppressed: Option<u32>,
    /// Table to look into.
    pub table: u32,
    /// Rules of lower numbers are asked first.
    pub priority: u32,
    /// Whose it is.
    pub protocol: u8,
}

/// Protocol family of an nftables table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// Bytes of an address.
    pub fn width(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}
