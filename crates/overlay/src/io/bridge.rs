//! Bridge networks of this host, brought about in the kernel.

mod single;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket,
        sockopt,
    },
};
use shoal_api::network::Protocol;
use tokio::sync::Notify;

use super::{
    actor::{Actor, Stopped},
    error::PlaneError,
    kernel::Kernel,
    netns::{self, NetnsError},
    observe,
    watch::{Held, Watch},
};
pub use crate::core::bridge::{
    Attachment, BridgeSpec, BridgeView, Ipv4Place, Ipv6Place, PublishedPort,
};
use crate::core::{
    bridge,
    diff::{NetOp, diff},
    flows::endings,
    notice::{self, Scope},
    observed::{ContainerFacts, Observed},
    state::{BRIDGE_PROTOCOL, Family, KernelState, Space},
};

/// Host ports from which one is chosen when none is asked for.
pub const DYNAMIC_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// What is set per daemon.
#[derive(Debug, Clone)]
pub struct BridgesConfig {
    /// Start of the names of our interfaces and tables, one to six characters.
    pub prefix: String,
    /// The host's network namespace; `None` for that of the caller of [`Bridges::open`].
    pub host_netns: Option<PathBuf>,
}

/// Why a bridge network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// There is no such network.
    #[error("network {0} not found")]
    NoNetwork(String),
    /// Containers are still attached.
    #[error("network {network} has active endpoints")]
    InUse {
        /// The network.
        network: String,
    },
    /// Another network has some of these addresses.
    #[error("subnet {subnet} overlaps with that of network {other}")]
    Overlap {
        /// Subnet of the new network.
        subnet: ipnet::Ipv4Net,
        /// Id of the other.
        other: String,
    },
    /// Another container has published the port.
    #[error("bind for {} failed: port is already allocated", at(.host_ip, .host_port))]
    PortAllocated {
        /// Address of the host.
        host_ip: IpAddr,
        /// Port of the host.
        host_port: u16,
    },
    /// A process of the host has the port, or no port of the range is free.
    #[error("failed to bind host port {}/{protocol}", at(.host_ip, .host_port))]
    PortBusy {
        /// Address of the host.
        host_ip: IpAddr,
        /// Port of the host.
        host_port: u16,
        /// Transport protocol.
        protocol: Protocol,
        /// What the kernel said.
        source: io::Error,
    },
    /// The container's namespace could not be opened.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused; these are all of its refusals.
    #[error("{}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Kernel(Vec<PlaneError>),
    /// The thread could not be started.
    #[error("cannot start the thread of bridge networks")]
    Start(#[from] io::Error),
    /// The thread has ended.
    #[error("the thread of bridge networks has stopped")]
    Stopped,
}

/// An address with a port, as it is written.
fn at(ip: &IpAddr, port: &u16) -> SocketAddr {
    SocketAddr::new(*ip, *port)
}

/// A port that a container wants to be reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRequest {
    /// Address of the host, 0.0.0.0 or :: for all.
    pub host_ip: IpAddr,
    /// Ports of the host, of which the first free one is taken; [`DYNAMIC_PORTS`] if none was asked for.
    pub host_ports: RangeInclusive<u16>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of the container, of the same family.
    pub address: IpAddr,
    /// Port of the container.
    pub port: u16,
    /// Addresses of host and container in the other family, if the same port of the host is wanted there too.
    pub twin: Option<(IpAddr, IpAddr)>,
}

/// The bridge networks of this host. All work is done by one thread of its own, one call after another.
#[derive(Debug, Clone)]
pub struct Bridges {
    actor: Actor<Worker>,
    alarm: Arc<Notify>,
}

impl Bridges {
    /// Takes over the networks of `view`, which is what [`Self::view`] returned before a restart.
    ///
    /// Containers in it that no longer exist must have been left out. Bridges and rules are made again where they
    /// are missing; nothing that stands is touched.
    pub async fn open(config: BridgesConfig, view: BridgeView) -> Result<Self, BridgeError> {
        let home = match &config.host_netns {
            Some(path) => netns::open(path)?,
            None => netns::current()?,
        };
        let alarm = Arc::new(Notify::new());
        let worker = Worker {
            prefix: config.prefix,
            home,
            view: BridgeView::default(),
            held: BTreeMap::new(),
            places: BTreeMap::new(),
            indices: BTreeMap::new(),
            leaving: BTreeSet::new(),
            sound: false,
            watch: Watch::start("bridges-watch", Arc::clone(&alarm))?,
        };
        let enter = |worker: &mut Worker| {
            netns::visit(&worker.home, &worker.home, || ()).map_err(BridgeError::Start)
        };
        let bridges = Self {
            actor: Actor::start("bridges", worker, enter)?,
            alarm,
        };
        bridges.run(move |worker| worker.adopt(view)).await?;
        Ok(bridges)
    }

