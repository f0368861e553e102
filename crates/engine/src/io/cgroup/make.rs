//! The groups of a new container: made, and told its limits, before anybody is in them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::LinuxDeviceCgroup;
use shoal_api::container::Resources;

use super::{Cgroups, Mounts};
use crate::core::device_program::{self, Instruction};
use crate::core::limits::{self, LimitWrite, Throttle};

/// Controllers of version 2 that groups of containers want.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "pids"];

/// Why a container's groups could not be made.
#[derive(Debug, thiserror::Error)]
pub(in crate::io) enum MakeError {
    #[error("cannot make the control group {}: {source}", path.display())]
    Group { path: PathBuf, source: io::Error },
    #[error("cannot set {file} to {value:?}: {source}")]
    Limit {
        file: &'static str,
        value: String,
        source: io::Error,
    },
    #[error("cannot limit devices: {0}")]
    Devices(#[source] io::Error),
}

impl Cgroups {
    /// Makes a group in every hierarchy, with these limits. Blocks.
    pub(in crate::io) fn make(
        &self,
        group: &Path,
        limits: &Resources,
        throttles: &[Throttle],
        rules: &[LinuxDeviceCgroup],
    ) -> Result<(), MakeError> {
        if let (Mounts::V1(_), Some(dir)) = (&self.mounts, self.dir("cpuset", group)) {
            hand_down(&dir);
        }
        for dir in self.dirs(group) {
            let made = match &self.mounts {
                Mounts::V1(_) => std::fs::create_dir_all(&dir),
                Mounts::V2(root) => make_v2(root, group),
            };
            made.map_err(|source| MakeError::Group { path: dir, source })?;
        }
        if let (Mounts::V1(_), Some(dir)) = (&self.mounts, self.dir("cpuset", group)) {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let inherited = inherit(&dir, file);
                let path = dir.clone();
                inherited.map_err(|source| MakeError::Group { path, source })?;
            }
        }
        let swap = self.has_swap_limit();
        for write in limits::of_new(limits, throttles, rules, self.version(), swap) {
            self.write(group, &write)?;
        }
        if matches!(self.mounts, Mounts::V2(_)) && !rules.iter().all(allows_all) {
            let dir = self.dirs(group).into_iter().next().unwrap_or_default();
            guard(&dir, &device_program::program(rules)).map_err(MakeError::Devices)?;
        }
        Ok(())
    }

    fn write(&self, group: &Path, write: &LimitWrite) -> Result<(), MakeError> {
        let Some(dir) = self.dir(write.controller, group) else {
            return Ok(());
        };
        match crate::shim::groups::put(&dir.join(write.file), &write.value) {
            Ok(()) => Ok(()),
            // Schedulers of block devices that this kernel does not have.
            Err(err) if err.kind() == io::ErrorKind::NotFound && write.file.contains("weight") => {
                Ok(())
            }
            Err(source) => Err(MakeError::Limit {
                file: write.file,
                value: write.value.clone(),
                source,
            }),
        }
    }
}

fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    rule.allow() && rule.to_string().starts_with('a')
}

/// Lets new groups of `cpuset` begin with what the one above has: written to a group, the kernel compares it with all others.
fn hand_down(dir: &Path) {
    let above = dir.parent().unwrap_or(dir);
    // What that fails to do is done by `inherit`.
    let _ = std::fs::create_dir_all(above);
    let _ = crate::shim::groups::put(&above.join("cgroup.clone_children"), "1");
}

/// A group of `cpuset` has nothing at first, and no process can be where there is no processor: it gets what the group
/// above it has.
fn inherit(dir: &Path, file: &str) -> io::Result<String> {
    let path = dir.join(file);
    let own = match std::fs::read_to_string(&path) {
        // Above the root of all.
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
    crate::shim::groups::put(&path, inherited.trim())?;
    Ok(inherited)
}

/// Makes a group of version 2, and lets those above it hand their controllers down. What cannot be handed down is missed
/// where a limit of it is written.
fn make_v2(root: &Path, group: &Path) -> io::Result<()> {
    let mut at = root.to_owned();
    for name in group {
        let there = std::fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        let given = at.join("cgroup.subtree_control");
        let already = std::fs::read_to_string(&given).unwrap_or_default();
        for controller in CONTROLLERS {
            let is_in = |list: &str| list.split_whitespace().any(|one| one == *controller);
            if is_in(&there) && !is_in(&already) {
                let _ = crate::shim::groups::put(&given, &format!("+{controller}"));
            }
        }
        at.push(name);
        match std::fs::create_dir(&at) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Lets a program decide which devices the processes of a group may use.
fn guard(dir: &Path, program: &[Instruction]) -> io::Result<()> {
    /// `BPF_PROG_LOAD` of `linux/bpf.h`, with its attributes as far as they are used.
    const LOAD: libc::c_long = 5;
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
    }
    /// `BPF_PROG_TYPE_CGROUP_DEVICE`.
    const KIND: u32 = 15;
    /// `BPF_PROG_ATTACH`, with its attributes.
    const ATTACH: libc::c_long = 8;
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    /// `BPF_CGROUP_DEVICE`.
    const DEVICE: u32 = 6;
    /// `BPF_F_ALLOW_MULTI`: what guards the groups above goes on doing so.
    const BESIDE_OTHERS: u32 = 2;

    let dir = std::fs::File::open(dir)?;
    let load = Load {
        kind: KIND,
        instructions: u32::try_from(program.len()).map_err(io::Error::other)?,
        code: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the kernel reads the attributes, the instructions and the licence, which live until after the call.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<Load>())
    })?;
    // SAFETY: just made by the kernel and owned by nobody else.
    let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    let attach = Attach {
        target: dir.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: DEVICE,
        flags: BESIDE_OTHERS,
    };
    // SAFETY: the kernel reads the attributes, which live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}
