//! `shoal doctor`: what is wrong with the cluster, found by trying.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    client::{Client, Target},
    json::{is, items, number, pairs, text, texts},
    output::{self, ListFormat, column, row},
};

/// Find what is wrong with the cluster
#[derive(Subcommand)]
pub(crate) enum Command {
    Network(Network),
}

/// Try the ways that packets take between nodes
///
/// Every node sends packets to every other as overlay networks do, short ones, ones of full size, and ones whose checksums
/// are left to the network card, and says which of them arrived; beside that, what its kernel has and how far its clock is off. Takes three seconds. The exit code is 1 if
/// anything is wrong.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal doctor network\n  shoal doctor network --format json | jq -r '.Problems[]'"
)]
pub(crate) struct Network {
    /// Format output: 'table' or 'json'
    #[arg(long, value_name = "string", default_value = "table")]
    format: String,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let Self::Network(args) = self;
        if !["table", "json"].contains(&args.format.as_str()) {
            bail!("invalid format {:?}: expected table or json", args.format);
        }
        let report = client
            .get(Target::new("/shoal/doctor/network", &[]))
            .await?;
        if args.format == "json" {
            output::line(&report);
        } else {
            show(&report)?;
        }
        output::fail_with(texts(&report, "/Problems"))
    }
}

fn show(report: &Value) -> Result<()> {
    let word = |yes: bool| if yes { "yes" } else { "NO" };
    let nodes = items(report, "/Nodes").iter().map(|node| {
        let offset = node.pointer("/ClockOffsetMs").and_then(Value::as_f64);
        let there = pairs(node, "/Kernel").filter(|(_, there)| there.as_bool() == Some(true));
        let there: Vec<&str> = there.map(|(name, _)| name).collect();
        let lacks = pairs(node, "/Kernel").filter(|(_, there)| there.as_bool() == Some(false));
        let lacks: Vec<&str> = lacks.map(|(name, _)| name).collect();
        row! {
            "ID" => text(node, "/ID"),
            "Hostname" => text(node, "/Hostname"),
            "Address" => text(node, "/Address"),
            "MTU" => number(node, "/MTU").to_string(),
            "Clock" => offset.map_or_else(|| "-".to_owned(), |ms| format!("{ms:+.0} ms")),
            "Kernel" => there.join(","),
            "Lacks" => lacks.join(","),
        }
    });
    let columns = [
        column("Hostname", "NODE"),
        column("Address", "ADDRESS"),
        column("MTU", "MTU"),
        column("Clock", "CLOCK"),
        column("Kernel", "KERNEL HAS"),
        column("Lacks", "KERNEL LACKS"),
    ];
    ListFormat::default().print(&columns, "ID", nodes.collect())?;
    output::line("");
    let port = number(report, "/Port");
    let ways = items(report, "/Ways").iter().map(|way| {
        let checksums = way.pointer("/Checksums").and_then(Value::as_bool);
        row! {
            "From" => text(way, "/From"),
            "To" => text(way, "/To"),
            "Port" => format!("{port}/udp"),
            "Reachable" => word(is(way, "/Reachable")),
            "FullSize" => word(is(way, "/FullSize")),
            "Checksums" => checksums.map_or("-", word),
        }
    });
    let columns = [
        column("From", "FROM"),
        column("To", "TO"),
        column("Port", "PORT"),
        column("Reachable", "REACHABLE"),
        column("FullSize", "FULL-SIZE PACKETS"),
        column("Checksums", "CHECKSUMS"),
    ];
    ListFormat::default().print(&columns, "From", ways.collect())
}
