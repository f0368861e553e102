//! `shoal swarm`: the cluster itself.

mod ca;
mod lock;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::service_update::edit_map;
use crate::{
    client::{Client, Payload, Target},
    flags::quantity,
    json::{number, text},
    output,
};

/// Port of managers when none is said.
const CONTROL_PORT: u16 = 2377;

/// Manage the cluster
#[derive(Subcommand)]
pub(crate) enum Command {
    Ca(ca::Ca),
    Init(Init),
    Join(Join),
    JoinToken(JoinToken),
    Leave(Leave),
    Unlock(lock::Unlock),
    UnlockKey(lock::UnlockKey),
    Update(Update),
}

/// Initialize a swarm: this host becomes the first manager of a new cluster
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal swarm init\n  shoal swarm init --advertise-addr 192.168.1.10 --default-addr-pool 10.20.0.0/16"
)]
pub(crate) struct Init {
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "string", default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "node-addr", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address or interface to use for data path traffic
    #[arg(long, value_name = "string", default_value = "")]
    data_path_addr: String,
    /// Port number to use for data path traffic (1024 - 49151), 0 for the default 4789
    #[arg(long, value_name = "uint32", default_value_t = 0)]
    data_path_port: u32,
    /// Default address pool in CIDR format
    #[arg(long, value_name = "cidr", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Default address pool subnet mask length
    #[arg(long, value_name = "uint32", default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, value_name = "string", default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
    /// Force create a new cluster from current state
    #[arg(long)]
    force_new_cluster: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Settings of the cluster; what is not said stays as it is.
#[derive(Args)]
struct Settings {
    /// Change manager autolocking setting (true|false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    autolock: Option<bool>,
    /// Validity period for node certificates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration)]
    cert_expiry: Option<i64>,
    /// Dispatcher heartbeat period (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration)]
    dispatcher_heartbeat: Option<i64>,
    /// Specifications of one or more certificate signing endpoints
    #[arg(long, value_name = "external-ca", value_parser = ca::external)]
    external_ca: Vec<Value>,
    /// Number of additional Raft snapshots to retain
    #[arg(long, value_name = "uint")]
    max_snapshots: Option<u64>,
    /// Number of log entries between Raft snapshots
    #[arg(long, value_name = "uint")]
    snapshot_interval: Option<u64>,
    /// Task history retention limit
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    task_history_limit: Option<i64>,
}

impl Settings {
    fn apply(&self, spec: &mut Value) {
        let mut set = |group: &str, field: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec[group][field] = value;
            }
        };
        set(
            "EncryptionConfig",
            "AutoLockManagers",
            self.autolock.map(Value::from),
        );
        set(
            "CAConfig",
            "NodeCertExpiry",
            self.cert_expiry.map(Value::from),
        );
        let external = (!self.external_ca.is_empty()).then(|| self.external_ca.clone().into());
        set("CAConfig", "ExternalCAs", external);
        set(
            "Dispatcher",
            "HeartbeatPeriod",
            self.dispatcher_heartbeat.map(Value::from),
        );
        set(
            "Raft",
            "KeepOldSnapshots",
            self.max_snapshots.map(Value::from),
        );
        set(
            "Raft",
            "SnapshotInterval",
            self.snapshot_interval.map(Value::from),
        );
        set(
            "Orchestration",
            "TaskHistoryRetentionLimit",
            self.task_history_limit.map(Value::from),
        );
    }

    fn says_something(&self) -> bool {
        let mut spec = json!({});
        self.apply(&mut spec);
        spec != json!({})
    }
}

/// Join a swarm as a node and/or manager
#[derive(Args)]
#[command(after_help = "Example:\n  shoal swarm join --token SWMTKN-1-… 192.168.1.10:2377")]
pub(crate) struct Join {
    /// Address of a manager
    #[arg(value_name = "HOST:PORT")]
    remote: String,
    /// Token for entry into the swarm
    #[arg(long, value_name = "string", default_value = "")]
    token: String,
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "string", default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "node-addr", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address or interface to use for data path traffic
    #[arg(long, value_name = "string", default_value = "")]
    data_path_addr: String,
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, value_name = "string", default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
}

/// Print or renew the command with which a host joins
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal swarm join-token worker\n  shoal swarm join-token -q manager\n  shoal swarm join-token --rotate worker"
)]
pub(crate) struct JoinToken {
    /// Role that the token gives
    #[arg(value_parser = ["worker", "manager"])]
    role: String,
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate join token
    #[arg(long)]
    rotate: bool,
}

/// Leave the swarm
#[derive(Args)]
pub(crate) struct Leave {
    /// Force this node to leave the swarm, ignoring warnings
    #[arg(short, long)]
    force: bool,
}

/// Update the settings of the swarm
#[derive(Args)]
#[command(
    after_help = "Labels with a meaning:\n  shoal.node-ttl=72h            forget nodes that are down for so long (default: never)\n  shoal.allow-privileged=false  refuse privileged services\n\nExamples:\n  shoal swarm update --task-history-limit 2\n  shoal swarm update --label-add shoal.node-ttl=72h"
)]
pub(crate) struct Update {
    #[command(flatten)]
    settings: Settings,
    /// Add or update a label of the swarm (key=value)
    #[arg(long, value_name = "list")]
    label_add: Vec<String>,
    /// Remove a label of the swarm if it exists
    #[arg(long, value_name = "list")]
    label_rm: Vec<String>,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Ca(args) => args.run(client).await,
            Self::Unlock(args) => args.run(client).await,
            Self::UnlockKey(args) => args.run(client).await,
            Self::Init(args) => init(args, client).await,
            Self::Join(args) => join(args, client).await,
            Self::JoinToken(args) => join_token(args, client).await,
            Self::Leave(args) => {
                let target = Target::new("/swarm/leave", &[]).flag("force", args.force);
                client.post(target, Payload::Empty).await?;
                output::line("Node left the swarm.");
                Ok(())
            }
            Self::Update(args) => update(&args, client).await,
        }
    }
}

