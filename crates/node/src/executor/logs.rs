//! The output of a task is that of its container.

use shoal_api::container::{ContainerStatus, LogQuery};
use shoal_engine::io::{Engine, EngineErrorKind};
use shoal_worker::ports::{ExecError, LogLines};
use tokio::sync::broadcast::error::RecvError;

use super::exec_error;

/// Reads the output of the container of this name; `None` if there is none.
pub(super) async fn read(
    engine: &Engine,
    name: &str,
    query: &LogQuery,
) -> Result<Option<LogLines>, ExecError> {
    if query.follow && !begun(engine, name).await? {
        return Ok(None);
    }
    match engine.logs(name, query.clone()) {
        Ok(lines) => Ok(Some(lines.into_inner())),
        Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
        Err(error) => Err(exec_error("cannot read the container's output", error)),
    }
}

/// Waits until a container has been started: one that was only created would seem to have ended. False if there is none.
async fn begun(engine: &Engine, name: &str) -> Result<bool, ExecError> {
    let mut events = engine.events();
    loop {
        match engine.inspect(name, false).await {
            Ok(container) if container.state.status != ContainerStatus::Created => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == EngineErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(exec_error("cannot look at the container", error)),
        }
        match events.recv().await {
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Ok(false), // the engine is going down
        }
    }
}
