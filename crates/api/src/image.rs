//! Images as the engine sees them: what one is made of, and what can be said about it.
//!
//! The meaning of every field is that of the Docker Engine API (v1.51) and of the OCI image specification unless its
//! comment says otherwise; the shapes are our own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{Timestamp, container::HealthCheck};

/// The identity of an image: the SHA-256 of its configuration, 64 lower-case hexadecimal digits.
///
/// Prints as `sha256:…`, and reads both that and the bare digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

/// The text is not an image id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an image id: {0:?}")]
pub struct InvalidImageId(pub String);

impl ImageId {
    /// The 64 digits, without the name of the algorithm.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as shown in lists.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for ImageId {
    type Err = InvalidImageId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(Self(hex.to_owned()))
        } else {
            Err(InvalidImageId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ImageId {
    type Error = InvalidImageId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// How a container of this image runs unless its own spec says otherwise.
///
/// A closed set of fields: what an image says beyond them reaches nobody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `KEY=value`, in the image's order.
    pub env: Vec<String>,
    /// `None` and empty mean the same for a container; they are kept apart because `docker inspect` shows the difference.
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// `name`, `uid`, `name:group`, `uid:gid`; numbers fit 32 bits. Empty means root.
    pub user: String,
    /// Absolute, or empty for `/`.
    pub working_dir: String,
    /// `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Absolute paths in the container.
    pub volumes: BTreeSet<String>,
    pub labels: BTreeMap<String, String>,
    /// Name or number; `None` means `SIGTERM`.
    pub stop_signal: Option<String>,
    pub healthcheck: Option<HealthCheck>,
    /// The shell of `RUN` in its shell form; of interest to builders only.
    pub shell: Option<Vec<String>>,
    pub on_build: Vec<String>,
}

/// One row of `docker images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    pub id: ImageId,
    /// Familiar names, `busybox:latest`.
    pub repo_tags: Vec<String>,
    /// `busybox@sha256:…`
    pub repo_digests: Vec<String>,
    pub created: Timestamp,
    /// Bytes of all layers, unpacked.
    pub size: u64,
    pub labels: BTreeMap<String, String>,
    /// What it was built of on this host; absent for images that came from elsewhere.
    #[serde(default)]
    pub parent: Option<ImageId>,
    /// Others were built of it. Without a name it is a step of a build, which lists leave out.
    #[serde(default)]
    pub intermediate: bool,
}

/// Everything `docker image inspect` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageInspect {
    pub id: ImageId,
    /// What it was built of on this host.
    #[serde(default)]
    pub parent: Option<ImageId>,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub comment: String,
    pub author: String,
    /// When it was built; `ZERO` where the image does not say.
    pub created: Timestamp,
    pub config: ImageConfig,
    pub architecture: String,
    pub variant: String,
    pub os: String,
    /// Bytes of all layers, unpacked.
    pub size: u64,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
    /// Unpacked layers on this host, lowest first.
    pub layer_dirs: Vec<String>,
    /// When a name was last given to it on this host.
    pub last_tagged: Timestamp,
}

/// One row of `docker history`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHistory {
    /// Rows of steps that were made here carry the id of their image; the others print as `<missing>`.
    pub id: Option<ImageId>,
    pub created: Timestamp,
    pub created_by: String,
    pub comment: String,
    /// Bytes, unpacked; 0 for steps that made no layer.
    pub size: u64,
    pub tags: Vec<String>,
}

/// Credentials for one registry, as sent in `X-Registry-Auth`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// An OAuth refresh token, used instead of name and password when not empty.
    #[serde(rename = "identitytoken")]
    pub identity_token: String,
    /// A bearer token sent as it is when not empty.
    #[serde(rename = "registrytoken")]
    pub registry_token: String,
    #[serde(rename = "serveraddress")]
    pub server_address: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets do not belong in logs.
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// One line of progress of a pull, push or load, in docker's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Twelve digits of the layer's digest, the tag, or nothing for a line about the whole.
    pub id: Option<String>,
    /// `Downloading`, `Pull complete`, …
    pub status: String,
    /// Bytes done, and bytes in all; 0 where unknown.
    pub current: u64,
    pub total: u64,
}

/// What removing an image did, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRemoved {
    /// A name that is gone.
    Untagged(String),
    /// An image or a layer that is gone, as `sha256:…`.
    Deleted(String),
}

/// A container that stands on an image, as removal has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    pub image: ImageId,
    /// The container's id.
    pub container: String,
    pub running: bool,
}

/// Operating system and processor an image is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// In Go's words: `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// `v7`, `v8`; empty where there is only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// What a registry says about a name, for `GET /distribution/{name}/json` and for pinning a service's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    pub media_type: String,
    /// Of the manifest or index the name stands for, `sha256:…`.
    pub digest: String,
    /// Bytes of that manifest or index.
    pub size: u64,
    pub platforms: Vec<Platform>,
}
