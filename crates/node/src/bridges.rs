//! The networks of this host: bridges with their containers, addresses, ports and names.

mod definition;
mod error;
mod files;
mod keep;
mod leaving;
mod member;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;
use shoal_api::{
    NetworkId, Timestamp,
    container::{
        ContainerId, EndpointInfo, EndpointSpec, NetworkMode, NetworkSettings, Port, PublishedPort,
    },
};
use shoal_dns::{Records, Zone};
use shoal_docker_api::backend::{LocalNetwork, LocalNetworkSpec};
use shoal_engine::io::network::{NetworkError, NetworkRequest};
use shoal_overlay::{Attachment, BridgesConfig, PortRequest};

pub use definition::{BRIDGE, is_predefined};
pub use error::BridgesError;

use crate::config::{DaemonConfig, NetworkDefaults};
use definition::Definition;
use files::Files;
use member::{Endpoint, Member, interfaces_in, moved, parse_mac, port_requests};
use state::{State, random_id};

/// Option of an endpoint that names its interface inside the container.
const OPTION_IFNAME: &str = "com.docker.network.endpoint.ifname";

/// The networks that only this host has, and the containers in them.
///
/// Networks are written down for good, endpoints for as long as their namespaces live, so that a later daemon takes
/// both over without touching a packet.
pub struct Bridges {
    kernel: shoal_overlay::Bridges,
    files: Files,
    prefix: String,
    defaults: NetworkDefaults,
    names: Box<dyn Fn(Records) + Send + Sync>,
    /// Held during whole deeds: they are short, and the kernel does one at a time anyway.
    state: Arc<tokio::sync::Mutex<State>>,
    /// Read by those who have left but not let go of their addresses yet.
    leaving: Arc<tokio::sync::RwLock<()>>,
    /// Tells them not to wait for one another.
    hurry: Arc<tokio::sync::Notify>,
}

