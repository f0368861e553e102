//! Addresses of this host's own bridge networks: which subnets are free, and which addresses in them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A range from which subnets are cut, with the prefix length of each cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetPool {
    /// The range.
    pub base: IpNet,
    /// Prefix length of the subnets.
    pub length: u8,
}

/// Docker's pools for networks of one host.
pub fn default_pools() -> Vec<SubnetPool> {
    const POOLS: [(Ipv4Addr, u8, u8); 6] = [
        (Ipv4Addr::new(172, 17, 0, 0), 16, 16),
        (Ipv4Addr::new(172, 18, 0, 0), 16, 16),
        (Ipv4Addr::new(172, 19, 0, 0), 16, 16),
        (Ipv4Addr::new(172, 20, 0, 0), 14, 16),
        (Ipv4Addr::new(172, 24, 0, 0), 13, 16),
        (Ipv4Addr::new(192, 168, 0, 0), 16, 20),
    ];
    let pool = |(base, prefix, length)| SubnetPool {
        base: Ipv4Net::new_assert(base, prefix).into(),
        length,
    };
    POOLS.map(pool).to_vec()
}

fn family_name(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// All are taken.
    #[error("no available {} addresses on subnet {subnet}", family_name(subnet))]
    Full {
        /// The subnet.
        subnet: IpNet,
    },
    /// Somebody has it.
    #[error("address {0} is already in use")]
    Taken(IpAddr),
    /// It is not one that a container of this subnet can have.
    #[error("invalid address {address}: it does not belong to subnet {subnet}")]
    Outside {
        /// What was asked for.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
}

/// The first IPv4 subnet of the pools that overlaps none of `taken`.
pub fn free_subnet(pools: &[SubnetPool], taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let pools = pools.iter().filter_map(|pool| match pool.base {
        IpNet::V4(base) => base.subnets(pool.length).ok(),
        IpNet::V6(_) => None,
    });
    pools
        .flatten()
        .find(|subnet| !taken.iter().any(|other| overlap(*subnet, *other)))
}

/// The first IPv6 subnet of the pools that overlaps none of `taken`.
pub fn free_subnet6(pools: &[SubnetPool], taken: &[Ipv6Net]) -> Option<Ipv6Net> {
    let overlaps = |one: Ipv6Net, other: Ipv6Net| {
        one.contains(&other.network()) || other.contains(&one.network())
    };
    let pools = pools.iter().filter_map(|pool| match pool.base {
        IpNet::V6(base) => base.subnets(pool.length).ok(),
        IpNet::V4(_) => None,
    });
    pools
        .flatten()
        .find(|subnet| !taken.iter().any(|other| overlaps(*subnet, *other)))
}

/// Whether two subnets have an address in common.
pub fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The addresses of one IPv6 subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPool6 {
    /// The subnet.
    pub subnet: Ipv6Net,
    /// Range inside it from which addresses are given out (`--ip-range`).
    pub range: Ipv6Net,
    /// Addresses in use, the gateway among them.
    pub taken: BTreeSet<Ipv6Addr>,
}

impl AddressPool6 {
    /// A pool in which only the gateway is taken.
    pub fn new(subnet: Ipv6Net, range: Option<Ipv6Net>, gateway: Ipv6Addr) -> Self {
        Self {
            subnet: subnet.trunc(),
            range: range.unwrap_or(subnet).trunc(),
            taken: BTreeSet::from([gateway]),
        }
    }

    /// Takes the wanted address, or the lowest free one.
    pub fn take(&mut self, wanted: Option<Ipv6Addr>) -> Result<Ipv6Addr, IpamError> {
        let subnet = IpNet::V6(self.subnet);
        // The first is that of all routers (RFC 4291 §2.6.1).
        let usable = |address: &Ipv6Addr| *address != self.subnet.network();
        let address = match wanted {
            Some(address) if !self.subnet.contains(&address) || !usable(&address) => {
                let address = address.into();
                return Err(IpamError::Outside { address, subnet });
            }
            Some(address) if self.taken.contains(&address) => {
                return Err(IpamError::Taken(address.into()));
            }
            Some(address) => address,
            None => {
                let mut all = self.range.hosts();
                let free = all.find(|address| usable(address) && !self.taken.contains(address));
                free.ok_or_else(|| IpamError::Full { subnet })?
            }
        };
        self.taken.insert(address);
        Ok(address)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv6Addr) {
        self.taken.remove(&address);
    }
}

/// The addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Range inside it from which addresses are given out (`--ip-range`).
    pub range: Ipv4Net,
    /// Addresses in use, the gateway among them.
    pub taken: BTreeSet<Ipv4Addr>,
}

