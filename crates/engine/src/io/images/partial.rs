//! Blobs of which only a part has arrived.
//!
//! What a broken connection, a dropped pull or a killed daemon leaves of a download is where the next one goes on.
//! Nothing relies on it: the whole is verified whenever it is complete, and a part that turns out wrong is thrown away.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::AtFlags, unistd::linkat};

use super::{ImageError, blobs::Blobs};
use crate::core::images::Digest;

/// The file of a blob on its way.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    /// Bytes that were there before.
    before: u64,
}

impl Partial {
    /// Goes on with a blob, or begins it; `size` is what it will have.
    pub(super) fn open(dir: &Path, digest: &Digest, size: u64) -> Result<Self, ImageError> {
        let path = dir.join(digest.hex());
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(path)
        };
        let mut file = open(&path).map_err(ImageError::io("open", &path))?;
        if file.try_lock().is_err() {
            // A pull that was dropped has not noticed yet: it keeps its file, which nobody else finds any more.
            fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
            file = open(&path).map_err(ImageError::io("open", &path))?;
            file.try_lock()
                .map_err(|error| ImageError::io("lock", &path)(error.into()))?;
        }
        let mut before = file
            .metadata()
            .map_err(ImageError::io("read", &path))?
            .len();
        if before > size {
            file.set_len(0).map_err(ImageError::io("empty", &path))?;
            before = 0;
        }
        Ok(Self { path, file, before })
    }

    pub(super) fn before(&self) -> u64 {
        self.before
    }

    /// What is there already.
    pub(super) fn reader(&self) -> Result<impl Read + use<>, ImageError> {
        let file = File::open(&self.path).map_err(ImageError::io("open", &self.path))?;
        Ok(file.take(self.before))
    }

    /// Takes the whole, verified blob into the others.
    pub(super) fn keep(self, blobs: &Blobs, digest: &Digest) -> Result<(), ImageError> {
        let place = blobs.path(digest);
        // By descriptor: the name may be another pull's by now.
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let here = nix::fcntl::AT_FDCWD;
        match linkat(here, own.as_str(), here, &place, AtFlags::AT_SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(ImageError::io("store", &place)(errno.into())),
        }
        self.discard();
        Ok(())
    }

    /// Gives its name up.
    pub(super) fn discard(self) {
        let is_own = || -> io::Result<bool> {
            let (own, named) = (self.file.metadata()?, fs::metadata(&self.path)?);
            Ok((own.dev(), own.ino()) == (named.dev(), named.ino()))
        };
        if is_own().unwrap_or(false)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a part of a blob");
        }
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
