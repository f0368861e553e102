//! What is remembered of networks and endpoints, in files.
//!
//! Networks outlive everything: `<data root>/networks.json`. Endpoints end with the boot at the latest:
//! `<exec root>/endpoints/<container>.json`, one each, so that a start writes no more than its own.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use shoal_api::container::ContainerId;

use super::{BridgesError, definition::Definition, member::Member};

/// Where the files are.
#[derive(Debug)]
pub(super) struct Files {
    networks: PathBuf,
    endpoints: PathBuf,
}

impl Files {
    /// Makes the directories.
    pub(super) fn open(data_root: &Path, exec_root: &Path) -> Result<Self, BridgesError> {
        let endpoints = exec_root.join("endpoints");
        for dir in [data_root, &endpoints] {
            fs::create_dir_all(dir).map_err(BridgesError::io("create", dir))?;
        }
        Ok(Self {
            networks: data_root.join("networks.json"),
            endpoints,
        })
    }

    /// All networks, by id.
    pub(super) fn load_networks(&self) -> Result<BTreeMap<String, Definition>, BridgesError> {
        let networks: Vec<Definition> = match fs::read(&self.networks) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|error| BridgesError::io("read", &self.networks)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(BridgesError::io("read", &self.networks)(error)),
        };
        Ok(networks
            .into_iter()
            .map(|network| (network.id.clone(), network))
            .collect())
    }

    /// Replaces them all at once or not at all.
    pub(super) fn save_networks(
        &self,
        networks: &BTreeMap<String, Definition>,
    ) -> Result<(), BridgesError> {
        let networks: Vec<&Definition> = networks.values().collect();
        let failed =
            |error: serde_json::Error| BridgesError::io("write", &self.networks)(error.into());
        let json = serde_json::to_vec_pretty(&networks).map_err(failed)?;
        replace(&self.networks, &json, true).map_err(BridgesError::io("write", &self.networks))
    }

    /// Endpoints of containers whose namespace is still there; the files of the others are removed.
    pub(super) fn load_members(&self) -> Result<BTreeMap<ContainerId, Member>, BridgesError> {
        let entries =
            fs::read_dir(&self.endpoints).map_err(BridgesError::io("read", &self.endpoints))?;
        let mut members = BTreeMap::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let read =
                fs::read(&path).and_then(|json| Ok(serde_json::from_slice::<Member>(&json)?));
            match read {
                Ok(member)
                    if statfs(&member.netns).is_ok_and(|at| at.filesystem_type() == NSFS_MAGIC) =>
                {
                    members.insert(member.container.clone(), member);
                }
                Ok(_) => drop(fs::remove_file(&path)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "passing over endpoints that cannot be read");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(members)
    }

    /// Writes down the endpoints of one container. Not flushed: they do not outlive a loss of power anyway.
    pub(super) fn save_member(&self, member: &Member) -> Result<(), BridgesError> {
        let path = self.member(&member.container);
        let json = serde_json::to_vec(member)
            .map_err(|error| BridgesError::io("write", &path)(error.into()))?;
        replace(&path, &json, false).map_err(BridgesError::io("write", path))
    }

    /// Forgets the endpoints of one container.
    pub(super) fn remove_member(&self, container: &ContainerId) -> Result<(), BridgesError> {
        let path = self.member(container);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BridgesError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn member(&self, container: &ContainerId) -> PathBuf {
        self.endpoints.join(format!("{container}.json"))
    }
}

fn replace(path: &Path, content: &[u8], flush: bool) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(content)?;
    if flush {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) if flush => fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
