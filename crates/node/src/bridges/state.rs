//! What is known of the networks of this host at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use shoal_api::{
    NetworkId, Timestamp,
    container::{ContainerId, EndpointSpec, NetworkMode},
    id::{IdSource, RandomIds},
};
use shoal_dns::{Host, Records, Zone};
use shoal_docker_api::backend::LocalNetwork;
use shoal_engine::io::network::NetworkRequest;
use shoal_overlay::{
    Attachment, BridgeView,
    core::ipam::{AddressPool, AddressPool6},
};

use crate::config::NetworkDefaults;

use super::{
    BRIDGE, BridgesError, OPTION_IFNAME,
    definition::{Bridge, Definition, Taken, ranges_in_use, ranges6_in_use},
    member::{Endpoint, Member, parse_mac},
};

/// Networks, who is in them, and which addresses are free.
#[derive(Default)]
pub(super) struct State {
    /// By id.
    pub(super) networks: BTreeMap<String, Definition>,
    /// Free addresses of IPv4 by network.
    pub(super) pools: BTreeMap<String, AddressPool>,
    /// The same for IPv6.
    pub(super) pools6: BTreeMap<String, AddressPool6>,
    pub(super) members: BTreeMap<ContainerId, Member>,
    pub(super) records: Records,
}

impl State {
    /// Adds the networks that docker has from the start, and lets the default one be as the daemon's configuration
    /// says; says whether anything changed. With containers `in_use` a network keeps its addresses.
    pub(super) fn add_predefined(
        &mut self,
        prefix: &str,
        defaults: &NetworkDefaults,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<bool, BridgesError> {
        let mut changed = false;
        let taken = self.taken(&format!("{prefix}0"));
        for name in [BRIDGE, "host", "none"] {
            let before = self.networks.values().find(|network| network.name == name);
            if before.is_some() && name != BRIDGE {
                continue;
            }
            let id = before.map_or_else(random_id, |before| before.id.clone());
            let now = before.map_or_else(Timestamp::now, |before| before.created);
            let network = match name {
                BRIDGE => Definition::default_bridge(id, prefix, now, &taken, defaults, before)?,
                _ => Definition::without_bridge(name, id, now),
            };
            if before == Some(&network) {
                continue;
            }
            let places = |network: &Definition| {
                let spec = network.bridge.as_ref().map(|bridge| &bridge.spec);
                spec.map(|spec| (spec.ipv4, spec.ipv6))
            };
            if before.is_some_and(|before| places(before) != places(&network))
                && in_use(&network.id)
            {
                tracing::warn!(
                    "the default network stays as it was: its addresses cannot change while containers run in it"
                );
                continue;
            }
            self.networks.insert(network.id.clone(), network);
            changed = true;
        }
        Ok(changed)
    }

    /// Makes the pools of a network, from which nothing is taken but what containers never get.
    pub(super) fn open_pools(&mut self, id: &str) -> Result<(), BridgesError> {
        let Some(network) = self.networks.get(id) else {
            return Ok(());
        };
        let Some(Bridge {
            spec,
            range,
            range6,
            ..
        }) = &network.bridge
        else {
            return Ok(());
        };
        let mut pool = spec
            .ipv4
            .map(|place| AddressPool::new(place.subnet, *range, place.gateway));
        let mut pool6 = spec
            .ipv6
            .map(|place| AddressPool6::new(place.subnet, *range6, place.gateway));
        for address in network.auxiliary.values() {
            match (address, &mut pool, &mut pool6) {
                (IpAddr::V4(address), Some(pool), _) => drop(pool.take(Some(*address))?),
                (IpAddr::V6(address), _, Some(pool6)) => drop(pool6.take(Some(*address))?),
                (address, ..) => {
                    return Err(BridgesError::Invalid(format!(
                        "no matching subnet for aux-address {address}"
                    )));
                }
            }
        }
        self.pools.extend(pool.map(|pool| (id.to_owned(), pool)));
        self.pools6.extend(pool6.map(|pool| (id.to_owned(), pool)));
        Ok(())
    }

    /// Forgets a network.
    pub(super) fn forget(&mut self, id: &str) {
        self.networks.remove(id);
        self.pools.remove(id);
        self.pools6.remove(id);
    }

    /// Takes the addresses of an endpoint; says whether they were free.
    pub(super) fn take(&mut self, attachment: &Attachment) -> bool {
        if !self.networks.contains_key(&attachment.network) {
            return false;
        }
        if let Some(address) = attachment.address {
            let pool = self.pools.get_mut(&attachment.network);
            if pool.is_none_or(|pool| pool.take(Some(address)).is_err()) {
                return false;
            }
        }
        let pool6 = self.pools6.get_mut(&attachment.network);
        if let (Some(address), Some(pool6)) = (attachment.ipv6, pool6) {
            // One that is no longer of the network's range is the kernel's to refuse.
            let _ = pool6.take(Some(address));
        }
        true
    }

    pub(super) fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        self.networks
            .values()
            .filter_map(|network| network.bridge.as_ref())
    }

