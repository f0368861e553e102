//! Ports that are published on all nodes, held on this host: two programs do not clash, and `ss -ltn` shows them.
//!
//! Nothing is ever accepted here: rules lead every packet for such a port away before a socket could see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind,
    listen, setsockopt, socket, sockopt,
};
use shoal_api::network::{NetworkView, Protocol};

use super::netns;

/// The sockets, and the ports for which there are none because a program of the host was first.
#[derive(Debug, Default)]
pub(crate) struct HeldPorts {
    held: BTreeMap<(Protocol, u16), Vec<OwnedFd>>,
    lost: BTreeSet<(Protocol, u16)>,
}

impl HeldPorts {
    /// Holds the published ports of a view and lets go of others.
    pub(crate) fn hold(&mut self, view: &NetworkView, home: &OwnedFd, ipv6: bool) {
        let ingress = view.networks.values().filter(|slice| slice.ingress);
        let services = ingress.flat_map(|slice| slice.services.values());
        let ports = services.flat_map(|service| &service.ports);
        let wanted: BTreeSet<_> = ports.map(|port| (port.protocol, port.published)).collect();
        self.held.retain(|port, _| wanted.contains(port));
        self.lost.retain(|port| wanted.contains(port));
        for (protocol, port) in wanted {
            if self.held.contains_key(&(protocol, port)) {
                continue;
            }
            let opened = netns::visit(home, home, || open(protocol, port, ipv6));
            match opened.and_then(|opened| opened) {
                Ok(sockets) => {
                    self.held.insert((protocol, port), sockets);
                    self.lost.remove(&(protocol, port));
                }
                // Said once. The service is reached all the same, and the program is not.
                Err(error) => {
                    if self.lost.insert((protocol, port)) {
                        tracing::warn!(
                            %error,
                            "a program of this host has port {port}/{protocol}, which a service publishes: the service is \
                             reached at it, the program no longer from outside"
                        );
                    }
                }
            }
        }
    }
}

/// Sockets at a port of all addresses of the calling thread's namespace.
fn open(protocol: Protocol, port: u16, ipv6: bool) -> io::Result<Vec<OwnedFd>> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, Some(SockProtocol::Tcp)),
        Protocol::Udp => (SockType::Datagram, Some(SockProtocol::Udp)),
        // Often a module that is not there; nothing else of the host uses it.
        Protocol::Sctp => return Ok(Vec::new()),
    };
    let mut sockets = Vec::new();
    let v4 = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, number)?;
    // A restarted daemon finds the connections of the one before it still closing.
    setsockopt(&v4, sockopt::ReuseAddr, &(protocol == Protocol::Tcp))?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    bind(v4.as_raw_fd(), &SockaddrIn::from(any))?;
    sockets.push(v4);
    if ipv6 {
        let v6 = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, number)?;
        setsockopt(&v6, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&v6, sockopt::ReuseAddr, &(protocol == Protocol::Tcp))?;
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(v6.as_raw_fd(), &SockaddrIn6::from(any))?;
        sockets.push(v6);
    }
    if protocol == Protocol::Tcp {
        for socket in &sockets {
            listen(&socket.as_fd(), Backlog::new(1)?)?;
        }
    }
    Ok(sockets)
}
