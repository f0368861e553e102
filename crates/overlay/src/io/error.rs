//! What would not converge.

use std::io;

use super::{kernel::Failure, netns::NetnsError};
use crate::core::{desired::DesiredError, state::Space};

/// What would not converge.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// A name in the configuration that the kernel cannot take.
    #[error("invalid {what} {value:?} for the network plane")]
    Config {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel lacks something that overlay networks need.
    #[error("this kernel lacks {feature}, which overlay networks need")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
        /// What it said when asked.
        source: io::Error,
    },
    /// A namespace could not be opened.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A namespace could not be read.
    #[error("cannot read back the {space}")]
    Observe {
        /// Which.
        space: Space,
        /// What the kernel said.
        source: io::Error,
    },
    /// A network must be encrypted, for which the kernel lacks something.
    #[error(
        "network {network} is encrypted, which this node cannot carry: its kernel lacks WireGuard (CONFIG_WIREGUARD) or IPv6"
    )]
    NoEncryption {
        /// Its name.
        network: String,
    },
    /// The view makes no sense for this node.
    #[error(transparent)]
    Desired(#[from] DesiredError),
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Step {
        /// What was attempted, and where.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The plane's thread could not be started.
    #[error("cannot start the network plane")]
    Start(#[from] io::Error),
    /// The plane's thread has ended.
    #[error("the network plane has stopped")]
    Stopped,
}

impl From<Failure> for PlaneError {
    fn from(failure: Failure) -> Self {
        Self::Step {
            step: failure.step,
            source: failure.source,
        }
    }
}
