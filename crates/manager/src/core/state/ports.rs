//! Published ports that are in the way of each other, whether they were given out yet or are only asked for.

use std::{fmt, sync::Arc};

use shoal_api::{
    ServiceId,
    object::{Object, ObjectKey, Service},
    spec::{PortConfig, PublishMode},
};

use super::{Claim, Rejected, State};

/// A port that a service asks for, and the service that is in its way.
#[derive(Debug)]
pub struct PortClash {
    wanted: PortConfig,
    /// How the other one publishes it.
    mode: PublishMode,
    by: Arc<Service>,
}

impl fmt::Display for PortClash {
    /// In SwarmKit's words (`checkPortConflicts`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.mode {
            PublishMode::Ingress => "an ingress port",
            PublishMode::Host => "a host-published port",
        };
        let name = &self.by.spec.annotations.name;
        let (port, id) = (self.wanted.published, &self.by.id);
        write!(
            f,
            "port '{port}' is already in use by service '{name}' ({id}) as {how}"
        )
    }
}

impl State {
    /// The first of these ports that a service other than `id` has or asks for. What is only asked for counts as well,
    /// since it may not be allocated yet.
    ///
    /// A port of all nodes is in the way of everybody; a port of some nodes only of ports of all nodes.
    pub fn port_clash<'a>(
        &self,
        id: Option<&ServiceId>,
        ports: impl IntoIterator<Item = &'a PortConfig>,
    ) -> Option<PortClash> {
        let fixed = ports.into_iter().filter(|port| port.published != 0);
        let fixed: Vec<_> = fixed.collect();
        if fixed.is_empty() {
            return None;
        }
        let mut others = self.services().filter(|other| Some(&other.id) != id);
        others.find_map(|other| {
            let mut theirs = ports_of(other);
            theirs.find_map(|taken| {
                let wanted = fixed.iter().find(|wanted| excludes(wanted, taken))?;
                Some(PortClash {
                    wanted: (*wanted).clone(),
                    mode: taken.mode,
                    by: Arc::clone(other),
                })
            })
        })
    }
}

/// Ports that a service asks for, and those that it has.
pub(crate) fn ports_of(service: &Service) -> impl Iterator<Item = &PortConfig> {
    let given = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    service.spec.endpoint.ports.iter().chain(given)
}

fn excludes(one: &PortConfig, other: &PortConfig) -> bool {
    let is_same = (one.published, one.protocol) == (other.published, other.protocol);
    is_same && (one.mode == PublishMode::Ingress || other.mode == PublishMode::Ingress)
}

/// Checks that nobody else has or asks for a port that a service comes to have or to ask for: whoever was looked at when
/// that was decided may have been followed by others.
pub(super) fn check(
    state: &State,
    old: Option<&Object>,
    new: Option<&Object>,
) -> Result<(), Rejected> {
    let Some(Object::Service(new)) = new else {
        return Ok(());
    };
    let old = match old {
        Some(Object::Service(old)) => Some(old),
        _ => None,
    };
    let had = |port: &&PortConfig| old.is_some_and(|old| ports_of(old).any(|had| had == *port));
    let added = ports_of(new).filter(|port| !had(port));
    match state.port_clash(Some(&new.id), added) {
        None => Ok(()),
        Some(clash) => Err(Rejected::Taken {
            claim: Claim::IngressPort(clash.wanted.protocol, clash.wanted.published),
            holder: ObjectKey::Service(clash.by.id.clone()),
        }),
    }
}
