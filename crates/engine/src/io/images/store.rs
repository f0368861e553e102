//! The images of this host.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use shoal_api::{
    Timestamp,
    image::{
        ImageConfig, ImageHistory, ImageId, ImageInspect, ImageRemoved, ImageSummary, ImageUser,
        Platform, RegistryAuth,
    },
};
use tempfile::NamedTempFile;

use super::{
    ImageError, Registries,
    blobs::Blobs,
    durable::{self, Syncing},
    flight::Flights,
    layers::Layers,
};
use crate::core::images::{
    Built, Catalog, Descriptor, Digest, ImageRow, ImageSpec, Layer, MediaType, Reference,
    chain_ids, render_manifest,
};

/// Manifests and configurations; registries allow 4 MiB.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// All images below one root: `<root>/images` (blobs and the catalogue) and `<root>/layers`.
///
/// Only the catalogue says what exists: it is replaced atomically, it knows which images have not reached the disk yet,
/// and what it does not speak of is removed at the next start. Clones share one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(in crate::io) struct Inner {
    root: PathBuf,
    images: PathBuf,
    pub(super) blobs: Blobs,
    pub(super) layers: Layers,
    pub(super) flights: Flights,
    pub(super) registries: RwLock<Arc<Registries>>,
    pub(super) syncing: Syncing,
    catalog: RwLock<Arc<Catalog>>,
    changes: Mutex<Changes>,
    sweeping: Mutex<()>,
}

/// Guards every change of the catalogue and every decision about what is garbage.
#[derive(Default)]
struct Changes {
    /// Deeds under way that may have brought content the catalogue does not know yet.
    active: usize,
    sweep_wanted: bool,
}

/// A deed that brings or reads content; nothing is swept while one lasts.
pub(in crate::io) struct Activity(Arc<Inner>);

/// An image as a container needs it.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    pub id: ImageId,
    pub config: ImageConfig,
    pub platform: Platform,
    pub created: Timestamp,
    /// Directories for overlayfs, lowest first.
    pub layers: Vec<PathBuf>,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes of all layers, unpacked.
    pub size: u64,
}

