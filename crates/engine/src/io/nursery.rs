//! The daemon's end of the nursery: asks for shims.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::sealed;
use crate::shim::protocol::{FRAME_MAX, SOCKET_NAME, Supervise};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair,
    sockopt,
};

/// Starts shims by way of a nursery process, which it starts again when it has gone.
#[derive(Debug)]
pub(super) struct Nursery {
    /// The binary that holds the shim's code, as no container can write it; all shims share its pages.
    program: OwnedFd,
    socket: Mutex<Option<OwnedFd>>,
}

impl Nursery {
    /// `program` is usually this one; `empty` is a directory with nothing in it. Blocks.
    pub(super) fn new(program: &Path, empty: &Path) -> io::Result<Self> {
        Ok(Self {
            program: sealed::open(program, empty)?,
            socket: Mutex::new(None),
        })
    }

    /// A new shim, listening in its run directory; the connection returned is its first. Blocks for about a millisecond.
    pub(super) fn launch(&self, supervise: &Supervise) -> io::Result<UnixStream> {
        let listener = listen(&supervise.run_dir)?;
        let (ours, theirs) = UnixStream::pair()?;
        let request = serde_json::to_vec(supervise)?;
        let fds = [listener.as_raw_fd(), theirs.as_raw_fd()];
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // Twice: the first attempt may find that the nursery has gone.
        for _ in 0..2 {
            if socket.is_none() {
                *socket = Some(self.spawn()?);
            }
            let fd = socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            let rights = [ControlMessage::ScmRights(&fds)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(fd, &[IoSlice::new(&request)], &rights, flags, None) {
                Ok(_) => return Ok(ours),
                Err(_) => *socket = None,
            }
        }
        Err(io::Error::other(
            "the process that starts shims does not answer",
        ))
    }

    fn spawn(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let _ = setsockopt(&ours, sockopt::SndBuf, &FRAME_MAX);
        let program = format!("/proc/self/fd/{}", self.program.as_raw_fd());
        let mut command = Command::new(program);
        command
            .arg0("shoal")
            .arg("shim")
            .env_clear()
            .current_dir("/");
        command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // A session of its own: a key pressed in the daemon's terminal must not reach the shims.
        // SAFETY: setsid is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
        }
        // It ends by itself when our end closes; the thread only takes its exit status.
        let mut child = command.spawn()?;
        std::thread::Builder::new()
            .name("shoal-nursery".into())
            .stack_size(64 << 10)
            .spawn(move || {
                let _ = child.wait();
            })?;
        Ok(ours)
    }
}

/// Listens on the socket of a run directory, whatever the length of its path.
fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let (_held, path) = short_path(run_dir)?;
    match std::fs::remove_file(run_dir.join(SOCKET_NAME)) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

/// Connects to the shim of a run directory.
pub(super) fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let (_held, path) = short_path(run_dir)?;
    UnixStream::connect(path)
}

/// Names of sockets have at most 107 bytes, so the directory is named by a descriptor.
fn short_path(run_dir: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(run_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}
