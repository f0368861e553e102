//! What leads from one network view to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NetworkSlice, NetworkView, Peer};
use crate::{NetworkId, NodeId, ServiceId, TaskId, table::Table};

/// A view as a node is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewUpdate {
    /// All of it.
    Whole(NetworkView),
    /// What differs from the one that the node holds.
    Change(ViewChange),
}

impl ViewUpdate {
    /// Version of the view.
    pub fn version(&self) -> u64 {
        match self {
            Self::Whole(view) => view.version,
            Self::Change(change) => change.version,
        }
    }

    /// The view itself; `None` for a change while nothing is held.
    pub fn onto(self, held: Option<&NetworkView>) -> Option<NetworkView> {
        match self {
            Self::Whole(view) => Some(view),
            Self::Change(change) => Some(held?.changed(change)),
        }
    }
}

/// The difference between two views: what is new or other, and the names of what is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewChange {
    /// Version of the view to which it leads.
    pub version: u64,
    /// UDP port of VXLAN there.
    pub data_path_port: u16,
    /// Nodes that are new or other.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Nodes that are gone.
    pub peers_gone: Vec<NodeId>,
    /// Networks that are new or other.
    pub networks: BTreeMap<NetworkId, SliceChange>,
    /// Networks that are gone.
    pub networks_gone: Vec<NetworkId>,
}

/// The difference between a network and what it was before; a new one was empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceChange {
    /// The network as it is, with those of its endpoints and services alone that are new or other.
    pub slice: NetworkSlice,
    /// Endpoints that are gone.
    pub endpoints_gone: Vec<TaskId>,
    /// Services that are gone.
    pub services_gone: Vec<ServiceId>,
}

impl NetworkView {
    /// What leads from an earlier view to this one.
    pub fn change_from(&self, before: &Self) -> ViewChange {
        let is_news = |(id, peer): &(&NodeId, &Peer)| before.peers.get(*id) != Some(*peer);
        let peers = self.peers.iter().filter(is_news);
        let networks = self.networks.iter().filter_map(|(id, slice)| {
            let change = match before.networks.get(id) {
                Some(was) if was == slice => return None,
                Some(was) => slice.change_from(was),
                None => SliceChange {
                    slice: slice.clone(),
                    endpoints_gone: Vec::new(),
                    services_gone: Vec::new(),
                },
            };
            Some((id.clone(), change))
        });
        ViewChange {
            version: self.version,
            data_path_port: self.data_path_port,
            peers: peers.map(|(id, peer)| (id.clone(), peer.clone())).collect(),
            peers_gone: gone(&before.peers, &self.peers),
            networks: networks.collect(),
            networks_gone: gone(&before.networks, &self.networks),
        }
    }

    /// This view after a change.
    #[must_use]
    pub fn changed(&self, change: ViewChange) -> Self {
        let mut view = Self {
            version: change.version,
            data_path_port: change.data_path_port,
            ..self.clone()
        };
        view.peers.extend(change.peers);
        view.peers.retain(|id, _| !change.peers_gone.contains(id));
        for (id, change) in change.networks {
            let slice = match view.networks.get(&id) {
                Some(was) => was.changed(change),
                None => change.slice,
            };
            view.networks.insert(id, slice);
        }
        for id in &change.networks_gone {
            view.networks.remove(id);
        }
        view
    }
}

impl NetworkSlice {
    fn change_from(&self, before: &Self) -> SliceChange {
        let (endpoints, endpoints_gone) = table_change(&before.endpoints, &self.endpoints);
        let (services, services_gone) = table_change(&before.services, &self.services);
        let slice = Self {
            endpoints,
            services,
            ..self.clone()
        };
        SliceChange {
            slice,
            endpoints_gone,
            services_gone,
        }
    }

    fn changed(&self, change: SliceChange) -> Self {
        let SliceChange {
            slice,
            endpoints_gone,
            services_gone,
        } = change;
        Self {
            endpoints: table_changed(&self.endpoints, &slice.endpoints, &endpoints_gone),
            services: table_changed(&self.services, &slice.services, &services_gone),
            ..slice
        }
    }
}

fn gone<K: Ord + Clone, V>(before: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<K> {
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    gone.cloned().collect()
}

/// The entries that are new or other, and the keys that are gone.
fn table_change<K: Ord + Clone, V: Clone + PartialEq>(
    before: &Table<K, V>,
    now: &Table<K, V>,
) -> (Table<K, V>, Vec<K>) {
    let (mut news, mut gone) = (Table::default(), Vec::new());
    for (key, _, is) in before.differences(now) {
        match is {
            Some(value) => drop(news.insert(key.clone(), value.clone())),
            None => gone.push(key.clone()),
        }
    }
    (news, gone)
}

fn table_changed<K: Ord + Clone, V: Clone>(
    held: &Table<K, V>,
    news: &Table<K, V>,
    gone: &[K],
) -> Table<K, V> {
    let mut table = held.clone();
    table.extend(news.iter().map(|(key, value)| (key.clone(), value.clone())));
    for key in gone {
        table.remove(key);
    }
    table
}
