//! Dependencies between services.

use std::collections::BTreeSet;

use shoal_api::spec::{DependencyCondition, ServiceSpec};

use super::Refusal;
use crate::core::{
    depends::{can_complete, cycle, resolve},
    state::State,
};

/// Checks what a service waits for. A dependency may be made later, so its absence is no error.
pub(super) fn dependencies(state: &State, spec: &ServiceSpec) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for dependency in &spec.depends_on {
        if !seen.insert(&dependency.service) {
            return Err(Refusal::invalid(format!(
                "depends_on: service {} is named twice",
                dependency.service
            )));
        }
        if dependency.condition == DependencyCondition::CompletedSuccessfully
            && let Some(other) = resolve(state, spec, dependency)
            && !can_complete(&other.spec)
        {
            return Err(Refusal::invalid(format!(
                "depends_on: service {} never completes, since its restart condition is any: expected a job, or the \
                 restart condition none or on-failure",
                dependency.service
            )));
        }
    }
    match cycle(state, spec) {
        None => Ok(()),
        Some(names) => Err(Refusal::invalid(format!(
            "depends_on: dependency cycle detected: {}",
            names.join(" -> ")
        ))),
    }
}
