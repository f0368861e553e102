//! The kernel state as it was read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use shoal_api::{TaskId, tunnel::PublicKey};

use super::{
    ipvs_wire::{Service, ServiceKey},
    keyring::KeyPair,
    lb::Elements,
    naming::Mac,
    nft::Outline,
    state::{Family, Objects, Space},
    tunnel::Tunnel,
};

/// What was found, by namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// A namespace without an entry does not exist.
    pub spaces: BTreeMap<Space, ObservedSpace>,
}

/// What was found in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedSpace {
    /// All interfaces by name.
    pub links: BTreeMap<String, ObservedLink>,
    /// Addresses of interfaces, routes and rules of ours, permanent neighbours, forwarding entries, settings asked for.
    pub objects: Objects,
    /// Our nftables tables, shared by all who know of them: they may have an element per backend of the cluster.
    pub tables: BTreeMap<(Family, String), Arc<ObservedTable>>,
    /// Services of IPVS.
    pub ipvs: BTreeMap<ServiceKey, Service>,
    /// Seconds after which IPVS forgets a silent TCP connection, where there is IPVS.
    pub ipvs_idle_s: Option<u32>,
    /// The tunnel's device, where it is there and has a key.
    pub tunnel: Option<Tunnel>,
    /// Families for which somebody else set a default route here.
    pub foreign_default: BTreeSet<Family>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// Number in its namespace.
    pub index: u32,
    /// `veth`, `vxlan`, `bridge`; empty for loopback and hardware.
    pub kind: String,
    /// VXLAN identifier, port and local address.
    pub vxlan: Option<(u32, u16, Option<IpAddr>)>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of its bridge.
    pub master: Option<u32>,
    /// Whether it is an isolated bridge port.
    pub isolated: bool,
    /// Whether it is a bridge port in hairpin mode.
    pub hairpin: bool,
    /// Whether it is up.
    pub up: bool,
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Chains with the comments of their rules, and sets.
    pub outline: Outline,
    /// Elements of the sets.
    pub elements: Elements,
}

/// What `desired` must know about the host and the containers before it can decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// MTU of the interface that carries the underlay address, in bytes.
    pub underlay_mtu: u32,
    /// Whether the underlay address is no interface's of this host: others see it, a router on the way turns it back.
    pub underlay_elsewhere: bool,
    /// The keys of this node's tunnel; `None` where the kernel has none to offer.
    pub keys: Option<OwnKeys>,
    /// Local containers whose namespaces exist, each by the first of its tasks.
    pub containers: BTreeMap<String, ContainerFacts>,
    /// Further tasks of a container by their first: a container on several networks without a service has one each.
    pub further: BTreeMap<TaskId, TaskId>,
}

/// What the tunnel needs to know of this node's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKeys {
    /// The key in use.
    pub current: KeyPair,
    /// Another one by which others may know this node.
    pub other: Option<PublicKey>,
    /// UDP port.
    pub port: u16,
}

/// What a container's namespace held before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Ethernet addresses of interfaces by name.
    pub interfaces: BTreeMap<String, Option<Mac>>,
    /// Families for which somebody else set a default route.
    pub foreign_default: BTreeSet<Family>,
}

impl From<&ObservedSpace> for ContainerFacts {
    fn from(space: &ObservedSpace) -> Self {
        Self {
            interfaces: space
                .links
                .iter()
                .map(|(name, link)| (name.clone(), link.mac))
                .collect(),
            foreign_default: space.foreign_default.clone(),
        }
    }
}
