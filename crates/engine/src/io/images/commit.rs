//! Makes images of what is on this host: of containers, steps of builds, and archives of whole file systems.

use std::{
    ffi::OsString,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    sync::Arc,
};

use shoal_api::{
    Timestamp,
    image::{ImageConfig, ImageId, Platform},
};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::{
    ImageError, ImageStore,
    decode::opened,
    layers::{Arrival, Arrived},
    pack::pack,
    rootdir,
    store::{Activity, Inner},
};
use crate::core::images::{
    BuildStep, Built, Digest, ImageSpec, Reference, chain_ids, host_platform, render_config,
};

/// What an image made here is to be.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// The image it is made of; `None` begins with nothing.
    pub parent: Option<ImageId>,
    pub config: ImageConfig,
    pub author: String,
    pub comment: String,
    /// The line of its history.
    pub created_by: String,
    /// The platform, if not the parent's, or this host's.
    pub platform: Option<Platform>,
    /// Stands for the step in the builder's cache.
    pub step: Option<Digest>,
    /// A name to give it.
    pub name: Option<Reference>,
}

/// Where the files that an image adds come from.
#[derive(Debug, Clone)]
pub enum Added {
    /// There are none.
    Nothing,
    /// The writable directory of an overlay.
    Upper(PathBuf),
    /// The layer of this number, lowest first, of an image that is here.
    LayerOf(ImageId, usize),
}

/// A directory for things that come and go with a deed; one that a former process left is removed at start.
pub(in crate::io) struct Workspace {
    path: PathBuf,
}

impl Workspace {
    pub(in crate::io) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let removed = rootdir::open_directory(parent)
            .and_then(|parent| rootdir::remove_tree(&parent, &OsString::from(name)));
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a working directory");
        }
    }
}

/// Keeps what it names from being swept, as long as it lives.
pub(in crate::io) struct Held {
    _activity: Activity,
}

impl ImageStore {
    /// Makes an image of another one and a change.
    pub async fn commit(&self, new: NewImage, added: Added) -> Result<ImageId, ImageError> {
        let activity = self.inner.begin();
        self.blocking(move |inner| {
            let done = commit(inner, new, added);
            if done.is_err() {
                activity.leaves_waste();
            }
            done
        })
        .await
    }

    /// Makes an image of one layer from a tar stream, plain or compressed, like `docker import`.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        new: NewImage,
    ) -> Result<ImageId, ImageError> {
        let activity = self.inner.begin();
        self.blocking(move |inner| {
            let done = import(inner, SyncIoBridge::new(archive), new);
            if done.is_err() {
                activity.leaves_waste();
            }
            done
        })
        .await
    }

    /// Makes an image of one layer, with docker's words for one that came from standard input.
    pub async fn import_rootfs(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        config: ImageConfig,
        name: Option<&str>,
    ) -> Result<ImageId, ImageError> {
        let name = name
            .map(|name| name.parse().map(Reference::or_latest))
            .transpose()?;
        let new = NewImage {
            config,
            comment: "Imported from -".to_owned(),
            name,
            ..NewImage::default()
        };
        self.import(archive, new).await
    }

    /// Finds the image that a step made of `parent` before.
    pub fn built_before(&self, parent: Option<&ImageId>, step: &Digest) -> Option<ImageId> {
        self.inner.catalog().built_before(parent, step).cloned()
    }

    /// What an image's configuration says.
    pub fn spec(&self, id: &ImageId) -> Option<ImageSpec> {
        self.inner.catalog().get(id).map(|row| row.spec.clone())
    }

    /// Forgets what builds left behind. Returns ids and bytes.
    pub async fn prune_builds(
        &self,
        all: bool,
        keep: u64,
        which: impl Fn(&shoal_api::image::ImageSummary) -> bool + Send + 'static,
        users: Vec<shoal_api::image::ImageUser>,
    ) -> Result<(Vec<ImageId>, u64), ImageError> {
        self.blocking(move |inner| {
            let pruned =
                inner.change(|catalog| Ok(catalog.prune_builds(all, keep, which, &users)))?;
            inner.sweep()?;
            Ok(pruned)
        })
        .await
    }

    /// A new working directory beside the layers.
    pub(in crate::io) fn workspace(&self) -> Result<Workspace, ImageError> {
        let path = self.inner.layers.new_dir()?;
        Ok(Workspace { path })
    }

    /// Keeps images from being swept that somebody removes while a deed still needs their layers.
    pub(in crate::io) fn hold(&self) -> Held {
        Held {
            _activity: self.inner.begin(),
        }
    }
}

