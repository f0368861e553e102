//! The network plane of a node: brings the kernel to what the view says, again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use shoal_api::{
    NodeId,
    network::{LocalNamespaces, NetworkView},
};

use super::{
    actor::{Actor, Stopped},
    kernel::{Failure, Kernel},
    netns::{self, NetnsError},
    observe,
    socket::{Kind, Socket},
};
use crate::core::{
    desired::{DesiredError, Params, desired},
    diff::{NetOp, diff},
    known::Known,
    lb, naming,
    nft::Table,
    nft_wire,
    observed::{ContainerFacts, Facts, Observed, ObservedSpace},
    rtnl_wire::{self, LinkPlaces},
    state::{Family, KernelState, Link, LinkKind, OVERLAY_PROTOCOL, Space},
};

/// MTU taken for an underlay whose interface is not on this host (an address behind NAT), in bytes.
const UNDERLAY_MTU_DEFAULT: u32 = 1500;

/// What is set per daemon.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    /// Handles of router namespaces live in `<run_dir>/netns`.
    pub run_dir: PathBuf,
    /// Start of the names of our interfaces and tables, one to six characters.
    pub prefix: String,
    /// Name of the bridge that joins the routers with the host.
    pub gwbridge: String,
    /// Its subnet; the first address is the host's.
    pub gwbridge_subnet: Ipv4Net,
    /// The host's network namespace; `None` for that of the caller of [`Plane::open`].
    pub host_netns: Option<PathBuf>,
    /// MTU of the underlay in bytes; `None` to ask the interface that has the underlay address.
    pub underlay_mtu: Option<u32>,
}

impl PlaneConfig {
    /// Docker's customary names and ranges, with handles below `run_dir`.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            prefix: "shoal".to_owned(),
            gwbridge: "shoal_gwbridge".to_owned(),
            gwbridge_subnet: Ipv4Net::new_assert([172, 18, 0, 0].into(), 16),
            host_netns: None,
            underlay_mtu: None,
        }
    }
}

