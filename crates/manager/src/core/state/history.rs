//! Earlier specs of a service.

use std::sync::Arc;

use shoal_api::{
    Timestamp,
    object::{HISTORY_MAX, Revision, Service},
    spec::ServiceSpec,
    wire,
};

/// Bytes of a service's history at most: all of it travels with every change of the service.
const HISTORY_BYTES_MAX: usize = 512 * 1024;

/// Puts another spec in the place of a service's; the one in force becomes history.
pub(crate) fn supersede(
    service: &mut Service,
    spec: Arc<ServiceSpec>,
    spec_version: u64,
    at: Timestamp,
) {
    let before = std::mem::replace(&mut service.spec, spec);
    service.history.push(Revision {
        number: service.revision,
        spec: before,
        spec_version: service.spec_version,
        replaced_at: at,
    });
    let mut bytes = 0;
    let kept = service.history.iter().rev().take(HISTORY_MAX);
    let kept = kept.take_while(|revision| {
        bytes += wire::service_spec_bytes(&revision.spec);
        bytes <= HISTORY_BYTES_MAX
    });
    let excess = service.history.len() - kept.count();
    service.history.drain(..excess);
    service.spec_version = spec_version;
    service.revision += 1;
}

/// Whether `new` is `old` with its previous spec, and history says so.
pub(super) fn is_previous_restored(old: &Service, new: &Service) -> bool {
    let Some(previous) = &old.previous_spec else {
        return false;
    };
    let mut back = old.clone();
    let at = new.history.last().map(|revision| revision.replaced_at);
    supersede(
        &mut back,
        previous.clone(),
        old.previous_spec_version,
        at.unwrap_or_default(),
    );
    (back.spec == new.spec && back.spec_version == new.spec_version)
        && (back.revision == new.revision && back.history == new.history)
}
