//! Services: create, update, roll back, remove.

use std::sync::Arc;

use shoal_api::{
    Actor, ServiceId,
    object::{JobStatus, Object, ObjectKey, Service, UpdateState, UpdateStatus},
    spec::{ServiceMode, ServiceSpec},
};

use super::{Outcome, create, remove, same_version, unborn, update};
use crate::core::{
    reconcile::Ctx,
    state::{Kind, LogIndex, State, supersede},
    validate::{self, Refusal, RefusalKind},
};

/// Makes a service.
///
/// # Errors
/// A spec that makes no sense, a name or port that another service has, a missing network, secret or config.
pub fn create_service(state: &State, cx: &mut Ctx<'_>, spec: ServiceSpec) -> Outcome {
    validate::service(state, None, &spec)?;
    let name = &spec.annotations.name;
    if state.named(Kind::Service, name).is_some() {
        return Err(Refusal::name_taken(Kind::Service, name));
    }
    let job = is_job(spec.mode).then_some(JobStatus {
        iteration: 0,
        last_execution: cx.now,
    });
    let service = Service {
        id: cx.ids.next(),
        meta: unborn(),
        spec: Arc::new(spec),
        spec_version: 0,
        previous_spec: None,
        previous_spec_version: 0,
        endpoint: None,
        update_status: None,
        job,
        revision: 1,
        history: Vec::new(),
    };
    Ok(create(cx, Object::Service(service)))
}

/// Gives a service another spec.
///
/// # Errors
/// As [`create_service`]; another name or mode; `update out of sequence` if `version` is not the current one.
pub fn update_service(
    state: &State,
    cx: &mut Ctx<'_>,
    id: &ServiceId,
    version: LogIndex,
    spec: ServiceSpec,
) -> Outcome {
    let old = state
        .service(id)
        .ok_or_else(|| Refusal::not_found("service", id))?;
    validate::service(state, Some(id), &spec)?;
    if spec.annotations.name != old.spec.annotations.name {
        return Err(Refusal::new(
            RefusalKind::Unimplemented,
            "renaming services is not supported",
        ));
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&old.spec.mode) {
        return Err(Refusal::new(
            RefusalKind::Unimplemented,
            "service mode change is not allowed",
        ));
    }
    same_version(&old.meta, version)?;
    let mut service = old.as_ref().clone();
    service.previous_spec = Some(old.spec.clone());
    service.previous_spec_version = old.spec_version;
    let spec_version = if spec.task != old.spec.task || spec.endpoint != old.spec.endpoint {
        // The version that is replaced is newer than every spec version before, so it names the new spec uniquely.
        old.meta.version
    } else {
        old.spec_version
    };
    supersede(&mut service, Arc::new(spec), spec_version, cx.now);
    // An update in flight ends here; the new one starts from whatever is there.
    service.update_status = None;
    next_run(&mut service, cx);
    Ok(update(cx, Object::Service(service)))
}

/// Gives a service the spec that it had before the last update (doing it twice changes nothing), or with `to` the one of
/// that revision.
///
/// # Errors
/// There is no such spec; `update out of sequence`; a port that another service has by now.
pub fn rollback_service(
    state: &State,
    cx: &mut Ctx<'_>,
    id: &ServiceId,
    version: LogIndex,
    to: Option<u64>,
) -> Outcome {
    let old = state
        .service(id)
        .ok_or_else(|| Refusal::not_found("service", id))?;
    same_version(&old.meta, version)?;
    let (spec, spec_version) = match to {
        None => earlier(old)?,
        Some(number) => revision(old, number)?,
    };
    validate::service(state, Some(id), &spec)?;
    let mut service = old.as_ref().clone();
    supersede(&mut service, spec, spec_version, cx.now);
    service.previous_spec = Some(old.spec.clone());
    service.previous_spec_version = old.spec_version;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: cx.now,
        completed_at: None,
        message: "manually requested rollback".to_owned(),
    });
    next_run(&mut service, cx);
    Ok(update(cx, Object::Service(service)))
}

