//! `prune`, of each kind of thing and of all at once.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::{
    client::{Client, Payload, Target},
    flags::quantity,
    human::size,
    json::{items, number, text, texts},
    output,
};

/// What narrows a prune, and whether to ask.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "filter", value_parser = super::filter)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

/// Remove all stopped containers
#[derive(Args)]
#[command(after_help = "Example:\n  shoal container prune --force --filter until=24h")]
pub(crate) struct Containers {
    #[command(flatten)]
    wanted: Wanted,
}

/// Remove unused images
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal image prune\n  shoal image prune -a --filter until=240h"
)]
pub(crate) struct Images {
    #[command(flatten)]
    wanted: Wanted,
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
}

/// Remove all unused networks
#[derive(Args)]
#[command(after_help = "Example:\n  shoal network prune --force")]
pub(crate) struct Networks {
    #[command(flatten)]
    wanted: Wanted,
}

/// Remove unused local volumes
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal volume prune\n  shoal volume prune -a --filter label=temporary"
)]
pub(crate) struct Volumes {
    #[command(flatten)]
    wanted: Wanted,
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
}

/// Remove build cache
#[derive(Args)]
#[command(after_help = "Example:\n  shoal builder prune --force")]
pub(crate) struct Builds {
    #[command(flatten)]
    wanted: Wanted,
    /// Remove all unused build cache, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Amount of disk space to keep for cache
    #[arg(long, value_name = "bytes", default_value = "0", value_parser = quantity::bytes)]
    keep_storage: i64,
}

/// Remove unused data
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal system prune\n  shoal system prune -a --volumes --force"
)]
pub(crate) struct System {
    #[command(flatten)]
    wanted: Wanted,
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

/// Asks, unless told not to; anything but yes is no.
fn agreed(force: bool, warning: &str) -> bool {
    if force {
        return true;
    }
    let question = format!("{warning}\nAre you sure you want to continue? [y/N] ");
    output::write(question.as_bytes());
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    if !std::io::stdin().is_terminal() {
        output::line("");
    }
    read.is_ok() && ["y", "Y", "yes"].contains(&line.trim())
}

/// A heading and what is below it, or nothing.
fn tell(heading: &str, lines: &[String]) {
    if !lines.is_empty() {
        output::line(format!("{heading}\n{}\n", lines.join("\n")));
    }
}

fn total(bytes: u64) {
    output::line(format!("Total reclaimed space: {}", size(bytes)));
}

fn reclaimed(answer: &Value) -> u64 {
    number(answer, "/SpaceReclaimed").unsigned_abs()
}

async fn containers(filters: &[String], client: &Client) -> Result<u64> {
    let target = Target::new("/containers/prune", &[]).filters(filters)?;
    let answer = client.post(target, Payload::Empty).await?;
    tell("Deleted Containers:", &texts(&answer, "/ContainersDeleted"));
    Ok(reclaimed(&answer))
}

async fn networks(filters: &[String], client: &Client) -> Result<()> {
    let target = Target::new("/networks/prune", &[]).filters(filters)?;
    let answer = client.post(target, Payload::Empty).await?;
    tell("Deleted Networks:", &texts(&answer, "/NetworksDeleted"));
    Ok(())
}

async fn volumes(filters: &[String], all: bool, client: &Client) -> Result<u64> {
    let mut filters = filters.to_vec();
    if all {
        filters.push("all=true".to_owned());
    }
    let target = Target::new("/volumes/prune", &[]).filters(&filters)?;
    let answer = client.post(target, Payload::Empty).await?;
    tell("Deleted Volumes:", &texts(&answer, "/VolumesDeleted"));
    Ok(reclaimed(&answer))
}

async fn images(filters: &[String], all: bool, client: &Client) -> Result<u64> {
    let mut filters = filters.to_vec();
    filters.push(format!("dangling={}", !all));
    let target = Target::new("/images/prune", &[]).filters(&filters)?;
    let answer = client.post(target, Payload::Empty).await?;
    let lines: Vec<String> = items(&answer, "/ImagesDeleted")
        .iter()
        .map(|item| match text(item, "/Untagged") {
            "" => format!("deleted: {}", text(item, "/Deleted")),
            name => format!("untagged: {name}"),
        })
        .collect();
    tell("Deleted Images:", &lines);
    Ok(reclaimed(&answer))
}

async fn builds(filters: &[String], all: bool, keep: i64, client: &Client) -> Result<u64> {
    let target = Target::new("/build/prune", &[])
        .flag("all", all)
        .maybe("reserved-space", (keep > 0).then_some(keep))
        .filters(filters)?;
    let answer = client.post(target, Payload::Empty).await?;
    tell(
        "Deleted build cache objects:",
        &texts(&answer, "/CachesDeleted"),
    );
    Ok(reclaimed(&answer))
}

impl Containers {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if agreed(
            self.wanted.force,
            "WARNING! This will remove all stopped containers.",
        ) {
            total(containers(&self.wanted.filter, client).await?);
        }
        Ok(())
    }
}

impl Images {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let warning = if self.all {
            "WARNING! This will remove all images without at least one container associated to them."
        } else {
            "WARNING! This will remove all dangling images."
        };
        if agreed(self.wanted.force, warning) {
            total(images(&self.wanted.filter, self.all, client).await?);
        }
        Ok(())
    }
}

impl Networks {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if agreed(
            self.wanted.force,
            "WARNING! This will remove all custom networks not used by at least one container.",
        ) {
            networks(&self.wanted.filter, client).await?;
        }
        Ok(())
    }
}

impl Volumes {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let warning = if self.all {
            "WARNING! This will remove all local volumes not used by at least one container."
        } else {
            "WARNING! This will remove anonymous local volumes not used by at least one container."
        };
        if agreed(self.wanted.force, warning) {
            total(volumes(&self.wanted.filter, self.all, client).await?);
        }
        Ok(())
    }
}

impl Builds {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let warning = if self.all {
            "WARNING! This will remove all build cache."
        } else {
            "WARNING! This will remove all dangling build cache."
        };
        if agreed(self.wanted.force, warning) {
            let bytes = builds(&self.wanted.filter, self.all, self.keep_storage, client).await?;
            output::line(format!("Total:\t{}", size(bytes)));
        }
        Ok(())
    }
}

impl System {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let mut warning = String::from(
            "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at least one \
             container\n",
        );
        if self.volumes {
            warning.push_str("  - all anonymous volumes not used by at least one container\n");
        }
        warning.push_str(if self.all {
            "  - all images without at least one container associated to them\n  - all build cache\n"
        } else {
            "  - all dangling images\n  - unused build cache\n"
        });
        if !self.wanted.filter.is_empty() {
            warning.push_str("\n  Items to be pruned will be filtered with:\n");
            for filter in &self.wanted.filter {
                warning.push_str(&format!("  - {filter}\n"));
            }
        }
        let until = self
            .wanted
            .filter
            .iter()
            .any(|filter| filter.starts_with("until="));
        if self.volumes && until {
            anyhow::bail!("ERROR: The \"until\" filter is not supported with \"--volumes\"");
        }
        if !agreed(self.wanted.force, &warning) {
            return Ok(());
        }
        let filters = &self.wanted.filter;
        let mut bytes = containers(filters, client).await?;
        networks(filters, client).await?;
        if self.volumes {
            bytes += volumes(filters, false, client).await?;
        }
        bytes += images(filters, self.all, client).await?;
        bytes += builds(filters, self.all, 0, client).await?;
        total(bytes);
        Ok(())
    }
}
