//! A directory tree that nothing written into it can leave.
//!
//! Every parent is found by `openat2(2)` with `RESOLVE_IN_ROOT` from a descriptor of the root: a symbolic link in the
//! tree, absolute or climbing, leads to a place in the tree, as it would for a process that has the tree as its root.
//! The last component of a name is never followed.

#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};

/// What is there under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::io) enum Found {
    Nothing,
    Directory,
    /// A character device 0/0, overlayfs's mark for "hidden".
    Whiteout,
    Other,
}

/// The root of such a tree.
pub(in crate::io) struct RootDir {
    root: Rc<OwnedFd>,
    /// The parent found last: archives list the files of a directory one after the other.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl RootDir {
    /// Opens the existing directory `path`, which is ours, as a root.
    pub(in crate::io) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(open_directory(path)?))
    }

    /// Takes a directory as a root.
    pub(in crate::io) fn of(directory: OwnedFd) -> Self {
        Self {
            root: Rc::new(directory),
            last: None,
        }
    }

    /// The directory at `path`; it and what leads to it is made if missing.
    pub(in crate::io) fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        let Some(name) = path.file_name() else {
            return Ok(Rc::clone(&self.root));
        };
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.find(path) {
            Err(Errno::ENOENT) => {
                let above = self.directory(path.parent().unwrap_or_else(|| Path::new("")))?;
                // A link that leads nowhere is in the way here: EEXIST.
                mkdirat(&*above, name, Mode::from_bits_truncate(0o755))?;
                fchmodat(
                    &*above,
                    name,
                    Mode::from_bits_truncate(0o755),
                    FchmodatFlags::FollowSymlink,
                )?;
                self.find(path)?
            }
            found => found?,
        };
        let fd = Rc::new(fd);
        self.last = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// The existing directory at `path`.
    pub(in crate::io) fn existing(&self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        Ok(Rc::new(self.find(path)?))
    }

    fn find(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(
                ResolveFlag::RESOLVE_IN_ROOT
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        openat2(&*self.root, path, how)
    }

    /// Forgets where directories were, after one was replaced.
    pub(in crate::io) fn forget(&mut self) {
        self.last = None;
    }
}

/// What `name` is in `parent`.
pub(in crate::io) fn look(parent: &OwnedFd, name: &OsStr) -> io::Result<Found> {
    let stat: FileStat = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(Found::Nothing),
        stat => stat?,
    };
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    Ok(match kind {
        SFlag::S_IFDIR => Found::Directory,
        SFlag::S_IFCHR if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

/// Makes a new regular file; fails if the name is taken.
pub(in crate::io) fn create_file(parent: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags =
        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(
        parent,
        name,
        flags,
        Mode::from_bits_truncate(0o600),
    )?))
}

pub(in crate::io) fn create_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    Ok(mkdirat(parent, name, Mode::from_bits_truncate(0o755))?)
}

pub(in crate::io) fn create_symlink(
    parent: &OwnedFd,
    name: &OsStr,
    target: &OsStr,
) -> io::Result<()> {
    Ok(symlinkat(target, parent, name)?)
}

/// Makes a device or FIFO.
pub(in crate::io) fn create_node(
    parent: &OwnedFd,
    name: &OsStr,
    kind: SFlag,
    device: u64,
) -> io::Result<()> {
    Ok(mknodat(
        parent,
        name,
        kind,
        Mode::from_bits_truncate(0o600),
        device,
    )?)
}

/// Gives an existing file another name; a link is linked to, not followed.
pub(in crate::io) fn create_hard_link(
    from: (&OwnedFd, &OsStr),
    to: (&OwnedFd, &OsStr),
) -> io::Result<()> {
    Ok(linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?)
}

/// Removes `name` with all it contains. Follows nothing.
///
/// Subdirectories are first moved up beside it: a tree may be deeper than any stack, or table of open files.
pub(in crate::io) fn remove_tree(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let mut waiting = vec![name.to_owned()];
    let mut moved: u64 = 0;
    while let Some(next) = waiting.pop() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = match Dir::openat(parent, next.as_os_str(), flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                unlinkat(parent, next.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut names: Vec<CString> = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        for inner in names {
            match unlinkat(&dir, inner.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => {
                    let mut beside = name.to_owned();
                    beside.push(format!(".{moved}"));
                    moved += 1;
                    renameat(&dir, inner.as_c_str(), parent, beside.as_os_str())?;
                    waiting.push(beside);
                }
                done => done?,
            }
        }
        unlinkat(parent, next.as_os_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// Removes `name` with all it contains, without moving anything, which a mounted overlay does not let us do. Follows
/// nothing.
pub(in crate::io) fn remove_in_place(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        Err(Errno::ENOENT) => return Ok(()),
        done => return Ok(done?),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut dir = Dir::from_fd(openat(parent, name, flags, Mode::empty())?)?;
    let mut names: Vec<CString> = Vec::new();
    for entry in dir.iter() {
        let inner = entry?.file_name().to_owned();
        if !matches!(inner.to_bytes(), b"." | b"..") {
            names.push(inner);
        }
    }
    let dir = openat(parent, name, flags, Mode::empty())?;
    for inner in names {
        remove_in_place(&dir, OsStr::from_bytes(inner.to_bytes()))?;
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}

/// Moves `name` out of the way, under a new name in `trash`.
pub(in crate::io) fn discard(
    parent: &OwnedFd,
    name: &OsStr,
    trash: &OwnedFd,
    number: u64,
) -> io::Result<()> {
    Ok(renameat(parent, name, trash, number.to_string().as_str())?)
}

/// Opens a directory of ours.
pub(in crate::io) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty())?)
}

pub(in crate::io) fn set_owner(
    parent: &OwnedFd,
    name: &OsStr,
    uid: u32,
    gid: u32,
) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(fchownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?)
}

/// Not for symbolic links, which have no mode and would be followed.
pub(in crate::io) fn set_mode(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(fchmodat(
        parent,
        name,
        Mode::from_bits_truncate(mode),
        FchmodatFlags::FollowSymlink,
    )?)
}

/// Sets the time of last change, which stands for the last access too.
pub(in crate::io) fn set_time(
    parent: &OwnedFd,
    name: &OsStr,
    (seconds, nanos): (i64, u32),
) -> io::Result<()> {
    let time = TimeSpec::new(seconds, i64::from(nanos));
    Ok(utimensat(
        parent,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

/// Sets an extended attribute; a link gets it itself.
pub(in crate::io) fn set_xattr(
    parent: &OwnedFd,
    name: &OsStr,
    key: &str,
    value: &[u8],
) -> io::Result<()> {
    // There is no *at call for attributes before Linux 6.13; the descriptor's entry in /proc is as exact.
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    let (path, key) = (CString::new(path)?, CString::new(key)?);
    // SAFETY: both strings end in NUL and `value` is valid for its length; all outlive the call, which keeps none.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            key.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
