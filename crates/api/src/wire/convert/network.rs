//! The network view.

use super::{DecodeError, Field, bridge, messages};
use crate::{
    network::{Endpoint, IngressPort, NamedPort, NetworkSlice, NetworkView, Peer, ServiceSlice},
    wire,
};

messages! {
    NetworkView { version, data_path_port, peers, networks }
    Peer { underlay, hostname }
    NetworkSlice { name, ingress, internal, vni, mtu, subnets, endpoints, services }
    Endpoint { node, service, addresses, names, serving }
    ServiceSlice { name, vips, aliases, ports, named_ports }
    NamedPort { name, protocol, target }
    IngressPort { protocol, published, target }
}
