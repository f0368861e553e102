//! What users ask of the builder, and of `commit` and `import`.

use std::collections::BTreeMap;

use crate::{
    container::{NetworkMode, Resources, Ulimit},
    image::{ImageId, Platform, PullProgress, RegistryAuth},
};

/// `docker build`, beside the context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BuildOptions {
    /// Path in the context; empty is `Dockerfile`.
    pub dockerfile: String,
    /// Where the context is to be fetched from, instead of what was sent; empty is nowhere.
    pub remote: String,
    /// Names for the image.
    pub tags: Vec<String>,
    /// Tell the id and nothing else.
    pub quiet: bool,
    pub no_cache: bool,
    /// Ask registries for base images even if they are here.
    pub pull: bool,
    /// Leave the containers of steps that succeeded.
    pub keep_containers: bool,
    /// Remove the containers of steps that failed, too.
    pub remove_failed: bool,
    /// `--build-arg`; one without a value is one that the client's environment lacks.
    pub args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    /// Images whose layers may be used as if they had been built here.
    pub cache_from: Vec<String>,
    /// Stage to stop after; empty is the last.
    pub target: String,
    pub network: NetworkMode,
    pub extra_hosts: Vec<String>,
    pub resources: Resources,
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: Option<String>,
    pub security_opt: Vec<String>,
    pub platform: Option<Platform>,
    /// Credentials by registry, as in docker's `config.json`.
    pub auths: BTreeMap<String, RegistryAuth>,
}

/// What a build tells while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// A piece of its log.
    Text(String),
    /// A base image on its way.
    Pull(PullProgress),
    /// A stage is finished.
    Image(ImageId),
}

/// `docker commit`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommitOptions {
    /// `name[:tag]`; empty gives it none.
    pub name: String,
    pub author: String,
    pub comment: String,
    /// Stop all processes while files are read.
    pub pause: bool,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
}

/// `docker import`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportOptions {
    /// URL of the archive; empty is what was sent.
    pub source: String,
    /// `name[:tag]`; empty gives it none.
    pub name: String,
    pub comment: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    pub platform: Option<Platform>,
}

/// One repository that a search of a registry found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchResult {
    pub name: String,
    pub description: String,
    pub stars: i64,
    pub official: bool,
    pub automated: bool,
}
