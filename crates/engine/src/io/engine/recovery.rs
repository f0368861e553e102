//! What an earlier daemon began and did not end: undone, unless somebody was told of it.

use std::path::Path;
use std::sync::Arc;

use shoal_api::container::ContainerStatus;
use tokio::io::AsyncWriteExt;

use super::record::Entry;
use super::run::first_state;
use super::{Engine, EngineError};
use crate::io::shim_client::{ShimEvent, ShimHandle};
use crate::shim::protocol::{Reply, Request, SOCKET_NAME};

/// Names the volumes that go with a container's directory when it is found in the trash.
const VOLUMES_NAME: &str = "volumes.json";
const SIGKILL: i32 = 9;

impl Engine {
    /// Writes down, before they are made, the volumes that shall not outlive a creation that is cut short.
    pub(super) fn note_volumes(&self, dir: &Path, names: &[String]) -> Result<(), EngineError> {
        if names.is_empty() {
            return Ok(());
        }
        let path = dir.join(VOLUMES_NAME);
        let json = serde_json::to_vec(names).expect("names are JSON");
        std::fs::write(&path, json).map_err(EngineError::io("write", path))
    }

    /// Lets a container's volumes stay when it goes.
    pub(super) fn keep_volumes(&self, dir: &Path) -> Result<(), EngineError> {
        let path = dir.join(VOLUMES_NAME);
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(EngineError::io("remove", path)(err))
            }
            _ => Ok(()),
        }
    }

    /// Removes the volumes that were to go with this directory, but for those that others came to use.
    pub(super) fn remove_noted_volumes(&self, dir: &Path) {
        let json = std::fs::read(dir.join(VOLUMES_NAME)).unwrap_or_default();
        let names: Vec<String> = serde_json::from_slice(&json).unwrap_or_default();
        for name in names {
            match self.volume_remove(&name, true) {
                Ok(()) | Err(EngineError::VolumeInUse { .. }) => {}
                Err(error) => tracing::warn!(
                    volume = name,
                    error = error.report(),
                    "cannot remove an anonymous volume"
                ),
            }
        }
    }

    /// Removes what an earlier daemon had no time for.
    pub(super) fn empty_trash(&self) {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(engine.trash_dir());
            for entry in entries.into_iter().flatten().flatten() {
                engine.remove_noted_volumes(&entry.path());
                if let Err(err) = std::fs::remove_dir_all(entry.path()) {
                    tracing::warn!(path = %entry.path().display(), error = %err, "cannot empty the trash");
                }
            }
        });
    }

    /// Ends containers that an earlier daemon had started without writing it down: whoever asked for the start was not
    /// told that it came about.
    pub(super) async fn undo_starts(&self) {
        for entry in self.entries() {
            let record = entry.record();
            if record.state.status.is_up() {
                continue;
            }
            if entry.run_dir.join(SOCKET_NAME).exists() {
                self.undo_start(&entry).await;
            }
            // Whatever of its network was made before the last daemon died: nobody else would ever take it back.
            self.release_network(&entry, &record).await;
        }
    }

    async fn undo_start(&self, entry: &Arc<Entry>) {
        // The socket of a shim that has ended answers nobody.
        let Ok((mut stream, Reply::State { pid, exit, .. })) = first_state(entry).await else {
            return;
        };
        if exit.is_some() {
            return;
        }
        tracing::info!(container.id = %entry.id, "ending a container whose start was cut short");
        if pid == 0 {
            // It still builds, and may not have noticed yet that the last daemon is gone: as long as we are connected it
            // waits for our word. What it has built is gone when it closes its end.
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            return;
        }
        let (shim, mut events) = ShimHandle::new(stream);
        let group = self.group_of(&entry.record());
        let _ = self.inner.cgroups.freeze(&group, false);
        let kill = Request::Kill {
            exec: None,
            signal: SIGKILL,
        };
        if shim.ask(kill).await.is_err() {
            return;
        }
        while let Some(event) = events.recv().await {
            if matches!(
                event,
                ShimEvent::Exited { exec: None, .. } | ShimEvent::Gone
            ) {
                break;
            }
        }
    }
}

/// A container that is frozen for as long as this lives. Nothing of it is written down, so that a daemon which dies
/// meanwhile leaves a container that the next one lets go on.
pub(super) struct Held {
    engine: Engine,
    entry: Arc<Entry>,
}

impl Engine {
    /// Freezes a container that runs; `None` if it does not, or somebody froze it.
    pub(super) async fn hold(&self, entry: &Arc<Entry>) -> Result<Option<Held>, EngineError> {
        let _op = entry.op.lock().await;
        if entry.record().state.status != ContainerStatus::Running {
            return Ok(None);
        }
        let held = Held {
            engine: self.clone(),
            entry: entry.clone(),
        };
        self.inner
            .cgroups
            .freeze(&self.group_of(&entry.record()), true)
            .map_err(EngineError::io("freeze", "the control group"))?;
        entry.change(|record| record.state.status = ContainerStatus::Paused);
        self.tell(&entry.record(), "pause", &[]);
        Ok(Some(held))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let group = self.engine.group_of(&self.entry.record());
        let thawed = self.engine.inner.cgroups.freeze(&group, false);
        // It may have been killed, or somebody let it go on.
        if self.entry.record().state.status == ContainerStatus::Paused {
            if let Err(err) = thawed {
                tracing::error!(container.id = %self.entry.id, error = %err, "cannot thaw a container");
            }
            self.entry
                .change(|record| record.state.status = ContainerStatus::Running);
            self.engine.tell(&self.entry.record(), "unpause", &[]);
        }
    }
}
