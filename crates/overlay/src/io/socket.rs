//! A netlink socket. It belongs to the namespace in which it was opened, wherever it is used later.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::core::{
    netlink::{Message, Received, flags, messages, native_u32},
    notice::OWN_PORTS,
};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel cuts dumps into datagrams of at most this size.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
/// Room for the largest nftables batch: a network of ten thousand services with a hundred backends each.
const SEND_BUFFER_BYTES: usize = 64 << 20;
/// Requests in flight, bounded so that their acknowledgements fit the receive buffer.
const REQUESTS_PER_SEND_MAX: usize = 64;
/// The kernel answers from within the request; this only ends a wait for an answer lost to a full buffer.
const ANSWER_TIMEOUT_S: i64 = 5;
/// Room for the notices of a burst of changes; if it does not suffice, everything is read again.
const NOTICE_BUFFER_BYTES: usize = 4 << 20;
/// Ports tried before giving up: other processes may use the same.
const PORT_ATTEMPTS_MAX: usize = 64;

/// Which part of the kernel it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Links, addresses, routes.
    Route,
    /// nftables.
    Netfilter,
    /// Families that have no protocol of their own, as IPVS.
    Generic,
}

impl Kind {
    fn protocol(self) -> SockProtocol {
        match self {
            Self::Route => SockProtocol::NetlinkRoute,
            Self::Netfilter => SockProtocol::NetlinkNetFilter,
            Self::Generic => SockProtocol::NetlinkGeneric,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open(kind: Kind) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            kind.protocol(),
        )?;
        bind_own_port(&fd)?;
        if kind == Kind::Netfilter {
            setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
        }
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_TIMEOUT_S, 0),
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        })
    }

    /// Sends one request and waits until the kernel has done it.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.requests(vec![message])
            .pop()
            .expect("one answer per request")
    }

    /// Sends requests that do not depend on one another, and returns the answer to each, in order.
    pub fn requests(&mut self, requests: Vec<Message>) -> Vec<io::Result<()>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence + 1;
            let mut bytes = Vec::new();
            for message in requests.by_ref().take(REQUESTS_PER_SEND_MAX) {
                self.sequence += 1;
                bytes.extend(message.finish(self.sequence, flags::ACK));
            }
            let count = (self.sequence - first + 1) as usize;
            let mut got: Vec<io::Result<()>> = Vec::with_capacity(count);
            let outcome = send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())
                .map_err(io::Error::from)
                .and_then(|_| {
                    self.receive(|m| {
                        if m.sequence >= first {
                            acknowledge(m, &mut got, count)
                        } else {
                            Ok(false)
                        }
                    })
                });
            if let Err(error) = outcome {
                let code = error.raw_os_error();
                got.resize_with(count, || {
                    Err(code
                        .map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error))
                });
            }
            answers.append(&mut got);
        }
        answers
    }

    /// Sends a batch that is one transaction; fails with the first error in it.
    pub fn transaction(&mut self, batch: Vec<Message>) -> io::Result<()> {
        // The last message before the end mark is the one to be acknowledged; errors of others come before that.
        let acknowledged = batch.len().saturating_sub(2);
        let mut bytes = Vec::new();
        let mut last = 0;
        let first = self.sequence + 1;
        for (position, message) in batch.into_iter().enumerate() {
            self.sequence += 1;
            let flag = if position == acknowledged {
                flags::ACK
            } else {
                0
            };
            if position == acknowledged {
                last = self.sequence;
            }
            bytes.extend(message.finish(self.sequence, flag));
        }
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut failed = None;
        self.receive(|m| {
            if m.sequence < first || m.kind != ERROR {
                return Ok(false);
            }
            if let Err(error) = answer(m) {
                failed.get_or_insert(error);
            }
            // An error of the batch as a whole carries the number of its first message.
            Ok(m.sequence == last || (m.sequence == first && failed.is_some()))
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Asks for one thing; `answer` gets its body.
    pub fn ask(&mut self, request: Message, mut on: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        let bytes = request.finish(sequence, 0);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.receive(|m| {
            if m.sequence != sequence {
                return Ok(false);
            }
            if m.kind == ERROR {
                return answer(m).map(|()| true);
            }
            on(m.body);
            Ok(true)
        })
    }

    /// Asks for a list; `each` gets the body of every entry.
    pub fn dump(&mut self, request: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        send(
            self.fd.as_raw_fd(),
            &request.finish(sequence, 0),
            MsgFlags::empty(),
        )?;
        self.receive(|m| {
            if m.sequence != sequence {
                return Ok(false);
            }
            match m.kind {
                DONE => return Ok(true),
                ERROR => return answer(m).map(|()| true),
                _ => each(m.body),
            }
            Ok(false)
        })
    }

    fn receive(&mut self, mut on: impl FnMut(Received<'_>) -> io::Result<bool>) -> io::Result<()> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let mut finished = false;
            for message in messages(&self.buffer[..length]) {
                finished |= on(message)?;
            }
            if finished {
                return Ok(());
            }
        }
    }
}

/// Binds to a port of ours, so that notices of what we did ourselves can be told from others.
fn bind_own_port(fd: &OwnedFd) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut outcome = Err(Errno::EADDRINUSE);
    for _ in 0..PORT_ATTEMPTS_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % (OWN_PORTS.end() - OWN_PORTS.start());
        outcome = bind(
            fd.as_raw_fd(),
            &NetlinkAddr::new(OWN_PORTS.start() + number, 0),
        );
        if outcome != Err(Errno::EADDRINUSE) {
            break;
        }
    }
    outcome.map_err(io::Error::from)
}

/// A socket on which the kernel tells of changes.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Listener {
    /// Listens in the namespace of the calling thread.
    pub fn open(kind: Kind, groups: &[u32]) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            kind.protocol(),
        )?;
        // Groups up to 32 are bits of the address.
        let bits = groups.iter().fold(0, |bits, group| bits | 1 << (group - 1));
        setsockopt(&fd, sockopt::RcvBufForce, &NOTICE_BUFFER_BYTES)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, bits))?;
        Ok(Self {
            fd,
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        })
    }

    /// Takes everything that has been told; `each` sees every message. Returns whether something was lost.
    pub fn drain(&mut self, mut each: impl FnMut(Received<'_>)) -> bool {
        let mut lost = false;
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => messages(&self.buffer[..length]).for_each(&mut each),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return lost,
                Err(Errno::ENOBUFS) => lost = true,
                // Nothing else is known to happen; whoever repairs will find out.
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn acknowledge(
    message: Received<'_>,
    got: &mut Vec<io::Result<()>>,
    count: usize,
) -> io::Result<bool> {
    if message.kind == ERROR {
        got.push(answer(message));
    }
    Ok(got.len() == count)
}

fn answer(message: Received<'_>) -> io::Result<()> {
    match native_u32(message.body).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(negative) => Err(io::Error::from_raw_os_error(negative.wrapping_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
