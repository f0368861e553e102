//! Local volumes: `<root>/volumes/<name>/_data`.
//!
//! One with options has a file system mounted there, from the start of its first container to the end of its last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use shoal_api::Timestamp;
use shoal_api::container::{ContainerId, Volume, VolumeSpec};

use super::engine::EngineError;
use crate::core::mounts::check_volume_name;
use crate::core::volume::{VolumeMount, is_mount_point, volume_mount};

const RECORD_NAME: &str = "volume.json";

/// Volumes made for a container without a name carry it, as with docker.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// All volumes below one directory. The directory is the truth; nothing but their users is cached.
#[derive(Debug, Clone)]
pub(super) struct Volumes {
    root: PathBuf,
    /// Of the same file system; what is in it goes at the next start at the latest.
    trash: PathBuf,
    /// Containers that run, or are about to, by the volumes with options that they mount.
    users: Arc<Mutex<BTreeMap<String, BTreeSet<ContainerId>>>>,
}

impl Volumes {
    pub(super) fn new(root: PathBuf, trash: PathBuf) -> Self {
        Self {
            root,
            trash,
            users: Arc::default(),
        }
    }

    /// Removes volumes that an earlier version began to make and did not live to write down.
    pub(super) fn sweep(&self) {
        for entry in std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
        {
            let dir = entry.path();
            let empty = std::fs::read_dir(dir.join("_data"))
                .map_or(true, |mut inside| inside.next().is_none());
            if dir.is_dir() && empty && !dir.join(RECORD_NAME).exists() {
                tracing::info!(path = %dir.display(), "removing half a volume");
                let _ = std::fs::rename(&dir, self.trash.join(random_hex()));
            }
        }
    }

    /// Makes a volume, or finds the one of that name; true when it is new.
    pub(super) fn create(
        &self,
        spec: &VolumeSpec,
        anonymous: bool,
    ) -> Result<(Volume, bool), EngineError> {
        let driver = spec.driver.as_deref().unwrap_or_default();
        if !matches!(driver, "" | "local") {
            return Err(EngineError::NoSuchVolumePlugin(driver.to_owned()));
        }
        let name = match &spec.name {
            Some(name) if !name.is_empty() => name.clone(),
            _ => random_hex(),
        };
        check_volume_name(&name)?;
        volume_mount(&spec.options)
            .map_err(|error| EngineError::Invalid(format!("create {name}: {error}")))?;
        if let Ok(volume) = self.inspect(&name) {
            return Ok((volume, false));
        }
        let dir = self.root.join(&name);
        let mut labels = spec.labels.clone();
        if anonymous {
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
        }
        let volume = Volume {
            name,
            driver: "local".into(),
            mountpoint: dir.join("_data"),
            created: Timestamp::now(),
            labels,
            options: spec.options.clone(),
            anonymous,
        };
        let json =
            serde_json::to_vec(&volume).map_err(|err| EngineError::Invalid(err.to_string()))?;
        // There as a whole or not at all, also when the daemon dies here.
        let staged = self.trash.join(random_hex());
        let made = std::fs::create_dir_all(staged.join("_data"))
            .and_then(|()| std::fs::write(staged.join(RECORD_NAME), json))
            .and_then(|()| std::fs::rename(&staged, &dir));
        if let Err(err) = made {
            let _ = std::fs::remove_dir_all(&staged);
            return Err(EngineError::io("create", dir)(err));
        }
        Ok((volume, true))
    }

