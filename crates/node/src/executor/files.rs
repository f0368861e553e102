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
use shoal_api::{
    object::Task,
    spec::{ContainerTaskSpec, Driver, FileTarget},
    template::{
        TemplateError,
        task::{self, Payload, Values},
    },
};
use shoal_worker::core::assignment::TaskFiles;

/// Why a task's files cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// The node's trouble, which may pass.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A template that cannot be filled in for this task.
    #[error("cannot expand {what} {name:?}: {source}")]
    Template {
        what: &'static str,
        name: String,
        source: TemplateError,
    },
    /// An owner that is no number.
    #[error("{kind} of {name:?} must be a number, not {value:?}")]
    Owner {
        kind: &'static str,
        name: String,
        value: String,
    },
}

/// Writes a task's files to a tmpfs of its own and returns them as (host path, container path).
///
/// A tmpfs, since secrets must not reach a disk; one per task, so that it goes in one step. `wanted` is the container with
/// its templates filled in; data that is a template is filled in here.
pub(super) fn write(
    folder: &Path,
    wanted: &ContainerTaskSpec,
    files: &TaskFiles,
    values: &Values,
) -> Result<Vec<(String, String)>, FilesError> {
    if wanted.secrets.is_empty() && wanted.configs.is_empty() {
        return Ok(Vec::new());
    }
    remove(folder)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs = |options: &str| mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options));
    // Kept out of swap where the kernel can do that (Linux 6.4).
    let mounted = match tmpfs("mode=0700,noswap") {
        Err(Errno::EINVAL) => tmpfs("mode=0700"),
        mounted => mounted,
    };
    mounted.map_err(io::Error::from)?;
    let missing = |what: &str, name: &str| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{what} {name} was not sent"),
        )
    };
    let (mut all, mut payload) = (Vec::new(), Payload::default());
    payload.env = &wanted.env;
    for reference in &wanted.secrets {
        let secret = files.secrets.get(&reference.id);
        let spec = &secret
            .ok_or_else(|| missing("secret", &reference.name))?
            .spec;
        let (name, target) = (reference.name.as_str(), &reference.target);
        payload.secrets.insert(&target.name, &spec.data);
        all.push(("secret", name, target, &spec.data, &spec.templating));
    }
    for reference in &wanted.configs {
        let config = files.configs.get(&reference.id);
        let spec = &config
            .ok_or_else(|| missing("config", &reference.name))?
            .spec;
        let (name, target) = (reference.name.as_str(), &reference.target);
        payload.configs.insert(&target.name, &spec.data);
        all.push(("config", name, target, &spec.data, &spec.templating));
    }
    let mut written = Vec::new();
    for (number, (what, name, target, data, templating)) in all.into_iter().enumerate() {
        let base = if what == "secret" {
            "/run/secrets"
        } else {
            "/"
        };
        let expanded;
        let data = if is_template(templating.as_ref()) {
            let filled = values.expand_payload(data, &payload);
            expanded = filled.map_err(|source| FilesError::Template {
                what,
                name: name.to_owned(),
                source,
            })?;
            &expanded
        } else {
            data
        };
        let path = file(folder, number, target, data)?;
        written.push((path, place(base, target, name)));
    }
    Ok(written)
}

fn is_template(driver: Option<&Driver>) -> bool {
    driver.is_some_and(|driver| driver.name == task::DRIVER)
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

fn file(
    folder: &Path,
    number: usize,
    target: &FileTarget,
    data: &[u8],
) -> Result<String, FilesError> {
    let path = folder.join(number.to_string());
    fs::write(&path, data)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(target.mode & 0o7777))?;
    let id = |kind: &'static str, text: &str| {
        if text.is_empty() {
            return Ok(0);
        }
        text.parse().map_err(|_| FilesError::Owner {
            kind,
            name: target.name.clone(),
            value: text.to_owned(),
        })
    };
    let (uid, gid) = (id("uid", &target.uid)?, id("gid", &target.gid)?);
    chown(&path, Some(uid), Some(gid))?;
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
