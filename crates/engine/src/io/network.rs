//! What the engine needs from networks. The node implements it over the data plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use shoal_api::container::{
    ContainerId, EndpointSpec, NetworkMode, NetworkSettings, Port, PortBinding,
};

/// A container is about to start and wants to be reachable.
#[derive(Debug, Clone)]
pub struct NetworkRequest {
    pub container: ContainerId,
    pub name: String,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    /// Where the namespace is to be made (bind-mounted); what is there already is of an earlier start.
    pub netns: PathBuf,
    /// `Default` or `Network`; the engine serves the other modes itself.
    pub mode: NetworkMode,
    /// By network name or id. Holds at least the network of `mode`.
    pub endpoints: BTreeMap<String, EndpointSpec>,
    pub exposed_ports: BTreeSet<Port>,
    pub port_bindings: BTreeMap<Port, Vec<PortBinding>>,
    pub publish_all_ports: bool,
    /// What the user wants instead of the host's resolver settings; empty means as the host has them.
    pub dns: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
}

/// The container can start.
#[derive(Debug, Clone, Default)]
pub struct NetworkReady {
    /// The namespace to run in.
    pub netns: PathBuf,
    pub settings: NetworkSettings,
    /// For `/etc/resolv.conf`; empty takes the host's.
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
    /// For `/etc/hosts`, besides localhost.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
}

/// Why a container gets no network. The text reaches the user.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("network {0} not found")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// Gives containers their networks.
#[async_trait]
pub trait ContainerNetwork: Send + Sync + 'static {
    /// Makes the namespace, with nothing in it but loopback. Called before every start; whatever an earlier start left is
    /// replaced.
    async fn open(&self, request: &NetworkRequest) -> Result<(), NetworkError>;

    /// Makes all that is in the namespace, while the container is being built; it runs no earlier than this returns.
    async fn setup(&self, request: &NetworkRequest) -> Result<NetworkReady, NetworkError>;

    /// Undoes both, whatever is left of them in the namespace at `netns`. Called after every end, also when they failed or
    /// never were called, and again by a daemon whose predecessor died in it; does what it can.
    async fn teardown(&self, container: &ContainerId, netns: &Path);
}

/// A host without networks: containers have none, the host's, or that of another.
#[derive(Debug, Clone, Copy)]
pub struct NoNetworks;

#[async_trait]
impl ContainerNetwork for NoNetworks {
    async fn open(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        let name = match &request.mode {
            NetworkMode::Network(name) => name.clone(),
            NetworkMode::Default
            | NetworkMode::None
            | NetworkMode::Host
            | NetworkMode::Container(_) => "bridge".into(),
        };
        Err(NetworkError::NotFound(name))
    }

    async fn setup(&self, _request: &NetworkRequest) -> Result<NetworkReady, NetworkError> {
        Ok(NetworkReady::default())
    }

    async fn teardown(&self, _container: &ContainerId, _netns: &Path) {}
}
