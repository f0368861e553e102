//! The network view: what a node must know to carry the packets of the networks in which it takes part.
//!
//! A manager computes it from the replicated state and streams it with the assignments; the node's `overlay` and `dns`
//! derive everything in the kernel and every answer from it. It is a value: same state, same view.

mod change;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    NetworkId, NodeId, ServiceId, TaskId,
    spec::{Affinity, Labels},
    table::Table,
    tunnel::TunnelKey,
};

pub use change::{SliceChange, ViewChange, ViewUpdate};

/// Default VXLAN port (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;
/// Bytes that VXLAN over IPv4 adds to a frame (RFC 7348 §5).
pub const VXLAN_OVERHEAD: u32 = 50;
/// Bytes that WireGuard over IPv4 adds to a packet: 20 of IP, 8 of UDP, 16 before and 16 after.
pub const WIREGUARD_OVERHEAD: u32 = 60;
/// Bytes by which a header of IPv6 is longer than one of IPv4.
pub const IPV6_SURPLUS: u32 = 20;
/// Address of the resolver inside every container's namespace.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Everything one node needs to know about networks, at one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Raft index of the state it was computed from; the node acknowledges it once it has converged.
    pub version: u64,
    /// UDP port of VXLAN in this cluster.
    pub data_path_port: u16,
    /// Nodes that take part in at least one of `networks`, this one included.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Networks in which this node takes part: those of its tasks, and always ingress.
    pub networks: BTreeMap<NetworkId, NetworkSlice>,
}

/// Where the data path of a node ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Address of the node on the underlay: its data-path address, else its advertised address.
    pub underlay: IpAddr,
    /// Hostname, for people.
    pub hostname: String,
    /// Keys of its tunnel, the one in use first. Only filled in for nodes with tasks in an encrypted network of the view.
    pub tunnel_keys: Vec<TunnelKey>,
}

/// One network as seen by the nodes that take part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSlice {
    /// Name, for instance `demo_default`.
    pub name: String,
    /// Whether it is the cluster's ingress network.
    pub ingress: bool,
    /// Whether it has no way out of the cluster (`--internal`).
    pub internal: bool,
    /// Whether its packets travel between nodes in WireGuard alone.
    pub encrypted: bool,
    /// VXLAN network identifier, 24 bits (RFC 7348 §5).
    pub vni: u32,
    /// MTU asked for by `--opt com.docker.network.driver.mtu`; without it underlay − [`VXLAN_OVERHEAD`].
    pub mtu: Option<u32>,
    /// Subnets with their gateways, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// Whether plain containers may join; this and what follows is only shown, on nodes that are no managers.
    pub attachable: bool,
    /// Labels.
    pub labels: Labels,
    /// Options of the driver, as they were said.
    pub options: BTreeMap<String, String>,
    /// Parts of the subnets from which addresses are given out, where that was asked for.
    pub ip_ranges: Vec<IpNet>,
    /// Attachments of live tasks, wherever they run. Views share what they have in common, so that a difference is soon
    /// found.
    pub endpoints: Table<TaskId, Arc<Endpoint>>,
    /// Services with a virtual address, a name or a published port in this network.
    pub services: Table<ServiceId, Arc<ServiceSlice>>,
}

/// A subnet and the address in it that every node's router answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The range, host bits zero.
    pub range: IpNet,
    /// Gateway of the containers; the same on every node.
    pub gateway: IpAddr,
}

/// One task's attachment to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Node that runs the task.
    pub node: NodeId,
    /// Service of the task; `None` for a plain container on an attachable network.
    pub service: Option<ServiceId>,
    /// Addresses with the prefix of their subnet, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// Names that resolve to this endpoint alone: the container's name and short id.
    pub names: Vec<String>,
    /// Whether names and virtual addresses lead to it: the task runs, is healthy and is not on its way out.
    pub serving: bool,
}

/// One service's presence in one network. Its backends are the serving endpoints that name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSlice {
    /// Name of the service, resolves to the VIP (or to all endpoints without one).
    pub name: String,
    /// Virtual addresses, IPv4 first; empty with `--endpoint-mode dnsrr`.
    pub vips: Vec<IpAddr>,
    /// Further names with the same answer.
    pub aliases: Vec<String>,
    /// Ports published through the ingress mesh. Only filled in the ingress network.
    pub ports: Vec<IngressPort>,
    /// Ports that have a name, which DNS tells as SRV records. Empty in the ingress network.
    pub named_ports: Vec<NamedPort>,
    /// Whether a client's connections all go to the same task.
    pub affinity: Affinity,
}

/// A port of a service that can be asked for by name: `_http._tcp.web` (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name without the underscore.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the task.
    pub target: u16,
}

/// A port that every node listens on for a service.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct IngressPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on every node.
    pub published: u16,
    /// Port in the task.
    pub target: u16,
    /// Whether tasks are told the client by a header (PROXY protocol, version 2).
    pub proxy_protocol: bool,
    /// Whether only nodes with a task of the service answer, each by its own tasks.
    pub local: bool,
    /// The one address of a node that it listens on; `None` is all.
    pub host_ip: Option<IpAddr>,
}

/// Transport protocol of a port.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name as docker writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!(
                "invalid protocol {text:?}: expected tcp, udp or sctp"
            )),
        }
    }
}

/// Containers of this node that take part in cluster networks, by task; known only here.
///
/// The view says which addresses a task has; this says in which namespace they belong.
pub type LocalNamespaces = BTreeMap<TaskId, PathBuf>;
