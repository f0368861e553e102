//! A log that the container never waits for (`mode=non-blocking`): a process of its own writes it, and lines that do not
//! fit into the buffer before it are lost, as with docker.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use super::{LINE_MAX, Sinks};
use crate::shim::protocol::LogSetup;

/// A line with its stream and time.
const MESSAGE_MAX: usize = LINE_MAX + 9;
/// Least room: for one line of the greatest length.
const BUFFER_MIN: u64 = 2 * MESSAGE_MAX as u64;

/// The way to the process that writes the log.
pub(super) struct Ring {
    /// Gone when nothing more will come.
    socket: Option<OwnedFd>,
    writer: Pid,
}

impl Ring {
    /// Starts the process. An error says which log cannot be reached.
    pub(super) fn start(bytes: u64, setup: LogSetup) -> Result<Self, String> {
        let failed = |err: io::Error| format!("cannot start the log's writer: {err}");
        let flags = SockFlag::SOCK_CLOEXEC;
        // Messages arrive whole or not at all.
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|errno| failed(errno.into()))?;
        let room = usize::try_from(bytes.max(BUFFER_MIN)).unwrap_or(usize::MAX);
        // What the system allows to others does not bind root.
        let made = setsockopt(&ours, sockopt::SndBufForce, &room);
        made.or_else(|_| setsockopt(&ours, sockopt::SndBuf, &room))
            .map_err(|errno| failed(errno.into()))?;
        // SAFETY: the shim has one thread.
        match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
            ForkResult::Child => {
                write_log(theirs.as_raw_fd(), setup);
                // SAFETY: ends this process at once, without the shim's exit handlers.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(theirs);
                let mut said = vec![0; MESSAGE_MAX];
                let read = recv(ours.as_raw_fd(), &mut said, MsgFlags::empty());
                let ring = Self {
                    socket: Some(ours),
                    writer: child,
                };
                match read {
                    Ok(1) => Ok(ring),
                    Ok(0) | Err(_) => Err("the log's writer ended without a word".to_owned()),
                    Ok(length) => Err(String::from_utf8_lossy(&said[1..length]).into_owned()),
                }
            }
        }
    }

    pub(super) fn line(&mut self, stream: StdStream, line: &[u8], at: Timestamp) {
        let Some(socket) = &self.socket else {
            return;
        };
        let mut message = Vec::with_capacity(line.len() + 9);
        message.push(u8::from(stream == StdStream::Stderr));
        message.extend_from_slice(&at.0.to_le_bytes());
        message.extend_from_slice(line);
        // With a full buffer the line is lost: that is what was asked for.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(socket.as_raw_fd(), &message, flags);
    }

    /// Waits until what is in the buffer is written.
    pub(super) fn finish(&mut self) {
        if self.socket.take().is_some() {
            let _ = waitpid(self.writer, None);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The process: opens the log, says whether it could, and writes until nothing more comes.
fn write_log(socket: RawFd, setup: LogSetup) {
    /// The only descriptor it keeps besides the standard ones.
    const OWN: RawFd = 3;
    if socket != OWN {
        // SAFETY: what this number meant is the shim's; this process does not use it.
        if unsafe { libc::dup2(socket, OWN) } < 0 {
            return;
        }
    }
    // SAFETY: closes what is the shim's; this process opens its own. Nobody shall wait for it because of them.
    unsafe { libc::close_range(4, libc::c_uint::MAX, 0) };
    let mut sinks = match Sinks::open(setup) {
        Ok(sinks) => sinks,
        Err(why) => {
            let said = [b"!", why.as_bytes()].concat();
            let _ = send(OWN, &said, MsgFlags::MSG_NOSIGNAL);
            return;
        }
    };
    if send(OWN, b".", MsgFlags::MSG_NOSIGNAL).is_err() {
        return;
    }
    let mut message = vec![0; MESSAGE_MAX];
    let mut more = MsgFlags::empty();
    loop {
        match recv(OWN, &mut message, more) {
            Ok(length) if length >= 9 => {
                let (head, line) = message[..length].split_at(9);
                let stream = if head[0] == 1 {
                    StdStream::Stderr
                } else {
                    StdStream::Stdout
                };
                let at = head[1..].try_into().map(i64::from_le_bytes);
                sinks.line(stream, line, Timestamp(at.unwrap_or_default()));
                // As long as there are more, they go out together.
                more = MsgFlags::MSG_DONTWAIT;
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                sinks.flush();
                more = MsgFlags::empty();
            }
            Ok(_) | Err(_) => break,
        }
    }
    sinks.finish();
}
