//! Creation and removal.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use shoal_api::Timestamp;
use shoal_api::container::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, EventKind, MountPoint,
    NetworkMode, NetworkSettings, VolumeSpec,
};

use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::mounts::{Planned, PlannedMount};
use crate::core::{config, links, mounts, names, oci, signals};
use crate::io::cdi;
use crate::io::images::{ImageErrorKind, ImageRecord};
use crate::io::volumes::{random_bytes, random_hex};

impl Engine {
    /// Makes a container of an image of this host. What the engine cannot honour is refused by name.
    pub async fn create(&self, spec: ContainerSpec) -> Result<ContainerId, EngineError> {
        let image = self
            .images()
            .resolve(&spec.image)
            .map_err(|err| match err.kind() {
                ImageErrorKind::NotFound => EngineError::NoSuchImage(with_tag(&spec.image)),
                _ => EngineError::Image(err),
            })?;
        self.create_from(spec, &image).await
    }

    pub(super) async fn create_from(
        &self,
        spec: ContainerSpec,
        image: &ImageRecord,
    ) -> Result<ContainerId, EngineError> {
        let mut spec = self.complete(config::merge(spec, &image.config))?;
        config::check(&spec)?;
        self.discard_unsupported(&mut spec.host.resources);
        oci::command(&spec)?;
        crate::core::capabilities::CapabilitySet::of(&spec.host.cap_add, &spec.host.cap_drop)
            .map_err(oci::OciError::from)?;
        if let Some(signal) = spec
            .stop_signal
            .as_ref()
            .filter(|signal| signals::parse(signal).is_none())
        {
            return Err(EngineError::Invalid(format!("invalid signal: {signal}")));
        }
        cdi::inject(&self.inner.config.cdi_spec_dirs, &spec.host.device_requests)?;
        let inherited = self.inherit(&spec)?;
        let planned = mounts::plan(&spec, &inherited)?;
        check_sources(&planned)?;

        let bytes = random_bytes();
        let id = ContainerId::from_bytes(bytes);
        let random = u64::from_le_bytes(bytes[..8].try_into().expect("eight of 32 bytes"));
        let name = self.reserve_name(&id, spec.name.as_deref(), random)?;
        let dir = self.dir_of(&id);
        let made = self.make(id.clone(), name.clone(), spec, image, (planned, inherited));
        match made {
            Ok(record) => {
                let entry = Entry::new(record, dir, self.run_dir_of(&id));
                entry.update(|_| {});
                let record = entry.record();
                self.write_containers().by_id.insert(id.clone(), entry);
                self.tell(&record, "create", &[]);
                Ok(id)
            }
            Err(err) => {
                self.write_containers().names.remove(&name);
                self.remove_noted_volumes(&dir);
                let _ = std::fs::remove_dir_all(dir);
                Err(err)
            }
        }
    }

    /// An image of this host whose files are to be mounted. Its absence is a fault of the spec, for docker's client would
    /// pull the container's own image.
    pub(super) fn mountable(&self, name: &str) -> Result<ImageRecord, EngineError> {
        self.images().resolve(name).map_err(|err| {
            EngineError::Invalid(format!(
                "invalid mount config for type \"image\": cannot mount image {name}: {err}"
            ))
        })
    }

    /// Fills in what depends on this host.
    fn complete(&self, mut spec: ContainerSpec) -> Result<ContainerSpec, EngineError> {
        if let NetworkMode::Container(other) = &spec.host.network_mode {
            let other = self.find_other(other)?;
            spec.host.network_mode = NetworkMode::Container(other.id.to_string());
        }
        // By id, which stays when names change.
        for mode in [&mut spec.host.pid_mode, &mut spec.host.ipc_mode] {
            if let Some(other) = mode
                .as_deref()
                .and_then(|mode| mode.strip_prefix("container:"))
            {
                let other = self.find_other(other)?;
                *mode = Some(format!("container:{}", other.id));
            }
        }
        for link in &spec.host.links {
            if let Some((name, _)) = links::parse(link) {
                self.find(name).map_err(|err| {
                    EngineError::Invalid(format!("could not get container for {name}: {err}"))
                })?;
            }
        }
        Ok(spec)
    }

