//! Brings an image from a registry.

use futures_util::{StreamExt, TryStreamExt, stream};
use shoal_api::image::{Distribution, ImageId, Platform, PullProgress, RegistryAuth};
use tokio::sync::mpsc;

use super::{
    ImageError, ImageErrorKind, ImageStore, Registries,
    feed::{Feed, feed},
    layers::Arrival,
    registry::{Access, Fetched, Registry},
    store::DOCUMENT_BYTES_MAX,
};
use crate::core::images::{
    Descriptor, Digest, Document, ImageSpec, InvalidManifest, Manifest, Reference, chain_ids,
    choose_platform, host_platform, parse_document, parse_platform,
};

/// A connection that breaks is taken up again where it broke; after this many times without a byte, no more.
const BREAKS_MAX: usize = 3;
/// Between two reports of progress.
const REPORT_BYTES: u64 = 512 << 10;

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    pub id: ImageId,
    /// Of the manifest or index that the name stands for, `sha256:…`.
    pub digest: String,
    /// The name as a user would type it, `busybox:latest`.
    pub name: String,
    /// False if the name already stood for this image.
    pub newer: bool,
}

/// Reports progress to whoever listens, if somebody still does.
#[derive(Clone)]
pub(super) struct Reporter(pub(super) mpsc::Sender<PullProgress>);

impl Reporter {
    /// Says something that must not be missed.
    pub(super) async fn say(&self, id: &str, status: impl Into<String>) {
        let id = (!id.is_empty()).then(|| id.to_owned());
        let line = PullProgress {
            id,
            status: status.into(),
            current: 0,
            total: 0,
        };
        // A listener that went away is no reason to stop.
        let _ = self.0.send(line).await;
    }

    /// Says how far a transfer is, unless the listener is busy.
    pub(super) fn count(&self, id: &str, status: &str, current: u64, total: u64) {
        let _ = self.0.try_send(PullProgress {
            id: Some(id.to_owned()),
            status: status.to_owned(),
            current,
            total,
        });
    }
}

/// A layer to bring.
struct Wanted {
    blob: Descriptor,
    diff_id: Digest,
    chain: Digest,
}

impl Wanted {
    fn arrival(&self, keep_blob: bool, unpack: bool) -> Arrival {
        Arrival {
            blob: Some((self.blob.digest.clone(), self.blob.size)),
            diff_id: Some(self.diff_id.clone()),
            keep_blob,
            unpack,
            partial: None,
        }
    }
}

impl ImageStore {
    /// The names of all images of a repository, by the registry that has it.
    pub async fn tags_of_remote(
        &self,
        repository: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<Vec<String>, ImageError> {
        let reference = repository.parse::<Reference>()?;
        let settings = self.registries();
        let registry = Registry::connect(&reference, Access::Pull, auth, &settings).await?;
        let tags = registry.tags().await?;
        let name = reference.familiar_name();
        Ok(tags.iter().map(|tag| format!("{name}:{tag}")).collect())
    }

    /// Pulls `reference` for `platform` (the host's if `None`), telling `progress` what docker would tell.
    ///
    /// Fetches only what is missing; two pulls of one layer fetch it once. Of one that is dropped or broken off only
    /// parts of blobs stay, where the next pull goes on.
    pub async fn pull(
        &self,
        reference: &str,
        platform: Option<&str>,
        auth: Option<&RegistryAuth>,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<PulledImage, ImageError> {
        let reference = reference.parse::<Reference>()?.or_latest();
        let wanted = platform_of(platform)?;
        let report = Reporter(progress);
        let familiar = reference.familiar();
        let (registry, top) = Registry::find(&reference, auth, &self.registries()).await?;
        let selector = match reference.digest() {
            Some(_) => familiar.clone(),
            None => reference.selector(),
        };
        report
            .say(&selector, format!("Pulling from {}", reference.path()))
            .await;
        let mut names = vec![reference.at(top.digest.clone())];
        if reference.digest().is_none() {
            names.push(reference.clone());
        }

        let activity = self.inner.begin();
        let catalog = self.inner.catalog();
        let known = catalog.named_by_all(&names);
        let fits =
            known.filter(|(_, row)| choose_platform(&wanted, [&row.spec.platform]).is_some());
        let (id, newer) = match fits {
            // All of it is here, by the digest that the registry names: nothing to ask for.
            Some((id, _)) => (id.clone(), false),
            None => {
                let before = catalog.resolve(&familiar).ok();
                let strict = platform.is_some();
                let fetched = self
                    .fetch(
                        &registry,
                        &reference,
                        top.clone(),
                        (&wanted, strict),
                        names,
                        &report,
                    )
                    .await;
                if let Err(error) = &fetched
                    && error.kind() == ImageErrorKind::Invalid
                {
                    // Trying again will not help; what did arrive is of no use.
                    activity.leaves_waste();
                }
                let id = fetched?;
                let newer = before != Some(&id);
                (id, newer)
            }
        };
        report.say("", format!("Digest: {}", top.digest)).await;
        let outcome = if newer {
            "Downloaded newer image for"
        } else {
            "Image is up to date for"
        };
        report
            .say("", format!("Status: {outcome} {familiar}"))
            .await;
        Ok(PulledImage {
            id,
            digest: top.digest.to_string(),
            name: familiar,
            newer,
        })
    }

    /// Fetches what the document `top` stands for and enters it under `names`. A build for another platform than
    /// the wanted one will do where there is no choice, unless the wish is strict.
    async fn fetch(
        &self,
        registry: &Registry,
        reference: &Reference,
        top: Fetched,
        (wanted, strict): (&Platform, bool),
        names: Vec<Reference>,
        report: &Reporter,
    ) -> Result<ImageId, ImageError> {
        let image = || reference.familiar();
        let (fetched, manifest) = choose(registry, reference, top, wanted).await?;
        let config = self
            .configuration(registry, &image(), &manifest.config)
            .await?;
        let spec = ImageSpec::parse(&config).map_err(|source| ImageError::Config {
            image: image(),
            source,
        })?;
        if strict && choose_platform(wanted, [&spec.platform]).is_none() {
            return Err(ImageError::OtherPlatform {
                image: image(),
                wanted: show(wanted),
            });
        }
        if spec.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::LayerCount {
                image: image(),
                layers: manifest.layers.len(),
                listed: spec.diff_ids.len(),
            });
        }

        for layer in &manifest.layers {
            report.say(layer.digest.short(), "Pulling fs layer").await;
        }
        let chains = chain_ids(&spec.diff_ids);
        let layers = manifest.layers.iter().cloned();
        let layers: Vec<_> = layers
            .zip(spec.diff_ids)
            .zip(chains)
            .map(|((blob, diff_id), chain)| Wanted {
                blob,
                diff_id,
                chain,
            })
            .collect();
        stream::iter(layers)
            .map(|wanted| self.bring(registry, wanted, report))
            .buffer_unordered(self.registries().downloads_max.max(1))
            .try_collect::<()>()
            .await?;
        let descriptor = Descriptor::new(
            &manifest.media_type,
            fetched.digest.clone(),
            fetched.content.len() as u64,
        );
        self.blocking(move |inner| {
            let manifest_document = Some((descriptor, fetched.content.as_slice()));
            inner.install(&config, manifest.layers, manifest_document, names)
        })
        .await
    }

