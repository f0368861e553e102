//! How a service wants to be reached beyond what docker has flags for: chosen addresses, options of ports, affinity.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use shoal_api::{
    ServiceId,
    object::Network,
    spec::{
        Affinity, EndpointMode, EndpointSpec, NetworkTarget, Protocol, PublishMode, ServiceSpec,
        labels::{IP, PUBLISH},
    },
};

use super::Refusal;
use crate::core::{
    allocator::{networks_of, subnet_of_host},
    state::State,
};

/// Checks the options of published ports by themselves.
pub(super) fn ports(endpoint: &EndpointSpec) -> Result<(), Refusal> {
    for port in &endpoint.ports {
        let refuse = |option: &str, why: &str| {
            let protocol = match port.protocol {
                Protocol::Tcp => String::new(),
                other => format!("/{other}"),
            };
            let label = format!("{PUBLISH}{}{protocol}.{option}", port.target);
            Err(Refusal::invalid(format!("label '{label}': {why}")))
        };
        if port.proxy_protocol && port.protocol != Protocol::Tcp {
            return refuse(
                "proxy-protocol",
                "only a tcp port has connections that can begin with a header",
            );
        }
        if port.proxy_protocol && port.mode == PublishMode::Host {
            return refuse(
                "proxy-protocol",
                "a port published in host mode tells the client's address by itself: expected mode ingress",
            );
        }
        if port.proxy_protocol && endpoint.affinity == Affinity::Source {
            return refuse(
                "proxy-protocol",
                "cannot be used with the label 'shoal.affinity=source': connections to tasks are the node's own",
            );
        }
        if port.local && port.mode == PublishMode::Host {
            return refuse(
                "local",
                "a port published in host mode is answered by the task's node alone: expected mode ingress",
            );
        }
        if let Some(why) = port.host_ip.and_then(no_listener) {
            return refuse("host-ip", &why);
        }
    }
    if endpoint.affinity == Affinity::Source && endpoint.mode == EndpointMode::Dnsrr {
        return Err(Refusal::invalid(
            "label 'shoal.affinity=source': clients choose among the addresses themselves in the endpoint mode dnsrr: \
             expected vip",
        ));
    }
    Ok(())
}

/// Why nothing can listen at an address of a node; `None` if something can.
fn no_listener(address: IpAddr) -> Option<String> {
    let kind = match address {
        _ if address.is_unspecified() => "stands for all addresses",
        _ if address.is_multicast() => "is one of a group",
        IpAddr::V4(v4) if v4.is_broadcast() => "is one of all hosts",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "holds on one link only",
        _ => return None,
    };
    Some(format!("{address} {kind}: expected an address of a node"))
}

/// Checks the virtual addresses that a service asks for; `id` is the service that is updated, if it exists.
pub(super) fn addresses(
    state: &State,
    id: Option<&ServiceId>,
    spec: &ServiceSpec,
) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::invalid(format!("label '{IP}': {text}")));
    let asked = &spec.endpoint.addresses;
    if !asked.is_empty() && spec.endpoint.mode == EndpointMode::Dnsrr {
        return refuse(
            "a service has no virtual address in the endpoint mode dnsrr: expected vip".to_owned(),
        );
    }
    let joined = networks_of(state, &spec.endpoint, &spec.task).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for fixed in asked {
        let network = state.network_called(spec, &fixed.network);
        let network = network.and_then(|id| state.network(&id));
        let Some(network) = network.filter(|network| joined.contains(&network.id)) else {
            // Nobody means ingress who has not named it.
            let is_named = |network: &&Arc<Network>| {
                let target = NetworkTarget::Cluster(network.id.clone());
                let mut named = spec.task.networks.iter();
                named.any(|attached| attached.target == target)
            };
            let names = joined.iter().filter_map(|id| state.network(id));
            let names: Vec<_> = names
                .filter(is_named)
                .map(|network| network.spec.annotations.name.clone())
                .collect();
            let expected = match &names[..] {
                [] => "and it is in none".to_owned(),
                _ => format!("expected one of {}", names.join(", ")),
            };
            return refuse(format!(
                "the service is not in a network {:?}: {expected}",
                fixed.network
            ));
        };
        let address = fixed.address;
        if !seen.insert((&network.id, address.is_ipv4())) {
            return refuse(format!(
                "network {:?} is given two addresses of one family: expected one",
                network.spec.annotations.name
            ));
        }
        if network.allocated.is_some()
            && let Err(why) = subnet_of_host(network, address)
        {
            return refuse(why);
        }
        if let Some(clash) = state.address_clash(id, spec, [fixed]) {
            return refuse(format!("{clash}: expected one that is free"));
        }
    }
    Ok(())
}
