//! Directory trees as tar archives.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use tar::{EntryType, Header};

use super::view::{Tree, look};

const BLOCK: u64 = 512;
/// Bytes of a name that fit into a header.
const NAME_MAX: usize = 100;
/// The only extended attribute that travels, as with docker.
const CAPABILITY: &CStr = c"security.capability";
/// Larger than any the kernel makes.
const CAPABILITY_BYTES_MAX: usize = 256;

/// Writes an archive.
pub(in crate::io) struct Packer<W> {
    out: W,
    /// Names of files that have more than one, by device and inode.
    names: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// A directory whose entries are being written.
struct Level {
    path: PathBuf,
    rest: std::vec::IntoIter<CString>,
}

impl<W: Write> Packer<W> {
    pub(in crate::io) fn new(out: W) -> Self {
        Self {
            out,
            names: HashMap::new(),
            buffer: vec![0; 128 << 10],
        }
    }

    /// Adds what `top` is under `name` and, when it is a directory, all below it, in the order of names. What vanishes
    /// meanwhile is left out, and sockets are, which archives do not know.
    pub(in crate::io) fn add(&mut self, name: &[u8], top: OwnedFd) -> io::Result<()> {
        let stat = fstat(&top)?;
        self.entry(name, &top, &stat)?;
        if kind(&stat) != libc::S_IFDIR {
            return Ok(());
        }
        let tree = Tree { root: top };
        let mut levels = vec![level(&tree, PathBuf::new())?];
        while let Some(now) = levels.last_mut() {
            let path = now.path.clone();
            let Ok(dir) = tree.inner(&path) else {
                levels.pop();
                continue;
            };
            let mut below = None;
            for child in now.rest.by_ref() {
                let (fd, stat) = match look(&dir, &child) {
                    Ok(found) => found,
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                let path = path.join(std::ffi::OsStr::from_bytes(child.to_bytes()));
                let mut full = name.to_vec();
                full.push(b'/');
                full.extend_from_slice(path.as_os_str().as_bytes());
                self.entry(&full, &fd, &stat)?;
                if kind(&stat) == libc::S_IFDIR {
                    below = Some(path);
                    break;
                }
            }
            match below {
                Some(path) => match level(&tree, path) {
                    Ok(level) => levels.push(level),
                    // It went, or was replaced by something that is no directory.
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                    Err(errno) => return Err(errno.into()),
                },
                None => drop(levels.pop()),
            }
        }
        Ok(())
    }

    /// Ends the archive and gives the writer back.
    pub(in crate::io) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &[u8], fd: &OwnedFd, stat: &FileStat) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        // Before the era there is nothing that the format could say.
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        let mut full = name.to_vec();
        let mut link = Vec::new();
        match kind(stat) {
            libc::S_IFDIR => {
                header.set_entry_type(EntryType::Directory);
                full.push(b'/');
            }
            libc::S_IFLNK => {
                header.set_entry_type(EntryType::Symlink);
                link = readlinkat(fd, "")?.as_bytes().to_vec();
            }
            libc::S_IFREG => return self.file(&full, fd, stat, header),
            libc::S_IFIFO => header.set_entry_type(EntryType::Fifo),
            device @ (libc::S_IFCHR | libc::S_IFBLK) => {
                header.set_entry_type(if device == libc::S_IFCHR {
                    EntryType::Char
                } else {
                    EntryType::Block
                });
                header.set_device_major(libc::major(stat.st_rdev))?;
                header.set_device_minor(libc::minor(stat.st_rdev))?;
            }
            _ => return Ok(()),
        }
        self.header(&mut header, &full, &link)
    }

    fn file(
        &mut self,
        name: &[u8],
        fd: &OwnedFd,
        stat: &FileStat,
        mut header: Header,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&key).cloned() {
                header.set_entry_type(EntryType::Link);
                return self.header(&mut header, name, &first);
            }
            self.names.insert(key, name.to_vec());
        }
        // The same file, now to be read; it is no pipe or device that could make us wait.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(open(path.as_str(), flags, Mode::empty())?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        if let Some(value) = capability(&path) {
            self.pax(&[("SCHILY.xattr.security.capability", &value)])?;
        }
        self.header(&mut header, name, &[])?;
        let mut left = size;
        while left > 0 {
            let want =
                usize::try_from(left).map_or(self.buffer.len(), |n| n.min(self.buffer.len()));
            let count = match file.read(&mut self.buffer[..want]) {
                // It shrank meanwhile; the archive has promised more.
                Ok(0) => {
                    self.buffer[..want].fill(0);
                    want
                }
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            self.out.write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
        self.pad(size)
    }

    fn header(&mut self, header: &mut Header, name: &[u8], link: &[u8]) -> io::Result<()> {
        for (kind, text) in [
            (EntryType::GNULongName, name),
            (EntryType::GNULongLink, link),
        ] {
            if text.len() > NAME_MAX {
                let mut text = text.to_vec();
                text.push(0);
                self.extension(kind, b"././@LongLink", &text)?;
            }
        }
        let old = header.as_old_mut();
        put(&mut old.name, name);
        put(&mut old.linkname, link);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) -> io::Result<()> {
        let mut body = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut total = rest + 1;
            while total != rest + total.to_string().len() {
                total = rest + total.to_string().len();
            }
            body.extend_from_slice(format!("{total} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.extension(EntryType::XHeader, b"PaxHeaders/0", &body)
    }

    fn extension(&mut self, kind: EntryType, name: &[u8], body: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        put(&mut header.as_old_mut().name, name);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(body)?;
        self.pad(body.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.wrapping_neg() % BLOCK).expect("less than a block");
        self.out.write_all(&[0; BLOCK as usize][..rest])
    }
}

fn put(field: &mut [u8; NAME_MAX], text: &[u8]) {
    let len = text.len().min(NAME_MAX);
    field.fill(0);
    field[..len].copy_from_slice(&text[..len]);
}

fn kind(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

fn level(tree: &Tree, path: PathBuf) -> Result<Level, Errno> {
    let names = names(tree, &path)?;
    Ok(Level {
        path,
        rest: names.into_iter(),
    })
}

/// Names in a directory of the tree, sorted.
pub(in crate::io) fn names(tree: &Tree, path: &Path) -> Result<Vec<CString>, Errno> {
    let mut dir = Dir::from_fd(tree.inner(path)?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn capability(path: &str) -> Option<Vec<u8>> {
    let path = CString::new(path).ok()?;
    let mut value = [0_u8; CAPABILITY_BYTES_MAX];
    // SAFETY: both strings end in NUL, and the kernel writes at most as many bytes as the buffer has.
    let size = unsafe {
        libc::getxattr(
            path.as_ptr(),
            CAPABILITY.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let size = usize::try_from(size).ok()?;
    Some(value[..size].to_vec())
}
