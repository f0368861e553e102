//! Virtual addresses that services ask for and that somebody else has, or asks for as well.

use std::{fmt, net::IpAddr};

use shoal_api::{
    NetworkId, ServiceId,
    object::{Object, ObjectKey, Service},
    spec::{FixedAddress, ServiceSpec},
};

use super::{Claim, Kind, Rejected, State};

/// An address that a service asks for, and who is in its way.
#[derive(Debug)]
pub struct AddressClash {
    address: IpAddr,
    network: NetworkId,
    network_name: String,
    by: ObjectKey,
    /// Who that is, in words.
    holder: String,
}

impl fmt::Display for AddressClash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            network_name,
            holder,
            ..
        } = self;
        write!(
            f,
            "address {address} of network {network_name} is already in use by {holder}"
        )
    }
}

impl State {
    /// The network that a service calls by a name or an id: in a stack, by its name without the stack's.
    pub fn network_called(&self, spec: &ServiceSpec, text: &str) -> Option<NetworkId> {
        let by_id = || self.network(&text.parse().ok()?).map(|n| n.id.clone());
        let by_name = |name: &str| match self.named(Kind::Network, name) {
            Some(ObjectKey::Network(id)) => Some(id.clone()),
            _ => None,
        };
        let in_stack = || {
            let stack = spec.annotations.labels.get(shoal_api::stack::NAMESPACE)?;
            by_name(&format!("{stack}_{text}"))
        };
        in_stack().or_else(|| by_name(text)).or_else(by_id)
    }

    /// The first of these addresses, which a service `id` of this spec asks for, that somebody else has or asks for. What is
    /// only asked for counts as well, since it may not be allocated yet.
    pub fn address_clash<'a>(
        &self,
        id: Option<&ServiceId>,
        spec: &ServiceSpec,
        asked: impl IntoIterator<Item = &'a FixedAddress>,
    ) -> Option<AddressClash> {
        let mut asked = asked.into_iter();
        asked.find_map(|fixed| {
            let network = self.network_called(spec, &fixed.network)?;
            let (by, holder) = self.address_holder(id, &network, fixed.address)?;
            let network_name = self.network(&network)?.spec.annotations.name.clone();
            Some(AddressClash {
                address: fixed.address,
                network,
                network_name,
                by,
                holder,
            })
        })
    }

    /// Who else has an address or asks for it, also in words.
    fn address_holder(
        &self,
        id: Option<&ServiceId>,
        network: &NetworkId,
        address: IpAddr,
    ) -> Option<(ObjectKey, String)> {
        let words = |service: &Service| {
            let name = &service.spec.annotations.name;
            format!("service '{name}' ({})", service.id)
        };
        if let Some(key) = self.holder(&Claim::Address(network.clone(), address)) {
            let words = match key {
                ObjectKey::Service(holder) if Some(holder) == id => return None,
                ObjectKey::Service(holder) => words(self.service(holder)?),
                ObjectKey::Task(task) => format!("task {task}"),
                _ => "the network's gateway".to_owned(),
            };
            return Some((key.clone(), words));
        }
        let mut others = self.services().filter(|other| Some(&other.id) != id);
        let other = others.find(|other| {
            let asked = other.spec.endpoint.addresses.iter();
            let mut same = asked.filter(|asked| asked.address == address);
            same.any(|asked| {
                self.network_called(&other.spec, &asked.network).as_ref() == Some(network)
            })
        })?;
        Some((ObjectKey::Service(other.id.clone()), words(other)))
    }
}

/// Checks that nobody else has or asks for an address that a service comes to ask for: whoever was looked at when that was
/// decided may have been followed by others.
pub(super) fn check(
    state: &State,
    old: Option<&Object>,
    new: Option<&Object>,
) -> Result<(), Rejected> {
    let Some(Object::Service(new)) = new else {
        return Ok(());
    };
    let had = match old {
        Some(Object::Service(old)) => &old.spec.endpoint.addresses[..],
        _ => &[],
    };
    let asked = new.spec.endpoint.addresses.iter();
    let added = asked.filter(|asked| !had.contains(asked));
    match state.address_clash(Some(&new.id), &new.spec, added) {
        None => Ok(()),
        Some(clash) => Err(Rejected::Taken {
            claim: Claim::Address(clash.network, clash.address),
            holder: clash.by,
        }),
    }
}
