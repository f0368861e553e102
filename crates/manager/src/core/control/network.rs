//! Networks: create and remove. A network does not change.

use shoal_api::{
    NetworkId,
    object::{Network, Object, ObjectKey},
    spec::{NetworkSpec, PublishMode},
};

use super::{Outcome, create, remove, unborn};
use crate::core::{
    reconcile::Ctx,
    state::{Kind, State},
    validate::{self, Refusal},
};

/// Makes a network; the allocator gives it its subnets.
///
/// # Errors
/// A spec that makes no sense, a name that another network has, a subnet that overlaps another one's.
pub fn create_network(state: &State, cx: &mut Ctx<'_>, mut spec: NetworkSpec) -> Outcome {
    validate::network(state, &spec)?;
    let name = &spec.annotations.name;
    if state.named(Kind::Network, name).is_some() {
        return Err(Refusal::name_taken(Kind::Network, name));
    }
    if spec.driver.name.is_empty() {
        "overlay".clone_into(&mut spec.driver.name);
    }
    let network = Network {
        id: cx.ids.next(),
        meta: unborn(),
        spec,
        allocated: None,
    };
    Ok(create(cx, Object::Network(network)))
}

/// Removes a network.
///
/// # Errors
/// It does not exist, or something uses it, which is named.
pub fn remove_network(state: &State, cx: &mut Ctx<'_>, id: &NetworkId) -> Outcome {
    let network = state
        .network(id)
        .ok_or_else(|| Refusal::not_found("network", id))?;
    if network.spec.ingress {
        let publishes = state.services().find(|service| {
            service
                .spec
                .endpoint
                .ports
                .iter()
                .any(|port| port.mode == PublishMode::Ingress)
        });
        if let Some(service) = publishes {
            return Err(Refusal::precondition(format!(
                "ingress network cannot be removed because service {} depends on it",
                service.id
            )));
        }
    }
    if let Some(user) = state.network_user(id) {
        return Err(Refusal::precondition(format!(
            "network {id} is in use by {user}"
        )));
    }
    Ok(remove(
        cx,
        ObjectKey::Network(id.clone()),
        network.meta.version,
    ))
}