    /// All networks, attachments and published ports.
    pub async fn view(&self) -> Result<BridgeView, BridgeError> {
        self.run(|worker| Ok(worker.view.clone())).await
    }

    /// Makes a network. One that exists with the same specification is left as it is.
    pub async fn create(&self, spec: BridgeSpec) -> Result<(), BridgeError> {
        self.run(move |worker| {
            let subnet = spec.ipv4.map(|place| place.subnet);
            let clash = |other: &BridgeSpec| {
                let (subnet, taken) = (subnet?, other.ipv4?.subnet);
                let is_same = other.id == spec.id || !crate::core::ipam::overlap(subnet, taken);
                let other = other.id.clone();
                (!is_same).then_some(BridgeError::Overlap { subnet, other })
            };
            if let Some(error) = worker.view.networks.values().find_map(clash) {
                return Err(error);
            }
            worker.change(None, |view| {
                drop(view.networks.insert(spec.id.clone(), spec))
            })
        })
        .await
    }

    /// Removes a network. One that does not exist is no error.
    pub async fn remove(&self, network: &str) -> Result<(), BridgeError> {
        let network = network.to_owned();
        self.run(move |worker| {
            if worker
                .view
                .attachments
                .values()
                .flatten()
                .any(|attachment| attachment.network == network)
            {
                return Err(BridgeError::InUse { network });
            }
            worker.change(None, |view| drop(view.networks.remove(&network)))
        })
        .await
    }

    /// Connects the container with this namespace to a network; it keeps its other attachments. Of all of them the first
    /// one with a gateway is its way out, so that the new one's place among them decides whether it is.
    pub async fn attach(
        &self,
        container: &str,
        netns: PathBuf,
        attachment: Attachment,
        place: usize,
    ) -> Result<(), BridgeError> {
        let container = container.to_owned();
        self.run(move |worker| {
            if !worker.view.networks.contains_key(&attachment.network) {
                return Err(BridgeError::NoNetwork(attachment.network));
            }
            let held = worker.view.attachments.get(&container);
            let mut attachments = held.cloned().unwrap_or_default();
            attachments.retain(|other| other.network != attachment.network);
            attachments.insert(place.min(attachments.len()), attachment);
            worker.place(&container, netns.clone(), attachments)?;
            worker.places.insert(container, netns);
            Ok(())
        })
        .await
    }

    /// Disconnects the container with this namespace from a network; if that was its way out, the next one is. Its
    /// published ports stay until [`Self::unpublish`].
    pub async fn detach(
        &self,
        container: &str,
        netns: PathBuf,
        network: &str,
    ) -> Result<(), BridgeError> {
        let (container, network) = (container.to_owned(), network.to_owned());
        self.run(move |worker| {
            let held = worker.view.attachments.get(&container);
            let mut attachments = held.cloned().unwrap_or_default();
            attachments.retain(|other| other.network != network);
            // Whoever has no namespace any more has no routes either.
            if attachments.is_empty() || !netns.exists() {
                return worker.change(None, |view| {
                    view.attachments.remove(&container);
                    if !attachments.is_empty() {
                        view.attachments.insert(container, attachments);
                    }
                });
            }
            worker.place(&container, netns, attachments)
        })
        .await
    }

    /// Disconnects a container from all networks at once. Its published ports stay until [`Self::unpublish`].
    pub async fn detach_all(&self, container: &str) -> Result<(), BridgeError> {
        let container = container.to_owned();
        self.run(move |worker| {
            worker.change(None, |view| drop(view.attachments.remove(&container)))
        })
        .await
    }

    /// Disconnects a container from all networks. Its interfaces go at the next [`Self::sweep`] at the latest, and earlier
    /// with its namespace; until then nobody else may have its addresses. Its published ports stay until
    /// [`Self::unpublish`].
    pub async fn leave(&self, container: &str) -> Result<(), BridgeError> {
        let container = container.to_owned();
        self.run(move |worker| {
            worker.leave(&container);
            Ok(())
        })
        .await
    }

