//! Processes beside those of tasks, as the Engine API wants them: streams, sizes, an exit code.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use shoal_api::{
    TaskId,
    container::{ExecSpec, StdStream},
    wire::{ExecInput, ExecOrder, ExecSize, exec_input, exec_output},
};
use shoal_docker_api::backend::{ApiError, ApiResult, Attached, ItemStream, TaskExec};
use shoal_manager::Manager;
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::{mpsc, watch},
};

use super::api::write_error;
use crate::network::chain;

/// Pieces of input that wait for a slow node.
const PIECES_MAX: usize = 16;
/// Bytes of standard input in a piece.
const PIECE_BYTES: usize = 32 << 10;

/// Starts a process in a task.
pub(super) async fn exec(
    manager: &Arc<Manager>,
    task: &TaskId,
    spec: ExecSpec,
) -> ApiResult<TaskExec> {
    let order = ExecOrder {
        id: String::new(),
        task_id: task.to_string(),
        cmd: spec.cmd,
        env: spec.env,
        working_dir: spec.working_dir.unwrap_or_default(),
        user: spec.user.unwrap_or_default(),
        tty: spec.tty,
        privileged: spec.privileged,
        stdin: spec.attach_stdin,
        size: spec.console_size.map(|(rows, columns)| size(rows, columns)),
        ..ExecOrder::default()
    };
    let (sender, input) = mpsc::channel(PIECES_MAX);
    let output = manager.exec(order, input).await.map_err(write_error)?;
    let (code, exit) = watch::channel(None);
    let (resize, sizes) = mpsc::channel(1);
    let (stdin, typed) = tokio::io::duplex(PIECE_BYTES);
    tokio::spawn(tell(sender, typed, sizes));
    let pieces = stream::unfold((output, code), |(mut output, code)| async {
        let piece = loop {
            let piece = match output.next().await? {
                Ok(piece) => piece.kind,
                Err(status) => break Err(ApiError::internal(status.message())),
            };
            match piece {
                Some(exec_output::Kind::Data(piece)) => {
                    let stream = if piece.stream == StdStream::Stderr as u32 {
                        StdStream::Stderr
                    } else {
                        StdStream::Stdout
                    };
                    break Ok((stream, Bytes::from(piece.data)));
                }
                Some(exec_output::Kind::ExitCode(exit)) => {
                    code.send_replace(Some(exit));
                    return None;
                }
                Some(exec_output::Kind::Error(text)) => {
                    // As docker: the reason is read where the output would be.
                    code.send_replace(Some(EXIT_NOT_STARTED));
                    let text = Bytes::from(format!("{text}\r\n"));
                    break Ok((StdStream::Stderr, text));
                }
                Some(exec_output::Kind::Id(_)) | None => {}
            }
        };
        Some((piece, (output, code)))
    });
    let output: ItemStream<(StdStream, Bytes)> = pieces.boxed();
    Ok(TaskExec {
        streams: Attached {
            output,
            input: spec.attach_stdin.then(|| Box::pin(stdin) as _),
            tty: spec.tty,
        },
        resize,
        exit,
    })
}

/// Has a node do something that is no process in a task, and reads what it answers as JSON.
pub(super) async fn ask<T: DeserializeOwned>(
    manager: &Arc<Manager>,
    order: ExecOrder,
    within: Duration,
) -> Result<T, String> {
    let answer = async {
        // Nothing is typed.
        let (_typed, input) = mpsc::channel(1);
        let asked = manager.exec(order, input).await;
        let mut output = asked.map_err(|error| chain(&error))?;
        let mut said = Vec::new();
        while let Some(piece) = output.next().await {
            match piece.map_err(|status| status.message().to_owned())?.kind {
                Some(exec_output::Kind::Data(piece)) => said.extend(piece.data),
                Some(exec_output::Kind::Error(text)) => return Err(text),
                Some(exec_output::Kind::ExitCode(_)) => break,
                Some(exec_output::Kind::Id(_)) | None => {}
            }
        }
        serde_json::from_slice(&said)
            .map_err(|error| format!("what it said is not understood: {error}"))
    };
    let answer = tokio::time::timeout(within, answer).await;
    answer.unwrap_or_else(|_| Err("it took too long".to_owned()))
}

/// Exit code of a process that never was, docker's.
const EXIT_NOT_STARTED: i32 = 126;

fn size(rows: u16, columns: u16) -> ExecSize {
    ExecSize {
        rows: rows.into(),
        columns: columns.into(),
    }
}

/// Passes on what is typed and new sizes, until both have ended.
async fn tell(
    to: mpsc::Sender<ExecInput>,
    mut typed: DuplexStream,
    mut sizes: mpsc::Receiver<(u16, u16)>,
) {
    let typing = async {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read: io::Result<usize> = typed.read(&mut buffer).await;
            let kind = match read {
                Ok(0) | Err(_) => exec_input::Kind::End(exec_input::End {}),
                Ok(count) => exec_input::Kind::Stdin(buffer[..count].to_vec()),
            };
            let ended = matches!(kind, exec_input::Kind::End(_));
            if to.send(ExecInput { kind: Some(kind) }).await.is_err() || ended {
                return;
            }
        }
    };
    let resizing = async {
        while let Some((rows, columns)) = sizes.recv().await {
            let kind = Some(exec_input::Kind::Resize(size(rows, columns)));
            if to.send(ExecInput { kind }).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(typing, resizing);
}