    fn make(
        &self,
        id: ContainerId,
        name: String,
        spec: ContainerSpec,
        image: &ImageRecord,
        (planned, inherited): (Vec<PlannedMount>, Vec<MountPoint>),
    ) -> Result<Record, EngineError> {
        super::make_private(&self.dir_of(&id))?;
        let (mounts, anonymous_volumes) = self.make_mounts(&id, planned)?;
        let hostname = match (
            &spec.hostname,
            spec.host.uts_mode.as_deref(),
            &spec.host.network_mode,
        ) {
            (Some(hostname), ..) if !hostname.is_empty() => hostname.clone(),
            (_, Some("host"), _) | (_, _, NetworkMode::Host) => host_name(),
            _ => id.short().to_owned(),
        };
        Ok(Record {
            id,
            name,
            created: Timestamp::now(),
            spec,
            image_id: image.id.to_string(),
            layers: image.layers.clone(),
            hostname,
            mounts,
            inherited,
            anonymous_volumes,
            state: ContainerState::default(),
            network: NetworkSettings::default(),
            start: 0,
            ends: 0,
            restart_count: 0,
            failures: 0,
            stopped_by_user: false,
            removed: false,
        })
    }

    /// Makes the volumes, and sources of binds that the short form makes when missing.
    fn make_mounts(
        &self,
        id: &ContainerId,
        planned: Vec<PlannedMount>,
    ) -> Result<(Vec<MountPoint>, Vec<String>), EngineError> {
        let _changes = self
            .inner
            .volume_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_anonymous =
            |mount: &&PlannedMount| matches!(mount.what, Planned::Volume { name: None, .. });
        let anonymous_volumes: Vec<String> = planned
            .iter()
            .filter(is_anonymous)
            .map(|_| random_hex())
            .collect();
        self.note_volumes(&self.dir_of(id), &anonymous_volumes)?;
        let mut new_names = anonymous_volumes.iter();
        let mut points = Vec::new();
        for mount in planned {
            let destination = mount.target.display().to_string();
            let mut point = MountPoint {
                kind: String::new(),
                name: String::new(),
                source: PathBuf::new(),
                destination,
                driver: String::new(),
                mode: mount.mode,
                rw: !mount.read_only,
                propagation: String::new(),
            };
            match mount.what {
                Planned::Bind {
                    source,
                    propagation,
                    ..
                } => {
                    point.kind = "bind".into();
                    point.source = source;
                    point.propagation = propagation.as_str().into();
                }
                Planned::Volume {
                    name,
                    labels,
                    options,
                    ..
                } => {
                    let anonymous = name.is_none();
                    let wish = VolumeSpec {
                        name: name.or_else(|| new_names.next().cloned()),
                        labels,
                        options,
                        ..VolumeSpec::default()
                    };
                    let (volume, new) = self.inner.volumes.create(&wish, anonymous)?;
                    if new {
                        let attributes = [
                            ("driver".to_owned(), "local".to_owned()),
                            ("container".to_owned(), id.to_string()),
                        ];
                        self.publish(EventKind::Volume, "create", &volume.name, attributes.into());
                    }
                    point.kind = "volume".into();
                    point.name = volume.name;
                    point.source = volume.mountpoint;
                    point.driver = "local".into();
                }
                Planned::Tmpfs { .. } => point.kind = "tmpfs".into(),
                Planned::Image { source, .. } => {
                    point.kind = "image".into();
                    point.name = self.mountable(&source)?.id.to_string();
                    point.source = source.into();
                }
            }
            points.push(point);
        }
        Ok((points, anonymous_volumes))
    }

    fn reserve_name(
        &self,
        id: &ContainerId,
        wanted: Option<&str>,
        random: u64,
    ) -> Result<String, EngineError> {
        let mut containers = self.write_containers();
        let name = match wanted
            .map(|name| name.strip_prefix('/').unwrap_or(name))
            .filter(|name| !name.is_empty())
        {
            Some(name) if !names::is_valid(name) => {
                return Err(EngineError::InvalidName(name.to_owned()));
            }
            Some(name) => {
                if let Some(holder) = containers.names.get(name) {
                    return Err(EngineError::NameTaken {
                        name: name.to_owned(),
                        holder: holder.to_string(),
                    });
                }
                name.to_owned()
            }
            None => (0..10)
                .map(|attempt| names::invent(random, attempt))
                .find(|name| !containers.names.contains_key(name))
                .unwrap_or_else(|| id.short().to_owned()),
        };
        containers.names.insert(name.clone(), id.clone());
        Ok(name)
    }

