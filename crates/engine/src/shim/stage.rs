//! Sources of mounts that no path of the host leads to safely: they are made ready in the builder's own mount
//! namespace, where no container can move them about.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};

use super::protocol::{Failure, STAGE_NAME, Staged};
use super::rootfs;

/// What has to be fetched out of other mount namespaces, before the builder has its own.
pub(super) fn fetch(staged: &[Staged]) -> Result<Vec<Option<OwnedFd>>, Failure> {
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
            let tree = clone_of(source, *recursive).and_then(|tree| {
                if *read_only {
                    protect(&tree, *recursive && *read_only_below)?;
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
pub(super) fn place(
    staged: &[Staged],
    fetched: Vec<Option<OwnedFd>>,
) -> Result<Vec<Late>, Failure> {
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
                attach(&tree, &at).map_err(|errno| told(errno.into()))?;
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

/// A mount that is shared with the host's. The runtime makes everything in the container's namespace a slave of what it
/// was, so this one comes when that is done.
pub(super) struct Late {
    tree: OwnedFd,
    target: PathBuf,
}

/// Puts them into the mount namespace of the container with this process, which has not begun to run.
pub(super) fn place_late(late: &[Late], pid: i32) -> Result<(), Failure> {
    if late.is_empty() {
        return Ok(());
    }
    let at = std::env::current_dir();
    let (own, other) = namespaces(pid).map_err(|errno| Failure::new(errno.desc()))?;
    let entered = setns(&other, CloneFlags::CLONE_NEWNS);
    let placed = entered
        .map_err(|errno| Failure::new(errno.desc()))
        .and_then(|()| {
            late.iter().try_for_each(|one| {
                attach(&one.tree, &one.target).map_err(|errno| {
                    Failure::new(format!(
                        "cannot share the mounts of {}: {}",
                        one.target.display(),
                        errno.desc().to_lowercase()
                    ))
                })
            })
        });
    setns(&own, CloneFlags::CLONE_NEWNS).map_err(|errno| Failure::new(errno.desc()))?;
    if let Ok(at) = at {
        // Entering a namespace leads to its root.
        std::env::set_current_dir(&at)
            .map_err(|err| Failure::new(format!("cannot enter {}: {err}", at.display())))?;
    }
    placed
}

/// Our mount namespace, and that of a process.
fn namespaces(pid: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let namespace = |of: &str| {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        open(format!("/proc/{of}/ns/mnt").as_str(), flags, Mode::empty())
    };
    Ok((namespace("self")?, namespace(&pid.to_string())?))
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
fn shm_of(pid: i32) -> Result<OwnedFd, Errno> {
    let (own, other) = namespaces(pid)?;
    setns(&other, CloneFlags::CLONE_NEWNS)?;
    let tree = clone_of(Path::new("/dev/shm"), false);
    setns(&own, CloneFlags::CLONE_NEWNS)?;
    tree
}

/// A copy of the mount at a path, attached nowhere; it goes on hearing of the other's mounts if that was shared.
fn clone_of(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    let path =
        std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes a path that lives until after the call, and flags.
    let tree = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)
    });
    let fd = i32::try_from(tree?).map_err(|_| Errno::EBADF)?;
    // SAFETY: just made by the kernel and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the right to write away from a copy.
fn protect(tree: &OwnedFd, recursive: bool) -> Result<(), Errno> {
    /// `struct mount_attr` of `linux/mount.h`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let wanted = Attributes {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: takes a descriptor, an empty text, and a structure of the size given; both live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags.cast_unsigned(),
            &raw const wanted,
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

fn attach(tree: &OwnedFd, at: &Path) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let at =
        std::ffi::CString::new(at.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes descriptors, and strings that live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            at.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}
