//! The network plane of a node: brings the kernel to what the view says, again and again.

mod facts;
mod keys;
mod shortcut;
mod silent;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Instant,
};

use shoal_api::{
    NodeId, TaskId,
    network::{LocalNamespaces, NetworkView},
};
use tokio::sync::{Notify, watch};

use super::{
    actor::{Actor, Stopped},
    config::{LbDriver, PlaneConfig},
    error::PlaneError,
    kernel::{Families, Handle, Kernel},
    netns, observe,
    ports::HeldPorts,
    probe::{Abilities, probe},
    watch::{Held, Watch},
};
use crate::core::{
    delta::{Delta, Index},
    desired::{Params, desired},
    diff::{NetOp, diff},
    flows::endings,
    ipvs_wire,
    keyring::Keyring,
    known::Known,
    naming,
    notice::{self, Scope, Shape},
    observed::{Facts, Observed, ObservedSpace},
    state::{Family, KernelState, OVERLAY_PROTOCOL, Space},
    tunnel::Tunnel,
};
use facts::underlay_link;
pub use keys::KeyState;

/// MTU taken for an underlay whose interface is not on this host (an address behind NAT), in bytes.
const UNDERLAY_MTU_DEFAULT: u32 = 1500;

/// The network plane of this node. All its work is done by one thread of its own, one call after another.
#[derive(Debug, Clone)]
pub struct Plane {
    actor: Actor<Worker>,
    alarm: Arc<Notify>,
    uses_ipvs: bool,
    abilities: Arc<Abilities>,
    keys: watch::Receiver<KeyState>,
    /// The host's namespace, and the folder of the routers' handles.
    places: Arc<(OwnedFd, PathBuf)>,
}

