//! Puts the way to a container's resolver into its namespace.

use std::{io, net::Ipv4Addr, path::Path};

use super::{
    netns,
    socket::{Kind, Socket},
};
use crate::core::{nft_wire, resolver};

/// Leads `address`:`port` in the namespace at `netns` to sockets that listen on other ports of that address.
///
/// What an earlier call put there is replaced. It goes with the namespace.
///
/// # Errors
/// The namespace cannot be entered, or the kernel has no nftables.
pub fn redirect(netns: &Path, address: Ipv4Addr, port: u16, udp: u16, tcp: u16) -> io::Result<()> {
    let batch = nft_wire::replace(&resolver::table(address, port, udp, tcp));
    let socket = netns::run_in(netns, move || {
        let mut socket = Socket::open(Kind::Netfilter)?;
        socket.transaction(batch).map(|()| socket)
    })??;
    // The kernel ends such a socket only after it has forgotten what the transaction replaced, which takes a grace
    // period of its readers (10 ms and more). No start of a container shall wait for that.
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || drop(socket))
        .map(drop)
}
