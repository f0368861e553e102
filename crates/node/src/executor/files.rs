//! Secrets and configs of a task: files in memory, gone with the task.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use shoal_api::{object::Task, spec::FileTarget};
use shoal_worker::core::assignment::TaskFiles;

/// Writes a task's files to a tmpfs of its own and returns them as (host path, container path).
///
/// A tmpfs, since secrets must not reach a disk; one per task, so that it goes in one step.
pub(super) fn write(
    folder: &Path,
    task: &Task,
    files: &TaskFiles,
) -> io::Result<Vec<(String, String)>> {
    let wanted = &task.spec.container;
    if wanted.secrets.is_empty() && wanted.configs.is_empty() {
        return Ok(Vec::new());
    }
    remove(folder)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        flags,
        Some("mode=0700"),
    )?;
    let mut written = Vec::new();
    let missing = |what: &str, name: &str| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{what} {name} was not sent"),
        )
    };
    for reference in &wanted.secrets {
        let secret = files
            .secrets
            .get(&reference.id)
            .ok_or_else(|| missing("secret", &reference.name))?;
        let target = place("/run/secrets", &reference.target, &reference.name);
        written.push((
            file(folder, written.len(), &reference.target, &secret.spec.data)?,
            target,
        ));
    }
    for reference in &wanted.configs {
        let config = files
            .configs
            .get(&reference.id)
            .ok_or_else(|| missing("config", &reference.name))?;
        let target = place("/", &reference.target, &reference.name);
        written.push((
            file(folder, written.len(), &reference.target, &config.spec.data)?,
            target,
        ));
    }
    Ok(written)
}

/// Where a file appears in the container: its target, below `folder` unless absolute.
fn place(folder: &str, target: &FileTarget, name: &str) -> String {
    let wanted = if target.name.is_empty() {
        name
    } else {
        &target.name
    };
    Path::new(folder)
        .join(wanted)
        .to_string_lossy()
        .into_owned()
}

fn file(folder: &Path, number: usize, target: &FileTarget, data: &[u8]) -> io::Result<String> {
    let path = folder.join(number.to_string());
    fs::write(&path, data)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(target.mode & 0o7777))?;
    let id = |text: &str| {
        if text.is_empty() {
            Ok(0)
        } else {
            text.parse().map_err(io::Error::other)
        }
    };
    chown(&path, Some(id(&target.uid)?), Some(id(&target.gid)?))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Removes a task's files. Does nothing where there are none.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match umount2(folder, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(problem) => return Err(problem.into()),
    }
    match fs::remove_dir(folder) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => Err(problem),
        _ => Ok(()),
    }
}

/// Folder of a task's files.
pub(super) fn folder(exec_root: &Path, task: &Task) -> PathBuf {
    exec_root.join("tasks").join(task.id.as_str())
}
