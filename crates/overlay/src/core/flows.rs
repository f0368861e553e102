//! Which flows that connection tracking has lead to backends that are no longer to be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use shoal_api::network::{NetworkSlice, NetworkView};

use super::{
    lb,
    observed::Observed,
    state::{KernelState, Space},
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

/// The backends to which each router leads, and is to lead no longer; and with the view before, who has left.
pub fn endings(
    (want, have): (&KernelState, &Observed),
    before: Option<&NetworkView>,
    view: &NetworkView,
) -> Endings {
    let mut endings = Endings::new();
    for (space, wanted) in &want.spaces {
        let Some(found) = have.spaces.get(space) else {
            continue;
        };
        let held = found.tables.iter();
        let mut idle: BTreeSet<_> = held
            .flat_map(|((family, _), held)| lb::backends(*family, &held.elements))
            .collect();
        for table in wanted.tables.values() {
            for stays in lb::backends(table.family, &table.elements) {
                idle.remove(&stays);
            }
        }
        if !idle.is_empty() {
            endings.entry(space.clone()).or_default().idle = idle;
        }
    }
    for (network, slice) in &view.networks {
        let before = before.and_then(|before| before.networks.get(network));
        let left = before.map(|before| left(before, slice)).unwrap_or_default();
        if !left.is_empty() {
            let space = Space::Router(network.clone());
            endings.entry(space).or_default().left = left;
        }
    }
    endings.retain(|space, _| want.spaces.contains_key(space));
    endings
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
