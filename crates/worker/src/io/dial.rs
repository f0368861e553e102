//! Connections to managers: HTTP/2 over TLS with the node's certificate.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use shoal_ca::{Role, name_clock, server_name};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How long a manager may take to accept; a healthy one needs milliseconds, and others wait to be tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a manager cannot be called.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no answer within {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
}

/// Connects to the manager at `address`, `host:port`. It must hold a manager's certificate of our cluster.
pub(super) async fn dial(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, DialError> {
    // The name is not looked at: what a manager is says its certificate, where it is says `address`.
    let endpoint = Endpoint::from_static("http://manager").tcp_nodelay(true);
    let address = address.to_owned();
    let connect = service_fn(move |_| {
        let (address, connector) = (address.clone(), TlsConnector::from(Arc::clone(&tls)));
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let stream = connector
                .connect(server_name(Role::Manager), stream)
                .await
                .map_err(name_clock)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connect)).await {
        Ok(connected) => connected.map_err(DialError::Connect),
        Err(_) => Err(DialError::Timeout),
    }
}
