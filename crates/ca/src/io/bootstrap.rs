//! A joiner's first contact: it knows a token and an address, and trusts nothing yet.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    clock::name_clock,
    issuer::RootCertificate,
    tls::{provider, root_store, server_name},
};
use crate::{
    CaError,
    core::{
        role::Role,
        token::{JoinToken, TokenError},
    },
};

/// How long a manager may take to accept and to show its certificate. A healthy one needs milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches the root certificate of the cluster that a token is for from the manager at `address` (`host:port`).
///
/// Managers present their root along with their certificate. The handshake succeeds only when the presented root has
/// the token's digest *and* the server holds a manager's certificate under it, so nothing is ever said to a stranger.
///
/// # Errors
/// [`TokenError::ForeignRoot`] when another cluster answers; [`CaError::Fetch`] when nobody does, or with a
/// certificate that is not valid (now).
pub async fn fetch_root(address: &str, token: &JoinToken) -> Result<RootCertificate, CaError> {
    let verifier = Arc::new(TokenVerifier {
        token: token.clone(),
        outcome: Mutex::new(None),
    });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    let handshake = async {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(server_name(Role::Manager), stream)
            .await
    };
    let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let outcome = verifier.outcome.lock().expect("no holder panics").take();
    match (connected, outcome) {
        (Ok(_), Some(Ok(root))) => Ok(root),
        (_, Some(Err(foreign))) => Err(foreign.into()),
        (Err(source), _) => Err(CaError::Fetch {
            address: address.to_owned(),
            source: name_clock(source),
        }),
        (Ok(_), None) => Err(CaError::invalid(
            "handshake",
            "the server showed no certificate",
        )),
    }
}

/// Accepts a server whose presented root has the digest of a token, and under that root only.
#[derive(Debug)]
struct TokenVerifier {
    token: JoinToken,
    outcome: Mutex<Option<Result<RootCertificate, TokenError>>>,
}

impl ServerCertVerifier for TokenVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let outcome = intermediates
            .iter()
            .find(|certificate| self.token.matches_root(certificate))
            .map(|certificate| RootCertificate::from_der(certificate.clone().into_owned()))
            .ok_or(TokenError::ForeignRoot);
        *self.outcome.lock().expect("no holder panics") = Some(outcome.clone());
        let refuse = |reason: String| rustls::Error::General(reason);
        let root = outcome.map_err(|error| refuse(error.to_string()))?;
        let roots = root_store(&root).map_err(|error| refuse(error.to_string()))?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| refuse(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
