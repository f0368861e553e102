//! `daemon.json`: its keys, and how it goes together with the flags.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// The file that is read if no other is named.
pub const DEFAULT_FILE: &str = "/etc/shoal/daemon.json";

/// Settings by key.
pub(super) type Keys = Map<String, Value>;

/// Why a daemon cannot be set up so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("unable to configure the Shoal daemon with file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file makes no sense, or not together with the flags.
    #[error("unable to configure the Shoal daemon with file {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why, in docker's words.
        reason: String,
    },
    /// A value makes no sense.
    #[error("invalid {key}: {reason}")]
    Value {
        /// The key of the file, or that of the flag.
        key: String,
        /// The value, and what would be right.
        reason: String,
    },
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It does what docker's does.
    Works,
    /// It is always so here, or says nothing: accepted in silence.
    Always,
    /// It does nothing here; the daemon says so.
    None(&'static str),
    /// It asks for a protection that there is not: starting without would be worse than not starting.
    Refused(&'static str),
}

/// The keys of docker's daemon.json (dockerd's documentation, version 28), and some of its flags.
pub(super) const KEYS: &[(&str, Effect)] = &[
    (
        "allow-nondistributable-artifacts",
        Effect::None("all layers are pushed alike"),
    ),
    (
        "api-cors-header",
        Effect::Refused("the API is not for browsers"),
    ),
    (
        "authorization-plugins",
        Effect::Refused("there are no authorization plugins; use TLS with client certificates"),
    ),
    ("bip", Effect::Works),
    ("bip6", Effect::Works),
    (
        "bridge",
        Effect::None("the default bridge is the daemon's own"),
    ),
    (
        "builder",
        Effect::None("there is no build cache to collect"),
    ),
    ("cdi-spec-dirs", Effect::Works),
    ("cgroup-parent", Effect::Works),
    ("containerd", Effect::None("there is no containerd")),
    (
        "containerd-namespace",
        Effect::None("there is no containerd"),
    ),
    (
        "containerd-plugins-namespace",
        Effect::None("there is no containerd"),
    ),
    (
        "cpu-rt-period",
        Effect::None("real-time scheduling is left to the kernel"),
    ),
    (
        "cpu-rt-runtime",
        Effect::None("real-time scheduling is left to the kernel"),
    ),
    ("data-root", Effect::Works),
    ("debug", Effect::Works),
    ("default-address-pools", Effect::Works),
    ("default-cgroupns-mode", Effect::Works),
    ("default-gateway", Effect::None("the bridge is the gateway")),
    (
        "default-gateway-v6",
        Effect::None("the bridge is the gateway"),
    ),
    ("default-ipc-mode", Effect::Works),
    ("default-network-opts", Effect::Works),
    ("default-runtime", Effect::None("there is one runtime")),
    ("default-shm-size", Effect::Works),
    ("default-ulimits", Effect::Works),
    ("dns", Effect::Works),
    ("dns-opts", Effect::Works),
    ("dns-search", Effect::Works),
    ("exec-opts", Effect::Works),
    ("exec-root", Effect::Works),
    (
        "experimental",
        Effect::None("there are no experimental features"),
    ),
    ("features", Effect::None("there are no optional features")),
    ("firewall-backend", Effect::None("nftables is used always")),
    ("fixed-cidr", Effect::Works),
    ("fixed-cidr-v6", Effect::Works),
    ("group", Effect::Works),
    ("host-gateway-ip", Effect::Works),
    ("host-gateway-ips", Effect::Works),
    ("hosts", Effect::Works),
    (
        "http-proxy",
        Effect::None("proxies are taken from the environment"),
    ),
    (
        "https-proxy",
        Effect::None("proxies are taken from the environment"),
    ),
    (
        "no-proxy",
        Effect::None("proxies are taken from the environment"),
    ),
    (
        "proxies",
        Effect::None("proxies are taken from the environment"),
    ),
    ("icc", Effect::Works),
    ("init", Effect::Works),
    ("init-path", Effect::None("the init is part of the program")),
    ("insecure-registries", Effect::Works),
    ("ip", Effect::Works),
    ("ip-forward", Effect::Always),
    ("ip-forward-no-drop", Effect::Always),
    ("ip-masq", Effect::Works),
    ("ip6tables", Effect::None("nftables is used always")),
    ("iptables", Effect::None("nftables is used always")),
    ("ipv6", Effect::Works),
    ("labels", Effect::Works),
    ("live-restore", Effect::Always),
    ("log-driver", Effect::Works),
    ("log-format", Effect::None("logs are text")),
    ("log-level", Effect::Works),
    ("log-opts", Effect::Works),
    ("max-concurrent-downloads", Effect::Works),
    ("max-concurrent-uploads", Effect::Works),
    (
        "max-download-attempts",
        Effect::None("downloads are tried five times"),
    ),
    (
        "metrics-addr",
        Effect::None("there is no metrics server in the engine"),
    ),
    ("mtu", Effect::Works),
    ("no-new-privileges", Effect::Works),
    ("node-generic-resources", Effect::Works),
    (
        "oom-score-adjust",
        Effect::None("the service manager sets it"),
    ),
    ("pidfile", Effect::Works),
    ("raw-logs", Effect::Always),
    ("registry-mirrors", Effect::Works),
    ("rootless", Effect::Refused("the daemon needs root")),
    ("runtimes", Effect::None("there is one runtime")),
    (
        "seccomp-profile",
        Effect::Refused("name the profile per container with --security-opt seccomp=…"),
    ),
    (
        "selinux-enabled",
        Effect::Refused("SELinux labels are not set"),
    ),
    (
        "shutdown-timeout",
        Effect::None("containers outlive the daemon"),
    ),
    ("storage-driver", Effect::Works),
    (
        "storage-opts",
        Effect::None("the storage driver has no options"),
    ),
    (
        "swarm-default-advertise-addr",
        Effect::None("swarm init --advertise-addr says it"),
    ),
    ("swarm-raft-election-tick", Effect::Works),
    ("swarm-raft-heartbeat-tick", Effect::Works),
    ("tls", Effect::Works),
    ("tlscacert", Effect::Works),
    ("tlscert", Effect::Works),
    ("tlskey", Effect::Works),
    ("tlsverify", Effect::Works),
    ("userland-proxy", Effect::Always),
    ("userland-proxy-path", Effect::Always),
    (
        "userns-remap",
        Effect::Refused("user namespaces are not remapped"),
    ),
    ("validate", Effect::Always),
];

/// Keys of flags that the file has not.
pub(super) const FLAGS_ONLY: &[&str] = &["hostname", "interface-prefix", "lb-driver"];

/// Flags and file together. Without `path` the default file is read if there is one.
pub(super) fn merge(flags: &Keys, path: Option<&Path>) -> Result<Keys, ConfigError> {
    let file = match path {
        Some(path) => read(path)?,
        None => match read(Path::new(DEFAULT_FILE)) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(flags.clone());
            }
            read => read?,
        },
    };
    let path = path.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_owned);
    let refused = |reason: String| ConfigError::File {
        path: path.display().to_string(),
        reason,
    };
    let unknown: Vec<&str> = file
        .keys()
        .map(String::as_str)
        .filter(|key| KEYS.iter().all(|(known, _)| known != key))
        .collect();
    if !unknown.is_empty() {
        return Err(refused(format!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        )));
    }
    let twice: Vec<String> = file
        .iter()
        .filter_map(|(key, value)| {
            let flag = flags.get(key)?;
            Some(format!(
                "{key}: (from flag: {}, from file: {})",
                said(flag),
                said(value)
            ))
        })
        .collect();
    if !twice.is_empty() {
        return Err(refused(format!(
            "the following directives are specified both as a flag and in the configuration file: {}",
            twice.join(", ")
        )));
    }
    let mut keys = file;
    keys.extend(flags.clone());
    Ok(keys)
}

/// A value as Go prints it.
fn said(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(said).collect();
            format!("[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

fn read(path: &Path) -> Result<Keys, ConfigError> {
    let shown = || path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: shown(),
        source,
    })?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(Keys::new());
    }
    serde_json::from_str(text).map_err(|error| ConfigError::File {
        path: shown(),
        reason: error.to_string(),
    })
}
