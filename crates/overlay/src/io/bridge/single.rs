//! What concerns one container alone, done without looking at all others.
//!
//! As long as nobody else has been at work, a container that comes costs what it changes, however many are there: its
//! namespace and its own interfaces are read, and nothing more. Whatever goes wrong on this short way is done again on
//! the long one, which reads everything.
//!
//! A container that goes leaves its interface behind for a moment: to take one away costs the kernel a grace period or
//! more with its network lock held, and ten at once cost hardly more than one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use super::{Attachment, BridgeError, BridgeView, Worker};
use crate::{
    core::{
        bridge::{self, port_name},
        diff::{NetOp, diff},
        notice::{Scope, Shape},
        observed::{ContainerFacts, Observed, ObservedSpace},
        rtnl_wire,
        state::{BRIDGE_PROTOCOL, Objects, Space},
    },
    io::{error::PlaneError, kernel::Kernel, observe},
};

/// Group of the interfaces that go together.
const LEAVING_GROUP: u32 = 0x5ba1_1ea0;

/// What becomes of a port is nobody's concern any more.
fn disown(ours: &mut Scope, indices: &mut BTreeMap<String, u32>, port: &str) {
    ours.links.remove(port);
    ours.shapes.remove(port);
    if let Some(index) = indices.remove(port) {
        ours.indices.remove(&index);
    }
}

