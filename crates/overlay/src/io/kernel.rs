//! Open namespaces, and the execution of steps in them.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use nix::errno::Errno;

use super::{
    netns::{self, NetnsError},
    observe,
    socket::{Kind, Socket},
};
use crate::core::{
    conntrack_wire,
    diff::{Change, IpvsStep, NetOp},
    flows::{Ending, Endings},
    ipvs_wire::{self, Edit},
    naming,
    netlink::Message,
    nft_wire,
    observed::Observed,
    rtnl_wire::{self, LinkPlaces, Verb},
    state::{Link, LinkKind, Space},
    tunnel::TunnelStep,
    wireguard_wire,
};

/// A namespace with sockets into it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) fd: OwnedFd,
    pub(crate) route: Socket,
    pub(crate) netfilter: Option<Socket>,
    generic: Option<Socket>,
}

/// Numbers of families of generic netlink, where the kernel has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Families {
    pub(crate) ipvs: Option<u16>,
    pub(crate) wireguard: Option<u16>,
}

/// Namespaces in use, opened when they are first needed, and the interfaces known in them.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    home: &'a OwnedFd,
    directory: PathBuf,
    containers: BTreeMap<String, PathBuf>,
    handles: BTreeMap<Space, Handle>,
    indices: BTreeMap<Space, BTreeMap<String, u32>>,
    /// Numbers of the families of generic netlink that may be used.
    families: Families,
}

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: String,
    pub(crate) source: io::Error,
}

impl<'a> Kernel<'a> {
    /// The host's namespace, the directory of routers' handles, and the containers that may be asked for.
    pub(crate) fn new(
        home: &'a OwnedFd,
        directory: PathBuf,
        containers: BTreeMap<String, PathBuf>,
    ) -> Self {
        Self {
            home,
            directory,
            containers,
            handles: BTreeMap::new(),
            indices: BTreeMap::new(),
            families: Families::default(),
        }
    }

