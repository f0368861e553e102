//! The program of the shims, in a form that no container can write to.
//!
//! A process on its way into a container is reachable from there through `/proc/<pid>/exe`, with the rights to write
//! the host's binary (CVE-2019-5736). So shims run a copy that cannot be written: preferably the file itself, seen
//! through a read-only overlay that is mounted nowhere, which costs neither time nor memory; else a sealed copy in
//! memory.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use pentacle::SealOptions;

/// Not in libc's list yet for every target.
const MOUNT_ATTR_RDONLY: libc::c_uint = 1;
const MOUNT_ATTR_NOSUID: libc::c_uint = 2;
const MOUNT_ATTR_NODEV: libc::c_uint = 4;

/// Opens `program` so that what is executed from the descriptor cannot be written through it. `empty` is a directory
/// with nothing in it. Blocks.
pub(super) fn open(program: &Path, empty: &Path) -> io::Result<OwnedFd> {
    match behind_overlay(program, empty) {
        Ok(fd) => Ok(fd),
        Err(errno) => {
            tracing::debug!(error = %errno, "no overlay over the program, copying it");
            let mut original = File::open(program)?;
            let options = SealOptions::new().executable(true).close_on_exec(true);
            Ok(options.copy_and_seal(&mut original)?.into())
        }
    }
}

fn behind_overlay(program: &Path, empty: &Path) -> Result<OwnedFd, Errno> {
    let (Some(dir), Some(name)) = (program.parent(), program.file_name()) else {
        return Err(Errno::EINVAL);
    };
    let dir =
        File::open(dir).map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))?;
    let empty = File::open(empty)
        .map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))?;
    // By descriptor, since paths may be long and may hold the separator. Without an upper layer the kernel wants two.
    let lower = format!(
        "/proc/self/fd/{}:/proc/self/fd/{}",
        dir.as_raw_fd(),
        empty.as_raw_fd()
    );
    // SAFETY: takes a string that lives until after the call, and flags.
    let context = owned(unsafe {
        libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), libc::FSOPEN_CLOEXEC)
    })?;
    configure(
        &context,
        libc::FSCONFIG_SET_STRING,
        Some(("lowerdir", &lower)),
    )?;
    configure(&context, libc::FSCONFIG_CMD_CREATE, None)?;
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    // SAFETY: takes a descriptor and flags.
    let mounted = unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            attributes,
        )
    };
    let mounted = owned(mounted)?;
    openat(
        &mounted,
        <OsStr as AsRef<Path>>::as_ref(name),
        OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    option: Option<(&str, &str)>,
) -> Result<(), Errno> {
    let text = |text: &str| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
    let option = option
        .map(|(key, value)| Ok::<_, Errno>((text(key)?, text(value)?)))
        .transpose()?;
    let (key, value) = option
        .as_ref()
        .map_or((std::ptr::null(), std::ptr::null()), |(key, value)| {
            (key.as_ptr(), value.as_ptr())
        });
    // SAFETY: key and value are null or strings that live until after the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key,
            value,
            0,
        )
    })
    .map(drop)
}

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: just made by the kernel and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_runs_and_cannot_be_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).expect("directory");
        let program = dir.path().join("program");
        std::fs::copy("/bin/busybox", &program).expect("busybox");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
        for fd in [
            open(&program, &empty).expect("open"),
            open(&program, Path::new("/nowhere")).expect("copy"),
        ] {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let output = Command::new(&path)
                .arg0("busybox")
                .args(["echo", "ran"])
                .output()
                .expect("run");
            assert_eq!(output.stdout, b"ran\n");
            let write = std::fs::OpenOptions::new().write(true).open(&path);
            let written =
                write.and_then(|file| std::os::unix::fs::FileExt::write_at(&file, b"x", 0));
            written.expect_err("it is sealed");
        }
    }
}
