//! `shoal secret` and `shoal config`: the same grammar over two kinds of data.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::json;
use shoal_api::Timestamp;

use super::ListArgs;
use crate::{
    client::{Client, Target},
    flags,
    human::{ago, time},
    json::{labels, text},
    output::{self, column, hidden, row},
};

/// Manage secrets
#[derive(Subcommand)]
#[command(after_help = "Example:\n  printf 'hunter2' | shoal secret create db_password -")]
pub(crate) enum SecretCommand {
    Create(Create),
    Inspect(Inspect),
    /// List secrets
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// Manage configs
#[derive(Subcommand)]
#[command(after_help = "Example:\n  shoal config create site_conf ./site.conf")]
pub(crate) enum ConfigCommand {
    Create(Create),
    Inspect(Inspect),
    /// List configs
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// Create one from a file or STDIN
#[derive(Args)]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// File, or `-` for standard input
    #[arg(value_name = "file|-")]
    file: String,
    /// Labels
    #[arg(short, long, value_name = "list")]
    label: Vec<String>,
    /// Template driver
    #[arg(long, value_name = "string")]
    template_driver: Option<String>,
}

/// Display detailed information on one or more
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

/// Remove one or more
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl SecretCommand {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(args) => create("/secrets", args, client).await,
            Self::Inspect(args) => inspect("/secrets", args, client).await,
            Self::Ls(args) => list("/secrets", args, client).await,
            Self::Rm(args) => remove("/secrets", args, client).await,
        }
    }
}

impl ConfigCommand {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(args) => create("/configs", args, client).await,
            Self::Inspect(args) => inspect("/configs", args, client).await,
            Self::Ls(args) => list("/configs", args, client).await,
            Self::Rm(args) => remove("/configs", args, client).await,
        }
    }
}

async fn create(room: &str, args: Create, client: &Client) -> Result<()> {
    let data = if args.file == "-" {
        let mut data = Vec::new();
        std::io::stdin()
            .read_to_end(&mut data)
            .context("error reading content from STDIN")?;
        data
    } else {
        std::fs::read(&args.file).with_context(|| format!("error reading from {}", args.file))?
    };
    if data.is_empty() {
        bail!("{}: there is nothing in it", args.file);
    }
    let mut body = json!({
        "Name": args.name,
        "Labels": flags::object(&args.label),
        "Data": STANDARD.encode(data),
    });
    if let Some(driver) = args.template_driver {
        body["Templating"] = json!({"Name": driver});
    }
    let made = client
        .post(Target::new(&format!("{room}/create"), &[]), body)
        .await?;
    output::line(text(&made, "/ID"));
    Ok(())
}

async fn inspect(room: &str, args: Inspect, client: &Client) -> Result<()> {
    let path = format!("{room}/{{}}");
    output::inspect_each(args.format.as_deref(), &args.names, async |name: String| {
        client.get(Target::new(&path, &[&name])).await
    })
    .await
}

async fn remove(room: &str, args: Remove, client: &Client) -> Result<()> {
    let path = format!("{room}/{{}}");
    output::each(&args.names, async |name: String| {
        client.delete(Target::new(&path, &[&name])).await?;
        Ok(Some(name))
    })
    .await
}

async fn list(room: &str, args: ListArgs, client: &Client) -> Result<()> {
    let all = client
        .get(Target::new(room, &[]).filters(&args.filter)?)
        .await?;
    let mut all = all.as_array().cloned().unwrap_or_default();
    all.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    let now = Timestamp::now();
    let rows = all
        .iter()
        .map(|item| {
            row! {
                "ID" => text(item, "/ID"),
                "Name" => text(item, "/Spec/Name"),
                "Driver" => text(item, "/Spec/Driver/Name"),
                "CreatedAt" => ago(now, time(text(item, "/CreatedAt"))),
                "UpdatedAt" => ago(now, time(text(item, "/UpdatedAt"))),
                "Labels" => labels(item, "/Spec/Labels"),
            }
        })
        .collect();
    let driver = if room == "/secrets" {
        column("Driver", "DRIVER")
    } else {
        hidden("Driver", "DRIVER")
    };
    let columns = [
        column("ID", "ID"),
        column("Name", "NAME"),
        driver,
        column("CreatedAt", "CREATED"),
        column("UpdatedAt", "UPDATED"),
        hidden("Labels", "LABELS"),
    ];
    args.format.print(&columns, "ID", rows)
}