impl AddressPool {
    /// A pool in which only the gateway is taken.
    pub fn new(subnet: Ipv4Net, range: Option<Ipv4Net>, gateway: Ipv4Addr) -> Self {
        Self {
            subnet: subnet.trunc(),
            range: range.unwrap_or(subnet).trunc(),
            taken: BTreeSet::from([gateway]),
        }
    }

    /// Takes the wanted address, or the lowest free one.
    pub fn take(&mut self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, IpamError> {
        let subnet = self.subnet;
        let usable =
            |address: &Ipv4Addr| *address != subnet.network() && *address != subnet.broadcast();
        let address = match wanted {
            Some(address) if !subnet.contains(&address) || !usable(&address) => {
                return Err(IpamError::Outside {
                    address: address.into(),
                    subnet: subnet.into(),
                });
            }
            Some(address) if self.taken.contains(&address) => {
                return Err(IpamError::Taken(address.into()));
            }
            Some(address) => address,
            None => {
                let free = self
                    .range
                    .hosts()
                    .find(|address| usable(address) && !self.taken.contains(address));
                free.ok_or_else(|| IpamError::Full {
                    subnet: subnet.into(),
                })?
            }
        };
        self.taken.insert(address);
        Ok(address)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_come_from_dockers_pools_and_do_not_overlap() {
        assert_eq!(
            free_subnet(&default_pools(), &[]),
            Some(net("172.17.0.0/16"))
        );
        assert_eq!(
            free_subnet(
                &default_pools(),
                &[net("172.17.0.0/16"), net("172.18.5.0/24")]
            ),
            Some(net("172.19.0.0/16"))
        );
        assert_eq!(
            free_subnet(&default_pools(), &[net("172.16.0.0/12")]),
            Some(net("192.168.0.0/20"))
        );
        assert_eq!(free_subnet(&default_pools(), &[net("0.0.0.0/0")]), None);
    }

    #[test]
    fn an_address_is_given_once() {
        let mut pool = AddressPool::new(net("10.1.0.0/29"), None, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, 2)));
        assert_eq!(
            pool.take(Some(Ipv4Addr::new(10, 1, 0, 2))),
            Err(IpamError::Taken([10, 1, 0, 2].into()))
        );
        let outside = IpamError::Outside {
            address: [10, 1, 0, 7].into(),
            subnet: net("10.1.0.0/29").into(),
        };
        assert_eq!(pool.take(Some(Ipv4Addr::new(10, 1, 0, 7))), Err(outside));
        for last in 3..=6 {
            assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, last)));
        }
        assert_eq!(
            pool.take(None),
            Err(IpamError::Full {
                subnet: net("10.1.0.0/29").into()
            })
        );
        pool.release(Ipv4Addr::new(10, 1, 0, 4));
        assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, 4)));
    }

    #[test]
    fn addresses_of_ipv6_are_given_once_too() {
        let subnet: Ipv6Net = "fd00:1::/64".parse().unwrap();
        let mut pool = AddressPool6::new(subnet, None, "fd00:1::1".parse().unwrap());
        let second: Ipv6Addr = "fd00:1::2".parse().unwrap();
        assert_eq!(pool.take(None), Ok(second));
        assert_eq!(
            pool.take(Some(second)),
            Err(IpamError::Taken(second.into()))
        );
        assert!(pool.take("fd00:2::1".parse().ok()).is_err());
        pool.release(second);
        assert_eq!(pool.take(None), Ok(second));
        let pools = [SubnetPool {
            base: "fd00::/32".parse().unwrap(),
            length: 64,
        }];
        let taken: Ipv6Net = "fd00:0:0:0::/63".parse().unwrap();
        let next = free_subnet6(&pools, &[taken]);
        assert_eq!(next, "fd00:0:0:2::/64".parse().ok());
    }
}
