//! The addresses of a network: what the user asked for, checked, and what is chosen where nothing was said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_api::spec::IpamConfig;
use shoal_docker_api::backend::LocalNetworkSpec;
use shoal_overlay::{
    Ipv4Place, Ipv6Place,
    core::ipam::{self, SubnetPool},
};

use crate::bridges::BridgesError;

/// Range of the bridge by which cluster networks reach the world; never given to another network.
const GATEWAY_BRIDGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16);

/// Ranges that a new network cannot have.
#[derive(Debug, Default)]
pub(in crate::bridges) struct Taken {
    /// Of IPv4.
    pub v4: Vec<Ipv4Net>,
    /// Of IPv6.
    pub v6: Vec<Ipv6Net>,
}

pub(super) struct Addresses {
    /// IPv4, and the part of its subnet from which addresses are given.
    pub v4: Option<(Ipv4Place, Option<Ipv4Net>)>,
    /// Whether the user chose the subnet of IPv4.
    pub by_user: bool,
    /// IPv6, and the part of its subnet from which addresses are given.
    pub v6: Option<(Ipv6Place, Option<Ipv6Net>)>,
}

/// Subnet, range and gateway asked for in one family.
type Wish<N, A> = (Option<N>, Option<N>, Option<A>);

impl Addresses {
    /// Decides the addresses of the network with this id.
    pub(super) fn of(
        wish: &LocalNetworkSpec,
        id: &str,
        taken: &Taken,
        pools: &[SubnetPool],
    ) -> Result<Self, BridgesError> {
        let (v4, v6) = by_family(&wish.ipam)?;
        if v6.0.is_some() && !wish.ipv6 {
            return Err(BridgesError::Invalid(
                "an IPv6 subnet needs a network with --ipv6".to_owned(),
            ));
        }
        if wish.without_ipv4 && !wish.ipv6 {
            return Err(BridgesError::Invalid(
                "IPv4 or IPv6 must be enabled".to_owned(),
            ));
        }
        if v4 != (None, None, None) && wish.without_ipv4 {
            return Err(BridgesError::Invalid(
                "an IPv4 subnet needs a network with IPv4".to_owned(),
            ));
        }
        let usual = ipam::default_pools();
        let said: Vec<SubnetPool> = pools.to_vec();
        let has_v4 = said.iter().any(|pool| pool.base.addr().is_ipv4());
        let pools4 = if has_v4 { &said } else { &usual };
        let v6 = if wish.ipv6 {
            Some(place6(v6, id, &taken.v6, pools)?)
        } else {
            None
        };
        let place4 = if wish.without_ipv4 {
            None
        } else {
            Some(place4(v4, &taken.v4, pools4)?)
        };
        Ok(Self {
            v4: place4,
            by_user: v4.0.is_some(),
            v6,
        })
    }
}

/// What was asked for, at most one subnet per family.
#[expect(clippy::type_complexity, reason = "two of a kind, taken apart at once")]
fn by_family(
    configs: &[IpamConfig],
) -> Result<(Wish<Ipv4Net, Ipv4Addr>, Wish<Ipv6Net, Ipv6Addr>), BridgesError> {
    let mut v4 = (None, None, None);
    let mut v6 = (None, None, None);
    let mut seen = [false; 2];
    for config in configs {
        let says_v6 = match (config.subnet, config.ip_range, config.gateway) {
            (Some(net), ..) | (None, Some(net), _) => net.addr().is_ipv6(),
            (None, None, gateway) => gateway.is_some_and(|ip| ip.is_ipv6()),
        };
        if std::mem::replace(&mut seen[usize::from(says_v6)], true) {
            return Err(BridgesError::Unsupported(
                "more than one subnet of a family in a network of one host".to_owned(),
            ));
        }
        let mixed = || {
            BridgesError::Invalid(
                "subnet, ip-range and gateway must be of one address family".to_owned(),
            )
        };
        for (net, subnet) in [(config.subnet, true), (config.ip_range, false)] {
            match (net, says_v6) {
                (None, _) => {}
                (Some(IpNet::V4(net)), false) if subnet => v4.0 = Some(net),
                (Some(IpNet::V4(net)), false) => v4.1 = Some(net.trunc()),
                (Some(IpNet::V6(net)), true) if subnet => v6.0 = Some(net),
                (Some(IpNet::V6(net)), true) => v6.1 = Some(net.trunc()),
                (Some(_), _) => return Err(mixed()),
            }
        }
        match (config.gateway, says_v6) {
            (None, _) => {}
            (Some(IpAddr::V4(ip)), false) => v4.2 = Some(ip),
            (Some(IpAddr::V6(ip)), true) => v6.2 = Some(ip),
            (Some(_), _) => return Err(mixed()),
        }
    }
    Ok((v4, v6))
}

fn not_its_own(subnet: impl Into<IpNet>) -> BridgesError {
    let subnet = subnet.into();
    BridgesError::Invalid(format!(
        "invalid network config:\ninvalid subnet {subnet}: it should be {}",
        subnet.trunc()
    ))
}

fn no_match(what: &str, address: impl std::fmt::Display) -> BridgesError {
    BridgesError::Invalid(format!("no matching subnet for {what} {address}"))
}

