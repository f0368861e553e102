//! The data plane of cluster networks: one router namespace per network and node.
//!
//! [`core`] computes what the kernel should hold from the network view; [`io`] reads back what it holds and executes
//! the difference. [`Plane`] is the whole of it for a node; [`Bridges`] is the same for networks of this host alone.

pub mod core;
pub mod io;

pub use io::{
    bridge::{
        Attachment, BridgeError, BridgeSpec, BridgeView, Bridges, BridgesConfig, DYNAMIC_PORTS,
        Ipv4Place, Ipv6Place, PortRequest, PublishedPort,
    },
    config::{LbDriver, PlaneConfig},
    error::PlaneError,
    look::Look,
    netns::{self, NetnsError},
    plane::{KeyState, Plane},
};
