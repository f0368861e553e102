//! Sends an image to a registry.

use futures_util::{StreamExt, TryStreamExt, stream};
use shoal_api::{
    Timestamp,
    image::{PullProgress, RegistryAuth},
};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::{
    ImageError, ImageStore,
    pull::Reporter,
    registry::{Access, Registry},
    store::DOCUMENT_BYTES_MAX,
};
use crate::core::images::{CatalogError, Digest, Reference};

const CHUNK_BYTES: usize = 64 << 10;

/// What a push left in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    pub tag: String,
    /// Of the manifest, `sha256:…`.
    pub digest: String,
    /// Bytes of the manifest.
    pub size: u64,
}

impl ImageStore {
    /// Pushes the image named `reference` to the registry in that name. Sends only what is missing there.
    pub async fn push(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<PushedImage, ImageError> {
        let reference = reference.parse::<Reference>()?.or_latest();
        let Some(tag) = reference.tag().map(str::to_owned) else {
            return Err(ImageError::Archive(
                "cannot push a digest reference".to_owned(),
            ));
        };
        let _activity = self.inner.begin();
        let catalog = self.inner.catalog();
        let absent = || {
            ImageError::NotFound(format!(
                "An image does not exist locally with the tag: {}",
                reference.familiar_name()
            ))
        };
        let id = match catalog.resolve(&reference.familiar()) {
            Err(CatalogError::NotFound(_)) => return Err(absent()),
            id => id?.clone(),
        };
        let row = catalog.get(&id).ok_or_else(absent)?.clone();
        let report = Reporter(progress);
        report
            .say(
                "",
                format!(
                    "The push refers to repository [{}]",
                    reference.familiar_name()
                ),
            )
            .await;
        let registry =
            Registry::connect(&reference, Access::PullPush, auth, &self.registries()).await?;

        for layer in &row.layers {
            report.say(layer.diff_id.short(), "Preparing").await;
        }
        let layers: Vec<_> = row
            .layers
            .iter()
            .map(|layer| {
                (
                    layer.blob.digest.clone(),
                    layer.blob.size,
                    layer.diff_id.short().to_owned(),
                )
            })
            .collect();
        stream::iter(layers)
            .map(|(digest, size, shown)| self.send_blob(&registry, digest, size, shown, &report))
            .buffer_unordered(self.registries().uploads_max.max(1))
            .try_collect::<()>()
            .await?;
        self.send_blob(
            &registry,
            Digest::from(&id),
            row.config_size,
            String::new(),
            &report,
        )
        .await?;

        let digest = row.manifest.digest.clone();
        let manifest = self
            .blocking(move |inner| inner.blobs.read(&digest, DOCUMENT_BYTES_MAX))
            .await?
            .ok_or(ImageError::Interrupted("the push"))?;
        registry
            .put_manifest(&tag, &row.manifest.media_type, &manifest)
            .await?;
        let pushed = PushedImage {
            tag,
            digest: row.manifest.digest.to_string(),
            size: manifest.len() as u64,
        };
        let canonical = reference.at(row.manifest.digest);
        self.blocking(move |inner| {
            inner.change(|catalog| {
                catalog.name(canonical, &id, Timestamp::now());
                Ok(())
            })
        })
        .await?;
        report
            .say(
                "",
                format!(
                    "{}: digest: {} size: {}",
                    pushed.tag, pushed.digest, pushed.size
                ),
            )
            .await;
        Ok(pushed)
    }

    async fn send_blob(
        &self,
        registry: &Registry,
        digest: Digest,
        size: u64,
        shown: String,
        report: &Reporter,
    ) -> Result<(), ImageError> {
        let outcome = if registry.has_blob(&digest).await? {
            "Layer already exists"
        } else {
            let path = self.inner.blobs.path(&digest);
            let file = tokio::fs::File::open(&path)
                .await
                .map_err(ImageError::io("open", &path))?;
            let (report, id) = (report.clone(), shown.clone());
            let mut sent = 0;
            let body = ReaderStream::with_capacity(file, CHUNK_BYTES).inspect_ok(move |chunk| {
                sent += chunk.len() as u64;
                if !id.is_empty() {
                    report.count(&id, "Pushing", sent, size);
                }
            });
            registry
                .upload(&digest, size, reqwest::Body::wrap_stream(body))
                .await?;
            "Pushed"
        };
        if !shown.is_empty() {
            report.say(&shown, outcome).await;
        }
        Ok(())
    }
}
