//! How registries are spoken to.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use super::{ImageStore, registry::covers};

/// Settings about registries, from the daemon's configuration; may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    /// `host:port` or networks as `10.0.0.0/8`: registries that may have any certificate or speak plain http, besides
    /// those on loopback.
    pub insecure: Vec<String>,
    /// `https://host[:port]`: asked in this order before docker's own registry.
    pub mirrors: Vec<String>,
    /// Below it a directory `host:port` per registry, with authorities in `*.crt` and our certificates and keys in
    /// `*.cert` and `*.key`.
    pub certs_dir: PathBuf,
    /// Layers of one image brought at the same time.
    pub downloads_max: usize,
    /// Layers of one image sent at the same time.
    pub uploads_max: usize,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: Vec::new(),
            // Where docker has them, so that a host set up for it works for us.
            certs_dir: PathBuf::from("/etc/docker/certs.d"),
            downloads_max: 4,
            uploads_max: 5,
        }
    }
}

impl Registries {
    /// Whether a registry may have any certificate, or none.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|entry| covers(entry, host))
    }
}

impl ImageStore {
    /// Changes how registries are spoken to, from the next request on.
    pub fn set_registries(&self, registries: Registries) {
        *self
            .inner
            .registries
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(registries);
    }

    /// How registries are spoken to now.
    pub fn registries(&self) -> Arc<Registries> {
        let registries = self
            .inner
            .registries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&registries)
    }
}