impl ImageStore {
    /// Opens the store at `root`, making it if missing, and removes what an interrupted process left. Blocks.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let images = root.join("images");
        let blobs = Blobs::open(&images)?;
        let layers = Layers::open(root)?;
        let file = images.join("catalog.json");
        let mut catalog: Catalog = match fs::read(&file) {
            Ok(content) => serde_json::from_slice(&content)
                .map_err(|error| ImageError::io("read", &file)(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Catalog::default(),
            Err(error) => return Err(ImageError::io("read", &file)(error)),
        };
        for lost in catalog.drop_unsynced(&durable::boot_id()) {
            tracing::warn!(image = %lost, "dropping an image that a power cut kept from reaching the disk");
        }
        layers.empty_incoming(true)?;
        let store = Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                images,
                blobs,
                layers,
                flights: Flights::default(),
                registries: RwLock::default(),
                syncing: Syncing::default(),
                catalog: RwLock::new(Arc::new(catalog)),
                changes: Mutex::default(),
                sweeping: Mutex::default(),
            }),
        };
        store.inner.sweep_all(false)?;
        store.inner.sync_soon();
        Ok(store)
    }

    /// All images, newest first.
    pub fn list(&self) -> Vec<ImageSummary> {
        self.inner.catalog().list()
    }

    /// Unpacked bytes of all layers, each counted once.
    pub fn layers_bytes(&self) -> u64 {
        self.inner.catalog().layers_bytes()
    }

    /// `docker image inspect`.
    pub fn inspect(&self, name: &str) -> Result<ImageInspect, ImageError> {
        let dir = |chain: &Digest| {
            self.inner
                .layers
                .diff_dir(chain)
                .to_string_lossy()
                .into_owned()
        };
        Ok(self.inner.catalog().inspect(name, dir)?)
    }

    /// `docker history`, newest first.
    pub fn history(&self, name: &str) -> Result<Vec<ImageHistory>, ImageError> {
        Ok(self.inner.catalog().history(name)?)
    }

    /// Finds an image by name, name and tag, name and digest, id or the beginning of an id. Touches no disk.
    pub fn resolve(&self, name: &str) -> Result<ImageRecord, ImageError> {
        let catalog = self.inner.catalog();
        let id = catalog.resolve(name)?;
        let row = catalog.get(id).expect("resolved ids exist");
        let (tags, digests) = catalog.names(id);
        let familiar = |names: Vec<Reference>| names.iter().map(Reference::familiar).collect();
        Ok(ImageRecord {
            id: id.clone(),
            config: row.spec.config.clone(),
            platform: row.spec.platform.clone(),
            created: row.spec.created,
            layers: row
                .layers
                .iter()
                .map(|layer| self.inner.layers.diff_dir(&layer.chain_id))
                .collect(),
            repo_tags: familiar(tags),
            repo_digests: familiar(digests),
            size: row.size(),
        })
    }

    /// The unpacked layers of an image, lowest first.
    pub fn layer_dirs(&self, id: &ImageId) -> Result<Vec<PathBuf>, ImageError> {
        Ok(self.resolve(&id.to_string())?.layers)
    }

    /// Gives the image `source` the further name `target`. Returns the image's id.
    pub async fn tag(&self, source: &str, target: &str) -> Result<ImageId, ImageError> {
        let (source, target) = (source.to_owned(), target.to_owned());
        self.blocking(move |inner| {
            inner.change(|catalog| Ok(catalog.tag(&source, &target, Timestamp::now())?))
        })
        .await
    }

    /// Removes a name, and the image with its last one; docker's rules about `force` and about `users`, the
    /// containers on this host. Unless `no_prune`, images without a name that it was built of go with it.
    /// Returns what is gone.
    pub async fn remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
        users: Vec<ImageUser>,
    ) -> Result<Vec<ImageRemoved>, ImageError> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let plan = inner.change(|catalog| {
                Ok(match no_prune {
                    true => catalog.remove_one(&name, force, &users)?,
                    false => catalog.remove(&name, force, &users)?,
                })
            })?;
            if plan.deleted {
                inner.sweep()?;
            }
            Ok(plan.removed)
        })
        .await
    }

    /// `docker image prune`: removes the images that `which` chooses (docker's default: those without a tag) and no
    /// container uses. Returns what is gone, and the unpacked bytes that were freed.
    pub async fn prune(
        &self,
        which: impl Fn(&ImageSummary) -> bool + Send + 'static,
        users: Vec<ImageUser>,
    ) -> Result<(Vec<ImageRemoved>, u64), ImageError> {
        self.blocking(move |inner| {
            let pruned = inner.change(|catalog| Ok(catalog.prune(which, &users)))?;
            inner.sweep()?;
            Ok(pruned)
        })
        .await
    }

    /// `docker login`: tries credentials against the registry they are for.
    pub async fn check_login(&self, auth: &RegistryAuth) -> Result<(), ImageError> {
        super::registry::check_login(auth, &self.registries()).await
    }

    /// Asks a registry what a name stands for, without downloading the image.
    pub async fn manifest_digest_of_remote(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<shoal_api::image::Distribution, ImageError> {
        super::pull::distribution(reference, auth, &self.registries()).await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        deed: impl FnOnce(&Arc<Inner>) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = Arc::clone(&self.inner);
        let work = move || {
            let done = deed(&inner);
            inner.sync_soon();
            done
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ImageError::Interrupted("the image store")),
        }
    }
}

impl Inner {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a deed that brings or reads content.
    pub(super) fn begin(self: &Arc<Self>) -> Activity {
        self.changes().active += 1;
        Activity(Arc::clone(self))
    }

