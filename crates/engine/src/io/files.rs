//! Files of containers from outside: what `docker cp`, `diff` and `export` look at and change.
//!
//! A container may rearrange its files while we walk through them, so nothing here remembers a path that was checked
//! before: every step is one `openat2(2)` from a descriptor of the container's root, resolved by the kernel inside that
//! root, and everything after it goes by descriptor. A link that is swapped half-way leads somewhere else in the
//! container, never out of it, which is why nobody has to be frozen meanwhile.

mod changes;
mod extract;
mod pack;
mod view;

pub(super) use changes::changes;
pub(super) use extract::{ExtractOptions, Extractor};
pub(super) use pack::{Packer, names};
pub(super) use view::{Place, Tree, View, ViewMount, on_thread};

use nix::errno::Errno;

/// Why files of a container could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Docker's words.
    #[error("Could not find the file {path} in container {container}")]
    NotFound { path: String, container: String },
    #[error("extraction point is not a directory")]
    NotDirectory,
    #[error("container rootfs is marked read-only")]
    ReadOnlyRoot,
    #[error("mounted volume is marked read-only")]
    ReadOnlyVolume,
    #[error("cannot overwrite directory {path:?} with non-directory {name:?}")]
    DirectoryInTheWay { path: String, name: String },
    #[error("cannot overwrite non-directory {path:?} with directory {name:?}")]
    FileInTheWay { path: String, name: String },
    #[error("{0}")]
    Archive(String),
    #[error("{path}: {}", .errno.desc().to_lowercase())]
    Kernel { path: String, errno: Errno },
    /// The root of the container cannot be reached.
    #[error("cannot reach the container's files: {0}")]
    View(String),
}

impl FilesError {
    fn at(path: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Kernel { path, errno }
    }
}
