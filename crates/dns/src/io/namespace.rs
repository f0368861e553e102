//! Sockets that live in another network namespace than the process.
//!
//! Each is made on a thread of its own: a thread that changed its namespace is of no use to anybody else afterwards.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, listen,
        setsockopt, socket, sockopt,
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

/// The network namespace at a path, which exists as long as this does.
#[derive(Debug, Clone)]
pub(super) struct Namespace(Arc<File>);

impl Namespace {
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?)))
    }

    /// Binds the sockets of a resolver to `address`.
    pub(super) async fn open(&self, address: SocketAddrV4) -> io::Result<Sockets> {
        self.run(move || open_here(address)).await
    }

    /// A UDP socket for questions to `server`, if that is in one of the subnets of the namespace's interfaces.
    pub(super) async fn udp_to(&self, server: SocketAddr) -> io::Result<Option<UdpSocket>> {
        self.run(move || {
            if !is_near(server.ip())? {
                return Ok(None);
            }
            Ok(Some(unbound(SockType::Datagram, server)?.into()))
        })
        .await
    }

    /// A TCP socket for `server`, not connected yet.
    pub(super) async fn tcp_to(&self, server: SocketAddr) -> io::Result<TcpStream> {
        self.run(move || Ok(unbound(SockType::Stream, server)?.into()))
            .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let namespace = self.clone();
        std::thread::Builder::new()
            .name("dns-sockets".to_owned())
            .spawn(move || {
                let entered = setns(namespace.0.as_fd(), CloneFlags::CLONE_NEWNET);
                let _ = done.send(entered.map_err(io::Error::from).and_then(|()| work()));
            })?;
        result
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended early")))
    }
}

/// Whether an address is in a subnet of an interface of the calling thread's namespace, other than loopback.
fn is_near(address: IpAddr) -> io::Result<bool> {
    let is_of = |interface: &InterfaceAddress| {
        let own = interface.address.as_ref().and_then(ip_of);
        let mask = interface.netmask.as_ref().and_then(ip_of);
        !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && match (own, mask, address) {
                (Some(IpAddr::V4(own)), Some(IpAddr::V4(mask)), IpAddr::V4(address)) => {
                    own & mask == address & mask
                }
                (Some(IpAddr::V6(own)), Some(IpAddr::V6(mask)), IpAddr::V6(address)) => {
                    own & mask == address & mask
                }
                _ => false,
            }
    };
    Ok(getifaddrs()?.any(|interface| is_of(&interface)))
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// A socket that does not block, for an address of this family.
fn unbound(kind: SockType, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, kind, flags, None)?)
}

fn open_here(address: SocketAddrV4) -> io::Result<Sockets> {
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
