//! Specifications of devices on this host (CDI), read when a container asks for one: they change as drivers come and go.

use std::path::{Path, PathBuf};

use shoal_api::container::{DeviceRequest, DeviceSpec};

use super::devices;
use super::engine::EngineError;
use crate::core::cdi::{Devices, Edits, Form};
use crate::core::mounts::ReadyMount;
use crate::core::oci::DeviceNode;

/// All devices that are specified in these directories; in later ones they come before those in earlier ones.
pub fn read(dirs: &[PathBuf]) -> Devices {
    let shown: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut all = Devices::new(if shown.is_empty() {
        "no directory (cdi-spec-dirs is empty)".to_owned()
    } else {
        shown.join(", ")
    });
    for dir in dirs {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let extension = path.extension().and_then(|name| name.to_str());
            let Some(form) = extension.and_then(Form::of_extension) else {
                continue;
            };
            let problem = match std::fs::read_to_string(&path) {
                Ok(text) => all.add(&text, form).err().map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                tracing::warn!(path = %path.display(), problem, "passing over a specification of devices");
            }
        }
    }
    all
}

/// What a container's requests come to on this host.
#[derive(Debug, Default)]
pub(super) struct Injected {
    pub edits: Edits,
    pub nodes: Vec<DeviceNode>,
    pub mounts: Vec<ReadyMount>,
}

/// Resolves a container's requests for devices.
pub(super) fn inject(
    dirs: &[PathBuf],
    requests: &[DeviceRequest],
) -> Result<Injected, EngineError> {
    if requests.is_empty() {
        return Ok(Injected::default());
    }
    let edits = read(dirs)
        .resolve(requests)
        .map_err(|error| EngineError::Invalid(error.to_string()))?;
    let mut nodes = Vec::new();
    for wish in &edits.device_nodes {
        let host_path = if wish.host_path.is_empty() {
            &wish.path
        } else {
            &wish.host_path
        };
        let permissions = if wish.permissions.is_empty() {
            "rwm"
        } else {
            &wish.permissions
        };
        let spec = DeviceSpec {
            host_path: host_path.clone(),
            container_path: wish.path.clone(),
            permissions: permissions.to_owned(),
        };
        for mut node in devices::wished(&spec)? {
            node.uid = wish.uid.unwrap_or(node.uid);
            node.gid = wish.gid.unwrap_or(node.gid);
            node.mode = wish.file_mode.unwrap_or(node.mode);
            nodes.push(node);
        }
    }
    let mounts = edits.mounts.iter().map(|wish| {
        let mut options = wish.options.clone();
        if !options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
        {
            options.push("rbind".to_owned());
        }
        ReadyMount {
            target: Path::new("/").join(&wish.container_path),
            kind: "bind",
            source: wish.host_path.clone().into(),
            options,
        }
    });
    let mounts = mounts.collect();
    Ok(Injected {
        edits,
        nodes,
        mounts,
    })
}
