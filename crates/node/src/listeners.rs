//! Where the Engine API listens: unix sockets, and TCP with TLS.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use futures_util::future::BoxFuture;
use nix::unistd::Group;
use shoal_ca::{ApiServerTls, KeyFiles};
use shoal_docker_api::{Accepted, Caller, Connection, Listener, Server};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::config::{DaemonConfig, tcp_address};

/// Group that gets the unix sockets if the operator names none, and if there is one.
const DEFAULT_GROUP: &str = "shoal";

/// Sockets that are bound and not served yet.
pub(crate) struct Listeners {
    unix: Vec<(PathBuf, UnixListener)>,
    tcp: Vec<Tcp>,
}

struct Tcp {
    listener: TcpListener,
    tls: Option<ApiServerTls>,
}

impl Listener for Tcp {
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async {
            let (stream, _) = self.listener.accept().await?;
            // Answers are short and waited for.
            stream.set_nodelay(true)?;
            let tls = self.tls.clone();
            let accepted: Accepted = Box::pin(async move {
                let connection: Connection = match tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(tls.accept(stream).await?),
                };
                Ok(Caller {
                    connection,
                    socket: None,
                })
            });
            Ok(accepted)
        })
    }
}

impl Listeners {
    /// Binds all that the configuration names; the first unix socket is always among them.
    pub(crate) async fn bind(config: &DaemonConfig) -> Result<Self> {
        let mut unix_paths = vec![config.socket()];
        let mut tcp = Vec::new();
        for host in &config.hosts {
            match (host.strip_prefix("unix://"), tcp_address(host)) {
                (Some(path), _) if !unix_paths.iter().any(|known| known == Path::new(path)) => {
                    unix_paths.push(path.into());
                }
                (Some(_), _) => {}
                (None, Some(address)) => tcp.push(bind_tcp(host, address, config).await?),
                (None, None) => bail!("invalid hosts: {host:?}"),
            }
        }
        let group = group(config.group.as_deref())?;
        let mut unix = Vec::new();
        for path in unix_paths {
            unix.push((path.clone(), bind_unix(&path, group.as_ref())?));
        }
        Ok(Self { unix, tcp })
    }

    /// Serves all until `stop`, and takes the unix sockets away.
    pub(crate) async fn serve(self, api: &Server, stop: &CancellationToken) -> Result<()> {
        let mut serving = JoinSet::new();
        let mut paths = Vec::new();
        for (path, listener) in self.unix {
            let (api, stop) = (api.clone(), stop.clone());
            serving.spawn(async move { api.serve(listener, stop).await });
            paths.push(path);
        }
        for listener in self.tcp {
            let (api, stop) = (api.clone(), stop.clone());
            serving.spawn(async move { api.serve(listener, stop).await });
        }
        while let Some(ended) = serving.join_next().await {
            ended?.context("the API server ended")?;
        }
        for path in paths {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

/// The group of the unix sockets: one that is named must be there.
fn group(named: Option<&str>) -> Result<Option<Group>> {
    let name = named.unwrap_or(DEFAULT_GROUP);
    let found = Group::from_name(name).with_context(|| format!("cannot look up group {name:?}"))?;
    if found.is_none() && named.is_some() {
        bail!("could not change group of the socket to {name}: group {name} not found");
    }
    Ok(found)
}

fn bind_unix(socket: &Path, group: Option<&Group>) -> Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => {
            return Err(problem).with_context(|| format!("cannot replace {}", socket.display()));
        }
        _ => {}
    }
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    // The socket is root's power over this host: nobody else's, but for the group that root gives it to.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(socket, None, Some(group.gid.as_raw()))?;
    }
    Ok(listener)
}

async fn bind_tcp(host: &str, address: SocketAddr, config: &DaemonConfig) -> Result<Tcp> {
    let files = &config.tls;
    let tls = if files.enabled {
        let own = KeyFiles {
            certificate: &files.certificate,
            key: &files.key,
        };
        let roots = files.verify.then_some(files.ca.as_path());
        Some(
            ApiServerTls::new(own, roots)
                .with_context(|| format!("cannot serve {host} over TLS"))?,
        )
    } else {
        None
    };
    if tls.is_none() || !files.verify {
        tracing::warn!(
            host,
            "THE API LISTENS WITHOUT CLIENT CERTIFICATES: every user and every process of this host can become root"
        );
    }
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {host}"))?;
    Ok(Tcp { listener, tls })
}

/// What `docker info` says of TCP sockets that let everybody in, in docker's words.
pub(crate) fn warnings(config: &DaemonConfig) -> Vec<String> {
    const MORE: &str = "Access to the remote API is equivalent to root access on the\n         host. Refer to the 'Docker \
        daemon attack surface' section in the\n         documentation for more information: \
        https://docs.docker.com/go/attack-surface/";
    let open = config
        .hosts
        .iter()
        .filter_map(|host| host.strip_prefix("tcp://"));
    open.filter_map(|address| {
        if !config.tls.enabled {
            Some(format!("WARNING: API is accessible on http://{address} without encryption.\n         {MORE}"))
        } else if !config.tls.verify {
            Some(format!("WARNING: API is accessible on https://{address} without TLS client verification.\n         {MORE}"))
        } else {
            None
        }
    })
    .collect()
}
