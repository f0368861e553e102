//! The supervisor of one container, a small single-threaded process that outlives the daemon.
//!
//! The daemon starts one *nursery* (`shoal shim`), from its own binary made unwritable, that has no threads and forks one
//! shim per container on request. Forking from a process that is already linked and relocated makes a shim cheap:
//! about a millisecond, and its pages are shared with all the others. What makes a container changes process-wide state, so
//! it never runs in the daemon's threads, but in a child of the shim that becomes the container's process.

pub mod protocol;

mod birthplace;
mod container;
mod copy_tree;
mod ending;
mod exec;
mod executor;
mod filter;
pub(crate) mod groups;
mod hooks;
mod init;
mod launch;
mod log;
mod mounts;
mod nursery;
mod privileges;
mod probe;
pub(crate) mod rootfs;
mod serve;
mod stage;
mod trees;

use std::ffi::OsString;

use crate::core::capabilities::CapabilitySet;

/// The capabilities that this process may hand on.
pub(crate) fn bounding() -> CapabilitySet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.map_or(CapabilitySet::ALL, |bits| {
        CapabilitySet(bits & CapabilitySet::ALL.0)
    })
}

/// The entry of the nursery. Call it before any thread exists, when `argv[1]` is `shim`.
///
/// Standard input is the socket on which the daemon asks for shims.
pub fn main(_args: impl Iterator<Item = OsString>) -> ! {
    // A container must find no way to the host's binary through /proc/<pid>/exe (CVE-2019-5736), so the code that
    // touches containers runs from a read-only mount or a sealed copy in memory, whoever started it.
    let read_only = nix::sys::statvfs::statvfs("/proc/self/exe")
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let sealed = if read_only {
        Ok(())
    } else {
        pentacle::ensure_sealed()
    };
    let code = match sealed {
        Ok(()) => nursery::run(),
        Err(_) => 70,
    };
    std::process::exit(code)
}
