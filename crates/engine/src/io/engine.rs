//! The engine of this host: containers from their creation to their removal.

mod commit;
mod create;
mod error;
mod exec;
mod files;
mod health;
mod joined;
mod networks;
mod observe;
mod prepare;
mod record;
mod recovery;
mod run;
mod selftest;
mod update;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use shoal_api::Timestamp;
use shoal_api::container::{ContainerId, Event, EventActor, EventKind, Volume, VolumeSpec};
use tokio::sync::{broadcast, watch};

pub use error::{EngineError, EngineErrorKind};
pub use files::ArchiveStream;
pub use networks::NetworkPlace;
pub use observe::{EngineCounts, WaitCondition, WaitOutcome};
pub use run::StopOptions;

use super::cgroup::Cgroups;
use super::filters::Filters;
use super::images::ImageStore;
use super::log_watch::LogWatch;
use super::memory;
use super::network::ContainerNetwork;
use super::nursery::Nursery;
use super::volumes::Volumes;
use record::{Entry, Record};

/// Events kept for a listener that is slow; beyond that it misses some and is told so.
const EVENTS_MAX: usize = 1024;

/// What an engine needs to know.
#[derive(Clone)]
pub struct EngineConfig {
    /// Persistent state: `containers`, `volumes` and the images below it.
    pub root: PathBuf,
    /// State that ends with the boot: sockets of shims, network namespaces.
    pub run_dir: PathBuf,
    /// The control group below which containers have theirs, in every hierarchy.
    pub cgroup_parent: String,
    /// The binary that holds the shim's code and enters it when its first argument is `shim`; usually this one.
    pub shim_exe: PathBuf,
    pub images: ImageStore,
    pub network: Arc<dyn ContainerNetwork>,
    /// Where specifications of devices are (CDI).
    pub cdi_spec_dirs: Vec<PathBuf>,
}

/// A container engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub config: EngineConfig,
    pub cgroups: Cgroups,
    pub nursery: Nursery,
    pub volumes: Volumes,
    pub log_watch: LogWatch,
    pub filters: Filters,
    /// Held while volumes are made or removed, so that none goes while a container begins to use it.
    pub volume_changes: Mutex<()>,
    containers: RwLock<Containers>,
    events: broadcast::Sender<Event>,
    /// Why this host cannot run containers, if it cannot; `None` as long as that is being found out.
    self_test: watch::Sender<Option<Result<(), String>>>,
}

