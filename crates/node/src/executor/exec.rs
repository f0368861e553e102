//! A process beside a task's own is an exec of the task's container.

use async_trait::async_trait;
use futures_util::StreamExt;
use shoal_api::{
    container::{ExecSpec, StdStream},
    object::Task,
};
use shoal_engine::io::{Engine, EngineError};
use shoal_worker::ports::{ExecControl, ExecError, TaskExec};
use tokio::sync::mpsc;

use super::exec_error;

/// Pieces of output that wait for a slow reader.
const PIECES_MAX: usize = 16;
/// Exit code where none is known any more.
const UNKNOWN: i32 = 255;

/// Starts it.
pub(super) async fn start(
    engine: &Engine,
    task: &Task,
    spec: ExecSpec,
) -> Result<TaskExec, ExecError> {
    let refused = |error| exec_error("cannot start a process", error);
    let id = engine.exec_create(&task.name(), spec).map_err(refused)?;
    let (sender, output) = mpsc::channel(PIECES_MAX);
    let control = Box::new(Control {
        engine: engine.clone(),
        id: id.clone(),
    });
    let attachment = match engine.exec_start(&id).await {
        Ok(attachment) => attachment,
        // As docker: whoever looks at the streams reads why it could not start, and then finds its exit code.
        Err(error @ EngineError::Exec { .. }) => {
            let text = format!("{}\r\n", error.report());
            // There is room: it is the first.
            let _ = sender.send((StdStream::Stdout, text.into_bytes())).await;
            return Ok(TaskExec {
                output,
                input: None,
                control,
            });
        }
        Err(error) => return Err(refused(error)),
    };
    let mut pieces = attachment.output;
    tokio::spawn(async move {
        while let Some((stream, bytes)) = pieces.next().await {
            if sender.send((stream, bytes.to_vec())).await.is_err() {
                return;
            }
        }
    });
    Ok(TaskExec {
        output,
        input: attachment.input.map(|input| Box::pin(input) as _),
        control,
    })
}

struct Control {
    engine: Engine,
    id: String,
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&self, rows: u16, columns: u16) {
        // It may be over, or have no terminal.
        let _ = self.engine.exec_resize(&self.id, rows, columns).await;
    }

    async fn exit_code(&self) -> i32 {
        let seen = self.engine.exec_inspect(&self.id).ok();
        seen.and_then(|exec| exec.exit_code).unwrap_or(UNKNOWN)
    }
}
