//! Steps that follow from what changed in the view, without a look at everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Inputs, Kernel, Worker, by_namespace};
use crate::core::{
    delta::{Delta, Steps, delta},
    known::Known,
    state::Space,
};

impl Worker {
    /// How the inputs differ from those that are in force; `None` before the first that came into force.
    ///
    /// With other containers everything is to be computed.
    pub(super) fn since_asked(&self, (view, me, local): Inputs<'_>) -> Option<Delta> {
        let (asked, by, containers) = self.asked.as_ref()?;
        if by != me || containers != local {
            return Some(Delta::Everything);
        }
        Some(match delta(asked, view, me, &self.params()) {
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
        for space in spaces {
            let inode = kernel.inode(space).ok();
            let known = inode.and_then(|inode| self.known.get(space, inode));
            let Some(known) = known.filter(|known| known.links_current) else {
                return false;
            };
            let links = known.found.links.iter();
            let links = links.map(|(name, link)| (name.clone(), link.index));
            indices.insert(space.clone(), links.collect());
        }
        if is_disturbed {
            return false;
        }
        for op in &steps.ops {
            tracing::debug!(view.version = view.version, step = %op, "network step");
        }
        let mut failed = !kernel.execute_at(&steps.ops, indices).is_empty();
        for (space, gone) in &steps.gone {
            failed |= kernel.end_flows(space, gone).is_err();
        }
        watch.settle(BTreeMap::new());
        if failed {
            // Somebody else was at work; the look at everything says what is wrong.
            self.known = Known::default();
            return false;
        }
        self.known.note(&steps.ops);
        let asked = (Arc::clone(view), me.clone(), local.clone());
        let before = self.asked.replace(asked);
        // A view of a large cluster takes a while to be given back, which nobody waits for; without a thread for it, here.
        let aside = std::thread::Builder::new().name("network-view".to_owned());
        drop(aside.spawn(move || drop(before)));
        true
    }
}
