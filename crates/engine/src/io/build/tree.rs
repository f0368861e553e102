//! Directory trees that a build reads and writes, each by a descriptor of its root.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};
use sha2::{Digest as _, Sha256};

use crate::{
    core::{
        build::{IgnoreList, matches_glob},
        user::ACCOUNT_FILE_MAX,
    },
    io::images::{rootdir, xattrs},
    shim::rootfs::{MERGED, mount_overlay},
};

/// Mounts the layers (lowest first) with a writable directory `upper` on top, all below `dir`, which is empty and ours.
///
/// The mount belongs to a namespace that ends at once; only the descriptor keeps it, so nobody else ever sees it and
/// nothing has to be undone. Blocks.
pub(super) fn mount_root(dir: &Path, layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let (dir, layers) = (dir.to_owned(), layers.to_vec());
    let mounting = std::thread::Builder::new()
        .name("shoal-build".into())
        .spawn(move || -> io::Result<OwnedFd> {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            // The working directory of this thread alone, since it shares none with others any more.
            std::env::set_current_dir(&dir)?;
            mount_overlay(&layers, false).map_err(|failure| io::Error::other(failure.message))?;
            let root = rootdir::open_directory(Path::new(MERGED))?;
            umount2(MERGED, MntFlags::MNT_DETACH)?;
            Ok(root)
        })?;
    mounting
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

/// What is at a path of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
    Other,
}

/// A file or directory below a directory that is copied.
pub(super) struct Node {
    /// Relative to that directory.
    pub path: PathBuf,
    pub kind: Kind,
}

/// A tree that is read: a build context, or the files of an image.
pub(super) struct Tree {
    root: OwnedFd,
    ignore: IgnoreList,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, ignore: IgnoreList) -> Self {
        Self { root, ignore }
    }

    /// What is at `path`, links followed inside the tree; `None` if there is nothing, or nothing to be seen.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<(Kind, FileStat)>> {
        if self.hides(path) {
            return Ok(None);
        }
        match self.open(path, OFlag::O_PATH) {
            Ok(fd) => {
                let stat = fstat(&fd)?;
                Ok(Some((kind_of(&stat), stat)))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file or directory, links followed inside the tree.
    pub(super) fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        open_in(&self.root, path, flags)
    }

    /// A regular file to be read.
    pub(super) fn read(&self, path: &Path) -> io::Result<File> {
        let fd = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        if kind_of(&fstat(&fd)?) != Kind::File {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(File::from(fd))
    }

    /// Paths that match a pattern with `*`, `?` and `[…]`, sorted; no component of it crosses a slash.
    pub(super) fn matching(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![PathBuf::new()];
        for part in pattern.split('/').filter(|part| !matches!(*part, "" | ".")) {
            let mut next = Vec::new();
            for path in found {
                for name in self.names(&path)? {
                    let matched = name.to_str().is_some_and(|name| matches_glob(part, name));
                    let full = path.join(&name);
                    if matched && !self.hides(&full) {
                        next.push(full);
                    }
                }
            }
            found = next;
        }
        Ok(found)
    }

    /// Everything below a directory, parents before children, sorted.
    pub(super) fn below(&self, directory: &Path) -> io::Result<Vec<Node>> {
        let mut nodes = Vec::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let here = directory.join(&path);
            let dir = self.open(&here, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            let mut below = Vec::new();
            for name in names_in(&dir)? {
                let relative = path.join(&name);
                let full = directory.join(&relative);
                let stat = fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                let kind = kind_of(&stat);
                // A directory that is left out may hold something that is not.
                let hidden = self.hides(&full);
                if hidden && !(kind == Kind::Directory && self.looks_below(&full)) {
                    continue;
                }
                if kind == Kind::Directory {
                    below.push(relative.clone());
                }
                if !hidden {
                    nodes.push(Node {
                        path: relative,
                        kind,
                    });
                }
            }
            below.reverse();
            waiting.extend(below);
        }
        Ok(nodes)
    }

    /// The directory that holds `node`, with the node's name in it.
    pub(super) fn place(&self, directory: &Path, node: &Path) -> io::Result<(OwnedFd, OsString)> {
        let full = directory.join(node);
        let name = full.file_name().unwrap_or_default().to_owned();
        let parent = full.parent().unwrap_or_else(|| Path::new(""));
        let parent = self.open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok((parent, name))
    }

    /// The text of an account file; empty if there is none.
    pub(super) fn account_file(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        match self.read(Path::new(path)) {
            Ok(file) => file.take(ACCOUNT_FILE_MAX).read_to_end(&mut bytes)?,
            Err(error) if is_absent(&error) => 0,
            Err(error) => return Err(error),
        };
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        match self.open(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(dir) => names_in(&dir),
            // A file, where the pattern goes on.
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn hides(&self, path: &Path) -> bool {
        self.ignore.excludes(&path.to_string_lossy())
    }

    fn looks_below(&self, path: &Path) -> bool {
        self.ignore.may_include_below(&path.to_string_lossy())
    }
}

/// Feeds what a node is and holds to a hash, so that equal files give equal hashes whenever and by whomever they were
/// put there; owners count only where they are kept.
pub(super) fn hash_node(
    hash: &mut Sha256,
    (parent, name): (&OwnedFd, &OsStr),
    shown: &Path,
    owner_counts: bool,
) -> io::Result<()> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(shown.as_os_str().as_bytes());
    field(&stat.st_mode.to_le_bytes());
    if owner_counts {
        field(&stat.st_uid.to_le_bytes());
        field(&stat.st_gid.to_le_bytes());
    }
    match kind_of(&stat) {
        Kind::Directory => {}
        Kind::Link => field(readlinkat(parent, name)?.as_bytes()),
        Kind::Other => field(&stat.st_rdev.to_le_bytes()),
        Kind::File => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, Mode::empty())?);
            let mut content = Sha256::new();
            io::copy(&mut file, &mut content)?;
            field(&content.finalize());
        }
    }
    if kind_of(&stat) != Kind::Link {
        for (key, value) in xattrs(parent, name)? {
            field(key.as_bytes());
            field(&value);
        }
    }
    Ok(())
}

