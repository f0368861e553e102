//! `--init`: a process 1 that does nothing but pass signals on and bury the dead.
//!
//! It is this very program, which stays where the container's command would have replaced it: so it needs no file in
//! the image, and works in one that holds a single static binary. From the fork on it allocates nothing.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, setpgid};

/// Signals that are about this process itself.
const OWN: &[Signal] = &[
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Forks. Returns in the child, which is to become the container's command; the parent stays process 1 and ends as
/// the child ends. `report` is the pipe whose closing tells that the command runs.
pub(super) fn split(report: RawFd) -> Result<(), Errno> {
    let mut awaited = SigSet::all();
    for signal in OWN {
        awaited.remove(*signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&awaited), None)?;
    // A background process group that sets the terminal's foreground would be stopped.
    // SAFETY: ignoring a signal runs no code of ours.
    let _ =
        unsafe { nix::sys::signal::signal(Signal::SIGTTOU, nix::sys::signal::SigHandler::SigIgn) };
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // A group of its own, in the terminal's foreground if there is one, so that keys reach the command alone.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            // SAFETY: takes a descriptor and a process group by value.
            let _ = unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, getpgrp().as_raw()) };
            Ok(())
        }
        ForkResult::Parent { child } => {
            let _ = report;
            // Neither the report nor anything else may be held open by one that never ends.
            // SAFETY: nothing in this process uses a descriptor from here on but the standard three.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            let _ = nix::sys::prctl::set_name(c"shoal-init");
            let code = serve(&awaited, child);
            // SAFETY: ends this process at once; there is nothing to tidy up.
            unsafe { libc::_exit(code) }
        }
    }
}

fn serve(awaited: &SigSet, child: Pid) -> i32 {
    loop {
        let Ok(signal) = awaited.wait() else {
            // An unknown (real-time) number; nix has no name for those, and they are nobody's business but the child's.
            continue;
        };
        match signal {
            Signal::SIGCHLD => {
                if let Some(code) = bury(child) {
                    return code;
                }
            }
            signal => drop(kill(child, signal)),
        }
    }
}

/// Waits for everything that has ended; the exit code when the child was among it.
fn bury(child: Pid) -> Option<i32> {
    let mut ended = None;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => ended = Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                ended = Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}
