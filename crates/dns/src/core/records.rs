//! The names of every network, encoded once per change and never changed afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use shoal_api::{
    NetworkId, ServiceId,
    network::{Endpoint, NetworkSlice, NetworkView, ServiceSlice},
};

use super::{
    names::Names,
    wire::{Name, RrSet, qtype},
};

/// How long an answer may be remembered.
///
/// Asking again costs a container some microseconds, so there is nothing to win by more; what is gone is forgotten soon.
pub const TTL_SECONDS: u32 = 1;

/// All names of all networks of this node, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Records {
    zones: BTreeMap<NetworkId, Arc<Zone>>,
}

impl Records {
    /// The names of the cluster's networks.
    pub fn from_view(view: &NetworkView) -> Self {
        Self::default().next(&NetworkView::default(), view)
    }

    /// The names of the cluster's networks at a later view than `before`, which these are of. Networks that are as they
    /// were keep what was encoded.
    #[must_use]
    pub fn next(&self, before: &NetworkView, view: &NetworkView) -> Self {
        let zone = |(id, slice): (&NetworkId, &NetworkSlice)| {
            let held = self.zones.get(id);
            let held = held.filter(|_| before.networks.get(id) == Some(slice));
            let zone = held.map_or_else(|| Arc::new(Zone::of_slice(slice)), Arc::clone);
            (id.clone(), zone)
        };
        Self {
            zones: view.networks.iter().map(zone).collect(),
        }
    }

    /// Adds the names of one network, in place of those it had.
    pub fn insert(&mut self, id: NetworkId, zone: Zone) {
        self.zones.insert(id, Arc::new(zone));
    }

    /// Both tables in one; for a network in both, that of `other`. Shares the zones instead of copying them.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let mut zones = self.zones.clone();
        zones.extend(
            other
                .zones
                .iter()
                .map(|(id, zone)| (id.clone(), Arc::clone(zone))),
        );
        Self { zones }
    }

    /// The names of one network.
    pub fn zone(&self, network: &NetworkId) -> Option<&Zone> {
        self.zones.get(network).map(Arc::as_ref)
    }
}

/// A container of a network that only this node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Names that resolve to it; the first is the one that its addresses resolve to. Several hosts may share a name.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The names of one network.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// Whether the network has no way out, so that a question from it must not leave either.
    pub(super) internal: bool,
    /// Name of the network as labels: `web.demo_default` finds `web` in it.
    pub(super) suffix: Box<[u8]>,
    pub(super) subnets: Vec<IpNet>,
    pub(super) names: Names<Sets>,
    pub(super) reverse: BTreeMap<IpAddr, RrSet>,
}

/// The encoded records of a name. All sets are empty when nobody serves it just now.
#[derive(Debug, Clone, Default)]
pub(super) struct Sets {
    pub(super) v4: RrSet,
    pub(super) v6: RrSet,
    pub(super) srv: RrSet,
}

impl Zone {
    /// The names of a network that only this node has: a bridge made by the user.
    pub fn local(name: &str, internal: bool, subnets: Vec<IpNet>, hosts: &[Host]) -> Self {
        let mut draft = Draft::default();
        for host in hosts {
            for (index, host_name) in host.names.iter().enumerate() {
                draft.add(host_name, host.addresses.iter().copied());
                if index == 0 {
                    draft.add_reverse(host_name, &host.addresses);
                }
            }
        }
        draft.encode(name, internal, subnets)
    }

    fn of_slice(slice: &NetworkSlice) -> Self {
        let mut draft = Draft::default();
        let subnets = slice.subnets.iter().map(|subnet| subnet.range).collect();
        if slice.ingress {
            // Services do not find each other there: it carries what comes from outside, as in Swarm.
            return draft.encode(&slice.name, slice.internal, subnets);
        }
        for endpoint in slice.endpoints.values() {
            // A name stays ours while its endpoint does not serve: it has no address then, and is not asked elsewhere.
            let addresses: Vec<IpAddr> = endpoint
                .addresses
                .iter()
                .filter(|_| endpoint.serving)
                .map(IpNet::addr)
                .collect();
            for name in &endpoint.names {
                draft.add(name, addresses.iter().copied());
            }
            if let Some(name) = endpoint.names.first() {
                draft.add_reverse(name, &addresses);
            }
        }
        let mut tasks: BTreeMap<&ServiceId, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in slice.endpoints.values().filter(|endpoint| endpoint.serving) {
            if let Some(service) = &endpoint.service {
                tasks.entry(service).or_default().push(endpoint);
            }
        }
        for (id, service) in &slice.services {
            let tasks = tasks.remove(id).unwrap_or_default();
            let serving = tasks.iter().flat_map(|task| &task.addresses);
            let serving: Vec<IpAddr> = serving.map(IpNet::addr).collect();
            let answer = if service.vips.is_empty() {
                &serving
            } else {
                &service.vips
            };
            for name in std::iter::once(&service.name).chain(&service.aliases) {
                draft.add(name, answer.iter().copied());
                draft.add(&format!("tasks.{name}"), serving.iter().copied());
            }
            draft.add_reverse(&service.name, &service.vips);
            draft.add_ports(&slice.name, &tasks, service);
        }
        draft.encode(&slice.name, slice.internal, subnets)
    }

