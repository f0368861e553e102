//! Which flows that connection tracking has go another way than the rules lead now.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use shoal_api::network::NetworkSlice;

use super::{
    desired::host_route,
    lb::{self, Asked, Backend, Elements},
    observed::Observed,
    state::{Family, KernelState, Objects, RouteKind, Space},
};

/// What no longer leads where it led, in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// What now leads somewhere, and has led nowhere.
    pub opened: BTreeSet<Asked>,
    /// To which nothing new is led. What has begun may be finished.
    pub idle: BTreeSet<Backend>,
    /// Which are in the network no more: nobody will answer.
    pub left: BTreeSet<IpAddr>,
}

impl Ending {
    /// Whether everything leads as it did.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.idle.is_empty() && self.left.is_empty()
    }

    /// Of which families flows may be that end.
    pub fn families(&self) -> BTreeSet<Family> {
        let opened = self.opened.iter().map(|asked| match asked {
            Asked::Address(address) => Family::of(*address),
            Asked::Port(family, _) => *family,
        });
        let backends = self.idle.iter().map(|backend| backend.address);
        let backends = backends.chain(self.left.iter().copied());
        opened.chain(backends.map(Family::of)).collect()
    }

    /// Adds what the elements of a table no longer lead to, and what they begin to lead somewhere.
    pub fn add(&mut self, family: Family, before: &Elements, after: &Elements) {
        let asked = &lb::asked(family, after) - &lb::asked(family, before);
        self.opened.extend(asked);
        let idle = &lb::backends(family, before) - &lb::backends(family, after);
        self.idle.extend(idle);
    }
}

/// Those of all namespaces that lead anything.
pub type Endings = BTreeMap<Space, Ending>;

/// What the tables of each namespace lead elsewhere than those that the kernel holds.
pub fn endings(want: &KernelState, have: &Observed) -> Endings {
    let none = Elements::new();
    let spaces = want.spaces.iter();
    let endings = spaces.filter_map(|(space, wanted)| {
        let found = have.spaces.get(space)?;
        let mut ending = Ending::default();
        for (key, table) in &wanted.tables {
            let held = found.tables.get(key);
            let elements = held.map_or(&none, |held| &held.elements);
            ending.add(table.family, elements, &table.elements);
            // Without one of its rules it may have led nobody.
            if held.is_some_and(|held| held.outline != table.outline()) {
                let all = lb::asked(table.family, &table.elements);
                ending.opened.extend(all);
            }
        }
        for (key, held) in &found.tables {
            if !wanted.tables.contains_key(key) {
                ending.add(key.0, &held.elements, &none);
            }
        }
        let held = found.tables.iter();
        let held = held.map(|((family, _), table)| (*family, &table.elements));
        let tables = wanted.tables.values();
        let tables = tables.map(|table| (table.family, &table.elements));
        ending.left = &endpoints(&found.objects, held) - &endpoints(&wanted.objects, tables);
        (!ending.is_empty()).then(|| (space.clone(), ending))
    });
    endings.collect()
}

/// Endpoints that a router knows: those of other nodes have routes. Routes of a node's own may go with their containers.
fn endpoints<'a>(
    objects: &Objects,
    tables: impl Iterator<Item = (Family, &'a Elements)>,
) -> BTreeSet<IpAddr> {
    let routes = objects.routes.iter();
    let routes = routes.filter(|route| {
        route.kind == RouteKind::Unicast && route.to == host_route(route.to.addr())
    });
    let local = tables.flat_map(|(family, elements)| lb::local(family, elements));
    routes.map(|route| route.to.addr()).chain(local).collect()
}

/// Addresses that no endpoint has any more.
pub fn left(before: &NetworkSlice, slice: &NetworkSlice) -> BTreeSet<IpAddr> {
    let mut left = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for (_, was, is) in before.endpoints.differences(&slice.endpoints) {
        for (one, addresses) in [(was, &mut left), (is, &mut taken)] {
            let all = one.into_iter().flat_map(|one| &one.addresses);
            addresses.extend(all.map(|address| address.addr()));
        }
    }
    &left - &taken
}