impl Worker {
    /// Connects a container to what `attachments` says, and to nothing else.
    pub(super) fn place(
        &mut self,
        container: &str,
        netns: PathBuf,
        attachments: Vec<Attachment>,
    ) -> Result<(), BridgeError> {
        let ports = attachments.iter().map(|at| at.network.clone());
        let ports: Vec<String> = ports
            .map(|network| port_name(&self.prefix, container, &network))
            .collect();
        // It comes back before its last interface has gone.
        if ports.iter().any(|port| self.leaving.contains(port)) {
            // What that fails to remove, the long way removes.
            let _ = self.sweep();
        }
        if self.is_sound() {
            let before = self.view.attachments.get(container).cloned();
            let after = attachments.clone();
            match self.bring_one(container, &netns, before.as_deref(), &after) {
                Ok(()) => {
                    self.view.attachments.insert(container.to_owned(), after);
                    return Ok(());
                }
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "not the short way"
                    );
                    self.sound = false;
                }
            }
        }
        let container = container.to_owned();
        self.change(Some((&container, netns)), |view| {
            drop(view.attachments.insert(container.clone(), attachments))
        })
    }

    /// Forgets a container's attachments; its interfaces stay until [`Self::sweep`].
    pub(super) fn leave(&mut self, container: &str) {
        self.places.remove(container);
        let Some(attachments) = self.view.attachments.remove(container) else {
            return;
        };
        let networks = attachments.iter().map(|at| &at.network);
        let ports: Vec<String> = networks
            .map(|network| port_name(&self.prefix, container, network))
            .collect();
        // They may go with their namespace at any time, which is nobody's deed.
        let watch = self.watch.shared();
        watch.hold().amend(&Space::Host, |ours| {
            for port in &ports {
                disown(ours, &mut self.indices, port);
            }
        });
        self.leaving.extend(ports);
    }

    /// Removes the interfaces of all that have left, at once.
    pub(super) fn sweep(&mut self) -> Result<(), BridgeError> {
        let ports = std::mem::take(&mut self.leaving);
        if ports.is_empty() {
            return Ok(());
        }
        let swept = self.remove_ports(&ports);
        if swept.is_err() {
            // What is still there is found when everything is read.
            self.sound = false;
        }
        swept.map_err(|error| BridgeError::Kernel(vec![error]))
    }

    fn remove_ports(&self, ports: &BTreeSet<String>) -> Result<(), PlaneError> {
        let observed = |source| PlaneError::Observe {
            space: Space::Host,
            source,
        };
        let mut kernel = Kernel::new(&self.home, PathBuf::new(), BTreeMap::new());
        let watch = self.watch.shared();
        let mut watch = watch.hold();
        let handle = kernel.handle(&Space::Host)?;
        let mut there = Vec::new();
        for port in ports {
            if let Some((_, link)) = observe::link(handle, port).map_err(observed)? {
                there.push(link.index);
            }
        }
        let route = &mut handle.route;
        let gone = match there[..] {
            [] => Ok(()),
            [one] => route.request(rtnl_wire::delete_link(one)),
            _ => {
                let grouped = there
                    .iter()
                    .map(|index| rtnl_wire::join_group(*index, LEAVING_GROUP));
                // One that went meanwhile cannot be grouped and need not be.
                route.requests(grouped.collect());
                route.request(rtnl_wire::delete_group(LEAVING_GROUP))
            }
        };
        watch.settle_steps();
        match gone {
            // All went with their namespaces meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            gone => gone.map_err(observed),
        }
    }

    /// Whether the host's namespace is as it was left.
    fn is_sound(&self) -> bool {
        let watch = self.watch.shared();
        self.sound && !watch.hold().is_disturbed(&Space::Host)
    }

    fn bring_one(
        &mut self,
        container: &str,
        netns: &Path,
        before: Option<&[Attachment]>,
        after: &[Attachment],
    ) -> Result<(), PlaneError> {
        let space = Space::Container(container.to_owned());
        let containers = [(container.to_owned(), netns.to_owned())].into();
        let mut kernel = Kernel::new(&self.home, PathBuf::new(), containers);
        let watch = self.watch.shared();
        let mut watch = watch.hold();
        let (have, ops) = self.plan_one(&mut kernel, &space, before.unwrap_or_default(), after)?;
        for op in &ops {
            tracing::debug!(step = %op, "bridge step");
        }
        let failed = kernel.execute(&ops, &have).into_iter().next();
        let port = |at: &Attachment| port_name(&self.prefix, container, &at.network);
        let found: BTreeMap<String, u32> = kernel
            .interfaces(&Space::Host)
            .map(|(name, index)| (name.clone(), index))
            .collect();
        watch.amend(&Space::Host, |ours| {
            for at in before.unwrap_or_default() {
                disown(ours, &mut self.indices, &port(at));
            }
            for at in after {
                let port = port(at);
                if let Some(index) = found.get(&port) {
                    ours.indices.insert(*index);
                    self.indices.insert(port.clone(), *index);
                }
                let spec = self.view.networks.get(&at.network);
                let mtu = spec.and_then(|spec| spec.mtu);
                ours.shapes.insert(port.clone(), Shape { mac: None, mtu });
                ours.links.insert(port);
            }
        });
        watch.settle_steps();
        failed.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// The steps for one container, by its namespace, its ports and their bridges.
    fn plan_one(
        &self,
        kernel: &mut Kernel<'_>,
        space: &Space,
        before: &[Attachment],
        after: &[Attachment],
    ) -> Result<(Observed, Vec<NetOp>), PlaneError> {
        let Space::Container(container) = space else {
            return Ok(Default::default());
        };
        let observed = |space: &Space| {
            let space = space.clone();
            |source| PlaneError::Observe { space, source }
        };
        let inside = observe::space(kernel.handle(space)?, BRIDGE_PROTOCOL);
        let inside = inside.map_err(observed(space))?;
        let networks: BTreeSet<&String> =
            before.iter().chain(after).map(|at| &at.network).collect();
        let mut host = ObservedSpace::default();
        let handle = kernel.handle(&Space::Host)?;
        for network in &networks {
            let bridge = self.view.networks.get(*network);
            let names = bridge.map(|spec| spec.ifname.clone()).into_iter();
            for name in names.chain([port_name(&self.prefix, container, network)]) {
                let found = observe::link(handle, &name).map_err(observed(&Space::Host))?;
                host.links.extend(found);
            }
        }
        let specs = networks
            .iter()
            .filter_map(|id| Some(((*id).clone(), self.view.networks.get(*id)?.clone())));
        let part = BridgeView {
            networks: specs.collect(),
            attachments: [(container.clone(), after.to_vec())].into(),
            published: BTreeMap::new(),
        };
        let facts = [(container.clone(), ContainerFacts::from(&inside))].into();
        let mut want = bridge::desired(&part, &facts, &self.prefix);
        if let Some(host) = want.spaces.get_mut(&Space::Host) {
            // What the networks themselves need stands.
            host.objects = Objects::default();
            host.tables.clear();
        }
        let have = Observed {
            spaces: [(Space::Host, host), (space.clone(), inside)].into(),
        };
        let ops = diff(&want, &have);
        Ok((have, ops))
    }
}
