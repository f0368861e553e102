//! Packs the writable directory of an overlay as a layer: the reverse of unpacking.

#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};
use tar::{EntryType, Header};

use super::ImageError;
use crate::core::images::{Whiteout, xattr_is_kept};

const BLOCK: u64 = 512;
const NAME_BYTES_MAX: usize = 100;
/// The largest number of seven octal digits, which is what a header has for owners.
const OWNER_MAX: u32 = 0o777_7777;
/// The largest size of eleven octal digits.
const SIZE_MAX: u64 = 0o777_7777_7777;
/// Larger than any file system's limit for one attribute.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// What every container gets mounted. Where the image has none of them they are made, empty, to be mounted over, and
/// are no change that anybody made.
const MOUNT_POINTS: [&str; 6] = [
    "dev",
    "proc",
    "sys",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
];

/// Writes the layer. Returns how many entries it has besides the root: with none it changes nothing.
pub(super) fn pack(upper: &OwnedFd, out: impl Write) -> Result<u64, ImageError> {
    let mut packer = Packer {
        root: upper,
        out,
        links: HashMap::new(),
        buffer: vec![0; 128 << 10],
        entries: 0,
    };
    let stat = fstat(upper).map_err(failed(Path::new("/")))?;
    let root = inner(upper, Path::new("")).map_err(failed(Path::new("/")))?;
    packer
        .entry(Path::new("."), &root, OsStr::new("."), &stat)
        .map_err(|error| wrapped(Path::new("/"), error))?;
    packer.entries = 0;
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let mut below = packer
            .directory(&path)
            .map_err(|error| wrapped(&path, error))?;
        below.reverse();
        waiting.extend(below);
    }
    packer
        .out
        .write_all(&[0; 2 * BLOCK as usize])
        .and_then(|()| packer.out.flush())
        .map_err(ImageError::doing("write the layer"))?;
    Ok(packer.entries)
}

fn failed(path: &Path) -> impl FnOnce(Errno) -> ImageError {
    let path = path.to_owned();
    move |errno| wrapped(&path, errno.into())
}

fn wrapped(path: &Path, error: io::Error) -> ImageError {
    ImageError::io("pack", path)(error)
}

/// A directory below the root, by a path that we found ourselves and that has no links.
fn inner(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, path, how)
}

struct Packer<'a, W> {
    root: &'a OwnedFd,
    out: W,
    /// Files with several names: the first one, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
    entries: u64,
}

