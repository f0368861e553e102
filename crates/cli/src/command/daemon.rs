//! `shoal daemon`.

use anyhow::Result;
use shoal_node::config::DaemonConfig;

/// Run the daemon of this host
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  shoal daemon\n  shoal daemon --hostname n1 --label zone=a --insecure-registry 192.0.2.1:5000"
)]
pub(crate) struct Args {
    /// Root directory of persistent state
    #[arg(long, value_name = "string", default_value = "/var/lib/shoal")]
    data_root: std::path::PathBuf,
    /// Root directory of sockets and handles, emptied by a reboot
    #[arg(long, value_name = "string", default_value = "/run/shoal")]
    exec_root: std::path::PathBuf,
    /// Socket to listen on, unix://PATH
    #[arg(long, value_name = "list")]
    listen: Vec<String>,
    /// Parent cgroup of all containers
    #[arg(long, value_name = "string", default_value = "shoal")]
    cgroup_parent: String,
    /// Registry to speak to without TLS
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
    /// Label of this engine, key=value
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Name of this host
    #[arg(long, value_name = "string")]
    hostname: Option<String>,
    /// Start of the names of network interfaces and nftables tables
    #[arg(long, value_name = "string", default_value = "shoal")]
    interface_prefix: String,
}

pub(crate) fn run(args: Args, debug: bool) -> Result<()> {
    for host in &args.listen {
        if !host.starts_with("unix:///") {
            anyhow::bail!("invalid --listen {host:?}: expected unix:///PATH");
        }
    }
    shoal_node::daemon::run(DaemonConfig {
        data_root: args.data_root,
        exec_root: args.exec_root,
        hosts: args.listen,
        cgroup_parent: args.cgroup_parent,
        insecure_registries: args.insecure_registry,
        labels: args.label,
        hostname: args.hostname,
        interface_prefix: args.interface_prefix,
        debug,
    })
}
