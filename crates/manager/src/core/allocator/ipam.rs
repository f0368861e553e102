//! Addresses: subnets cut from pools, and hosts within subnets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use shoal_api::{
    NetworkId,
    network::Subnet,
    object::{Network, NetworkAllocation},
    spec::{ClusterSpec, IpamConfig},
};

use super::vni;
use crate::core::state::{Claim, State, overlap};

/// Gives a network its subnets and its VNI.
///
/// # Errors
/// What there is none of any more.
pub(super) fn allocate_network(
    state: &State,
    network: &Network,
) -> Result<NetworkAllocation, String> {
    let vni = vni::free_vni(state).ok_or("no VXLAN network identifier left")?;
    let mut subnets: Vec<Subnet> = Vec::new();
    for ipam in &network.spec.ipam {
        if let Some(range) = ipam.subnet {
            let gateway = ipam.gateway.unwrap_or_else(|| first_host(range));
            subnets.push(Subnet {
                range: range.trunc(),
                gateway,
            });
        }
    }
    let asks_for = |v4: bool| {
        subnets
            .iter()
            .any(|subnet| matches!(subnet.range, IpNet::V4(_)) == v4)
    };
    let (has_v4, has_v6) = (asks_for(true), asks_for(false));
    if !has_v4 {
        let range = free_subnet(state).ok_or("no subnet left in the default address pools")?;
        subnets.push(Subnet {
            range,
            gateway: first_host(range),
        });
    }
    if network.spec.ipv6 && !has_v6 {
        let range = IpNet::V6(local_v6(&network.id));
        subnets.push(Subnet {
            range,
            gateway: first_host(range),
        });
    }
    // IPv4 first; otherwise in the order in which they were asked for.
    subnets.sort_by_key(|subnet| matches!(subnet.range, IpNet::V6(_)));
    if let Some(taken) = subnets
        .iter()
        .find(|subnet| subnets_in_use(state).any(|used| overlap(used, subnet.range)))
    {
        return Err(format!(
            "subnet {} overlaps that of another network",
            taken.range
        ));
    }
    Ok(NetworkAllocation { vni, subnets })
}

fn subnets_in_use(state: &State) -> impl Iterator<Item = IpNet> {
    let given = state
        .networks()
        .flat_map(|network| network.allocated.iter());
    given.flat_map(|given| given.subnets.iter().map(|subnet| subnet.range))
}

/// The first subnet of the cluster's pools that overlaps none in use and none asked for, and that no node has an address in,
/// as long as there is such a one: containers would not reach it, and ingress would take its packets for those of a task.
fn free_subnet(state: &State) -> Option<IpNet> {
    let nodes = state.nodes();
    let nodes = nodes.flat_map(|node| [node.status.addr, node.description.data_path_addr]);
    let nodes: Vec<IpNet> = nodes.flatten().map(IpNet::from).collect();
    free_beside(state, &nodes).or_else(|| free_beside(state, &[]))
}

fn free_beside(state: &State, others: &[IpNet]) -> Option<IpNet> {
    let defaults = ClusterSpec::default();
    let spec = state.cluster().map_or(&defaults, |cluster| &cluster.spec);
    let asked = state
        .networks()
        .flat_map(|network| network.spec.ipam.iter().filter_map(|ipam| ipam.subnet));
    let others = others.iter().copied();
    let mut used: Vec<IpNet> = subnets_in_use(state).chain(asked).chain(others).collect();
    used.sort();
    used.dedup();
    for pool in &spec.default_address_pools {
        let IpNet::V4(pool) = pool else { continue };
        let step = 1u64 << (32 - spec.subnet_size.clamp(pool.prefix_len(), 30));
        let (mut at, end) = (
            u64::from(u32::from(pool.network())),
            u64::from(u32::from(pool.broadcast())),
        );
        while at + step - 1 <= end {
            let start = Ipv4Addr::from(u32::try_from(at).ok()?);
            let candidate =
                IpNet::new(start.into(), spec.subnet_size.clamp(pool.prefix_len(), 30)).ok()?;
            match used.iter().find(|used| overlap(**used, candidate)) {
                None => return Some(candidate),
                Some(IpNet::V4(used)) => {
                    // On to the first subnet after the one in the way.
                    let past = u64::from(u32::from(used.broadcast())) + 1;
                    at = past.max(at + step).next_multiple_of(step);
                }
                Some(IpNet::V6(_)) => return None,
            }
        }
    }
    None
}

/// A /64 of a network's own in the space for local use (RFC 4193): its bits are those of the network's id.
fn local_v6(network: &NetworkId) -> Ipv6Net {
    // FNV-1a; any even spread will do, since overlaps are refused.
    let hash = network
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let prefix = (0xfd00u128 << 112) | (u128::from(hash & 0x00ff_ffff_ffff_ffff) << 64);
    Ipv6Net::new(Ipv6Addr::from(prefix), 64).expect("64 is a prefix length")
}

fn first_host(range: IpNet) -> IpAddr {
    number_to_address(range, to_number(range.network()) + 1)
}

/// Addresses given out in the plan at hand, which the state does not know of yet.
#[derive(Debug, Default)]
pub struct Given(BTreeSet<(NetworkId, IpAddr)>);

