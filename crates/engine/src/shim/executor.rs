//! The last step inside the container: find the executable, put signals back to normal, become it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{AccessFlags, access, execve};
use oci_spec::runtime::Spec;

use super::protocol::Failure;

/// What to do when everything is in its place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Payload {
    /// Run the process of the spec.
    Process {
        /// Takes the reason when it cannot be run; closed by a successful exec.
        report: RawFd,
        /// Stay process 1 and run it beside that.
        init: bool,
    },
    /// Look around instead.
    Probe,
}

impl Payload {
    /// Does it; returns only to say why not.
    pub(super) fn run(self, spec: &Spec) -> Failure {
        match self {
            Self::Probe => super::probe::look_around(spec),
            Self::Process { report, init } => {
                if init && let Err(errno) = super::init::split(report) {
                    return Failure::new(format!("cannot fork: {}", describe(errno)));
                }
                become_process(spec)
            }
        }
    }
}

/// Whether the process of a spec can be run, as far as that can be told before.
pub(super) fn check(spec: &Spec) -> Result<(), Failure> {
    let (args, env) = process_of(spec);
    check_cwd().and_then(|()| find(args, env)).map(drop)
}

/// Writes a failure to the pipe that the starter reads.
pub(super) fn report(fd: RawFd, failure: &Failure) {
    // SAFETY: the pipe stays open until an exec or the end of this process.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    if let Ok(json) = serde_json::to_vec(failure) {
        let _ = nix::unistd::write(fd, &json);
    }
}

/// Refuses a working directory outside of the container's root, reached through a descriptor (CVE-2024-21626).
///
/// Asks the kernel itself: for such a directory it answers "(unreachable)", but the C library then walks upwards on its
/// own, through the host's directories, and comes back with a path that looks fine.
fn check_cwd() -> Result<(), Failure> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    if length > 0 && path[0] == b'/' {
        Ok(())
    } else {
        Err(Failure::new(
            "current working directory is outside of container mount namespace root",
        ))
    }
}

fn process_of(spec: &Spec) -> (&[String], &[String]) {
    let process = spec.process().as_ref();
    let args = process
        .and_then(|p| p.args().as_deref())
        .unwrap_or_default();
    let env = process.and_then(|p| p.env().as_deref()).unwrap_or_default();
    (args, env)
}

/// Replaces this process by that of the spec; returns only to say why not.
pub(super) fn become_process(spec: &Spec) -> Failure {
    let (args, env) = process_of(spec);
    let path = match check_cwd().and_then(|()| find(args, env)) {
        Ok(path) => path,
        Err(failure) => return failure,
    };
    let c_strings = |texts: &[String]| {
        texts
            .iter()
            .map(|s| CString::new(s.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
    };
    let (Ok(path), Ok(args), Ok(env)) = (
        CString::new(path.as_os_str().as_bytes()),
        c_strings(args),
        c_strings(env),
    ) else {
        return Failure::new("exec: a NUL byte in arguments or environment");
    };
    reset_signals();
    let Err(errno) = execve(&path, &args, &env);
    let exit_code = if errno == Errno::ENOENT { 127 } else { 126 };
    Failure {
        exit_code,
        message: format!("exec {}: {}", path.to_string_lossy(), describe(errno)),
    }
}

/// Looks the executable up as Docker's runtime does, with its words.
fn find(args: &[String], env: &[String]) -> Result<PathBuf, Failure> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(Failure::new("no command specified"));
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match is_program(&path) {
            Ok(()) => Ok(path),
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => Err(Failure {
                exit_code: 127,
                message: format!("exec: {name:?}: stat {name}: {}", describe(errno)),
            }),
            Err(errno) => Err(Failure {
                exit_code: 126,
                message: format!("exec: {name:?}: {}", describe(errno)),
            }),
        };
    }
    let search = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    search
        .split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|path| is_program(path).is_ok())
        .ok_or_else(|| Failure {
            exit_code: 127,
            message: format!("exec: {name:?}: executable file not found in $PATH"),
        })
}

fn is_program(path: &Path) -> Result<(), Errno> {
    let stat = nix::sys::stat::stat(path)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    access(path, AccessFlags::X_OK)
}

/// The words of C libraries in lower case, as Go has them.
pub(super) fn describe(errno: Errno) -> String {
    match errno {
        Errno::EISDIR => "is a directory".to_owned(),
        _ => errno.desc().to_lowercase(),
    }
}

/// Handlers vanish with an exec, but ignored and blocked signals would stay so.
fn reset_signals() {
    // The kernel's own structure: SIG_DFL, no flags, no restorer, an empty mask. The C library would not let us touch
    // the two signals that it keeps to itself, and whoever started the daemon may have ignored those too.
    let default = [0_u64; 4];
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: the structure lives until after the call, and the default disposition runs no code of ours. The
        // kernel refuses SIGKILL and SIGSTOP, which is fine.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Writes the id of a process just forked to the same pipe.
pub(super) fn report_pid(fd: RawFd, pid: nix::unistd::Pid) {
    // SAFETY: the pipe stays open until an exec or the end of this process.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = nix::unistd::write(fd, format!("{pid} ").as_bytes());
}