fn earlier(service: &Service) -> Result<(Arc<ServiceSpec>, u64), Refusal> {
    let previous = service.previous_spec.clone().ok_or_else(|| {
        let id = &service.id;
        Refusal::precondition(format!("service {id} does not have a previous spec"))
    })?;
    Ok((previous, service.previous_spec_version))
}

fn revision(service: &Service, number: u64) -> Result<(Arc<ServiceSpec>, u64), Refusal> {
    let mut history = service.history.iter();
    if let Some(found) = history.find(|revision| revision.number == number) {
        return Ok((found.spec.clone(), found.spec_version));
    }
    let name = &service.spec.annotations.name;
    let known: Vec<_> = service
        .history
        .iter()
        .map(|r| r.number.to_string())
        .collect();
    Err(Refusal::precondition(if number == service.revision {
        format!("service {name} is at revision {number} already")
    } else if known.is_empty() {
        format!("service {name} has no revision {number}: it has had no other spec")
    } else {
        let known = known.join(", ");
        format!("service {name} has no revision {number}: expected one of {known}")
    }))
}

/// What became of services that were only looked at.
#[derive(Debug)]
pub struct Checked {
    /// By name, why those that are not possible would be refused.
    pub refused: Vec<(String, Refusal)>,
    /// The state as it would be with all others.
    pub state: State,
    /// Services that would be new in it.
    pub made: Vec<ServiceId>,
}

/// Makes or updates these services one after the other in a copy of the state.
pub fn check_services(state: &State, cx: &mut Ctx<'_>, specs: Vec<ServiceSpec>) -> Checked {
    let mut checked = Checked {
        refused: Vec::new(),
        state: state.clone(),
        made: Vec::new(),
    };
    let scratch = &mut checked.state;
    for spec in specs {
        let name = spec.annotations.name.clone();
        let old = match scratch.named(Kind::Service, &name) {
            Some(ObjectKey::Service(id)) => scratch.service(id).cloned(),
            _ => None,
        };
        let is_new = old.is_none();
        let decided = match old {
            Some(old) => update_service(scratch, cx, &old.id, old.meta.version, spec),
            None => create_service(scratch, cx, spec),
        };
        let applied = decided.and_then(|decision| {
            let index = scratch.index() + 1;
            let applied = scratch.apply(index, &decision.batch);
            applied.map_err(Refusal::from)?;
            release(scratch, cx, &decision.key)?;
            Ok(decision.key)
        });
        match applied {
            Ok(ObjectKey::Service(id)) if is_new => checked.made.push(id),
            Ok(_) => {}
            Err(refusal) => checked.refused.push((name, refusal)),
        }
    }
    checked
}

/// Gives back what a service was given for an earlier spec, as the allocator does before anybody can ask for it.
fn release(scratch: &mut State, cx: &Ctx<'_>, key: &ObjectKey) -> Result<(), Refusal> {
    let ObjectKey::Service(id) = key else {
        return Ok(());
    };
    let Some(service) = scratch.service(id).filter(|s| s.endpoint.is_some()) else {
        return Ok(());
    };
    let mut service = service.as_ref().clone();
    service.endpoint = None;
    let mut batch = update(cx, Object::Service(service)).batch;
    batch.actor = Actor::Allocator;
    let index = scratch.index() + 1;
    scratch
        .apply(index, &batch)
        .map(drop)
        .map_err(Refusal::from)
}

/// Removes a service; its tasks follow.
///
/// # Errors
/// It does not exist.
pub fn remove_service(state: &State, cx: &mut Ctx<'_>, id: &ServiceId) -> Outcome {
    let service = state
        .service(id)
        .ok_or_else(|| Refusal::not_found("service", id))?;
    Ok(remove(
        cx,
        ObjectKey::Service(id.clone()),
        service.meta.version,
    ))
}

/// A job runs again with every update.
fn next_run(service: &mut Service, cx: &Ctx<'_>) {
    if let Some(job) = &mut service.job {
        *job = JobStatus {
            iteration: job.iteration + 1,
            last_execution: cx.now,
        };
    }
}

fn is_job(mode: ServiceMode) -> bool {
    matches!(
        mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    )
}
