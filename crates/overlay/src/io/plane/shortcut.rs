//! Steps that follow from what changed in the view, without a look at everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{NodeId, network::NetworkView};

use super::{Inputs, Kernel, Worker, by_namespace};
use crate::core::{
    delta::{Delta, Index, Steps, delta},
    desired::ingress_uplink,
    known::Known,
    state::Space,
};

/// Namespaces that are held open at most.
const OPEN_MAX: usize = 8;

impl Worker {
    /// Holds the published ports of a view.
    pub(super) fn hold_ports(&mut self, view: &NetworkView, me: &NodeId) {
        let has_key = self.own_keys().is_some();
        let uplink = ingress_uplink(view, me, has_key, &self.params());
        let (ports, home) = (&mut self.ports, &self.home);
        ports.hold(view, me, uplink, home, self.ipv6);
    }

    /// How the inputs differ from those that are in force; `None` before the first that came into force.
    ///
    /// With other containers everything is to be computed.
    pub(super) fn since_asked(&mut self, (view, me, local): Inputs<'_>) -> Option<Delta> {
        let params = self.params();
        let (asked, by, containers) = self.asked.as_ref()?;
        if by != me || containers != local {
            return Some(Delta::Everything);
        }
        let index = self.index.get_or_insert_with(|| Index::of(asked));
        Some(match delta(asked, view, me, &params, index) {
            // Nothing to do; only a repeated call asks for a look at the kernel.
            Delta::Same if asked.version != view.version => Delta::Steps(Steps::default()),
            delta => delta,
        })
    }

    /// Takes the steps to these inputs, where the kernel is known to hold all the rest. Returns whether they are in
    /// force; if not, everything must be looked at.
    pub(super) fn take(&mut self, (view, me, local): Inputs<'_>, steps: &Steps) -> bool {
        let watch = self.watch.shared();
        let mut watch = watch.hold();
        let disturbed = watch.take_disturbed();
        let is_disturbed = !disturbed.is_empty();
        for space in disturbed {
            self.known.forget(&space);
        }
        let (containers, _) = by_namespace(local);
        let directory = self.config.run_dir.join("netns");
        let mut kernel = Kernel::new(&self.home, directory, containers).with(self.families);
        let spaces: BTreeSet<&Space> = steps.ops.iter().map(|op| &op.space).collect();
        let mut indices = BTreeMap::new();
        let mut inodes = BTreeMap::new();
        if self.open.len() > OPEN_MAX {
            self.open.clear();
        }
        let mut handles = BTreeMap::new();
        for space in spaces {
            let inode = kernel.inode(space).ok();
            let known = inode.and_then(|inode| self.known.get(space, inode));
            let Some(known) = known.filter(|known| known.links_current) else {
                return false;
            };
            let links = known.found.links.iter();
            let links = links.map(|(name, link)| (name.clone(), link.index));
            indices.insert(space.clone(), links.collect());
            let inode = inode.unwrap_or_default();
            inodes.insert(space.clone(), inode);
            if let Some((of, handle)) = self.open.remove(space)
                && of == inode
            {
                handles.insert(space.clone(), handle);
            }
        }
        if is_disturbed {
            return false;
        }
        kernel = kernel.with_handles(handles);
        for op in &steps.ops {
            tracing::debug!(view.version = view.version, step = %op, "network step");
        }
        let mut failed = !kernel.execute_at(&steps.ops, indices).is_empty();
        failed |= !kernel.end_flows(&steps.endings).is_empty();
        watch.settle_steps();
        for (space, handle) in kernel.into_handles() {
            let inode = inodes.get(&space).copied().unwrap_or_default();
            self.open.insert(space, (inode, handle));
        }
        if failed {
            // Somebody else was at work; the look at everything says what is wrong.
            self.known = Known::default();
            return false;
        }
        self.known.note(&steps.ops);
        if self.ports.follows_tasks() {
            self.hold_ports(view, me);
        }
        if let Some(index) = &mut self.index {
            index.follow(&steps.moved);
        }
        self.asked = Some((Arc::clone(view), me.clone(), local.clone()));
        true
    }
}
