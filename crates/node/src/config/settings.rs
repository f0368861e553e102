//! Keys of `daemon.json` become settings: types and values are checked, in docker's words where it has some.

use shoal_overlay::LbDriver;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, RwLock},
};

use serde_json::Value;
use shoal_api::container::Ulimit;
use shoal_engine::core::logging::Driver as LogDriver;
use shoal_manager::RaftConfig;

use super::{
    ConfigError, ContainerDefaults, DaemonConfig, Reloadable, Source,
    file::{Effect, FLAGS_ONLY, KEYS, Keys},
    generic, network,
};

/// TLS of the API on TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiTls {
    /// Whether TCP is served over TLS.
    pub enabled: bool,
    /// Whether callers need a certificate under [`Self::ca`].
    pub verify: bool,
    /// Root of the callers' certificates.
    pub ca: PathBuf,
    /// The daemon's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Takes settings out of the keys.
pub(super) struct Reader {
    keys: Keys,
    path: Option<String>,
}

pub(super) fn invalid(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key: key.to_owned(),
        reason: reason.into(),
    }
}

impl Reader {
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> ConfigError {
        let reason = format!("{value} given, {expected} expected");
        match &self.path {
            Some(path) => ConfigError::File {
                path: path.clone(),
                reason: format!("invalid {key}: {reason}"),
            },
            None => invalid(key, reason),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(key, &other, "a text")),
        }
    }

    fn lb_driver(&mut self) -> Result<LbDriver, ConfigError> {
        let key = "lb-driver";
        let text = self.text(key)?.unwrap_or_else(|| "auto".to_owned());
        text.parse()
            .map_err(|_| self.wrong(key, &Value::String(text), "auto, nft or ipvs"))
    }

    fn path(&mut self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text(key)?.map(PathBuf::from))
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(self.wrong(key, &other, "a text")),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, &other, "a list of texts")),
        }
    }

    /// A number; 0 is docker's "not said".
    pub(super) fn number(&mut self, key: &str) -> Result<Option<u32>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_i64().map(u32::try_from) {
                Some(Ok(number)) => Ok(Some(number).filter(|number| *number > 0)),
                Some(Err(_)) => Err(invalid(
                    key,
                    format!("invalid value {value}: it must be at least 0"),
                )),
                None => Err(self.wrong(key, &value, "a number")),
            },
        }
    }

    fn pairs(&mut self, key: &str) -> Result<Vec<(String, String)>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Object(members)) => members
                .into_iter()
                .map(|(name, value)| match value {
                    Value::String(text) => Ok((name, text)),
                    other => Err(self.wrong(key, &other, "a text for each name")),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, &other, "an object of texts")),
        }
    }

    fn ulimits(&mut self) -> Result<Vec<Ulimit>, ConfigError> {
        const KEY: &str = "default-ulimits";
        let Some(value) = self.take(KEY) else {
            return Ok(Vec::new());
        };
        let Value::Object(members) = &value else {
            return Err(self.wrong(KEY, &value, "an object of limits"));
        };
        members
            .iter()
            .map(|(name, limit)| {
                let part = |part: &str| limit.get(part).and_then(Value::as_i64);
                let (soft, hard) = (part("Soft"), part("Hard"));
                let (Some(soft), Some(hard)) = (soft.or(hard), hard.or(soft)) else {
                    return Err(self.wrong(KEY, limit, "an object with Soft and Hard"));
                };
                if hard != -1 && (soft == -1 || soft > hard) {
                    return Err(invalid(
                        KEY,
                        format!("{name}: soft limit must be less than or equal to hard limit: {soft} > {hard}"),
                    ));
                }
                Ok(Ulimit {
                    name: name.clone(),
                    soft,
                    hard,
                })
            })
            .collect()
    }
}

