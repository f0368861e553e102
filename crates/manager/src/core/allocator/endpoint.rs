//! Endpoints of services: virtual addresses and published ports.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_api::{
    NetworkId,
    object::{Service, ServiceEndpoint, VirtualIp},
    spec::{EndpointMode, ServiceSpec},
};

use super::{Given, networks_of, ports};
use crate::core::state::State;

/// The endpoint that a service should have; `None` if it has it.
///
/// Virtual addresses and dynamic ports that it has are kept as long as the spec still asks for them.
///
/// # Errors
/// What is missing.
pub(super) fn allocate(
    state: &State,
    service: &Service,
    given: &mut Given,
) -> Result<Option<ServiceEndpoint>, String> {
    let spec = &service.spec.endpoint;
    let ports = ports::allocate(state, service)?;
    let wanted = match spec.mode {
        EndpointMode::Vip => networks_of(state, spec, &service.spec.task)?,
        EndpointMode::Dnsrr => Vec::new(),
    };
    let have = service
        .endpoint
        .iter()
        .flat_map(|endpoint| &endpoint.virtual_ips);
    let mut virtual_ips: Vec<VirtualIp> = Vec::new();
    for id in &wanted {
        let network = state
            .network(id)
            .ok_or_else(|| format!("network {id} is missing"))?;
        let of_network = have.clone().filter(|vip| vip.network == *id);
        let (held, fixed) = (
            of_network.map(|vip| vip.addr),
            fixed(state, &service.spec, id),
        );
        let held: Vec<IpNet> = held.collect();
        let (has, asks) = (!held.is_empty(), !fixed.is_empty());
        if has && !asks {
            virtual_ips.extend(held.into_iter().map(|addr| VirtualIp {
                network: id.clone(),
                addr,
            }));
            continue;
        }
        let allocated = network
            .allocated
            .as_ref()
            .ok_or_else(|| super::why_unallocated(state, network))?;
        // One address per family, from the first subnet of the family that has one left.
        for v4 in [true, false] {
            let mut subnets = allocated
                .subnets
                .iter()
                .filter(|subnet| subnet.range.addr().is_ipv4() == v4)
                .peekable();
            if subnets.peek().is_none() {
                continue;
            }
            let wish = fixed.iter().find(|address| address.is_ipv4() == v4);
            let own = held.iter().find(|addr| addr.addr().is_ipv4() == v4);
            let kept = own.filter(|own| wish.is_none_or(|wish| own.addr() == *wish));
            if let Some(addr) = kept.copied() {
                virtual_ips.push(VirtualIp {
                    network: id.clone(),
                    addr,
                });
                continue;
            }
            if let Some(wish) = wish {
                virtual_ips.push(VirtualIp {
                    network: id.clone(),
                    addr: given.take_fixed(state, network, *wish)?,
                });
                continue;
            }
            let mut full = String::new();
            let addr = subnets.find_map(|subnet| {
                given
                    .take(state, network, subnet)
                    .map_err(|e| full = e)
                    .ok()
            });
            let addr = addr.ok_or(full)?;
            virtual_ips.push(VirtualIp {
                network: id.clone(),
                addr,
            });
        }
    }
    let endpoint = ServiceEndpoint {
        spec: spec.clone(),
        ports,
        virtual_ips,
    };
    Ok((service.endpoint.as_ref() != Some(&endpoint)).then_some(endpoint))
}

/// The addresses that the user chose for a service in a network.
fn fixed(state: &State, spec: &ServiceSpec, network: &NetworkId) -> Vec<IpAddr> {
    let all = spec.endpoint.addresses.iter();
    let here =
        all.filter(|fixed| state.network_called(spec, &fixed.network).as_ref() == Some(network));
    here.map(|fixed| fixed.address).collect()
}
