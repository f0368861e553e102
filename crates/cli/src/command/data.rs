//! `shoal secret` and `shoal config`: the same grammar over two kinds of data.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shoal_api::Timestamp;

use super::ListArgs;
use crate::{
    client::{Client, Target},
    flags,
    human::{ago, time},
    json::{labels, pairs, text},
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
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
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
    if args.pretty {
        return output::each(&args.names, async |name: String| {
            let found = client.get(Target::new(&path, &[&name])).await?;
            Ok(Some(pretty(room, &found)?))
        })
        .await;
    }
    output::inspect_each(args.format.as_deref(), &args.names, async |name: String| {
        client.get(Target::new(&path, &[&name])).await
    })
    .await
}

fn pretty(room: &str, found: &Value) -> Result<String> {
    let mut lines = vec![
        format!("ID:\t\t\t{}", text(found, "/ID")),
        format!("Name:\t\t\t{}", text(found, "/Spec/Name")),
    ];
    let labels: Vec<_> = pairs(found, "/Spec/Labels").collect();
    if !labels.is_empty() {
        lines.push("Labels:".to_owned());
    }
    for (key, value) in labels {
        match value.as_str().filter(|value| !value.is_empty()) {
            Some(value) => lines.push(format!(" - {key}={value}")),
            None => lines.push(format!(" - {key}")),
        }
    }
    if room == "/secrets" {
        lines.push(format!("Driver:\t\t\t{}", text(found, "/Spec/Driver/Name")));
    }
    lines.push(format!("Created at:\t\t{}", text(found, "/CreatedAt")));
    lines.push(format!("Updated at:\t\t{}", text(found, "/UpdatedAt")));
    if room == "/configs" {
        let data = STANDARD.decode(text(found, "/Spec/Data"));
        let data = data.context("the data of the config is not readable")?;
        lines.push("Data:".to_owned());
        lines.push(String::from_utf8_lossy(&data).into_owned());
    }
    Ok(lines.join("\n"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_a_config_with_its_data_and_a_secret_without() {
        let mut found = json!({
            "ID": "c1", "CreatedAt": "then", "UpdatedAt": "now",
            "Spec": {"Name": "site", "Labels": {"a": "b", "c": ""}, "Data": "aGVsbG8="},
        });
        let shown = pretty("/configs", &found).expect("readable");
        assert_eq!(
            shown,
            "ID:\t\t\tc1\nName:\t\t\tsite\nLabels:\n - a=b\n - c\nCreated at:\t\tthen\nUpdated at:\t\tnow\nData:\nhello"
        );
        found["Spec"]["Labels"].take();
        let shown = pretty("/secrets", &found).expect("readable");
        assert_eq!(
            shown,
            "ID:\t\t\tc1\nName:\t\t\tsite\nDriver:\t\t\t\nCreated at:\t\tthen\nUpdated at:\t\tnow"
        );
    }
}
