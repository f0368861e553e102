//! What is known of the networks of this host at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ipnet::Ipv4Net;
use shoal_api::{
    Timestamp,
    container::{ContainerId, EndpointSpec, NetworkMode},
    id::{IdSource, RandomIds},
};
use shoal_dns::Records;
use shoal_docker_api::backend::LocalNetwork;
use shoal_engine::io::network::NetworkRequest;
use shoal_overlay::{Attachment, BridgeView, core::ipam::AddressPool};

use super::{
    BRIDGE, BridgesError, OPTION_IFNAME,
    definition::{Bridge, Definition, ranges_in_use},
    member::{Endpoint, Member, parse_mac},
};

/// Networks, who is in them, and which addresses are free.
#[derive(Default)]
pub(super) struct State {
    /// By id.
    pub(super) networks: BTreeMap<String, Definition>,
    /// Free addresses by network.
    pub(super) pools: BTreeMap<String, AddressPool>,
    pub(super) members: BTreeMap<ContainerId, Member>,
    pub(super) records: Records,
}

impl State {
    /// Adds the networks that docker has from the start; says whether any was missing.
    pub(super) fn add_predefined(&mut self, prefix: &str) -> Result<bool, BridgesError> {
        let mut added = false;
        for name in [BRIDGE, "host", "none"] {
            if self.networks.values().any(|network| network.name == name) {
                continue;
            }
            let (id, now) = (random_id(), Timestamp::now());
            let network = match name {
                BRIDGE => {
                    Definition::default_bridge(id, prefix, now, &self.taken(&format!("{prefix}0")))?
                }
                _ => Definition::without_bridge(name, id, now),
            };
            self.networks.insert(network.id.clone(), network);
            added = true;
        }
        Ok(added)
    }

