//! The volumes of a stack.

use std::{collections::BTreeSet, time::Duration};

use shoal_api::stack::{NAMESPACE, VolumesRemoved};
use shoal_engine::io::{Engine, EngineError};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

/// How long volumes may be held by containers that are on their way out.
pub(crate) const VOLUME_RELEASE_MAX: Duration = Duration::from_secs(10);

/// Removes them; one that is in use is waited for.
pub(super) async fn remove(engine: &Engine, stack: &str) -> Result<VolumesRemoved, EngineError> {
    let deadline = Instant::now() + VOLUME_RELEASE_MAX;
    // From here on, so that no end of a container is missed.
    let mut events = engine.events();
    let mut removed = BTreeSet::new();
    loop {
        let (engine, wanted) = (engine.clone(), stack.to_owned());
        let tried = tokio::task::spawn_blocking(move || try_once(&engine, &wanted)).await;
        let (gone, held, failed) = tried.expect("removing volumes does not panic")?;
        removed.extend(gone);
        let is_over = held.is_empty() || Instant::now() >= deadline;
        if is_over {
            return Ok(VolumesRemoved {
                node: String::new(),
                removed: removed.into_iter().collect(),
                kept: held.into_iter().chain(failed).collect(),
            });
        }
        // Whatever it is: it is looked at again. A lagging reader missed some, which is as good.
        let event = tokio::time::timeout_at(deadline, events.recv()).await;
        if matches!(event, Ok(Err(RecvError::Closed))) {
            tokio::time::sleep_until(deadline).await;
        }
    }
}

type Tried = (Vec<String>, Vec<String>, Vec<String>);

/// Names of those that went, and why others did not: those in use, and those that failed otherwise.
fn try_once(engine: &Engine, stack: &str) -> Result<Tried, EngineError> {
    let mut tried = Tried::default();
    for volume in engine.volumes()? {
        if volume.labels.get(NAMESPACE).is_none_or(|of| of != stack) {
            continue;
        }
        match engine.volume_remove(&volume.name, true) {
            Ok(()) => tried.0.push(volume.name),
            Err(error @ EngineError::VolumeInUse { .. }) => tried.1.push(error.report()),
            Err(error) => tried.2.push(error.report()),
        }
    }
    Ok(tried)
}
