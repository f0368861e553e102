//! How a daemon is set up: flags, `daemon.json`, and what of it changes while the daemon runs.

mod file;
mod generic;
mod network;
mod settings;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use shoal_api::{
    container::{ContainerSpec, Ulimit},
    spec::GenericResource,
};

pub use file::{ConfigError, DEFAULT_FILE};
pub use network::{DefaultBridge, NetworkDefaults};
pub use settings::ApiTls;
pub(crate) use settings::tcp_address;

/// Settings that a running daemon takes over on SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloadable {
    /// Whether to log for developers.
    pub debug: bool,
    /// What is logged at least: `debug`, `info`, `warn`, `error`, `fatal`.
    pub log_level: String,
    /// Labels of the engine, `key=value`.
    pub labels: Vec<String>,
    /// Registries that are spoken to without TLS, besides those on loopback.
    pub insecure_registries: Vec<String>,
    /// Registries that are asked before Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// Layers of one pull that are downloaded at the same time.
    pub max_concurrent_downloads: Option<u32>,
    /// Layers of one push that are uploaded at the same time.
    pub max_concurrent_uploads: Option<u32>,
}

/// What containers get that do not say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerDefaults {
    /// Log driver; `None` is `json-file`.
    pub log_driver: Option<String>,
    /// Its options.
    pub log_opts: Vec<(String, String)>,
    /// Limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// Whether there is an init.
    pub init: Option<bool>,
    /// Whether processes can get no more privileges.
    pub no_new_privileges: bool,
    /// Bytes of `/dev/shm`.
    pub shm_size: Option<u64>,
    /// Whom the resolver asks.
    pub dns: Vec<IpAddr>,
    /// Where it looks for short names.
    pub dns_search: Vec<String>,
    /// Its options.
    pub dns_options: Vec<String>,
    /// Cgroup namespace: `private` or `host`.
    pub cgroupns_mode: Option<String>,
    /// IPC namespace: `private` or `shareable`.
    pub ipc_mode: Option<String>,
    /// What `host-gateway` stands for in `--add-host`; `None` is the host's address in the container's network.
    pub host_gateway: Option<IpAddr>,
}

/// Settings of a daemon, from flags and its configuration file.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Images, containers, volumes and the cluster's state.
    pub data_root: PathBuf,
    /// Sockets and handles; empty after a reboot.
    pub exec_root: PathBuf,
    /// Where the API listens: `unix://PATH`, `tcp://ADDRESS:PORT`; empty is `unix://<exec_root>/shoal.sock`.
    pub hosts: Vec<String>,
    /// Group that may use the unix sockets; `None` is `shoal` if there is one.
    pub group: Option<String>,
    /// TLS of the API on TCP.
    pub tls: ApiTls,
    /// File that holds the process id while the daemon runs.
    pub pidfile: Option<PathBuf>,
    /// cgroup below which containers get theirs.
    pub cgroup_parent: String,
    /// What containers get that do not say otherwise.
    pub defaults: ContainerDefaults,
    /// What this host has besides processors and memory, for tasks that ask for it.
    pub generic_resources: BTreeMap<String, GenericResource>,
    /// Name of this host; `None` asks the kernel.
    pub hostname: Option<String>,
    /// Start of the names of our interfaces and nftables tables.
    pub interface_prefix: String,
    /// What distributes the connections of a service over its tasks.
    pub lb_driver: shoal_overlay::LbDriver,
    /// How the managers on this host agree: how often a leader is heard of, and after which silence another is chosen.
    pub raft: shoal_manager::RaftConfig,
    /// What networks of this host get that do not say otherwise.
    pub networks: NetworkDefaults,
    /// Where specifications of devices are (CDI).
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// What the file named without effect here, for a warning each.
    pub warnings: Vec<String>,
    /// Where the settings came from, to read them again.
    source: Source,
    live: Arc<RwLock<Arc<Reloadable>>>,
}

/// Flags by the names of the file's keys, and the file.
#[derive(Debug, Clone, Default)]
struct Source {
    flags: file::Keys,
    path: Option<PathBuf>,
}

impl DaemonConfig {
    /// Puts flags and the file together. `flags` hold what the user said, by the keys of `daemon.json`; `path` is the
    /// file that the user named, else [`DEFAULT_FILE`] is read if it is there.
    ///
    /// # Errors
    /// When a key is unknown, given by both, or has a value that makes no sense, in docker's words.
    pub fn load(
        flags: serde_json::Map<String, serde_json::Value>,
        path: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let source = Source {
            flags,
            path: path.map(Path::to_owned),
        };
        let keys = file::merge(&source.flags, source.path.as_deref())?;
        settings::read(keys, source)
    }

    /// What may change while the daemon runs, as it is now.
    pub fn live(&self) -> Arc<Reloadable> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&live)
    }

    /// Reads the file again and takes over what may change; the rest waits for the next start.
    ///
    /// # Errors
    /// As [`Self::load`]; then everything stays as it was.
    pub fn reload(&self) -> Result<Arc<Reloadable>, ConfigError> {
        let keys = file::merge(&self.source.flags, self.source.path.as_deref())?;
        let fresh = settings::read(keys, self.source.clone())?.live();
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        *live = Arc::clone(&fresh);
        Ok(fresh)
    }

    /// Path of the first unix socket of the API.
    pub fn socket(&self) -> PathBuf {
        let first = self
            .hosts
            .iter()
            .find_map(|host| host.strip_prefix("unix://"));
        first.map_or_else(|| self.exec_root.join("shoal.sock"), PathBuf::from)
    }

    /// This host's name.
    pub fn hostname(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| {
            let name = nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| "localhost".to_owned())
        })
    }

    /// Fills in what a container does not say.
    pub fn fill(&self, spec: &mut ContainerSpec) {
        let (defaults, host) = (&self.defaults, &mut spec.host);
        if host.log.driver.as_deref().is_none_or(str::is_empty) {
            host.log.driver.clone_from(&defaults.log_driver);
            // Options belong to a driver: those of the default one go with it alone.
            for (name, value) in &defaults.log_opts {
                let options = &mut host.log.options;
                options.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        for limit in &defaults.ulimits {
            if host.ulimits.iter().all(|own| own.name != limit.name) {
                host.ulimits.push(limit.clone());
            }
        }
        host.init = host.init.or(defaults.init);
        host.shm_size = host.shm_size.or(defaults.shm_size);
        let says = |option: &String| option.starts_with("no-new-privileges");
        if defaults.no_new_privileges && !host.security_opt.iter().any(says) {
            host.security_opt.push("no-new-privileges".to_owned());
        }
        for (own, usual) in [
            (&mut host.cgroupns_mode, &defaults.cgroupns_mode),
            (&mut host.ipc_mode, &defaults.ipc_mode),
        ] {
            if own.as_deref().is_none_or(str::is_empty) {
                own.clone_from(usual);
            }
        }
        if let Some(address) = defaults.host_gateway {
            for extra in &mut host.extra_hosts {
                if let Some(name) = extra.strip_suffix("host-gateway") {
                    *extra = format!("{name}{address}");
                }
            }
        }
        if host.dns.is_empty() {
            host.dns.clone_from(&defaults.dns);
        }
        if host.dns_search.is_empty() {
            host.dns_search.clone_from(&defaults.dns_search);
        }
        if host.dns_options.is_empty() {
            host.dns_options.clone_from(&defaults.dns_options);
        }
    }
}

impl Default for DaemonConfig {
    fn default() -> Self {
        let keys = file::Keys::new();
        settings::read(keys, Source::default()).expect("no key is wrong where there is none")
    }
}

#[cfg(test)]
mod tests;
