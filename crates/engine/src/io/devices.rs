//! Devices of this host.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use shoal_api::container::DeviceSpec;

use super::engine::EngineError;
use crate::core::oci::DeviceNode;

/// Below `/dev`, but made anew for every container.
const NOT_DEVICES: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// Directories deeper than this are somebody's joke.
const DEPTH_MAX: usize = 16;

/// The devices that a wish stands for: one, or all below a directory.
pub(super) fn wished(wish: &DeviceSpec) -> Result<Vec<DeviceNode>, EngineError> {
    let failed = |why: String| EngineError::Device {
        path: wish.host_path.clone(),
        why,
    };
    let missing = |_| failed("no such file or directory".into());
    let host = fs::canonicalize(&wish.host_path).map_err(missing)?;
    let meta = fs::metadata(&host).map_err(missing)?;
    let inside = Path::new(&wish.container_path);
    if let Some(node) = node(&meta, inside.to_owned(), &wish.permissions) {
        return Ok(vec![node]);
    }
    let mut found = Vec::new();
    if meta.is_dir() {
        below(&host, inside, &wish.permissions, DEPTH_MAX, &mut found);
    }
    if found.is_empty() {
        return Err(failed("not a device node".into()));
    }
    Ok(found)
}

/// All devices of this host.
pub(super) fn all() -> Vec<DeviceNode> {
    let mut found = Vec::new();
    below(
        Path::new("/dev"),
        Path::new("/dev"),
        "rwm",
        DEPTH_MAX,
        &mut found,
    );
    found.retain(|node| node.path != Path::new("/dev/console"));
    found
}

fn below(host: &Path, inside: &Path, access: &str, depth: usize, found: &mut Vec<DeviceNode>) {
    let mut entries: Vec<_> = fs::read_dir(host).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Ok(meta) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        let path = inside.join(&name);
        if let Some(node) = node(&meta, path.clone(), access) {
            found.push(node);
        } else if meta.is_dir() && depth > 0 && !NOT_DEVICES.iter().any(|no| name == *no) {
            below(&entry.path(), &path, access, depth - 1, found);
        }
    }
}

fn node(meta: &fs::Metadata, path: PathBuf, access: &str) -> Option<DeviceNode> {
    let kind = meta.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceNode {
        path,
        block: kind.is_block_device(),
        major: i64::from(libc::major(meta.rdev())),
        minor: i64::from(libc::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    })
}

/// Major and minor number of the block device at a path.
pub(super) fn block_numbers(path: &str) -> Option<(i64, i64)> {
    let meta = fs::metadata(path).ok()?;
    let node = node(&meta, PathBuf::new(), "")?;
    node.block.then_some((node.major, node.minor))
}