/// Blocks.
fn commit(inner: &Arc<Inner>, new: NewImage, added: Added) -> Result<ImageId, ImageError> {
    let catalog = inner.catalog();
    let gone = || ImageError::Interrupted("the image that this one is made of");
    let (mut spec, mut blobs) = match &new.parent {
        Some(parent) => {
            let row = catalog.get(parent).ok_or_else(gone)?;
            let blobs: Vec<_> = row.layers.iter().map(|layer| layer.blob.clone()).collect();
            (row.spec.clone(), blobs)
        }
        None => (
            ImageSpec {
                platform: host_platform(),
                ..ImageSpec::default()
            },
            Vec::new(),
        ),
    };
    let before = spec.diff_ids.len();
    match added {
        Added::Nothing => {}
        Added::Upper(upper) => {
            if let Some(arrived) = take_upper(inner, &upper)? {
                let diff_id = arrived.diff_id.clone().expect("unpacking was asked for");
                spec.diff_ids.push(diff_id);
                blobs.push(arrived.blob.clone());
                let chain = chain_ids(&spec.diff_ids).pop().expect("just pushed one");
                arrived.commit(&inner.blobs, &inner.layers, &chain)?;
            }
        }
        Added::LayerOf(image, number) => {
            let row = catalog.get(&image).ok_or_else(gone)?;
            let layer = row.layers.get(number).ok_or_else(gone)?;
            spec.diff_ids.push(layer.diff_id.clone());
            blobs.push(layer.blob.clone());
        }
    }
    let step = BuildStep {
        created: Timestamp::now(),
        created_by: new.created_by,
        comment: new.comment.clone(),
        empty_layer: spec.diff_ids.len() == before,
    };
    spec.created = step.created;
    spec.history.push(step);
    spec.config = new.config;
    spec.author = new.author;
    spec.comment = new.comment;
    if let Some(platform) = new.platform {
        spec.platform = platform;
    }
    let built = Built {
        parent: new.parent,
        step: new.step,
    };
    inner.install_built(
        &render_config(&spec),
        blobs,
        None,
        new.name.into_iter().collect(),
        Some(built),
    )
}

/// Packs, stores and unpacks the writable directory of an overlay; `None` if nothing is in it.
fn take_upper(inner: &Inner, upper: &Path) -> Result<Option<Arrived>, ImageError> {
    let root = rootdir::open_directory(upper).map_err(ImageError::io("open", upper))?;
    let (reader, writer) = io::pipe().map_err(ImageError::doing("make a pipe"))?;
    let arrival = Arrival {
        keep_blob: true,
        unpack: true,
        ..Arrival::default()
    };
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || pack(&root, BufWriter::with_capacity(128 << 10, writer)));
        let arrived = inner.layers.receive(&inner.blobs, reader, arrival);
        let packed = packing
            .join()
            .unwrap_or(Err(ImageError::Interrupted("the packing of a layer")));
        match (packed, arrived) {
            (Ok(0), Ok(_)) => Ok(None),
            (Ok(_), arrived) => arrived.map(Some),
            // A reader that failed closed the pipe: its reason is the better one.
            (Err(error), Err(first)) if is_broken_pipe(&error) => Err(first),
            (Err(error), _) => Err(error),
        }
    })
}

fn is_broken_pipe(error: &ImageError) -> bool {
    matches!(error, ImageError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// Blocks.
fn import(inner: &Inner, archive: impl io::Read, new: NewImage) -> Result<ImageId, ImageError> {
    let arrival = Arrival {
        keep_blob: true,
        unpack: true,
        ..Arrival::default()
    };
    let archive = opened(archive).map_err(ImageError::doing("read the archive"))?;
    let arrived = inner.layers.receive(&inner.blobs, archive, arrival)?;
    let diff_id = arrived.diff_id.clone().expect("unpacking was asked for");
    let blob = arrived.blob.clone();
    arrived.commit(&inner.blobs, &inner.layers, &diff_id)?;
    let now = Timestamp::now();
    let spec = ImageSpec {
        platform: new.platform.unwrap_or_else(host_platform),
        created: now,
        author: new.author,
        comment: new.comment.clone(),
        config: new.config,
        diff_ids: vec![diff_id],
        history: vec![BuildStep {
            created: now,
            comment: new.comment,
            ..BuildStep::default()
        }],
    };
    inner.install(
        &render_config(&spec),
        vec![blob],
        None,
        new.name.into_iter().collect(),
    )
}
