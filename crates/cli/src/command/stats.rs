//! `shoal stats`: what containers use, once or as it goes on.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use hyper::Method;
use serde_json::Value;

use crate::{
    client::{Client, Payload, Target, values},
    human::{binary_size, short_id, size},
    json::{items, number, pairs, text},
    output::{self, ListFormat, Row, column, hidden, row},
};

/// Time between two pictures; docker's.
const PICTURE_PERIOD: Duration = Duration::from_millis(500);

/// Display a live stream of container(s) resource usage statistics
#[derive(ClapArgs)]
#[command(
    after_help = "Examples:\n  shoal stats --no-stream\n  shoal stats --format '{{.Name}}: {{.CPUPerc}}' web db"
)]
pub(crate) struct Args {
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
}

/// What is known of one container.
#[derive(Default)]
struct Seen {
    /// As the user called it.
    called: String,
    sample: Option<Value>,
}

/// Rows in the order in which their containers came.
type Shared = Arc<Mutex<Vec<Seen>>>;

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let names = if self.containers.is_empty() {
            let target = Target::new("/containers/json", &[]).flag("all", self.all);
            let listed = client.get(target).await?;
            items(&listed, "")
                .iter()
                .map(|row| text(row, "/Id").to_owned())
                .collect()
        } else {
            self.containers.clone()
        };
        if self.no_stream {
            return self.once(names, client).await;
        }
        self.follow(names, client).await
    }

    async fn once(&self, names: Vec<String>, client: &Client) -> Result<()> {
        let asked = names.iter().map(|name| async move {
            let target = Target::new("/containers/{}/stats", &[name]).arg("stream", 0);
            client.get(target).await
        });
        let mut rows = Vec::new();
        let mut errors = Vec::new();
        for (name, answer) in names
            .iter()
            .zip(futures_util::future::join_all(asked).await)
        {
            match answer {
                Ok(sample) => rows.push(self.row(name, Some(&sample))),
                // One that went away since the list was made is no failure.
                Err(error) if self.containers.is_empty() && crate::client::is_not_found(&error) => {
                }
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        self.print(rows)?;
        output::fail_with(errors)
    }

    /// Follows containers until they, or all of the events, end.
    async fn follow(&self, names: Vec<String>, client: &Client) -> Result<()> {
        let seen: Shared = Shared::default();
        let mut followed = FuturesUnordered::new();
        let add = |name: &str| {
            let mut rows = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if rows.iter().any(|row| row.called == name) {
                return None;
            }
            rows.push(Seen {
                called: name.to_owned(),
                sample: None,
            });
            drop(rows);
            Some(watch(name.to_owned(), seen.clone(), client).boxed_local())
        };
        for name in &names {
            // One that is not there is told before anything is drawn.
            if !self.containers.is_empty() {
                client
                    .get(Target::new("/containers/{}/json", &[name]))
                    .await?;
            }
            followed.extend(add(name));
        }
        let mut events = None;
        if self.containers.is_empty() {
            let target = Target::new("/events", &[]).filters(&[
                "type=container".to_owned(),
                "event=start".to_owned(),
                "event=create".to_owned(),
                "event=destroy".to_owned(),
                "event=die".to_owned(),
            ])?;
            let answer = client.send(Method::GET, target, Payload::Empty).await?;
            events = Some(values(answer));
        }
        let mut ticks = tokio::time::interval(PICTURE_PERIOD);
        loop {
            let event = async {
                match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = ticks.tick() => {
                    let rows: Vec<Row> = {
                        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.iter().map(|row| self.row(&row.called, row.sample.as_ref())).collect()
                    };
                    // Home, and what is below is erased (ECMA-48 CUP, ED).
                    output::write(b"\x1b[H\x1b[J");
                    self.print(rows)?;
                }
                Some(ended) = followed.next(), if !followed.is_empty() => {
                    let () = ended;
                    if events.is_none() && followed.is_empty() {
                        return Ok(());
                    }
                }
                event = event => match event {
                    Some(event) => {
                        let event = event?;
                        let id = text(&event, "/Actor/ID");
                        match text(&event, "/Action") {
                            "start" => followed.extend(add(id)),
                            "create" if self.all => followed.extend(add(id)),
                            "destroy" => forget(&seen, id),
                            "die" if !self.all => forget(&seen, id),
                            _ => {}
                        }
                    }
                    None => bail!("the daemon's events broke off"),
                },
            }
        }
    }

    fn row(&self, called: &str, sample: Option<&Value>) -> Row {
        let Some(sample) = sample else {
            let id = if self.no_trunc {
                called
            } else {
                short_id(called)
            };
            return row! {
                "Container" => called, "ID" => id, "Name" => "--", "CPUPerc" => "--",
                "MemUsage" => "-- / --", "MemPerc" => "--", "NetIO" => "-- / --", "BlockIO" => "-- / --",
                "PIDs" => "--",
            };
        };
        let id = text(sample, "/id");
        let used = memory(sample);
        let limit = number(sample, "/memory_stats/limit").unsigned_abs();
        let (received, sent) = network(sample);
        let (read, written) = block(sample);
        row! {
            "Container" => called,
            "ID" => if self.no_trunc { id } else { short_id(id) },
            "Name" => text(sample, "/name").trim_start_matches('/'),
            "CPUPerc" => format!("{:.2}%", cpu(sample)),
            "MemUsage" => format!("{} / {}", binary_size(used), binary_size(limit)),
            "MemPerc" => format!("{:.2}%", if limit == 0 { 0.0 } else { used as f64 / limit as f64 * 100.0 }),
            "NetIO" => format!("{} / {}", size(received), size(sent)),
            "BlockIO" => format!("{} / {}", size(read), size(written)),
            "PIDs" => number(sample, "/pids_stats/current").to_string(),
        }
    }

    fn print(&self, rows: Vec<Row>) -> Result<()> {
        let columns = [
            column("ID", "CONTAINER ID"),
            column("Name", "NAME"),
            column("CPUPerc", "CPU %"),
            column("MemUsage", "MEM USAGE / LIMIT"),
            column("MemPerc", "MEM %"),
            column("NetIO", "NET I/O"),
            column("BlockIO", "BLOCK I/O"),
            column("PIDs", "PIDS"),
            hidden("Container", "CONTAINER"),
        ];
        let format = ListFormat {
            format: self.format.clone(),
            quiet: false,
        };
        format.print(&columns, "ID", rows)?;
        let _ = std::io::stdout().flush();
        Ok(())
    }
}

fn forget(seen: &Shared, id: &str) {
    let mut rows = seen.lock().unwrap_or_else(PoisonError::into_inner);
    rows.retain(|row| row.called != id);
}

/// Keeps the newest sample of a container until it ends.
async fn watch(name: String, seen: Shared, client: &Client) {
    let target = Target::new("/containers/{}/stats", &[&name]).arg("stream", 1);
    // A container that went away has no samples.
    let Ok(answer) = client.send(Method::GET, target, Payload::Empty).await else {
        return;
    };
    let mut samples = values(answer);
    while let Some(Ok(sample)) = samples.next().await {
        let mut rows = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.iter_mut().find(|row| row.called == name) {
            row.sample = Some(sample);
        }
    }
}

/// Share of one processor since the sample before, in per cent.
fn cpu(sample: &Value) -> f64 {
    let since = |pointer: &str| {
        let now = number(sample, &format!("/cpu_stats/{pointer}"));
        let before = number(sample, &format!("/precpu_stats/{pointer}"));
        (now - before) as f64
    };
    let (own, all) = (since("cpu_usage/total_usage"), since("system_cpu_usage"));
    let before = number(sample, "/precpu_stats/system_cpu_usage");
    if own <= 0.0 || all <= 0.0 || before == 0 {
        return 0.0;
    }
    let processors = match number(sample, "/cpu_stats/online_cpus") {
        0 => items(sample, "/cpu_stats/cpu_usage/percpu_usage").len() as f64,
        count => count as f64,
    };
    own / all * processors * 100.0
}

/// Memory in use without the page cache that can be dropped at once.
fn memory(sample: &Value) -> u64 {
    let usage = number(sample, "/memory_stats/usage").unsigned_abs();
    let v1 = number(sample, "/memory_stats/stats/total_inactive_file").unsigned_abs();
    let v2 = number(sample, "/memory_stats/stats/inactive_file").unsigned_abs();
    let droppable = if v1 > 0 { v1 } else { v2 };
    if droppable < usage {
        usage - droppable
    } else {
        usage
    }
}

fn network(sample: &Value) -> (u64, u64) {
    let sum = |field: &str| {
        pairs(sample, "/networks")
            .map(|(_, of)| number(of, field).unsigned_abs())
            .sum()
    };
    (sum("/rx_bytes"), sum("/tx_bytes"))
}

fn block(sample: &Value) -> (u64, u64) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for entry in items(sample, "/blkio_stats/io_service_bytes_recursive") {
        let kind = text(entry, "/op").to_ascii_lowercase();
        *sums.entry(kind).or_default() += number(entry, "/value").unsigned_abs();
    }
    let of = |kind: &str| sums.get(kind).copied().unwrap_or(0);
    (of("read"), of("write"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_are_computed_as_docker_does() {
        let sample = json!({
            "id": "0123456789abcdef", "name": "/web",
            "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
            "memory_stats": {"usage": 3 << 20, "limit": 4 << 20, "stats": {"inactive_file": 1 << 20}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 1}, "eth1": {"rx_bytes": 500, "tx_bytes": 1}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 5}, {"op": "write", "value": 6}]},
            "pids_stats": {"current": 4},
        });
        let args = Args {
            containers: Vec::new(),
            all: false,
            format: None,
            no_stream: true,
            no_trunc: false,
        };
        let row = args.row("web", Some(&sample));
        let seen: Vec<_> = row.values().map(|value| value.as_str().unwrap()).collect();
        assert_eq!(
            seen.join(" | "),
            "5B / 6B | 40.00% | web | 0123456789ab | 50.00% | 2MiB / 4MiB | web | 1.5kB / 2B | 4"
        );
    }
}
