//! Which flows that connection tracking has lead to backends that are no longer to be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use shoal_api::network::NetworkSlice;

use super::{
    desired::host_route,
    lb::{self, Elements},
    observed::Observed,
    state::{Family, KernelState, Objects, Space},
};

/// Backends of a router that are no longer to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// To which nothing new is led. What has begun may be finished.
    pub idle: BTreeSet<IpAddr>,
    /// Which are in the network no more: nobody will answer.
    pub left: BTreeSet<IpAddr>,
}

/// Those of all routers.
pub type Endings = BTreeMap<Space, Ending>;

/// What each router leads to by what the kernel holds, and is to lead to no longer.
pub fn endings(want: &KernelState, have: &Observed) -> Endings {
    let spaces = want.spaces.iter();
    let endings = spaces.filter_map(|(space, wanted)| {
        let found = have.spaces.get(space)?;
        let held = || {
            let tables = found.tables.iter();
            tables.map(|((family, _), table)| (*family, &table.elements))
        };
        let wanted_tables = || {
            let tables = wanted.tables.values();
            tables.map(|table| (table.family, &table.elements))
        };
        let backends = |(family, elements)| lb::backends(family, elements);
        let idle: BTreeSet<_> = held().flat_map(backends).collect();
        let stay = wanted_tables().flat_map(backends).collect();
        let left = endpoints(&found.objects, held());
        let ending = Ending {
            idle: &idle - &stay,
            left: &left - &endpoints(&wanted.objects, wanted_tables()),
        };
        let is_some = !ending.idle.is_empty() || !ending.left.is_empty();
        is_some.then(|| (space.clone(), ending))
    });
    endings.collect()
}

/// Endpoints that a router knows: those of other nodes have routes. Routes of a node's own may go with their containers.
fn endpoints<'a>(
    objects: &Objects,
    tables: impl Iterator<Item = (Family, &'a Elements)>,
) -> BTreeSet<IpAddr> {
    let routes = objects.routes.iter();
    let routes = routes.filter(|route| !route.local && route.to == host_route(route.to.addr()));
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
