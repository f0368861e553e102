//! What was read and done before, so that it need not be read again.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    diff::{Change, IpvsStep, NetOp, forget_objects},
    ipvs_wire::{Edit, Service},
    observed::{ObservedSpace, ObservedTable},
    rtnl_wire::Verb,
    state::{LinkKind, Objects, Space},
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
    /// Whether its interfaces, addresses and routes are still those; all the rest is always kept up to date.
    pub links_current: bool,
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

    /// What our own steps have changed, or made out of date.
    pub fn note(&mut self, ops: &[NetOp]) {
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
                Change::ReplaceTable(table) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        let made = ObservedTable {
                            outline: table.outline(),
                            elements: table.elements.clone(),
                        };
                        let key = (table.family, table.name.clone());
                        known.found.tables.insert(key, Arc::new(made));
                    }
                }
                Change::RemoveTable(family, name) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        known.found.tables.remove(&(*family, name.clone()));
                    }
                }
                Change::EditElements {
                    family,
                    table,
                    remove,
                    add,
                } => {
                    if let Some(known) = self.spaces.get_mut(space)
                        && let Some(found) = known.found.tables.get_mut(&(*family, table.clone()))
                    {
                        let found = Arc::make_mut(found);
                        for edit in remove {
                            if let Some(set) = found.elements.get_mut(&edit.set) {
                                set.remove(&edit.key);
                            }
                        }
                        for edit in add {
                            let set = found.elements.entry(edit.set.clone()).or_default();
                            set.insert(edit.key.clone(), edit.element.clone());
                        }
                    }
                }
                Change::Ipvs(step) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        note_ipvs(&mut known.found, step);
                    }
                }
                // It is read every time.
                Change::Tunnel(..) => {}
                Change::CreateSpace => self.forget_links(space),
                Change::UpdateLink(_, link) => {
                    self.forget_links(space);
                    if let LinkKind::Veth { peer } = &link.kind {
                        self.forget_links(&peer.space);
                    }
                }
                Change::Address(..)
                | Change::Neighbour(..)
                | Change::Fdb(..)
                | Change::Route(..)
                | Change::Rule(..) => {
                    if let Some(known) = self.spaces.get_mut(space) {
                        note_entry(&mut known.found.objects, change);
                    }
                }
            }
        }
    }

    fn forget_links(&mut self, space: &Space) {
        if let Some(known) = self.spaces.get_mut(space) {
            known.links_current = false;
        }
    }

    fn forget_link(&mut self, space: &Space, name: &str) {
        if let Some(known) = self.spaces.get_mut(space) {
            known.links_current = false;
            forget_objects(&mut known.found.objects, name);
        }
    }
}

/// Notes what a step did to IPVS.
fn note_ipvs(found: &mut ObservedSpace, step: &IpvsStep) {
    let services = &mut found.ipvs;
    match step {
        IpvsStep::Idle(seconds) => found.ipvs_idle_s = Some(*seconds),
        IpvsStep::New(key, scheduler) => {
            let service = Service {
                scheduler: scheduler.clone(),
                destinations: BTreeMap::new(),
            };
            services.insert(*key, service);
        }
        IpvsStep::Set(key, scheduler) => {
            if let Some(service) = services.get_mut(key) {
                service.scheduler.clone_from(scheduler);
            }
        }
        IpvsStep::Delete(key) => drop(services.remove(key)),
        IpvsStep::Destination(key, edit, at, weight) => {
            if let Some(service) = services.get_mut(key) {
                match edit {
                    Edit::Add | Edit::Set => drop(service.destinations.insert(*at, *weight)),
                    Edit::Remove => drop(service.destinations.remove(at)),
                }
            }
        }
    }
}

/// Notes what a step did to an entry of an interface.
fn note_entry(objects: &mut Objects, change: &Change) {
    match change.clone() {
        Change::Address(Verb::Add, link, net) => drop(objects.addresses.insert((link, net))),
        Change::Address(Verb::Remove, link, net) => drop(objects.addresses.remove(&(link, net))),
        Change::Neighbour(Verb::Add, link, at, mac) => {
            objects.neighbours.insert((link, at), mac);
        }
        Change::Neighbour(Verb::Remove, link, at, _) => {
            objects.neighbours.remove(&(link, at));
        }
        Change::Fdb(Verb::Add, link, mac, remote) => {
            objects.fdb.insert((link, mac), remote);
        }
        Change::Fdb(Verb::Remove, link, mac, _) => drop(objects.fdb.remove(&(link, mac))),
        Change::Route(Verb::Add, route) => drop(objects.routes.insert(route)),
        Change::Route(Verb::Remove, route) => drop(objects.routes.remove(&route)),
        Change::Rule(Verb::Add, rule) => drop(objects.rules.insert(rule)),
        Change::Rule(Verb::Remove, rule) => drop(objects.rules.remove(&rule)),
        _ => {}
    }
}
