//! Processes of this host, read from `/proc`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use shoal_api::Timestamp;
use shoal_api::container::ProcessList;

use super::cgroup::host_memory;
use crate::core::processes::{Host, Layout, ProcessFacts, parse_stat};

/// The table of these processes; those that have just ended are left out.
pub(super) fn table(layout: &Layout, pids: &[i32]) -> ProcessList {
    let host = host();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|page| u64::try_from(page).ok())
        .unwrap_or(4096);
    let mut facts: Vec<ProcessFacts> = pids.iter().filter_map(|pid| read(*pid, page)).collect();
    facts.sort_by_key(|process| process.pid);
    ProcessList {
        titles: layout.titles(),
        processes: facts.iter().map(|one| layout.row(one, &host)).collect(),
    }
}

fn read(pid: i32, page: u64) -> Option<ProcessFacts> {
    let dir = format!("/proc/{pid}");
    let mut process = parse_stat(&std::fs::read_to_string(format!("{dir}/stat")).ok()?, page)?;
    process.uid = std::fs::metadata(&dir).ok()?.uid();
    let line = std::fs::read(format!("{dir}/cmdline")).unwrap_or_default();
    process.args = line
        .split(|byte| *byte == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    while process.args.last().is_some_and(String::is_empty) {
        process.args.pop();
    }
    Some(process)
}

fn host() -> Host {
    let seconds = Timestamp::now().0 / 1_000_000_000;
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .unwrap_or(seconds);
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users: BTreeMap<u32, String> = passwd
        .lines()
        .rev()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect();
    Host {
        now: seconds,
        boot,
        ticks_per_second: ticks
            .ok()
            .flatten()
            .and_then(|ticks| u64::try_from(ticks).ok())
            .unwrap_or(100),
        memory_bytes: host_memory(),
        // As on a host without a time zone, whatever that of the daemon's environment.
        offset: 0,
        users,
    }
}
