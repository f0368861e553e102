//! Takes in image archives of `docker save` and of OCI's layout.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use shoal_api::image::{ImageId, PullProgress};
use tempfile::TempPath;
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::io::SyncIoBridge;

use super::{
    ImageError, ImageStore,
    decode::{Hashing, decoded, opened},
    layers::Arrival,
    store::{DOCUMENT_BYTES_MAX, Inner},
    tar_reader::TarReader,
};
use crate::core::images::{
    ArchiveItem, ArchiveLayout, Descriptor, Digest, Document, EntryPath, ImageSpec, Manifest,
    MediaType, MemberKind, Reference, chain_ids, choose_platform, host_platform, parse_document,
};

/// Files in an archive; each image has a few per layer.
const FILES_MAX: usize = 50_000;
/// Links that lead to links.
const LINKS_MAX: usize = 8;

/// An image that an archive brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    pub id: ImageId,
    /// As a user would type it; `None` for an image without one.
    pub name: Option<String>,
}

impl ImageStore {
    /// Loads every image of an archive, plain or compressed.
    ///
    /// No path in the archive ever becomes a path on this host. Layers already here are not unpacked again.
    pub async fn load(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let activity = self.inner.begin();
        self.blocking(move |inner| {
            let done = load(inner, SyncIoBridge::new(archive), &progress);
            if done.is_err() {
                activity.leaves_waste();
            }
            done
        })
        .await
    }
}

