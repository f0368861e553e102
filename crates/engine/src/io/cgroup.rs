//! The control groups of containers, whatever the kernel's version of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_api::Timestamp;
use shoal_api::container::{
    BlkioStats, CpuStats, InterfaceStats, MemoryStats, PidsStats, Resources, Stats,
};

use crate::core::limits;

mod make;

/// How often a group that still has dying processes in it is tried again, with pauses that double from 5 ms.
const REMOVE_ATTEMPTS: u32 = 8;

/// Where the kernel's control groups are.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    /// Mount points by controller (v1), or the one unified mount point.
    mounts: Mounts,
    parent: PathBuf,
}

#[derive(Debug, Clone)]
enum Mounts {
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

impl Cgroups {
    /// Reads the mount table. Hybrid hosts count as version 1, as for docker.
    pub(super) fn detect(parent: &str) -> io::Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(target) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    for controller in options.split(',').filter(|option| is_controller(option)) {
                        v1.entry(controller.to_owned())
                            .or_insert_with(|| PathBuf::from(target));
                    }
                }
                Some("cgroup2") => v2 = v2.or_else(|| Some(PathBuf::from(target))),
                _ => {}
            }
        }
        let mounts = match (v1.is_empty(), v2) {
            (false, _) => Mounts::V1(v1),
            (true, Some(mount)) => Mounts::V2(mount),
            (true, None) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no cgroup filesystem is mounted",
                ));
            }
        };
        Ok(Self {
            mounts,
            parent: PathBuf::from(parent.trim_matches('/')),
        })
    }

    /// `1` or `2`.
    pub(super) fn version(&self) -> u8 {
        match self.mounts {
            Mounts::V1(_) => 1,
            Mounts::V2(_) => 2,
        }
    }

    /// The group of a container, below the root of every hierarchy: in `parent`, or in the engine's own.
    pub(super) fn group(&self, parent: Option<&str>, id: &str) -> PathBuf {
        let parent = parent
            .map(|parent| parent.trim_matches('/'))
            .filter(|parent| !parent.is_empty())
            .map_or(self.parent.as_path(), Path::new);
        parent.join(id)
    }

    /// The group's directories.
    pub(super) fn dirs(&self, group: &Path) -> Vec<PathBuf> {
        let relative = group;
        match &self.mounts {
            Mounts::V1(mounts) => {
                let mut dirs: Vec<PathBuf> =
                    mounts.values().map(|mount| mount.join(relative)).collect();
                dirs.sort();
                dirs.dedup();
                // The one whose members count comes first.
                dirs.sort_by_key(|dir| {
                    !dir.starts_with(
                        mounts
                            .get("devices")
                            .map_or_else(|| Path::new("/"), PathBuf::as_path),
                    )
                });
                dirs
            }
            Mounts::V2(mount) => vec![mount.join(relative)],
        }
    }

    /// The kernel can limit swap.
    pub(super) fn has_swap_limit(&self) -> bool {
        match &self.mounts {
            Mounts::V1(mounts) => mounts
                .get("memory")
                .is_some_and(|mount| mount.join("memory.memsw.limit_in_bytes").exists()),
            // The root group has no limits to look at; the feature is old enough to be taken for granted where there
            // is swap at all.
            Mounts::V2(_) => Path::new("/proc/swaps").exists(),
        }
    }

    fn dir(&self, controller: &str, group: &Path) -> Option<PathBuf> {
        let relative = group;
        match &self.mounts {
            Mounts::V1(mounts) => mounts.get(controller).map(|mount| mount.join(relative)),
            Mounts::V2(mount) => Some(mount.join(relative)),
        }
    }

    /// Stops or continues all processes of a group.
    pub(super) fn freeze(&self, group: &Path, frozen: bool) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no freezer");
        let dir = self.dir("freezer", group).ok_or_else(missing)?;
        match self.version() {
            1 => std::fs::write(
                dir.join("freezer.state"),
                if frozen { "FROZEN" } else { "THAWED" },
            ),
            _ => std::fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
        }
    }

    /// Sets limits of a group that exists.
    pub(super) fn apply(&self, group: &Path, limits: &Resources) -> io::Result<()> {
        let mut writes = limits::writes(limits, self.version(), self.has_swap_limit());
        // A limit of memory with swap may never be below that of memory alone, so which one is first depends on
        // whether they grow or shrink: what is refused is tried once more after the others.
        let mut refused = Vec::new();
        for write in writes.drain(..) {
            let Some(dir) = self.dir(write.controller, group) else {
                continue;
            };
            if std::fs::write(dir.join(write.file), &write.value).is_err() {
                refused.push((dir, write));
            }
        }
        for (dir, write) in refused {
            std::fs::write(dir.join(write.file), &write.value)?;
        }
        Ok(())
    }

    /// Whether the kernel has this file for groups of a controller (version 1) or at all (version 2).
    pub(super) fn offers(&self, controller: &str, file: &str) -> bool {
        match &self.mounts {
            Mounts::V1(mounts) => mounts
                .get(controller)
                .is_some_and(|mount| mount.join(file).exists()),
            Mounts::V2(mount) => mount.join(&self.parent).join(file).exists(),
        }
    }

    /// Ids of all processes of a group.
    pub(super) fn processes(&self, group: &Path) -> Vec<i32> {
        let Some(dir) = self.dirs(group).into_iter().next() else {
            return Vec::new();
        };
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes a group, killing what is left in it.
    pub(super) async fn remove(&self, group: &Path) {
        let mut pause = Duration::from_millis(5);
        for attempt in 0..REMOVE_ATTEMPTS {
            let busy: Vec<PathBuf> = self
                .dirs(group)
                .into_iter()
                .filter(|dir| remove_tree(dir).is_err())
                .collect();
            if busy.is_empty() {
                return;
            }
            // A process that is frozen does not even notice that it is killed.
            let _ = self.freeze(group, false);
            for pid in self.processes(group) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if attempt + 1 == REMOVE_ATTEMPTS {
                tracing::warn!(group = %group.display(), dirs = ?busy, "cannot remove control groups");
            }
            // Version 1 announces nothing when the last process of a group has gone, so there is nothing to wait for
            // but time. Nobody waits for us here.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Removes groups of our own parent for whose names `gone` holds; returns those that have processes yet.
    pub(super) fn sweep(&self, gone: impl Fn(&str) -> bool) -> BTreeSet<PathBuf> {
        let mut busy = BTreeSet::new();
        for dir in self.dirs(&self.parent) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(&gone) && remove_tree(&entry.path()).is_err() {
                    busy.insert(self.parent.join(name));
                }
            }
        }
        busy
    }

    /// Use of resources now; what cannot be read is zero.
    pub(super) fn stats(&self, group: &Path, pid: i32) -> Stats {
        let read = |controller: &str, file: &str| -> String {
            let dir = self.dir(controller, group).unwrap_or_default();
            std::fs::read_to_string(dir.join(file)).unwrap_or_default()
        };
        let mut stats = Stats {
            read: Timestamp::now(),
            networks: interfaces(pid),
            ..Stats::default()
        };
        match self.version() {
            1 => {
                let usage = flat(&read("cpuacct", "cpuacct.stat"));
                let throttling = flat(&read("cpu", "cpu.stat"));
                // The kernel counts these in ticks of 10 ms.
                let ticks = |name: &str| usage.get(name).copied().unwrap_or_default() * 10_000_000;
                stats.cpu = CpuStats {
                    total_ns: number(&read("cpuacct", "cpuacct.usage")),
                    user_ns: ticks("user"),
                    kernel_ns: ticks("system"),
                    periods: get(&throttling, "nr_periods"),
                    throttled_periods: get(&throttling, "nr_throttled"),
                    throttled_ns: get(&throttling, "throttled_time"),
                    ..CpuStats::default()
                };
                stats.memory = MemoryStats {
                    usage_bytes: number(&read("memory", "memory.usage_in_bytes")),
                    limit_bytes: number(&read("memory", "memory.limit_in_bytes")),
                    stats: flat(&read("memory", "memory.stat")),
                };
                stats.blkio = blkio_v1(&read("blkio", "blkio.throttle.io_service_bytes"));
            }
            _ => {
                let cpu = flat(&read("", "cpu.stat"));
                stats.cpu = CpuStats {
                    total_ns: get(&cpu, "usage_usec") * 1000,
                    user_ns: get(&cpu, "user_usec") * 1000,
                    kernel_ns: get(&cpu, "system_usec") * 1000,
                    periods: get(&cpu, "nr_periods"),
                    throttled_periods: get(&cpu, "nr_throttled"),
                    throttled_ns: get(&cpu, "throttled_usec") * 1000,
                    ..CpuStats::default()
                };
                stats.memory = MemoryStats {
                    usage_bytes: number(&read("", "memory.current")),
                    limit_bytes: read("", "memory.max").trim().parse().unwrap_or(u64::MAX),
                    stats: flat(&read("", "memory.stat")),
                };
                stats.blkio = blkio_v2(&read("", "io.stat"));
            }
        }
        let host = host_memory();
        if stats.memory.limit_bytes == 0 || stats.memory.limit_bytes > host {
            stats.memory.limit_bytes = host;
        }
        let limit = read("pids", "pids.max");
        stats.pids = PidsStats {
            current: number(&read("pids", "pids.current")),
            limit: limit.trim().parse().ok(),
        };
        (stats.cpu.system_ns, stats.cpu.online_cpus) = host_cpu();
        stats
    }
}

