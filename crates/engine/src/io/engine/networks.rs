//! Networks that a container gains and loses while it exists.

use std::collections::BTreeMap;

use shoal_api::container::{ContainerId, EndpointInfo, EndpointSpec, NetworkMode, NetworkSettings};

use super::{Engine, EngineError};

/// A container's place in networks, for whoever changes it.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkPlace {
    pub id: ContainerId,
    pub name: String,
    pub hostname: String,
    /// Whether it has processes, and so a namespace of its own.
    pub up: bool,
    /// Network of its next start.
    pub mode: NetworkMode,
    /// Further networks of its next start.
    pub endpoints: BTreeMap<String, EndpointSpec>,
    /// What it has now.
    pub settings: NetworkSettings,
}

impl Engine {
    /// Lets `deed` change the networks of a container, which neither starts nor ends meanwhile, and writes down the
    /// mode, endpoints and settings that it returns.
    pub async fn edit_networks<E, F>(
        &self,
        name: &str,
        deed: impl FnOnce(NetworkPlace) -> F,
    ) -> Result<(), E>
    where
        E: From<EngineError>,
        F: Future<Output = Result<NetworkPlace, E>>,
    {
        let entry = self.find(name)?;
        let _op = entry.op.lock().await;
        let record = entry.record();
        if record.removed {
            return Err(EngineError::NoSuchContainer(name.to_owned()).into());
        }
        let before = NetworkPlace {
            id: record.id.clone(),
            name: record.name.clone(),
            hostname: record.hostname.clone(),
            up: record.state.status.is_up(),
            mode: record.spec.host.network_mode.clone(),
            endpoints: record.spec.endpoints.clone(),
            settings: record.network.clone(),
        };
        let place = deed(before.clone()).await?;
        if place == before {
            return Ok(());
        }
        entry.update(|record| {
            record.spec.host.network_mode = place.mode;
            record.spec.endpoints = place.endpoints;
            record.network = place.settings;
        });
        Ok(())
    }
}

/// What remains of a container's network when it has ended: which networks it was in, but no address and no port.
pub(super) fn after_end(settings: &NetworkSettings) -> NetworkSettings {
    let networks = settings.networks.iter().map(|(name, endpoint)| {
        let EndpointInfo {
            network_id, spec, ..
        } = endpoint.clone();
        let endpoint = EndpointInfo {
            network_id,
            spec,
            ..EndpointInfo::default()
        };
        (name.clone(), endpoint)
    });
    NetworkSettings {
        networks: networks.collect(),
        ..NetworkSettings::default()
    }
}