fn place4(
    (subnet, range, gateway): Wish<Ipv4Net, Ipv4Addr>,
    taken: &[Ipv4Net],
    pools: &[SubnetPool],
) -> Result<(Ipv4Place, Option<Ipv4Net>), BridgesError> {
    let by_user = subnet.is_some();
    let subnet = match subnet {
        Some(subnet) if subnet.trunc() != subnet => return Err(not_its_own(subnet)),
        // A gateway and a container want an address each.
        Some(subnet) if subnet.prefix_len() > 30 => {
            return Err(BridgesError::Invalid(format!(
                "invalid subnet {subnet}: too small"
            )));
        }
        Some(subnet) if taken.iter().any(|other| ipam::overlap(subnet, *other)) => {
            return Err(BridgesError::Overlap);
        }
        Some(subnet) => subnet,
        None => {
            let taken: Vec<Ipv4Net> = taken.iter().copied().chain([GATEWAY_BRIDGE]).collect();
            ipam::free_subnet(pools, &taken).ok_or(BridgesError::NoSubnet)?
        }
    };
    if let Some(range) = range.filter(|range| !by_user || !subnet.contains(range)) {
        return Err(no_match("ip-range", range));
    }
    let is_host =
        |ip: Ipv4Addr| subnet.contains(&ip) && ip != subnet.network() && ip != subnet.broadcast();
    let gateway = match gateway {
        Some(gateway) if by_user && is_host(gateway) => gateway,
        Some(gateway) => return Err(no_match("gateway", gateway)),
        None => {
            let first = range.unwrap_or(subnet).hosts().find(|ip| is_host(*ip));
            first.ok_or(BridgesError::NoSubnet)?
        }
    };
    Ok((Ipv4Place { subnet, gateway }, range))
}

fn place6(
    (subnet, range, gateway): Wish<Ipv6Net, Ipv6Addr>,
    id: &str,
    taken: &[Ipv6Net],
    pools: &[SubnetPool],
) -> Result<(Ipv6Place, Option<Ipv6Net>), BridgesError> {
    let overlaps = |one: &Ipv6Net, other: &Ipv6Net| {
        one.contains(&other.network()) || other.contains(&one.network())
    };
    let by_user = subnet.is_some();
    let subnet = match subnet {
        Some(subnet) if subnet.trunc() != subnet => return Err(not_its_own(subnet)),
        Some(subnet) if subnet.prefix_len() > 126 => {
            return Err(BridgesError::Invalid(format!(
                "invalid subnet {subnet}: too small"
            )));
        }
        Some(subnet) if taken.iter().any(|other| overlaps(&subnet, other)) => {
            return Err(BridgesError::Overlap);
        }
        Some(subnet) => subnet,
        None => {
            let own = [unique_local(id)];
            let pools = if pools.iter().any(|pool| pool.base.addr().is_ipv6()) {
                pools
            } else {
                &own
            };
            ipam::free_subnet6(pools, taken).ok_or(BridgesError::NoSubnet)?
        }
    };
    if let Some(range) = range.filter(|range| !by_user || !subnet.contains(range)) {
        return Err(no_match("ip-range", range));
    }
    let gateway = match gateway {
        Some(gateway) if by_user && subnet.contains(&gateway) && gateway != subnet.network() => {
            gateway
        }
        Some(gateway) => return Err(no_match("gateway", gateway)),
        None => {
            let mut hosts = range.unwrap_or(subnet).hosts();
            let first = hosts.find(|ip| *ip != subnet.network());
            first.ok_or(BridgesError::NoSubnet)?
        }
    };
    Ok((Ipv6Place { subnet, gateway }, range))
}

/// A range that nobody else is likely to have chosen (RFC 4193 §3.1): its 40 bits are those of the network's id.
fn unique_local(id: &str) -> SubnetPool {
    let bits = id
        .get(..10)
        .and_then(|digits| u128::from_str_radix(digits, 16).ok());
    let base = (0xfd << 120) | (bits.unwrap_or_default() << 80);
    SubnetPool {
        base: IpNet::new_assert(Ipv6Addr::from(base).into(), 48),
        length: 64,
    }
}

/// The ranges to which the host has a route, by the text of `/proc/net/route`; those through `except` do not count.
pub(in crate::bridges) fn ranges_in_use(routes: &str, except: &str) -> Vec<Ipv4Net> {
    let address = |text: &str| {
        u32::from_str_radix(text, 16)
            .ok()
            .map(|raw| Ipv4Addr::from(raw.to_ne_bytes()))
    };
    let range = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (interface, to, mask) = (
            columns.first()?,
            address(columns.get(1)?)?,
            address(columns.get(7)?)?,
        );
        let net = Ipv4Net::with_netmask(to, mask).ok()?;
        (*interface != except && net.prefix_len() > 0).then_some(net)
    };
    routes.lines().skip(1).filter_map(range).collect()
}

/// The same for IPv6, by the text of `/proc/net/ipv6_route`.
pub(in crate::bridges) fn ranges6_in_use(routes: &str, except: &str) -> Vec<Ipv6Net> {
    let range = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let to = u128::from_str_radix(columns.first()?, 16).ok()?;
        let length = u8::from_str_radix(columns.get(1)?, 16).ok()?;
        let net = Ipv6Net::new(Ipv6Addr::from(to), length).ok()?;
        let first = net.addr().octets()[0];
        // Not what every interface has: loopback, link-local addresses, groups.
        let own = length > 0 && length < 128 && !matches!(first, 0xfe | 0xff);
        (own && *columns.last()? != except).then_some(net)
    };
    routes.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_the_host_are_ranges_in_use() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            shoal0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(
            ranges_in_use(routes, "shoal0"),
            ["192.0.2.0/24".parse().unwrap()]
        );
        assert_eq!(ranges_in_use(routes, "").len(), 2);
    }

    #[test]
    fn so_are_those_of_ipv6() {
        let routes = "fd000001000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n\
            fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        assert_eq!(
            ranges6_in_use(routes, "shoal0"),
            ["fd00:1::/64".parse().unwrap()]
        );
        assert_eq!(ranges6_in_use(routes, "eth0"), []);
    }
}
