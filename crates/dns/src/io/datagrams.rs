//! Questions over UDP, many at a time: a busy client's cost is its packets, not the calls that fetch and answer them.
//!
//! Answers of one length to one client leave as one packet that the kernel cuts up at the client's socket
//! (`UDP_SEGMENT`, udp(7)): they pass routing, filters and the loopback device once.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, sendmsg,
    },
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    forward::Transport,
    server::{Desk, Verdict},
};
use crate::core::wire::{QUESTION_BYTES_MAX, UDP_BYTES_PLAIN};

/// Datagrams taken by one call; also as many as any kernel cuts one packet into (`UDP_MAX_SEGMENTS`, once 64).
const BATCH: usize = 64;
/// As many at once say that more have arrived meanwhile: looking costs less than waiting to be told.
const BUSY: usize = 8;
/// Batches after which it is somebody else's turn.
const BATCHES_MAX: usize = 4;

thread_local! {
    /// Of a thread and not of a client: a hundred idle containers need no buffers.
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers::new());
}

struct Buffers {
    questions: Vec<[u8; QUESTION_BYTES_MAX]>,
    headers: MultiHeaders<SockaddrIn>,
    answers: Answers,
}

/// Answers on their way, in order.
struct Answers {
    headers: MultiHeaders<SockaddrIn>,
    bytes: Vec<Vec<u8>>,
    to: [Option<SockaddrIn>; BATCH],
    count: usize,
}

/// Answers what has arrived, a few batches at most; what must be forwarded goes to `strangers`, with whom it is from.
pub(super) fn serve(
    socket: &UdpSocket,
    desk: &Desk,
    strangers: &mut Vec<(Arc<[u8]>, SocketAddr)>,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let tried = socket.try_io(Interest::READABLE, || {
        for _ in 0..BATCHES_MAX {
            let served = BUFFERS.with_borrow_mut(|buffers| buffers.serve(socket, desk, strangers));
            match served {
                Ok(BUSY..) => {}
                // So few that there is nothing more yet.
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(errno) => {
                    outcome = Err(errno.into());
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
        }
        Ok(())
    });
    match tried {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => outcome,
    }
}

impl Buffers {
    fn new() -> Self {
        Self {
            questions: vec![[0; QUESTION_BYTES_MAX]; BATCH],
            headers: MultiHeaders::preallocate(BATCH, None),
            answers: Answers {
                headers: MultiHeaders::preallocate(BATCH, None),
                bytes: (0..BATCH)
                    .map(|_| Vec::with_capacity(UDP_BYTES_PLAIN))
                    .collect(),
                to: [None; BATCH],
                count: 0,
            },
        }
    }

    /// Returns how many questions there were.
    fn serve(
        &mut self,
        socket: &UdpSocket,
        desk: &Desk,
        strangers: &mut Vec<(Arc<[u8]>, SocketAddr)>,
    ) -> nix::Result<usize> {
        let mut taken = [(0, None); BATCH];
        let mut count = 0;
        let mut questions = self.questions.iter_mut();
        let mut rooms: [[IoSliceMut<'_>; 1]; BATCH] = std::array::from_fn(|_| {
            let room = questions.next().map_or(&mut [][..], |room| &mut room[..]);
            [IoSliceMut::new(room)]
        });
        for message in recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &mut rooms,
            MsgFlags::MSG_DONTWAIT,
            None,
        )? {
            taken[count] = (message.bytes, message.address);
            count += 1;
        }
        let answers = &mut self.answers;
        answers.count = 0;
        let known = desk.snapshot();
        for (question, (bytes, from)) in self.questions.iter().zip(taken).take(count) {
            let Some(from) = from else { continue };
            let question = &question[..bytes];
            match known.decide(question, Transport::Udp, answers.next()) {
                Verdict::Reply => answers.keep(from),
                Verdict::Forward => {
                    let from = SocketAddrV4::new(from.ip(), from.port());
                    strangers.push((Arc::from(question), from.into()));
                }
                Verdict::Drop => {}
            }
        }
        answers.send(socket);
        Ok(count)
    }
}

impl Answers {
    /// Where the next answer is to be written.
    fn next(&mut self) -> &mut Vec<u8> {
        &mut self.bytes[self.count]
    }

    /// What was written there goes to this client.
    fn keep(&mut self, to: SockaddrIn) {
        self.to[self.count] = Some(to);
        self.count += 1;
    }

    /// Sends them all. As on any network, what does not fit into a client's queue is lost and asked for again.
    fn send(&mut self, socket: &UdpSocket) {
        let alike = |one: usize, other: usize| {
            self.to[one] == self.to[other] && self.bytes[one].len() == self.bytes[other].len()
        };
        let mut single = [0; BATCH];
        let mut singles = 0;
        let mut sent = [false; BATCH];
        let mut run = [IoSlice::new(&[]); BATCH];
        for first in 0..self.count {
            if sent[first] {
                continue;
            }
            let mut length = 0;
            for other in first..self.count {
                if !sent[other] && alike(first, other) {
                    run[length] = IoSlice::new(&self.bytes[other]);
                    length += 1;
                    sent[other] = true;
                }
            }
            if length == 1 || !self.send_run(socket, first, &run[..length]) {
                for other in first..self.count {
                    if other == first || (length > 1 && alike(first, other)) {
                        single[singles] = other;
                        singles += 1;
                    }
                }
            }
        }
        self.send_singly(socket, &single[..singles]);
    }

    /// Sends answers of one length to one client as one packet. Returns whether the kernel knows how to.
    fn send_run(&self, socket: &UdpSocket, first: usize, run: &[IoSlice<'_>]) -> bool {
        let Ok(length) = u16::try_from(self.bytes[first].len()) else {
            return false;
        };
        let cut = [ControlMessage::UdpGsoSegments(&length)];
        let to = self.to[first].as_ref();
        let flags = MsgFlags::MSG_DONTWAIT;
        match sendmsg(socket.as_raw_fd(), run, &cut, flags, to) {
            // No such option, no room for so much in one packet, or a device that cannot.
            Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO | Errno::EOPNOTSUPP) => false,
            Ok(_) | Err(_) => true,
        }
    }

    fn send_singly(&mut self, socket: &UdpSocket, which: &[usize]) {
        let mut to = [None; BATCH];
        for (place, index) in to.iter_mut().zip(which) {
            *place = self.to[*index];
        }
        let mut first = 0;
        while first < which.len() {
            let mut slices = which[first..]
                .iter()
                .map(|index| [IoSlice::new(&self.bytes[*index])]);
            // An array, so that nothing is allocated per batch; the rest of it is not looked at.
            let slices: [[IoSlice<'_>; 1]; BATCH] =
                std::array::from_fn(|_| slices.next().unwrap_or([IoSlice::new(&[])]));
            let sent = sendmmsg(
                socket.as_raw_fd(),
                &mut self.headers,
                slices.iter().take(which.len() - first),
                &to[first..which.len()],
                [] as [ControlMessage<'_>; 0],
                MsgFlags::MSG_DONTWAIT,
            );
            // The one that could not be sent is passed over.
            first += sent.map_or(1, |sent| sent.count().max(1));
        }
    }
}
