//! Containers of users in the cluster's attachable networks.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use shoal_api::{
    NetworkId, TaskId, Timestamp,
    container::{ContainerId, EndpointInfo, EndpointSpec, NetworkMode, NetworkSettings},
    network::{Endpoint, NetworkSlice, NetworkView},
    spec::IpamConfig,
    wire::AttachRequest,
};
use shoal_docker_api::backend::{LocalNetwork, NetworkMember, VXLAN_IDS};
use shoal_engine::io::network::{NetworkError, NetworkRequest};
use shoal_overlay::core::naming;

use super::{NodeNetworks, all};
use crate::{
    attachments::Attachments,
    bridges::{BridgesError, Joining},
    patience::within,
};

/// How long the view with a place that was given may take; it is on its way already.
const VIEW_TIMEOUT: Duration = Duration::from_secs(20);

/// A container that is to get a place.
struct Guest<'a> {
    container: &'a ContainerId,
    name: &'a str,
    netns: &'a Path,
}

impl NodeNetworks {
    /// The places of containers in the cluster's networks.
    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// Takes up the places of a container that outlived an earlier daemon.
    pub(super) async fn adopt_places(
        &self,
        container: &ContainerId,
        netns: &Path,
        settings: &NetworkSettings,
    ) {
        for info in settings.networks.values() {
            // A place's endpoint is its task; one of a bridge has an id of its own.
            if self.bridges.look(&info.network_id).await.is_err()
                && let Ok(place) = info.endpoint_id.parse::<TaskId>()
            {
                self.attachments.adopt(place.clone(), container.clone());
                self.plane.adopt(place, netns);
            }
        }
    }

    /// Puts a container of a user into its networks: those of this host, and the cluster's.
    pub(super) async fn connect_user_container(
        &self,
        request: &NetworkRequest,
    ) -> Result<NetworkSettings, NetworkError> {
        let mut local = request.clone();
        let mut cluster: Vec<(String, EndpointSpec)> = Vec::new();
        if let NetworkMode::Network(name) = &request.mode
            && self.is_cluster_network(name).await
        {
            let spec = local.endpoints.remove(name).unwrap_or_default();
            cluster.push((name.clone(), spec));
        }
        for (name, spec) in &request.endpoints {
            if cluster.iter().all(|(known, _)| known != name) && self.is_cluster_network(name).await
            {
                local.endpoints.remove(name);
                cluster.push((name.clone(), spec.clone()));
            }
        }
        if cluster.is_empty() {
            return self.bridges.connect(request).await;
        }
        let guest = Guest {
            container: &request.container,
            name: &request.name,
            netns: &request.netns,
        };
        let mut places = BTreeMap::new();
        for (name, spec) in &cluster {
            let place = self.attach_place(&guest, name, spec).await;
            let (name, info) = match place {
                Ok(place) => place,
                Err(error) => {
                    // Undone here, because whoever asked knows only that it failed.
                    for place in self.attachments.of(guest.container) {
                        self.detach_place(&place).await;
                    }
                    return Err(error);
                }
            };
            places.insert(name, info);
        }
        let mut settings = match local.endpoints.keys().next() {
            Some(first) => {
                if matches!(&request.mode, NetworkMode::Network(name) if !local.endpoints.contains_key(name))
                {
                    local.mode = NetworkMode::Network(first.clone());
                }
                self.bridges.connect(&local).await?
            }
            None => NetworkSettings {
                sandbox: Some(request.netns.clone()),
                sandbox_id: request.container.as_str().to_owned(),
                ports: self.bridges.publish_for_task(request).await?,
                ..NetworkSettings::default()
            },
        };
        settings.networks.extend(places);
        Ok(settings)
    }

    /// Whether a name is not one of this host's networks, and there is a cluster that may know it.
    async fn is_cluster_network(&self, name: &str) -> bool {
        self.attachments.is_in_cluster() && self.bridges.look(name).await.is_err()
    }

