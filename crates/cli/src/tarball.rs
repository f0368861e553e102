//! Archives on their way to and from the daemon: packing a folder, unpacking what comes.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::client::Payload;

/// Bytes that are packed ahead of the connection, in pieces of [`PIECE_BYTES`].
const PIECES_AHEAD: usize = 8;
/// Bytes of a piece.
const PIECE_BYTES: usize = 128 << 10;

/// Packs in a thread of its own and sends what comes as it comes; an error breaks the request off.
pub(crate) fn stream(
    pack: impl FnOnce(&mut tar::Builder<Pieces>) -> io::Result<()> + Send + 'static,
) -> Payload {
    let (sender, mut receiver) = mpsc::channel(PIECES_AHEAD);
    std::thread::spawn(move || {
        let pieces = Pieces {
            sender: sender.clone(),
            pending: Vec::with_capacity(PIECE_BYTES),
        };
        let mut archive = tar::Builder::new(pieces);
        archive.follow_symlinks(false);
        let packed = pack(&mut archive).and_then(|()| archive.into_inner()?.send());
        if let Err(error) = packed {
            // If nobody listens any more, there is a better error elsewhere.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Payload::Tar(Box::pin(futures_util::stream::poll_fn(move |context| {
        receiver.poll_recv(context)
    })))
}

/// Collects what is written into pieces.
pub(crate) struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.pending, Vec::with_capacity(PIECE_BYTES));
        self.sender
            .blocking_send(Ok(piece.into()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// How files are packed.
#[derive(Clone, Copy, Default)]
pub(crate) struct PackOptions {
    /// Keep owners; else everything is root's.
    pub(crate) owners: bool,
}

/// Adds one file, link, device or folder, without what is in it; sockets are left out.
pub(crate) fn add<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    options: PackOptions,
) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let meta = fs::symlink_metadata(path).map_err(named)?;
    let kind = meta.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&meta);
    if !options.owners {
        header.set_uid(0);
        header.set_gid(0);
    }
    let done = if kind.is_symlink() {
        header.set_size(0);
        let to = fs::read_link(path).map_err(named)?;
        archive.append_link(&mut header, name, to)
    } else if kind.is_file() {
        let file = fs::File::open(path).map_err(named)?;
        // A file that grows meanwhile must not spoil the archive.
        header.set_size(meta.len());
        archive.append_data(&mut header, name, io::Read::take(file, meta.len()))
    } else {
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(nix::sys::stat::major(meta.rdev()) as u32)?;
            header.set_device_minor(nix::sys::stat::minor(meta.rdev()) as u32)?;
        }
        archive.append_data(&mut header, name, io::empty())
    };
    done.map_err(named)
}

/// Adds a file or a folder with all that is in it, under another name.
pub(crate) fn add_all<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    options: PackOptions,
) -> io::Result<()> {
    add(archive, path, name, options)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in sorted(path)? {
            add_all(archive, &path.join(&entry), &name.join(&entry), options)?;
        }
    }
    Ok(())
}

/// Names in a folder, in order, so that the same folder makes the same archive.
pub(crate) fn sorted(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
    let mut names = fs::read_dir(folder)
        .map_err(named)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(named)?;
    names.sort();
    Ok(names)
}

/// Unpacks an archive into a folder, its first name replaced by `rename` if there is one.
///
/// Nothing is written outside the folder through the archive: names that leave it are refused, and so are those that
/// lead through a link of the same archive.
pub(crate) fn unpack(
    archive: impl io::Read,
    folder: &Path,
    rename: Option<(&str, &str)>,
    owners: bool,
) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_ownerships(owners);
    let mut links = BTreeSet::new();
    // Times of folders last: what is put into them changes them.
    let mut folders = Vec::new();
    for entry in archive.entries().context("cannot read the archive")? {
        let mut entry = entry.context("cannot read the archive")?;
        entry.set_preserve_permissions(true);
        entry.set_preserve_mtime(true);
        let name = entry
            .path()
            .context("cannot read the archive")?
            .into_owned();
        let name = inside(&name, rename)?;
        if let Some(link) = name
            .ancestors()
            .skip(1)
            .find(|above| links.contains(*above))
        {
            bail!(
                "invalid archive: {} leads through the link {}",
                name.display(),
                link.display()
            );
        }
        let path = folder.join(&name);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)
                .with_context(|| format!("cannot make {}", above.display()))?;
        }
        let kind = entry.header().entry_type();
        let done = if kind.is_hard_link() {
            let to = entry
                .link_name()?
                .context("invalid archive: a link to nothing")?;
            let to = folder.join(inside(&to, rename)?);
            let _ = fs::remove_file(&path);
            fs::hard_link(to, &path)
        } else if kind.is_dir() && path.is_dir() {
            folders.push((path.clone(), entry.header().mtime().unwrap_or(0)));
            Ok(())
        } else {
            entry.unpack(&path).map(drop)
        };
        done.with_context(|| format!("cannot write {}", path.display()))?;
        if kind.is_symlink() {
            links.insert(name);
        } else if kind.is_dir() {
            folders.push((path, entry.header().mtime().unwrap_or(0)));
        }
    }
    for (path, seconds) in folders.into_iter().rev() {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        // Its contents are what counts.
        let _ = fs::File::open(&path).and_then(|folder| folder.set_modified(time));
    }
    Ok(())
}

/// The place of a name below the folder.
fn inside(name: &Path, rename: Option<(&str, &str)>) -> Result<PathBuf> {
    let mut parts = Vec::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir | Component::RootDir => {}
            _ => bail!("invalid archive: {} leads out of it", name.display()),
        }
    }
    if let Some((from, to)) = rename
        && parts.first().is_some_and(|first| first == from)
    {
        parts[0] = to.into();
    }
    Ok(parts.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        build(&mut archive);
        archive.into_inner().unwrap()
    }

    fn file(archive: &mut tar::Builder<Vec<u8>>, name: &str, text: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o640);
        // Past the checks of the builder, as a hostile daemon would.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, text.as_bytes()).unwrap();
    }

    #[test]
    fn a_folder_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        let bytes = packed(|archive| {
            add_all(archive, &from, Path::new("from"), PackOptions::default()).unwrap();
        });
        unpack(&bytes[..], folder.path(), Some(("from", "to")), false).unwrap();
        let to = folder.path().join("to");
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"text");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("sub/file")
        );
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("to");
        fs::create_dir(&to).unwrap();
        let bytes = packed(|archive| file(archive, "../out", "x"));
        assert!(unpack(&bytes[..], &to, None, false).is_err());
        let bytes = packed(|archive| file(archive, "/out", "x"));
        unpack(&bytes[..], &to, None, false).unwrap();
        assert!(to.join("out").exists());
        let bytes = packed(|archive| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, "a", "..").unwrap();
            file(archive, "a/out", "x");
        });
        let error = unpack(&bytes[..], &to, None, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid archive: a/out leads through the link a"
        );
        assert!(!folder.path().join("out").exists());
    }
}
