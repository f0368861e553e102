//! Tries the ways between the nodes' tunnels: all nodes send to one another and listen, at the same time.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
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
use crate::core::{naming, probe_frame, rtnl_wire};

/// How long frames are sent. The nodes are asked at the same time, but begin when the question reaches them.
const SEND_FOR: Duration = Duration::from_millis(1_500);
/// How long frames are listened for: those of a node that began last still arrive.
const LISTEN_FOR: Duration = Duration::from_millis(2_500);
/// Pause between two rounds of frames: one that is lost by itself is no verdict.
const SEND_EVERY: Duration = Duration::from_millis(100);
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
    let (ear, mtu) = netns::run_in(&router, listen).map_err(io::Error::other)??;
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
    let mut found = Look::default();
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
            next = now + SEND_EVERY;
        }
        let is_sending = began.elapsed() < SEND_FOR;
        let until = if is_sending { next } else { began + LISTEN_FOR };
        let wait = until.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let mut ready = [PollFd::new(ear.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, wait) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
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

/// Hears every frame of the calling thread's namespace, a router's; with the MTU of its tunnel in bytes.
fn listen() -> io::Result<(OwnedFd, u32)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let ear = socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )?;
    let mut mtu = None;
    Socket::open(Kind::Route)?.dump(rtnl_wire::list_links(), |body| {
        let link = rtnl_wire::read_link(body).filter(|(name, _)| name == naming::VXLAN);
        mtu = mtu.or(link.map(|(_, link)| link.mtu));
    })?;
    let mtu = mtu.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok((ear, mtu))
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
