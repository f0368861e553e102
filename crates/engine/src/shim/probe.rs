//! The self-test's payload: instead of running anything, it tells how the kernel holds it.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use oci_spec::runtime::Spec;

use super::protocol::Failure;
use crate::core::selftest::{Facts, PathFact};

/// Tells on standard output how the kernel holds this process, and ends it; returns only to say why not.
pub(super) fn look_around(spec: &Spec) -> Failure {
    let told = serde_json::to_vec(&facts(spec)).map_err(std::io::Error::other);
    match told.and_then(|json| std::io::stdout().write_all(&json)) {
        Ok(()) => std::process::exit(0),
        Err(err) => Failure::new(err.to_string()),
    }
}

fn facts(spec: &Spec) -> Facts {
    let linux = spec.linux().as_ref();
    let look = |paths: Option<&Vec<String>>| {
        paths
            .into_iter()
            .flatten()
            .map(|path| (path.clone(), look_at(path)))
            .collect()
    };
    Facts {
        status: std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
        masked: look(linux.and_then(|linux| linux.masked_paths().as_ref())),
        readonly: look(linux.and_then(|linux| linux.readonly_paths().as_ref())),
        calls: try_calls(),
    }
}

/// Tries what the filter forbids and nothing else would answer with EPERM.
fn try_calls() -> BTreeMap<String, i32> {
    let errno = |result: libc::c_long| if result < 0 { Errno::last_raw() } else { 0 };
    let socket = |family: libc::c_long| {
        // SAFETY: takes three integers; a descriptor that comes out of it goes with this process.
        errno(unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_SEQPACKET, 0) })
    };
    // SAFETY: changes namespaces of this process alone, which ends here.
    let unshare = errno(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER) });
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork, and there is one thread.
    let clone =
        unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    if clone == 0 {
        // SAFETY: ends the child that should not exist.
        unsafe { libc::_exit(0) }
    }
    let clone = errno(clone);
    // SAFETY: takes integers and null pointers.
    let keyctl = errno(unsafe { libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0) });
    let calls = [
        ("socket(AF_ALG)", socket(38)),
        // The kernel looks at 32 bits of the family only.
        ("socket(AF_ALG) with high bits", socket(38 | 1 << 32)),
        ("socket(AF_VSOCK)", socket(40)),
        ("unshare(CLONE_NEWUSER)", unshare),
        ("clone(CLONE_NEWUSER)", clone),
        ("keyctl", keyctl),
    ];
    calls.map(|(name, errno)| (name.to_owned(), errno)).into()
}

fn look_at(path: &str) -> PathFact {
    let Ok(meta) = std::fs::metadata(path) else {
        return PathFact::Absent;
    };
    let read_only =
        statvfs(Path::new(path)).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    let hidden = if meta.is_dir() {
        std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
    } else {
        use std::os::unix::fs::MetadataExt;
        meta.rdev() == nix::sys::stat::makedev(1, 3)
    };
    match (hidden, read_only) {
        (true, _) => PathFact::Hidden,
        (false, true) => PathFact::ReadOnly,
        (false, false) => PathFact::Open,
    }
}