    /// Removes the interfaces of all who have left.
    pub async fn sweep(&self) -> Result<(), BridgeError> {
        self.run(Worker::sweep).await
    }

    /// Publishes ports of a container, all or none, in place of those it had; returns them with the ports chosen.
    ///
    /// The ports are also bound on the host, so that no process can take them meanwhile.
    pub async fn publish(
        &self,
        container: &str,
        requests: Vec<PortRequest>,
    ) -> Result<Vec<PublishedPort>, BridgeError> {
        let container = container.to_owned();
        self.run(move |worker| worker.publish(&container, &requests))
            .await
    }

    /// Takes back all published ports of a container.
    pub async fn unpublish(&self, container: &str) -> Result<(), BridgeError> {
        let container = container.to_owned();
        self.run(move |worker| {
            worker.change(None, |view| drop(view.published.remove(&container)))?;
            worker.held.remove(&container);
            Ok(())
        })
        .await
    }

    /// Waits until somebody else has changed what is ours in the kernel. For one waiter at a time.
    pub async fn disturbed(&self) {
        self.alarm.notified().await;
    }

    /// Repairs what somebody removed.
    pub async fn converge(&self) -> Result<(), BridgeError> {
        self.run(Worker::repair).await
    }

    /// Removes all bridge networks and their rules.
    pub async fn teardown_all(&self) -> Result<(), BridgeError> {
        self.run(|worker| {
            worker.change(None, |view| *view = BridgeView::default())?;
            worker.held.clear();
            Ok(())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, BridgeError> + Send + 'static,
    ) -> Result<T, BridgeError> {
        self.actor
            .run(work)
            .await
            .unwrap_or_else(|Stopped| Err(BridgeError::Stopped))
    }
}

#[derive(Debug)]
struct Worker {
    prefix: String,
    home: OwnedFd,
    view: BridgeView,
    /// Sockets that keep published ports from other processes, by container.
    held: BTreeMap<String, Vec<OwnedFd>>,
    /// Namespaces of containers that were attached by this daemon.
    places: BTreeMap<String, PathBuf>,
    /// Numbers of the ports of containers on the host.
    indices: BTreeMap<String, u32>,
    /// Ports of containers that have left, which are still there.
    leaving: BTreeSet<String>,
    /// Whether the host's namespace was brought about, and is as wanted unless somebody else is at work.
    sound: bool,
    watch: Watch,
}

impl Worker {
    fn adopt(&mut self, view: BridgeView) -> Result<(), BridgeError> {
        for (container, ports) in &view.published {
            // A port that somebody took meanwhile still leads to the container, which had it first.
            let sockets = ports
                .iter()
                .filter_map(|port| hold(port.host_ip, port.host_port, port.protocol).ok()?);
            self.held.insert(container.clone(), sockets.collect());
        }
        self.change(None, |held| *held = view)
    }

    /// Changes the view and brings it about; on failure it stays, or becomes again, what it was.
    fn change(
        &mut self,
        container: Option<(&String, PathBuf)>,
        edit: impl FnOnce(&mut BridgeView),
    ) -> Result<(), BridgeError> {
        let before = self.view.clone();
        edit(&mut self.view);
        let failed = self.bring_about(&before, container.clone());
        if failed.is_empty() {
            return Ok(());
        }
        let attempted = std::mem::replace(&mut self.view, before);
        let remaining = self.bring_about(&attempted, container);
        for error in &remaining {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "bridge network could not be brought back"
            );
        }
        Err(BridgeError::Kernel(failed))
    }

    /// Makes again what somebody removed, also inside the containers.
    fn repair(&mut self) -> Result<(), BridgeError> {
        let attached = &self.view.attachments;
        self.places
            .retain(|id, path| attached.contains_key(id) && path.exists());
        self.change(None, |_| ())?;
        for (container, path) in self.places.clone() {
            self.change(Some((&container, path)), |_| ())?;
        }
        Ok(())
    }

    /// Brings the view about. A container may end between a look at its interface and a step there: what is wrong then is right
    /// at the second look.
    fn bring_about(
        &mut self,
        before: &BridgeView,
        container: Option<(&String, PathBuf)>,
    ) -> Vec<PlaneError> {
        let errors = self.attempt(before, container.clone());
        if errors.is_empty() {
            return errors;
        }
        self.attempt(before, container)
    }

    fn attempt(
        &mut self,
        before: &BridgeView,
        container: Option<(&String, PathBuf)>,
    ) -> Vec<PlaneError> {
        let mut errors = Vec::new();
        self.sound = false;
        let inside = container
            .as_ref()
            .map(|(id, _)| Space::Container((*id).clone()));
        let spaces = std::iter::once(Space::Host).chain(inside);
        let containers = container
            .into_iter()
            .map(|(id, path)| (id.clone(), path))
            .collect();
        let mut kernel = Kernel::new(&self.home, PathBuf::new(), containers);
        let shared = self.watch.shared();
        let mut watch = shared.hold();
        // Everything of the host is read each time anyway.
        watch.take_disturbed();
        if let Err(source) = self.listen(&mut watch) {
            let space = Space::Host;
            errors.push(PlaneError::Observe { space, source });
        }
        let Some((want, have, ops)) = self.plan(&mut kernel, before, spaces, &mut errors) else {
            return errors;
        };
        for op in &ops {
            tracing::debug!(step = %op, "bridge step");
        }
        errors.extend(
            kernel
                .execute(&ops, &have)
                .into_iter()
                .map(PlaneError::from),
        );
        let unended = kernel.end_flows(&endings(&want, &have)).into_iter();
        errors.extend(unended.map(PlaneError::from));
        let ours = self.scope(&kernel, &want, &have);
        watch.settle(BTreeMap::from([(Space::Host, ours)]));
        let port = format!("{}v", self.prefix);
        let ports = kernel.interfaces(&Space::Host);
        let ports = ports.filter(|(name, _)| name.starts_with(&port));
        let indices = ports.map(|(name, index)| (name.clone(), index)).collect();
        drop((watch, kernel));
        self.indices = indices;
        // Ports that nobody has are among what was removed.
        self.leaving.clear();
        self.sound = errors.is_empty();
        errors
    }

    fn listen(&self, watch: &mut Held<'_>) -> io::Result<()> {
        if watch.is_listening(&Space::Host, 0) {
            return Ok(());
        }
        netns::visit(&self.home, &self.home, || {
            watch.listen_here(&Space::Host, 0)
        })?
    }

    /// What nobody else should touch in the host's namespace.
    fn scope(&self, kernel: &Kernel<'_>, want: &KernelState, have: &Observed) -> Scope {
        let shapes = notice::shapes(want).remove(&Space::Host);
        let shapes = shapes.unwrap_or_default();
        let mut ours = Scope {
            links: shapes.keys().cloned().collect(),
            shapes,
            protocol: BRIDGE_PROTOCOL,
            table: bridge::table_name(&self.prefix),
            ..Scope::default()
        };
        let found = have.spaces.get(&Space::Host);
        let found = found.into_iter().flat_map(|host| &host.links);
        let found = found.map(|(name, link)| (name, link.index));
        for (name, index) in found.chain(kernel.interfaces(&Space::Host)) {
            if ours.links.contains(name) {
                ours.indices.insert(index);
            }
        }
        ours
    }

    fn plan(
        &self,
        kernel: &mut Kernel<'_>,
        before: &BridgeView,
        spaces: impl Iterator<Item = Space>,
        errors: &mut Vec<PlaneError>,
    ) -> Option<(KernelState, Observed, Vec<NetOp>)> {
        let mut have = Observed::default();
        for space in spaces {
            let handle = kernel.handle(&space).map_err(PlaneError::from);
            let read = handle.and_then(|handle| {
                observe::space(handle, BRIDGE_PROTOCOL).map_err(|source| PlaneError::Observe {
                    space: space.clone(),
                    source,
                })
            });
            let found = read.map_err(|error| errors.push(error)).ok()?;
            have.spaces.insert(space, found);
        }
        let containers = have.spaces.iter().filter_map(|(space, found)| match space {
            Space::Container(id) => Some((id.clone(), ContainerFacts::from(found))),
            Space::Host | Space::Router(_) => None,
        });
        let want = bridge::desired(&self.view, &containers.collect(), &self.prefix);
        let name = bridge::table_name(&self.prefix);
        let handle = kernel
            .handle(&Space::Host)
            .map_err(|error| errors.push(error.into()))
            .ok()?;
        let host = have.spaces.get_mut(&Space::Host)?;
        let paths = want.spaces[&Space::Host].objects.settings.keys();
        host.objects.settings = observe::settings(paths);
        for family in Family::ALL {
            match observe::table(handle, family, &name) {
                Ok(table) => host
                    .tables
                    .extend(table.map(|table| ((family, name.clone()), table))),
                Err(source) => {
                    errors.push(PlaneError::Observe {
                        space: Space::Host,
                        source,
                    });
                    return None;
                }
            }
        }
        // Bridges of this view and of the one before it are ours, and ports by their name; nothing else is.
        let bridges = || {
            self.view
                .networks
                .values()
                .chain(before.networks.values())
                .map(|spec| &spec.ifname)
        };
        let port = format!("{}v", self.prefix);
        let is_port = |name: &String| name.strip_prefix(&port).is_some_and(|rest| rest.len() == 8);
        host.links
            .retain(|name, _| is_port(name) || bridges().any(|bridge| bridge == name));
        host.objects
            .addresses
            .retain(|(name, _)| bridges().any(|bridge| bridge == name));
        host.objects.rules.clear();
        host.objects.routes.clear();
        host.objects.neighbours.clear();
        host.objects.fdb.clear();
        let ops = diff(&want, &have);
        Some((want, have, ops))
    }

    fn publish(
        &mut self,
        container: &str,
        requests: &[PortRequest],
    ) -> Result<Vec<PublishedPort>, BridgeError> {
        let mut chosen: Vec<PublishedPort> = Vec::new();
        let mut sockets = Vec::new();
        let mut others = self.view.clone();
        others.published.remove(container);
        self.held.remove(container);
        for request in requests {
            for (port, socket) in choose(request, &others)? {
                let published = others.published.entry(container.to_owned());
                published.or_default().push(port.clone());
                chosen.push(port);
                sockets.extend(socket);
            }
        }
        self.change(None, |view| {
            drop(view.published.insert(container.to_owned(), chosen.clone()))
        })?;
        self.held.insert(container.to_owned(), sockets);
        Ok(chosen)
    }
}

/// The first port of the request that neither a container nor a process of the host has, in all families asked for.
fn choose(
    request: &PortRequest,
    view: &BridgeView,
) -> Result<Vec<(PublishedPort, Option<OwnedFd>)>, BridgeError> {
    let protocol = request.protocol;
    let places = [(request.host_ip, request.address)];
    let places: Vec<(IpAddr, IpAddr)> = places.into_iter().chain(request.twin).collect();
    let mut refused = None;
    for host_port in request.host_ports.clone() {
        let held = places.iter().map(|&(host_ip, address)| {
            if view.holder(host_ip, host_port, protocol).is_some() {
                return Err(BridgeError::PortAllocated { host_ip, host_port });
            }
            let socket = hold(host_ip, host_port, protocol);
            let socket = socket.map_err(|source| BridgeError::PortBusy {
                host_ip,
                host_port,
                protocol,
                source,
            })?;
            let port = PublishedPort {
                host_ip,
                host_port,
                protocol,
                address,
                port: request.port,
            };
            Ok((port, socket))
        });
        match held.collect() {
            Ok(all) => return Ok(all),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    let (host_ip, host_port) = (request.host_ip, *request.host_ports.start());
    Err(refused.unwrap_or(BridgeError::PortAllocated { host_ip, host_port }))
}

/// Binds a port in the namespace of the calling thread, without listening on it. Without SCTP in the kernel nobody else can have
/// one of its ports.
fn hold(ip: IpAddr, port: u16, protocol: Protocol) -> io::Result<Option<OwnedFd>> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, Some(SockProtocol::Tcp)),
        Protocol::Udp => (SockType::Datagram, Some(SockProtocol::Udp)),
        Protocol::Sctp => (SockType::Stream, Some(SockProtocol::Sctp)),
    };
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = match socket(family, kind, SockFlag::SOCK_CLOEXEC, number) {
        Err(Errno::EPROTONOSUPPORT) if protocol == Protocol::Sctp => return Ok(None),
        opened => opened?,
    };
    if ip.is_ipv6() {
        // The same port of IPv4 is held by a socket of its own.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(ip, port));
    bind(fd.as_raw_fd(), &address)?;
    Ok(Some(fd))
}
