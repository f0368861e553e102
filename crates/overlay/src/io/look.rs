//! Tries the ways between the nodes' tunnels: all nodes send to one another and listen, at the same time.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, getsockopt, recv, socket,
        sockopt,
    },
};
use shoal_api::{
    NodeId,
    doctor::Heard,
    network::{NetworkView, VXLAN_OVERHEAD},
};

use super::{
    netns,
    socket::{Kind, Socket},
};
use crate::core::{naming, probe_frame, rtnl_wire, state::Family};

/// How long frames are sent. The nodes are asked at the same time, but begin when the question reaches them.
const SEND_FOR: Duration = Duration::from_millis(1_500);
/// How long frames are listened for: those of a node that began last still arrive.
const LISTEN_FOR: Duration = Duration::from_millis(2_500);
/// Pause between two rounds of frames: one that is lost by itself is no verdict.
const SEND_EVERY: Duration = Duration::from_millis(100);
/// Port at which routers hear datagrams: that for what nobody answers (RFC 863).
const DATAGRAM_PORT: u16 = 9;
/// Largest frame that is read; nothing of a longer one matters.
const FRAME_BYTES_MAX: usize = 70_000;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Frames that arrived, by the sender's underlay address.
    pub heard: BTreeMap<IpAddr, Heard>,
    /// The MTU that the kernel knows of the way to each node, in bytes.
    pub path_mtu: BTreeMap<IpAddr, u32>,
    /// MTU of this node's underlay, in bytes.
    pub underlay_mtu: u32,
    /// Whether datagrams were sent by the tunnel itself, and listened for.
    pub datagrams: bool,
}

/// Where a node looks from.
pub(super) struct Post<'a> {
    /// The host's namespace.
    pub(super) home: &'a OwnedFd,
    /// Handles of the routers.
    pub(super) handles: &'a Path,
}

/// Sends to all nodes of the ingress network, and listens for theirs. Takes [`LISTEN_FOR`].
pub(super) fn look(
    post: &Post<'_>,
    view: &NetworkView,
    me: &NodeId,
    token: &str,
) -> io::Result<Look> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
    let own = view.peers.get(me).map(|peer| peer.underlay);
    let own = own.ok_or_else(|| missing("this node has no underlay address yet"))?;
    let mut networks = view.networks.iter();
    let (id, ingress) = networks
        .find(|(_, slice)| slice.ingress)
        .ok_or_else(|| missing("there is no ingress network"))?;
    let peers: Vec<IpAddr> = view.peers.values().map(|peer| peer.underlay).collect();
    let peers: Vec<IpAddr> = peers.into_iter().filter(|peer| *peer != own).collect();

    // Threads of their own enter namespaces, which those of the runtime must not.
    let router = post.handles.join(naming::router_handle(id));
    let Ears {
        frames: ear,
        datagrams,
        vxlan,
        mtu,
    } = netns::run_in(&router, move || listen(own)).map_err(io::Error::other)??;
    let scoped = |peer: &IpAddr| datagram_end(*peer, vxlan);
    let by_end: BTreeMap<_, _> = peers
        .iter()
        .filter_map(|peer| Some((*scoped(peer)?.ip(), *peer)))
        .collect();
    let home = post.home.try_clone()?;
    let mouths = {
        let (peers, port) = (peers.clone(), view.data_path_port);
        std::thread::spawn(move || netns::visit(&home, &home, || connect(own, &peers, port)))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))??
    };
    let full = usize::try_from(mtu).unwrap_or_default();
    let packets: Vec<[Vec<u8>; 2]> = peers
        .iter()
        .map(|peer| {
            [0, full].map(|bytes| probe_frame::packet(ingress.vni, own, *peer, token, bytes))
        })
        .collect();
    let by_mac: BTreeMap<_, _> = peers
        .iter()
        .map(|peer| (naming::mac_of(*peer), *peer))
        .collect();
    let mut found = Look {
        datagrams: datagrams.is_some(),
        ..Look::default()
    };
    let began = Instant::now();
    let mut next = began;
    let mut frame = vec![0; FRAME_BYTES_MAX];
    while began.elapsed() < LISTEN_FOR {
        let now = Instant::now();
        if now >= next && began.elapsed() < SEND_FOR {
            for (socket, packets) in mouths.iter().zip(&packets) {
                for packet in packets {
                    // What cannot be sent does not arrive, which is what is asked.
                    let _ = socket.send(packet);
                }
            }
            for end in peers.iter().filter_map(scoped) {
                if let Some(socket) = &datagrams {
                    let _ = socket.send_to(token.as_bytes(), end);
                }
            }
            next = now + SEND_EVERY;
        }
        let is_sending = began.elapsed() < SEND_FOR;
        let until = if is_sending { next } else { began + LISTEN_FOR };
        let wait = until.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let ears = [Some(ear.as_fd()), datagrams.as_ref().map(AsFd::as_fd)];
        let ears = ears.into_iter().flatten();
        let mut ready: Vec<PollFd<'_>> = ears
            .map(|ear| PollFd::new(ear, PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, wait) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The kernel has looked at the checksums of these, as it does for containers.
        while let Some(Ok((length, SocketAddr::V6(from)))) = datagrams
            .as_ref()
            .map(|socket| socket.recv_from(&mut frame))
        {
            if let Some(peer) = by_end.get(from.ip())
                && frame[..length] == *token.as_bytes()
            {
                found.heard.entry(*peer).or_default().datagram = true;
            }
        }
        while let Ok(length) = recv(ear.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            let Some((from, bytes)) = probe_frame::read(&frame[..length], token) else {
                continue;
            };
            if let Some(peer) = by_mac.get(&from) {
                let heard = found.heard.entry(*peer).or_default();
                // The sender's full size is its own, which a narrower node may not know.
                let is_short = bytes <= probe_frame::TOKEN_BYTES_MAX + 1;
                heard.short |= is_short;
                heard.full |= !is_short;
            }
        }
    }
    for (peer, socket) in peers.iter().zip(&mouths) {
        if let Ok(mtu) = getsockopt(socket, sockopt::IpMtu)
            && let Ok(mtu) = u32::try_from(mtu)
        {
            found.path_mtu.insert(*peer, mtu);
        }
    }
    let overhead = if own.is_ipv4() {
        VXLAN_OVERHEAD
    } else {
        VXLAN_OVERHEAD + 20
    };
    found.underlay_mtu = mtu + overhead;
    Ok(found)
}

