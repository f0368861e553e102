//! Networks and the pools from which their subnets are cut.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_api::{
    spec::{Driver, NetworkSpec},
    tunnel::is_encrypted,
};

use super::Refusal;
use crate::core::{
    dispatch::MTU_OPTION,
    state::{State, overlap},
};

/// Checks a network's spec, and its subnets against those of other networks.
pub fn network(state: &State, spec: &NetworkSpec) -> Result<(), Refusal> {
    super::name(&spec.annotations)?;
    let driver = spec.driver.name.as_str();
    if !driver.is_empty() && driver != "overlay" {
        return Err(Refusal::new(
            super::RefusalKind::NotFound,
            format!(
                "could not find the corresponding driver: {driver} (cluster networks are of driver overlay)"
            ),
        ));
    }
    options(&spec.driver)?;
    if spec.ingress {
        if spec.attachable {
            return Err(Refusal::invalid("ingress network cannot be attachable"));
        }
        if spec.internal {
            return Err(Refusal::invalid("ingress network cannot be internal"));
        }
        if let Some(existing) = state.ingress_network() {
            return Err(Refusal::new(
                super::RefusalKind::AlreadyExists,
                format!("ingress network ({}) is already present", existing.id),
            ));
        }
    }
    let mut seen: Vec<IpNet> = Vec::new();
    for ipam in &spec.ipam {
        let Some(subnet) = ipam.subnet else {
            if ipam.gateway.is_some() || ipam.ip_range.is_some() {
                return Err(Refusal::invalid("a gateway or IP range needs a subnet"));
            }
            continue;
        };
        if subnet.trunc() != subnet {
            return Err(Refusal::invalid(format!(
                "invalid subnet {subnet}: it should be {}",
                subnet.trunc()
            )));
        }
        if matches!(subnet, IpNet::V6(_)) && !spec.ipv6 {
            return Err(Refusal::invalid(format!(
                "IPv6 subnet {subnet} in a network without IPv6"
            )));
        }
        let host_bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
        if host_bits < 2 {
            return Err(Refusal::invalid(format!(
                "subnet {subnet} has no room for tasks"
            )));
        }
        if let Some(gateway) = ipam.gateway
            && (!subnet.contains(&gateway)
                || gateway == subnet.network()
                || is_broadcast(subnet, gateway))
        {
            return Err(Refusal::invalid(format!(
                "invalid gateway {gateway}: not a host address of {subnet}"
            )));
        }
        if let Some(range) = ipam.ip_range
            && !subnet.contains(&range)
        {
            return Err(Refusal::invalid(format!(
                "invalid IP range {range}: not part of {subnet}"
            )));
        }
        if let Some(other) = seen.iter().find(|other| overlap(**other, subnet)) {
            return Err(Refusal::invalid(format!(
                "subnets {other} and {subnet} overlap"
            )));
        }
        seen.push(subnet);
        overlaps_other_network(state, subnet)?;
    }
    Ok(())
}

/// Refuses what would silently not be done.
fn options(driver: &Driver) -> Result<(), Refusal> {
    is_encrypted(&driver.options).map_err(Refusal::invalid)?;
    // Below it IPv6 does not work (RFC 8200 §5), above it no link carries it.
    let is_mtu = |mtu: &String| {
        mtu.parse()
            .is_ok_and(|mtu: u32| (1280..=65_535).contains(&mtu))
    };
    if let Some(mtu) = driver.options.get(MTU_OPTION).filter(|mtu| !is_mtu(mtu)) {
        return Err(Refusal::invalid(format!(
            "invalid value '{mtu}' of option {MTU_OPTION}: expected 1280 to 65535"
        )));
    }
    Ok(())
}

fn overlaps_other_network(state: &State, subnet: IpNet) -> Result<(), Refusal> {
    for network in state.networks() {
        let asked = network.spec.ipam.iter().filter_map(|ipam| ipam.subnet);
        let given = network
            .allocated
            .iter()
            .flat_map(|given| given.subnets.iter().map(|s| s.range));
        if let Some(other) = asked.chain(given).find(|other| overlap(*other, subnet)) {
            return Err(Refusal::invalid(format!(
                "invalid pool request: Pool overlaps with other one on this address space: {subnet} overlaps {other} \
                 of network {}",
                network.spec.annotations.name
            )));
        }
    }
    Ok(())
}

fn is_broadcast(subnet: IpNet, address: IpAddr) -> bool {
    matches!(subnet, IpNet::V4(_)) && subnet.broadcast() == address
}

/// Checks the cluster's pools of addresses.
pub fn pools(pools: &[IpNet], subnet_size: u8) -> Result<(), Refusal> {
    if pools.is_empty() {
        return Err(Refusal::invalid(
            "at least one default address pool is needed",
        ));
    }
    for (place, pool) in pools.iter().enumerate() {
        if pool.trunc() != *pool {
            return Err(Refusal::invalid(format!(
                "invalid address pool {pool}: it should be {}",
                pool.trunc()
            )));
        }
        if matches!(pool, IpNet::V4(_)) && (subnet_size < pool.prefix_len() || subnet_size > 29) {
            return Err(Refusal::invalid(format!(
                "subnet size {subnet_size} does not fit address pool {pool}: expected {} to 29",
                pool.prefix_len()
            )));
        }
        if let Some(other) = pools[..place].iter().find(|other| overlap(**other, *pool)) {
            return Err(Refusal::invalid(format!(
                "address pools {other} and {pool} overlap"
            )));
        }
    }
    Ok(())
}
