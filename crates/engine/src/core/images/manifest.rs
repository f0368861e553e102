//! Manifests and indexes, of Docker's schema 2 and of OCI.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_api::image::Platform;

use super::Digest;

/// Media types that concern us. Layers are recognised by their first bytes, not by their type.
pub struct MediaType;

impl MediaType {
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Everything a registry may answer with when asked for a manifest.
    pub const ACCEPTED: [&str; 4] = [
        Self::OCI_INDEX,
        Self::DOCKER_LIST,
        Self::OCI_MANIFEST,
        Self::DOCKER_MANIFEST,
    ];
}

/// overlayfs stacks at most 500 layers (`OVL_MAX_STACK`), and the container's own comes on top.
const LAYERS_MAX: usize = 499;
const BUILDS_MAX: usize = 1000;

/// A pointer to content: its type, digest and exact size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    urls: Vec<String>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A plain pointer, without annotations or platform.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// Go writes `null` for empty lists and maps.
pub(super) fn null_is_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// One build of an image: its configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// What a name in a registry stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    /// Several builds; those without a platform carry no image (attestations and the like).
    Index {
        media_type: String,
        builds: Vec<Descriptor>,
    },
}

/// The document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    #[error("manifest is not readable JSON")]
    Json(#[source] serde_json::Error),
    #[error("manifest has schema version {0}, only 2 is supported")]
    Schema(u64),
    #[error("manifest is both an image and an index")]
    Ambiguous,
    #[error("manifest has neither layers nor builds")]
    Empty,
    #[error("manifest has {0} entries, more than the {1} allowed")]
    TooMany(usize, usize),
    #[error("manifest is not that of a container image (configuration of type {0:?})")]
    NotAnImage(String),
    #[error("layer {0} lives outside the registry, which is not supported")]
    Foreign(Digest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Parses a manifest or an index.
pub fn parse_document(bytes: &[u8]) -> Result<Document, InvalidManifest> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u64,
    }
    // Schema 1 has other shapes for the same keys; its version is the better complaint.
    let Version { schema_version } =
        serde_json::from_slice(bytes).map_err(InvalidManifest::Json)?;
    if schema_version != 2 {
        return Err(InvalidManifest::Schema(schema_version));
    }
    let wire: Wire = serde_json::from_slice(bytes).map_err(InvalidManifest::Json)?;
    debug_assert_eq!(wire.schema_version, 2);
    let media_type = wire.media_type;
    match (wire.config, wire.layers, wire.manifests) {
        (None, None, Some(builds)) => {
            limit(builds.len(), BUILDS_MAX)?;
            let media_type = media_type.unwrap_or_else(|| MediaType::OCI_INDEX.to_owned());
            Ok(Document::Index { media_type, builds })
        }
        (Some(config), Some(layers), None) => {
            limit(layers.len(), LAYERS_MAX)?;
            if !config.media_type.contains("image") {
                return Err(InvalidManifest::NotAnImage(config.media_type));
            }
            if let Some(layer) = layers.iter().find(|layer| is_foreign(layer)) {
                return Err(InvalidManifest::Foreign(layer.digest.clone()));
            }
            let media_type = media_type.unwrap_or_else(|| MediaType::OCI_MANIFEST.to_owned());
            Ok(Document::Manifest(Manifest {
                media_type,
                config,
                layers,
            }))
        }
        // A document that two readers understand in two ways is an attack (CVE-2021-41190).
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => Err(InvalidManifest::Ambiguous),
        _ => Err(InvalidManifest::Empty),
    }
}

fn limit(found: usize, max: usize) -> Result<(), InvalidManifest> {
    if found > max {
        return Err(InvalidManifest::TooMany(found, max));
    }
    Ok(())
}

fn is_foreign(layer: &Descriptor) -> bool {
    !layer.urls.is_empty() || layer.media_type.contains("foreign")
}

/// Writes an OCI manifest for an image that came without one.
pub fn render_manifest(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": config,
        "layers": layers,
    }))
    .expect("a manifest has only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document, String> {
        let zero = format!("sha256:{}", "0".repeat(64));
        let config = format!(
            r#""config":{{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"{zero}"}}"#
        );
        let text = text.replace("CONFIG", &config).replace("ZERO", &zero);
        parse_document(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_manifest_survives_the_trip() {
        let config = Descriptor::new(MediaType::OCI_CONFIG, Digest::of(b"c"), 1);
        let layer = Descriptor::new(MediaType::OCI_LAYER_GZIP, Digest::of(b"l"), 2);
        let bytes = render_manifest(&config, std::slice::from_ref(&layer));
        let Ok(Document::Manifest(manifest)) = parse_document(&bytes) else {
            panic!("not a manifest")
        };
        assert_eq!((manifest.config, manifest.layers), (config, vec![layer]));
    }

    #[test]
    fn documents_of_other_kinds_are_refused() {
        let refused = |text: &str| parse(text).unwrap_err();
        assert_eq!(refused("<html>"), "manifest is not readable JSON");
        assert_eq!(
            refused(r#"{"schemaVersion":1,"fsLayers":[]}"#),
            "manifest has schema version 1, only 2 is supported"
        );
        assert_eq!(
            refused(r#"{"schemaVersion":2}"#),
            "manifest has neither layers nor builds"
        );
        assert_eq!(
            refused(r#"{"schemaVersion":2,CONFIG,"layers":[],"manifests":[]}"#),
            "manifest is both an image and an index"
        );
        assert!(refused(r#"{"schemaVersion":2,CONFIG,"layers":[{"urls":["http://x"],"size":1,"digest":"ZERO"}]}"#).contains("outside the registry"));
        assert_eq!(
            refused(r#"{"schemaVersion":2,CONFIG,"layers":[{"size":-1,"digest":"ZERO"}]}"#),
            "manifest is not readable JSON"
        );
        let many = format!(
            r#"{{"schemaVersion":2,CONFIG,"layers":[{}]}}"#,
            vec![r#"{"size":1,"digest":"ZERO"}"#; 500].join(",")
        );
        assert!(refused(&many).contains("500 entries"));
    }

    #[test]
    fn an_index_lists_builds_with_their_platforms() {
        let index = parse(
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","size":3,"digest":"ZERO",
                "platform":{"os":"linux","architecture":"arm","variant":"v7","os.version":"x"}}]}"#,
        );
        let Ok(Document::Index { builds, .. }) = index else {
            panic!("not an index: {index:?}")
        };
        assert_eq!(builds[0].platform.as_ref().unwrap().variant, "v7");
    }
}
