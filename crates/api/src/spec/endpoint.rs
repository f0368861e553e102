//! How a service is reached: its virtual addresses and its published ports.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// How a service is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    /// One virtual address, or all addresses in DNS.
    pub mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<PortConfig>,
    /// Virtual addresses that the user chose; in other networks the manager does.
    pub addresses: Vec<FixedAddress>,
    /// Which task a client's connections go to.
    pub affinity: Affinity,
}

/// How a service's name resolves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointMode {
    /// To a virtual address that balances over the tasks.
    #[default]
    Vip,
    /// To the addresses of the tasks.
    Dnsrr,
}

/// Which task a client's connections go to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// Each to the next one.
    #[default]
    None,
    /// All to the same one, by the client's address, for as long as that task serves.
    Source,
}

/// A virtual address that a service is to have in a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FixedAddress {
    /// Name or id of the network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
}

/// A published port.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PortConfig {
    /// Name, for people.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the task.
    pub target: u16,
    /// Port on the nodes; 0 lets the allocator (ingress) or the node (host) choose.
    pub published: u16,
    /// Where it listens.
    pub mode: PublishMode,
    /// Whether each connection to the task begins with a header that says who the client is (PROXY protocol, version 2).
    pub proxy_protocol: bool,
    /// Whether only nodes with a task of the service answer, each by its own tasks.
    pub local: bool,
    /// The one address of a node that it listens on; `None` is all.
    pub host_ip: Option<IpAddr>,
}

/// Where a published port listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// On every node.
    #[default]
    Ingress,
    /// On the nodes of the tasks.
    Host,
}
