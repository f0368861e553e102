//! What is found out and written down when a container ends.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use super::protocol::{EXIT_NAME, ExitRecord};

/// Processes that are left in a group.
pub(super) fn cgroup_processes(cgroups: &[PathBuf]) -> Vec<Pid> {
    let Some(dir) = cgroups.first() else {
        return Vec::new();
    };
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// Ends all children of this process, and what they leave to it.
pub(super) fn end_children() {
    loop {
        let children = children();
        for &child in &children {
            let _ = kill(child, Signal::SIGKILL);
        }
        for &child in &children {
            let _ = waitpid(child, None);
        }
        if children.is_empty() {
            return;
        }
    }
}

/// The kernel has a list of them only where it was built with one, so all processes are looked through.
fn children() -> Vec<Pid> {
    let ours = getpid().to_string();
    let parent_of = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold anything: state, parent, …
        let after_name = stat.rsplit_once(") ")?.1;
        after_name.split(' ').nth(1).map(str::to_owned)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| parent_of(pid).as_ref() == Some(&ours))
        .map(Pid::from_raw)
        .collect()
}

/// Whether the kernel killed for want of memory: it counts kills in `memory.events` (v2) or `memory.oom_control` (v1).
pub(super) fn was_oom_killed(cgroups: &[PathBuf]) -> bool {
    cgroups.iter().any(|dir| {
        ["memory.events", "memory.oom_control"].iter().any(|name| {
            std::fs::read_to_string(dir.join(name)).is_ok_and(|text| {
                text.lines().any(|line| {
                    line.strip_prefix("oom_kill ")
                        .is_some_and(|count| count.trim() != "0")
                })
            })
        })
    })
}

/// Replaces the exit record at once or not at all.
pub(super) fn write_exit(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let new = dir.join(format!("{EXIT_NAME}.new"));
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(new, dir.join(EXIT_NAME))
}
