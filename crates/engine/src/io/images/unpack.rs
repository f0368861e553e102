//! Unpacks a layer the way overlayfs wants it.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::stat::{SFlag, makedev},
};

use super::{
    ImageError,
    decode::{decoded, opened},
    rootdir::{self, Found, RootDir},
    tar_reader::TarReader,
};
use crate::core::images::{EntryPath, Member, MemberKind, Whiteout, xattr_is_kept};

/// No image comes near; an archive of empty files must not eat all inodes.
const ENTRIES_MAX: u64 = 4_000_000;
const COPY_BYTES: usize = 128 * 1024;

/// Unpacks `archive`, read to its very end, into the empty directory `into`; `trash` takes what the archive replaces.
/// Returns the bytes of all files.
pub(super) fn unpack(archive: impl Read, into: &Path, trash: &Path) -> Result<u64, ImageError> {
    let root = RootDir::open(into).map_err(ImageError::io("open", into))?;
    let trash = rootdir::open_directory(trash).map_err(ImageError::io("open", trash))?;
    run(archive, root, Some(trash))
}

/// Unpacks `archive`, plain or compressed, into a directory that may hold files already; names of whiteouts mean
/// nothing there.
pub(in crate::io) fn extract(archive: impl Read, into: &OwnedFd) -> Result<(), ImageError> {
    let (_, plain) = opened(archive)
        .and_then(decoded)
        .map_err(ImageError::doing("read the archive"))?;
    let root = into
        .try_clone()
        .map_err(ImageError::doing("open a directory"))?;
    run(plain, RootDir::of(root), None).map(drop)
}

fn run(archive: impl Read, root: RootDir, trash: Option<OwnedFd>) -> Result<u64, ImageError> {
    let mut unpacker = Unpacker {
        root,
        trash,
        discarded: 0,
        directory_times: Vec::new(),
        buffer: vec![0; COPY_BYTES],
        bytes: 0,
    };
    let mut reader = TarReader::new(archive);
    let mut entries = 0;
    while let Some(member) = reader.next_member()? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(ImageError::Archive(format!(
                "archive has more than {ENTRIES_MAX} entries"
            )));
        }
        unpacker.member(&member, &mut reader)?;
    }
    reader.drain()?;
    unpacker.finish()
}

