//! `shoal system df`: what uses the disk, and how much of it could be had back.

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use shoal_api::Timestamp;

use crate::{
    client::{Client, Target},
    human::{ago, ellipsis, short_id, size},
    image_ref::familiar,
    json::{items, number, text, texts},
    output::{self, ListFormat, Row, column, row},
};

/// Show disk usage
#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  shoal system df\n  shoal system df -v")]
pub(crate) struct Args {
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

fn bytes(value: &Value, pointer: &str) -> u64 {
    // What is not known is -1.
    u64::try_from(number(value, pointer)).unwrap_or(0)
}

/// One line: how many there are and are in use, their bytes, and the bytes of those not in use.
fn line(kind: &str, all: usize, active: usize, total: u64, unused: u64) -> Row {
    let share = if total > 0 {
        format!(" ({}%)", unused.saturating_mul(100) / total)
    } else {
        String::new()
    };
    row! {
        "Type" => kind,
        "TotalCount" => all.to_string(),
        "Active" => active.to_string(),
        "Size" => size(total),
        "Reclaimable" => format!("{}{share}", size(unused)),
    }
}

fn summary(usage: &Value) -> Vec<Row> {
    let images = items(usage, "/Images");
    let used = |image: &&Value| number(image, "/Containers") > 0;
    let layers = bytes(usage, "/LayersSize");
    let kept: u64 = images
        .iter()
        .filter(used)
        .map(|image| bytes(image, "/Size").saturating_sub(bytes(image, "/SharedSize")))
        .sum();
    let containers = items(usage, "/Containers");
    let runs = |container: &&Value| {
        ["running", "paused", "restarting"].contains(&text(container, "/State"))
    };
    let total: u64 = containers.iter().map(|c| bytes(c, "/SizeRw")).sum();
    let running: u64 = containers
        .iter()
        .filter(runs)
        .map(|c| bytes(c, "/SizeRw"))
        .sum();
    let volumes = items(usage, "/Volumes");
    let held = |volume: &&Value| number(volume, "/UsageData/RefCount") > 0;
    let volume_bytes: u64 = volumes.iter().map(|v| bytes(v, "/UsageData/Size")).sum();
    let held_bytes: u64 = volumes
        .iter()
        .filter(held)
        .map(|v| bytes(v, "/UsageData/Size"))
        .sum();
    let cache = items(usage, "/BuildCache");
    let in_use = |entry: &&Value| crate::json::is(entry, "/InUse");
    let own = |entry: &&Value| !crate::json::is(entry, "/Shared");
    let cached: u64 = cache
        .iter()
        .filter(own)
        .map(|entry| bytes(entry, "/Size"))
        .sum();
    let cached_used: u64 = cache
        .iter()
        .filter(in_use)
        .map(|entry| bytes(entry, "/Size"))
        .sum();
    vec![
        line(
            "Images",
            images.len(),
            images.iter().filter(used).count(),
            layers,
            layers.saturating_sub(kept),
        ),
        line(
            "Containers",
            containers.len(),
            containers.iter().filter(runs).count(),
            total,
            total - running,
        ),
        line(
            "Local Volumes",
            volumes.len(),
            volumes.iter().filter(held).count(),
            volume_bytes,
            volume_bytes - held_bytes,
        ),
        line(
            "Build Cache",
            cache.len(),
            cache.iter().filter(in_use).count(),
            cached,
            cached.saturating_sub(cached_used),
        ),
    ]
}

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.verbose
            && self
                .format
                .as_deref()
                .is_some_and(|format| format.starts_with("table"))
        {
            bail!("the verbose and the table format cannot be combined");
        }
        let usage = client.get(Target::new("/system/df", &[])).await?;
        if !self.verbose {
            let columns = [
                column("Type", "TYPE"),
                column("TotalCount", "TOTAL"),
                column("Active", "ACTIVE"),
                column("Size", "SIZE"),
                column("Reclaimable", "RECLAIMABLE"),
            ];
            let format = ListFormat {
                format: self.format,
                quiet: false,
            };
            return format.print(&columns, "Type", summary(&usage));
        }
        match self.format.as_deref() {
            None => output::write(details(&usage, Timestamp::now()).as_bytes()),
            Some("json") => output::line(&usage),
            Some(format) => {
                let containers: Vec<Value> =
                    items(&usage, "/Containers").iter().map(shown).collect();
                let all = json!({
                    "Images": usage["Images"], "Containers": containers,
                    "Volumes": usage["Volumes"], "BuildCache": usage["BuildCache"],
                });
                output::line(crate::template::compile(format)?.render(&all)?);
            }
        }
        Ok(())
    }
}