impl Plane {
    /// Starts the plane and asks the kernel for what it needs; nothing is changed yet.
    pub fn open(config: PlaneConfig) -> Result<Self, PlaneError> {
        let name_fits = |name: &str, max: usize| {
            (1..=max).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        for (what, value, max) in [
            ("prefix", &config.prefix, 6),
            ("gateway bridge name", &config.gwbridge, 15),
        ] {
            if !name_fits(value, max) {
                return Err(PlaneError::Config {
                    what,
                    value: value.clone(),
                });
            }
        }
        let home = match &config.host_netns {
            Some(path) => netns::open(path)?,
            None => netns::current()?,
        };
        let alarm = Arc::new(Notify::new());
        let clone = home.try_clone().map_err(|source| PlaneError::Step {
            step: "hold the host's network namespace".to_owned(),
            source,
        })?;
        let places = Arc::new((clone, config.run_dir.join("netns")));
        let (tell_keys, keys) = watch::channel(KeyState::default());
        let worker = Worker {
            config,
            home,
            started: Instant::now(),
            keyring: None,
            tell_keys,
            asked: None,
            index: None,
            known: Known::default(),
            open: Open::default(),
            watch: Watch::start("network-watch", Arc::clone(&alarm))?,
            ports: HeldPorts::default(),
            ipv6: false,
            source_hash: false,
            zones: false,
            direct: false,
            families: Families::default(),
            by_source: None,
            tunnel: None,
        };
        let told = Arc::new(OnceLock::new());
        let tell = Arc::clone(&told);
        let actor = Actor::start("network-plane", worker, move |worker: &mut Worker| {
            let abilities = worker.enter()?;
            tell.get_or_init(|| (Arc::new(abilities), worker.by_source.is_some()));
            Ok::<_, PlaneError>(())
        })?;
        let told = told.get().expect("told before the thread was started");
        let (abilities, uses_ipvs) = told.clone();
        Ok(Self {
            actor,
            alarm,
            uses_ipvs,
            abilities,
            keys,
            places,
        })
    }

    /// Brings the kernel to what the view says for node `me` with these containers.
    ///
    /// What already stands is left alone, so calling it twice changes nothing. A second call with equal arguments reads
    /// everything back, and makes again what somebody removed; others trust what the call before saw and did.
    /// Attaches a container whose namespace is in `local` and whose task has endpoints in the view; detaches it when
    /// it is in neither. Returns everything that would not converge; all the rest has been done.
    pub async fn converge(
        &self,
        view: &Arc<NetworkView>,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<(), Vec<PlaneError>> {
        self.ask((view, me, local), Worker::converge).await
    }

    async fn ask(
        &self,
        (view, me, local): Inputs<'_>,
        deed: fn(&mut Worker, Inputs<'_>) -> Result<(), Vec<PlaneError>>,
    ) -> Result<(), Vec<PlaneError>> {
        let (view, me, local) = (Arc::clone(view), me.clone(), local.clone());
        self.actor
            .run(move |worker| deed(worker, (&view, &me, &local)))
            .await
            .unwrap_or_else(|Stopped| Err(vec![PlaneError::Stopped]))
    }

    /// What distributes connections here: `nftables` or `IPVS`.
    pub fn lb_driver(&self) -> &'static str {
        if self.uses_ipvs { "IPVS" } else { "nftables" }
    }

    /// Like [`Self::converge`] with the arguments of the last call, but only reads back the namespaces in which
    /// somebody was at work.
    pub async fn repair(
        &self,
        view: &Arc<NetworkView>,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<(), Vec<PlaneError>> {
        let (view, me, local) = (Arc::clone(view), me.clone(), local.clone());
        self.actor
            .run(move |worker| worker.bring_about((&view, &me, &local)))
            .await
            .unwrap_or_else(|Stopped| Err(vec![PlaneError::Stopped]))
    }

    /// The steps that [`Self::converge`] would take now, without taking them.
    pub async fn plan(
        &self,
        view: &Arc<NetworkView>,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<Vec<NetOp>, Vec<PlaneError>> {
        let (view, me, local) = (Arc::clone(view), me.clone(), local.clone());
        let work = move |worker: &mut Worker| {
            let mut errors = Vec::new();
            let known = std::mem::take(&mut worker.known);
            let planned = worker
                .plan((&view, &me, &local), None, &mut errors)
                .map(|planned| planned.ops);
            worker.known = known;
            planned.filter(|_| errors.is_empty()).ok_or(errors)
        };
        self.actor
            .run(work)
            .await
            .unwrap_or_else(|Stopped| Err(vec![PlaneError::Stopped]))
    }

    /// Removes everything that the plane ever made on this node: routers, bridge, rules.
    pub async fn teardown_all(&self) -> Result<(), Vec<PlaneError>> {
        let nobody: NodeId = "none".parse().expect("letters are a valid id");
        self.converge(&Arc::default(), &nobody, &LocalNamespaces::new())
            .await
    }
}

#[derive(Debug)]
struct Worker {
    config: PlaneConfig,
    home: OwnedFd,
    /// Arguments of the last call that succeeded.
    asked: Option<(Arc<NetworkView>, NodeId, LocalNamespaces)>,
    /// Of the view in `asked`, once a difference to it was looked for.
    index: Option<Index>,
    known: Known,
    /// Namespaces held open for the next few steps: to close a socket may wait for the kernel to have cleared away what
    /// was removed by it.
    open: Open,
    watch: Watch,
    /// Sockets that keep published ports from programs of the host.
    ports: HeldPorts,
    /// Whether the kernel can carry IPv6 in these networks.
    ipv6: bool,
    /// Whether the kernel can choose a backend by the client's address.
    source_hash: bool,
    zones: bool,
    direct: bool,
    /// Numbers of families of generic netlink.
    families: Families,
    /// The scheduler by which IPVS keeps clients with their backends; `None` where nftables distributes connections.
    by_source: Option<&'static str>,
    /// The tunnel's device as it was brought about.
    tunnel: Option<Tunnel>,
    /// From when times are counted.
    started: Instant,
    /// The keys of encrypted networks; `None` where the kernel has no WireGuard.
    keyring: Option<Keyring>,
    tell_keys: watch::Sender<KeyState>,
}

/// By namespace, with the number of its file.
type Open = BTreeMap<Space, (u64, Handle)>;

type Inputs<'a> = (&'a Arc<NetworkView>, &'a NodeId, &'a LocalNamespaces);

struct Planned<'a> {
    kernel: Kernel<'a>,
    /// As it was read, with what others have.
    read: BTreeMap<Space, (u64, ObservedSpace)>,
    have: Observed,
    ops: Vec<NetOp>,
    /// What of it all is ours, by namespace.
    want: KernelState,
}

impl Worker {
    /// Moves the thread into the host's namespace, and checks the kernel in a throw-away one.
    fn enter(&mut self) -> Result<Abilities, PlaneError> {
        let step = |step: &str| {
            let step = step.to_owned();
            move |source| PlaneError::Step { step, source }
        };
        netns::visit(&self.home, &self.home, || ())
            .map_err(step("enter the host's network namespace"))?;
        let abilities =
            netns::visit_fresh(&self.home, probe).map_err(step("create a network namespace"))??;
        if !abilities.ipv6 {
            tracing::warn!(
                "this kernel lacks IPv6 or nftables for it: the cluster's networks have IPv4 alone here"
            );
        }
        self.ipv6 = abilities.ipv6;
        self.source_hash = abilities.source_hash;
        self.zones = abilities.zones;
        self.direct = abilities.direct;
        self.families = abilities.families;
        self.begin_keys();
        if !abilities.source_hash {
            tracing::warn!(
                "this kernel lacks CONFIG_NFT_HASH: with nftables, services with the label shoal.affinity=source are \
                 balanced like others here"
            );
        }
        if !abilities.zones {
            tracing::warn!(
                "this kernel lacks CONFIG_NF_CONNTRACK_ZONES: a client that asks two nodes from one port at once may be \
                 answered by one of them alone"
            );
        }
        if !abilities.flows {
            tracing::warn!(
                "this kernel lacks CONFIG_NF_CT_NETLINK: datagrams of a client that goes on sending stay with a task that has \
                 been replaced"
            );
        }
        if !abilities.direct {
            tracing::info!(
                "this kernel lacks CONFIG_NFT_FWD_NETDEV: packets between containers of two nodes are routed on both"
            );
        }
        let driver = self.config.lb_driver;
        self.by_source = driver.ipvs_scheduler(&abilities.schedulers, abilities.source_hash);
        if driver == LbDriver::Ipvs && self.by_source.is_none() {
            tracing::warn!(
                "this kernel lacks IPVS (CONFIG_IP_VS, _RR): nftables distributes connections"
            );
        }
        if self.by_source == Some(ipvs_wire::TURN) {
            tracing::warn!(
                "this kernel lacks CONFIG_IP_VS_MH and CONFIG_IP_VS_SH: with IPVS, services with the label \
                 shoal.affinity=source are balanced like others here"
            );
        }
        Ok(abilities)
    }

    fn converge(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        match self.since_asked(inputs) {
            Some(Delta::Steps(steps)) => {
                if self.take(inputs, &steps) {
                    return Ok(());
                }
            }
            None | Some(Delta::Same) => self.known = Known::default(),
            Some(Delta::Everything) => {}
        }
        self.bring_about(inputs)
    }

    fn bring_about(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        let (view, me, local) = inputs;
        self.note_keys(view, me);
        self.hold_ports(view, me);
        let mut outcome = self.attempt(inputs);
        if outcome.is_err() && !std::mem::take(&mut self.known).is_empty() {
            outcome = self.attempt(inputs);
        }
        self.index = None;
        self.asked = outcome
            .is_ok()
            .then(|| (Arc::clone(view), me.clone(), local.clone()));
        outcome
    }

    fn attempt(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        let mut errors = Vec::new();
        self.open.clear();
        let watch = self.watch.shared();
        let mut watch = watch.hold();
        for space in watch.take_disturbed() {
            self.known.forget(&space);
        }
        let Some(Planned {
            mut kernel,
            read,
            have,
            ops,
            want,
        }) = self.plan(inputs, Some(&mut watch), &mut errors)
        else {
            return Err(errors);
        };
        for op in &ops {
            tracing::debug!(view.version = inputs.0.version, step = %op, "network step");
        }
        errors.extend(
            kernel
                .execute(&ops, &have)
                .into_iter()
                .map(PlaneError::from),
        );
        let unended = kernel.end_flows(&endings(&want, &have)).into_iter();
        errors.extend(unended.map(PlaneError::from));
        let mut shapes = notice::shapes(&want);
        let scopes = want
            .spaces
            .keys()
            .filter(|space| !matches!(space, Space::Container(_)))
            .map(|space| {
                let shapes = shapes.remove(space).unwrap_or_default();
                let scope = self.scope(inputs, &kernel, shapes, &read, space);
                (space.clone(), scope)
            });
        let scopes: BTreeMap<Space, Scope> = scopes.collect();
        for space in scopes.keys() {
            // Those that were made just now.
            let inode = kernel.inode(space).unwrap_or_default();
            errors.extend(self.listen(&mut kernel, &mut watch, space, inode).err());
        }
        watch.keep_only(|space| scopes.contains_key(space));
        watch.settle(scopes);
        drop(kernel);
        if !errors.is_empty() {
            return Err(errors);
        }
        self.known = Known::after(read, &ops);
        let host = want.spaces.get(&Space::Host);
        self.tunnel = host.and_then(|host| Some(host.tunnel.clone()?.1));
        Ok(())
    }

    /// What is set per daemon, with what the kernel can do.
    fn params(&self) -> Params {
        Params {
            prefix: self.config.prefix.clone(),
            gwbridge: self.config.gwbridge.clone(),
            gwbridge_subnet: self.config.gwbridge_subnet,
            ipvs: self.by_source,
            source_hash: self.source_hash,
            zones: self.zones,
            direct: self.direct,
            gwbridge_subnet6: self.ipv6.then_some(self.config.gwbridge_subnet6),
        }
    }

    /// Starts to listen in a namespace, if there are no ears in it yet.
    fn listen(
        &self,
        kernel: &mut Kernel<'_>,
        watch: &mut Held<'_>,
        space: &Space,
        inode: u64,
    ) -> Result<(), PlaneError> {
        if watch.is_listening(space, inode) {
            return Ok(());
        }
        let handle = kernel.handle(space)?;
        netns::visit(&handle.fd, &self.home, || watch.listen_here(space, inode))
            .and_then(|opened| opened)
            .map_err(|source| PlaneError::Observe {
                space: space.clone(),
                source,
            })
    }

    /// What in a namespace nobody else should touch.
    fn scope(
        &self,
        (view, me, _): Inputs<'_>,
        kernel: &Kernel<'_>,
        mut shapes: BTreeMap<String, Shape>,
        read: &BTreeMap<Space, (u64, ObservedSpace)>,
        space: &Space,
    ) -> Scope {
        let links: BTreeSet<String> = shapes.keys().cloned().collect();
        let mut watched = BTreeSet::new();
        if *space == Space::Host {
            let underlay = view.peers.get(me).map(|peer| peer.underlay);
            let host = read.get(&Space::Host).map(|(_, host)| host);
            if let Some(host) = host
                && let Some(name) = underlay.and_then(|at| underlay_link(host, at))
            {
                watched.insert(name.clone());
                let mtu = host.links.get(name).map(|link| link.mtu);
                shapes.insert(name.clone(), Shape { mac: None, mtu });
            }
        }
        let loopback = naming::loopback6_link(&self.config.prefix);
        let with_neighbours = [
            naming::VXLAN,
            naming::UPLINK,
            naming::LOOPBACK6,
            &self.config.gwbridge,
            &loopback,
        ];
        let (mut indices, mut neighbours) = (BTreeSet::new(), BTreeSet::new());
        let held = read.get(space).map(|(_, found)| &found.links);
        let held = held
            .into_iter()
            .flatten()
            .map(|(name, link)| (name, link.index));
        for (name, index) in held.chain(kernel.interfaces(space)) {
            if links.contains(name) || name == "lo" {
                indices.insert(index);
            }
            if with_neighbours.contains(&name.as_str()) {
                neighbours.insert(index);
            }
        }
        Scope {
            links,
            indices,
            neighbours,
            watched,
            shapes,
            protocol: OVERLAY_PROTOCOL,
            table: self.config.prefix.clone(),
        }
    }

    /// Reads the kernel back and computes the steps; what cannot be read is reported and left alone.
    fn plan(
        &self,
        (view, me, local): Inputs<'_>,
        mut watch: Option<&mut Held<'_>>,
        errors: &mut Vec<PlaneError>,
    ) -> Option<Planned<'_>> {
        let (containers, further) = by_namespace(local);
        let mut kernel = Kernel::new(
            &self.home,
            self.config.run_dir.join("netns"),
            containers.clone(),
        )
        .with(self.families);
        let mut read = BTreeMap::new();
        let spaces = std::iter::once(Space::Host)
            .chain(self.routers())
            .chain(containers.into_keys().map(Space::Container));
        let spaces: Vec<Space> = spaces.collect();
        if let Some(watch) = &mut watch {
            // Ears in a namespace keep it alive, also one whose handle somebody removed.
            watch.keep_only(|space| spaces.contains(space));
        }
        for space in spaces {
            if let Some(watch) = &mut watch
                && !matches!(space, Space::Container(_))
                && let Ok(inode) = kernel.inode(&space)
            {
                errors.extend(self.listen(&mut kernel, watch, &space, inode).err());
            }
            match self.read_links(&mut kernel, &space) {
                Ok(found) => drop(read.insert(space, found)),
                Err(error) => errors.push(error),
            }
        }
        let facts = Facts {
            further,
            ..self.facts(view, me, &read)
        };
        let want = desired(view, me, &facts, &self.params())
            .map_err(|error| errors.push(error.into()))
            .ok()?;
        errors.extend(self.not_to_be_encrypted(view, me));
        for (space, (inode, found)) in &mut read {
            if let Err(source) = self.read_rest(&mut kernel, &want, space, *inode, found) {
                errors.push(PlaneError::Observe {
                    space: space.clone(),
                    source,
                });
            }
        }
        let mut have = Observed {
            spaces: read
                .iter()
                .map(|(space, (_, found))| (space.clone(), found.clone()))
                .collect(),
        };
        self.only_ours(&mut have);
        let ops = diff(&want, &have);
        Some(Planned {
            kernel,
            read,
            have,
            ops,
            want,
        })
    }

    fn routers(&self) -> Vec<Space> {
        let entries = fs::read_dir(self.config.run_dir.join("netns"))
            .into_iter()
            .flatten()
            .flatten();
        // A handle without a namespace is what a reboot or an interrupted attempt left: as if it were not there.
        let live = entries.filter(|entry| is_namespace(&entry.path()));
        live.filter_map(|entry| {
            naming::network_of_handle(entry.file_name().to_str()?).map(Space::Router)
        })
        .collect()
    }

    fn read_links(
        &self,
        kernel: &mut Kernel<'_>,
        space: &Space,
    ) -> Result<(u64, ObservedSpace), PlaneError> {
        let inode = kernel.inode(space)?;
        if let Some(known) = self
            .known
            .get(space, inode)
            .filter(|known| known.links_current)
        {
            return Ok((inode, known.found.clone()));
        }
        let found = observe::space(kernel.handle(space)?, OVERLAY_PROTOCOL).map_err(|source| {
            PlaneError::Observe {
                space: space.clone(),
                source,
            }
        })?;
        Ok((inode, found))
    }

    fn read_rest(
        &self,
        kernel: &mut Kernel<'_>,
        want: &KernelState,
        space: &Space,
        inode: u64,
        found: &mut ObservedSpace,
    ) -> io::Result<()> {
        let known = self.known.get(space, inode);
        found.objects.settings = known
            .map(|known| known.found.objects.settings.clone())
            .unwrap_or_default();
        let wanted = want
            .spaces
            .get(space)
            .map(|wanted| wanted.objects.settings.keys());
        let unread: Vec<&String> = wanted
            .into_iter()
            .flatten()
            .filter(|path| !found.objects.settings.contains_key(*path))
            .collect();
        if !unread.is_empty() {
            let handle = kernel.handle(space)?;
            let settings = netns::visit(&handle.fd, &self.home, || {
                observe::settings(unread.into_iter())
            })?;
            found.objects.settings.extend(settings);
        }
        if matches!(space, Space::Container(_)) {
            return Ok(());
        }
        if *space == Space::Host {
            found.tunnel = self.read_tunnel(kernel, found)?;
        }
        found.tables.clear();
        if let Some(known) = known {
            found.tables = known.found.tables.clone();
            found.ipvs = known.found.ipvs.clone();
            found.ipvs_idle_s = known.found.ipvs_idle_s;
            return Ok(());
        }
        found.ipvs.clear();
        if matches!(space, Space::Router(_))
            && let Some((socket, family)) = kernel.ipvs(space)?
        {
            found.ipvs = observe::ipvs(socket, family)?;
            found.ipvs_idle_s = observe::ipvs_idle(socket, family)?;
        }
        let families = Family::ALL
            .into_iter()
            .filter(|family| *family == Family::V4 || self.ipv6);
        for family in families {
            let name = &self.config.prefix;
            let of_router = matches!(space, Space::Router(_));
            let entry = of_router.then(|| naming::entry_table(name, family));
            for name in std::iter::once(name.clone()).chain(entry) {
                if let Some(table) = observe::table(kernel.handle(space)?, family, &name)? {
                    found.tables.insert((family, name), table);
                }
            }
        }
        Ok(())
    }
}

/// Namespaces by the first of their tasks, and that task for each of the others.
fn by_namespace(local: &LocalNamespaces) -> (BTreeMap<String, PathBuf>, BTreeMap<TaskId, TaskId>) {
    let mut first: BTreeMap<&PathBuf, &TaskId> = BTreeMap::new();
    let mut further = BTreeMap::new();
    for (task, path) in local {
        let leader = *first.entry(path).or_insert(task);
        if leader != task {
            further.insert(task.clone(), leader.clone());
        }
    }
    let containers = first
        .into_iter()
        .map(|(path, task)| (task.to_string(), path.clone()));
    (containers.collect(), further)
}

fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type().0 == NSFS_MAGIC)
}
