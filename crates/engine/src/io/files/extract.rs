//! Archives unpacked into a container.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::FilesError;
use super::view::Tree;
use crate::core::images::{EntryPath, Member, MemberKind, xattr_is_kept};
use crate::io::images::rootdir::{self, Found};
use crate::io::images::tar_reader::TarReader;

/// An archive of empty files must not eat all inodes.
const ENTRIES_MAX: u64 = 4_000_000;

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::io) struct ExtractOptions {
    /// Refuse to replace a directory by something else, and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Owner of all that is unpacked, instead of the archive's.
    pub owner: Option<(u32, u32)>,
}

/// Unpacks into one directory of a container.
pub(in crate::io) struct Extractor<'a> {
    tree: &'a Tree,
    /// As the client wrote it; links in it are followed inside the container at every step.
    to: PathBuf,
    options: ExtractOptions,
    times: Vec<(PathBuf, (i64, u32))>,
}

impl<'a> Extractor<'a> {
    /// Finds the directory to unpack into. `in_volume` only chooses the words.
    pub(in crate::io) fn new(
        tree: &'a Tree,
        to: &Path,
        options: ExtractOptions,
    ) -> Result<Self, Errno> {
        let found = tree.find(to, true)?;
        let stat = nix::sys::stat::fstat(&found)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        if fstatvfs(&found)?.flags().contains(FsFlags::ST_RDONLY) {
            return Err(Errno::EROFS);
        }
        Ok(Self {
            tree,
            to: to.to_owned(),
            options,
            times: Vec::new(),
        })
    }

    /// Unpacks all of `archive`.
    pub(in crate::io) fn run(mut self, archive: impl Read) -> Result<(), FilesError> {
        let mut reader = TarReader::new(archive);
        let mut buffer = vec![0; 128 << 10];
        let mut entries = 0;
        let broken = |err: crate::io::images::ImageError| FilesError::Archive(err.report());
        while let Some(member) = reader.next_member().map_err(broken)? {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(FilesError::Archive(format!(
                    "archive has more than {ENTRIES_MAX} entries"
                )));
            }
            self.member(&member, &mut reader, &mut buffer)?;
        }
        reader.drain().map_err(broken)?;
        for (path, time) in self.times.iter().rev() {
            // Somebody may have removed it meanwhile.
            if let Ok(dir) = self.directory(path) {
                let _ = rootdir::set_time(&dir, OsStr::new("."), *time);
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        member: &Member,
        data: &mut impl Read,
        buffer: &mut [u8],
    ) -> Result<(), FilesError> {
        let path =
            EntryPath::parse(&member.path).map_err(|err| FilesError::Archive(err.to_string()))?;
        let EntryPath::Child { parent, name } = &path else {
            // The directory itself is there already and stays as it is.
            return Ok(());
        };
        let shown = self.to.join(path.to_path()).display().to_string();
        let fail = |err: io::Error| match err.raw_os_error() {
            Some(raw) => FilesError::Kernel {
                path: shown.clone(),
                errno: Errno::from_raw(raw),
            },
            None => FilesError::Archive(err.to_string()),
        };
        let dir = self
            .make_directory(parent)
            .map_err(|errno| fail(errno.into()))?;
        let wants_directory = member.kind == MemberKind::Directory;
        let found = rootdir::look(&dir, name).map_err(fail)?;
        let is_directory = found == Found::Directory;
        if self.options.no_overwrite_dir_non_dir && found != Found::Nothing {
            let name = String::from_utf8_lossy(&member.path).into_owned();
            if is_directory && !wants_directory {
                return Err(FilesError::DirectoryInTheWay { path: shown, name });
            }
            if !is_directory && wants_directory {
                return Err(FilesError::FileInTheWay { path: shown, name });
            }
        }
        if found != Found::Nothing && !(is_directory && wants_directory) {
            rootdir::remove_tree(&dir, name).map_err(fail)?;
        }
        self.create(member, (&dir, name), is_directory, data, buffer)
            .map_err(fail)?;
        if wants_directory {
            self.times.push((path.to_path(), member.mtime));
        }
        Ok(())
    }

    fn create(
        &self,
        member: &Member,
        (dir, name): (&OwnedFd, &OsStr),
        exists: bool,
        data: &mut impl Read,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let node = |kind: SFlag, major: u32, minor: u32| {
            rootdir::create_node(dir, name, kind, makedev(major.into(), minor.into()))
        };
        match &member.kind {
            MemberKind::File => {
                let mut file = rootdir::create_file(dir, name)?;
                loop {
                    let count = data.read(buffer)?;
                    if count == 0 {
                        break;
                    }
                    file.write_all(&buffer[..count])?;
                }
                return self.own(member, dir, name);
            }
            MemberKind::Directory if exists => {}
            MemberKind::Directory => rootdir::create_directory(dir, name)?,
            MemberKind::HardLink(target) => {
                let target = EntryPath::parse(target).map_err(io::Error::other)?;
                let EntryPath::Child { parent, name: from } = target else {
                    return Err(Errno::EISDIR.into());
                };
                let from_dir = self.directory(&parent)?;
                return rootdir::create_hard_link((&from_dir, &from), (dir, name));
            }
            MemberKind::Symlink(target) => {
                rootdir::create_symlink(dir, name, OsStr::from_bytes(target))?;
            }
            MemberKind::CharDevice { major, minor } => node(SFlag::S_IFCHR, *major, *minor)?,
            MemberKind::BlockDevice { major, minor } => node(SFlag::S_IFBLK, *major, *minor)?,
            MemberKind::Fifo => node(SFlag::S_IFIFO, 0, 0)?,
        }
        self.own(member, dir, name)
    }

    /// Owner first: changing it drops set-id bits and file capabilities.
    fn own(&self, member: &Member, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let (uid, gid) = self.options.owner.unwrap_or((member.uid, member.gid));
        rootdir::set_owner(dir, name, uid, gid)?;
        let unsupported =
            |err: &io::Error| matches!(err.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM));
        for (key, value) in member.xattrs.iter().filter(|(key, _)| xattr_is_kept(key)) {
            match rootdir::set_xattr(dir, name, key, value) {
                Err(err) if unsupported(&err) => {}
                set => set?,
            }
        }
        if matches!(member.kind, MemberKind::Symlink(_)) {
            return rootdir::set_time(dir, name, member.mtime);
        }
        set_mode(dir, name, member.mode)?;
        if member.kind != MemberKind::Directory {
            rootdir::set_time(dir, name, member.mtime)?;
        }
        Ok(())
    }

    /// The existing directory at `path` below the place that is unpacked into.
    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let found = self.tree.find(&self.to.join(path), true)?;
        let stat = nix::sys::stat::fstat(&found)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            Ok(found)
        } else {
            Err(Errno::ENOTDIR)
        }
    }

    /// The directory at `path`, made with all above it that is missing.
    fn make_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::ENOENT);
        };
        let above = self.make_directory(above)?;
        match mkdirat(above.as_fd(), name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.directory(path),
            Err(errno) => Err(errno),
        }
    }
}

/// Sets the mode of what `name` is now, unless somebody has put a link there meanwhile, which would be followed.
fn set_mode(dir: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(dir, name, flags, Mode::empty())?;
    if nix::sys::stat::fstat(&fd)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}