    /// Gives a container another name.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        let new_name = new_name.strip_prefix('/').unwrap_or(new_name);
        if new_name.is_empty() {
            return Err(EngineError::Invalid(
                "Neither old nor new names may be empty".into(),
            ));
        }
        let _op = entry.op.lock().await;
        let old = entry.record().name.clone();
        if old == new_name {
            return Err(EngineError::Invalid(
                "Renaming a container with the same name as its current name".into(),
            ));
        }
        self.reserve_name(&entry.id, Some(new_name), 0)?;
        self.write_containers().names.remove(&old);
        entry.update(|record| record.name = new_name.to_owned());
        self.tell(&entry.record(), "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    /// Removes a container; `force` kills it first, `volumes` takes its anonymous volumes too.
    pub async fn remove(&self, name: &str, force: bool, volumes: bool) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        loop {
            let status = entry.record().state.status;
            if status.is_up() || status == ContainerStatus::Restarting {
                if !force {
                    return Err(EngineError::StillRunning(entry.record().name.clone()));
                }
                self.end_now(&entry).await?;
            }
            let _op = entry.op.lock().await;
            let record = entry.record();
            if record.removed {
                return Err(EngineError::NoSuchContainer(name.to_owned()));
            }
            if !record.state.status.is_up() && record.state.status != ContainerStatus::Restarting {
                return self.remove_ended(&entry, volumes).await;
            }
            // Somebody started it in between.
        }
    }

    /// Removes what is left of a container that does not run. The caller holds its lock.
    pub(super) async fn remove_ended(
        &self,
        entry: &Arc<Entry>,
        volumes: bool,
    ) -> Result<(), EngineError> {
        entry.change(|record| record.state.status = ContainerStatus::Removing);
        if !volumes {
            self.keep_volumes(&entry.dir)?;
        }
        // Aside at once; how long the disk takes to forget the files is nobody's concern.
        let trash = self.trash_dir().join(entry.id.as_str());
        if let Err(err) = std::fs::rename(&entry.dir, &trash) {
            entry.update(|record| record.state.status = ContainerStatus::Dead);
            return Err(EngineError::io("remove", &entry.dir)(err));
        }
        let _ = std::fs::remove_dir_all(&entry.run_dir);
        let record = entry.record();
        {
            let mut containers = self.write_containers();
            containers.by_id.remove(&entry.id);
            containers.names.remove(&record.name);
        }
        if volumes {
            for name in &record.anonymous_volumes {
                if let Err(err) = self.volume_remove(name, true) {
                    tracing::warn!(volume = name, error = %err, "cannot remove an anonymous volume");
                }
            }
        }
        // After the volumes, which it names to the next daemon if this one dies here.
        tokio::task::spawn_blocking(move || {
            if let Err(err) = std::fs::remove_dir_all(&trash) {
                tracing::warn!(path = %trash.display(), error = %err, "cannot remove what is left of a container");
            }
        });
        entry.live(|live| *live = super::record::Live::default());
        // Last, for those who wait for it.
        entry.update(|record| record.removed = true);
        self.tell(&record, "destroy", &[]);
        Ok(())
    }
}

/// Docker names images in full in this message, and the client pulls by it.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || name.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// Sources of the long form must exist; the short form makes directories.
fn check_sources(planned: &[PlannedMount]) -> Result<(), EngineError> {
    for mount in planned {
        if let Planned::Bind {
            source,
            create_source,
            ..
        } = &mount.what
            && !source.exists()
        {
            if *create_source {
                std::fs::create_dir_all(source).map_err(EngineError::io("create", source))?;
            } else {
                return Err(EngineError::Invalid(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    source.display()
                )));
            }
        }
    }
    Ok(())
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}