/// What listens in a router.
struct Ears {
    /// Hears every frame.
    frames: OwnedFd,
    /// Sends datagrams by the tunnel and hears those of others, where IPv6 is carried.
    datagrams: Option<UdpSocket>,
    /// Number of the tunnel's interface.
    vxlan: u32,
    /// Its MTU in bytes.
    mtu: u32,
}

/// Where the router of a node hears datagrams, seen from another one.
fn datagram_end(node: IpAddr, vxlan: u32) -> Option<SocketAddrV6> {
    match naming::peer_hop(Family::V6, node) {
        IpAddr::V6(hop) => Some(SocketAddrV6::new(hop, DATAGRAM_PORT, 0, vxlan)),
        IpAddr::V4(_) => None,
    }
}

/// Opens ears in the calling thread's namespace, that of this node's router.
fn listen(own: IpAddr) -> io::Result<Ears> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let frames = socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )?;
    let mut vxlan = None;
    Socket::open(Kind::Route)?.dump(rtnl_wire::list_links(), |body| {
        let link = rtnl_wire::read_link(body).filter(|(name, _)| name == naming::VXLAN);
        vxlan = vxlan.or_else(|| link.map(|(_, link)| (link.index, link.mtu)));
    })?;
    let (vxlan, mtu) = vxlan
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the tunnel is not there yet"))?;
    let datagrams = datagram_end(own, vxlan).and_then(|end| UdpSocket::bind(end).ok());
    if let Some(socket) = &datagrams {
        socket.set_nonblocking(true)?;
    }
    Ok(Ears {
        frames,
        datagrams,
        vxlan,
        mtu,
    })
}

/// Sockets to the tunnels of others, from this node's own address.
fn connect(own: IpAddr, peers: &[IpAddr], port: u16) -> io::Result<Vec<UdpSocket>> {
    let one = |peer: &IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
        socket.connect(SocketAddr::new(*peer, port))?;
        Ok(socket)
    };
    peers.iter().map(one).collect()
}
