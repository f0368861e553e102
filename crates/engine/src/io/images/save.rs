//! Writes images as an archive that `docker load`, and every reader of OCI layouts, understands.

use std::io::{self, Write};

use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use super::{ImageError, ImageStore, store::Inner};
use crate::core::images::{
    ArchiveItem, Descriptor, Digest, ImageRow, OCI_LAYOUT, Reference, docker_manifest, oci_index,
};

impl ImageStore {
    /// Writes the named images, with all that `docker save` writes. Fails before the first byte if a name is unknown.
    pub async fn save(
        &self,
        names: &[String],
        archive: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), ImageError> {
        let activity = self.inner.begin();
        let catalog = self.inner.catalog();
        // Images in the order of their first mention, each with the names it was asked for by.
        let mut images: Vec<(Digest, ImageRow, Vec<Reference>)> = Vec::new();
        for name in names {
            let id = catalog.resolve(name)?;
            let digest = Digest::from(id);
            let row = catalog.get(id).expect("resolved ids exist");
            let reference = name.parse::<Reference>().ok().map(Reference::or_latest);
            // A name given by a part of the id, or by digest, is not carried on; a tag is.
            let tag = reference.filter(|reference| {
                reference.digest().is_none() && catalog.names(id).0.contains(reference)
            });
            match images.iter_mut().find(|(known, _, _)| *known == digest) {
                Some((_, _, tags)) => tags.extend(tag),
                None => images.push((digest, row.clone(), tag.into_iter().collect())),
            }
        }
        self.blocking(move |inner| {
            let _activity = activity;
            let mut bridge = SyncIoBridge::new(archive);
            write_archive(inner, &images, &mut bridge)?;
            bridge
                .shutdown()
                .map_err(ImageError::doing("finish the archive"))
        })
        .await
    }
}

fn write_archive(
    inner: &Inner,
    images: &[(Digest, ImageRow, Vec<Reference>)],
    out: &mut impl Write,
) -> Result<(), ImageError> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(128 << 10, out));
    let failed = ImageError::doing("write the archive");
    let mut written = std::collections::BTreeSet::new();
    let mut items = Vec::new();
    let mut manifests: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
    for (config, row, names) in images {
        let blobs = row
            .layers
            .iter()
            .map(|layer| (&layer.blob.digest, layer.blob.size));
        let documents = [
            (config, row.config_size),
            (&row.manifest.digest, row.manifest.size),
        ];
        for (digest, size) in blobs.chain(documents) {
            if written.insert(digest.clone()) {
                let file = inner.blobs.open_blob(digest)?;
                append(&mut archive, &digest.archive_path(), size, file)
                    .map_err(ImageError::doing("write the archive"))?;
            }
        }
        let layers = row
            .layers
            .iter()
            .map(|layer| layer.blob.digest.archive_path())
            .collect();
        items.push(ArchiveItem::new(config.archive_path(), layers, names));
        manifests.push((row.manifest.clone(), names.clone()));
    }
    let (list, index) = (docker_manifest(&items), oci_index(&manifests));
    let tops: [(&str, &[u8]); 3] = [
        ("index.json", &index),
        ("manifest.json", &list),
        ("oci-layout", OCI_LAYOUT.as_bytes()),
    ];
    let mut finish = || -> io::Result<()> {
        for (name, content) in tops {
            append(&mut archive, name, content.len() as u64, content)?;
        }
        archive.finish()?;
        archive.get_mut().flush()
    };
    finish().map_err(failed)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    size: u64,
    content: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append(&header, content)
}
