//! `shoal daemon`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use shoal_node::config::DaemonConfig;

use crate::{connect::Globals, flags, output};

/// Run the daemon of this host
#[derive(clap::Args)]
#[command(
    after_help = "What is not said by a flag may stand in /etc/shoal/daemon.json, with the keys of docker's file of that name.\nSIGHUP reads it again: debug, log-level, labels, insecure-registries, registry-mirrors and max-concurrent-* take\neffect at once, the rest at the next start.\n\nExamples:\n  shoal daemon\n  shoal daemon --hostname n1 --label zone=a --insecure-registry registry.example:5000\n  shoal daemon -H unix:///run/shoal/shoal.sock -H tcp://0.0.0.0:2376 --tlsverify --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem\n  shoal daemon --validate --config-file daemon.json"
)]
pub(crate) struct Args {
    /// Daemon configuration file
    #[arg(long, value_name = "string")]
    config_file: Option<PathBuf>,
    /// Validate daemon configuration and exit
    #[arg(long)]
    validate: bool,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    debug: bool,
    /// Root directory of persistent state
    #[arg(long, value_name = "string")]
    data_root: Option<String>,
    /// Root directory of sockets and handles, emptied by a reboot
    #[arg(long, value_name = "string")]
    exec_root: Option<String>,
    /// Daemon socket(s) to connect to: unix://PATH, tcp://ADDRESS:PORT
    #[arg(
        short = 'H',
        long = "host",
        visible_alias = "listen",
        value_name = "list"
    )]
    hosts: Vec<String>,
    /// Group for the unix socket (default "shoal", if there is one)
    #[arg(short = 'G', long, value_name = "string")]
    group: Option<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long)]
    tls: bool,
    /// Trust certs signed only by this CA
    #[arg(long, value_name = "string")]
    tlscacert: Option<String>,
    /// Path to TLS certificate file
    #[arg(long, value_name = "string")]
    tlscert: Option<String>,
    /// Path to TLS key file
    #[arg(long, value_name = "string")]
    tlskey: Option<String>,
    /// Use TLS and verify the remote
    #[arg(long)]
    tlsverify: bool,
    /// Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")
    #[arg(short, long, value_name = "string")]
    log_level: Option<String>,
    /// Path to use for daemon PID file
    #[arg(short, long, value_name = "string")]
    pidfile: Option<String>,
    /// Parent cgroup of all containers
    #[arg(long, value_name = "string")]
    cgroup_parent: Option<String>,
    /// Runtime execution options
    #[arg(long, value_name = "list")]
    exec_opt: Vec<String>,
    /// Registry to speak to without TLS
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
    /// Preferred registry mirror
    #[arg(long, value_name = "list")]
    registry_mirror: Vec<String>,
    /// Set the max concurrent downloads
    #[arg(long, value_name = "int")]
    max_concurrent_downloads: Option<u32>,
    /// Set the max concurrent uploads
    #[arg(long, value_name = "int")]
    max_concurrent_uploads: Option<u32>,
    /// Label of this engine, key=value
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// What this host has besides processors and memory: kind=amount, or kind=name for each of them
    #[arg(long, value_name = "list")]
    node_generic_resource: Vec<String>,
    /// Default driver for container logs
    #[arg(long, value_name = "string")]
    log_driver: Option<String>,
    /// Default log driver options for containers
    #[arg(long, value_name = "map")]
    log_opt: Vec<String>,
    /// Default ulimits for containers
    #[arg(long, value_name = "ulimit", value_parser = flags::quantity::ulimit)]
    default_ulimit: Vec<Value>,
    /// Default shm size for containers
    #[arg(long, value_name = "bytes")]
    default_shm_size: Option<String>,
    /// DNS server to use
    #[arg(long, value_name = "list")]
    dns: Vec<String>,
    /// DNS options to use
    #[arg(long, value_name = "list")]
    dns_opt: Vec<String>,
    /// DNS search domains to use
    #[arg(long, value_name = "list")]
    dns_search: Vec<String>,
    /// Run an init in the container to forward signals and reap processes
    #[arg(long)]
    init: bool,
    /// Set no-new-privileges by default for new containers
    #[arg(long)]
    no_new_privileges: bool,
    /// Keep containers alive when the daemon ends; it is always so
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    live_restore: Option<bool>,
    /// Address of the host in the default network, with the length of its prefix
    #[arg(long, value_name = "string")]
    bip: Option<String>,
    /// The same for IPv6
    #[arg(long, value_name = "string")]
    bip6: Option<String>,
    /// IPv4 subnet for fixed IPs
    #[arg(long, value_name = "string")]
    fixed_cidr: Option<String>,
    /// IPv6 subnet for fixed IPs
    #[arg(long, value_name = "string")]
    fixed_cidr_v6: Option<String>,
    /// Enable IPv6 networking in the default network
    #[arg(long)]
    ipv6: bool,
    /// Default address pools for networks of this host: base=10.0.0.0/8,size=24
    #[arg(long, value_name = "pool-options", value_parser = pool)]
    default_address_pool: Vec<Value>,
    /// Default options of networks: bridge=option=value
    #[arg(long, value_name = "mapmap")]
    default_network_opt: Vec<String>,
    /// Set the MTU of the default network
    #[arg(long, value_name = "int")]
    mtu: Option<u32>,
    /// Enable inter-container communication in the default network
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    icc: Option<bool>,
    /// Enable IP masquerading of the default network
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    ip_masq: Option<bool>,
    /// Host IP for port publishing from the default network
    #[arg(long, value_name = "ip")]
    ip: Option<String>,
    /// Use userland proxy for loopback traffic; the kernel does it here
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    userland_proxy: Option<bool>,
    /// IP address that the special 'host-gateway' string in --add-host resolves to
    #[arg(long, value_name = "list")]
    host_gateway_ip: Vec<String>,
    /// Default mode for containers cgroup namespace ("host" | "private")
    #[arg(long, value_name = "string")]
    default_cgroupns_mode: Option<String>,
    /// Default mode for containers ipc ("shareable" | "private")
    #[arg(long, value_name = "string")]
    default_ipc_mode: Option<String>,
    /// CDI specification directories to use
    #[arg(long, value_name = "list")]
    cdi_spec_dir: Vec<String>,
    /// Name of this host
    #[arg(long, value_name = "string")]
    hostname: Option<String>,
    /// Start of the names of network interfaces and nftables tables
    #[arg(long, value_name = "string")]
    interface_prefix: Option<String>,
    /// What distributes the connections of a service over its tasks: auto, nft or ipvs
    #[arg(long, value_name = "string")]
    lb_driver: Option<String>,
    /// Ticks of 50 ms without a leader after which managers choose another
    #[arg(long, value_name = "uint")]
    swarm_raft_election_tick: Option<u32>,
    /// Ticks of 50 ms between two signs of life of the leader
    #[arg(long, value_name = "uint")]
    swarm_raft_heartbeat_tick: Option<u32>,
}