impl fmt::Debug for Bridges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridges")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Bridges {
    /// Takes the networks of this host over, making `bridge`, `host` and `none` if they are missing. What stands in
    /// the kernel stays; what is missing is made again. `names` is given all names after every change.
    ///
    /// Must be called in the host's network namespace.
    pub async fn open(
        config: &DaemonConfig,
        names: impl Fn(Records) + Send + Sync + 'static,
    ) -> Result<Self, NetworkError> {
        Ok(Self::open_all(config, Box::new(names)).await?)
    }

    async fn open_all(
        config: &DaemonConfig,
        names: Box<dyn Fn(Records) + Send + Sync>,
    ) -> Result<Self, BridgesError> {
        let prefix = config.interface_prefix.clone();
        let files = Files::open(&config.data_root, &config.exec_root)?;
        let mut state = State {
            networks: files.load_networks()?,
            ..State::default()
        };
        let members = files.load_members()?;
        let in_use = |id: &str| members.values().any(|member| member.endpoint(id).is_some());
        if state.add_predefined(&prefix, &config.networks, in_use)?
            && let Err(error) = files.save_networks(&state.networks)
        {
            // They follow from the configuration; a host whose disk is full must come up, or nothing can be removed.
            tracing::warn!(%error, "cannot write down the networks of this host");
        }
        let ids: Vec<String> = state.networks.keys().cloned().collect();
        for id in &ids {
            state.open_pools(id)?;
        }
        for (container, mut member) in members {
            member
                .endpoints
                .retain(|endpoint| state.take(&endpoint.attachment));
            state.members.insert(container, member);
        }
        let ours = BridgesConfig {
            prefix: prefix.clone(),
            host_netns: None,
        };
        let kernel = shoal_overlay::Bridges::open(ours, state.view()).await?;
        let bridges = Self {
            kernel,
            files,
            prefix,
            defaults: config.networks.clone(),
            names,
            state: Arc::new(tokio::sync::Mutex::new(state)),
            leaving: Arc::default(),
            hurry: Arc::default(),
        };
        let mut state = bridges.state.lock().await;
        let all: Vec<String> = state.networks.keys().cloned().collect();
        bridges.tell_names(&mut state, &all);
        drop(state);
        Ok(bridges)
    }

    /// All networks with their containers, by name.
    pub async fn list(&self) -> Vec<LocalNetwork> {
        let state = self.state.lock().await;
        let mut networks: Vec<LocalNetwork> = state
            .networks
            .values()
            .map(|network| state.show(network))
            .collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        networks
    }

    /// One network, named by id, unique prefix of it, or name.
    pub async fn get(&self, name: &str) -> Result<LocalNetwork, BridgesError> {
        let state = self.state.lock().await;
        Ok(state.show(state.find(name)?))
    }

    /// The same without its containers, which costs nothing however many there are.
    pub async fn look(&self, name: &str) -> Result<LocalNetwork, BridgesError> {
        let state = self.state.lock().await;
        Ok(state.find(name)?.show())
    }

    /// Makes a network; returns its id.
    pub async fn create(&self, mut wish: LocalNetworkSpec) -> Result<String, BridgesError> {
        let mut state = self.state.lock().await;
        if is_predefined(&wish.name) {
            let text = format!(
                "operation is not permitted on predefined {} network",
                wish.name
            );
            return Err(BridgesError::Forbidden(text));
        }
        if state
            .networks
            .values()
            .any(|network| network.name == wish.name)
        {
            return Err(BridgesError::NameTaken(wish.name));
        }
        if let Some(from) = &wish.config_from {
            state.find(from)?.clone().configure(&mut wish)?;
        }
        let (id, now) = (random_id(), Timestamp::now());
        let network = if wish.config_only {
            Definition::configuration(wish, id, now)
        } else {
            let taken = state.taken("");
            Definition::new(wish, id, &self.prefix, now, &taken, &self.defaults)?
        };
        let id = network.id.clone();
        let spec = network.bridge.clone().map(|bridge| bridge.spec);
        if let Some(spec) = &spec
            && state
                .bridges()
                .any(|other| other.spec.ifname == spec.ifname)
        {
            let text = format!("bridge name {} is used by another network", spec.ifname);
            return Err(BridgesError::Forbidden(text));
        }
        // First on disk: a daemon that ends in between makes the bridge at its next start.
        state.networks.insert(id.clone(), network);
        let made = match state.open_pools(&id) {
            Ok(()) => match (self.files.save_networks(&state.networks), spec) {
                (Ok(()), Some(spec)) => self.kernel.create(spec).await.map_err(BridgesError::from),
                (saved, _) => saved,
            },
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            state.forget(&id);
            self.files.save_networks(&state.networks)?;
            return Err(error);
        }
        self.tell_names(&mut state, std::slice::from_ref(&id));
        Ok(id)
    }

    /// Removes a network that no container is in. Named by id, unique prefix of it, or name.
    pub async fn remove(&self, name: &str) -> Result<LocalNetwork, BridgesError> {
        let mut state = self.state.lock().await;
        let network = state.find(name)?.clone();
        self.remove_found(&mut state, &network).await
    }

    async fn remove_found(
        &self,
        state: &mut State,
        network: &Definition,
    ) -> Result<LocalNetwork, BridgesError> {
        if network.is_predefined() {
            return Err(BridgesError::Predefined(network.name.clone()));
        }
        let shown = state.show(network);
        if !shown.containers.is_empty() {
            let who = shown.containers.values().map(|member| {
                format!(
                    "name:\"{}\" id:\"{}\"",
                    member.name,
                    member.endpoint_id.get(..12).unwrap_or_default()
                )
            });
            let endpoints = who.collect::<Vec<_>>().join(", ");
            return Err(BridgesError::Active {
                network: network.name.clone(),
                endpoints,
            });
        }
        let from = |other: &&Definition| other.config_from.as_ref() == Some(&network.name);
        if network.config.is_some()
            && let Some(other) = state.networks.values().find(from)
        {
            let text = format!(
                "configuration network {:?} is in use by network {:?}",
                network.name, other.name
            );
            return Err(BridgesError::Forbidden(text));
        }
        self.kernel.remove(&network.id).await?;
        state.forget(&network.id);
        self.files.save_networks(&state.networks)?;
        let left: Vec<String> = state.networks.keys().cloned().collect();
        state.records = Records::default();
        self.tell_names(state, &left);
        Ok(shown)
    }

    /// Removes the unused networks that `choice` takes; returns those that are gone.
    pub async fn prune(
        &self,
        choice: impl Fn(&LocalNetwork) -> bool,
    ) -> Result<Vec<LocalNetwork>, BridgesError> {
        let mut state = self.state.lock().await;
        let unused: Vec<Definition> = state
            .networks
            .values()
            .filter(|network| {
                let shown = state.show(network);
                let used = !shown.containers.is_empty() || network.config.is_some();
                !network.is_predefined() && !used && choice(&shown)
            })
            .cloned()
            .collect();
        let mut gone = Vec::new();
        for network in unused {
            gone.push(self.remove_found(&mut state, &network).await?);
        }
        Ok(gone)
    }

    /// Puts a container that is about to start into its networks and publishes its ports.
    pub async fn connect(&self, request: &NetworkRequest) -> Result<NetworkSettings, NetworkError> {
        let mut state = self.state.lock().await;
        self.leave_all(&mut state, &request.container).await?;
        let mut planned = state.plan(request);
        if planned.is_err() {
            // The address may be one that somebody is just letting go of.
            drop(state);
            self.all_left().await;
            state = self.state.lock().await;
            planned = state.plan(request);
        }
        let endpoints = planned?;
        let member = Member {
            container: request.container.clone(),
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            netns: request.netns.clone(),
            endpoints,
            published: Vec::new(),
            exposed: request
                .exposed_ports
                .iter()
                .chain(request.port_bindings.keys())
                .copied()
                .collect(),
        };
        state.members.insert(member.container.clone(), member);
        let joined = self.join_all(&mut state, request).await;
        if joined.is_err() {
            // Undone here, because whoever asked knows only that it failed.
            if let Err(error) = self.leave_all(&mut state, &request.container).await {
                tracing::warn!(container.id = %request.container, error = crate::network::chain(&error), "undoing endpoints");
            }
        }
        Ok(joined?)
    }

    async fn join_all(
        &self,
        state: &mut State,
        request: &NetworkRequest,
    ) -> Result<NetworkSettings, BridgesError> {
        let missing = || BridgesError::NotFound(request.container.to_string());
        let member = state.members.get(&request.container).ok_or_else(missing)?;
        self.files.save_member(member)?;
        for endpoint in &member.endpoints {
            self.attach_endpoint(member, endpoint).await?;
        }
        let way_out = member.endpoints.iter().find_map(|endpoint| {
            let bridge = state
                .networks
                .get(&endpoint.attachment.network)?
                .bridge
                .as_ref()?;
            (!bridge.spec.internal).then_some((endpoint, bridge))
        });
        let published = match way_out {
            None => Vec::new(),
            Some((endpoint, bridge)) => {
                let requests = port_requests(
                    &request.port_bindings,
                    &request.exposed_ports,
                    request.publish_all_ports,
                    &endpoint.attachment,
                    bridge.host_binding,
                )?;
                self.publish(member, &endpoint.id, requests).await?
            }
        };
        let member = state
            .members
            .get_mut(&request.container)
            .ok_or_else(missing)?;
        member.published = published;
        let member = member.clone();
        if !member.published.is_empty() {
            self.files.save_member(&member)?;
        }
        self.tell_names(state, &networks_of(&member));
        Ok(member.settings(&state.networks))
    }

    async fn attach_endpoint(
        &self,
        member: &Member,
        endpoint: &Endpoint,
    ) -> Result<(), BridgesError> {
        let (netns, attachment) = (member.netns.clone(), endpoint.attachment.clone());
        let place = member.rank(endpoint);
        Ok(self
            .kernel
            .attach(member.container.as_str(), netns, attachment, place)
            .await?)
    }

    async fn publish(
        &self,
        member: &Member,
        endpoint: &str,
        requests: Vec<PortRequest>,
    ) -> Result<Vec<shoal_overlay::PublishedPort>, BridgesError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let published = self
            .kernel
            .publish(member.container.as_str(), requests)
            .await;
        published.map_err(|error| match error::port_reason(&error) {
            Some(reason) => BridgesError::Port {
                container: member.name.clone(),
                endpoint: endpoint.to_owned(),
                reason,
            },
            None => error.into(),
        })
    }

    /// A container that outlived an earlier daemon. Its endpoints were read at the start; what was lost is made again
    /// with the same addresses and ports.
    pub async fn adopt(
        &self,
        container: &ContainerId,
        settings: &NetworkSettings,
    ) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if state.members.contains_key(container) {
            return Ok(());
        }
        let Some(netns) = settings.sandbox.clone() else {
            return Ok(());
        };
        let mut member = Member {
            container: container.clone(),
            name: String::new(),
            hostname: String::new(),
            netns,
            endpoints: Vec::new(),
            published: Vec::new(),
            exposed: settings.ports.keys().copied().collect(),
        };
        for (index, info) in settings.networks.values().enumerate() {
            let Some(network) = state.networks.get(&info.network_id) else {
                continue;
            };
            if info.ipv4.is_none() && info.ipv6.is_none() {
                continue;
            }
            let Some(bridge) = &network.bridge else {
                continue;
            };
            member.name = info.dns_names.first().cloned().unwrap_or_default();
            let attachment = Attachment {
                network: network.id.clone(),
                address: info.ipv4,
                mac: info.mac_address.as_deref().map(parse_mac).transpose()?,
                ifname: format!("{}{index}", bridge.interface_prefix),
                ipv6: info.ipv6,
                link_local: info.spec.link_local.clone(),
            };
            let endpoint = Endpoint {
                id: info.endpoint_id.clone(),
                attachment,
                spec: info.spec.clone(),
            };
            if !state.take(&endpoint.attachment) {
                return Err(BridgesError::AddressTaken.into());
            }
            member.endpoints.push(endpoint);
        }
        if member.endpoints.is_empty() {
            return Ok(());
        }
        tracing::warn!(container.id = %container, "the endpoints of a running container were lost; making them again");
        let request = NetworkRequest {
            container: container.clone(),
            name: member.name.clone(),
            hostname: String::new(),
            labels: BTreeMap::new(),
            netns: member.netns.clone(),
            mode: NetworkMode::Default,
            endpoints: BTreeMap::new(),
            exposed_ports: BTreeSet::new(),
            port_bindings: bindings_of(&settings.ports),
            publish_all_ports: false,
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        };
        state.members.insert(container.clone(), member);
        self.join_all(&mut state, &request).await?;
        Ok(())
    }

    /// Publishes ports of a service's task on this host alone (`mode=host`): by way of an endpoint in the default
    /// network, besides those that the task has in the cluster's.
    pub async fn publish_for_task(
        &self,
        request: &NetworkRequest,
    ) -> Result<BTreeMap<Port, Vec<PublishedPort>>, NetworkError> {
        if request.port_bindings.is_empty() && !request.publish_all_ports {
            return Ok(BTreeMap::new());
        }
        let alone = NetworkRequest {
            mode: NetworkMode::Default,
            endpoints: [(BRIDGE.to_owned(), task_endpoint())].into(),
            ..request.clone()
        };
        Ok(self.connect(&alone).await?.ports)
    }

    /// Puts a running container into one more network.
    pub async fn join(
        &self,
        network: &str,
        who: &Joining,
        spec: EndpointSpec,
    ) -> Result<(String, EndpointInfo), BridgesError> {
        let mut state = self.state.lock().await;
        let network = state.find(network)?.clone();
        let known = state.members.get(&who.container);
        if known.is_some_and(|member| member.endpoint(&network.id).is_some()) {
            return Err(BridgesError::Connected {
                container: who.name.clone(),
                network: network.name,
            });
        }
        let mut used = interfaces_in(&who.netns)?;
        let endpoint = state.endpoint(&network, spec, &mut used)?;
        let mut member = state
            .members
            .get(&who.container)
            .cloned()
            .unwrap_or_else(|| Member {
                container: who.container.clone(),
                name: who.name.clone(),
                hostname: who.hostname.clone(),
                netns: who.netns.clone(),
                endpoints: Vec::new(),
                published: Vec::new(),
                exposed: BTreeSet::new(),
            });
        member.insert(endpoint.clone());
        let joined = match self.files.save_member(&member) {
            Ok(()) => self.attach_endpoint(&member, &endpoint).await,
            Err(error) => Err(error),
        };
        if let Err(error) = joined {
            state.release(&endpoint);
            match state.members.get(&who.container) {
                Some(before) => self.files.save_member(before)?,
                None => self.files.remove_member(&who.container)?,
            }
            return Err(error);
        }
        let info = member.info(&endpoint, &network);
        state.members.insert(who.container.clone(), member);
        self.tell_names(&mut state, std::slice::from_ref(&network.id));
        Ok((network.name, info))
    }

    /// Takes a running container from one network; returns the network's id. Ports published by way of it move to the
    /// container's next way out.
    pub async fn leave(
        &self,
        network: &str,
        container: &ContainerId,
    ) -> Result<String, BridgesError> {
        let mut state = self.state.lock().await;
        let network = state.find(network)?.clone();
        let missing = || BridgesError::NotConnected {
            container: container.to_string(),
            network: network.name.clone(),
        };
        let mut member = state.members.get(container).ok_or_else(missing)?.clone();
        let at = member
            .endpoints
            .iter()
            .position(|endpoint| endpoint.attachment.network == network.id);
        let endpoint = member.endpoints.remove(at.ok_or_else(missing)?);
        if member.endpoints.is_empty() {
            self.leave_all(&mut state, container).await?;
            return Ok(network.id);
        }
        state.members.insert(container.clone(), member.clone());
        self.tell_names(&mut state, std::slice::from_ref(&network.id));
        let lost = |port: &shoal_overlay::PublishedPort| {
            endpoint.addresses().any(|address| port.address == address)
        };
        if member.published.iter().any(lost) {
            let next = member
                .endpoints
                .iter()
                .find(|next| state.is_way_out(next))
                .cloned();
            member.published = match next {
                Some(next) => {
                    let requests = moved(&member.published, &next.attachment);
                    self.publish(&member, &next.id, requests).await?
                }
                None => {
                    self.kernel.unpublish(container.as_str()).await?;
                    Vec::new()
                }
            };
        }
        self.kernel
            .detach(container.as_str(), member.netns.clone(), &network.id)
            .await?;
        state.release(&endpoint);
        self.files.save_member(&member)?;
        state.members.insert(container.clone(), member);
        Ok(network.id)
    }

    /// A container has another name now.
    pub async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), BridgesError> {
        let mut state = self.state.lock().await;
        let Some(member) = state.members.get_mut(container) else {
            return Ok(());
        };
        name.clone_into(&mut member.name);
        let member = member.clone();
        self.tell_names(&mut state, &networks_of(&member));
        self.files.save_member(&member)
    }

    /// Networks of a container.
    pub async fn settings_of(&self, container: &ContainerId) -> Option<NetworkSettings> {
        let state = self.state.lock().await;
        let member = state.members.get(container)?;
        Some(member.settings(&state.networks))
    }

    /// Publishes the names of these networks anew.
    fn tell_names(&self, state: &mut State, networks: &[String]) {
        for id in networks {
            let Some((network, bridge)) = state
                .networks
                .get(id)
                .and_then(|n| Some((n, n.bridge.as_ref()?)))
            else {
                continue;
            };
            let Ok(zone_id) = id.parse::<NetworkId>() else {
                continue;
            };
            if !network.has_names() {
                continue;
            }
            let hosts: Vec<_> = state
                .members
                .values()
                .filter_map(|member| member.host(id))
                .collect();
            let v4 = bridge.spec.ipv4.map(|place| IpNet::V4(place.subnet));
            let v6 = bridge.spec.ipv6.map(|place| IpNet::V6(place.subnet));
            let subnets = v4.into_iter().chain(v6).collect();
            let zone = Zone::local(&network.name, bridge.spec.internal, subnets, &hosts);
            state.records.insert(zone_id, zone);
        }
        for (id, zone) in state.links() {
            state.records.insert(id, zone);
        }
        (self.names)(state.records.clone());
    }
}

