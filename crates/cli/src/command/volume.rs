//! `shoal volume`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{ListArgs, prune};
use crate::{
    client::{Client, Target},
    flags,
    json::{items, labels, text},
    output::{self, column, hidden, row},
};

/// Manage volumes
#[derive(Subcommand)]
pub(crate) enum Command {
    Create(Create),
    Inspect(Inspect),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Prune(prune::Volumes),
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// Create a volume
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal volume create data\n  shoal volume create -o type=tmpfs -o device=tmpfs -o o=size=100m scratch"
)]
pub(crate) struct Create {
    /// Name; without one a random name is given
    #[arg(value_name = "VOLUME", default_value = "", hide_default_value = true)]
    name: String,
    /// Specify volume driver name
    #[arg(short, long, value_name = "string", default_value = "local")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
}

/// Display detailed information on one or more volumes
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

/// Remove one or more volumes
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(args) => {
                let body = json!({
                    "Name": args.name,
                    "Driver": args.driver,
                    "DriverOpts": flags::object(&args.opt),
                    "Labels": flags::object(&args.label),
                });
                let made = client
                    .post(Target::new("/volumes/create", &[]), body)
                    .await?;
                output::line(text(&made, "/Name"));
                Ok(())
            }
            Self::Inspect(args) => {
                output::inspect_each(
                    args.format.as_deref(),
                    &args.volumes,
                    async |name: String| client.get(Target::new("/volumes/{}", &[&name])).await,
                )
                .await
            }
            Self::Ls(args) => list(args, client).await,
            Self::Prune(args) => args.run(client).await,
            Self::Rm(args) => {
                output::each(&args.volumes, async |name: String| {
                    let target = Target::new("/volumes/{}", &[&name]);
                    client.delete(target.flag("force", args.force)).await?;
                    Ok(Some(name))
                })
                .await
            }
        }
    }
}

async fn list(args: ListArgs, client: &Client) -> Result<()> {
    let target = Target::new("/volumes", &[]).filters(&args.filter)?;
    let volumes = client.get(target).await?;
    let mut volumes = items(&volumes, "/Volumes").to_vec();
    volumes.sort_by(|a, b| text(a, "/Name").cmp(text(b, "/Name")));
    let rows = volumes
        .iter()
        .map(|volume| {
            row! {
                "Driver" => text(volume, "/Driver"),
                "Name" => text(volume, "/Name"),
                "Scope" => text(volume, "/Scope"),
                "Mountpoint" => text(volume, "/Mountpoint"),
                "Labels" => labels(volume, "/Labels"),
            }
        })
        .collect();
    let columns = [
        column("Driver", "DRIVER"),
        column("Name", "VOLUME NAME"),
        hidden("Scope", "SCOPE"),
        hidden("Mountpoint", "MOUNTPOINT"),
        hidden("Labels", "LABELS"),
    ];
    args.format.print(&columns, "Name", rows)
}