    pub(super) fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        self.networks
            .values()
            .filter_map(|network| network.bridge.as_ref())
    }

    /// Ranges that a new network cannot have.
    pub(super) fn taken(&self, except: &str) -> Vec<Ipv4Net> {
        let routes = std::fs::read_to_string(Path::new("/proc/self/net/route")).unwrap_or_default();
        let mut taken: Vec<Ipv4Net> = self.bridges().map(|bridge| bridge.spec.subnet).collect();
        taken.extend(ranges_in_use(&routes, except));
        taken
    }

    /// Finds a network by id, name or unique beginning of an id.
    pub(super) fn find(&self, name: &str) -> Result<&Definition, BridgesError> {
        let name = if name == "default" { BRIDGE } else { name };
        let missing = || BridgesError::NotFound(name.to_owned());
        if let Some(network) = self.networks.get(name) {
            return Ok(network);
        }
        if let Some(network) = self.networks.values().find(|network| network.name == name) {
            return Ok(network);
        }
        let mut found = self
            .networks
            .values()
            .filter(|n| !name.is_empty() && n.id.starts_with(name));
        let first = found.next().ok_or_else(missing)?;
        match found.next() {
            None => Ok(first),
            Some(_) => Err(BridgesError::Invalid(format!(
                "network {name} is ambiguous (2 matches found on ID prefix)"
            ))),
        }
    }

    pub(super) fn show(&self, network: &Definition) -> LocalNetwork {
        let members = self
            .members
            .values()
            .filter_map(|member| Some((member.container.to_string(), member.show(network)?)));
        LocalNetwork {
            containers: members.collect(),
            ..network.show()
        }
    }

    /// What the kernel should hold.
    pub(super) fn view(&self) -> BridgeView {
        let networks = self
            .bridges()
            .map(|bridge| (bridge.spec.id.clone(), bridge.spec.clone()));
        let mut view = BridgeView {
            networks: networks.collect(),
            ..BridgeView::default()
        };
        for (container, member) in &self.members {
            let attachments = member
                .endpoints
                .iter()
                .map(|endpoint| endpoint.attachment.clone());
            view.attachments
                .insert(container.to_string(), attachments.collect());
            if !member.published.is_empty() {
                view.published
                    .insert(container.to_string(), member.published.clone());
            }
        }
        view
    }

    pub(super) fn is_way_out(&self, endpoint: &Endpoint) -> bool {
        let network = self.networks.get(&endpoint.attachment.network);
        network
            .and_then(|network| network.bridge.as_ref())
            .is_some_and(|bridge| !bridge.spec.internal)
    }

    /// Endpoints for a container that starts, the way out first; their addresses are taken.
    pub(super) fn plan(&mut self, request: &NetworkRequest) -> Result<Vec<Endpoint>, BridgesError> {
        let first = match &request.mode {
            NetworkMode::Network(name) => self.find(name)?.id.clone(),
            _ => self.find(BRIDGE)?.id.clone(),
        };
        let mut wanted: BTreeMap<String, EndpointSpec> = BTreeMap::new();
        for (name, spec) in &request.endpoints {
            wanted.insert(self.find(name)?.id.clone(), spec.clone());
        }
        let mut order = vec![(first.clone(), wanted.remove(&first).unwrap_or_default())];
        order.extend(wanted);
        let (mut used, mut endpoints) = (BTreeSet::new(), Vec::new());
        for (id, spec) in order {
            let network = self
                .networks
                .get(&id)
                .cloned()
                .ok_or(BridgesError::NotFound(id))?;
            match self.endpoint(&network, spec, &mut used) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    endpoints.iter().for_each(|endpoint| self.release(endpoint));
                    return Err(error);
                }
            }
        }
        // Stable: among equals the first network named stays the way out.
        endpoints.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.spec.gw_priority));
        Ok(endpoints)
    }

    /// A new endpoint; its address is taken, and the name of its interface goes into `used`.
    pub(super) fn endpoint(
        &mut self,
        network: &Definition,
        spec: EndpointSpec,
        used: &mut BTreeSet<String>,
    ) -> Result<Endpoint, BridgesError> {
        let Some(bridge) = &network.bridge else {
            let text = format!("container cannot be connected to network {}", network.name);
            return Err(BridgesError::Forbidden(text));
        };
        check_endpoint(network, bridge, &spec)?;
        let ifname = match spec.driver_opts.get(OPTION_IFNAME) {
            Some(name) => name.clone(),
            None => {
                let free = (0..=used.len()).map(|n| format!("{}{n}", bridge.interface_prefix));
                free.into_iter()
                    .find(|name| !used.contains(name))
                    .unwrap_or_default()
            }
        };
        if !used.insert(ifname.clone()) {
            return Err(BridgesError::Invalid(format!(
                "interface name {ifname} is used twice"
            )));
        }
        let mac = spec
            .mac_address
            .as_deref()
            .filter(|text| !text.is_empty())
            .map(parse_mac)
            .transpose()?;
        let missing = || BridgesError::NotFound(network.name.clone());
        let pool = self.pools.get_mut(&network.id).ok_or_else(missing)?;
        let address = pool.take(spec.ipv4)?;
        let attachment = Attachment {
            network: network.id.clone(),
            address,
            mac,
            ifname,
        };
        Ok(Endpoint {
            id: random_id(),
            attachment,
            spec,
        })
    }

    pub(super) fn release(&mut self, endpoint: &Endpoint) {
        if let Some(pool) = self.pools.get_mut(&endpoint.attachment.network) {
            pool.release(endpoint.attachment.address);
        }
    }
}

/// Refuses what docker refuses of an endpoint, and what we cannot do.
fn check_endpoint(
    network: &Definition,
    bridge: &Bridge,
    spec: &EndpointSpec,
) -> Result<(), BridgesError> {
    let invalid = |text: &str| Err(BridgesError::Invalid(text.to_owned()));
    let unsupported = |text: &str| Err(BridgesError::Unsupported(text.to_owned()));
    if !network.has_names() && !spec.aliases.is_empty() {
        return invalid("network-scoped aliases are only supported for user-defined networks");
    }
    if !network.has_names() && spec.ipv4.is_some() {
        return invalid("user specified IP address is supported on user defined networks only");
    }
    if !bridge.subnet_by_user && spec.ipv4.is_some() {
        return invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        );
    }
    if spec.ipv6.is_some() || spec.link_local.iter().any(IpAddr::is_ipv6) {
        return unsupported("IPv6 in a network of one host");
    }
    if !spec.links.is_empty() {
        return unsupported("a link between containers");
    }
    if !spec.link_local.is_empty() {
        return unsupported("a link-local address");
    }
    match spec.driver_opts.keys().find(|key| *key != OPTION_IFNAME) {
        Some(option) => unsupported(&format!("endpoint option {option}")),
        None => Ok(()),
    }
}

/// 64 random hexadecimal digits.
pub(super) fn random_id() -> String {
    format!(
        "{:032x}{:032x}",
        RandomIds.next_bits(),
        RandomIds.next_bits()
    )
}