    /// The same, with these families of generic netlink.
    pub(crate) fn with(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The same, with namespaces that are open already.
    pub(crate) fn with_handles(mut self, handles: BTreeMap<Space, Handle>) -> Self {
        self.handles = handles;
        self
    }

    /// The namespaces that were opened.
    pub(crate) fn into_handles(self) -> BTreeMap<Space, Handle> {
        self.handles
    }

    /// File of a namespace; `None` for the host's.
    pub(crate) fn path(&self, space: &Space) -> Option<PathBuf> {
        match space {
            Space::Host => None,
            Space::Router(network) => Some(self.directory.join(naming::router_handle(network))),
            Space::Container(id) => self.containers.get(id).cloned(),
        }
    }

    /// Number of a namespace's file; 0 for the host's.
    pub(crate) fn inode(&self, space: &Space) -> Result<u64, NetnsError> {
        let Some(path) = self.path(space) else {
            return Ok(0);
        };
        match fs::metadata(&path) {
            Ok(file) => Ok(file.ino()),
            Err(source) => Err(NetnsError {
                action: "open",
                path,
                source,
            }),
        }
    }

    /// Sockets into a namespace. Containers have no tables of ours.
    pub(crate) fn handle(&mut self, space: &Space) -> Result<&mut Handle, NetnsError> {
        let path = self.path(space);
        let entry = match self.handles.entry(space.clone()) {
            Entry::Occupied(open) => return Ok(open.into_mut()),
            Entry::Vacant(entry) => entry,
        };
        let path = path.unwrap_or_default();
        let failed = |source| NetnsError {
            action: "enter",
            path: path.clone(),
            source,
        };
        let fd = match space {
            Space::Host => self.home.try_clone().map_err(failed)?,
            _ => netns::open(&path)?,
        };
        let tables = !matches!(space, Space::Container(_));
        let opened = netns::visit(&fd, self.home, || {
            let route = Socket::open(Kind::Route)?;
            let netfilter = if tables {
                Some(Socket::open(Kind::Netfilter)?)
            } else {
                None
            };
            Ok::<_, io::Error>((route, netfilter))
        });
        let (route, netfilter) = opened.and_then(|opened| opened).map_err(failed)?;
        Ok(entry.insert(Handle {
            fd,
            route,
            netfilter,
            generic: None,
        }))
    }

    /// Executes all steps, however many fail; but none after the host's rules could not be loaded, which keep in and out what
    /// later steps open ways for.
    pub(crate) fn execute(&mut self, ops: &[NetOp], have: &Observed) -> Vec<Failure> {
        let indices = have
            .spaces
            .iter()
            .map(|(space, found)| {
                (
                    space.clone(),
                    found
                        .links
                        .iter()
                        .map(|(name, link)| (name.clone(), link.index))
                        .collect(),
                )
            })
            .collect();
        self.execute_at(ops, indices)
    }

    /// The same with the numbers of the interfaces that are there.
    pub(crate) fn execute_at(
        &mut self,
        ops: &[NetOp],
        indices: BTreeMap<Space, BTreeMap<String, u32>>,
    ) -> Vec<Failure> {
        self.indices = indices;
        let mut failures = Vec::new();
        let mut rest = ops;
        while let Some(first) = rest.first() {
            // Entries of one namespace that do not depend on one another travel together.
            let together = rest
                .iter()
                .take_while(|op| op.space == first.space && is_entry(&op.change))
                .count();
            let (now, later) = rest.split_at(together.max(1));
            let failed = |op: &NetOp| {
                let step = op.to_string();
                move |source| Failure { step, source }
            };
            if together == 0 {
                let failure = self.step(first).map_err(failed(first)).err();
                let ends = failure.is_some() && guards(first);
                failures.extend(failure);
                if ends {
                    break;
                }
            } else {
                let answers = self.entries(now);
                failures.extend(
                    now.iter()
                        .zip(answers)
                        .filter_map(|(op, answer)| answer.map_err(failed(op)).err()),
                );
            }
            rest = later;
        }
        failures
    }

    /// Forgets flows that go another way than the rules lead now, so that what comes next is led anew.
    pub(crate) fn end_flows(&mut self, endings: &Endings) -> Vec<Failure> {
        let failed = |(space, ending)| {
            let failure = |source| Failure {
                step: format!("end flows that lead elsewhere now in the {space}"),
                source,
            };
            self.end_flows_in(space, ending).map_err(failure).err()
        };
        endings.iter().filter_map(failed).collect()
    }

    fn end_flows_in(&mut self, space: &Space, ending: &Ending) -> io::Result<()> {
        let socket = self.tables(space)?;
        let mut flows = None;
        let counted = socket.ask(conntrack_wire::count(), |body| {
            flows = conntrack_wire::read_count(body);
        });
        match counted {
            // The kernel cannot tell (`CONFIG_NF_CT_NETLINK`), which was said at the start.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(()),
            counted => counted?,
        }
        if flows == Some(0) {
            return Ok(());
        }
        let mut removals = Vec::new();
        for family in ending.families() {
            socket.dump(conntrack_wire::list(family), |body| {
                removals.extend(conntrack_wire::removal(family, body, ending))
            })?;
        }
        socket
            .requests(removals)
            .into_iter()
            .try_for_each(tolerate_absence)
    }

    fn step(&mut self, op: &NetOp) -> io::Result<()> {
        let space = &op.space;
        match &op.change {
            Change::CreateSpace => self.create_space(space),
            Change::RemoveSpace => {
                self.handles.remove(space);
                netns::unmount(&self.router_path(space)?)
            }
            Change::DeleteLink(name) => {
                let Some(index) = self.index(space, name) else {
                    return Ok(());
                };
                tolerate_absence(
                    self.handle(space)?
                        .route
                        .request(rtnl_wire::delete_link(index)),
                )
            }
            Change::CreateLink(name, link) => self.create_link(space, name, link),
            Change::UpdateLink(name, link) => {
                let index = self.index(space, name).ok_or(io::ErrorKind::NotFound)?;
                let master = link
                    .master
                    .as_ref()
                    .and_then(|master| self.index(space, master));
                let route = &mut self.handle(space)?.route;
                route.request(rtnl_wire::update_link(index, link, master))?;
                if link.master.is_some() {
                    route.request(rtnl_wire::port_mode(index, link))?;
                }
                let LinkKind::Veth { peer } = &link.kind else {
                    return Ok(());
                };
                self.learn(&peer.space, &peer.name)?;
                if let (Some(mtu), Some(index)) = (peer.mtu, self.index(&peer.space, &peer.name)) {
                    let route = &mut self.handle(&peer.space)?.route;
                    route.request(rtnl_wire::set_mtu(index, mtu))?;
                }
                Ok(())
            }
            Change::Set(path, value) => self.set(space, path, value),
            Change::ReplaceTable(table) => {
                self.tables(space)?.transaction(nft_wire::replace(table))
            }
            Change::RemoveTable(family, name) => self
                .tables(space)?
                .transaction(nft_wire::remove(*family, name)),
            Change::EditElements {
                family,
                table,
                remove,
                add,
            } => self
                .tables(space)?
                .transaction(nft_wire::edit(*family, table, remove, add)),
            Change::Ipvs(step) => self.ipvs_step(space, step),
            Change::Tunnel(name, step) => self.tunnel_step(space, name, step),
            Change::Address(..)
            | Change::Neighbour(..)
            | Change::Fdb(..)
            | Change::Route(..)
            | Change::Rule(..) => self
                .entries(std::slice::from_ref(op))
                .pop()
                .expect("one answer per entry"),
        }
    }

    fn set(&mut self, space: &Space, path: &str, value: &str) -> io::Result<()> {
        let home = self.home;
        let ours: BTreeSet<String> = self
            .interfaces(space)
            .map(|(name, _)| name.clone())
            .collect();
        netns::visit(&self.handle(space)?.fd, home, || {
            if *space == Space::Host && path == naming::FORWARDING6 {
                observe::keep_listening_to_routers(|name| ours.contains(name))?;
            }
            match observe::set(path, value) {
                // Without IPv6 nobody listens anyway.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && path.ends_with(naming::LISTENS_TO_ROUTERS) =>
                {
                    Ok(())
                }
                done => done,
            }
        })?
    }

    fn entries(&mut self, ops: &[NetOp]) -> Vec<io::Result<()>> {
        let Some(NetOp { space, .. }) = ops.first() else {
            return Vec::new();
        };
        let messages: Vec<Option<Message>> = ops.iter().map(|op| self.entry(op)).collect();
        let sendable = messages.iter().flatten().cloned().collect();
        let mut answers = match self.handle(space) {
            Ok(handle) => handle.route.requests(sendable).into_iter(),
            Err(_) => Vec::new().into_iter(),
        };
        let outcome = |(op, message): (&NetOp, Option<Message>)| match (message, verb(&op.change)) {
            // What lay on an interface that is gone is gone.
            (None, Verb::Remove) => Ok(()),
            (None, Verb::Add) => Err(io::Error::from(Errno::ENODEV)),
            (Some(_), Verb::Remove) => tolerate_absence(answers.next().unwrap_or(Ok(()))),
            (Some(_), Verb::Add) => answers.next().unwrap_or_else(|| Err(Errno::ENODEV.into())),
        };
        ops.iter().zip(messages).map(outcome).collect()
    }

    fn entry(&self, op: &NetOp) -> Option<Message> {
        let index = |link: &str| self.index(&op.space, link);
        Some(match &op.change {
            Change::Address(verb, link, net) => rtnl_wire::address(*verb, index(link)?, net),
            Change::Neighbour(verb, link, at, mac) => {
                rtnl_wire::neighbour(*verb, index(link)?, *at, *mac)
            }
            Change::Fdb(verb, link, mac, remote) => {
                rtnl_wire::fdb(*verb, index(link)?, *mac, *remote)
            }
            Change::Route(verb, route) => rtnl_wire::route(*verb, index(&route.link)?, route),
            Change::Rule(verb, rule) => rtnl_wire::rule(*verb, rule),
            _ => return None,
        })
    }

    fn create_space(&mut self, space: &Space) -> io::Result<()> {
        let path = self.router_path(space)?;
        let home = self.home;
        // An empty file of that name is what an interrupted attempt left.
        netns::unmount(&path)?;
        let target = path.clone();
        let made = netns::visit(home, home, || netns::make(&target))?;
        made?;
        self.refresh(space)
    }

    fn create_link(&mut self, space: &Space, name: &str, link: &Link) -> io::Result<()> {
        let master = link
            .master
            .as_ref()
            .and_then(|master| self.index(space, master));
        let mut places = LinkPlaces {
            master,
            ..LinkPlaces::default()
        };
        let mut asked = space;
        match &link.kind {
            LinkKind::Bridge | LinkKind::Wireguard => {}
            LinkKind::Veth { peer } => places.peer = Some(self.handle(&peer.space)?.fd.as_raw_fd()),
            LinkKind::Vxlan { .. } => {
                // Asked of the host, so that its UDP socket lives there.
                places.own = Some(self.handle(space)?.fd.as_raw_fd());
                asked = &Space::Host;
            }
        }
        self.handle(asked)?
            .route
            .request(rtnl_wire::create_link(name, link, places))?;
        self.learn(space, name)?;
        let own = self.index(space, name);
        if let Some(index) = own.filter(|_| link.master.is_some()) {
            let route = &mut self.handle(space)?.route;
            route.request(rtnl_wire::port_mode(index, link))?;
        }
        let LinkKind::Veth { peer } = &link.kind else {
            return Ok(());
        };
        if let Some(index) = own.filter(|_| link.master.is_some() || !peer.ipv6) {
            self.no_own_address(space, index)?;
        }
        self.learn(&peer.space, &peer.name)?;
        if let Some(index) = self.index(&peer.space, &peer.name) {
            if !peer.ipv6 {
                self.no_own_address(&peer.space, index)?;
            }
            let route = &mut self.handle(&peer.space)?.route;
            route.request(rtnl_wire::up(index))?;
        }
        // Last, since both ends begin to speak with it. A bridge, which looks at all its ports whenever a line comes or
        // goes, sees this one come once.
        let Some(index) = own else {
            return Ok(());
        };
        let route = &mut self.handle(space)?.route;
        route.request(rtnl_wire::up(index))
    }

    fn no_own_address(&mut self, space: &Space, index: u32) -> io::Result<()> {
        let asked = rtnl_wire::no_own_address(index);
        match self.handle(space)?.route.request(asked) {
            // Without IPv6 in the kernel there is none to be made.
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => Ok(()),
            answer => answer,
        }
    }

    /// Finds out the number of one interface.
    fn learn(&mut self, space: &Space, name: &str) -> io::Result<()> {
        let found = observe::link(self.handle(space)?, name)?;
        let known = self.indices.entry(space.clone()).or_default();
        match found {
            Some((name, link)) => known.insert(name, link.index),
            None => known.remove(name),
        };
        Ok(())
    }

    fn refresh(&mut self, space: &Space) -> io::Result<()> {
        let mut found = BTreeMap::new();
        self.handle(space)?
            .route
            .dump(rtnl_wire::list_links(), |body| {
                found.extend(rtnl_wire::read_link(body).map(|(name, link)| (name, link.index)));
            })?;
        self.indices.insert(space.clone(), found);
        Ok(())
    }

    /// The way to IPVS in a namespace, with the number of its family; `None` where it is not used.
    pub(crate) fn ipvs(&mut self, space: &Space) -> io::Result<Option<(&mut Socket, u16)>> {
        self.generic(space, self.families.ipvs)
    }

    /// The way to WireGuard in a namespace, with the number of its family; `None` where it is not used.
    pub(crate) fn wireguard(&mut self, space: &Space) -> io::Result<Option<(&mut Socket, u16)>> {
        self.generic(space, self.families.wireguard)
    }

    fn generic(
        &mut self,
        space: &Space,
        family: Option<u16>,
    ) -> io::Result<Option<(&mut Socket, u16)>> {
        let (Some(family), home) = (family, self.home) else {
            return Ok(None);
        };
        let handle = self.handle(space)?;
        if handle.generic.is_none() {
            let opened = netns::visit(&handle.fd, home, || Socket::open(Kind::Generic))??;
            handle.generic = Some(opened);
        }
        Ok(handle.generic.as_mut().map(|socket| (socket, family)))
    }

    fn tunnel_step(&mut self, space: &Space, name: &str, step: &TunnelStep) -> io::Result<()> {
        let (socket, family) = self.wireguard(space)?.ok_or(io::ErrorKind::Unsupported)?;
        // One after another: first the key, and a peer that goes may have had the address of one that comes.
        wireguard_wire::set(family, name, step)
            .into_iter()
            .try_for_each(|message| socket.request(message))
    }

    fn ipvs_step(&mut self, space: &Space, step: &IpvsStep) -> io::Result<()> {
        let (socket, family) = self.ipvs(space)?.ok_or(io::ErrorKind::Unsupported)?;
        match step {
            IpvsStep::New(key, scheduler) => {
                socket.request(ipvs_wire::new_service(family, *key, scheduler))
            }
            IpvsStep::Set(key, scheduler) => {
                socket.request(ipvs_wire::set_service(family, *key, scheduler))
            }
            IpvsStep::Idle(seconds) => socket.request(ipvs_wire::set_idle(family, *seconds)),
            IpvsStep::Delete(key) => {
                tolerate_absence(socket.request(ipvs_wire::delete_service(family, *key)))
            }
            IpvsStep::Destination(key, edit, at, weight) => {
                let done =
                    socket.request(ipvs_wire::destination(family, *key, *edit, *at, *weight));
                if *edit == Edit::Remove {
                    tolerate_absence(done)
                } else {
                    done
                }
            }
        }
    }

    fn tables(&mut self, space: &Space) -> io::Result<&mut Socket> {
        self.handle(space)?
            .netfilter
            .as_mut()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The interfaces of a namespace by name, as far as they are known.
    pub(crate) fn interfaces(&self, space: &Space) -> impl Iterator<Item = (&String, u32)> {
        let known = self.indices.get(space).into_iter().flatten();
        known.map(|(name, index)| (name, *index))
    }

    fn index(&self, space: &Space, link: &str) -> Option<u32> {
        self.indices.get(space)?.get(link).copied()
    }

    fn router_path(&self, space: &Space) -> io::Result<PathBuf> {
        self.path(space)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Whether a step is about the rules of the host.
fn guards(op: &NetOp) -> bool {
    let rules = matches!(
        op.change,
        Change::ReplaceTable(_) | Change::EditElements { .. }
    );
    rules && op.space == Space::Host
}

fn is_entry(change: &Change) -> bool {
    matches!(
        change,
        Change::Address(..)
            | Change::Neighbour(..)
            | Change::Fdb(..)
            | Change::Route(..)
            | Change::Rule(..)
    )
}

fn verb(change: &Change) -> Verb {
    match change {
        Change::Address(verb, ..)
        | Change::Neighbour(verb, ..)
        | Change::Fdb(verb, ..)
        | Change::Route(verb, ..)
        | Change::Rule(verb, ..) => *verb,
        _ => Verb::Add,
    }
}

fn tolerate_absence(outcome: io::Result<()>) -> io::Result<()> {
    const ABSENT: [Errno; 5] = [
        Errno::ENOENT,
        Errno::ESRCH,
        Errno::ENODEV,
        Errno::EADDRNOTAVAIL,
        Errno::ENXIO,
    ];
    match outcome {
        Err(error)
            if ABSENT
                .iter()
                .any(|absent| error.raw_os_error() == Some(*absent as i32)) =>
        {
            Ok(())
        }
        other => other,
    }
}
