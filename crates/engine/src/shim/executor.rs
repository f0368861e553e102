//! The last step inside the container: find the executable, put signals back to normal, become it.
//!
//! libcontainer's own executor leaves ignored signals ignored (Rust ignores SIGPIPE) and says less about what it could
//! not run than the docker client needs to choose its exit code.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{AccessFlags, access, execve};

use super::filter::Walls;
use super::protocol::Failure;

/// Runs the process of the spec.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    /// Takes the reason when the process cannot be run; closed by a successful exec.
    pub report: RawFd,
    /// Stay process 1 and run the process beside it.
    pub init: bool,
    /// Rows and columns of its terminal, if it has one.
    pub console_size: Option<(u16, u16)>,
    /// What libcontainer leaves to us.
    pub walls: Option<Walls>,
}

impl Payload {
    fn fail(&self, failure: &Failure) {
        report(self.report, failure);
    }
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if self.init
            && let Err(errno) = super::init::split(self.report)
        {
            let failure = Failure::new(format!("cannot fork: {}", describe(errno)));
            self.fail(&failure);
            return Err(ExecutorError::Other(failure.message));
        }
        if let Some((rows, cols)) = self.console_size {
            // Here, because from outside it may come after the process has asked.
            let _ = super::exec::set_size(&std::io::stdin(), rows, cols);
        }
        let failure = become_process(spec);
        self.fail(&failure);
        if self.init {
            // A second copy of what libcontainer does next would only confuse it.
            std::process::exit(failure.exit_code);
        }
        Err(ExecutorError::Other(failure.message))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = process_of(spec);
        // Nothing of the container has run so far, and nothing will before these stand.
        let closed = self.walls.as_ref().map_or(Ok(()), Walls::close);
        closed
            .and_then(|()| check_cwd())
            .and_then(|()| find(args, env))
            .map(drop)
            .map_err(|failure| {
                self.fail(&failure);
                ExecutorValidationError::ArgValidationError(failure.message)
            })
    }

    /// The environment goes to `execve` directly.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
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
/// own, through the host's directories, and comes back with a path that looks fine. That fools libcontainer's check.
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
        return match check(&path) {
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
        .find(|path| check(path).is_ok())
        .ok_or_else(|| Failure {
            exit_code: 127,
            message: format!("exec: {name:?}: executable file not found in $PATH"),
        })
}

fn check(path: &Path) -> Result<(), Errno> {
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
