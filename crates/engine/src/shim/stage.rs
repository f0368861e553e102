//! Sources of mounts that no path of the host leads to safely: they are made ready in the builder's own mount
//! namespace, where no container can move them about.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};

use super::protocol::{Failure, STAGE_NAME, Staged};

/// What has to be fetched out of other mount namespaces, before the builder has its own.
pub(super) fn fetch(staged: &[Staged]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let fetched = staged.iter().map(|one| match one {
        Staged::Shm { pid } => shm_of(*pid).map(Some).map_err(|errno| {
            Failure::new(format!(
                "cannot join the shared memory of process {pid}: {}",
                errno.desc()
            ))
        }),
        Staged::Subpath { .. } => Ok(None),
    });
    fetched.collect()
}

/// Puts them below the run directory, which is the working directory, in the order of their numbers.
pub(super) fn place(staged: &[Staged], fetched: Vec<Option<OwnedFd>>) -> Result<(), Failure> {
    for (number, (one, tree)) in staged.iter().zip(fetched).enumerate() {
        let at = Path::new(STAGE_NAME).join(number.to_string());
        let told = |err: std::io::Error| Failure::new(format!("{}: {err}", at.display()));
        std::fs::create_dir_all(STAGE_NAME).map_err(told)?;
        match (one, tree) {
            (Staged::Subpath { volume, path }, _) => {
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
                    std::fs::create_dir_all(&at).map_err(told)?;
                } else {
                    std::fs::write(&at, []).map_err(told)?;
                }
                let source = format!("/proc/self/fd/{}", source.as_raw_fd());
                let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(
                    Some(source.as_str()),
                    &at,
                    None::<&str>,
                    flags,
                    None::<&str>,
                )
                .map_err(fail)?;
            }
            (Staged::Shm { .. }, Some(tree)) => {
                std::fs::create_dir_all(&at).map_err(told)?;
                attach(&tree, &at).map_err(|errno| told(errno.into()))?;
            }
            (Staged::Shm { .. }, None) => {}
        }
    }
    Ok(())
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
    let namespace = |of: &str| {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        open(format!("/proc/{of}/ns/mnt").as_str(), flags, Mode::empty())
    };
    let (own, other) = (namespace("self")?, namespace(&pid.to_string())?);
    setns(&other, CloneFlags::CLONE_NEWNS)?;
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: takes a path that lives until after the call, and flags.
    let tree = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            c"/dev/shm".as_ptr(),
            flags,
        )
    });
    setns(&own, CloneFlags::CLONE_NEWNS)?;
    let fd = i32::try_from(tree?).map_err(|_| Errno::EBADF)?;
    // SAFETY: just made by the kernel and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
