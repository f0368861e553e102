//! Into the control groups of a container without waiting.
//!
//! To move a process by `cgroup.procs` the kernel takes a lock whose writers wait for a grace period, some 10 ms on an idle
//! host and more on a busy one. It spares that lock only a thread that moves itself, by `tasks` of version 1, and our
//! processes have one thread.

use std::io::{self, Write as _};
use std::path::Path;

/// Moves this process, which has one thread, into the group at `dir`.
pub(super) fn join(dir: &Path) -> io::Result<()> {
    match put(&dir.join("tasks"), "0") {
        // Version 2 has but one way.
        Err(err) if err.kind() == io::ErrorKind::NotFound => put(&dir.join("cgroup.procs"), "0"),
        joined => joined,
    }
}

/// Writes to a file that is there. To one that is not the kernel would say that nobody may make it.
pub(crate) fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(path)?;
    file.write_all(text.as_bytes())
}
