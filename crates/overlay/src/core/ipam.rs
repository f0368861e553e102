//! Addresses of this host's own bridge networks: which subnets are free, and which addresses in them.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Ranges from which subnets are cut, with the prefix length of each cut; docker's defaults for local networks.
const POOLS: [(Ipv4Addr, u8, u8); 6] = [
    (Ipv4Addr::new(172, 17, 0, 0), 16, 16),
    (Ipv4Addr::new(172, 18, 0, 0), 16, 16),
    (Ipv4Addr::new(172, 19, 0, 0), 16, 16),
    (Ipv4Addr::new(172, 20, 0, 0), 14, 16),
    (Ipv4Addr::new(172, 24, 0, 0), 13, 16),
    (Ipv4Addr::new(192, 168, 0, 0), 16, 20),
];

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// All are taken.
    #[error("no available IPv4 addresses on subnet {0}")]
    Full(Ipv4Net),
    /// Somebody has it.
    #[error("address {0} is already in use")]
    Taken(Ipv4Addr),
    /// It is not one that a container of this subnet can have.
    #[error("invalid address {address}: it does not belong to subnet {subnet}")]
    Outside {
        /// What was asked for.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
}

/// The first subnet of the default pools that overlaps none of `taken`.
pub fn free_subnet(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let pools = POOLS
        .iter()
        .filter_map(|(base, length, cut)| Ipv4Net::new(*base, *length).ok()?.subnets(*cut).ok());
    pools
        .flatten()
        .find(|subnet| !taken.iter().any(|other| overlap(*subnet, *other)))
}

/// Whether two subnets have an address in common.
pub fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
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
                return Err(IpamError::Outside { address, subnet });
            }
            Some(address) if self.taken.contains(&address) => {
                return Err(IpamError::Taken(address));
            }
            Some(address) => address,
            None => {
                let free = self
                    .range
                    .hosts()
                    .find(|address| usable(address) && !self.taken.contains(address));
                free.ok_or(IpamError::Full(subnet))?
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
        assert_eq!(free_subnet(&[]), Some(net("172.17.0.0/16")));
        assert_eq!(
            free_subnet(&[net("172.17.0.0/16"), net("172.18.5.0/24")]),
            Some(net("172.19.0.0/16"))
        );
        assert_eq!(
            free_subnet(&[net("172.16.0.0/12")]),
            Some(net("192.168.0.0/20"))
        );
        assert_eq!(free_subnet(&[net("0.0.0.0/0")]), None);
    }

    #[test]
    fn an_address_is_given_once() {
        let mut pool = AddressPool::new(net("10.1.0.0/29"), None, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, 2)));
        assert_eq!(
            pool.take(Some(Ipv4Addr::new(10, 1, 0, 2))),
            Err(IpamError::Taken(Ipv4Addr::new(10, 1, 0, 2)))
        );
        let outside = IpamError::Outside {
            address: Ipv4Addr::new(10, 1, 0, 7),
            subnet: net("10.1.0.0/29"),
        };
        assert_eq!(pool.take(Some(Ipv4Addr::new(10, 1, 0, 7))), Err(outside));
        for last in 3..=6 {
            assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, last)));
        }
        assert_eq!(pool.take(None), Err(IpamError::Full(net("10.1.0.0/29"))));
        pool.release(Ipv4Addr::new(10, 1, 0, 4));
        assert_eq!(pool.take(None), Ok(Ipv4Addr::new(10, 1, 0, 4)));
    }
}