impl Args {
    /// What was said, by the keys of the configuration file.
    fn keys(self, debug: bool, globals: &Globals) -> Map<String, Value> {
        let mut keys = Map::new();
        let texts = [
            ("data-root", self.data_root),
            ("exec-root", self.exec_root),
            ("group", self.group),
            ("tlscacert", self.tlscacert),
            ("tlscert", self.tlscert),
            ("tlskey", self.tlskey),
            // Before the command it is the same wish.
            (
                "log-level",
                self.log_level.or_else(|| globals.said_log_level()),
            ),
            ("pidfile", self.pidfile),
            ("cgroup-parent", self.cgroup_parent),
            ("log-driver", self.log_driver),
            ("default-shm-size", self.default_shm_size),
            ("hostname", self.hostname),
            ("interface-prefix", self.interface_prefix),
            ("lb-driver", self.lb_driver),
            ("bip", self.bip),
            ("bip6", self.bip6),
            ("fixed-cidr", self.fixed_cidr),
            ("fixed-cidr-v6", self.fixed_cidr_v6),
            ("ip", self.ip),
            ("default-cgroupns-mode", self.default_cgroupns_mode),
            ("default-ipc-mode", self.default_ipc_mode),
        ];
        for (key, value) in texts {
            keys.extend(value.map(|value| (key.to_owned(), value.into())));
        }
        let lists = [
            ("hosts", self.hosts),
            ("exec-opts", self.exec_opt),
            ("insecure-registries", self.insecure_registry),
            ("registry-mirrors", self.registry_mirror),
            ("labels", self.label),
            ("node-generic-resources", self.node_generic_resource),
            ("dns", self.dns),
            ("dns-opts", self.dns_opt),
            ("dns-search", self.dns_search),
            ("host-gateway-ips", self.host_gateway_ip),
            ("cdi-spec-dirs", self.cdi_spec_dir),
        ];
        for (key, list) in lists {
            if !list.is_empty() {
                keys.insert(key.to_owned(), list.into());
            }
        }
        let set = [
            ("debug", debug || self.debug),
            ("tls", self.tls),
            ("tlsverify", self.tlsverify),
            ("init", self.init),
            ("no-new-privileges", self.no_new_privileges),
        ];
        for (key, set) in set {
            if set {
                keys.insert(key.to_owned(), true.into());
            }
        }
        let numbers = [
            ("max-concurrent-downloads", self.max_concurrent_downloads),
            ("max-concurrent-uploads", self.max_concurrent_uploads),
            ("mtu", self.mtu),
            ("swarm-raft-election-tick", self.swarm_raft_election_tick),
            ("swarm-raft-heartbeat-tick", self.swarm_raft_heartbeat_tick),
        ];
        for (key, number) in numbers {
            keys.extend(number.map(|number| (key.to_owned(), number.into())));
        }
        let flags = [
            ("live-restore", self.live_restore),
            ("ipv6", self.ipv6.then_some(true)),
            ("icc", self.icc),
            ("ip-masq", self.ip_masq),
            ("userland-proxy", self.userland_proxy),
        ];
        for (key, flag) in flags {
            keys.extend(flag.map(|flag| (key.to_owned(), flag.into())));
        }
        if !self.default_address_pool.is_empty() {
            let pools = Value::from(self.default_address_pool);
            keys.insert("default-address-pools".to_owned(), pools);
        }
        if !self.default_network_opt.is_empty() {
            let mut drivers = json!({});
            for text in &self.default_network_opt {
                let (driver, option) = flags::pair(text);
                let (name, value) = flags::pair(&option);
                drivers[driver][name] = value.into();
            }
            keys.insert("default-network-opts".to_owned(), drivers);
        }
        if !self.log_opt.is_empty() {
            keys.insert("log-opts".to_owned(), flags::object(&self.log_opt));
        }
        if !self.default_ulimit.is_empty() {
            let limits = self.default_ulimit.into_iter().map(|limit| {
                let name = limit["Name"].as_str().unwrap_or_default().to_owned();
                (name, limit)
            });
            keys.insert(
                "default-ulimits".to_owned(),
                json!(limits.collect::<Map<_, _>>()),
            );
        }
        keys
    }
}

/// Reads `base=10.0.0.0/8,size=24`.
fn pool(text: &str) -> Result<Value> {
    let mut pool = json!({});
    for (key, value) in flags::fields(text)? {
        match (key.as_str(), value) {
            ("base", Some(base)) => pool["base"] = base.into(),
            ("size", Some(size)) => pool["size"] = size.parse::<u8>()?.into(),
            (other, _) => bail!("unexpected key {other:?} in {text:?}: expected base and size"),
        }
    }
    Ok(pool)
}

pub(crate) fn run(args: Args, debug: bool, globals: &Globals) -> Result<()> {
    if globals.host.is_some() || globals.context.is_some() {
        bail!("-H and --context before the command are for clients: say `shoal daemon -H …`");
    }
    let (path, validate) = (args.config_file.clone(), args.validate);
    let config = DaemonConfig::load(args.keys(debug, globals), path.as_deref())?;
    if validate {
        for warning in &config.warnings {
            output::note(format!("WARNING: {warning}"));
        }
        output::line("configuration OK");
        return Ok(());
    }
    shoal_node::daemon::run(config)
}