    async fn configuration(
        &self,
        registry: &Registry,
        image: &str,
        config: &Descriptor,
    ) -> Result<Vec<u8>, ImageError> {
        if config.size > DOCUMENT_BYTES_MAX {
            return Err(ImageError::Archive(format!(
                "configuration of {image} has {} bytes, which is too much",
                config.size
            )));
        }
        let digest = config.digest.clone();
        if let Some(content) = self
            .blocking(move |inner| inner.blobs.read(&digest, DOCUMENT_BYTES_MAX))
            .await?
        {
            return Ok(content);
        }
        let content = registry.document(&config.digest).await?;
        if content.len() as u64 != config.size {
            return Err(ImageError::Size {
                digest: config.digest.clone(),
                size: config.size,
            });
        }
        Ok(content)
    }

    /// Makes sure that blob and unpacked layer are here.
    async fn bring(
        &self,
        registry: &Registry,
        wanted: Wanted,
        report: &Reporter,
    ) -> Result<(), ImageError> {
        let id = wanted.blob.digest.short().to_owned();
        let _flight = self.inner.flights.board(&wanted.blob.digest).await;
        let has_blob = self.inner.blobs.has(&wanted.blob.digest);
        let has_layer = self.inner.layers.has(&wanted.chain);
        if has_blob && has_layer {
            report.say(&id, "Already exists").await;
            return Ok(());
        }
        if has_blob {
            let arrival = wanted.arrival(false, true);
            let Wanted { blob, chain, .. } = wanted;
            self.blocking(move |inner| {
                let source = inner.blobs.open_blob(&blob.digest)?;
                let arrived = inner.layers.receive(&inner.blobs, source, arrival)?;
                arrived.commit(&inner.blobs, &inner.layers, &chain)
            })
            .await?;
        } else {
            let goes_on = self.receive(registry, &wanted, !has_layer, report).await;
            match goes_on {
                // What an earlier pull left was not what it should be: from the start, then.
                Err((ImageError::Digest { .. } | ImageError::Size { .. }, before))
                    if before > 0 =>
                {
                    let again = self.receive(registry, &wanted, !has_layer, report).await;
                    again.map_err(|(error, _)| error)?;
                }
                done => done.map_err(|(error, _)| error)?,
            }
        }
        report.say(&id, "Pull complete").await;
        Ok(())
    }

