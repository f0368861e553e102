//! Questions over UDP, many at a time: a busy client's cost is its packets, not the calls that fetch and answer them.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    forward::Transport,
    server::{Desk, Verdict},
};
use crate::core::wire::UDP_BYTES_MAX;

/// Datagrams taken by one call.
const BATCH: usize = 32;

thread_local! {
    /// Of a thread and not of a client: a hundred idle containers need no buffers.
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers::new());
}

struct Buffers {
    questions: Vec<[u8; UDP_BYTES_MAX]>,
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

/// Answers what has arrived, a batch at most; what must be forwarded goes to `strangers`, with whom it is from.
pub(super) fn serve(
    socket: &UdpSocket,
    desk: &Desk,
    strangers: &mut Vec<(Arc<[u8]>, SocketAddr)>,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let tried = socket.try_io(Interest::READABLE, || {
        let served = BUFFERS.with_borrow_mut(|buffers| buffers.serve(socket, desk, strangers));
        match served {
            Ok(BATCH) => return Ok(()),
            // Fewer than there was room for, so all that there were.
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => outcome = Err(errno.into()),
        }
        Err(io::ErrorKind::WouldBlock.into())
    });
    match tried {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => outcome,
    }
}

impl Buffers {
    fn new() -> Self {
        Self {
            questions: vec![[0; UDP_BYTES_MAX]; BATCH],
            headers: MultiHeaders::preallocate(BATCH, None),
            answers: Answers {
                headers: MultiHeaders::preallocate(BATCH, None),
                bytes: vec![Vec::with_capacity(UDP_BYTES_MAX); BATCH],
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
        let flags = MsgFlags::MSG_DONTWAIT;
        for message in recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &mut rooms,
            flags,
            None,
        )? {
            taken[count] = (message.bytes, message.address);
            count += 1;
        }
        let answers = &mut self.answers;
        answers.count = 0;
        for (question, (bytes, from)) in self.questions.iter().zip(taken).take(count) {
            let Some(from) = from else { continue };
            let question = &question[..bytes];
            match desk.decide(question, Transport::Udp, answers.next()) {
                Verdict::Reply => answers.keep(from),
                Verdict::Forward => {
                    let from = SocketAddrV4::new(from.ip(), from.port());
                    strangers.push((Arc::from(question), from.into()));
                }
                Verdict::Drop => {}
            }
        }
        answers.send(socket, flags);
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
    fn send(&mut self, socket: &UdpSocket, flags: MsgFlags) {
        let mut first = 0;
        while first < self.count {
            let left = first..self.count;
            let slices = self.bytes[left.clone()].iter();
            let mut slices = slices.map(|bytes| [IoSlice::new(bytes)]);
            // An array, so that nothing is allocated per batch; the rest of it is not looked at.
            let slices: [[IoSlice<'_>; 1]; BATCH] =
                std::array::from_fn(|_| slices.next().unwrap_or([IoSlice::new(&[])]));
            let sent = sendmmsg(
                socket.as_raw_fd(),
                &mut self.headers,
                slices.iter().take(left.len()),
                &self.to[left],
                [] as [ControlMessage<'_>; 0],
                flags,
            );
            // The one that could not be sent is passed over.
            first += sent.map_or(1, |sent| sent.count().max(1));
        }
    }
}
