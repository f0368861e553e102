//! Containers that join and leave networks while they exist.

use std::sync::Arc;

use shoal_api::container::{EndpointInfo, EndpointSpec, NetworkMode};
use shoal_docker_api::{
    ApiError, EngineBackend,
    backend::{ApiResult, LocalNetwork},
};
use shoal_engine::io::{EngineError, engine::NetworkPlace};

use super::{EngineApi, errors};
use crate::bridges::{BRIDGE, BridgesError, Joining};

impl EngineApi {
    /// Writes down for a new container which networks it will be in, as far as they exist.
    pub(super) async fn note_networks(&self, container: &str) -> ApiResult<()> {
        let networks = Arc::clone(&self.networks);
        let edited = self
            .engine
            .edit_networks(container, |mut place| async move {
                let first = match &place.mode {
                    NetworkMode::Default => Some(BRIDGE),
                    NetworkMode::Network(name) => Some(name.as_str()),
                    NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => None,
                };
                let further = place.endpoints.keys().map(String::as_str);
                for name in first.into_iter().chain(further) {
                    if let Ok(network) = networks.bridges().look(name).await {
                        let spec = place.endpoints.get(name).cloned().unwrap_or_default();
                        let info = future_endpoint(&network, spec);
                        place.settings.networks.insert(network.name, info);
                    }
                }
                Ok(place)
            });
        edited.await.map_err(|error: EditError| error.0)
    }

    /// A network of this host, or one that the cluster may have: its managers say when it is joined.
    async fn known_network(&self, name: &str) -> ApiResult<LocalNetwork> {
        match self.network(name).await {
            Err(_) if self.networks.attachments().is_in_cluster() => {
                let carried = self.networks.carried().into_iter();
                let mut known = carried.filter(|n| n.name == name || n.id == name);
                let known = known.next();
                Ok(known.unwrap_or_else(|| LocalNetwork {
                    id: name.to_owned(),
                    name: name.to_owned(),
                    driver: "overlay".to_owned(),
                    ..LocalNetwork::default()
                }))
            }
            found => found,
        }
    }

    /// Puts a container into one more network, now if it runs, and for its next starts.
    pub(super) async fn join_network(
        &self,
        network: &str,
        container: &str,
        endpoint: EndpointSpec,
    ) -> ApiResult<()> {
        // Managers are asked by what the user says: this node may still know one of that name which is gone.
        let asked = network.to_owned();
        let network = self.known_network(network).await?;
        let networks = Arc::clone(&self.networks);
        let wanted = network.clone();
        let edited = self
            .engine
            .edit_networks(container, |mut place| async move {
                check_own_stack(&place)?;
                let known = place.endpoints.contains_key(&wanted.name)
                    || (!place.up && is_of_mode(&place.mode, &wanted));
                if known && !place.up {
                    let (container, network) = (place.name, wanted.name);
                    return Err(EditError::from(BridgesError::Connected {
                        container,
                        network,
                    }));
                }
                if place.up {
                    let netns = place.settings.sandbox.clone().ok_or_else(|| {
                        EditError(ApiError::conflict("container has no network of its own"))
                    })?;
                    let who = Joining {
                        container: place.id.clone(),
                        name: place.name.clone(),
                        hostname: place.hostname.clone(),
                        netns,
                    };
                    let (name, info) = networks.join(&asked, &who, endpoint.clone()).await?;
                    if place.settings.networks.is_empty() {
                        place.mode = NetworkMode::Network(name.clone());
                    }
                    place.settings.networks.insert(name, info);
                } else {
                    if place.mode == NetworkMode::None {
                        place.mode = NetworkMode::Network(wanted.name.clone());
                    }
                    let info = future_endpoint(&wanted, endpoint.clone());
                    place.settings.networks.insert(wanted.name.clone(), info);
                }
                place.endpoints.insert(wanted.name, endpoint);
                Ok(place)
            });
        edited.await.map_err(|error: EditError| error.0)?;
        let id = self.container_inspect(container, false).await?.id;
        self.tell_network("connect", &network, Some(id.as_str()));
        Ok(())
    }

    /// Takes a container from a network, now if it runs, and for its next starts.
    pub(super) async fn leave_network(&self, network: &str, container: &str) -> ApiResult<()> {
        let asked = network.to_owned();
        let network = self.known_network(network).await?;
        let networks = Arc::clone(&self.networks);
        let wanted = network.clone();
        let edited = self
            .engine
            .edit_networks(container, |mut place| async move {
                check_own_stack(&place)?;
                let of_mode = is_of_mode(&place.mode, &wanted);
                if place.up {
                    let left = networks.leave(&asked, &place.id).await?;
                    place.settings.ports = left.ports;
                } else if !of_mode && !place.endpoints.contains_key(&wanted.name) {
                    let (container, network) = (place.id.to_string(), wanted.name);
                    return Err(EditError::from(BridgesError::NotConnected {
                        container,
                        network,
                    }));
                }
                place.endpoints.remove(&wanted.name);
                place.settings.networks.remove(&wanted.name);
                if of_mode {
                    place.mode = match place.endpoints.keys().next() {
                        Some(next) => NetworkMode::Network(next.clone()),
                        // Its namespace is the one that it started with, so the mode of that stays until it ends.
                        None if place.up => place.mode,
                        None => NetworkMode::None,
                    };
                }
                Ok(place)
            });
        edited.await.map_err(|error: EditError| error.0)?;
        let id = self.container_inspect(container, false).await?.id;
        self.tell_network("disconnect", &network, Some(id.as_str()));
        Ok(())
    }
}

/// An endpoint of a container that does not run.
fn future_endpoint(network: &LocalNetwork, spec: EndpointSpec) -> EndpointInfo {
    EndpointInfo {
        network_id: network.id.clone(),
        spec,
        ..EndpointInfo::default()
    }
}

/// Why an edit of networks failed: because of the engine or of the networks.
struct EditError(ApiError);

impl From<EngineError> for EditError {
    fn from(error: EngineError) -> Self {
        Self(errors::engine(error))
    }
}

impl From<BridgesError> for EditError {
    fn from(error: BridgesError) -> Self {
        Self(errors::network(error))
    }
}

/// Refuses containers whose network stack is not their own, in docker's words.
fn check_own_stack(place: &NetworkPlace) -> Result<(), EditError> {
    let text = match &place.mode {
        NetworkMode::Host => {
            "container cannot be disconnected from host network or connected to host network"
        }
        NetworkMode::Container(_) => {
            "container sharing network namespace with another container or host cannot be connected to any other network"
        }
        NetworkMode::None if place.up => {
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        }
        NetworkMode::None | NetworkMode::Default | NetworkMode::Network(_) => return Ok(()),
    };
    Err(EditError(ApiError::conflict(text)))
}

fn is_of_mode(mode: &NetworkMode, network: &LocalNetwork) -> bool {
    match mode {
        NetworkMode::Default => network.name == BRIDGE,
        NetworkMode::Network(name) => *name == network.name || *name == network.id,
        NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => false,
    }
}
