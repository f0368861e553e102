//! TLS of the Engine API on TCP: certificates that the operator made, names checked as everywhere on the web. It has
//! nothing to do with the cluster's own root.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::tls::provider;
use crate::CaError;

/// The server's half of a connection.
pub type ServerStream<S> = server::TlsStream<S>;
/// The client's half of a connection.
pub type ClientStream<S> = client::TlsStream<S>;

/// Where a side's certificate and key are, as PEM.
#[derive(Debug, Clone, Copy)]
pub struct KeyFiles<'a> {
    /// The certificate, and those between it and its root.
    pub certificate: &'a Path,
    /// Its private key.
    pub key: &'a Path,
}

impl KeyFiles<'_> {
    fn read(self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let chain = certificates(self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(self.key)?)
            .map_err(|error| CaError::invalid("private key", error))?;
        Ok((chain, key))
    }
}

/// A server of the Engine API over TLS 1.3.
#[derive(Clone)]
pub struct ApiServerTls(TlsAcceptor);

impl std::fmt::Debug for ApiServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServerTls").finish_non_exhaustive()
    }
}

impl ApiServerTls {
    /// Shows the certificate of `own`. With `client_roots`, only callers get in that hold a certificate under one of
    /// the roots in that file.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it should be.
    pub fn new(own: KeyFiles<'_>, client_roots: Option<&Path>) -> Result<Self, CaError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = match client_roots {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| CaError::invalid("certificate authority", error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, key) = own.read()?;
        let config = builder.with_single_cert(chain, key)?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands with a caller.
    ///
    /// # Errors
    /// When the caller speaks no TLS, or has no certificate that is accepted.
    pub async fn accept<S>(&self, stream: S) -> io::Result<ServerStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.accept(stream).await
    }
}

/// A client of the Engine API over TLS 1.3.
#[derive(Clone)]
pub struct ApiClientTls(TlsConnector);

impl std::fmt::Debug for ApiClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClientTls").finish_non_exhaustive()
    }
}

impl ApiClientTls {
    /// Trusts servers under one of `server_roots`, or any server without them, and shows the certificate of `own`.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it should be.
    pub fn new(server_roots: Option<&Path>, own: Option<KeyFiles<'_>>) -> Result<Self, CaError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = match server_roots {
            Some(path) => builder.with_root_certificates(roots(path)?),
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyServer(provider()))),
        };
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = own.read()?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with the server of that name or address.
    ///
    /// # Errors
    /// When the name is none, or the server's certificate is not accepted.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<ClientStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// Accepts every certificate, for `--tls` without `--tlsverify`; the handshake's signature is still checked.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CaError> {
    std::fs::read(path).map_err(|source| CaError::File {
        action: "read",
        path: path.display().to_string(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| CaError::invalid("certificate", error))?;
    if all.is_empty() {
        let reason = format!("{} holds no certificate", path.display());
        return Err(CaError::invalid("certificate", reason));
    }
    Ok(all)
}

fn roots(path: &Path) -> Result<RootCertStore, CaError> {
    let mut store = RootCertStore::empty();
    for root in certificates(path)? {
        store.add(root)?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    struct Pki {
        folder: tempfile::TempDir,
    }

    impl Pki {
        /// A root, a server `localhost`, and a client.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root_key = KeyPair::generate().unwrap();
            let mut root = CertificateParams::new(Vec::new()).unwrap();
            root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let root_pem = root.self_signed(&root_key).unwrap().pem();
            std::fs::write(folder.path().join("ca.pem"), root_pem).unwrap();
            let issuer = Issuer::new(root, root_key);
            for (file, name) in [("server", "localhost"), ("client", "client")] {
                let key = KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
                let certificate = params.signed_by(&key, &issuer).unwrap().pem();
                let at = |end: &str| folder.path().join(format!("{file}{end}"));
                std::fs::write(at(".pem"), certificate).unwrap();
                std::fs::write(at("-key.pem"), key.serialize_pem()).unwrap();
            }
            Self { folder }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn key_files<T>(&self, name: &str, use_it: impl FnOnce(KeyFiles<'_>) -> T) -> T {
            let (certificate, key) = (
                self.file(&format!("{name}.pem")),
                self.file(&format!("{name}-key.pem")),
            );
            use_it(KeyFiles {
                certificate: &certificate,
                key: &key,
            })
        }
    }

    /// Whether a byte comes through from the client to the server.
    async fn talks(server: &ApiServerTls, client: &ApiClientTls, host: &str) -> bool {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, far) = tokio::io::duplex(1 << 16);
        let served = async {
            let mut stream = server.accept(far).await.ok()?;
            stream.read_u8().await.ok()
        };
        let called = async {
            let mut stream = client.connect(host, near).await.ok()?;
            stream.write_u8(7).await.ok()?;
            stream.flush().await.ok()?;
            // Kept until the server is done, which still has something to say.
            Some(stream)
        };
        tokio::join!(served, called).0 == Some(7)
    }

    #[tokio::test]
    async fn only_clients_with_a_certificate_under_the_root_get_in() {
        let (pki, other) = (Pki::new(), Pki::new());
        let ca = pki.file("ca.pem");
        let server = pki
            .key_files("server", |own| ApiServerTls::new(own, Some(&ca)))
            .unwrap();
        let client = |pki: &Pki, roots: Option<&Path>| {
            pki.key_files("client", |own| ApiClientTls::new(roots, Some(own)))
                .unwrap()
        };
        assert!(talks(&server, &client(&pki, Some(&ca)), "localhost").await);
        assert!(talks(&server, &client(&pki, None), "elsewhere").await);
        // The wrong name, a stranger's certificate, a stranger's root, no certificate.
        assert!(!talks(&server, &client(&pki, Some(&ca)), "elsewhere").await);
        assert!(!talks(&server, &client(&other, Some(&ca)), "localhost").await);
        let stranger = other.file("ca.pem");
        assert!(!talks(&server, &client(&pki, Some(&stranger)), "localhost").await);
        let nobody = ApiClientTls::new(Some(&ca), None).unwrap();
        assert!(!talks(&server, &nobody, "localhost").await);
    }

    #[test]
    fn files_that_are_none_are_named() {
        let pki = Pki::new();
        let missing = pki.file("nothing.pem");
        let error = pki
            .key_files("server", |own| ApiServerTls::new(own, Some(&missing)))
            .unwrap_err();
        assert!(error.to_string().ends_with("nothing.pem"), "{error}");
        let key = pki.file("server-key.pem");
        assert!(
            ApiClientTls::new(Some(&key), None)
                .unwrap_err()
                .to_string()
                .contains("holds no certificate")
        );
    }
}