/// What would not converge.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// A name in the configuration that the kernel cannot take.
    #[error("invalid {what} {value:?} for the network plane")]
    Config {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel lacks something that overlay networks need.
    #[error("this kernel lacks {feature}, which overlay networks need")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
        /// What it said when asked.
        source: io::Error,
    },
    /// A namespace could not be opened.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A namespace could not be read.
    #[error("cannot read back the {space}")]
    Observe {
        /// Which.
        space: Space,
        /// What the kernel said.
        source: io::Error,
    },
    /// The view makes no sense for this node.
    #[error(transparent)]
    Desired(#[from] DesiredError),
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Step {
        /// What was attempted, and where.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The plane's thread could not be started.
    #[error("cannot start the network plane")]
    Start(#[from] io::Error),
    /// The plane's thread has ended.
    #[error("the network plane has stopped")]
    Stopped,
}

impl From<Failure> for PlaneError {
    fn from(failure: Failure) -> Self {
        Self::Step {
            step: failure.step,
            source: failure.source,
        }
    }
}

/// The network plane of this node. All its work is done by one thread of its own, one call after another.
#[derive(Debug, Clone)]
pub struct Plane {
    actor: Actor<Worker>,
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
        let worker = Worker {
            config,
            home,
            asked: None,
            known: Known::default(),
        };
        let actor = Actor::start("network-plane", worker, |worker: &mut Worker| {
            worker.enter()
        })?;
        Ok(Self { actor })
    }

    /// Brings the kernel to what the view says for node `me` with these containers.
    ///
    /// What already stands is left alone, so calling it twice changes nothing. A second call with equal arguments reads
    /// everything back, and makes again what somebody removed; others trust what the call before saw and did.
    /// Attaches a container whose namespace is in `local` and whose task has endpoints in the view; detaches it when
    /// it is in neither. Returns everything that would not converge; all the rest has been done.
    pub async fn converge(
        &self,
        view: &NetworkView,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<(), Vec<PlaneError>> {
        let (view, me, local) = (view.clone(), me.clone(), local.clone());
        self.actor
            .run(move |worker| worker.converge((&view, &me, &local)))
            .await
            .unwrap_or_else(|Stopped| Err(vec![PlaneError::Stopped]))
    }

    /// The steps that [`Self::converge`] would take now, without taking them.
    pub async fn plan(
        &self,
        view: &NetworkView,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<Vec<NetOp>, Vec<PlaneError>> {
        let (view, me, local) = (view.clone(), me.clone(), local.clone());
        let work = move |worker: &mut Worker| {
            let mut errors = Vec::new();
            worker.known = Known::default();
            let planned = worker
                .plan((&view, &me, &local), &mut errors)
                .map(|planned| planned.ops);
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
        self.converge(&NetworkView::default(), &nobody, &LocalNamespaces::new())
            .await
    }
}

#[derive(Debug)]
struct Worker {
    config: PlaneConfig,
    home: OwnedFd,
    /// Arguments of the last call that succeeded.
    asked: Option<(NetworkView, NodeId, LocalNamespaces)>,
    known: Known,
}

type Inputs<'a> = (&'a NetworkView, &'a NodeId, &'a LocalNamespaces);

struct Planned<'a> {
    kernel: Kernel<'a>,
    /// As it was read, with what others have.
    read: BTreeMap<Space, (u64, ObservedSpace)>,
    have: Observed,
    ops: Vec<NetOp>,
    /// Backends that each router no longer leads to.
    gone: Vec<(Space, BTreeSet<Ipv4Addr>)>,
}

impl Worker {
    /// Moves the thread into the host's namespace, and checks the kernel in a throw-away one.
    fn enter(&self) -> Result<(), PlaneError> {
        let step = |step: &str| {
            let step = step.to_owned();
            move |source| PlaneError::Step { step, source }
        };
        netns::visit(&self.home, &self.home, || ())
            .map_err(step("enter the host's network namespace"))?;
        netns::visit_fresh(&self.home, probe).map_err(step("create a network namespace"))?
    }

    fn converge(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        let (view, me, local) = inputs;
        let asked = self.asked.as_ref();
        let repeated = asked.is_none_or(|(v, m, l)| (v, m, l) == inputs);
        if repeated {
            self.known = Known::default();
        }
        let mut outcome = self.attempt(inputs);
        if outcome.is_err() && !std::mem::take(&mut self.known).is_empty() {
            outcome = self.attempt(inputs);
        }
        self.asked = outcome
            .is_ok()
            .then(|| (view.clone(), me.clone(), local.clone()));
        outcome
    }

    fn attempt(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        let mut errors = Vec::new();
        let Some(Planned {
            mut kernel,
            read,
            have,
            ops,
            gone,
        }) = self.plan(inputs, &mut errors)
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
        for (space, gone) in &gone {
            errors.extend(
                kernel
                    .end_flows(space, gone)
                    .map_err(PlaneError::from)
                    .err(),
            );
        }
        drop(kernel);
        if !errors.is_empty() {
            return Err(errors);
        }
        self.known = Known::after(read, &ops);
        Ok(())
    }

    /// Reads the kernel back and computes the steps; what cannot be read is reported and left alone.
    fn plan(
        &self,
        (view, me, local): Inputs<'_>,
        errors: &mut Vec<PlaneError>,
    ) -> Option<Planned<'_>> {
        let containers = local
            .iter()
            .map(|(task, path)| (task.to_string(), path.clone()))
            .collect();
        let mut kernel = Kernel::new(&self.home, self.config.run_dir.join("netns"), containers);
        let mut read = BTreeMap::new();
        let spaces = std::iter::once(Space::Host)
            .chain(self.routers())
            .chain(local.keys().map(|task| Space::Container(task.to_string())));
        for space in spaces {
            match self.read_links(&mut kernel, &space) {
                Ok(found) => drop(read.insert(space, found)),
                Err(error) => errors.push(error),
            }
        }
        let facts = self.facts(view, me, &read);
        let params = Params {
            prefix: self.config.prefix.clone(),
            gwbridge: self.config.gwbridge.clone(),
            gwbridge_subnet: self.config.gwbridge_subnet,
        };
        let want = desired(view, me, &facts, &params)
            .map_err(|error| errors.push(error.into()))
            .ok()?;
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
        let gone = want
            .spaces
            .iter()
            .filter_map(|(space, wanted)| {
                Some((space, wanted.tables.values(), have.spaces.get(space)?))
            })
            .map(|(space, wanted, found)| {
                let stay: BTreeSet<_> = wanted
                    .flat_map(|table| lb::backends(&table.elements))
                    .collect();
                let mut gone: BTreeSet<_> = found
                    .tables
                    .values()
                    .flat_map(|held| lb::backends(&held.elements))
                    .collect();
                gone.retain(|backend| !stay.contains(backend));
                (space.clone(), gone)
            })
            .filter(|(_, gone)| !gone.is_empty())
            .collect();
        Some(Planned {
            kernel,
            read,
            have,
            ops,
            gone,
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
        let inode = match kernel.path(space) {
            Some(path) => fs::metadata(&path)
                .map_err(|source| NetnsError {
                    action: "open",
                    path,
                    source,
                })?
                .ino(),
            None => 0,
        };
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
        found.tables.clear();
        if let Some(known) = known.filter(|known| known.tables_current) {
            found.tables = known.found.tables.clone();
        } else if let Some(table) =
            observe::table(kernel.handle(space)?, Family::V4, &self.config.prefix)?
        {
            found
                .tables
                .insert((Family::V4, self.config.prefix.clone()), table);
        }
        Ok(())
    }

    fn facts(
        &self,
        view: &NetworkView,
        me: &NodeId,
        read: &BTreeMap<Space, (u64, ObservedSpace)>,
    ) -> Facts {
        let underlay = view.peers.get(me).map(|peer| peer.underlay);
        let measured = read.get(&Space::Host).and_then(|(_, host)| {
            let (name, _) = host
                .objects
                .addresses
                .iter()
                .find(|(_, net)| Some(net.addr()) == underlay)?;
            Some(host.links.get(name)?.mtu)
        });
        let containers = read.iter().filter_map(|(space, (_, found))| match space {
            Space::Container(id) => Some((id.clone(), ContainerFacts::from(found))),
            Space::Host | Space::Router(_) => None,
        });
        Facts {
            underlay_mtu: self
                .config
                .underlay_mtu
                .or(measured)
                .unwrap_or(UNDERLAY_MTU_DEFAULT),
            containers: containers.collect(),
        }
    }

    /// Forgets what others have in the host's namespace.
    fn only_ours(&self, have: &mut Observed) {
        let Some(host) = have.spaces.get_mut(&Space::Host) else {
            return;
        };
        let (bridge, port) = (&self.config.gwbridge, format!("{}u", self.config.prefix));
        let is_port = |name: &String| name.strip_prefix(&port).is_some_and(|rest| rest.len() == 8);
        host.links.retain(|name, _| name == bridge || is_port(name));
        host.objects.addresses.retain(|(name, _)| name == bridge);
        host.objects.routes.clear();
        host.objects.rules.clear();
        host.objects.neighbours.clear();
        host.objects.fdb.clear();
    }
}

fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type().0 == NSFS_MAGIC)
}

/// Asks the kernel for a VXLAN device, a veth pair and a table, in the namespace of the calling thread.
fn probe() -> Result<(), PlaneError> {
    let lacks = |feature| {
        move |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOENT,
            ) => PlaneError::Unsupported { feature, source },
            _ => PlaneError::Step {
                step: format!("ask the kernel for {feature}"),
                source,
            },
        }
    };
    let mut route = Socket::open(Kind::Route).map_err(lacks("rtnetlink"))?;
    let mut make = |name: &str, kind| {
        let link = Link {
            kind,
            mac: None,
            mtu: None,
            master: None,
            isolated: false,
            hairpin: false,
        };
        route.request(rtnl_wire::create_link(name, &link, LinkPlaces::default()))
    };
    make("bridge", LinkKind::Bridge).map_err(lacks("bridges (CONFIG_BRIDGE)"))?;
    let local = Ipv4Addr::LOCALHOST.into();
    make(
        "vxlan",
        LinkKind::Vxlan {
            vni: 1,
            port: 4789,
            local,
        },
    )
    .map_err(lacks("VXLAN (CONFIG_VXLAN)"))?;
    let peer = crate::core::state::VethPeer {
        space: Space::Host,
        name: "far".to_owned(),
        mac: naming::Mac([2, 0, 0, 0, 0, 1]),
        mtu: None,
    };
    make("near", LinkKind::Veth { peer }).map_err(lacks("veth pairs (CONFIG_VETH)"))?;
    let mut netfilter =
        Socket::open(Kind::Netfilter).map_err(lacks("nftables (CONFIG_NF_TABLES)"))?;
    netfilter
        .transaction(nft_wire::replace(&Table::new("probe")))
        .map_err(lacks("nftables for IPv4 (CONFIG_NF_TABLES_IPV4)"))?;
    let rules = crate::core::ruleset::everything("probe");
    netfilter
        .transaction(nft_wire::replace(&rules))
        .map_err(lacks(
            "nftables expressions (CONFIG_NFT_NAT, _MASQ, _FIB_IPV4, _NUMGEN, _CT)",
        ))
}
