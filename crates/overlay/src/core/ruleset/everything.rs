//! What a kernel must be able to load.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Host, RAW, Router, host, router, rule, zone_of_entry};
use crate::core::{nft::Table, state::Family};

/// A table that uses every expression of the others: what a kernel must be able to load.
pub fn everything(family: Family, name: &str) -> Table {
    let none: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut table = router(
        name,
        &Router {
            family,
            ingress: true,
            ipvs: false,
            source_hash: false,
            zones: false,
            direct: false,
            gateway: none,
            peers: &[],
            local: &[],
        },
    );
    let more = host(
        name,
        &Host {
            family,
            bridge: "lo",
            subnet: IpNet::new_assert(none, 8),
            vxlan_port: 0,
            tunnels: Some(none),
            vnis: &[],
            members: &[],
            tunnel: "lo",
            sealed: &[0],
            published: &[],
            published_at: &[],
            ingress: Some(none),
            loopback: Some(("lo", none)),
        },
    );
    // Chains of the same names are as in a router.
    let own = |name: &str| ["input", "leaves", "output", "raw_out"].contains(&name);
    let chains = more.chains.into_iter();
    table.chains.extend(chains.filter(|chain| own(&chain.name)));
    table.sets.extend(more.sets);
    table
}

/// A table that puts connections into zones, which not every kernel can.
pub fn zoned(name: &str) -> Table {
    let mut table = Table::new(Family::V4, name);
    let rules = vec![rule("zone", zone_of_entry().to_vec())];
    table.chain("raw", Some(RAW), rules);
    table
}
