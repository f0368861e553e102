//! Volumes with options, mounted while containers use them.

use super::record::Record;
use super::{Engine, EngineError};

impl Engine {
    /// Mounts what the container's volumes ask for. Blocks.
    pub(super) fn mount_volumes(&self, record: &Record) -> Result<(), EngineError> {
        for name in volumes_of(record) {
            self.inner.volumes.begin_use(name, &record.id)?;
        }
        Ok(())
    }

    /// Unmounts what no other container uses.
    pub(super) fn release_volumes(&self, record: &Record) {
        for name in volumes_of(record) {
            if let Err(error) = self.inner.volumes.end_use(name, &record.id) {
                tracing::warn!(
                    volume = name,
                    error = error.report(),
                    "cannot unmount a volume"
                );
            }
        }
    }

    /// Knows the users of volumes again after a start of the daemon, and unmounts what has none.
    pub(super) fn recall_volumes(&self) {
        for entry in self.entries() {
            let record = entry.record();
            if record.state.status.is_up() {
                for name in volumes_of(&record) {
                    self.inner.volumes.note_use(name, &record.id);
                }
            }
        }
        if let Err(error) = self.inner.volumes.unmount_unused() {
            tracing::warn!(error = error.report(), "cannot unmount a volume");
        }
    }
}

fn volumes_of(record: &Record) -> impl Iterator<Item = &str> {
    let volumes = record.mounts.iter().filter(|mount| mount.kind == "volume");
    volumes.map(|mount| mount.name.as_str())
}
