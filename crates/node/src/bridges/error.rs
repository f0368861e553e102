//! What can go wrong with the networks of this host.

use std::{io, net::SocketAddr, path::PathBuf};

use shoal_engine::io::network::NetworkError;
use shoal_overlay::{BridgeError, core::ipam::IpamError};

use crate::network::chain;

/// A failed deed on a network of this host. Texts of errors that docker has too are docker's.
#[derive(Debug, thiserror::Error)]
pub enum BridgesError {
    /// There is no such network.
    #[error("network {0} not found")]
    NotFound(String),
    /// Somebody has the name.
    #[error("network with name {0} already exists")]
    NameTaken(String),
    /// `bridge`, `host` and `none` stay.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// Containers are in it.
    #[error("error while removing network: network {network} has active endpoints ({endpoints})")]
    Active {
        /// Its name.
        network: String,
        /// Who is in it.
        endpoints: String,
    },
    /// The container is in it already.
    #[error("endpoint with name {container} already exists in network {network}")]
    Connected {
        /// Name of the container.
        container: String,
        /// Name of the network.
        network: String,
    },
    /// The container is not in it.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container.
        container: String,
        /// Name of the network.
        network: String,
    },
    /// Another network or the host has these addresses.
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    Overlap,
    /// There is room for no further network.
    #[error("all predefined address pools have been fully subnetted")]
    NoSubnet,
    /// Another container of this network has the address.
    #[error("Address already in use")]
    AddressTaken,
    /// Docker does not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// We cannot do it; names what.
    #[error("{0} is not supported by this version of shoal")]
    Unsupported(String),
    /// A port of the host is taken.
    #[error(
        "driver failed programming external connectivity on endpoint {container} ({endpoint}): {reason}"
    )]
    Port {
        /// Name of the container.
        container: String,
        /// Its endpoint.
        endpoint: String,
        /// Why, in docker's words.
        reason: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(BridgeError),
    /// A file of ours.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BridgesError {
    /// For `map_err`: what was attempted on which file.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<IpamError> for BridgesError {
    fn from(error: IpamError) -> Self {
        match error {
            IpamError::Taken(_) => Self::AddressTaken,
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl From<BridgeError> for BridgesError {
    fn from(error: BridgeError) -> Self {
        match error {
            BridgeError::NoNetwork(id) => Self::NotFound(id),
            BridgeError::Overlap { .. } => Self::Overlap,
            other => Self::Kernel(other),
        }
    }
}

impl From<BridgesError> for NetworkError {
    fn from(error: BridgesError) -> Self {
        match error {
            BridgesError::NotFound(name) => Self::NotFound(name),
            BridgesError::AddressTaken | BridgesError::Connected { .. } => {
                Self::Conflict(error.to_string())
            }
            BridgesError::Invalid(_) | BridgesError::Unsupported(_) => {
                Self::Invalid(error.to_string())
            }
            _ => Self::Failed(chain(&error)),
        }
    }
}

/// Docker's words for a port that could not be had.
pub(super) fn port_reason(error: &BridgeError) -> Option<String> {
    match error {
        BridgeError::PortAllocated { host_ip, host_port } => Some(format!(
            "Bind for {} failed: port is already allocated",
            SocketAddr::new(*host_ip, *host_port)
        )),
        BridgeError::PortBusy {
            host_ip,
            host_port,
            protocol,
            source,
        } => {
            let said = match source.kind() {
                io::ErrorKind::AddrInUse => "address already in use".to_owned(),
                io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
                _ => source.to_string(),
            };
            Some(format!(
                "failed to bind host port {}/{protocol}: {said}",
                SocketAddr::new(*host_ip, *host_port)
            ))
        }
        _ => None,
    }
}
