//! What a container shares with others: namespaces, volumes, links.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_api::container::{ContainerSpec, MountPoint};

use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::{etc, links};

/// Names and variables of the containers that one is linked to.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    pub env: Vec<String>,
}

impl Engine {
    /// Finds a container that another one's spec names. Its absence is a fault of that spec: docker's client takes
    /// "not found" for the image's and would pull it.
    pub(super) fn find_other(&self, name: &str) -> Result<Arc<Entry>, EngineError> {
        self.find(name).map_err(|err| match err {
            EngineError::NoSuchContainer(_) => EngineError::Invalid(err.to_string()),
            other => other,
        })
    }

    /// The mounts of `--volumes-from`, the earlier before the later.
    pub(super) fn inherit(&self, spec: &ContainerSpec) -> Result<Vec<MountPoint>, EngineError> {
        let mut inherited: Vec<MountPoint> = Vec::new();
        for wish in &spec.host.volumes_from {
            let (name, mode) = wish.split_once(':').unwrap_or((wish, ""));
            let read_only = match mode {
                "" | "rw" | "z" | "Z" => false,
                "ro" => true,
                _ => {
                    return Err(EngineError::Invalid(format!(
                        "invalid mode for volumes-from: {mode}"
                    )));
                }
            };
            let other = self.find_other(name)?.record();
            for mount in other
                .mounts
                .iter()
                .filter(|mount| matches!(mount.kind.as_str(), "bind" | "volume"))
            {
                inherited.retain(|have| have.destination != mount.destination);
                let mut mount = mount.clone();
                mount.rw &= !read_only;
                inherited.push(mount);
            }
        }
        Ok(inherited)
    }

    /// The namespace of this kind (`pid`, `ipc`) that a mode `container:…` stands for.
    pub(super) fn joined_namespace(
        &self,
        mode: Option<&str>,
        kind: &str,
    ) -> Result<Option<(PathBuf, i32)>, EngineError> {
        let Some(other) = mode.and_then(|mode| mode.strip_prefix("container:")) else {
            return Ok(None);
        };
        let title = kind.to_uppercase();
        let other = self.find(other)?.record();
        let cannot = |why: &str| {
            EngineError::Conflict(format!(
                "can't join {title} of container {}: {why}",
                other.id
            ))
        };
        if !other.state.status.is_up() {
            return Err(cannot(&format!("container {} is not running", other.id)));
        }
        let donor = other.spec.host.ipc_mode.as_deref().unwrap_or_default();
        if kind == "ipc" && matches!(donor, "private" | "none" | "") {
            return Err(cannot(
                "non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
            ));
        }
        let pid = other.state.pid;
        Ok(Some((format!("/proc/{pid}/ns/{kind}").into(), pid)))
    }

    /// What the links of a container come to now; all that it is linked to must run.
    pub(super) fn links(&self, record: &Record) -> Result<Links, EngineError> {
        let mut found = Links::default();
        for link in &record.spec.host.links {
            let (name, alias) = links::parse(link)
                .ok_or_else(|| EngineError::Invalid(format!("invalid link format: {link}")))?;
            let other: Arc<Record> = self.find(name)?.record();
            if !other.state.status.is_up() {
                return Err(EngineError::Conflict(format!(
                    "Cannot link to a non running container: /{} AS /{}/{alias}",
                    other.name, record.name
                )));
            }
            let mut endpoints = other.network.networks.values();
            let address = endpoints
                .find_map(|endpoint| endpoint.ipv4)
                .ok_or_else(|| {
                    EngineError::Conflict(format!(
                        "Cannot link to /{}, as it does not belong to the default network",
                        other.name
                    ))
                })?;
            let mut names = vec![alias.to_owned()];
            for name in [&other.hostname, &other.name] {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            found.hosts.push((IpAddr::V4(address), names));
            found.env.extend(links::environment(
                &record.name,
                alias,
                address,
                &other.spec.exposed_ports,
                &other.spec.env,
            ));
        }
        Ok(found)
    }

    /// Removes the link by which a container calls another one `alias`: from what it is started with, and from the hosts
    /// file of one that runs.
    pub async fn unlink(&self, parent: &str, alias: &str) -> Result<(), EngineError> {
        let missing = || EngineError::NoSuchContainer(format!("{parent}/{alias}"));
        let entry = self.find(parent).map_err(|_| missing())?;
        let _op = entry.op.lock().await;
        let links = links::without(&entry.record().spec.host.links, alias).ok_or_else(missing)?;
        entry.update(|record| record.spec.host.links = links);
        let path = entry.dir.join("hosts");
        match std::fs::read_to_string(&path) {
            // In its place: the container has this very file mounted.
            Ok(hosts) => std::fs::write(&path, etc::without_host(&hosts, alias))
                .map_err(EngineError::io("write", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(EngineError::io("read", path)(error)),
        }
    }
}
