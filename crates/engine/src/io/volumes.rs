//! Local volumes: `<root>/volumes/<name>/_data`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use shoal_api::Timestamp;
use shoal_api::container::{Volume, VolumeSpec};

use super::engine::EngineError;
use crate::core::mounts::check_volume_name;

const RECORD_NAME: &str = "volume.json";

/// All volumes below one directory. The directory is the truth; nothing is cached.
#[derive(Debug, Clone)]
pub(super) struct Volumes {
    root: PathBuf,
}

impl Volumes {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes a volume, or finds the one of that name; true when it is new.
    pub(super) fn create(
        &self,
        spec: &VolumeSpec,
        anonymous: bool,
    ) -> Result<(Volume, bool), EngineError> {
        let driver = spec.driver.as_deref().unwrap_or_default();
        if !matches!(driver, "" | "local") {
            return Err(EngineError::Invalid(format!(
                "error looking up volume plugin {driver}: plugin \"{driver}\" not found"
            )));
        }
        if let Some(option) = spec.options.keys().next() {
            return Err(EngineError::Invalid(format!(
                "volume option {option} is not supported yet"
            )));
        }
        let name = match &spec.name {
            Some(name) if !name.is_empty() => name.clone(),
            _ => random_hex(),
        };
        check_volume_name(&name)?;
        if let Ok(volume) = self.inspect(&name) {
            return Ok((volume, false));
        }
        let dir = self.root.join(&name);
        let data = dir.join("_data");
        std::fs::create_dir_all(&data).map_err(EngineError::io("create", &data))?;
        let volume = Volume {
            name,
            driver: "local".into(),
            mountpoint: data,
            created: Timestamp::now(),
            labels: spec.labels.clone(),
            options: BTreeMap::new(),
            anonymous,
        };
        let json =
            serde_json::to_vec(&volume).map_err(|err| EngineError::Invalid(err.to_string()))?;
        let new = dir.join(format!("{RECORD_NAME}.new"));
        std::fs::write(&new, json).map_err(EngineError::io("write", &new))?;
        std::fs::rename(&new, dir.join(RECORD_NAME)).map_err(EngineError::io("rename", &new))?;
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
        self.inspect(name)?;
        let dir = self.root.join(name);
        std::fs::remove_dir_all(&dir).map_err(EngineError::io("remove", dir))
    }
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