impl Given {
    /// Takes an address out of a subnet of a network, from the range that the user named if there is one.
    ///
    /// Goes on after the greatest address in use, and back to the first gap at the end of the range, so that most
    /// addresses rest after they were given back and what remembers them elsewhere can forget.
    ///
    /// # Errors
    /// None is left; the text says how many there are.
    pub(super) fn take(
        &mut self,
        state: &State,
        network: &Network,
        subnet: &Subnet,
    ) -> Result<IpNet, String> {
        let hosts = Hosts::of(network, subnet);
        let id = &network.id;
        let local_last = self.0.range(..=(id.clone(), hosts.last())).next_back();
        let local_last = local_last
            .filter(|(of, _)| of == id)
            .map(|(_, address)| *address);
        let last = state.last_address(id, hosts.last()).max(local_last);
        let after = last.map_or(hosts.first, |last| (to_number(last) + 1).max(hosts.first));
        let is_free = |number: u128| {
            let address = number_to_address(subnet.range, number);
            state.holder(&Claim::Address(id.clone(), address)).is_none()
                && !self.0.contains(&(id.clone(), address))
                && address != subnet.gateway
        };
        let ahead = (after..=hosts.end).find(|number| is_free(*number));
        let number = ahead
            .or_else(|| self.first_gap(state, id, &hosts, subnet))
            .ok_or_else(|| {
                let total = hosts.count(subnet);
                format!("no address left in {} ({total}/{total})", hosts.range)
            })?;
        let address = number_to_address(subnet.range, number);
        self.0.insert((id.clone(), address));
        Ok(with_prefix(address, subnet))
    }

    /// Takes a certain address.
    ///
    /// # Errors
    /// It is in no subnet of the network, or in use.
    pub(super) fn take_fixed(
        &mut self,
        state: &State,
        network: &Network,
        address: IpAddr,
    ) -> Result<IpNet, String> {
        let subnet = subnet_of_host(network, address)?;
        let name = &network.spec.annotations.name;
        let key = (network.id.clone(), address);
        if state
            .holder(&Claim::Address(network.id.clone(), address))
            .is_some()
            || self.0.contains(&key)
        {
            return Err(format!(
                "address {address} of network {name} is already in use"
            ));
        }
        self.0.insert(key);
        Ok(with_prefix(address, subnet))
    }

    fn first_gap(
        &self,
        state: &State,
        network: &NetworkId,
        hosts: &Hosts,
        subnet: &Subnet,
    ) -> Option<u128> {
        let from = number_to_address(subnet.range, hosts.first);
        let mut used = state
            .addresses_from(network, from)
            .map(to_number)
            .peekable();
        let mut wanted = hosts.first;
        while wanted <= hosts.end {
            while used.next_if(|number| *number < wanted).is_some() {}
            let address = number_to_address(subnet.range, wanted);
            let taken = used.peek() == Some(&wanted)
                || address == subnet.gateway
                || self.0.contains(&(network.clone(), address));
            if !taken {
                return Some(wanted);
            }
            wanted += 1;
        }
        None
    }
}

/// The subnet of a network in which an address can be a host's.
///
/// # Errors
/// There is none; the text says what the network has.
pub(crate) fn subnet_of_host(network: &Network, address: IpAddr) -> Result<&Subnet, String> {
    let subnets = || network.allocated.iter().flat_map(|given| &given.subnets);
    let name = &network.spec.annotations.name;
    let subnet = subnets().find(|subnet| subnet.range.contains(&address));
    let subnet = subnet.ok_or_else(|| {
        let ranges: Vec<String> = subnets().map(|subnet| subnet.range.to_string()).collect();
        let ranges = ranges.join(" or ");
        format!("address {address} is not part of network {name}: expected one of {ranges}")
    })?;
    let v4_broadcast = address.is_ipv4() && address == subnet.range.broadcast();
    if address == subnet.range.network() || v4_broadcast {
        return Err(format!(
            "address {address} of network {name} is not one of a host: it is the first or the last of {}",
            subnet.range
        ));
    }
    Ok(subnet)
}

/// The addresses of a subnet that tasks and services may have, as numbers.
struct Hosts {
    range: IpNet,
    first: u128,
    end: u128,
}

impl Hosts {
    fn of(network: &Network, subnet: &Subnet) -> Self {
        let asked = |ipam: &&IpamConfig| {
            ipam.subnet
                .is_some_and(|asked| asked.trunc() == subnet.range)
        };
        let asked = network.spec.ipam.iter().find(asked);
        let range = asked
            .and_then(|ipam| ipam.ip_range)
            .unwrap_or(subnet.range)
            .trunc();
        // The first address of a subnet names it; the last one of an IPv4 subnet is the broadcast address.
        let lowest = to_number(subnet.range.network()) + 1;
        let highest =
            to_number(subnet.range.broadcast()) - u128::from(matches!(subnet.range, IpNet::V4(_)));
        Self {
            range,
            first: to_number(range.network()).max(lowest),
            end: to_number(range.broadcast()).min(highest),
        }
    }

    fn last(&self) -> IpAddr {
        number_to_address(self.range, self.end)
    }

    /// How many there are, without the gateway.
    fn count(&self, subnet: &Subnet) -> u128 {
        let gateway = to_number(subnet.gateway);
        let has_gateway = (self.first..=self.end).contains(&gateway);
        (self.end + 1).saturating_sub(self.first) - u128::from(has_gateway)
    }
}

fn with_prefix(address: IpAddr, subnet: &Subnet) -> IpNet {
    IpNet::new(address, subnet.range.prefix_len()).expect("the prefix length of the same family")
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address with a number in the family of `range`.
fn number_to_address(range: IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
