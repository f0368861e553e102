//! Identity in a cluster: roles, join tokens, the certificate authority and the TLS that carries them.
//!
//! `core` decides (what a token says, who may call what); `io` acts (issues certificates, makes TLS configurations,
//! keeps files). The values are those of SwarmKit's `ca/`; where ours are tighter the item says so.

pub mod core;
pub mod io;

pub use crate::core::{
    authorize::{is_allowed, is_listed},
    role::{PeerIdentity, Role},
    token::{JoinToken, TokenError, admitted_role},
    unlock_key::UnlockKey,
};
pub use io::{
    api_tls::{ApiClientTls, ApiServerTls, KeyFiles},
    bootstrap::fetch_root,
    clock::name_clock,
    files::{IdentityFiles, KeySeal, StoredIdentity},
    issuer::{NODE_CERTIFICATE_VALIDITY, NodeKey, RootCa, RootCertificate, Subject},
    tls::{ClientAuth, NodeIdentity, client_config, peer_identity, server_config, server_name},
};
pub use rustls::ClientConfig;

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A join token was refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// PEM or DER that is not what it should be.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// What was read, for instance `certificate request`.
        what: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate")]
    Issue(#[from] rcgen::Error),
    /// Keys and certificates that TLS does not accept.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A file of the identity could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The manager could not be reached or its handshake was refused.
    #[error("cannot fetch the root certificate from {address}")]
    Fetch {
        /// Where it was tried.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

impl CaError {
    pub(crate) fn invalid(what: &'static str, reason: impl ToString) -> Self {
        Self::Invalid {
            what,
            reason: reason.to_string(),
        }
    }
}