#[derive(Default)]
struct Containers {
    by_id: BTreeMap<ContainerId, Arc<Entry>>,
    names: BTreeMap<String, ContainerId>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.inner.config.root)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine at its root and takes the running containers over from their shims.
    ///
    /// Runs the self-test meanwhile: on a host where containers would not be isolated as promised the engine opens, but
    /// starts none, and says why. Starts wait for its verdict.
    pub async fn open(config: EngineConfig) -> Result<Self, EngineError> {
        for dir in ["containers", "volumes", "trash"] {
            let dir = config.root.join(dir);
            std::fs::create_dir_all(&dir).map_err(EngineError::io("create", dir))?;
        }
        for dir in ["c", "netns", "empty"] {
            make_private(&config.run_dir.join(dir))?;
        }
        let cgroups = Cgroups::detect(&config.cgroup_parent)
            .map_err(EngineError::io("read", "/proc/self/mountinfo"))?;
        let exe = config.shim_exe.clone();
        let empty = config.run_dir.join("empty");
        let nursery = tokio::task::spawn_blocking(move || Nursery::new(&exe, &empty)).await;
        let nursery = nursery
            .map_err(|err| EngineError::Invalid(err.to_string()))?
            .map_err(EngineError::io("seal", &config.shim_exe))?;
        let volumes = Volumes::new(config.root.join("volumes"), config.root.join("trash"));
        volumes.sweep();
        let log_watch = LogWatch::new().map_err(EngineError::io("watch", "the logs"))?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let inner = Inner {
            config,
            cgroups,
            nursery,
            volumes,
            log_watch,
            filters: Filters::default(),
            volume_changes: Mutex::new(()),
            containers: RwLock::default(),
            events,
            self_test: watch::Sender::new(None),
        };
        let engine = Self {
            inner: Arc::new(inner),
        };
        engine.load_records()?;
        engine.empty_trash();
        engine.recall_volumes();
        // Before anything is started, the self-test's container included.
        engine.undo_starts().await;
        engine.sweep();
        let tested = engine.clone();
        tokio::spawn(async move {
            let verdict = tested.run_self_test().await;
            if let Err(reason) = &verdict {
                tracing::error!(
                    reason,
                    "self-test failed: no container will be started on this host"
                );
            }
            tested.inner.self_test.send_replace(Some(verdict));
            memory::give_back();
        });
        engine.readopt().await;
        engine.remove_abandoned_steps().await;
        Ok(engine)
    }

    /// The verdict of the self-test, as soon as there is one: why this host cannot run containers, if it cannot.
    pub async fn self_test(&self) -> Result<(), String> {
        let mut verdict = self.inner.self_test.subscribe();
        let verdict = verdict.wait_for(Option::is_some).await;
        match verdict.map(|verdict| verdict.clone()) {
            Ok(Some(verdict)) => verdict,
            Ok(None) | Err(_) => Err("it did not end".to_owned()),
        }
    }

    fn load_records(&self) -> Result<(), EngineError> {
        let dir = self.inner.config.root.join("containers");
        let entries = std::fs::read_dir(&dir).map_err(EngineError::io("read", &dir))?;
        let mut containers = self.write_containers();
        for entry in entries.flatten() {
            let dir = entry.path();
            let record = match Record::load(&dir) {
                Ok(record) => record,
                // A creation that an end of the daemon cut short: nobody was told of it.
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                    tracing::info!(path = %dir.display(), "removing half a container");
                    let _ = std::fs::rename(&dir, self.trash_dir().join(entry.file_name()));
                    continue;
                }
                Err(err) => {
                    tracing::error!(path = %dir.display(), error = %err, "passing over a container with an unreadable record");
                    continue;
                }
            };
            let run_dir = self.run_dir_of(&record.id);
            containers
                .names
                .insert(record.name.clone(), record.id.clone());
            containers
                .by_id
                .insert(record.id.clone(), Entry::new(record, dir, run_dir));
        }
        Ok(())
    }

    /// Removes control groups and run directories of containers that do not run, which an earlier daemon left.
    fn sweep(&self) {
        let up: BTreeSet<String> = self
            .entries()
            .iter()
            .filter(|entry| entry.record().state.status.is_up())
            .map(|entry| entry.id.to_string())
            .collect();
        let gone = |name: &str| name.parse::<ContainerId>().is_ok() && !up.contains(name);
        for group in self.inner.cgroups.sweep(gone) {
            let engine = self.clone();
            // Whatever is in the group is killed, so its container must not be started meanwhile. Nobody has begun yet:
            // the lock is free.
            let name = group.file_name().and_then(|name| name.to_str());
            let entry = name.and_then(|name| self.find(name).ok());
            let op = entry.and_then(|entry| entry.op.clone().try_lock_owned().ok());
            tokio::spawn(async move {
                let _op = op;
                engine.inner.cgroups.remove(&group).await;
            });
        }
        let spaces = std::fs::read_dir(self.inner.config.run_dir.join("netns"));
        for space in spaces.into_iter().flatten().flatten() {
            if space.file_name().to_str().is_some_and(gone) {
                let _ = nix::mount::umount2(&space.path(), nix::mount::MntFlags::MNT_DETACH);
                let _ = std::fs::remove_file(space.path());
            }
        }
        let runs = std::fs::read_dir(self.inner.config.run_dir.join("c"));
        for run in runs.into_iter().flatten().flatten() {
            if run.file_name().to_str().is_some_and(gone) {
                let _ = std::fs::remove_dir_all(run.path());
            }
        }
    }

    fn trash_dir(&self) -> PathBuf {
        self.inner.config.root.join("trash")
    }

    /// The images of this host.
    pub fn images(&self) -> &ImageStore {
        &self.inner.config.images
    }

    /// Everything that happens from now on. A listener that falls behind by a thousand events is told that it missed some.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Tells those who listen for events. For other parts of the daemon that have something to tell too.
    pub fn publish(
        &self,
        kind: EventKind,
        action: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let actor = EventActor {
            id: id.to_owned(),
            attributes,
        };
        // Fails only when nobody listens.
        let _ = self.inner.events.send(Event {
            kind,
            action: action.to_owned(),
            actor,
            time: Timestamp::now(),
        });
    }

    fn tell(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes = record.attributes();
        attributes.extend(
            more.iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        self.publish(EventKind::Container, action, record.id.as_str(), attributes);
    }

    fn write_containers(&self) -> std::sync::RwLockWriteGuard<'_, Containers> {
        self.inner
            .containers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read_containers(&self) -> std::sync::RwLockReadGuard<'_, Containers> {
        self.inner
            .containers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a container by id, name or the unambiguous beginning of an id, in this order, as Docker does.
    fn find(&self, name: &str) -> Result<Arc<Entry>, EngineError> {
        let missing = || EngineError::NoSuchContainer(name.to_owned());
        let containers = self.read_containers();
        if let Some(entry) = name
            .parse()
            .ok()
            .and_then(|id: ContainerId| containers.by_id.get(&id))
        {
            return Ok(entry.clone());
        }
        let bare = name.strip_prefix('/').unwrap_or(name);
        if let Some(entry) = containers
            .names
            .get(bare)
            .and_then(|id| containers.by_id.get(id))
        {
            return Ok(entry.clone());
        }
        let mut found = containers
            .by_id
            .iter()
            .filter(|(id, _)| !name.is_empty() && id.as_str().starts_with(name));
        let first = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(EngineError::AmbiguousId(name.to_owned()));
        }
        Ok(first.1.clone())
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.read_containers().by_id.values().cloned().collect()
    }

    fn dir_of(&self, id: &ContainerId) -> PathBuf {
        self.inner.config.root.join("containers").join(id.as_str())
    }

    fn run_dir_of(&self, id: &ContainerId) -> PathBuf {
        self.inner.config.run_dir.join("c").join(id.as_str())
    }

    /// Where the network namespace of a container is held, if it has one of its own.
    fn netns_of(&self, id: &ContainerId) -> PathBuf {
        self.inner.config.run_dir.join("netns").join(id.as_str())
    }

    /// The control group of a container, below the root of every hierarchy.
    fn group_of(&self, record: &Record) -> PathBuf {
        let parent = record.spec.host.cgroup_parent.as_deref();
        self.inner.cgroups.group(parent, record.id.as_str())
    }

    /// Makes a volume, or finds the one of that name.
    pub fn volume_create(&self, spec: &VolumeSpec) -> Result<Volume, EngineError> {
        let _changes = self
            .inner
            .volume_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (volume, new) = self
            .inner
            .volumes
            .create(spec, spec.name.as_ref().is_none_or(String::is_empty))?;
        if new {
            self.publish(
                EventKind::Volume,
                "create",
                &volume.name,
                [("driver".into(), "local".into())].into(),
            );
        }
        Ok(volume)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        self.inner.volumes.list()
    }

    /// One volume.
    pub fn volume_inspect(&self, name: &str) -> Result<Volume, EngineError> {
        self.inner.volumes.inspect(name)
    }

    /// Removes a volume that no container uses. With `force` one that does not exist is no error.
    pub fn volume_remove(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let _changes = self
            .inner
            .volume_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let users: Vec<String> = self
            .volume_users(name)
            .into_iter()
            .map(String::from)
            .collect();
        if !users.is_empty() {
            return Err(EngineError::VolumeInUse {
                name: name.to_owned(),
                users: users.join(", "),
            });
        }
        match self.inner.volumes.remove(name) {
            Err(EngineError::NoSuchVolume(_)) if force => return Ok(()),
            other => other?,
        }
        self.publish(
            EventKind::Volume,
            "destroy",
            name,
            [("driver".into(), "local".into())].into(),
        );
        Ok(())
    }

    /// The containers that mount a volume.
    pub fn volume_users(&self, name: &str) -> BTreeSet<ContainerId> {
        let uses = |record: &Record| {
            record
                .mounts
                .iter()
                .any(|mount| mount.kind == "volume" && mount.name == name)
        };
        self.entries()
            .iter()
            .map(|entry| entry.record())
            .filter(|record| uses(record))
            .map(|record| record.id.clone())
            .collect()
    }
}

/// Makes a directory that only we can enter.
fn make_private(dir: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(EngineError::io("create", dir))
}
