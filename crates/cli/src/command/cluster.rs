//! `shoal cluster`: a cluster in a file, and a cluster that has lost its managers.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use hyper::Method;
use serde_json::json;

use crate::{
    client::{self, Client, Payload, Target},
    output, terminal,
};

/// Back up, restore and recover the cluster
#[derive(Subcommand)]
pub(crate) enum Command {
    Backup(Backup),
    Recover(Recover),
    Restore(Restore),
}

/// Write everything that the cluster is to a file
///
/// The file holds all secrets and the key of the certificate authority. With autolock it is sealed under the unlock key;
/// without, whoever reads it owns the cluster.
#[derive(Args)]
#[command(after_help = "Example:\n  shoal cluster backup /backup/cluster.shoal")]
pub(crate) struct Backup {
    /// File to write; must not exist
    file: PathBuf,
}

/// Make this host the only manager of the cluster in a file
///
/// It takes the place of the node on which the backup was made, which must be gone. Other nodes come back by themselves
/// if this host is reached at that node's address; otherwise they join anew.
#[derive(Args)]
#[command(
    after_help = "Example:\n  shoal cluster restore /backup/cluster.shoal --advertise-addr 192.168.1.10"
)]
pub(crate) struct Restore {
    /// File that `cluster backup` wrote
    file: PathBuf,
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "string", default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "node-addr", default_value = "")]
    listen_addr: String,
    /// Address or interface to use for data path traffic
    #[arg(long, value_name = "string", default_value = "")]
    data_path_addr: String,
    /// Ask for the unlock key, or read it from standard input
    #[arg(long)]
    unlock_key: bool,
}

/// Make this manager the only one, when too many others are lost for good
///
/// What this manager knows is what goes on; services are not restarted. The same as `swarm init --force-new-cluster`.
#[derive(Args)]
#[command(after_help = "Example:\n  shoal cluster recover")]
pub(crate) struct Recover {}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Backup(args) => backup(&args.file, client).await,
            Self::Restore(args) => restore(args, client).await,
            Self::Recover(_) => recover(client).await,
        }
    }
}

async fn backup(file: &Path, client: &Client) -> Result<()> {
    let target = Target::new("/shoal/cluster/backup", &[]);
    let answer = client.send(Method::GET, target, Payload::Empty).await?;
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file);
    let mut out = opened.with_context(|| format!("cannot make {}", file.display()))?;
    let mut chunks = client::chunks(answer);
    let mut size = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        size += chunk.len();
        out.write_all(&chunk)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    out.sync_all()
        .with_context(|| format!("cannot write {}", file.display()))?;
    output::line(format!("Wrote {size} bytes to {}.", file.display()));
    Ok(())
}

async fn restore(args: Restore, client: &Client) -> Result<()> {
    let content = std::fs::read(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let mut target = Target::new("/shoal/cluster/restore", &[])
        .arg("advertise", &args.advertise_addr)
        .arg("listen", &args.listen_addr)
        .arg("dataPath", &args.data_path_addr);
    if args.unlock_key {
        target = target.arg("unlockKey", terminal::ask_secret("Enter unlock key: ")?);
    }
    let body = futures_util::stream::once(async move { Ok(content.into()) });
    let answer = client.post(target, Payload::Tar(Box::pin(body))).await?;
    let id = answer.as_str().unwrap_or_default();
    output::line(format!(
        "Cluster restored: current node ({id}) is its only manager."
    ));
    Ok(())
}

async fn recover(client: &Client) -> Result<()> {
    let info = client.get(Target::new("/info", &[])).await?;
    if crate::json::text(&info, "/Swarm/LocalNodeState") == "inactive" {
        bail!("this node is not part of a swarm, so there is nothing to recover");
    }
    let body = json!({"ForceNewCluster": true});
    let id = client.post(Target::new("/swarm/init", &[]), body).await?;
    let id = id.as_str().unwrap_or_default();
    output::line(format!(
        "Cluster recovered: current node ({id}) is its only manager. Others that come back take part again by \
         themselves; remove those that do not."
    ));
    Ok(())
}