    /// Ranges that a new network cannot have; those of the interface `except` do not count.
    pub(super) fn taken(&self, except: &str) -> Taken {
        let read = |name: &str| {
            let path = Path::new("/proc/self/net").join(name);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let mut taken = Taken {
            v4: ranges_in_use(&read("route"), except),
            v6: ranges6_in_use(&read("ipv6_route"), except),
        };
        for bridge in self.bridges().filter(|bridge| bridge.spec.ifname != except) {
            taken.v4.extend(bridge.spec.ipv4.map(|place| place.subnet));
            taken.v6.extend(bridge.spec.ipv6.map(|place| place.subnet));
        }
        taken
    }

    /// What containers call others by their links: a zone for each of them that has some, known to it alone.
    pub(super) fn links(&self) -> Vec<(NetworkId, Zone)> {
        let of = |member: &Member| {
            let mut hosts = Vec::new();
            for endpoint in &member.endpoints {
                for link in &endpoint.spec.links {
                    let (target, alias) = link.split_once(':').unwrap_or((link, link));
                    let target = target.trim_start_matches('/');
                    let alias = alias.rsplit('/').next().unwrap_or(alias);
                    let others = self.members.values().filter(|other| {
                        other.name == target || other.container.as_str().starts_with(target)
                    });
                    let there =
                        others.filter_map(|other| other.endpoint(&endpoint.attachment.network));
                    let addresses: Vec<IpAddr> = there.flat_map(Endpoint::addresses).collect();
                    hosts.push(Host {
                        names: vec![target.to_owned(), alias.to_owned()],
                        addresses,
                    });
                }
            }
            if hosts.is_empty() {
                return None;
            }
            let id = member.container.as_str().parse::<NetworkId>().ok()?;
            Some((id, Zone::local("", true, Vec::new(), &hosts)))
        };
        self.members.values().filter_map(of).collect()
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
            if network.name == "host" {
                let text = "container cannot be disconnected from host network or connected to host network";
                return Err(BridgesError::Invalid(text.into()));
            }
            let text = match network.config {
                Some(_) => format!(
                    "configuration network is not available for containers: {}",
                    network.name
                ),
                None => format!("container cannot be connected to network {}", network.name),
            };
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
        let mut endpoint = Endpoint {
            id: random_id(),
            attachment: Attachment {
                network: network.id.clone(),
                address: None,
                mac,
                ifname,
                ipv6: None,
                link_local: spec.link_local.clone(),
            },
            spec,
        };
        if let Some(pool) = self.pools.get_mut(&network.id) {
            endpoint.attachment.address = Some(pool.take(endpoint.spec.ipv4)?);
        }
        if let Some(pool6) = self.pools6.get_mut(&network.id) {
            match pool6.take(endpoint.spec.ipv6) {
                Ok(address) => endpoint.attachment.ipv6 = Some(address),
                Err(error) => {
                    self.release(&endpoint);
                    return Err(error.into());
                }
            }
        }
        Ok(endpoint)
    }

    pub(super) fn release(&mut self, endpoint: &Endpoint) {
        let pool = self.pools.get_mut(&endpoint.attachment.network);
        if let (Some(pool), Some(address)) = (pool, endpoint.attachment.address) {
            pool.release(address);
        }
        let pool6 = self.pools6.get_mut(&endpoint.attachment.network);
        if let (Some(pool6), Some(address)) = (pool6, endpoint.attachment.ipv6) {
            pool6.release(address);
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
    let said = spec.ipv4.is_some() || spec.ipv6.is_some();
    if !network.has_names() && said {
        return invalid("user specified IP address is supported on user defined networks only");
    }
    if bridge.spec.ipv4.is_some() && !bridge.subnet_by_user && spec.ipv4.is_some() {
        return invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        );
    }
    let subnet6 = bridge.spec.ipv6.as_ref().map(|place| place.subnet);
    let subnet = bridge.spec.ipv4.map(|place| place.subnet);
    let foreign = spec
        .ipv4
        .filter(|ip| !subnet.is_some_and(|subnet| subnet.contains(ip)));
    let foreign6 = spec
        .ipv6
        .filter(|ip| !subnet6.is_some_and(|subnet| subnet.contains(ip)));
    if let Some(ip) = foreign.map(IpAddr::V4).or(foreign6.map(IpAddr::V6)) {
        return invalid(&format!(
            "invalid endpoint settings:\nno configured subnet or ip-range contain the IP address {ip}"
        ));
    }
    let link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if let Some(ip) = spec.link_local.iter().find(|ip| !link_local(ip)) {
        return invalid(&format!(
            "invalid endpoint settings:\ninvalid link-local IP address: {ip}"
        ));
    }
    // Drivers pass over what they do not know; what is docker's own has a meaning that would be missed.
    let meant = |key: &&String| key.starts_with("com.docker.network.") && *key != OPTION_IFNAME;
    match spec.driver_opts.keys().find(meant) {
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