/// Reads settings.
pub(super) fn read(keys: Keys, source: Source) -> Result<DaemonConfig, ConfigError> {
    let mut warnings = Vec::new();
    let mut r = Reader {
        keys,
        path: source.path.as_ref().map(|path| path.display().to_string()),
    };
    for (key, effect) in KEYS {
        match (effect, r.keys.get(*key)) {
            (_, None) => {}
            (Effect::Works, _) => {}
            (Effect::Always, Some(value)) => {
                if *key == "live-restore" && *value == Value::Bool(false) {
                    warnings.push(
                        "live-restore has no effect: containers always outlive the daemon"
                            .to_owned(),
                    );
                }
            }
            (Effect::None(why), Some(_)) => warnings.push(format!("{key} has no effect: {why}")),
            (Effect::Refused(why), Some(value)) => {
                if !says_nothing(value) {
                    return Err(invalid(key, format!("{value} is not supported: {why}")));
                }
            }
        }
    }
    if let Some(driver) = r.text("storage-driver")?
        && !["overlay2", "overlay", "overlayfs"].contains(&driver.as_str())
    {
        return Err(invalid(
            "storage-driver",
            format!("{driver:?} is not supported: expected overlay2"),
        ));
    }
    for option in r.texts("exec-opts")? {
        match option
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()))
        {
            Some(("native.cgroupdriver", "cgroupfs")) => {}
            Some(("native.cgroupdriver", other)) => {
                return Err(invalid(
                    "exec-opts",
                    format!("native.cgroupdriver={other} is not supported: expected cgroupfs"),
                ));
            }
            _ => {
                return Err(invalid(
                    "exec-opts",
                    format!("{option:?} is unknown: expected native.cgroupdriver=cgroupfs"),
                ));
            }
        }
    }
    let log_level = r.text("log-level")?.unwrap_or_else(|| "info".to_owned());
    if !["trace", "debug", "info", "warn", "error", "fatal", "panic"].contains(&log_level.as_str())
    {
        return Err(invalid(
            "log-level",
            format!("not a valid logrus Level: {log_level:?}"),
        ));
    }
    let labels = r.texts("labels")?;
    check_labels(&labels)?;
    let registry_mirrors = r.texts("registry-mirrors")?;
    for mirror in &registry_mirrors {
        check_mirror(mirror)?;
    }
    let live = Reloadable {
        debug: r.flag("debug")?.unwrap_or(false),
        log_level,
        labels,
        insecure_registries: r.texts("insecure-registries")?,
        registry_mirrors,
        max_concurrent_downloads: r.number("max-concurrent-downloads")?,
        max_concurrent_uploads: r.number("max-concurrent-uploads")?,
    };
    let log_driver = r.text("log-driver")?;
    if let Some(driver) = &log_driver
        && !LogDriver::NAMES.contains(&driver.as_str())
    {
        return Err(invalid(
            "log-driver",
            format!("logger: no log driver named '{driver}' is registered"),
        ));
    }
    let mut dns = Vec::new();
    for text in r.texts("dns")? {
        let address: IpAddr = text
            .parse()
            .map_err(|_| invalid("dns", format!("{text} is not an ip address")))?;
        dns.push(address);
    }
    let defaults = ContainerDefaults {
        log_driver,
        log_opts: r.pairs("log-opts")?,
        ulimits: r.ulimits()?,
        init: r.flag("init")?,
        no_new_privileges: r.flag("no-new-privileges")?.unwrap_or(false),
        cgroupns_mode: mode(&mut r, "default-cgroupns-mode", &["private", "host"])?,
        ipc_mode: mode(&mut r, "default-ipc-mode", &["private", "shareable"])?,
        host_gateway: host_gateway(&mut r)?,
        shm_size: shm_size(&mut r)?,
        dns,
        dns_search: r.texts("dns-search")?,
        dns_options: r.texts("dns-opts")?,
    };
    let hosts = r.texts("hosts")?;
    let tls = tls(&mut r)?;
    for host in &hosts {
        check_host(host, &tls)?;
    }
    let key = "node-generic-resources";
    let generic_resources =
        generic::parse(&r.texts(key)?).map_err(|problem| invalid(key, problem))?;
    let config = DaemonConfig {
        data_root: r
            .path("data-root")?
            .unwrap_or_else(|| "/var/lib/shoal".into()),
        exec_root: r.path("exec-root")?.unwrap_or_else(|| "/run/shoal".into()),
        hosts,
        group: r.text("group")?,
        tls,
        pidfile: r.path("pidfile")?,
        cgroup_parent: r
            .text("cgroup-parent")?
            .unwrap_or_else(|| "shoal".to_owned()),
        defaults,
        generic_resources,
        hostname: r.text("hostname")?,
        interface_prefix: r
            .text("interface-prefix")?
            .unwrap_or_else(|| "shoal".to_owned()),
        lb_driver: r.lb_driver()?,
        raft: raft(&mut r)?,
        networks: network::read(&mut r)?,
        cdi_spec_dirs: cdi_spec_dirs(&mut r)?,
        warnings,
        source,
        live: Arc::new(RwLock::new(Arc::new(live))),
    };
    let left = |key: &&String| {
        let known = KEYS.iter().find(|(known, _)| known == key);
        match known {
            Some((_, effect)) => *effect == Effect::Works,
            None => !FLAGS_ONLY.contains(&key.as_str()),
        }
    };
    debug_assert_eq!(r.keys.keys().find(left), None, "a key that works is read");
    Ok(config)
}

