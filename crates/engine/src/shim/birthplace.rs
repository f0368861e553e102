//! The mount namespace of a container: one with the host's mounts while it is built, and without them when it runs.
//!
//! A plain copy of the host's namespace has a mount for each network namespace on the host, so a start would take the longer
//! the more containers run. What may not be cloned is left out of a clone, and the directory of those handles is such a
//! place; so the host's mounts are cloned into a copy of a namespace that has none.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, mkdir, pivot_root};

use super::rootfs::Root;
use super::trees::{Tree, move_to_place};

/// Where the host's mounts are while a container is built.
const HOST: &str = "host";

/// A mount namespace with nothing in it but an empty filesystem that nobody can write to; those of containers begin as its
/// copies.
#[derive(Debug)]
pub(super) struct Base(OwnedFd);

impl Base {
    /// Makes one. On failure this process may be in another mount namespace than it was.
    pub(super) fn make() -> Result<Self, Errno> {
        let none = None::<&str>;
        let home = own_namespace()?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let base = own_namespace()?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // Any directory will do; this one is always there.
        mount(
            Some("tmpfs"),
            "/proc",
            Some("tmpfs"),
            flags,
            Some("mode=755"),
        )?;
        chdir("/proc")?;
        mkdir(HOST, Mode::from_bits_truncate(0o755))?;
        let sealed = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, ".", none, sealed, none)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        setns(&home, CloneFlags::CLONE_NEWNS)?;
        Ok(Self(base))
    }

    /// Brings this process into a mount namespace of its own that hears of the host's mounts and tells it none; `also` are
    /// further namespaces that it gets.
    pub(super) fn enter(&self, also: CloneFlags) -> Result<Birthplace, Errno> {
        let none = None::<&str>;
        let host = Tree::of(Path::new("/"), true)?;
        setns(&self.0, CloneFlags::CLONE_NEWNS)?;
        unshare(CloneFlags::CLONE_NEWNS | also)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let ground = open("/", flags, Mode::empty())?;
        host.attach(Path::new(HOST))?;
        fchdir(host.as_fd())?;
        chroot(".")?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        Ok(Birthplace { host, ground })
    }
}

/// The namespace of a container that is being built: the host's mounts are at `/`.
#[derive(Debug)]
pub(super) struct Birthplace {
    host: Tree,
    /// The empty filesystem below everything.
    ground: OwnedFd,
}

impl Birthplace {
    /// Makes `root` the root of this process and of its mount namespace, and lets go of the host's mounts.
    ///
    /// Not by `pivot_root`, which looks at every process on the host.
    pub(super) fn leave_for(self, root: &Root) -> Result<(), Errno> {
        move_to_place(root.descriptor().as_fd(), self.ground.as_fd())?;
        fchdir(root.descriptor())?;
        chroot(".")?;
        fchdir(self.host.as_fd())?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    }
}

fn own_namespace() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open("/proc/self/ns/mnt", flags, Mode::empty())
}