fn with_port(addr: &str) -> String {
    let has_port = match addr.strip_prefix('[') {
        Some(v6) => v6.contains("]:"),
        None => addr.matches(':').count() == 1,
    };
    match (has_port, addr.contains(':') && !addr.starts_with('[')) {
        (true, _) => addr.to_owned(),
        (false, true) => format!("[{addr}]:{CONTROL_PORT}"),
        (false, false) => format!("{addr}:{CONTROL_PORT}"),
    }
}

async fn init(args: Init, client: &Client) -> Result<()> {
    let mut spec = json!({});
    args.settings.apply(&mut spec);
    let body = json!({
        "ListenAddr": with_port(&args.listen_addr),
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "DataPathPort": args.data_path_port,
        "DefaultAddrPool": args.default_addr_pool,
        "SubnetSize": args.default_addr_pool_mask_length,
        "Availability": args.availability,
        "ForceNewCluster": args.force_new_cluster,
        "AutoLockManagers": args.settings.autolock.unwrap_or(false),
        "Spec": spec,
    });
    let id = client.post(Target::new("/swarm/init", &[]), body).await?;
    let id = id.as_str().unwrap_or_default();
    if args.force_new_cluster {
        output::line(format!(
            "Swarm initialized: current node ({id}) is now a manager, and the only one.\n"
        ));
        return print_join_command("manager", client).await;
    }
    output::line(format!(
        "Swarm initialized: current node ({id}) is now a manager.\n"
    ));
    print_join_command("worker", client).await?;
    output::line(
        "To add a manager to this swarm, run 'shoal swarm join-token manager' and follow the instructions.",
    );
    if args.settings.autolock == Some(true) {
        output::line("");
        lock::print_unlock_command(client).await?;
    }
    Ok(())
}

async fn join(args: Join, client: &Client) -> Result<()> {
    let body = json!({
        "JoinToken": args.token,
        "ListenAddr": with_port(&args.listen_addr),
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "RemoteAddrs": [args.remote],
        "Availability": args.availability,
    });
    client.post(Target::new("/swarm/join", &[]), body).await?;
    let info = client.get(Target::new("/info", &[])).await?;
    let manager = info.pointer("/Swarm/ControlAvailable") == Some(&Value::Bool(true));
    let role = if manager { "manager" } else { "worker" };
    output::line(format!("This node joined a swarm as a {role}."));
    Ok(())
}

async fn join_token(args: JoinToken, client: &Client) -> Result<()> {
    let (rotate, field) = match args.role.as_str() {
        "worker" => ("rotateWorkerToken", "/JoinTokens/Worker"),
        _ => ("rotateManagerToken", "/JoinTokens/Manager"),
    };
    if args.rotate {
        let swarm = client.get(Target::new("/swarm", &[])).await?;
        let target = Target::new("/swarm/update", &[])
            .arg("version", number(&swarm, "/Version/Index"))
            .arg(rotate, true);
        client.post(target, swarm["Spec"].clone()).await?;
        if !args.quiet {
            output::line(format!("Successfully rotated {} join token.\n", args.role));
        }
    }
    if args.quiet {
        let swarm = client.get(Target::new("/swarm", &[])).await?;
        output::line(text(&swarm, field));
        return Ok(());
    }
    print_join_command(&args.role, client).await
}

async fn print_join_command(role: &str, client: &Client) -> Result<()> {
    let info = client.get(Target::new("/info", &[])).await?;
    let me = text(&info, "/Swarm/NodeID").to_owned();
    let node = client.get(Target::new("/nodes/{}", &[&me])).await?;
    let swarm = client.get(Target::new("/swarm", &[])).await?;
    let addr = text(&node, "/ManagerStatus/Addr");
    if addr.is_empty() {
        bail!("this node has no address at which others could join");
    }
    let token = match role {
        "worker" => text(&swarm, "/JoinTokens/Worker"),
        _ => text(&swarm, "/JoinTokens/Manager"),
    };
    output::line(format!(
        "To add a {role} to this swarm, run the following command:\n\n    shoal swarm join --token {token} {addr}\n"
    ));
    Ok(())
}

async fn update(args: &Update, client: &Client) -> Result<()> {
    let has_labels = !args.label_add.is_empty() || !args.label_rm.is_empty();
    if !args.settings.says_something() && !has_labels {
        bail!("nothing to update: give at least one setting, see 'shoal swarm update --help'");
    }
    let mut swarm = client.get(Target::new("/swarm", &[])).await?;
    let mut spec = swarm["Spec"].take();
    args.settings.apply(&mut spec);
    edit_map(&mut spec["Labels"], &args.label_add, &args.label_rm);
    let target = Target::new("/swarm/update", &[]).arg("version", number(&swarm, "/Version/Index"));
    client.post(target, spec).await?;
    output::line("Swarm updated.");
    if args.settings.autolock == Some(true) {
        lock::print_unlock_command(client).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_filled_in() {
        for (addr, want) in [
            ("0.0.0.0", "0.0.0.0:2377"),
            ("eth0:99", "eth0:99"),
            ("[::1]:99", "[::1]:99"),
            ("[::1]", "[::1]:2377"),
            ("::1", "[::1]:2377"),
        ] {
            assert_eq!(with_port(addr), want);
        }
    }
}
