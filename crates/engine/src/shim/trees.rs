//! Mounts by descriptor, which no name leads astray (`open_tree`, `mount_setattr` and `move_mount` of Linux 5.2 and 5.12).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

/// A mount that is attached nowhere.
#[derive(Debug)]
pub(super) struct Tree(OwnedFd);

/// What a mount allows: bits of `MOUNT_ATTR_…` of `linux/mount.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    /// Nothing is written.
    pub(super) const READ_ONLY: Self = Self {
        set: READ_ONLY,
        clear: 0,
    };

    /// Lays others over these.
    pub(super) fn add(&mut self, later: Self) {
        self.set = self.set & !later.clear | later.set;
        self.clear = self.clear & !later.set | later.clear;
    }
}

/// `MOUNT_ATTR_RDONLY`.
pub(super) const READ_ONLY: u64 = 1;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn change(
    at: BorrowedFd<'_>,
    path: &CString,
    flags: libc::c_int,
    attributes: Attributes,
) -> Result<(), Errno> {
    let wanted = MountAttr {
        set: attributes.set,
        clear: attributes.clear,
        propagation: 0,
        userns: 0,
    };
    // SAFETY: takes a descriptor, a text, and a structure of the size given; all live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            path.as_ptr(),
            flags.cast_unsigned(),
            &raw const wanted,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

fn text(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)
}

/// Changes what the mount at a path allows.
pub(super) fn restrict(path: &Path, attributes: Attributes) -> Result<(), Errno> {
    change(AT_FDCWD, &text(path)?, 0, attributes)
}

impl Tree {
    /// A copy of what is mounted at a path, perhaps with all below it; it goes on hearing of the other's mounts if that was
    /// shared.
    pub(super) fn of(path: &Path, recursive: bool) -> Result<Self, Errno> {
        Self::copy(AT_FDCWD, &text(path)?, recursive, 0)
    }

    /// The same of a place that is open.
    pub(super) fn of_place(place: &OwnedFd, recursive: bool) -> Result<Self, Errno> {
        Self::copy(
            place.as_fd(),
            &CString::default(),
            recursive,
            libc::AT_EMPTY_PATH,
        )
    }

    fn copy(
        at: BorrowedFd<'_>,
        path: &CString,
        recursive: bool,
        more: libc::c_int,
    ) -> Result<Self, Errno> {
        const OPEN_TREE_CLONE: libc::c_int = 1;
        let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | more;
        if recursive {
            flags |= libc::AT_RECURSIVE;
        }
        // SAFETY: takes a descriptor, a path that lives until after the call, and flags.
        let tree = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_open_tree,
                at.as_raw_fd(),
                path.as_ptr(),
                flags.cast_unsigned(),
            )
        });
        let fd = i32::try_from(tree?).map_err(|_| Errno::EBADF)?;
        // SAFETY: just made by the kernel and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Changes what it allows, perhaps with all below it.
    pub(super) fn restrict(&self, attributes: Attributes, recursive: bool) -> Result<(), Errno> {
        let mut flags = libc::AT_EMPTY_PATH;
        if recursive {
            flags |= libc::AT_RECURSIVE;
        }
        change(self.0.as_fd(), &CString::default(), flags, attributes)
    }

    /// Attaches it at a path.
    pub(super) fn attach(&self, at: &Path) -> Result<(), Errno> {
        move_mount(self.as_fd(), AT_FDCWD, &text(at)?, 0)
    }

    /// Attaches it at a place that is open.
    pub(super) fn attach_at(&self, place: &OwnedFd) -> Result<(), Errno> {
        move_to_place(self.as_fd(), place.as_fd())
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves what is mounted at one open place, with all below it, to another.
pub(super) fn move_to_place(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
    move_mount(from, to, &CString::default(), MOVE_MOUNT_T_EMPTY_PATH)
}

fn move_mount(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    path: &CString,
    more: libc::c_uint,
) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: takes descriptors, and strings that live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | more,
        )
    })
    .map(drop)
}
