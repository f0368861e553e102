//! Unpacked layers, below `layers/`.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    ImageError,
    blobs::Blobs,
    decode::{Hashing, Tee, decoded},
    partial::Partial,
    rootdir,
    unpack::unpack,
};
use crate::core::images::{Descriptor, Digest};

/// Layers by chain id: `<chain>/diff` is what overlayfs stacks. A directory has its name only when it is whole.
pub(super) struct Layers {
    dir: PathBuf,
    incoming: PathBuf,
    next: AtomicU64,
}

/// Beside `diff`: what would cost a walk to find out again.
#[derive(Serialize, Deserialize)]
struct LayerNote {
    diff_id: Digest,
    size: u64,
}

/// A layer being unpacked; goes away with all it has unless committed.
struct Staging {
    path: PathBuf,
}

/// A verified layer that is not yet in its place.
pub(super) struct Arrived {
    /// The packed form: media type by its first bytes, digest and size.
    pub(super) blob: Descriptor,
    /// Of the unpacked stream; `None` if it was not unpacked.
    pub(super) diff_id: Option<Digest>,
    file: Option<Copied>,
    unpacked: Option<(Staging, u64)>,
}

/// Where the packed form is kept until it is known to be right.
enum Copied {
    Temporary(NamedTempFile),
    Partial(Partial),
}

impl io::Write for Copied {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary(file) => file.write(bytes),
            Self::Partial(partial) => partial.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Temporary(file) => file.flush(),
            Self::Partial(partial) => partial.flush(),
        }
    }
}

/// How a layer arrives.
#[derive(Default)]
pub(super) struct Arrival {
    /// Digest and size that the packed form must have.
    pub(super) blob: Option<(Digest, u64)>,
    /// The digest that the unpacked stream must have.
    pub(super) diff_id: Option<Digest>,
    /// Keep the packed form, too.
    pub(super) keep_blob: bool,
    /// What arrived of the packed form before, and is gone on with.
    pub(super) partial: Option<Partial>,
    pub(super) unpack: bool,
}

