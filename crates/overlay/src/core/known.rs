//! What was read and done before, so that it need not be read again.

use std::collections::BTreeMap;

use super::{
    diff::{Change, NetOp, forget_objects},
    observed::ObservedSpace,
    state::{LinkKind, Space},
};

/// What need not be read back, because nothing but our own steps has touched it as far as we know.
///
/// Reading everything takes time in proportion to all that stands; an attachment should only cost what it changes. A
/// failing step or a repeated call shows that somebody else was at work, and then everything is read.
#[derive(Debug, Default)]
pub struct Known {
    spaces: BTreeMap<Space, KnownSpace>,
}

/// One namespace as it was, or is.
#[derive(Debug)]
pub struct KnownSpace {
    inode: u64,
    /// What was found.
    pub found: ObservedSpace,
    /// Whether its interfaces, addresses and routes are still those; settings are always kept up to date.
    pub links_current: bool,
    /// Whether its tables are still those.
    pub tables_current: bool,
}

impl Known {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// Somebody else was at work in this namespace.
    pub fn forget(&mut self, space: &Space) {
        self.spaces.remove(space);
    }

    /// What is known of a namespace, if the file of this inode is still the one that was read.
    pub fn get(&self, space: &Space, inode: u64) -> Option<&KnownSpace> {
        self.spaces.get(space).filter(|known| known.inode == inode)
    }

    /// What is known once namespaces were read and then changed by these steps.
    pub fn after(read: BTreeMap<Space, (u64, ObservedSpace)>, ops: &[NetOp]) -> Self {
        let current = |(inode, found)| KnownSpace {
            inode,
            found,
            links_current: true,
            tables_current: true,
        };
        let mut known = Self {
            spaces: read
                .into_iter()
                .map(|(space, read)| (space, current(read)))
                .collect(),
        };
        known.note(ops);
        known
    }

    /// What our own steps have made out of date.
    fn note(&mut self, ops: &[NetOp]) {
        for NetOp { space, change } in ops {
            match change {
                Change::RemoveSpace => drop(self.spaces.remove(space)),
                // Which container had the other end is not said.
                Change::DeleteLink(name) => {
                    self.forget_link(space, name);
                    let containers = self
                        .spaces
                        .iter_mut()
                        .filter(|(space, _)| matches!(space, Space::Container(_)));
                    containers.for_each(|(_, known)| known.links_current = false);
                }
                Change::CreateLink(name, link) => {
                    self.forget_link(space, name);
                    if let LinkKind::Veth { peer } = &link.kind {
                        self.forget_link(&peer.space, &peer.name);
                    }
                }
                Change::Set(path, value) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        known
                            .found
                            .objects
                            .settings
                            .insert(path.clone(), value.clone());
                    }
                }
                Change::ReplaceTable(_)
                | Change::RemoveTable(..)
                | Change::EditElements { .. }
                | Change::Ipvs(_) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        known.tables_current = false;
                    }
                }
                Change::CreateSpace
                | Change::UpdateLink(..)
                | Change::Address(..)
                | Change::Neighbour(..)
                | Change::Fdb(..)
                | Change::Route(..)
                | Change::Rule(..) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        known.links_current = false;
                    }
                }
            }
        }
    }

    fn forget_link(&mut self, space: &Space, name: &str) {
        if let Some(known) = self.spaces.get_mut(space) {
            known.links_current = false;
            forget_objects(&mut known.found.objects, name);
        }
    }
}