/// A running container that joins a network.
#[derive(Debug, Clone)]
pub struct Joining {
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// Its hostname.
    pub hostname: String,
    /// Its network namespace.
    pub netns: PathBuf,
}

/// The endpoint by which a task publishes ports; its interface has a name that no cluster network uses.
fn task_endpoint() -> EndpointSpec {
    let name = (OPTION_IFNAME.to_owned(), "pub0".to_owned());
    EndpointSpec {
        driver_opts: [name].into(),
        ..EndpointSpec::default()
    }
}

fn networks_of(member: &Member) -> Vec<String> {
    member
        .endpoints
        .iter()
        .map(|endpoint| endpoint.attachment.network.clone())
        .collect()
}

fn bindings_of(
    ports: &BTreeMap<Port, Vec<PublishedPort>>,
) -> BTreeMap<Port, Vec<shoal_api::container::PortBinding>> {
    let binding = |port: &PublishedPort| {
        let number = port.host_port?;
        Some(shoal_api::container::PortBinding {
            host_ip: port.host_ip,
            host_ports: Some((number, number)),
        })
    };
    let published = ports
        .iter()
        .map(|(port, shown)| (*port, shown.iter().filter_map(binding).collect::<Vec<_>>()));
    published
        .filter(|(_, bindings)| !bindings.is_empty())
        .collect()
}
