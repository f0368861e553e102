//! A netlink socket. It belongs to the namespace in which it was opened, wherever it is used later.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
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

use crate::core::netlink::{Message, Received, flags, messages, native_u32};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel cuts dumps into datagrams of at most this size.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
/// Room for the largest nftables batch: a full slot class of ten thousand elements.
const SEND_BUFFER_BYTES: usize = 8 << 20;
/// Requests in flight, bounded so that their acknowledgements fit the receive buffer.
const REQUESTS_PER_SEND_MAX: usize = 64;
/// The kernel answers from within the request; this only ends a wait for an answer lost to a full buffer.
const ANSWER_TIMEOUT_S: i64 = 5;

/// Which part of the kernel it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Links, addresses, routes.
    Route,
    /// nftables.
    Netfilter,
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
        let protocol = match kind {
            Kind::Route => SockProtocol::NetlinkRoute,
            Kind::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
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
