//! Ports published on all nodes.

use std::{cell::LazyCell, collections::BTreeSet};

use shoal_api::{
    object::Service,
    spec::{PortConfig, PublishMode},
};

use crate::core::state::State;

/// First port given out when none is asked for (SwarmKit's `manager/allocator/portallocator.go`).
const DYNAMIC_PORT_MIN: u16 = 30_000;
/// Last one.
const DYNAMIC_PORT_MAX: u16 = 32_767;

/// The ports of a service with the numbers filled in that the manager gives. Ports that were given a number before, known
/// by name, protocol and target, keep it. Host-mode ports are left to their nodes.
///
/// # Errors
/// A port that another service has, or none is left.
pub(super) fn allocate(state: &State, service: &Service) -> Result<Vec<PortConfig>, String> {
    let wanted = &service.spec.endpoint.ports;
    let mut before: Vec<&PortConfig> = service
        .endpoint
        .iter()
        .flat_map(|endpoint| &endpoint.ports)
        .collect();
    let mut given: Vec<PortConfig> = Vec::with_capacity(wanted.len());
    let is_free = |port: &PortConfig, given: &[PortConfig]| {
        let other = state.ingress_port_holder(port.protocol, port.published);
        other.is_none_or(|other| other.id == service.id)
            && !given
                .iter()
                .any(|g| g.protocol == port.protocol && g.published == port.published)
            && !wanted
                .iter()
                .any(|w| w.protocol == port.protocol && w.published == port.published)
    };
    // What others ask for is as good as theirs, although they may not have it yet.
    let asked: LazyCell<BTreeSet<_>, _> = LazyCell::new(|| {
        let others = state.services().filter(|other| other.id != service.id);
        let ports = others.flat_map(|other| &other.spec.endpoint.ports);
        ports.map(|port| (port.protocol, port.published)).collect()
    });
    for port in wanted {
        let mut port = port.clone();
        if port.mode == PublishMode::Ingress && port.published == 0 {
            let same = |old: &&PortConfig| {
                old.mode == PublishMode::Ingress
                    && (&old.name, old.protocol, old.target)
                        == (&port.name, port.protocol, port.target)
            };
            let kept = before
                .iter()
                .position(same)
                .map(|place| before.remove(place).published);
            let kept = kept.filter(|kept| {
                is_free(
                    &PortConfig {
                        published: *kept,
                        ..port.clone()
                    },
                    &given,
                )
            });
            let mut range = DYNAMIC_PORT_MIN..=DYNAMIC_PORT_MAX;
            let free = kept.or_else(|| {
                range.find(|number| {
                    let numbered = PortConfig {
                        published: *number,
                        ..port.clone()
                    };
                    is_free(&numbered, &given) && !asked.contains(&(port.protocol, *number))
                })
            });
            port.published =
                free.ok_or_else(|| format!("no dynamic port left for {}", port.protocol))?;
        } else if port.mode == PublishMode::Ingress
            && let Some(other) = state.ingress_port_holder(port.protocol, port.published)
            && other.id != service.id
        {
            return Err(format!(
                "port '{}' is already in use by service '{}' ({}) as an ingress port",
                port.published, other.spec.annotations.name, other.id
            ));
        }
        given.push(port);
    }
    Ok(given)
}
