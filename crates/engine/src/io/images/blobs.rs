//! Content by digest, below `images/`.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::{ImageError, partial::Partial};
use crate::core::images::Digest;

/// Packed layers, configurations and manifests, each in a file named by its digest.
///
/// A file appears under its name only when it is whole and verified. Content not yet in the catalogue is not
/// synced to disk one by one: the catalogue's writer does that once for all.
pub(super) struct Blobs {
    dir: PathBuf,
    incoming: PathBuf,
    /// Parts of blobs, which survive a restart.
    partial: PathBuf,
}

impl Blobs {
    pub(super) fn open(images: &Path) -> Result<Self, ImageError> {
        let blobs = Self {
            dir: images.join("blobs/sha256"),
            incoming: images.join("incoming"),
            partial: images.join("partial"),
        };
        for dir in [&blobs.dir, &blobs.incoming, &blobs.partial] {
            fs::create_dir_all(dir).map_err(ImageError::io("create", dir))?;
        }
        Ok(blobs)
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// A file for content that arrives; it vanishes unless [`Blobs::keep`] takes it.
    pub(super) fn incoming(&self) -> Result<NamedTempFile, ImageError> {
        NamedTempFile::new_in(&self.incoming)
            .map_err(ImageError::io("create a file in", &self.incoming))
    }

    /// A blob that may have begun to arrive before.
    pub(super) fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, ImageError> {
        Partial::open(&self.partial, digest, size)
    }

    /// Throws away all parts of blobs. Nothing may be on its way.
    pub(super) fn drop_partials(&self) -> Result<(), ImageError> {
        let dir = &self.partial;
        for entry in fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
            let path = entry.map_err(ImageError::io("list", dir))?.path();
            fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Takes over a file whose digest was verified.
    pub(super) fn keep(&self, file: NamedTempFile, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        file.persist(&path)
            .map_err(|error| ImageError::io("store", &path)(error.error))?;
        Ok(())
    }

    /// Stores small content.
    pub(super) fn put(&self, content: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(content);
        if !self.has(&digest) {
            let mut file = self.incoming()?;
            file.write_all(content)
                .map_err(ImageError::io("write", &self.incoming))?;
            self.keep(file, &digest)?;
        }
        Ok(digest)
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(ImageError::io("open", &path))
    }

    /// Reads small content, verified; `None` if it is not here.
    pub(super) fn read(&self, digest: &Digest, most: u64) -> Result<Option<Vec<u8>>, ImageError> {
        if !self.has(digest) {
            return Ok(None);
        }
        let mut content = Vec::new();
        let path = self.path(digest);
        self.open_blob(digest)?
            .take(most)
            .read_to_end(&mut content)
            .map_err(ImageError::io("read", &path))?;
        let found = Digest::of(&content);
        if found != *digest {
            return Err(ImageError::Digest {
                expected: digest.clone(),
                found,
            });
        }
        Ok(Some(content))
    }

    /// Removes everything that `needed` does not list, and what never fully arrived.
    pub(super) fn sweep(&self, needed: impl Fn(&Digest) -> bool) -> Result<(), ImageError> {
        for dir in [&self.dir, &self.incoming] {
            for entry in fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
                let entry = entry.map_err(ImageError::io("list", dir))?;
                let name = entry.file_name();
                let digest = format!("sha256:{}", name.to_string_lossy()).parse::<Digest>();
                if *dir == self.dir && digest.is_ok_and(|digest| needed(&digest)) {
                    continue;
                }
                let path = entry.path();
                fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}
