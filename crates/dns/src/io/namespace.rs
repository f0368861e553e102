//! Sockets that live in another network namespace than the process.

use std::{
    fs::File,
    io,
    net::{SocketAddrV4, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt,
    },
};
use tokio::sync::oneshot;

/// The two sockets of a resolver, not blocking.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Binds both sockets to `address` in the network namespace at `netns`.
///
/// On a thread of its own: a thread that changed its namespace is of no use to anybody else afterwards.
pub(super) async fn open(netns: PathBuf, address: SocketAddrV4) -> io::Result<Sockets> {
    let (done, opened) = oneshot::channel();
    std::thread::Builder::new()
        .name("dns-sockets".to_owned())
        .spawn(move || {
            let _ = done.send(open_here(&netns, address));
        })?;
    opened
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended early")))
}

fn open_here(netns: &PathBuf, address: SocketAddrV4) -> io::Result<Sockets> {
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    let udp = bound(SockType::Datagram, address)?;
    let tcp = bound(SockType::Stream, address)?;
    listen(&tcp, Backlog::new(BACKLOG)?)?;
    Ok(Sockets {
        udp: udp.into(),
        tcp: tcp.into(),
    })
}

fn bound(kind: SockType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, kind, flags, None)?;
    // The loopback interface of a fresh namespace may still be down, and then has no addresses.
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        // Connections of an earlier daemon may linger in TIME_WAIT.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(fd)
}