/// Docker's two keys of the timing of managers, in ticks: [`RaftConfig::tick`] is one, as long as the leader is heard of
/// with each.
fn raft(r: &mut Reader) -> Result<RaftConfig, ConfigError> {
    const HEARTBEAT: &str = "swarm-raft-heartbeat-tick";
    const ELECTION: &str = "swarm-raft-election-tick";
    let usual = RaftConfig::default();
    let heartbeat = r.number(HEARTBEAT)?.unwrap_or(1);
    let election = match r.number(ELECTION)? {
        Some(ticks) => usize::try_from(ticks).unwrap_or(usize::MAX) / heartbeat as usize,
        None => usual.election_ticks,
    };
    if election < 2 {
        let tick = usual.tick.as_millis();
        return Err(invalid(
            ELECTION,
            format!(
                "it must be at least twice {HEARTBEAT}, which is {heartbeat} (ticks of {tick} ms)"
            ),
        ));
    }
    Ok(RaftConfig {
        tick: usual.tick * heartbeat,
        election_ticks: election,
        ..usual
    })
}

/// One of a few words.
fn mode(r: &mut Reader, key: &str, known: &[&str]) -> Result<Option<String>, ConfigError> {
    let said = r.text(key)?;
    match said {
        Some(word) if !known.contains(&word.as_str()) => Err(invalid(
            key,
            format!("{word:?} is unknown: expected {}", known.join(" or ")),
        )),
        said => Ok(said),
    }
}

/// Addresses that `host-gateway` stands for: docker's key of one address, and that of two.
fn host_gateway(r: &mut Reader) -> Result<Option<IpAddr>, ConfigError> {
    let mut all = r.texts("host-gateway-ips")?;
    all.splice(..0, r.text("host-gateway-ip")?);
    let addresses = all.iter().map(|text| {
        text.parse()
            .map_err(|_| invalid("host-gateway-ip", format!("{text:?} is not an IP address")))
    });
    let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
    Ok(addresses.first().copied())
}

/// Where specifications of devices are (CDI); docker's places if nothing is said.
fn cdi_spec_dirs(r: &mut Reader) -> Result<Vec<PathBuf>, ConfigError> {
    const KEY: &str = "cdi-spec-dirs";
    let said = r.keys.contains_key(KEY);
    let dirs = r.texts(KEY)?;
    if let Some(dir) = dirs
        .iter()
        .find(|dir| !dir.is_empty() && !dir.starts_with('/'))
    {
        return Err(invalid(
            KEY,
            format!("{dir:?} is not absolute: expected for instance /etc/cdi"),
        ));
    }
    let usual = ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from);
    Ok(if said {
        let dirs = dirs.into_iter().filter(|dir| !dir.is_empty());
        dirs.map(PathBuf::from).collect()
    } else {
        usual.to_vec()
    })
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

fn check_labels(labels: &[String]) -> Result<(), ConfigError> {
    let mut seen = std::collections::BTreeMap::new();
    for label in labels {
        let Some((key, value)) = label.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(invalid("labels", format!("bad attribute format: {label}")));
        };
        if seen.insert(key, value).is_some_and(|other| other != value) {
            return Err(invalid(
                "labels",
                format!("conflict labels for {key}={value} and {key}"),
            ));
        }
    }
    Ok(())
}