/// Blocks.
fn load(
    inner: &Arc<Inner>,
    archive: impl io::Read,
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Vec<LoadedImage>, ImageError> {
    let mut archive = Spool::read(inner, archive)?;
    let has = |name: &str| archive.find(Path::new(name)).is_some();
    let mut loaded = Vec::new();
    match ArchiveLayout::of(has("manifest.json"), has("index.json")) {
        Some(ArchiveLayout::Docker) => {
            let items: Vec<ArchiveItem> =
                serde_json::from_slice(&archive.document("manifest.json")?).map_err(|error| {
                    ImageError::Archive(format!("manifest.json cannot be read: {error}"))
                })?;
            let originals = archive.manifests()?;
            for item in items {
                loaded.extend(load_item(inner, &mut archive, &item, &originals, progress)?);
            }
        }
        Some(ArchiveLayout::Oci) => {
            for original in archive.manifests()? {
                loaded.extend(load_manifest(inner, &mut archive, &original, progress)?);
            }
        }
        None => {
            return Err(ImageError::Archive(
                "archive holds no images: neither manifest.json nor index.json is in it".to_owned(),
            ));
        }
    }
    Ok(loaded)
}

/// One file of an archive, in a file of ours.
struct Spooled {
    file: Option<TempPath>,
    digest: Digest,
    size: u64,
}

/// The files of an archive by their names in it.
struct Spool {
    files: BTreeMap<PathBuf, Spooled>,
    links: BTreeMap<PathBuf, PathBuf>,
}

/// A manifest of an OCI layout.
struct Original {
    descriptor: Descriptor,
    content: Vec<u8>,
    manifest: Manifest,
    name: Option<Reference>,
}

impl Spool {
    fn read(inner: &Inner, archive: impl io::Read) -> Result<Self, ImageError> {
        let (_, plain) = opened(archive)
            .and_then(decoded)
            .map_err(ImageError::doing("read the archive"))?;
        let mut reader = TarReader::new(plain);
        let mut spool = Self {
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        while let Some(member) = reader.next_member()? {
            let path = EntryPath::parse(&member.path)?;
            let (EntryPath::Child { parent, .. }, whole) = (&path, path.to_path()) else {
                continue;
            };
            if spool.files.len() + spool.links.len() >= FILES_MAX {
                return Err(ImageError::Archive(format!(
                    "archive has more than {FILES_MAX} files"
                )));
            }
            match &member.kind {
                MemberKind::Directory => {}
                MemberKind::File => {
                    let mut file = inner.blobs.incoming()?;
                    let mut content = Hashing::new(&mut reader, None);
                    io::copy(&mut content, &mut file)
                        .map_err(ImageError::doing("store the archive"))?;
                    let (digest, size) = content.finish()?;
                    spool.files.insert(
                        whole,
                        Spooled {
                            file: Some(file.into_temp_path()),
                            digest,
                            size,
                        },
                    );
                }
                // Older dockers save a layer once and link to it; targets are names within the archive.
                MemberKind::Symlink(target) => {
                    let target = [
                        std::os::unix::ffi::OsStrExt::as_bytes(parent.as_os_str()),
                        b"/",
                        target,
                    ]
                    .concat();
                    spool
                        .links
                        .insert(whole, EntryPath::parse(&target)?.to_path());
                }
                MemberKind::HardLink(target) => {
                    spool
                        .links
                        .insert(whole, EntryPath::parse(target)?.to_path());
                }
                MemberKind::CharDevice { .. }
                | MemberKind::BlockDevice { .. }
                | MemberKind::Fifo => {
                    return Err(ImageError::Archive(format!(
                        "archive entry {whole:?} is no file"
                    )));
                }
            }
        }
        reader.drain()?;
        Ok(spool)
    }

    /// The name under which the content of `path` is kept.
    fn find(&self, path: &Path) -> Option<PathBuf> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            if self.files.contains_key(&path) {
                return Some(path);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    fn get(&mut self, name: &str) -> Result<&mut Spooled, ImageError> {
        let path = EntryPath::parse(name.as_bytes())?.to_path();
        let found = self
            .find(&path)
            .and_then(|found| self.files.get_mut(&found));
        found.ok_or_else(|| {
            ImageError::Archive(format!("archive lists {name:?} but does not have it"))
        })
    }

    /// Content of a small file.
    fn document(&mut self, name: &str) -> Result<Vec<u8>, ImageError> {
        let spooled = self.get(name)?;
        if spooled.size > DOCUMENT_BYTES_MAX {
            return Err(ImageError::Archive(format!(
                "archive entry {name:?} has {} bytes, which is too much",
                spooled.size
            )));
        }
        match &spooled.file {
            Some(file) => fs::read(file).map_err(ImageError::io("read", file)),
            None => Err(ImageError::Archive(format!(
                "archive uses {name:?} as a layer and as a document"
            ))),
        }
    }

    /// The manifests that `index.json` lists, for this host where it has to choose; none if there is no index.
    fn manifests(&mut self) -> Result<Vec<Original>, ImageError> {
        if self.find(Path::new("index.json")).is_none() {
            return Ok(Vec::new());
        }
        let index = self.document("index.json")?;
        let Document::Index { builds, .. } = parse(&index)? else {
            return Err(ImageError::Archive("index.json is not an index".to_owned()));
        };
        let mut found = Vec::new();
        for entry in builds {
            let name = entry.archive_name();
            let (descriptor, content, document) = self.described(entry)?;
            match document {
                Document::Manifest(manifest) => found.push(Original {
                    descriptor,
                    content,
                    manifest,
                    name,
                }),
                Document::Index { builds, .. } => {
                    let here = builds.into_iter().filter(|build| {
                        self.find(Path::new(&build.digest.archive_path())).is_some()
                    });
                    let here: Vec<_> = here
                        .filter_map(|build| Some((build.platform.clone()?, build)))
                        .collect();
                    let Some(chosen) = choose_platform(
                        &host_platform(),
                        here.iter().map(|(platform, _)| platform),
                    ) else {
                        return Err(ImageError::NoPlatform("this host".to_owned()));
                    };
                    let (descriptor, content, document) = self.described(here[chosen].1.clone())?;
                    let Document::Manifest(manifest) = document else {
                        return Err(ImageError::Archive(
                            "archive has an index in an index".to_owned(),
                        ));
                    };
                    found.push(Original {
                        descriptor,
                        content,
                        manifest,
                        name,
                    });
                }
            }
        }
        Ok(found)
    }

    fn described(
        &mut self,
        entry: Descriptor,
    ) -> Result<(Descriptor, Vec<u8>, Document), ImageError> {
        let name = entry.digest.archive_path();
        let found = self.get(&name)?.digest.clone();
        if found != entry.digest {
            return Err(ImageError::Digest {
                expected: entry.digest,
                found,
            });
        }
        let content = self.document(&name)?;
        let document = parse(&content)?;
        let media_type = match &document {
            Document::Manifest(manifest) => manifest.media_type.clone(),
            Document::Index { media_type, .. } => media_type.clone(),
        };
        Ok((
            Descriptor::new(&media_type, entry.digest, content.len() as u64),
            content,
            document,
        ))
    }
}

fn parse(content: &[u8]) -> Result<Document, ImageError> {
    parse_document(content).map_err(|source| ImageError::Manifest {
        image: "the archive".to_owned(),
        source,
    })
}

/// An image of docker's layout; with its original manifest if the archive has that, too.
fn load_item(
    inner: &Arc<Inner>,
    archive: &mut Spool,
    item: &ArchiveItem,
    originals: &[Original],
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Vec<LoadedImage>, ImageError> {
    let names = item
        .names()
        .map(|name| name.parse::<Reference>().map(Reference::or_latest));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let config = archive.document(&item.config)?;
    let blobs = take_layers(inner, archive, &config, &item.layers, progress)?;
    let digest = Digest::of(&config);
    let same_layers = |manifest: &Manifest| {
        manifest.config.digest == digest
            && manifest
                .layers
                .iter()
                .map(|layer| &layer.digest)
                .eq(blobs.iter().map(|blob| &blob.digest))
    };
    let original = originals
        .iter()
        .find(|original| same_layers(&original.manifest));
    let manifest =
        original.map(|original| (original.descriptor.clone(), original.content.as_slice()));
    let id = inner.install(&config, blobs, manifest, names.clone())?;
    Ok(loaded(&id, &names))
}

/// An image of an OCI layout.
fn load_manifest(
    inner: &Arc<Inner>,
    archive: &mut Spool,
    original: &Original,
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Vec<LoadedImage>, ImageError> {
    let manifest = &original.manifest;
    let config = archive.document(&manifest.config.digest.archive_path())?;
    let found = Digest::of(&config);
    if found != manifest.config.digest {
        return Err(ImageError::Digest {
            expected: manifest.config.digest.clone(),
            found,
        });
    }
    let paths: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| layer.digest.archive_path())
        .collect();
    let blobs = take_layers(inner, archive, &config, &paths, progress)?;
    for (blob, layer) in blobs.iter().zip(&manifest.layers) {
        if blob.digest != layer.digest {
            return Err(ImageError::Digest {
                expected: layer.digest.clone(),
                found: blob.digest.clone(),
            });
        }
    }
    let names: Vec<_> = original
        .name
        .clone()
        .map(Reference::or_latest)
        .into_iter()
        .collect();
    let id = inner.install(
        &config,
        blobs,
        Some((original.descriptor.clone(), &original.content)),
        names.clone(),
    )?;
    Ok(loaded(&id, &names))
}

fn loaded(id: &ImageId, names: &[Reference]) -> Vec<LoadedImage> {
    if names.is_empty() {
        return vec![LoadedImage {
            id: id.clone(),
            name: None,
        }];
    }
    names
        .iter()
        .map(|name| LoadedImage {
            id: id.clone(),
            name: Some(name.familiar()),
        })
        .collect()
}

/// Stores and unpacks the layers of one image; they are listed lowest first.
fn take_layers(
    inner: &Arc<Inner>,
    archive: &mut Spool,
    config: &[u8],
    paths: &[String],
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Vec<Descriptor>, ImageError> {
    let image = || Digest::of(config).to_string();
    let spec = ImageSpec::parse(config).map_err(|source| ImageError::Config {
        image: image(),
        source,
    })?;
    if spec.diff_ids.len() != paths.len() {
        return Err(ImageError::LayerCount {
            image: image(),
            layers: paths.len(),
            listed: spec.diff_ids.len(),
        });
    }
    let chains = chain_ids(&spec.diff_ids);
    let mut jobs = Vec::with_capacity(paths.len());
    for ((path, diff_id), chain) in paths.iter().zip(spec.diff_ids).zip(chains) {
        let spooled = archive.get(path)?;
        let (digest, size) = (spooled.digest.clone(), spooled.size);
        if let Some(file) = spooled.file.take()
            && !inner.blobs.has(&digest)
        {
            let place = inner.blobs.path(&digest);
            file.persist(&place)
                .map_err(|error| ImageError::io("store", &place)(error.error))?;
        }
        jobs.push(Job {
            digest,
            size,
            diff_id,
            chain,
        });
    }
    unpack_all(inner, jobs, progress)
}

/// A layer whose packed form is here.
struct Job {
    digest: Digest,
    size: u64,
    diff_id: Digest,
    chain: Digest,
}

/// Unpacks layers side by side, since no layer needs another one for it.
fn unpack_all(
    inner: &Inner,
    jobs: Vec<Job>,
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Vec<Descriptor>, ImageError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || -> Result<(), ImageError> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(number) else {
                return Ok(());
            };
            let unpacked = unpack_one(inner, job, progress);
            if unpacked.is_err() {
                // The others need not begin anything more.
                next.store(jobs.len(), Ordering::Relaxed);
            }
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.insert(number, unpacked?);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(jobs.len()))
            .map(|_| scope.spawn(work))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            let ended = worker.join();
            ended.unwrap_or(Err(ImageError::Interrupted("the unpacking of a layer")))
        })
    })?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(done.into_values().collect())
}

fn unpack_one(
    inner: &Inner,
    job: &Job,
    progress: &mpsc::Sender<PullProgress>,
) -> Result<Descriptor, ImageError> {
    let report = |current| PullProgress {
        id: Some(job.diff_id.short().to_owned()),
        status: "Loading layer".to_owned(),
        current,
        total: job.size,
    };
    let _ = progress.try_send(report(0));
    let mut blob = inner.blobs.open_blob(&job.digest)?;
    let media_type = decoded(&mut blob)
        .map_err(ImageError::doing("read the layer"))?
        .0;
    if !inner.layers.has(&job.chain) {
        let arrival = Arrival {
            blob: Some((job.digest.clone(), job.size)),
            diff_id: Some(job.diff_id.clone()),
            unpack: true,
            ..Arrival::default()
        };
        let source = inner.blobs.open_blob(&job.digest)?;
        inner
            .layers
            .receive(&inner.blobs, source, arrival)?
            .commit(&inner.blobs, &inner.layers, &job.chain)?;
    }
    let _ = progress.try_send(report(job.size));
    debug_assert!(media_type.starts_with(MediaType::OCI_LAYER));
    Ok(Descriptor::new(media_type, job.digest.clone(), job.size))
}