    /// Whether the network has no way out.
    pub fn is_internal(&self) -> bool {
        self.internal
    }
}

/// A zone on its way: names that may still gain addresses.
#[derive(Default)]
struct Draft {
    names: BTreeMap<Box<[u8]>, BTreeSet<IpAddr>>,
    /// Name of a port → data of its SRV records.
    ports: BTreeMap<Box<[u8]>, BTreeSet<Vec<u8>>>,
    reverse: BTreeMap<IpAddr, String>,
}

impl Draft {
    /// Adds addresses to a name. What cannot be a name in DNS cannot be asked for and is left out.
    fn add(&mut self, name: &str, addresses: impl Iterator<Item = IpAddr>) {
        if let Some(name) = Name::from_text(name) {
            self.names
                .entry(name.labels().into())
                .or_default()
                .extend(addresses);
        }
    }

    fn add_reverse(&mut self, name: &str, addresses: &[IpAddr]) {
        for address in addresses {
            self.reverse
                .entry(*address)
                .or_insert_with(|| name.to_owned());
        }
    }

    /// Adds a service's ports by name: `_http._tcp.web` leads to the service, `_http._tcp.tasks.web` to each task.
    fn add_ports(&mut self, network: &str, tasks: &[&Endpoint], service: &ServiceSlice) {
        let tasks = || tasks.iter().filter_map(|task| task.names.first());
        for port in &service.named_ports {
            for alias in std::iter::once(&service.name).chain(&service.aliases) {
                let name = format!("_{}._{}.{alias}", port.name, port.protocol);
                if service.vips.is_empty() {
                    self.add_port(&name, port.target, tasks(), network);
                } else {
                    self.add_port(&name, port.target, std::iter::once(alias), network);
                }
                let name = format!("_{}._{}.tasks.{alias}", port.name, port.protocol);
                self.add_port(&name, port.target, tasks(), network);
            }
        }
    }

    fn add_port<'n>(
        &mut self,
        name: &str,
        port: u16,
        hosts: impl Iterator<Item = &'n String>,
        network: &str,
    ) {
        let Some(name) = Name::from_text(name) else {
            return;
        };
        let hosts = hosts.filter_map(|host| Name::from_text(&format!("{host}.{network}")));
        // Priority and weight 0: all are equal, and the records come in turn anyway (RFC 2782).
        let data = hosts
            .map(|host| [&[0; 4], port.to_be_bytes().as_slice(), host.labels(), &[0]].concat());
        self.ports
            .entry(name.labels().into())
            .or_default()
            .extend(data);
    }

    fn encode(self, network: &str, internal: bool, subnets: Vec<IpNet>) -> Zone {
        let mut names: BTreeMap<_, _> = self
            .names
            .into_iter()
            .map(|(name, addresses)| (name, Sets::of(&addresses)))
            .collect();
        for (name, data) in self.ports {
            names.entry(name).or_default().srv =
                RrSet::new(qtype::SRV, TTL_SECONDS, data.iter().map(Vec::as_slice));
        }
        let reverse = self
            .reverse
            .into_iter()
            .filter_map(|(address, name)| {
                // As docker answers: the name, then the network.
                let name = Name::from_text(&format!("{name}.{network}"))
                    .or_else(|| Name::from_text(&name))?;
                let data = [name.labels(), &[0]].concat();
                Some((
                    address,
                    RrSet::new(qtype::PTR, TTL_SECONDS, std::iter::once(data.as_slice())),
                ))
            })
            .collect();
        let suffix = Name::from_text(network)
            .map(|name| name.labels().into())
            .unwrap_or_default();
        Zone {
            internal,
            suffix,
            subnets,
            names: Names::new(names.into_iter()),
            reverse,
        }
    }
}

impl Sets {
    fn of(addresses: &BTreeSet<IpAddr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address.octets()),
                IpAddr::V6(address) => v6.push(address.octets()),
            }
        }
        Self {
            v4: RrSet::new(qtype::A, TTL_SECONDS, v4.iter().map(<[u8; 4]>::as_slice)),
            v6: RrSet::new(
                qtype::AAAA,
                TTL_SECONDS,
                v6.iter().map(<[u8; 16]>::as_slice),
            ),
            srv: RrSet::default(),
        }
    }
}