fn check_mirror(mirror: &str) -> Result<(), ConfigError> {
    let bad = |why: &str| {
        Err(invalid(
            "registry-mirrors",
            format!("invalid mirror: {why}"),
        ))
    };
    let Some((scheme, rest)) = mirror.split_once("://") else {
        return bad(&format!(
            "no scheme specified for {mirror:?}: must use either 'https://' or 'http://'"
        ));
    };
    if !["http", "https"].contains(&scheme) {
        return bad(&format!(
            "unsupported scheme {scheme:?} in {mirror:?}: must use either 'https://' or 'http://'"
        ));
    }
    match rest.trim_end_matches('/') {
        "" => bad(&format!("no host in {mirror:?}")),
        host if host.contains(['/', '?', '#']) => bad(&format!(
            "path, query, or fragment at end of the URI {mirror:?}"
        )),
        _ => Ok(()),
    }
}

fn shm_size(r: &mut Reader) -> Result<Option<u64>, ConfigError> {
    const KEY: &str = "default-shm-size";
    match r.take(KEY) {
        None => Ok(None),
        Some(Value::Number(bytes)) => bytes
            .as_u64()
            .map(Some)
            .ok_or_else(|| invalid(KEY, format!("{bytes} is no size"))),
        Some(Value::String(text)) => {
            let digits = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            let shift = match text[digits..].to_ascii_lowercase().as_str() {
                "" | "b" => 0,
                "k" | "kb" => 10,
                "m" | "mb" => 20,
                "g" | "gb" => 30,
                _ => return Err(invalid(KEY, format!("invalid size: '{text}'"))),
            };
            let number: u64 = text[..digits]
                .parse()
                .map_err(|_| invalid(KEY, format!("invalid size: '{text}'")))?;
            Ok(Some(number << shift))
        }
        Some(other) => Err(r.wrong(KEY, &other, "a size")),
    }
}

fn tls(r: &mut Reader) -> Result<ApiTls, ConfigError> {
    let verify = r.flag("tlsverify")?.unwrap_or(false);
    let enabled = r.flag("tls")?.unwrap_or(false) || verify;
    let mut file = |key: &str, name: &str| -> Result<PathBuf, ConfigError> {
        let said = r.path(key)?;
        Ok(said.unwrap_or_else(|| PathBuf::from("/etc/shoal").join(name)))
    };
    Ok(ApiTls {
        enabled,
        verify,
        ca: file("tlscacert", "ca.pem")?,
        certificate: file("tlscert", "server-cert.pem")?,
        key: file("tlskey", "server-key.pem")?,
    })
}

/// What a TCP host says: address and port.
pub(crate) fn tcp_address(host: &str) -> Option<SocketAddr> {
    let rest = host.strip_prefix("tcp://")?.trim_end_matches('/');
    let rest = rest
        .strip_prefix("localhost")
        .map_or_else(|| rest.to_owned(), |port| format!("127.0.0.1{port}"));
    rest.parse().ok()
}

fn check_host(host: &str, tls: &ApiTls) -> Result<(), ConfigError> {
    match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(()),
        Some(("tcp", _)) => {
            let Some(address) = tcp_address(host) else {
                return Err(invalid(
                    "hosts",
                    format!(
                        "{host:?}: expected tcp://ADDRESS:PORT, for instance tcp://0.0.0.0:2376"
                    ),
                ));
            };
            if tls.verify || address.ip().is_loopback() {
                return Ok(());
            }
            Err(invalid(
                "hosts",
                format!(
                    "{host:?} without --tlsverify is refused: whoever reaches it owns this host; use TLS with client \
                     certificates, or a loopback address"
                ),
            ))
        }
        Some(("fd", _)) => Err(invalid(
            "hosts",
            format!("{host:?}: socket activation is not supported"),
        )),
        _ => Err(invalid(
            "hosts",
            format!(
                "unable to parse daemon host {host:?}: expected unix:///PATH or tcp://ADDRESS:PORT"
            ),
        )),
    }
}