    pub(super) fn list(&self) -> Result<Vec<Volume>, EngineError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(EngineError::io("read", &self.root)(err)),
        };
        let mut volumes: Vec<Volume> = entries
            .flatten()
            .filter_map(|entry| self.inspect(entry.file_name().to_str()?).ok())
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    pub(super) fn inspect(&self, name: &str) -> Result<Volume, EngineError> {
        let missing = || EngineError::NoSuchVolume(name.to_owned());
        check_volume_name(name).map_err(|_| missing())?;
        let path = self.root.join(name).join(RECORD_NAME);
        match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|err| EngineError::io("read", path)(err.into())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(err) => Err(EngineError::io("read", path)(err)),
        }
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), EngineError> {
        let volume = self.inspect(name)?;
        // What is mounted there is not ours to empty.
        self.unmount(&volume)?;
        let (dir, aside) = (self.root.join(name), self.trash.join(random_hex()));
        // Gone at once, so that no half of it is ever seen.
        std::fs::rename(&dir, &aside).map_err(EngineError::io("remove", dir))?;
        if let Err(err) = std::fs::remove_dir_all(&aside) {
            tracing::warn!(path = %aside.display(), error = %err, "cannot remove what is left of a volume");
        }
        Ok(())
    }

    /// Mounts a volume with options for a container, unless it is mounted already. Blocks, for as long as a server of
    /// the network takes.
    pub(super) fn begin_use(&self, name: &str, by: &ContainerId) -> Result<(), EngineError> {
        let volume = self.inspect(name)?;
        let Some(wish) = wish(&volume)? else {
            return Ok(());
        };
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_mounted(&volume.mountpoint)? {
            mount_on(&volume.mountpoint, wish).map_err(EngineError::VolumeMount)?;
        }
        users.entry(name.to_owned()).or_default().insert(by.clone());
        Ok(())
    }

    /// Takes a container off a volume's users, and unmounts it after the last one.
    pub(super) fn end_use(&self, name: &str, by: &ContainerId) -> Result<(), EngineError> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_volume) = users.get_mut(name) else {
            return Ok(());
        };
        of_volume.remove(by);
        if !of_volume.is_empty() {
            return Ok(());
        }
        users.remove(name);
        self.unmount(&self.inspect(name)?)
    }

    /// Writes down a user that an earlier daemon left running.
    pub(super) fn note_use(&self, name: &str, by: &ContainerId) {
        if self
            .inspect(name)
            .is_ok_and(|volume| !volume.options.is_empty())
        {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.entry(name.to_owned()).or_default().insert(by.clone());
        }
    }

    /// Unmounts what an earlier daemon mounted and nobody uses any more.
    pub(super) fn unmount_unused(&self) -> Result<(), EngineError> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for volume in self.list()? {
            if !volume.options.is_empty() && !users.contains_key(&volume.name) {
                self.unmount(&volume)?;
            }
        }
        Ok(())
    }

    fn unmount(&self, volume: &Volume) -> Result<(), EngineError> {
        while !volume.options.is_empty() && is_mounted(&volume.mountpoint)? {
            // A container that is ending may hold it a moment longer; nobody finds it from now on.
            umount2(&volume.mountpoint, MntFlags::MNT_DETACH)
                .map_err(|errno| EngineError::io("unmount", &volume.mountpoint)(errno.into()))?;
        }
        Ok(())
    }
}

fn wish(volume: &Volume) -> Result<Option<VolumeMount>, EngineError> {
    volume_mount(&volume.options).map_err(|error| EngineError::Invalid(error.to_string()))
}

fn is_mounted(path: &Path) -> Result<bool, EngineError> {
    let info = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(EngineError::io("read", "/proc/self/mountinfo"))?;
    Ok(is_mount_point(&info, &path.to_string_lossy()))
}

/// Mounts it; an error in docker's words.
fn mount_on(target: &Path, mut wish: VolumeMount) -> Result<(), String> {
    let shown = target.display();
    let failed = |wish: &VolumeMount, why: &dyn std::fmt::Display| {
        let mut said = format!("mount {}:{shown}", wish.device);
        if wish.flags != 0 {
            said.push_str(&format!(", flags: 0x{:x}", wish.flags));
        }
        if !wish.data.is_empty() {
            said.push_str(&format!(", data: {}", wish.data.join(",")));
        }
        format!(
            "error while mounting volume '{shown}': failed to mount local volume: {said}: {why}"
        )
    };
    if let Some(host) = wish.address().map(str::to_owned)
        && host.parse::<std::net::IpAddr>().is_err()
    {
        let found = (host.as_str(), 0).to_socket_addrs();
        let first = found.map_err(|error| failed(&wish, &error))?.next();
        let first = first.ok_or_else(|| {
            failed(
                &wish,
                &format!("error resolving passed in network volume address {host}"),
            )
        })?;
        wish.set_address(&first.ip().to_string());
    }
    let flags = MsFlags::from_bits_truncate(wish.flags);
    let data = wish.data.join(",");
    let data = (!data.is_empty()).then_some(data.as_str());
    let device = Some(wish.device.as_str());
    let kind = Some(wish.kind.as_str()).filter(|kind| !wish.is_bind() && !kind.is_empty());
    let describe = |errno: nix::errno::Errno| failed(&wish, &errno.desc().to_lowercase());
    mount(device, target, kind, flags, data).map_err(describe)?;
    let none = None::<&str>;
    let finish = || {
        // A bind mount takes its own flags only when it is there.
        let own = flags - MsFlags::MS_BIND - MsFlags::MS_REC;
        if wish.is_bind() && !own.is_empty() {
            mount(none, target, none, flags | MsFlags::MS_REMOUNT, none)?;
        }
        match wish.propagation {
            0 => Ok(()),
            bits => mount(none, target, none, MsFlags::from_bits_truncate(bits), none),
        }
    };
    finish().map_err(|errno| {
        let _ = umount2(target, MntFlags::MNT_DETACH);
        describe(errno)
    })
}

/// 64 random hexadecimal digits.
pub(super) fn random_hex() -> String {
    hex::encode(random_bytes())
}

/// 32 random bytes.
pub(super) fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel has randomness once it has booted");
    bytes
}