struct Unpacker {
    root: RootDir,
    /// Takes what a layer replaces; without it these are plain files, and what is replaced is removed.
    trash: Option<OwnedFd>,
    discarded: u64,
    /// Set at the end: every file made in a directory changes its time.
    directory_times: Vec<(PathBuf, (i64, u32))>,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Unpacker {
    fn member(&mut self, member: &Member, data: &mut impl Read) -> Result<(), ImageError> {
        let path = EntryPath::parse(&member.path)?;
        let shown = || String::from_utf8_lossy(&member.path).into_owned();
        let failed = |source: io::Error| match source.downcast::<ImageError>() {
            Ok(own) => own,
            Err(source) => ImageError::Unpack {
                path: shown(),
                source,
            },
        };
        let (parent, name) = match &path {
            EntryPath::Child { parent, name } => (parent, name),
            EntryPath::Root if member.kind == MemberKind::Directory => {
                let root = self.root.existing(Path::new("")).map_err(failed)?;
                set_metadata(&root, OsStr::new("."), member).map_err(failed)?;
                self.directory_times.push((PathBuf::new(), member.mtime));
                return Ok(());
            }
            EntryPath::Root => return Err(failed(io::Error::from(Errno::EISDIR))),
        };
        let mark = match self.trash {
            Some(_) => Whiteout::of(parent, name)?,
            None => Whiteout::None,
        };
        match mark {
            Whiteout::None => self.create(member, parent, name, data).map_err(failed)?,
            Whiteout::Hide(hidden) => self.hide(parent, hidden).map_err(failed)?,
            Whiteout::Opaque => {
                let directory = self.root.directory(parent).map_err(failed)?;
                make_opaque(&directory, OsStr::new(".")).map_err(failed)?;
            }
            Whiteout::Ignored => {}
        }
        if member.kind == MemberKind::Directory {
            self.directory_times.push((path.to_path(), member.mtime));
        }
        Ok(())
    }

    fn create(
        &mut self,
        member: &Member,
        parent: &Path,
        name: &OsStr,
        data: &mut impl Read,
    ) -> io::Result<()> {
        let directory = self.root.directory(parent)?;
        let is_directory = member.kind == MemberKind::Directory;
        let found = rootdir::look(&directory, name)?;
        if found != Found::Nothing && !(found == Found::Directory && is_directory) {
            match &self.trash {
                Some(trash) => rootdir::discard(&directory, name, trash, self.discarded)?,
                None => rootdir::remove_in_place(&directory, name)?,
            }
            self.discarded += 1;
            self.root.forget();
        }
        match &member.kind {
            MemberKind::File => self.write_file(&directory, name, data)?,
            MemberKind::Directory if found == Found::Directory => {}
            MemberKind::Directory => rootdir::create_directory(&directory, name)?,
            MemberKind::HardLink(target) => {
                let target = EntryPath::parse(target).map_err(ImageError::from)?;
                let EntryPath::Child {
                    parent: target_parent,
                    name: target,
                } = target
                else {
                    return Err(Errno::EISDIR.into());
                };
                let from = self.root.existing(&target_parent)?;
                // The linked file has its owner and mode already.
                return rootdir::create_hard_link((&from, &target), (&directory, name));
            }
            MemberKind::Symlink(target) => {
                rootdir::create_symlink(&directory, name, OsStr::from_bytes(target))?;
            }
            MemberKind::CharDevice { major, minor } => {
                rootdir::create_node(
                    &directory,
                    name,
                    SFlag::S_IFCHR,
                    makedev((*major).into(), (*minor).into()),
                )?;
            }
            MemberKind::BlockDevice { major, minor } => {
                rootdir::create_node(
                    &directory,
                    name,
                    SFlag::S_IFBLK,
                    makedev((*major).into(), (*minor).into()),
                )?;
            }
            MemberKind::Fifo => rootdir::create_node(&directory, name, SFlag::S_IFIFO, 0)?,
        }
        set_metadata(&directory, name, member)?;
        // The layer hid what is below and put a directory there: nothing from below may shine through.
        if found == Found::Whiteout && is_directory {
            make_opaque(&directory, name)?;
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        data: &mut impl Read,
    ) -> io::Result<()> {
        let mut file = rootdir::create_file(directory, name)?;
        loop {
            let count = data.read(&mut self.buffer)?;
            if count == 0 {
                return Ok(());
            }
            file.write_all(&self.buffer[..count])?;
            self.bytes += count as u64;
        }
    }

    /// Whiteouts concern the layers below only; what this layer itself has under the name stays.
    fn hide(&mut self, parent: &Path, hidden: &OsStr) -> io::Result<()> {
        let directory = self.root.directory(parent)?;
        match rootdir::look(&directory, hidden)? {
            Found::Nothing => rootdir::create_node(&directory, hidden, SFlag::S_IFCHR, 0),
            Found::Directory => make_opaque(&directory, hidden),
            Found::Whiteout | Found::Other => Ok(()),
        }
    }

    fn finish(self) -> Result<u64, ImageError> {
        for (path, time) in self.directory_times.iter().rev() {
            // A later entry may have put something else in the directory's place.
            let set = self
                .root
                .existing(path)
                .and_then(|fd| rootdir::set_time(&fd, OsStr::new("."), *time));
            if let Err(error) = set {
                tracing::debug!(path = %path.display(), %error, "directory keeps its time of unpacking");
            }
        }
        Ok(self.bytes)
    }
}

/// Owner first: changing it drops set-id bits and file capabilities.
fn set_metadata(parent: &OwnedFd, name: &OsStr, member: &Member) -> io::Result<()> {
    rootdir::set_owner(parent, name, member.uid, member.gid)?;
    if !matches!(member.kind, MemberKind::Symlink(_)) {
        rootdir::set_mode(parent, name, member.mode)?;
    }
    for (key, value) in &member.xattrs {
        if !xattr_is_kept(key) {
            tracing::debug!(key, "extended attribute dropped");
            continue;
        }
        match rootdir::set_xattr(parent, name, key, value) {
            // The file system, or the kind of file, has no such attributes: docker goes on, too.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {
                tracing::debug!(key, %error, "extended attribute not set");
            }
            set => set?,
        }
    }
    if member.kind != MemberKind::Directory {
        rootdir::set_time(parent, name, member.mtime)?;
    }
    Ok(())
}

fn make_opaque(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    rootdir::set_xattr(parent, name, "trusted.overlay.opaque", b"y")
}

#[cfg(test)]
mod tests;
