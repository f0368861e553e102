//! The two layouts of image archives: docker's `manifest.json`, and OCI's `index.json`.

use serde::{Deserialize, Serialize};

use super::{Descriptor, Digest, MediaType, Reference, manifest::null_is_default};

/// Content of the file `oci-layout`.
pub const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// containerd's annotation for a full name, and OCI's, which may hold only a tag.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// One image in an archive of docker's layout; paths are those of archive entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ArchiveItem {
    pub config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// Lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<String>,
}

/// Which layout an archive has, by the files found at its top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveLayout {
    Docker,
    Oci,
}

impl ArchiveLayout {
    /// Archives of newer dockers are both at once; docker's own list wins, as it has the names.
    pub fn of(has_manifest: bool, has_index: bool) -> Option<Self> {
        match (has_manifest, has_index) {
            (true, _) => Some(Self::Docker),
            (false, true) => Some(Self::Oci),
            (false, false) => None,
        }
    }
}

impl ArchiveItem {
    /// The image at `config` with its layers and names.
    pub fn new(config: String, layers: Vec<String>, names: &[Reference]) -> Self {
        Self {
            config,
            repo_tags: (!names.is_empty()).then(|| names.iter().map(Reference::familiar).collect()),
            layers,
        }
    }

    /// The names the image had where it was saved.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

/// Writes `manifest.json`.
pub fn docker_manifest(items: &[ArchiveItem]) -> Vec<u8> {
    serde_json::to_vec(items).expect("an archive item has only string keys")
}

/// Writes `index.json` for manifests with their names.
pub fn oci_index(manifests: &[(Descriptor, Vec<Reference>)]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (descriptor, names) in manifests {
        if names.is_empty() {
            entries.push(descriptor.clone());
        }
        for name in names {
            let mut entry = descriptor.clone();
            entry
                .annotations
                .insert(NAME_ANNOTATIONS[0].to_owned(), name.to_string());
            if let Some(tag) = name.tag() {
                entry
                    .annotations
                    .insert(NAME_ANNOTATIONS[1].to_owned(), tag.to_owned());
            }
            entries.push(entry);
        }
    }
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": entries,
    }))
    .expect("an index has only string keys")
}

impl Descriptor {
    /// The image's name, if an entry of an archive's index carries a whole one.
    pub fn archive_name(&self) -> Option<Reference> {
        let full = |key: &str| -> Option<Reference> {
            let text = self.annotations.get(key)?;
            let name: Reference = text.parse().ok()?;
            // `1.0` alone is a tag, not a repository.
            (text.contains([':', '/'])).then_some(name)
        };
        full(NAME_ANNOTATIONS[0]).or_else(|| full(NAME_ANNOTATIONS[1]))
    }
}

impl Digest {
    /// Where a blob lies in an archive of OCI's layout.
    pub fn archive_path(&self) -> String {
        format!("blobs/sha256/{}", self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_any_docker_is_read() {
        let old = r#"[{"Config":"ab.json","RepoTags":null,"Layers":["x/layer.tar"],"Parent":"sha256:0"}]"#;
        let items: Vec<ArchiveItem> = serde_json::from_str(old).unwrap();
        assert_eq!((items[0].names().count(), items[0].layers.len()), (0, 1));
        let none: Vec<ArchiveItem> =
            serde_json::from_str(r#"[{"Config":"c","RepoTags":["a:1"],"Layers":null}]"#).unwrap();
        assert_eq!(none[0].names().collect::<Vec<_>>(), ["a:1"]);
    }

    #[test]
    fn an_index_carries_each_name() {
        let name: Reference = "busybox:1".parse().unwrap();
        let descriptor = Descriptor::new(MediaType::OCI_MANIFEST, Digest::of(b"m"), 1);
        let index = oci_index(&[(descriptor, vec![name.clone()])]);
        let Ok(super::super::Document::Index { builds, .. }) = super::super::parse_document(&index)
        else {
            panic!("not an index")
        };
        assert_eq!(builds[0].archive_name(), Some(name));
        let mut bare = Descriptor::new("", Digest::of(b"m"), 1);
        bare.annotations
            .insert(NAME_ANNOTATIONS[1].to_owned(), "latest".to_owned());
        assert_eq!(bare.archive_name(), None);
    }
}