impl Layers {
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        let dir = root.join("layers");
        let layers = Self {
            incoming: dir.join("incoming"),
            dir,
            next: AtomicU64::new(0),
        };
        fs::create_dir_all(&layers.incoming).map_err(ImageError::io("create", &layers.incoming))?;
        // Images bring set-id programs and device nodes; nobody but root reaches them except inside a container.
        fs::set_permissions(&layers.dir, fs::Permissions::from_mode(0o700))
            .map_err(ImageError::io("protect", &layers.dir))?;
        Ok(layers)
    }

    /// The directory for overlayfs.
    pub(super) fn diff_dir(&self, chain: &Digest) -> PathBuf {
        self.dir.join(chain.hex()).join("diff")
    }

    pub(super) fn has(&self, chain: &Digest) -> bool {
        self.dir.join(chain.hex()).exists()
    }

    /// Bytes of the files of a layer that is here.
    pub(super) fn size(&self, chain: &Digest) -> Result<u64, ImageError> {
        let path = self.dir.join(chain.hex()).join("layer.json");
        let note = fs::read(&path).map_err(ImageError::io("read", &path))?;
        let note: LayerNote = serde_json::from_slice(&note)
            .map_err(|error| ImageError::io("read", &path)(error.into()))?;
        Ok(note.size)
    }

    /// Takes in one layer from `source`, read to its end, verifying on the way. Blocks.
    pub(super) fn receive(
        &self,
        blobs: &Blobs,
        source: impl io::Read,
        arrival: Arrival,
    ) -> Result<Arrived, ImageError> {
        let mut file = match arrival.partial {
            Some(partial) => Some(Copied::Partial(partial)),
            None if arrival.keep_blob => Some(Copied::Temporary(blobs.incoming()?)),
            None => None,
        };
        let expected = (arrival.blob, arrival.diff_id);
        let received = match &file {
            Some(Copied::Partial(partial)) => {
                let before = partial.reader()?;
                self.read(before, source, &mut file, expected, arrival.unpack)
            }
            _ => self.read(io::empty(), source, &mut file, expected, arrival.unpack),
        };
        match received {
            Ok((blob, diff_id, unpacked)) => Ok(Arrived {
                blob,
                diff_id,
                file,
                unpacked,
            }),
            Err(error) => {
                // Only what stopped half-way is worth going on with.
                if let (Some(Copied::Partial(partial)), false) =
                    (file, matches!(error, ImageError::Interrupted(_)))
                {
                    partial.discard();
                }
                Err(error)
            }
        }
    }

    /// Reads what arrived before and the rest of it, of which a copy is made.
    #[allow(clippy::type_complexity)]
    fn read(
        &self,
        before: impl io::Read,
        rest: impl io::Read,
        copy: &mut Option<Copied>,
        (blob, expected): (Option<(Digest, u64)>, Option<Digest>),
        unpack: bool,
    ) -> Result<(Descriptor, Option<Digest>, Option<(Staging, u64)>), ImageError> {
        let tee = Tee {
            inner: rest,
            copy: copy.as_mut(),
        };
        let mut packed = Hashing::new(before.chain(tee), blob);
        let unpacked = match unpack {
            true => Some(self.unpack_packed(&mut packed)),
            false => None,
        };
        // Content that is not what was announced explains whatever went wrong with unpacking it.
        let (digest, size) = packed.finish()?;
        let (mut kind, mut diff_id, mut staged) = ("", None, None);
        if let Some(unpacked) = unpacked {
            let (found, staging, size);
            (kind, found, staging, size) = unpacked?;
            if let Some(expected) = expected
                && expected != found
            {
                return Err(ImageError::Digest { expected, found });
            }
            (diff_id, staged) = (Some(found), Some((staging, size)));
        }
        Ok((Descriptor::new(kind, digest, size), diff_id, staged))
    }

    /// Returns media type, diff id, and the unpacked files with their size in bytes.
    fn unpack_packed(
        &self,
        packed: &mut impl io::Read,
    ) -> Result<(&'static str, Digest, Staging, u64), ImageError> {
        let staging = self.stage()?;
        let (kind, plain) = decoded(packed).map_err(ImageError::doing("read the layer"))?;
        let mut plain = Hashing::new(plain, None);
        let size = unpack(&mut plain, &staging.diff(), &staging.trash())?;
        let (diff_id, _) = plain.finish()?;
        Ok((kind, diff_id, staging, size))
    }

    /// A new directory that the next start removes, unless somebody did before.
    pub(super) fn new_dir(&self) -> Result<PathBuf, ImageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming.join(number.to_string());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(ImageError::io("create", &path))?;
        Ok(path)
    }

    fn stage(&self) -> Result<Staging, ImageError> {
        let staging = Staging {
            path: self.new_dir()?,
        };
        let make = |path: &Path, mode| {
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .map_err(ImageError::io("create", path))
        };
        make(&staging.diff(), 0o755)?;
        make(&staging.trash(), 0o700)?;
        Ok(staging)
    }

    /// Moves what nobody needs out of sight; [`Layers::empty_incoming`] then removes it.
    pub(super) fn retire(&self, needed: impl Fn(&Digest) -> bool) -> Result<(), ImageError> {
        for entry in fs::read_dir(&self.dir).map_err(ImageError::io("list", &self.dir))? {
            let entry = entry.map_err(ImageError::io("list", &self.dir))?;
            let name = entry.file_name();
            let chain = format!("sha256:{}", name.to_string_lossy()).parse::<Digest>();
            if entry.path() == self.incoming || chain.is_ok_and(|chain| needed(&chain)) {
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let retired = self.incoming.join(format!("retired-{number}"));
            fs::rename(entry.path(), &retired).map_err(ImageError::io("remove", &entry.path()))?;
        }
        Ok(())
    }

    /// Removes retired layers, and with `all` also those that a former process left half done.
    pub(super) fn empty_incoming(&self, all: bool) -> Result<(), ImageError> {
        for entry in fs::read_dir(&self.incoming).map_err(ImageError::io("list", &self.incoming))? {
            let entry = entry.map_err(ImageError::io("list", &self.incoming))?;
            let name = entry.file_name();
            if all || name.to_string_lossy().starts_with("retired-") {
                remove_below(&self.incoming, &name)
                    .map_err(ImageError::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

impl Arrived {
    /// Puts blob and layer in their places. Returns the bytes of the layer's files, if it was unpacked.
    pub(super) fn commit(
        self,
        blobs: &Blobs,
        layers: &Layers,
        chain: &Digest,
    ) -> Result<Option<u64>, ImageError> {
        match self.file {
            Some(Copied::Temporary(file)) => blobs.keep(file, &self.blob.digest)?,
            Some(Copied::Partial(partial)) => partial.keep(blobs, &self.blob.digest)?,
            None => {}
        }
        let (Some((staging, size)), Some(diff_id)) = (self.unpacked, self.diff_id) else {
            return Ok(None);
        };
        let staged = &staging.path;
        remove_below(staged, OsStr::new("trash")).map_err(ImageError::io("remove", staged))?;
        let note =
            serde_json::to_vec(&LayerNote { diff_id, size }).expect("a note has only string keys");
        fs::write(staged.join("layer.json"), note).map_err(ImageError::io("write", staged))?;
        let place = layers.dir.join(chain.hex());
        match fs::rename(staged, &place) {
            // Another image brought the same layer meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {}
            renamed => renamed.map_err(ImageError::io("store", &place))?,
        }
        Ok(Some(size))
    }
}

impl Staging {
    fn diff(&self) -> PathBuf {
        self.path.join("diff")
    }

    fn trash(&self) -> PathBuf {
        self.path.join("trash")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        match remove_below(parent, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished layer");
            }
            _ => {}
        }
    }
}

fn remove_below(parent: &Path, name: &OsStr) -> io::Result<()> {
    rootdir::remove_tree(&rootdir::open_directory(parent)?, name)
}