    /// Gets a container a place and connects it; returns the network's name.
    async fn attach_place(
        &self,
        guest: &Guest<'_>,
        network: &str,
        spec: &EndpointSpec,
    ) -> Result<(String, EndpointInfo), NetworkError> {
        let addresses = spec.ipv4.map(IpAddr::V4);
        let addresses = addresses
            .into_iter()
            .chain(spec.ipv6.map(IpAddr::V6))
            .map(|address| address.to_string());
        let wish = AttachRequest {
            network: network.to_owned(),
            container_id: guest.container.as_str().to_owned(),
            container_name: guest.name.trim_start_matches('/').to_owned(),
            aliases: spec.aliases.clone(),
            addresses: addresses.collect(),
            ..AttachRequest::default()
        };
        let place = self.attachments.ask(guest.container, wish).await?;
        let connected = self.connect_place(&place, guest.netns, spec).await;
        if connected.is_err() {
            self.detach_place(&place).await;
        }
        connected
    }

    async fn connect_place(
        &self,
        place: &TaskId,
        netns: &Path,
        spec: &EndpointSpec,
    ) -> Result<(String, EndpointInfo), NetworkError> {
        let seen = self.plane.wait_for(|view| {
            place_in(view, place).map(|(id, slice, _)| (id.clone(), slice.clone()))
        });
        let (id, slice) = within(VIEW_TIMEOUT, seen).await.ok_or_else(|| {
            NetworkError::Failed(
                "the cluster did not tell this node of the place in time".to_owned(),
            )
        })?;
        let attached = self.plane.attach(place.clone(), netns.to_owned()).await;
        attached.map_err(|errors| NetworkError::Failed(all(&errors)))?;
        let endpoint = &slice.endpoints[place];
        let info = endpoint_info(&id, &slice, place, endpoint, spec.clone());
        Ok((slice.name.clone(), info))
    }

    /// Puts a running container into one more network of the cluster.
    pub(super) async fn join_cluster_network(
        &self,
        network: &str,
        who: &Joining,
        spec: &EndpointSpec,
    ) -> Result<(String, EndpointInfo), BridgesError> {
        let guest = Guest {
            container: &who.container,
            name: &who.name,
            netns: &who.netns,
        };
        if self.place_of(network, &who.container).is_some() {
            return Err(BridgesError::Connected {
                container: who.name.clone(),
                network: network.to_owned(),
            });
        }
        self.attach_place(&guest, network, spec)
            .await
            .map_err(|error| match error {
                NetworkError::NotFound(name) => BridgesError::NotFound(name),
                other => BridgesError::Forbidden(other.to_string()),
            })
    }

    /// Takes a running container from a network of the cluster; returns the network's id.
    pub(super) async fn leave_cluster_network(
        &self,
        network: &str,
        container: &ContainerId,
    ) -> Result<String, BridgesError> {
        let (place, id) =
            self.place_of(network, container)
                .ok_or_else(|| BridgesError::NotConnected {
                    container: container.to_string(),
                    network: network.to_owned(),
                })?;
        self.detach_place(&place).await;
        Ok(id.to_string())
    }

    /// The place of a container in a network, named or by id.
    fn place_of(&self, network: &str, container: &ContainerId) -> Option<(TaskId, NetworkId)> {
        let view = self.plane.view();
        self.attachments
            .of(container)
            .into_iter()
            .find_map(|place| {
                let (id, slice, _) = place_in(&view, &place)?;
                (slice.name == network || id.as_str() == network)
                    .then(|| (place.clone(), id.clone()))
            })
    }

    /// Takes a container from a place and gives the place back.
    pub async fn detach_place(&self, place: &TaskId) {
        if let Err(errors) = self.plane.detach(place).await {
            tracing::warn!(task.id = %place, error = all(&errors), "detaching from the cluster's networks");
        }
        self.attachments.end(place);
    }

