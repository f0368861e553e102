//! Ports that are published on all nodes, held on this host: two programs do not clash, and `ss -ltn` shows them.
//!
//! Nothing is ever accepted at most of them: rules lead every packet for such a port away before a socket could see it.
//! Those whose tasks are told the client are taken by [`Proxies`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen,
        setsockopt, socket, sockopt,
    },
};
use shoal_api::{
    NodeId,
    network::{NetworkSlice, NetworkView, Protocol},
};

use super::{
    netns,
    proxy::{Listening, Proxies},
};

/// Connections that wait to be taken.
const WAITING_MAX: i32 = 1_024;

/// The sockets, and the ports for which there are none because a program of the host was first.
#[derive(Debug, Default)]
pub(crate) struct HeldPorts {
    held: BTreeMap<Place, Hold>,
    lost: BTreeSet<Place>,
    proxies: Proxies,
    follows_tasks: bool,
}

/// Where a port is held, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    protocol: Protocol,
    port: u16,
    /// `None` is all addresses.
    at: Option<IpAddr>,
    /// Where connections are passed on to, if they are taken.
    router: Option<SocketAddr>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "sockets hold a port by being open")]
enum Hold {
    Unused(Vec<OwnedFd>),
    Taken(Listening),
}

impl HeldPorts {
    /// Holds the published ports of a view and lets go of others. `uplink` is where the router of ingress takes what is
    /// for its tasks.
    pub(crate) fn hold(
        &mut self,
        view: &NetworkView,
        me: &NodeId,
        uplink: Option<IpAddr>,
        home: &OwnedFd,
        ipv6: bool,
    ) {
        let wanted = self.wanted(view, me, uplink);
        self.held.retain(|place, _| wanted.contains(place));
        self.lost.retain(|place| wanted.contains(place));
        for place in wanted {
            if self.held.contains_key(&place) {
                continue;
            }
            match self.take(place, home, ipv6) {
                Ok(hold) => {
                    self.held.insert(place, hold);
                    self.lost.remove(&place);
                }
                // Another node has that address.
                Err(error) if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => {}
                // Said once.
                Err(error) => {
                    if self.lost.insert(place) {
                        let Place { port, protocol, .. } = place;
                        let who = match place.router {
                            Some(_) => "the service is not reached at it on this host",
                            None => {
                                "the service is reached at it, the program no longer from outside"
                            }
                        };
                        tracing::warn!(
                            %error,
                            "a program of this host has port {port}/{protocol}, which a service publishes: {who}"
                        );
                    }
                }
            }
        }
    }

    /// Whether what is held depends on where tasks are.
    pub(crate) fn follows_tasks(&self) -> bool {
        self.follows_tasks
    }

    fn wanted(
        &mut self,
        view: &NetworkView,
        me: &NodeId,
        uplink: Option<IpAddr>,
    ) -> BTreeSet<Place> {
        let mut wanted = BTreeSet::new();
        self.follows_tasks = false;
        for slice in view.networks.values().filter(|slice| slice.ingress) {
            for (service, found) in &slice.services {
                for port in &found.ports {
                    let mut place = Place {
                        protocol: port.protocol,
                        port: port.published,
                        at: port.host_ip,
                        router: None,
                    };
                    if port.proxy_protocol {
                        // Without a task of this node nobody must be there who takes connections.
                        let only_local = port.local;
                        self.follows_tasks |= only_local;
                        let Some(uplink) = uplink else { continue };
                        if only_local && !serves_here(slice, service, me) {
                            continue;
                        }
                        place.router = Some(SocketAddr::new(uplink, port.published));
                    }
                    wanted.insert(place);
                }
            }
        }
        wanted
    }

    fn take(&mut self, place: Place, home: &OwnedFd, ipv6: bool) -> io::Result<Hold> {
        let sockets = netns::visit(home, home, || open(&place, ipv6))??;
        match place.router {
            None => Ok(Hold::Unused(sockets)),
            Some(router) => self.proxies.listen(home, sockets, router).map(Hold::Taken),
        }
    }
}

/// Whether a task of a service serves on this node.
fn serves_here(slice: &NetworkSlice, service: &shoal_api::ServiceId, me: &NodeId) -> bool {
    let mut endpoints = slice.endpoints.values();
    endpoints.any(|one| one.serving && one.node == *me && one.service.as_ref() == Some(service))
}

/// Sockets at a place in the calling thread's namespace.
fn open(place: &Place, ipv6: bool) -> io::Result<Vec<OwnedFd>> {
    let (kind, number) = match place.protocol {
        Protocol::Tcp => (SockType::Stream, Some(SockProtocol::Tcp)),
        Protocol::Udp => (SockType::Datagram, Some(SockProtocol::Udp)),
        // Often a module that is not there; nothing else of the host uses it.
        Protocol::Sctp => return Ok(Vec::new()),
    };
    let addresses = match place.at {
        Some(at) => vec![at],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let mut sockets = Vec::new();
    for address in addresses {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) if ipv6 => AddressFamily::Inet6,
            IpAddr::V6(_) => continue,
        };
        let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC, number)?;
        if family == AddressFamily::Inet6 {
            setsockopt(&opened, sockopt::Ipv6V6Only, &true)?;
        }
        // A restarted daemon finds the connections of the one before it still closing.
        let is_tcp = place.protocol == Protocol::Tcp;
        setsockopt(&opened, sockopt::ReuseAddr, &is_tcp)?;
        let at = SocketAddr::new(address, place.port);
        bind(opened.as_raw_fd(), &SockaddrStorage::from(at))?;
        sockets.push(opened);
    }
    if place.protocol == Protocol::Tcp {
        let waiting = match place.router {
            Some(_) => WAITING_MAX,
            None => 1,
        };
        for socket in &sockets {
            listen(&socket.as_fd(), Backlog::new(waiting)?)?;
        }
    }
    Ok(sockets)
}