/// Copies one node, whose place must be free unless it is a directory.
pub(super) fn copy_node(
    from: (&OwnedFd, &OsStr),
    to: (&OwnedFd, &OsStr),
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
) -> io::Result<()> {
    let stat = fstatat(from.0, from.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = kind_of(&stat);
    match kind {
        Kind::Directory => match rootdir::create_directory(to.0, to.1) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        },
        Kind::Link => rootdir::create_symlink(to.0, to.1, readlinkat(from.0, from.1)?.as_os_str())?,
        Kind::File => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut source = File::from(openat(from.0, from.1, flags, Mode::empty())?);
            let mut target = rootdir::create_file(to.0, to.1)?;
            io::copy(&mut source, &mut target)?;
        }
        Kind::Other => {
            let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
            if kind == SFlag::S_IFSOCK {
                return Ok(());
            }
            rootdir::create_node(to.0, to.1, kind, stat.st_rdev)?;
        }
    }
    let (uid, gid) = owner.unwrap_or((stat.st_uid, stat.st_gid));
    rootdir::set_owner(to.0, to.1, uid, gid)?;
    if kind != Kind::Link {
        rootdir::set_mode(to.0, to.1, mode.unwrap_or(stat.st_mode & 0o7777))?;
        for (key, value) in xattrs(from.0, from.1)? {
            match rootdir::set_xattr(to.0, to.1, &key, &value) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {
                }
                set => set?,
            }
        }
    }
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    rootdir::set_time(to.0, to.1, (stat.st_mtime, nanos))
}

/// Opens `path` below `root`, links resolved as for a process that has it as its root.
pub(super) fn open_in(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    Ok(openat2(root, path, how)?)
}

/// Where a path leads in the tree, all its links followed as for a process that has it as its root. Parts that do not
/// exist are kept as written.
pub(super) fn resolve(root: &OwnedFd, path: &Path) -> io::Result<PathBuf> {
    const LINKS_MAX: usize = 40;
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        parts.rev().collect()
    };
    let mut todo = parts(path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&name);
        let target = match open_in(root, &next, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(fd) if kind_of(&fstat(&fd)?) == Kind::Link => readlinkat(&fd, "")?,
            Ok(_) => {
                done = next;
                continue;
            }
            Err(error) if is_absent(&error) => {
                done = next;
                continue;
            }
            Err(error) => return Err(error),
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::ELOOP.into());
        }
        if Path::new(&target).is_absolute() {
            done = PathBuf::new();
        }
        todo.extend(parts(Path::new(&target)));
    }
    Ok(done)
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

pub(super) fn kind_of(stat: &FileStat) -> Kind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::File,
        libc::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

fn names_in(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    // A descriptor of its own: reading moves its position.
    let own = openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort();
    let names = names
        .into_iter()
        .map(|name| OsString::from_vec(name.into_bytes()));
    Ok(names.collect())
}

/// The entry in `/proc` of a descriptor, for calls that take paths only.
pub(super) fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