impl<W: Write> Packer<'_, W> {
    /// Writes what is in a directory and returns the directories among it.
    fn directory(&mut self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let dir = match inner(self.root, path) {
            Ok(dir) => dir,
            // A container that still runs may have removed it.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        };
        if !path.as_os_str().is_empty() && is_opaque(&dir) {
            self.whiteout(&path.join(".wh..wh..opq"))?;
        }
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::from_fd(dir.try_clone()?)?.iter() {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort();
        let mut below = Vec::new();
        for name in names {
            let name = OsStr::from_bytes(name.to_bytes());
            let full = path.join(name);
            let stat = match fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => continue,
                stat => stat?,
            };
            let mode = stat.st_mode & libc::S_IFMT;
            if mode == libc::S_IFCHR && stat.st_rdev == 0 {
                let mut hidden = b".wh.".to_vec();
                hidden.extend_from_slice(name.as_bytes());
                self.whiteout(&path.join(OsStr::from_bytes(&hidden)))?;
                continue;
            }
            // Whoever unpacks the layer would take it for something else.
            if !matches!(Whiteout::of(Path::new(""), name), Ok(Whiteout::None)) {
                return Err(io::Error::other(format!(
                    "a layer cannot hold a file named {name:?}"
                )));
            }
            if self.is_bare_mount_point(&dir, &full, name, &stat)? {
                continue;
            }
            self.entry(&full, &dir, name, &stat)?;
            if mode == libc::S_IFDIR {
                below.push(full);
            }
        }
        Ok(below)
    }

    fn is_bare_mount_point(
        &self,
        dir: &OwnedFd,
        full: &Path,
        name: &OsStr,
        stat: &FileStat,
    ) -> io::Result<bool> {
        if !MOUNT_POINTS.iter().any(|point| Path::new(point) == full) {
            return Ok(false);
        }
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Ok(stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size == 0);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut inside = Dir::from_fd(openat(dir, name, flags, Mode::empty())?)?;
        let others = inside
            .iter()
            .flatten()
            .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
        Ok(others.count() == 0)
    }

    fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        (header.set_uid(0), header.set_gid(0), header.set_mtime(0));
        header.set_size(0);
        self.header(header, path.as_os_str().as_bytes(), &[], Vec::new())
    }

    fn entry(
        &mut self,
        path: &Path,
        dir: &OwnedFd,
        name: &OsStr,
        stat: &FileStat,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let mut owner = |key: &str, value: u32| -> u64 {
            if value > OWNER_MAX {
                records.push((key.to_owned(), value.to_string().into_bytes()));
            }
            u64::from(value.min(OWNER_MAX))
        };
        header.set_uid(owner("uid", stat.st_uid));
        header.set_gid(owner("gid", stat.st_gid));
        let mut full = path.as_os_str().as_bytes().to_vec();
        let mut link = Vec::new();
        let mut content = None;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                header.set_entry_type(EntryType::Directory);
                full.push(b'/');
            }
            libc::S_IFLNK => {
                header.set_entry_type(EntryType::Symlink);
                link = readlinkat(dir, name)?.as_bytes().to_vec();
            }
            libc::S_IFREG => {
                let key = (stat.st_dev, stat.st_ino);
                match self.links.get(&key) {
                    Some(first) if stat.st_nlink > 1 => {
                        header.set_entry_type(EntryType::Link);
                        link = first.as_os_str().as_bytes().to_vec();
                    }
                    _ => {
                        if stat.st_nlink > 1 {
                            self.links.insert(key, path.to_owned());
                        }
                        let flags = OFlag::O_RDONLY
                            | OFlag::O_NOFOLLOW
                            | OFlag::O_NONBLOCK
                            | OFlag::O_CLOEXEC;
                        let file = File::from(openat(dir, name, flags, Mode::empty())?);
                        let size = u64::try_from(stat.st_size).unwrap_or(0);
                        header.set_entry_type(EntryType::Regular);
                        if size > SIZE_MAX {
                            records.push(("size".to_owned(), size.to_string().into_bytes()));
                        }
                        header.set_size(size.min(SIZE_MAX));
                        content = Some((file, size));
                    }
                }
            }
            libc::S_IFIFO => header.set_entry_type(EntryType::Fifo),
            kind @ (libc::S_IFCHR | libc::S_IFBLK) => {
                header.set_entry_type(match kind {
                    libc::S_IFCHR => EntryType::Char,
                    _ => EntryType::Block,
                });
                header.set_device_major(libc::major(stat.st_rdev))?;
                header.set_device_minor(libc::minor(stat.st_rdev))?;
            }
            // Sockets end with those who listen on them.
            _ => return Ok(()),
        }
        if header.entry_type() != EntryType::Link && header.entry_type() != EntryType::Symlink {
            for (key, value) in xattrs(dir, name)? {
                records.push((format!("SCHILY.xattr.{key}"), value));
            }
        }
        self.header(header, &full, &link, records)?;
        match content {
            Some((file, size)) => self.content(file, size),
            None => Ok(()),
        }
    }

    fn content(&mut self, file: File, size: u64) -> io::Result<()> {
        use io::Read as _;
        let mut file = file;
        let mut left = size;
        while left > 0 {
            let most =
                usize::try_from(left).map_or(self.buffer.len(), |n| n.min(self.buffer.len()));
            match file.read(&mut self.buffer[..most])? {
                // It became shorter meanwhile; the header has promised more.
                0 => {
                    self.buffer[..most].fill(0);
                    self.out.write_all(&self.buffer[..most])?;
                    left -= most as u64;
                }
                count => {
                    self.out.write_all(&self.buffer[..count])?;
                    left -= count as u64;
                }
            }
        }
        self.pad(size)
    }

    fn header(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        mut records: Vec<(String, Vec<u8>)>,
    ) -> io::Result<()> {
        for (key, text) in [("path", path), ("linkpath", link)] {
            if text.len() > NAME_BYTES_MAX || !text.is_ascii() {
                records.push((key.to_owned(), text.to_vec()));
            }
        }
        if !records.is_empty() {
            let mut body = Vec::new();
            for (key, value) in &records {
                push_record(&mut body, key, value);
            }
            let mut extension = Header::new_ustar();
            extension.set_entry_type(EntryType::XHeader);
            extension.set_mode(0o644);
            (
                extension.set_uid(0),
                extension.set_gid(0),
                extension.set_mtime(0),
            );
            extension.set_size(body.len() as u64);
            put(&mut extension.as_old_mut().name, b"PaxHeaders.0/entry");
            extension.set_cksum();
            self.out.write_all(extension.as_bytes())?;
            self.out.write_all(&body)?;
            self.pad(body.len() as u64)?;
        }
        put(&mut header.as_old_mut().name, path);
        put(&mut header.as_old_mut().linkname, link);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.entries += 1;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.wrapping_neg() % BLOCK).expect("less than a block");
        self.out.write_all(&[0; BLOCK as usize][..rest])
    }
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn push_record(body: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut total = rest;
    while total != rest + total.to_string().len() {
        total = rest + total.to_string().len();
    }
    body.extend_from_slice(format!("{total} {key}=").as_bytes());
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn put(field: &mut [u8; NAME_BYTES_MAX], text: &[u8]) {
    let length = text.len().min(NAME_BYTES_MAX);
    field.fill(0);
    field[..length].copy_from_slice(&text[..length]);
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let value = xattr(dir, OsStr::new("."), c"trusted.overlay.opaque");
    value.is_ok_and(|value| value.as_deref() == Some(b"y"))
}

/// The attributes that travel with a layer.
pub(in crate::io) fn xattrs(dir: &OwnedFd, name: &OsStr) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = proc_path(dir, name)?;
    let mut list = vec![0_u8; XATTR_BYTES_MAX];
    // SAFETY: the path ends in NUL, and the kernel writes at most as many bytes as the buffer has.
    let size = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let Ok(size) = usize::try_from(size) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOTSUP | libc::ENOENT) => Ok(Vec::new()),
            _ => Err(error),
        };
    };
    let mut found = Vec::new();
    for key in list[..size].split_inclusive(|byte| *byte == 0) {
        let Ok(key) = CStr::from_bytes_with_nul(key) else {
            continue;
        };
        let Some(text) = key.to_str().ok().filter(|text| xattr_is_kept(text)) else {
            continue;
        };
        if let Some(value) = xattr(dir, name, key)? {
            found.push((text.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

fn xattr(dir: &OwnedFd, name: &OsStr, key: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(dir, name)?;
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    // SAFETY: both strings end in NUL, and the kernel writes at most as many bytes as the buffer has.
    let size = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            key.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match usize::try_from(size) {
        Ok(size) => {
            value.truncate(size);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => {
                Ok(None)
            }
            error => Err(error),
        },
    }
}

/// There is no `*at` call for attributes before Linux 6.13; the descriptor's entry in /proc is as exact.
fn proc_path(dir: &OwnedFd, name: &OsStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    Ok(CString::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::{rootdir, unpack::unpack};
    use super::*;

    fn packed(dir: &Path) -> Result<(Vec<u8>, u64), ImageError> {
        let mut out = Vec::new();
        let entries = pack(&rootdir::open_directory(dir).unwrap(), &mut out)?;
        Ok((out, entries))
    }

    fn unpacked(archive: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for dir in ["diff", "trash"] {
            std::fs::create_dir(folder.path().join(dir)).unwrap();
        }
        unpack(
            archive,
            &folder.path().join("diff"),
            &folder.path().join("trash"),
        )
        .unwrap();
        folder
    }

    #[test]
    fn a_layer_survives_packing_and_unpacking() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let long = format!("dir/{}", "ü".repeat(80));
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at(&long), "long").unwrap();
        std::fs::write(at("a"), "content").unwrap();
        std::fs::set_permissions(at("a"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::fs::hard_link(at("a"), at("dir/b")).unwrap();
        symlink("x".repeat(200), at("link")).unwrap();
        let (archive, entries) = packed(folder.path()).unwrap();
        assert_eq!(entries, 5);
        let again = unpacked(&archive);
        let diff = again.path().join("diff");
        assert_eq!(std::fs::read(diff.join(&long)).unwrap(), b"long");
        assert_eq!(std::fs::read(diff.join("dir/b")).unwrap(), b"content");
        let mode = std::fs::metadata(diff.join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o4711);
        assert_eq!(
            std::fs::read_link(diff.join("link")).unwrap(),
            Path::new(&"x".repeat(200))
        );
        // Packing what was unpacked gives the same bytes.
        assert_eq!(packed(&diff).unwrap().0, archive);
    }

    #[test]
    fn marks_of_the_overlay_become_whiteouts_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let root = rootdir::open_directory(folder.path()).unwrap();
        let node =
            rootdir::create_node(&root, OsStr::new("gone"), nix::sys::stat::SFlag::S_IFCHR, 0);
        if node.is_err() {
            eprintln!("skipped, because this user may not make device nodes");
            return;
        }
        std::fs::create_dir(folder.path().join("new")).unwrap();
        rootdir::set_xattr(&root, OsStr::new("new"), "trusted.overlay.opaque", b"y").unwrap();
        let (archive, entries) = packed(folder.path()).unwrap();
        assert_eq!(entries, 3);
        let again = unpacked(&archive);
        let diff = rootdir::open_directory(&again.path().join("diff")).unwrap();
        assert_eq!(
            rootdir::look(&diff, OsStr::new("gone")).unwrap(),
            rootdir::Found::Whiteout
        );
        assert!(is_opaque(&inner(&diff, Path::new("new")).unwrap()));
    }

    #[test]
    fn names_that_would_be_whiteouts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".wh.a"), "").unwrap();
        let refused = packed(folder.path()).unwrap_err().report();
        assert!(
            refused.contains("cannot hold a file named \".wh.a\""),
            "{refused}"
        );
    }

    #[test]
    fn mount_points_made_for_a_container_are_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for dir in ["dev", "proc", "etc"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        std::fs::write(at("etc/hosts"), "").unwrap();
        std::fs::write(at("etc/hostname"), "mine").unwrap();
        std::fs::write(at("dev/x"), "").unwrap();
        // `dev` with its file, `etc` and the one file that has something in it.
        assert_eq!(packed(folder.path()).unwrap().1, 4);
    }
}
