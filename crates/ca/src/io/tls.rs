//! TLS configurations: 1.3 only, both ends under the cluster's root, names are roles and not addresses.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use shoal_api::Timestamp;

use super::issuer::RootCertificate;
use crate::{
    CaError,
    core::role::{PeerIdentity, Role},
};

/// The application protocol on the cluster's port (RFC 9113 §3.2).
const ALPN: &[u8] = b"h2";

/// A node's key and certificate with the root that it trusts.
#[derive(Clone)]
pub struct NodeIdentity {
    root: RootCertificate,
    certificate_pem: String,
    key_pem: String,
    peer: PeerIdentity,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Puts together what an issuer gave out; checks that the certificate is under the root and that the key fits.
    ///
    /// An expired certificate is accepted here: whoever it is shown to refuses it, and its owner must say so clearly.
    pub fn new(
        root: RootCertificate,
        certificate_pem: String,
        key_pem: String,
    ) -> Result<Self, CaError> {
        const WHAT: &str = "node certificate";
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| CaError::invalid(WHAT, error))?;
        let peer = peer_identity(&der)?;
        // While the root is replaced, a certificate from the new one comes with the old one's word for it.
        let intermediates = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .skip(1)
            .filter_map(Result::ok)
            .map(RootCertificate::from_der);
        let is_believed = root.has_signed(&der)
            || intermediates
                .into_iter()
                .any(|between| root.has_signed(between.der()) && between.has_signed(&der));
        if !is_believed {
            return Err(CaError::invalid(
                WHAT,
                "it was not issued by the cluster's root",
            ));
        }
        let identity = Self {
            root,
            certificate_pem,
            key_pem,
            peer,
        };
        let (chain, key) = identity.chain_and_key()?;
        // Loading both into one structure is how rustls compares them.
        rustls::sign::CertifiedKey::from_der(chain, key, &provider())?;
        Ok(identity)
    }

    /// Who we are to others.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The root that we trust.
    pub fn root(&self) -> &RootCertificate {
        &self.root
    }

    /// The same certificate and key under another root that has issued it.
    ///
    /// # Errors
    /// That root has not issued it.
    pub fn under_root(&self, root: RootCertificate) -> Result<Self, CaError> {
        Self::new(root, self.certificate_pem.clone(), self.key_pem.clone())
    }

    /// Whether this root's key has signed our certificate.
    pub fn is_issued_by(&self, root: &RootCertificate) -> bool {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .is_ok_and(|der| root.has_signed(&der))
    }

    /// Our certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Our private key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The chain that we present. It includes the root, so that a joiner can recognise the cluster by its token.
    fn chain_and_key(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let mut chain = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CaError::invalid("node certificate", error))?;
        chain.push(self.root.der().clone());
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| CaError::invalid("node key", error))?;
        Ok((chain, key))
    }
}

/// Whether a server insists on a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Callers without one are let in; the authorization table restricts them to the bootstrap calls.
    Optional,
    /// Callers without one are turned away in the handshake.
    Required,
}

/// The configuration of a server. A certificate that is presented must be valid and under the cluster's root.
pub fn server_config(
    identity: &NodeIdentity,
    clients: ClientAuth,
) -> Result<Arc<ServerConfig>, CaError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(root_store(&identity.root)?),
        provider(),
    );
    let verifier = match clients {
        ClientAuth::Optional => verifier.allow_unauthenticated(),
        ClientAuth::Required => verifier,
    }
    .build()
    .map_err(|error| CaError::invalid("root certificate", error))?;
    let (chain, key) = identity.chain_and_key()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // No resumption: every connection shows its certificate again, so expiry and removal take hold at once.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The configuration of a client, with a certificate of its own when it has one.
///
/// Connect with [`server_name`]: the server must hold a manager's certificate under this root.
pub fn client_config(
    root: &RootCertificate,
    own: Option<&NodeIdentity>,
) -> Result<Arc<ClientConfig>, CaError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(root_store(root)?), provider())
            .build()
            .map_err(|error| CaError::invalid("root certificate", error))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = own.chain_and_key()?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name to verify a server under: the role that it must hold.
pub fn server_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(role.certificate_name()).expect("role names are DNS names")
}

/// Reads who the holder of a certificate is. The caller has verified the certificate, or its own TLS stack has.
pub fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, CaError> {
    const WHAT: &str = "node certificate";
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| CaError::invalid(WHAT, error))?;
    let subject = parsed.subject();
    let single = |name: &str, mut values: Vec<&str>| match (values.pop(), values.is_empty()) {
        (Some(value), true) => Ok(value.to_owned()),
        _ => Err(CaError::invalid(
            WHAT,
            format!("its subject must have exactly one {name}"),
        )),
    };
    fn texts<'a>(
        attributes: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    ) -> Vec<&'a str> {
        attributes
            .filter_map(|attribute| attribute.as_str().ok())
            .collect()
    }
    let common_name = single("common name", texts(subject.iter_common_name()))?;
    let unit = single(
        "organizational unit",
        texts(subject.iter_organizational_unit()),
    )?;
    let organization = single("organization", texts(subject.iter_organization()))?;
    let seconds = |at: i64| Timestamp(at.saturating_mul(1_000_000_000));
    Ok(PeerIdentity {
        node_id: common_name
            .parse()
            .map_err(|error| CaError::invalid(WHAT, error))?,
        role: Role::from_certificate_name(&unit)
            .ok_or_else(|| CaError::invalid(WHAT, format!("{unit:?} is no role")))?,
        cluster_id: organization
            .parse()
            .map_err(|error| CaError::invalid(WHAT, error))?,
        serial: parsed
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        not_before: seconds(parsed.validity().not_before.timestamp()),
        not_after: seconds(parsed.validity().not_after.timestamp()),
    })
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(super) fn root_store(root: &RootCertificate) -> Result<RootCertStore, CaError> {
    let mut store = RootCertStore::empty();
    store.add(root.der().clone())?;
    Ok(store)
}

#[cfg(test)]
mod tests;