    /// The cluster's networks that this node carries, with the containers that it has in them.
    pub fn carried(&self) -> Vec<LocalNetwork> {
        let (view, me) = (self.plane.view(), self.plane.identity());
        let by_task: BTreeMap<TaskId, ContainerId> = {
            let known = self.known();
            let held = known.held.iter();
            held.filter_map(|(container, task)| Some((task.clone()?, container.clone())))
                .collect()
        };
        let show = |(id, slice): (&NetworkId, &NetworkSlice)| {
            let own = slice
                .endpoints
                .iter()
                .filter(|(_, endpoint)| Some(&endpoint.node) == me.as_ref());
            let members = own.filter_map(|(task, endpoint)| {
                let container = self
                    .attachments
                    .container(task)
                    .or_else(|| by_task.get(task).cloned())?;
                Some((container.to_string(), member(task, endpoint)))
            });
            let ipam = slice.subnets.iter().map(|subnet| IpamConfig {
                subnet: Some(subnet.range),
                gateway: Some(subnet.gateway),
                ip_range: {
                    let mut ranges = slice.ip_ranges.iter().copied();
                    ranges.find(|range| subnet.range.contains(range))
                },
            });
            let mut options = slice.options.clone();
            options.insert(VXLAN_IDS.to_owned(), slice.vni.to_string());
            LocalNetwork {
                id: id.to_string(),
                name: slice.name.clone(),
                driver: "overlay".to_owned(),
                created: Timestamp::default(),
                internal: slice.internal,
                ipv6: slice
                    .subnets
                    .iter()
                    .any(|subnet| subnet.range.addr().is_ipv6()),
                ipam: ipam.collect(),
                attachable: slice.attachable,
                ingress: slice.ingress,
                options,
                labels: slice.labels.clone(),
                containers: members.collect(),
                ..LocalNetwork::default()
            }
        };
        view.networks.iter().map(show).collect()
    }
}

fn member(task: &TaskId, endpoint: &Endpoint) -> NetworkMember {
    let of = |v4: bool| {
        let mut addresses = endpoint.addresses.iter().copied();
        addresses.find(|net| net.addr().is_ipv4() == v4)
    };
    let mac = of(true).or_else(|| of(false));
    NetworkMember {
        name: endpoint.names.first().cloned().unwrap_or_default(),
        endpoint_id: task.to_string(),
        mac_address: mac.map_or_else(String::new, |net| naming::mac_of(net.addr()).to_string()),
        ipv4: of(true),
        ipv6: of(false),
    }
}

fn place_in<'a>(
    view: &'a NetworkView,
    place: &TaskId,
) -> Option<(&'a NetworkId, &'a NetworkSlice, &'a Endpoint)> {
    view.networks
        .iter()
        .find_map(|(id, slice)| Some((id, slice, slice.endpoints.get(place)?.as_ref())))
}

/// What an endpoint of the view looks like to the owner of the container.
pub(super) fn endpoint_info(
    id: &NetworkId,
    slice: &NetworkSlice,
    task: &TaskId,
    endpoint: &Endpoint,
    spec: EndpointSpec,
) -> EndpointInfo {
    let mut info = EndpointInfo {
        network_id: id.to_string(),
        endpoint_id: task.to_string(),
        dns_names: endpoint.names.clone(),
        spec,
        ..EndpointInfo::default()
    };
    for net in &endpoint.addresses {
        let subnet = slice
            .subnets
            .iter()
            .find(|subnet| subnet.range.contains(&net.addr()));
        match (net.addr(), subnet.map(|subnet| subnet.gateway)) {
            (IpAddr::V4(ip), gateway) => {
                info.ipv4 = Some(ip);
                info.ipv4_prefix_len = net.prefix_len();
                info.mac_address
                    .get_or_insert_with(|| naming::mac_of(ip.into()).to_string());
                if let Some(IpAddr::V4(gateway)) = gateway {
                    info.gateway = Some(gateway);
                }
            }
            (IpAddr::V6(ip), gateway) => {
                info.ipv6 = Some(ip);
                info.ipv6_prefix_len = net.prefix_len();
                if let Some(IpAddr::V6(gateway)) = gateway {
                    info.ipv6_gateway = Some(gateway);
                }
            }
        }
    }
    info
}