    /// Changes the catalogue on disk, then for everybody. Blocks.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let _guard = self.changes();
        let mut next = Catalog::clone(&self.catalog());
        let outcome = change(&mut next)?;
        let content = serde_json::to_vec(&next).expect("the catalogue has only string keys");
        self.replace_catalog(&content)
            .map_err(ImageError::io("write the catalogue in", &self.images))?;
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(outcome)
    }

    fn replace_catalog(&self, content: &[u8]) -> std::io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.images)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(self.images.join("catalog.json"))
            .map_err(|error| error.error)?;
        File::open(&self.images)?.sync_all()
    }

    /// Enters an image whose blobs and layers are all here, lowest layer first. Blocks.
    ///
    /// Without a manifest one is written. `names` are tags and digests it gets.
    pub(super) fn install(
        &self,
        config: &[u8],
        blobs: Vec<Descriptor>,
        manifest: Option<(Descriptor, &[u8])>,
        names: Vec<Reference>,
    ) -> Result<ImageId, ImageError> {
        self.install_built(config, blobs, manifest, names, None)
    }

    /// The same for an image that was made here. Blocks.
    pub(super) fn install_built(
        &self,
        config: &[u8],
        blobs: Vec<Descriptor>,
        manifest: Option<(Descriptor, &[u8])>,
        names: Vec<Reference>,
        built: Option<Built>,
    ) -> Result<ImageId, ImageError> {
        let digest = self.blobs.put(config)?;
        let id = ImageId::from(&digest);
        let spec = ImageSpec::parse(config).map_err(|source| ImageError::Config {
            image: id.to_string(),
            source,
        })?;
        if spec.diff_ids.len() != blobs.len() {
            let (layers, listed) = (blobs.len(), spec.diff_ids.len());
            return Err(ImageError::LayerCount {
                image: id.to_string(),
                layers,
                listed,
            });
        }
        let manifest = match manifest {
            Some((descriptor, content)) => {
                self.blobs.put(content)?;
                descriptor
            }
            None => {
                let config = Descriptor::new(MediaType::OCI_CONFIG, digest, config.len() as u64);
                let content = render_manifest(&config, &blobs);
                Descriptor::new(
                    MediaType::OCI_MANIFEST,
                    self.blobs.put(&content)?,
                    content.len() as u64,
                )
            }
        };
        let mut layers = Vec::with_capacity(blobs.len());
        let chains = chain_ids(&spec.diff_ids);
        for ((diff_id, chain_id), blob) in spec.diff_ids.iter().cloned().zip(chains).zip(blobs) {
            let size = self.layers.size(&chain_id)?;
            layers.push(Layer {
                diff_id,
                chain_id,
                blob,
                size,
            });
        }
        let now = Timestamp::now();
        let row = ImageRow {
            manifest,
            config_size: config.len() as u64,
            spec,
            layers,
            last_tagged: now,
            built,
            unsynced: Some(durable::boot_id()),
        };
        self.change(|catalog| {
            catalog.insert(id.clone(), row);
            for name in names {
                catalog.name(name, &id, now);
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// Removes blobs, parts of blobs and layers that no image needs, now or when the last deed under way has ended.
    /// Blocks.
    pub(super) fn sweep(&self) -> Result<(), ImageError> {
        self.sweep_all(true)
    }

    fn sweep_all(&self, partials: bool) -> Result<(), ImageError> {
        let _one_sweep = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut changes = self.changes();
            if changes.active > 0 {
                changes.sweep_wanted = true;
                return Ok(());
            }
            changes.sweep_wanted = false;
            let (blobs, chains) = self.catalog().needed();
            self.blobs.sweep(|digest| blobs.contains(digest))?;
            if partials {
                self.blobs.drop_partials()?;
            }
            self.layers.retire(|chain| chains.contains(chain))?;
        }
        self.layers.empty_incoming(false)
    }
}

impl Activity {
    /// What this deed brought is not needed: sweep when the last one has ended.
    pub(super) fn leaves_waste(&self) {
        self.0.changes().sweep_wanted = true;
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let due = {
            let mut changes = self.0.changes();
            changes.active -= 1;
            changes.active == 0 && changes.sweep_wanted
        };
        if !due {
            return;
        }
        let inner = Arc::clone(&self.0);
        let sweep = move || {
            if let Err(error) = inner.sweep() {
                tracing::warn!(
                    error = error.report(),
                    "cannot remove unneeded image content"
                );
            }
        };
        // Without a runtime the process is ending, and the next start sweeps anyway.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(sweep));
        }
    }
}
