//! The process that forks shims.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, fork, setsid};

use super::birthplace::Base;
use super::protocol::{FRAME_MAX, Supervise};
use super::serve;

/// Serves the daemon until it goes; returns the exit code.
pub(super) fn run() -> i32 {
    // SAFETY: no handler is installed, and nothing here waits for children: the kernel reaps the shims.
    if unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.is_err() {
        return 71;
    }
    // Whatever the daemon, or who started it, left open by mistake must reach no container.
    // SAFETY: nothing in this process owns a descriptor yet but the standard three.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return 71;
    }
    // Started from a descriptor, whose number would be the name.
    let _ = nix::sys::prctl::set_name(c"shoal-shim");
    // What the shims read and write (environment, memory) is nobody's business, least of all a container's.
    let _ = nix::sys::prctl::set_dumpable(false);
    let Ok(base) = Base::make() else {
        return 71;
    };
    let mut buffer = vec![0_u8; FRAME_MAX];
    loop {
        match receive(&mut buffer) {
            Ok(None) => return 0,
            Ok(Some((request, listener, control))) => {
                // SAFETY: this process has one thread, so the child may go on as if nothing had happened.
                match unsafe { fork() } {
                    Ok(ForkResult::Child) => {
                        drop(buffer);
                        std::process::exit(shim(request, listener, control, base));
                    }
                    // The daemon sees the control connection close.
                    Ok(ForkResult::Parent { .. }) | Err(_) => {}
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return 72,
        }
    }
}

fn shim(request: Supervise, listener: UnixListener, control: UnixStream, base: Base) -> i32 {
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    let _ = setsid();
    // Standard input is the way to the nursery's daemon; the shim must not hold it open.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(null);
    }
    serve::run(request, listener, control, base)
}

/// The next request with the socket to listen on and the daemon's own connection; `None` when the daemon is gone.
fn receive(buffer: &mut [u8]) -> Result<Option<(Supervise, UnixListener, UnixStream)>, Errno> {
    let mut space = cmsg_space!([RawFd; 2]);
    let mut fds: Vec<OwnedFd> = Vec::with_capacity(2);
    let bytes = {
        let mut iov = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(
            libc::STDIN_FILENO,
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else owns them.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        message.bytes
    };
    if bytes == 0 {
        return Ok(None);
    }
    let request: Supervise =
        serde_json::from_slice(&buffer[..bytes]).map_err(|_| Errno::EBADMSG)?;
    let [listener, control]: [OwnedFd; 2] = fds.try_into().map_err(|_| Errno::EBADMSG)?;
    Ok(Some((request, listener.into(), control.into())))
}
