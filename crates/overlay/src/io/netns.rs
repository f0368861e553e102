//! Network namespaces behind files: made, entered and removed without a thread of the runtime ever changing its own.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::socket::{Kind, Socket};
use crate::core::rtnl_wire;

/// Index of the loopback interface; it is always the first of its namespace.
const LOOPBACK: u32 = 1;

/// What could not be done with a namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} network namespace {path}", path = path.display())]
pub struct NetnsError {
    /// Verb, for instance `create`.
    pub action: &'static str,
    /// Its file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl From<NetnsError> for io::Error {
    fn from(error: NetnsError) -> Self {
        error.source
    }
}

impl NetnsError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Makes a directory for handles that is a mount of its own and in no clone of the host's mounts: a start of a container
/// has such a clone, and a thousand handles would be in its way.
///
/// One that holds handles already and is no mount, of an earlier program, stays as it is.
pub fn make_directory(path: &Path) -> Result<(), NetnsError> {
    let made = (|| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let none = None::<&str>;
        if !points.any(|point| Path::new(point) == path) {
            if fs::read_dir(path)?.next().is_some() {
                return Ok(());
            }
            mount(Some(path), path, none, MsFlags::MS_BIND, none)?;
        }
        Ok(mount(none, path, none, MsFlags::MS_UNBINDABLE, none)?)
    })();
    made.map_err(NetnsError::at("make the directory of", path))
}

/// Takes that mount back unless there are handles in it.
pub fn release_directory(path: &Path) {
    // Busy, or never made: either way it is right as it is.
    let _ = umount2(path, MntFlags::empty());
}

/// Makes a namespace with loopback up, and a handle for it at `path`; missing directories are made.
///
/// A handle that exists already is an error.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let target = path.to_owned();
    on_own_thread(move || make(&target)).map_err(NetnsError::at("create", path))
}

/// Removes a handle; the namespace goes with its last process. A handle that does not exist is no error.
pub fn delete(path: &Path) -> Result<(), NetnsError> {
    unmount(path).map_err(NetnsError::at("delete", path))
}

/// Runs `work` on a thread of its own inside the namespace at `path`, and returns what it returns.
pub fn run_in<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetnsError> {
    let space = open(path)?;
    on_own_thread(move || {
        setns(&space, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .map_err(NetnsError::at("enter", path))
}

/// Opens the namespace at `path`.
pub fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(NetnsError::at("open", path))
}

/// The namespace of the calling thread.
pub fn current() -> Result<OwnedFd, NetnsError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Runs `work` inside `space`, then brings the calling thread back to `home`. Not for threads of the runtime.
pub(crate) fn visit<T>(
    space: impl AsFd,
    home: impl AsFd,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    setns(space, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)
        .expect("the home namespace is open, and entering it worked before");
    Ok(result)
}

/// Moves the calling thread into a namespace for good.
pub(crate) fn enter(space: impl AsFd) -> io::Result<()> {
    Ok(setns(space, CloneFlags::CLONE_NEWNET)?)
}

/// Runs `work` inside a namespace that ends with it. Not for threads of the runtime.
pub(crate) fn visit_fresh<T>(home: impl AsFd, work: impl FnOnce() -> T) -> io::Result<T> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)
        .expect("the home namespace is open, and entering it worked before");
    Ok(result)
}

/// Moves the calling thread into a new namespace with a handle at `path`.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?;
    let made = (|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some("/proc/thread-self/ns/net"),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Socket::open(Kind::Route)?.request(rtnl_wire::up(LOOPBACK))
    })();
    if made.is_err() {
        // The first error counts; what is left is an empty file at most.
        let _ = unmount(path);
    }
    made
}

pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted or not there: what matters is that the file goes.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(work)?;
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
