//! What the kernel must be able to do.

use std::{io, net::Ipv4Addr, path::Path};

use nix::errno::Errno;

use super::{
    error::PlaneError,
    kernel::Families,
    socket::{Kind, Socket},
};
use crate::core::{
    conntrack_wire, generic_wire,
    ipvs_wire::{self, ServiceKey},
    naming,
    nft::Table,
    nft_wire,
    rtnl_wire::{self, LinkPlaces},
    ruleset::{self, direct},
    state::{Family, Link, LinkKind, Space, VethPeer},
    wireguard_wire,
};

/// What the kernel can do besides what is needed.
#[derive(Debug, Clone)]
pub(crate) struct Abilities {
    /// Addresses, routes and rules of IPv6.
    pub(crate) ipv6: bool,
    /// Choosing a backend by the client's address.
    pub(crate) source_hash: bool,
    /// Sending packets on from where they enter.
    pub(crate) direct: bool,
    /// Keeping apart connections of equal addresses and ports.
    pub(crate) zones: bool,
    /// Forgetting single connections.
    pub(crate) flows: bool,
    /// Numbers of families of generic netlink.
    pub(crate) families: Families,
    /// Schedulers of IPVS, of those that are used.
    pub(crate) schedulers: Vec<&'static str>,
}

/// Asks the kernel for a VXLAN device, a veth pair and a table, in the namespace of the calling thread.
pub(crate) fn probe() -> Result<Abilities, PlaneError> {
    let mut route = Socket::open(Kind::Route).map_err(lacks("rtnetlink"))?;
    let mut make = |name: &str, kind| {
        let link = Link {
            kind,
            mac: None,
            mtu: None,
            master: None,
            isolated: false,
            hairpin: false,
        };
        route.request(rtnl_wire::create_link(name, &link, LinkPlaces::default()))
    };
    make("bridge", LinkKind::Bridge).map_err(lacks("bridges (CONFIG_BRIDGE)"))?;
    let local = Ipv4Addr::LOCALHOST.into();
    make(
        "vxlan",
        LinkKind::Vxlan {
            vni: 1,
            port: 4789,
            local,
        },
    )
    .map_err(lacks("VXLAN (CONFIG_VXLAN)"))?;
    let peer = VethPeer {
        space: Space::Host,
        name: "far".to_owned(),
        mac: naming::Mac([2, 0, 0, 0, 0, 1]),
        mtu: None,
        ipv6: true,
    };
    make("near", LinkKind::Veth { peer }).map_err(lacks("veth pairs (CONFIG_VETH)"))?;
    let mut netfilter =
        Socket::open(Kind::Netfilter).map_err(lacks("nftables (CONFIG_NF_TABLES)"))?;
    netfilter
        .transaction(nft_wire::replace(&Table::new(Family::V4, "probe")))
        .map_err(lacks("nftables for IPv4 (CONFIG_NF_TABLES_IPV4)"))?;
    let rules = |family| nft_wire::replace(&ruleset::everything(family, "probe"));
    netfilter.transaction(rules(Family::V4)).map_err(lacks(
        "nftables expressions (CONFIG_NFT_NAT, _MASQ, _FIB_IPV4, _NUMGEN, _CT)",
    ))?;
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf/all/forwarding").exists()
        && netfilter.transaction(rules(Family::V6)).is_ok();
    let families = Families {
        ipvs: family(ipvs_wire::FAMILY),
        // Inside the tunnel there is IPv6 alone.
        wireguard: family(wireguard_wire::FAMILY)
            .filter(|_| ipv6 && make("wireguard", LinkKind::Wireguard).is_ok()),
    };
    let flows = netfilter.ask(conntrack_wire::count(), |_| ()).is_ok();
    let mut takes = |table: Table| netfilter.transaction(nft_wire::replace(&table)).is_ok();
    Ok(Abilities {
        ipv6,
        flows,
        source_hash: takes(ruleset::hashing("hash")),
        direct: takes({
            let mut table = direct::direct(Family::V4, "probe");
            direct::add_port(&mut table, "lo", local);
            table
        }),
        zones: takes(ruleset::zoned("zones")),
        schedulers: families.ipvs.map(schedulers).unwrap_or_default(),
        families,
    })
}

/// Asks IPVS for services by each scheduler; the kernel loads a scheduler's module if it has one.
fn schedulers(ipvs: u16) -> Vec<&'static str> {
    let key = ServiceKey {
        family: Family::V4,
        mark: 1,
    };
    let Ok(mut socket) = Socket::open(Kind::Generic) else {
        return Vec::new();
    };
    let mut is_there = |name: &&'static str| {
        let made = socket.request(ipvs_wire::new_service(ipvs, key, name));
        // Where none was made there is none to be removed.
        let _ = socket.request(ipvs_wire::delete_service(ipvs, key));
        made.is_ok()
    };
    let all = [ipvs_wire::TURN].into_iter().chain(ipvs_wire::BY_SOURCE);
    all.filter(|name| is_there(name)).collect()
}

/// What a kernel's answer to the question for a feature means.
fn lacks(feature: &'static str) -> impl Fn(io::Error) -> PlaneError {
    move |source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOENT) => {
            PlaneError::Unsupported { feature, source }
        }
        _ => PlaneError::Step {
            step: format!("ask the kernel for {feature}"),
            source,
        },
    }
}

/// Asks for the number of a family of generic netlink; the kernel loads its module if it has one.
fn family(name: &str) -> Option<u16> {
    let mut family = None;
    let mut socket = Socket::open(Kind::Generic).ok()?;
    // A kernel without it answers with an error, which says the same.
    let _ = socket.ask(generic_wire::ask_family(name), |body| {
        family = generic_wire::read_family(body);
    });
    family
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        core::netlink::{Message, flags},
        io::netns,
    };

    #[test]
    fn a_kernel_that_lacks_something_is_told_from_one_that_refuses() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, because network namespaces need root");
        }
        // No kernel has interfaces of this kind; what it answers is what one without VXLAN answers to that.
        let ask = |kind: &str| {
            const NEW_LINK: u16 = 16;
            let creating = flags::CREATE | flags::EXCL;
            let message = Message::new(NEW_LINK, creating, &[0; 16])
                .text(3, "probe")
                .nest(18, |info| info.text(1, kind));
            Socket::open(Kind::Route).and_then(|mut route| route.request(message))
        };
        let asking = thread::spawn(move || {
            let home = netns::current().expect("every thread has a namespace");
            netns::visit_fresh(&home, || {
                (ask("no-such-kind"), ask("bridge"), ask("bridge"))
            })
        });
        let asked = asking
            .join()
            .expect("the thread ends")
            .expect("a namespace");
        let (missing, made, twice) = asked;
        let error = lacks("VXLAN (CONFIG_VXLAN)")(missing.expect_err("there is no such kind"));
        assert_eq!(
            error.to_string(),
            "this kernel lacks VXLAN (CONFIG_VXLAN), which overlay networks need"
        );
        made.expect("a bridge can be made");
        let error = lacks("bridges (CONFIG_BRIDGE)")(twice.expect_err("the name is taken"));
        assert!(matches!(error, PlaneError::Step { .. }), "{error}");
    }
}
