//! Into the control groups of a container without waiting.
//!
//! To move a process by `cgroup.procs` the kernel takes a lock whose writers wait for a grace period, some 10 ms on an idle
//! host and more on a busy one. It spares that lock only a thread that moves itself, by `tasks` of version 1, and our
//! processes have one thread. libcontainer knows `cgroup.procs` alone. So the builder moves itself, its children begin
//! where it is, and what libcontainer writes goes into a file without meaning that lies over `cgroup.procs` in the
//! builder's own mount namespace; the container mounts its view of the groups anew and does not see it.

use std::io::{self, Write as _};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::protocol::Supervise;

/// In the run directory: takes what libcontainer writes.
const BLANK_NAME: &str = "joined";
/// With less memory than this the builder shall not be among those who are counted.
const MEMORY_MIN: i64 = 32 << 20;
/// The same for the number of processes.
const PIDS_MIN: i64 = 16;

/// Moves this process, which has one thread, into the group at `dir`.
pub(super) fn join(dir: &Path) -> io::Result<()> {
    match put(&dir.join("tasks"), "0") {
        // Version 2 has but one way.
        Err(err) if err.kind() == io::ErrorKind::NotFound => put(&dir.join("cgroup.procs"), "0"),
        joined => joined,
    }
}

/// Writes to a file that is there. To one that is not the kernel would say that nobody may make it.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Takes the groups out of the reach of the kernel's OOM killer if that is wished, which libcontainer passes over. Version 2
/// cannot.
pub(super) fn spare_from_oom_killer(sup: &Supervise, spec: &Spec) -> io::Result<()> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    if !memory.is_some_and(|memory| memory.disable_oom_killer() == Some(true)) {
        return Ok(());
    }
    for dir in &sup.cgroups {
        match put(&dir.join("memory.oom_control"), "1") {
            // A group of another controller.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
}

/// Makes the container's groups and moves this process into them, where that is quicker than what libcontainer does; else
/// leaves it to that. The working directory is the run directory, the mount namespace this process's own.
pub(super) fn enter_early(sup: &Supervise, spec: &Spec) -> io::Result<()> {
    if !is_roomy(spec) || !sees_own_groups(spec) {
        return Ok(());
    }
    let version_1 = |dir: &Path| {
        let ancestors = dir.ancestors().skip(1);
        let mut there = ancestors.filter(|dir| dir.exists());
        there.next().is_some_and(|dir| dir.join("tasks").exists())
    };
    if !sup.cgroups.iter().all(|dir| version_1(dir)) {
        return Ok(());
    }
    std::fs::write(BLANK_NAME, "")?;
    for dir in &sup.cgroups {
        std::fs::create_dir_all(dir)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            inherit(dir, file)?;
        }
        join(dir)?;
        let procs = dir.join("cgroup.procs");
        let (none, bind) = (None::<&str>, MsFlags::MS_BIND);
        mount(Some(BLANK_NAME), &procs, none, bind, none)?;
    }
    Ok(())
}

/// Whether the limits leave room for a builder that is counted for a moment.
fn is_roomy(spec: &Spec) -> bool {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let Some(resources) = resources else {
        return true;
    };
    let memory = resources
        .memory()
        .as_ref()
        .and_then(|memory| memory.limit());
    let pids = resources.pids().as_ref().map(|pids| pids.limit());
    // Anything below one stands for no limit.
    let enough = |limit: Option<i64>, least| limit.is_none_or(|limit| limit < 1 || limit >= least);
    enough(memory, MEMORY_MIN) && enough(pids, PIDS_MIN)
}

fn sees_own_groups(spec: &Spec) -> bool {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut own = namespaces.into_iter().flatten();
    own.any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup)
}

/// A group of `cpuset` has nothing at first, and no process can be where there is no processor: it gets what the group
/// above it has.
fn inherit(dir: &Path, file: &str) -> io::Result<String> {
    let path = dir.join(file);
    let own = match std::fs::read_to_string(&path) {
        // Not such a group.
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        own => own?,
    };
    if !own.trim().is_empty() {
        return Ok(own);
    }
    let Some(above) = dir.parent() else {
        return Ok(own);
    };
    let inherited = inherit(above, file)?;
    std::fs::write(&path, inherited.trim())?;
    Ok(inherited)
}
