//! Looking at containers.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shoal_api::container::{
    ContainerFilter, ContainerId, ContainerInspect, ContainerStatus, ContainerSummary, GraphPaths,
    LogLine, LogQuery, NetworkMode, ProcessList, PublishedPort, Stats,
};
use shoal_api::image::ImageUser;
use tokio_stream::wrappers::ReceiverStream;

use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::{links, logging, oci};
use crate::io::logs;

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// It does not run; already true of a container that never started.
    #[default]
    NotRunning,
    /// It ends after now. A start that fails counts as an end.
    NextExit,
    /// It is gone.
    Removed,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitOutcome {
    pub exit_code: i32,
    /// Why it could not even start; empty when it did.
    pub error: String,
}

/// How many containers there are, by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounts {
    pub running: usize,
    pub paused: usize,
    pub stopped: usize,
}

impl Engine {
    /// Begins to wait. Once this has returned, no end is missed.
    pub fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = WaitOutcome> + Send + use<>, EngineError> {
        let entry = self.find(name)?;
        let mut watch = entry.watch();
        let ends = watch.borrow().ends;
        Ok(async move {
            // Held, so that the sender lives as long as somebody waits.
            let entry = entry;
            let met = |record: &Arc<Record>| match condition {
                WaitCondition::NotRunning => {
                    // One that is started again has ended all the same.
                    record.removed
                        || record.ends != ends
                        || !(record.state.status.is_up()
                            || record.state.status == ContainerStatus::Restarting)
                }
                WaitCondition::NextExit => record.removed || record.ends != ends,
                WaitCondition::Removed => record.removed,
            };
            let _ = watch.wait_for(met).await;
            let record = entry.record();
            WaitOutcome {
                exit_code: record.state.exit_code,
                error: record.state.error.clone(),
            }
        })
    }

    /// Containers that match, newest first.
    pub async fn list(
        &self,
        filter: &ContainerFilter,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let moment = |names: &[String]| {
            names
                .iter()
                .map(|name| Ok(self.find(name)?.record().created))
                .collect::<Result<Vec<_>, EngineError>>()
        };
        let (before, since) = (moment(&filter.before)?, moment(&filter.since)?);
        let mut records: Vec<(Arc<Entry>, Arc<Record>)> = self
            .entries()
            .into_iter()
            .map(|entry| {
                let record = entry.record();
                (entry, record)
            })
            .filter(|(_, record)| {
                matches(record, filter)
                    && before.iter().all(|moment| record.created < *moment)
                    && since.iter().all(|moment| record.created > *moment)
            })
            .collect();
        records.sort_by_key(|(_, record)| std::cmp::Reverse(record.created));
        records.truncate(filter.limit.unwrap_or(usize::MAX));
        let linked = self.link_names();
        let mut summaries = Vec::with_capacity(records.len());
        for (entry, record) in records {
            let sizes = self.sizes_of(&entry, &record, filter.size).await;
            let names = linked.get(&record.id).cloned().unwrap_or_default();
            summaries.push(summary(&record, sizes, names));
        }
        Ok(summaries)
    }

