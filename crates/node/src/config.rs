//! How a daemon is set up.

use std::path::PathBuf;

/// Settings of a daemon, from flags and its configuration file.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Images, containers, volumes and the cluster's state.
    pub data_root: PathBuf,
    /// Sockets and handles; empty after a reboot.
    pub exec_root: PathBuf,
    /// Where the API listens: `unix://PATH`; empty is `unix://<exec_root>/shoal.sock`.
    pub hosts: Vec<String>,
    /// cgroup below which containers get theirs.
    pub cgroup_parent: String,
    /// Registries that are spoken to without TLS, besides those on loopback.
    pub insecure_registries: Vec<String>,
    /// Labels of the engine, `key=value`.
    pub labels: Vec<String>,
    /// Name of this host; `None` asks the kernel.
    pub hostname: Option<String>,
    /// Start of the names of our interfaces and nftables tables.
    pub interface_prefix: String,
    /// Whether to log for developers.
    pub debug: bool,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            data_root: "/var/lib/shoal".into(),
            exec_root: "/run/shoal".into(),
            hosts: Vec::new(),
            cgroup_parent: "shoal".to_owned(),
            insecure_registries: Vec::new(),
            labels: Vec::new(),
            hostname: None,
            interface_prefix: "shoal".to_owned(),
            debug: false,
        }
    }
}

impl DaemonConfig {
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
}
