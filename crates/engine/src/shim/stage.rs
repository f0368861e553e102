//! Sources of mounts that no path of the host leads to safely: they are made ready in the builder's own mount
//! namespace, where no container can move them about.
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};

use super::protocol::{Failure, STAGE_NAME, Staged};
use super::rootfs;
use super::trees::{Attributes, Tree};

/// What has to be fetched out of other mount namespaces, before the builder has its own.
pub(super) fn fetch(staged: &[Staged]) -> Result<Vec<Option<Tree>>, Failure> {
    let fetched = staged.iter().map(|one| match one {
        Staged::Shm { pid } => shm_of(*pid).map(Some).map_err(|errno| {
            Failure::new(format!(
                "cannot join the shared memory of process {pid}: {}",
                errno.desc()
            ))
        }),
        Staged::Shared {
            source,
            recursive,
            read_only,
            read_only_below,
            ..
        } => {
            let tree = Tree::of(source, *recursive).and_then(|tree| {
                if *read_only {
                    tree.restrict(Attributes::READ_ONLY, *recursive && *read_only_below)?;
                }
                Ok(tree)
            });
            tree.map(Some).map_err(|errno| {
                let source = source.display();
                Failure::new(format!(
                    "cannot share {source}: {}",
                    errno.desc().to_lowercase()
                ))
            })
        }
        Staged::Subpath { .. } | Staged::Image { .. } => Ok(None),
    });
    fetched.collect()
}

/// Puts them below the run directory, which is the working directory, in the order of their numbers.
/// Returns what can be put in its place only when the container is there, with its target.
pub(super) fn place(staged: &[Staged], fetched: Vec<Option<Tree>>) -> Result<Vec<Late>, Failure> {
    let mut late = Vec::new();
    for (number, (one, tree)) in staged.iter().zip(fetched).enumerate() {
        let at = Path::new(STAGE_NAME).join(number.to_string());
        let told = |err: std::io::Error| Failure::new(format!("{}: {err}", at.display()));
        std::fs::create_dir_all(STAGE_NAME).map_err(told)?;
        match (one, tree) {
            (Staged::Image { layers, subpath }, _) => {
                let whole = match subpath {
                    None => at.clone(),
                    Some(_) => Path::new(STAGE_NAME).join(format!("{number}.image")),
                };
                std::fs::create_dir_all(&whole).map_err(told)?;
                rootfs::mount_layers(layers, &whole)?;
                if let Some(path) = subpath {
                    bind_inside(&whole, path, &at)?;
                }
            }
            (Staged::Subpath { volume, path }, _) => bind_inside(volume, path, &at)?,
            (Staged::Shm { .. }, Some(tree)) => {
                std::fs::create_dir_all(&at).map_err(told)?;
                tree.attach(&at).map_err(|errno| told(errno.into()))?;
            }
            (Staged::Shared { target, .. }, Some(tree)) => late.push(Late {
                tree,
                target: target.clone(),
            }),
            (Staged::Shm { .. } | Staged::Shared { .. }, None) => {}
        }
    }
    Ok(late)
}

/// A mount that is shared with the host's. It lies over what is mounted at its target already, so it comes last.
pub(super) struct Late {
    tree: Tree,
    target: PathBuf,
}

/// Puts them in their places, when `/` is the container's.
pub(super) fn place_late(late: &[Late]) -> Result<(), Failure> {
    late.iter().try_for_each(|one| {
        one.tree.attach(&one.target).map_err(|errno| {
            Failure::new(format!(
                "cannot share the mounts of {}: {}",
                one.target.display(),
                errno.desc().to_lowercase()
            ))
        })
    })
}

/// Binds a place in a volume or image.
fn bind_inside(volume: &Path, path: &Path, at: &Path) -> Result<(), Failure> {
    let told = |err: std::io::Error| Failure::new(format!("{}: {err}", at.display()));
    let fail = |errno: Errno| {
        let path = volume.join(path);
        Failure::new(format!(
            "cannot access path {}: {}",
            path.display(),
            errno.desc().to_lowercase()
        ))
    };
    let source = inside(volume, path).map_err(fail)?;
    let is_dir = fstat(&source).map_err(fail)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    if is_dir {
        std::fs::create_dir_all(at).map_err(told)?;
    } else {
        std::fs::write(at, []).map_err(told)?;
    }
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source.as_str()), at, None::<&str>, flags, None::<&str>).map_err(fail)
}

/// A place in a volume, whose links are followed inside it only.
fn inside(volume: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let volume = open(volume, flags, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&volume, path, how)
}

/// A copy of the mount on `/dev/shm` that a process has, attached nowhere.
fn shm_of(pid: i32) -> Result<Tree, Errno> {
    let namespace = |of: &str| {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        open(format!("/proc/{of}/ns/mnt").as_str(), flags, Mode::empty())
    };
    let (own, other) = (namespace("self")?, namespace(&pid.to_string())?);
    setns(&other, CloneFlags::CLONE_NEWNS)?;
    let tree = Tree::of(Path::new("/dev/shm"), false);
    setns(&own, CloneFlags::CLONE_NEWNS)?;
    tree
}