/// `name=systemd` and mount flags are none.
fn is_controller(option: &str) -> bool {
    matches!(
        option,
        "cpu"
            | "cpuacct"
            | "cpuset"
            | "devices"
            | "hugetlb"
            | "memory"
            | "pids"
            | "perf_event"
            | "blkio"
            | "net_prio"
            | "net_cls"
            | "freezer"
    )
}

/// Removes a group and those that the container made below it.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => {
            let children = std::fs::read_dir(dir)?
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let mut any = false;
            for child in children {
                remove_tree(&child.path())?;
                any = true;
            }
            if any {
                std::fs::remove_dir(dir)
            } else {
                Err(err)
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

fn flat(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn get(values: &BTreeMap<String, u64>, key: &str) -> u64 {
    values.get(key).copied().unwrap_or_default()
}

fn blkio_v1(text: &str) -> BlkioStats {
    let sum = |kind: &str| {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                (words.nth(1)? == kind).then(|| words.next()?.parse::<u64>().ok())?
            })
            .sum()
    };
    BlkioStats {
        read_bytes: sum("Read"),
        write_bytes: sum("Write"),
    }
}

fn blkio_v2(text: &str) -> BlkioStats {
    let sum = |key: &str| {
        text.split_whitespace()
            .filter_map(|word| {
                word.strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .sum()
    };
    BlkioStats {
        read_bytes: sum("rbytes"),
        write_bytes: sum("wbytes"),
    }
}

/// The interfaces that process `pid` sees, but for loopback.
fn interfaces(pid: i32) -> BTreeMap<String, InterfaceStats> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let (name, values) = line.split_once(':')?;
            let name = name.trim();
            let values: Vec<u64> = values
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let at = |index: usize| values.get(index).copied().unwrap_or_default();
            (name != "lo").then(|| {
                let stats = InterfaceStats {
                    rx_bytes: at(0),
                    rx_packets: at(1),
                    rx_errors: at(2),
                    rx_dropped: at(3),
                    tx_bytes: at(8),
                    tx_packets: at(9),
                    tx_errors: at(10),
                    tx_dropped: at(11),
                };
                (name.to_owned(), stats)
            })
        })
        .collect()
}

/// All processor time since boot in ns, and the number of processors.
fn host_cpu() -> (u64, u32) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let total: u64 = text
        .lines()
        .next()
        .map(|line| {
            line.split_whitespace()
                .skip(1)
                .take(8)
                .filter_map(|word| word.parse::<u64>().ok())
                .sum()
        })
        .unwrap_or_default();
    let cpus = text
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    (total * 10_000_000, u32::try_from(cpus).unwrap_or(1))
}

/// Memory of the host in bytes.
pub(super) fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .unwrap_or_default()
        * 1024
}
