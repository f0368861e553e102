//! What the engine remembers of a container, in memory and on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use shoal_api::Timestamp;
use shoal_api::container::{
    ContainerId, ContainerSpec, ContainerState, ExecInspect, MountPoint, NetworkSettings,
};
use tokio::sync::{oneshot, watch};

use crate::io::shim_client::{ShimHandle, StreamConnection};
use crate::shim::protocol::Streams;

const RECORD_NAME: &str = "container.json";

/// A container as it is written down after every change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: ContainerId,
    pub name: String,
    pub created: Timestamp,
    /// With the image's configuration merged in.
    pub spec: ContainerSpec,
    pub image_id: String,
    /// Directories of the image's layers, lowest first.
    pub layers: Vec<PathBuf>,
    pub hostname: String,
    pub mounts: Vec<MountPoint>,
    /// Mounts of other containers that it has too (`--volumes-from`).
    #[serde(default)]
    pub inherited: Vec<MountPoint>,
    /// Volumes made for this container alone.
    pub anonymous_volumes: Vec<String>,
    pub state: ContainerState,
    pub network: NetworkSettings,
    /// Starts so far; names the current run.
    pub start: u64,
    /// Ends so far, for those who wait for the next one.
    pub ends: u64,
    pub restart_count: u32,
    /// Ends in a row without a user's deed between them, for the restart policy's back-off.
    pub failures: u32,
    /// A user stopped it, so no policy starts it again.
    pub stopped_by_user: bool,
    /// Removed from this host.
    #[serde(skip)]
    pub removed: bool,
}

impl Record {
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(
            dir.join(RECORD_NAME),
        )?)?)
    }

    /// Replaces the record on disk at once or not at all. It is not flushed: a host that loses power loses its
    /// running containers anyway, and a record is worth no milliseconds of every start.
    fn save(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{RECORD_NAME}.new"));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, dir.join(RECORD_NAME))
    }

    /// Attributes of this container's events: its labels, image and name.
    pub(super) fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.spec.labels.clone();
        attributes.insert("image".into(), self.spec.image.clone());
        attributes.insert("name".into(), self.name.clone());
        attributes
    }
}

/// A client that attached before the container runs.
pub(super) struct PendingAttach {
    pub streams: Streams,
    pub connected: oneshot::Sender<StreamConnection>,
}

/// What only lives as long as the daemon.
#[derive(Default)]
pub(super) struct Live {
    pub shim: Option<ShimHandle>,
    pub pending: Vec<PendingAttach>,
    pub execs: BTreeMap<String, ExecInspect>,
    /// Ends a wait of the restart policy.
    pub restart_cancel: Option<oneshot::Sender<()>>,
}

/// A container.
pub(super) struct Entry {
    pub id: ContainerId,
    pub dir: PathBuf,
    pub run_dir: PathBuf,
    /// Held by whoever starts, removes or writes down the end of it; never while waiting for an end.
    pub op: Arc<tokio::sync::Mutex<()>>,
    record: watch::Sender<Arc<Record>>,
    live: Mutex<Live>,
}

impl Entry {
    pub(super) fn new(record: Record, dir: PathBuf, run_dir: PathBuf) -> Arc<Self> {
        let id = record.id.clone();
        let (record, _) = watch::channel(Arc::new(record));
        Arc::new(Self {
            id,
            dir,
            run_dir,
            op: Arc::default(),
            record,
            live: Mutex::default(),
        })
    }

    pub(super) fn record(&self) -> Arc<Record> {
        self.record.borrow().clone()
    }

    /// The record once no start is under way: the process of a container may be heard from before its start is written
    /// down, and who hears from it may ask for something at once.
    pub(super) async fn settled(&self) -> Arc<Record> {
        let record = self.record();
        if record.state.status.is_up() {
            return record;
        }
        let _op = self.op.lock().await;
        self.record()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Record>> {
        self.record.subscribe()
    }

    /// Changes the record, writes it down and wakes those who wait. What the disk refuses stays in memory.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) {
        self.record.send_modify(|record| {
            let record = Arc::make_mut(record);
            change(record);
            if !record.removed
                && let Err(err) = record.save(&self.dir)
            {
                tracing::error!(container.id = %self.id, error = %err, "cannot write the container's record");
            }
        });
    }

    /// Changes the record without writing it down: something that will be follows.
    pub(super) fn change(&self, change: impl FnOnce(&mut Record)) {
        self.record
            .send_modify(|record| change(Arc::make_mut(record)));
    }

    pub(super) fn live<T>(&self, with: impl FnOnce(&mut Live) -> T) -> T {
        with(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
