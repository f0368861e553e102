//! The root of a container, by descriptor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{FileStat, Mode, fstat};

use super::FilesError;
use crate::shim::protocol::Failure;
use crate::shim::rootfs::{self, MERGED, Root};

/// How often the kernel may say that a path changed under its hands before we give up.
const RACES_MAX: u32 = 256;

/// Where the files of a container are now.
#[derive(Debug, Clone)]
pub(in crate::io) enum Place {
    /// A running container: the root of its process 1, whose control group has this name.
    Process { pid: i32, cgroup: String },
    /// One that does not run: its directory, its layers (lowest first) and what is mounted over them.
    Stopped {
        dir: PathBuf,
        layers: Vec<PathBuf>,
        mounts: Vec<ViewMount>,
        read_only: bool,
    },
}

/// A directory or file of the host in a stopped container.
#[derive(Debug, Clone)]
pub(in crate::io) struct ViewMount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A container's root, open for as long as the thread that opened it lives.
pub(in crate::io) struct View {
    pub tree: Tree,
}

impl View {
    /// Opens the files of a container as its processes see them. Only in a thread of [`on_thread`]: it may get a mount
    /// namespace of its own.
    pub(in crate::io) fn open(place: &Place) -> Result<Self, FilesError> {
        match place {
            Place::Process { pid, cgroup } => {
                let process = process_of(*pid, cgroup)?;
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = openat(&process, "root", flags, Mode::empty()).map_err(gone)?;
                Ok(Self {
                    tree: Tree { root },
                })
            }
            Place::Stopped {
                dir,
                layers,
                mounts,
                read_only,
            } => {
                let root = mount_stopped(dir, layers)?;
                for wish in mounts {
                    bind(&root, wish)?;
                }
                // Last, since mount points may have had to be made.
                if *read_only {
                    make_read_only(MERGED)
                        .map_err(|errno| FilesError::View(errno.desc().to_owned()))?;
                }
                Tree::open(&root.path).map(|tree| Self { tree })
            }
        }
    }

    /// Opens the root file system alone, without volumes and without what else is mounted in it.
    pub(in crate::io) fn open_bare(place: &Place) -> Result<Self, FilesError> {
        match place {
            Place::Process { pid, cgroup } => {
                let process = process_of(*pid, cgroup)?;
                let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                let mounts = openat(&process, "ns/mnt", flags, Mode::empty()).map_err(gone)?;
                let fail = |errno: Errno| FilesError::View(errno.desc().to_owned());
                unshare(CloneFlags::CLONE_FS).map_err(fail)?;
                let own = open("/proc/self/ns/mnt", flags, Mode::empty()).map_err(fail)?;
                // Changes the root and the working directory of this thread alone.
                setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(fail)?;
                let root = clone_root();
                // Back at once: nothing may be opened by a path in there.
                setns(&own, CloneFlags::CLONE_NEWNS).map_err(fail)?;
                let root = root.map_err(fail)?;
                Ok(Self {
                    tree: Tree { root },
                })
            }
            Place::Stopped { dir, layers, .. } => {
                let root = mount_stopped(dir, layers)?;
                Tree::open(&root.path).map(|tree| Self { tree })
            }
        }
    }
}

fn gone(_: Errno) -> FilesError {
    FilesError::View("the container has just ended".into())
}

/// The directory in `/proc` of a container's process 1. It stands for that process even when the number is given to
/// another; that it is the right one is told by its control group.
fn process_of(pid: i32, cgroup: &str) -> Result<OwnedFd, FilesError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let process = open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).map_err(gone)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = String::new();
    let file = openat(&process, "cgroup", flags, Mode::empty()).map_err(gone)?;
    let read = File::from(file).read_to_string(&mut text);
    if read.is_ok() && text.contains(cgroup) {
        Ok(process)
    } else {
        Err(gone(Errno::ESRCH))
    }
}

/// A copy of the mount that is this thread's root, attached nowhere and with nothing mounted in it.
fn clone_root() -> Result<OwnedFd, Errno> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: takes a path that lives until after the call, and flags.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), flags)
    })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: just made by the kernel and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts the root file system of a container that does not run, for this thread alone.
fn mount_stopped(dir: &Path, layers: &[PathBuf]) -> Result<Root, FilesError> {
    let fail = |errno: Errno| FilesError::View(errno.desc().to_owned());
    let told = |failure: Failure| FilesError::View(failure.message);
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(fail)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(fail)?;
    // The working directory of this thread alone, since it shares none with others any more.
    std::env::set_current_dir(dir).map_err(|err| FilesError::View(err.to_string()))?;
    rootfs::mount_overlay(layers, false).map_err(told)?;
    Root::open(dir.join(MERGED)).map_err(told)
}

fn bind(root: &Root, wish: &ViewMount) -> Result<(), FilesError> {
    let told = |failure: Failure| FilesError::View(failure.message);
    let fail =
        |errno: Errno| FilesError::View(format!("{}: {}", wish.target.display(), errno.desc()));
    let target = root.resolve(&wish.target).map_err(told)?;
    // A root file system that is read-only cannot get mount points; those that the image has do.
    root.ensure(&target, wish.source.is_dir()).map_err(told)?;
    let at = Tree::open(&root.path)?.find(&target, true).map_err(fail)?;
    let at = format!("/proc/self/fd/{}", at.as_raw_fd());
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&wish.source), at.as_str(), none, flags, none).map_err(fail)?;
    if wish.read_only {
        let over = Tree::open(&root.path)?.find(&target, true).map_err(fail)?;
        let over = format!("/proc/self/fd/{}", over.as_raw_fd());
        make_read_only(&over).map_err(fail)?;
    }
    Ok(())
}

fn make_read_only(path: &str) -> Result<(), Errno> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

/// A directory tree that no path leads out of.
pub(in crate::io) struct Tree {
    pub root: OwnedFd,
}

impl Tree {
    /// The tree below a directory of ours.
    pub(in crate::io) fn open(path: &Path) -> Result<Self, FilesError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = openat(AT_FDCWD, path, flags, Mode::empty())
            .map_err(FilesError::at(path.display().to_string()))?;
        Ok(Self { root })
    }

    /// What is at `path`, opened for no use but to know it; `follow` is about a link in the last place.
    pub(in crate::io) fn find(&self, path: &Path, follow: bool) -> Result<OwnedFd, Errno> {
        let last = if follow {
            OFlag::empty()
        } else {
            OFlag::O_NOFOLLOW
        };
        self.resolve(path, OFlag::O_PATH | last, ResolveFlag::RESOLVE_IN_ROOT)
    }

    /// The directory at `path`, which is a path without links below this root.
    pub(in crate::io) fn inner(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, beneath)
    }

    fn resolve(&self, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..RACES_MAX {
            match openat2(&self.root, path, how) {
                Err(Errno::EAGAIN) => {}
                done => return done,
            }
        }
        Err(Errno::EAGAIN)
    }
}

/// A name inside a directory, opened for no use but to know it, with what it is.
pub(super) fn look(dir: &OwnedFd, name: &std::ffi::CStr) -> Result<(OwnedFd, FileStat), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    Ok((fd, stat))
}

/// Runs `work` in a thread of its own, in which it may change namespaces.
pub(in crate::io) fn on_thread(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("shoal-files".into())
        .stack_size(512 << 10)
        .spawn(work)
        .map(drop)
}