    /// All about one container; `size` asks for the bytes it uses, which takes a walk through its files.
    pub async fn inspect(&self, name: &str, size: bool) -> Result<ContainerInspect, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        let command = oci::command(&record.spec).unwrap_or_default();
        let sizes = self.sizes_of(&entry, &record, size).await;
        let in_dir = |name: &str| entry.dir.join(name);
        Ok(ContainerInspect {
            id: record.id.clone(),
            name: record.name.clone(),
            created: record.created,
            path: command.first().cloned().unwrap_or_default(),
            args: command.iter().skip(1).cloned().collect(),
            state: record.state.clone(),
            image_id: record.image_id.clone(),
            restart_count: record.restart_count,
            spec: with_hostname(&record),
            network: record.network.clone(),
            mounts: record.mounts.clone(),
            resolv_conf_path: in_dir("resolv.conf"),
            hostname_path: in_dir("hostname"),
            hosts_path: in_dir("hosts"),
            log_path: super::prepare::log_path(&entry),
            graph: GraphPaths {
                lower: record.layers.clone(),
                upper: in_dir("upper"),
                work: in_dir("work"),
                merged: in_dir("merged"),
            },
            exec_ids: entry.live(|live| live.execs.keys().cloned().collect()),
            size_rw: sizes.own,
            size_root_fs: sizes.whole,
            log_attributes: log_attributes(&record),
        })
    }

    async fn sizes_of(&self, entry: &Entry, record: &Record, wanted: bool) -> Sizes {
        if !wanted {
            return Sizes::default();
        }
        let upper = entry.dir.join("upper");
        let own = tokio::task::spawn_blocking(move || bytes_below(&upper))
            .await
            .unwrap_or_default();
        let image = self.images().resolve(&record.image_id).ok();
        Sizes {
            own: Some(own),
            whole: image.map(|image| image.size + own),
        }
    }

    /// The names that containers have by links of others, by the id of who has them.
    fn link_names(&self) -> BTreeMap<ContainerId, Vec<String>> {
        let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for entry in self.entries() {
            let record = entry.record();
            // Elsewhere a link is a name that the network answers to.
            if record.spec.host.network_mode != NetworkMode::Default {
                continue;
            }
            for link in &record.spec.host.links {
                let Some((name, alias)) = links::parse(link) else {
                    continue;
                };
                if let Ok(target) = self.find(name) {
                    let name = format!("{}/{alias}", record.name);
                    names.entry(target.id.clone()).or_default().push(name);
                }
            }
        }
        names
    }

    /// The container's output so far and, with `follow`, from now on until it ends.
    pub fn logs(
        &self,
        name: &str,
        query: LogQuery,
    ) -> Result<ReceiverStream<io::Result<LogLine>>, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        if logging::files(&record.spec.host.log).is_none() {
            return Err(EngineError::Invalid(
                "configured logging driver does not support reading".into(),
            ));
        }
        let path = super::prepare::log_path(&entry);
        let watch = self.inner.log_watch.clone();
        let ended = async move {
            let _ = entry
                .watch()
                .wait_for(|record| {
                    record.removed
                        || !matches!(
                            record.state.status,
                            ContainerStatus::Running
                                | ContainerStatus::Paused
                                | ContainerStatus::Restarting
                        )
                })
                .await;
        };
        Ok(ReceiverStream::new(logs::read(path, query, watch, ended)))
    }

    /// Use of resources now; all zero for a container that does not run.
    pub fn stats(&self, name: &str) -> Result<Stats, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        if !record.state.status.is_up() {
            return Ok(Stats::default());
        }
        Ok(self
            .inner
            .cgroups
            .stats(&self.group_of(&record), record.state.pid))
    }

    /// The processes of a container as `ps` shows them, with `arguments` or `-ef`.
    pub async fn top(&self, name: &str, arguments: &str) -> Result<ProcessList, EngineError> {
        let entry = self.find(name)?;
        if !entry.record().state.status.is_up() {
            return Err(EngineError::NotRunning(entry.id.to_string()));
        }
        if let Some(layout) = crate::core::processes::parse(arguments) {
            let pids = self
                .inner
                .cgroups
                .processes(&self.group_of(&entry.record()));
            return Ok(crate::io::processes::table(&layout, &pids));
        }
        // Anything else is for the host's own `ps` to know.
        let arguments = if arguments.trim().is_empty() {
            "-ef"
        } else {
            arguments
        };
        let output = tokio::process::Command::new("ps")
            .args(arguments.split_whitespace())
            .output()
            .await;
        let output = output.map_err(EngineError::io("run", "ps"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EngineError::Invalid(format!("ps: {said}")));
        }
        let pids = self
            .inner
            .cgroups
            .processes(&self.group_of(&entry.record()));
        let text = String::from_utf8_lossy(&output.stdout);
        let mut rows = text.lines().map(|line| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        let titles = rows.next().unwrap_or_default();
        let column = titles.iter().position(|title| title == "PID");
        let column = column
            .ok_or_else(|| EngineError::Invalid("Couldn't find PID field in ps output".into()))?;
        let processes = rows
            .filter(|row| {
                row.get(column)
                    .and_then(|pid| pid.parse().ok())
                    .is_some_and(|pid| pids.contains(&pid))
            })
            .map(|mut row| {
                // The last column may hold blanks.
                if row.len() > titles.len() {
                    let last = row.split_off(titles.len() - 1).join(" ");
                    row.push(last);
                }
                row
            })
            .collect();
        Ok(ProcessList { titles, processes })
    }

    /// The images that containers stand on, which `ImageStore::remove` has to know.
    pub fn image_users(&self) -> Vec<ImageUser> {
        let users = self.entries().into_iter().filter_map(|entry| {
            let record = entry.record();
            let running = record.state.status.is_up();
            Some(ImageUser {
                image: record.image_id.parse().ok()?,
                container: record.id.to_string(),
                running,
            })
        });
        users.collect()
    }

    /// How many containers there are.
    pub fn counts(&self) -> EngineCounts {
        let mut counts = EngineCounts::default();
        for entry in self.entries() {
            match entry.record().state.status {
                ContainerStatus::Running => counts.running += 1,
                ContainerStatus::Paused => counts.paused += 1,
                _ => counts.stopped += 1,
            }
        }
        counts
    }

    /// `1` or `2`.
    pub fn cgroup_version(&self) -> u8 {
        self.inner.cgroups.version()
    }

    /// Why no container can run on this host, if that is so.
    pub fn self_test_failure(&self) -> Option<String> {
        self.inner.self_test.borrow().clone()?.err()
    }
}