    /// Downloads a layer, going on where an earlier pull ended, and unpacks it on the way. An error comes with the
    /// number of bytes that were there before.
    async fn receive(
        &self,
        registry: &Registry,
        wanted: &Wanted,
        unpack: bool,
        report: &Reporter,
    ) -> Result<(), (ImageError, u64)> {
        let mut arrival = wanted.arrival(true, unpack);
        let (digest, size) = (wanted.blob.digest.clone(), wanted.blob.size);
        let partial = self.blocking(move |inner| inner.blobs.partial(&digest, size));
        let partial = partial.await.map_err(|error| (error, 0))?;
        let before = partial.before();
        arrival.partial = Some(partial);
        let (feed, source) = feed();
        let chain = wanted.chain.clone();
        let unpacking = self.blocking(move |inner| {
            let arrived = inner.layers.receive(&inner.blobs, source, arrival)?;
            arrived.commit(&inner.blobs, &inner.layers, &chain)
        });
        let fetching = download(registry, &wanted.blob, before, feed, report);
        let (fed, unpacked) = tokio::join!(fetching, unpacking);
        // A transfer that failed interrupts the unpacking: its own reason is the better one.
        fed.and(unpacked.map(drop)).map_err(|error| (error, before))
    }
}

/// Feeds a blob from byte `from` on to its reader; goes on where a connection broke.
async fn download(
    registry: &Registry,
    blob: &Descriptor,
    from: u64,
    feed: Feed,
    report: &Reporter,
) -> Result<(), ImageError> {
    let id = blob.digest.short();
    let (mut done, mut reported, mut breaks) = (from, from, 0);
    while done < blob.size {
        let (mut response, start) = registry.blob(&blob.digest, done).await?;
        let mut skip = done - start;
        let before = done;
        let broken = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(error) => break Some(error),
            };
            let drop = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            skip -= drop as u64;
            let chunk = chunk.slice(drop..);
            done += chunk.len() as u64;
            if feed.push(chunk).await.is_err() {
                return Ok(());
            }
            if done - reported >= REPORT_BYTES {
                reported = done;
                report.count(id, "Downloading", done, blob.size);
            }
        };
        let Some(error) = broken else { break };
        breaks = if done > before { 0 } else { breaks + 1 };
        if breaks >= BREAKS_MAX {
            let url = response.url().to_string();
            return Err(ImageError::Registry {
                method: "Get".to_owned(),
                url,
                reason: error.to_string(),
            });
        }
        tracing::debug!(blob = %blob.digest, done, %error, "transfer broke, going on");
    }
    report.say(id, "Download complete").await;
    // Whether what came is what was announced, the reader says.
    let _ = feed.end().await;
    Ok(())
}

/// Finds the manifest for a platform, through an index if there is one.
async fn choose(
    registry: &Registry,
    reference: &Reference,
    top: Fetched,
    wanted: &Platform,
) -> Result<(Fetched, Manifest), ImageError> {
    let parse = |content: &[u8]| {
        parse_document(content).map_err(|source| ImageError::Manifest {
            image: reference.familiar(),
            source,
        })
    };
    let builds = match parse(&top.content)? {
        Document::Manifest(manifest) => return Ok((top, manifest)),
        Document::Index { builds, .. } => builds,
    };
    let builds: Vec<_> = builds
        .iter()
        .filter_map(|build| Some((build, build.platform.as_ref()?)))
        .collect();
    let chosen = choose_platform(wanted, builds.iter().map(|(_, platform)| *platform))
        .ok_or_else(|| ImageError::NoPlatform(show(wanted)))?;
    let fetched = registry
        .manifest(&builds[chosen].0.digest.to_string())
        .await?;
    match parse(&fetched.content)? {
        Document::Manifest(manifest) => Ok((fetched, manifest)),
        // An index in an index would let a registry lead us on without end.
        Document::Index { .. } => Err(ImageError::Manifest {
            image: reference.familiar(),
            source: InvalidManifest::Empty,
        }),
    }
}

/// What a name in a registry stands for, and for which platforms.
pub(super) async fn distribution(
    reference: &str,
    auth: Option<&RegistryAuth>,
    settings: &Registries,
) -> Result<Distribution, ImageError> {
    let reference = reference.parse::<Reference>()?.or_latest();
    let (registry, top) = Registry::find(&reference, auth, settings).await?;
    let image = || reference.familiar();
    let document = parse_document(&top.content).map_err(|source| ImageError::Manifest {
        image: image(),
        source,
    })?;
    let (media_type, platforms) = match document {
        Document::Index { media_type, builds } => (
            media_type,
            builds
                .into_iter()
                .filter_map(|build| build.platform)
                .collect(),
        ),
        Document::Manifest(manifest) => {
            let config = registry.document(&manifest.config.digest).await?;
            let spec = ImageSpec::parse(&config).map_err(|source| ImageError::Config {
                image: image(),
                source,
            })?;
            (manifest.media_type, vec![spec.platform])
        }
    };
    Ok(Distribution {
        media_type,
        digest: top.digest.to_string(),
        size: top.content.len() as u64,
        platforms,
    })
}

fn platform_of(text: Option<&str>) -> Result<Platform, ImageError> {
    match text {
        Some(text) if !text.is_empty() => {
            parse_platform(text).ok_or_else(|| ImageError::PlatformText(text.to_owned()))
        }
        _ => Ok(host_platform()),
    }
}

fn show(platform: &Platform) -> String {
    let variant = if platform.variant.is_empty() {
        String::new()
    } else {
        format!("/{}", platform.variant)
    };
    format!("{}/{}{variant}", platform.os, platform.architecture)
}