/// A container with what a template of docker's asks of it.
fn shown(container: &Value) -> Value {
    let mut row = container.clone();
    let names = texts(container, "/Names").join(",");
    row["Names"] = names.trim_start_matches('/').into();
    row["LocalVolumes"] = volumes_of(container).to_string().into();
    row["Size"] = size(bytes(container, "/SizeRw")).into();
    row
}

/// How many volumes a container has.
fn volumes_of(container: &Value) -> usize {
    let mounts = items(container, "/Mounts").iter();
    mounts.filter(|m| text(m, "/Type") == "volume").count()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn details(usage: &Value, now: Timestamp) -> String {
    let created = |value: &Value| Timestamp(number(value, "/Created") * 1_000_000_000);
    let mut images = vec![words([
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ])];
    for image in items(usage, "/Images") {
        let name = texts(image, "/RepoTags").into_iter().next();
        let name = name.map_or_else(|| "<none>:<none>".to_owned(), |name| familiar(&name));
        let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "<none>"));
        let shared = bytes(image, "/SharedSize");
        images.push(vec![
            repository.to_owned(),
            tag.to_owned(),
            short_id(text(image, "/Id")).to_owned(),
            ago(now, created(image)),
            size(bytes(image, "/Size")),
            size(shared),
            size(bytes(image, "/Size").saturating_sub(shared)),
            number(image, "/Containers").to_string(),
        ]);
    }
    let mut containers = vec![words([
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "LOCAL VOLUMES",
        "SIZE",
        "CREATED",
        "STATUS",
        "NAMES",
    ])];
    for container in items(usage, "/Containers") {
        let names = texts(container, "/Names").join(",");
        containers.push(vec![
            short_id(text(container, "/Id")).to_owned(),
            text(container, "/Image").to_owned(),
            format!("\"{}\"", ellipsis(text(container, "/Command"), 20)),
            volumes_of(container).to_string(),
            size(bytes(container, "/SizeRw")),
            ago(now, created(container)),
            text(container, "/Status").to_owned(),
            names.trim_start_matches('/').to_owned(),
        ]);
    }
    let mut volumes = vec![words(["VOLUME NAME", "LINKS", "SIZE"])];
    for volume in items(usage, "/Volumes") {
        volumes.push(vec![
            text(volume, "/Name").to_owned(),
            number(volume, "/UsageData/RefCount").to_string(),
            size(bytes(volume, "/UsageData/Size")),
        ]);
    }
    let mut cache = vec![words([
        "CACHE ID",
        "CACHE TYPE",
        "SIZE",
        "CREATED",
        "LAST USED",
        "USAGE",
        "SHARED",
    ])];
    let mut cached = 0;
    for entry in items(usage, "/BuildCache") {
        let time = |field: &str| match text(entry, field) {
            "" => String::new(),
            text => ago(now, crate::human::time(text)),
        };
        cached += bytes(entry, "/Size");
        cache.push(vec![
            short_id(text(entry, "/ID")).to_owned(),
            text(entry, "/Type").to_owned(),
            size(bytes(entry, "/Size")),
            time("/CreatedAt"),
            time("/LastUsedAt"),
            number(entry, "/UsageCount").to_string(),
            crate::json::is(entry, "/Shared").to_string(),
        ]);
    }
    format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: {}\n\n{}\n",
        output::table(&images),
        output::table(&containers),
        output::table(&volumes),
        size(cached),
        output::table(&cache)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_use_can_be_had_back() {
        let usage = json!({
            "LayersSize": 3000,
            "Images": [{"Containers": 1, "Size": 1000, "SharedSize": 0}, {"Containers": 0, "Size": 2000, "SharedSize": 0}],
            "Containers": [{"State": "running", "SizeRw": 10}, {"State": "exited", "SizeRw": 30}],
            "Volumes": [{"UsageData": {"Size": 5, "RefCount": 0}}, {"UsageData": {"Size": -1, "RefCount": 1}}],
            "BuildCache": null,
        });
        let lines: Vec<String> = summary(&usage)
            .iter()
            .map(|row| {
                let cells = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];
                cells.map(|cell| text(&row[cell], "")).join(" ")
            })
            .collect();
        assert_eq!(
            lines.join("; "),
            "Images 2 1 3kB 2kB (66%); Containers 2 1 40B 30B (75%); Local Volumes 2 1 5B 5B (100%); Build Cache 0 0 0B 0B"
        );
    }
}