fn with_hostname(record: &Record) -> shoal_api::container::ContainerSpec {
    let mut spec = record.spec.clone();
    spec.hostname = Some(record.hostname.clone());
    spec
}

/// Docker's file of JSON lines alone keeps them, so that others show none.
fn log_attributes(record: &Record) -> BTreeMap<String, String> {
    match logging::Driver::of(&record.spec.host.log) {
        Ok(logging::Driver::JsonFile) => super::prepare::subject(record).attributes(),
        _ => BTreeMap::new(),
    }
}

/// Bytes of a container's files, if they were asked for.
#[derive(Default)]
struct Sizes {
    /// In its own layer.
    own: Option<u64>,
    /// With those of its image, unless that is gone.
    whole: Option<u64>,
}

fn summary(record: &Record, sizes: Sizes, link_names: Vec<String>) -> ContainerSummary {
    let mut ports: Vec<PublishedPort> = record.network.ports.values().flatten().cloned().collect();
    if record.state.status.is_up() {
        for port in &record.spec.exposed_ports {
            let published = |have: &PublishedPort| {
                have.container_port == port.number && have.protocol == port.protocol
            };
            if !ports.iter().any(published) {
                ports.push(PublishedPort {
                    host_ip: None,
                    host_port: None,
                    container_port: port.number,
                    protocol: port.protocol,
                });
            }
        }
    }
    ContainerSummary {
        id: record.id.clone(),
        name: record.name.clone(),
        image: record.spec.image.clone(),
        image_id: record.image_id.clone(),
        command: oci::command(&record.spec).unwrap_or_default().join(" "),
        created: record.created,
        state: record.state.clone(),
        labels: record.spec.labels.clone(),
        ports,
        mounts: record.mounts.clone(),
        network_mode: mode_name(&record.spec.host.network_mode),
        networks: record.network.networks.clone(),
        size_rw: sizes.own,
        size_root_fs: sizes.whole,
        link_names,
    }
}

fn mode_name(mode: &NetworkMode) -> String {
    match mode {
        NetworkMode::Default => "bridge".into(),
        NetworkMode::None => "none".into(),
        NetworkMode::Host => "host".into(),
        NetworkMode::Container(id) => format!("container:{id}"),
        NetworkMode::Network(name) => name.clone(),
    }
}

fn matches(record: &Record, filter: &ContainerFilter) -> bool {
    let state = &record.state;
    let any = |wanted: &[String], test: &dyn Fn(&str) -> bool| {
        wanted.is_empty() || wanted.iter().any(|wish| test(wish))
    };
    let shown = filter.all
        || !filter.status.is_empty()
        || !filter.exited.is_empty()
        || filter.limit.is_some()
        || state.status.is_up()
        || state.status == ContainerStatus::Restarting;
    let health = state
        .health
        .as_ref()
        .map_or("none", |health| health.status.as_str());
    shown
        && (filter.status.is_empty() || filter.status.contains(&state.status))
        && (filter.exited.is_empty()
            || (state.status == ContainerStatus::Exited
                && filter.exited.contains(&state.exit_code)))
        && any(&filter.id, &|wish| record.id.as_str().starts_with(wish))
        && any(&filter.name, &|wish| {
            record.name.contains(wish.trim_start_matches('/'))
        })
        && any(&filter.health, &|wish| wish == health)
        && any(&filter.ancestor, &|wish| {
            record.spec.image == wish
                || record.spec.image.strip_suffix(":latest") == Some(wish)
                || record.image_id == wish
                || record
                    .image_id
                    .trim_start_matches("sha256:")
                    .starts_with(wish)
        })
        && any(&filter.volume, &|wish| {
            record
                .mounts
                .iter()
                .any(|mount| mount.name == wish || mount.destination == wish)
        })
        && any(&filter.network, &|wish| {
            mode_name(&record.spec.host.network_mode) == wish
                || record
                    .network
                    .networks
                    .iter()
                    .any(|(name, endpoint)| name == wish || endpoint.network_id.starts_with(wish))
                || record.spec.endpoints.contains_key(wish)
        })
        && (filter.publish.is_empty()
            || filter.publish.iter().any(|port| {
                record.network.ports.values().flatten().any(|have| {
                    have.host_port == Some(port.number) && have.protocol == port.protocol
                })
            }))
        && filter.label.iter().all(|wish| match wish.split_once('=') {
            Some((key, value)) => record
                .spec
                .labels
                .get(key)
                .is_some_and(|have| have == value),
            None => record.spec.labels.contains_key(wish),
        })
}

/// Bytes of all files below a directory, not following links.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}
