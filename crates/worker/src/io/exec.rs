//! Processes beside those of this node's tasks, for whoever asked a manager for them.

use std::{pin::Pin, sync::Arc};

use shoal_api::{
    container::{ExecSpec, StdStream},
    wire::{
        ExecData, ExecInput, ExecOrder, ExecOutput, exec_broker_client::ExecBrokerClient,
        exec_input, exec_output,
    },
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{dial::dial, logs::Source};
use crate::ports::{Chain, ExecControl, ExecError, TaskExec};

/// Pieces that wait for a slow reader.
const PIECES_MAX: usize = 16;

/// Starts a process and carries its streams until it ends, or until nobody wants them.
pub(super) async fn carry(order: ExecOrder, source: Source) {
    let channel = match dial(&source.manager, Arc::clone(&source.tls)).await {
        Ok(channel) => channel,
        Err(error) => {
            tracing::info!(error = %Chain(&error), "cannot carry the streams of a process");
            return;
        }
    };
    let (output, pieces) = mpsc::channel(PIECES_MAX);
    let send = |kind| ExecOutput { kind: Some(kind) };
    // There is room: it is the first.
    let _ = output
        .send(send(exec_output::Kind::Id(order.id.clone())))
        .await;
    let mut client = ExecBrokerClient::new(channel);
    let mut input = match client
        .carry_exec(Request::new(ReceiverStream::new(pieces)))
        .await
    {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::info!(error = %Chain(&status), "nobody takes the streams of a process");
            return;
        }
    };
    if !order.node_id.is_empty() {
        let asked = if order.volumes_of_stack.is_empty() {
            source.executor.look_at_network(&order.probe).await
        } else {
            source
                .executor
                .remove_volumes(&order.volumes_of_stack)
                .await
        };
        let last = match asked {
            Ok(data) => {
                let stream = StdStream::Stdout as u32;
                let found = exec_output::Kind::Data(ExecData { stream, data });
                // Whoever waited may have gone, here and below.
                let _ = output.send(send(found)).await;
                exec_output::Kind::ExitCode(0)
            }
            Err(error) => exec_output::Kind::Error(Chain(&error).to_string()),
        };
        let _ = output.send(send(last)).await;
        drop(output);
        while let Ok(Some(_)) = input.message().await {}
        return;
    }
    let last = match start(&order, &source).await {
        Ok(process) => match converse(process, &mut input, &output).await {
            Some(code) => exec_output::Kind::ExitCode(code),
            None => return,
        },
        Err(error) => exec_output::Kind::Error(Chain(&error).to_string()),
    };
    let _ = output.send(send(last)).await; // whoever waited may have gone
    drop(output);
    // Who hangs up takes back what is still on its way; the manager ends the call when it has all.
    while let Ok(Some(_)) = input.message().await {}
}

async fn start(order: &ExecOrder, source: &Source) -> Result<TaskExec, ExecError> {
    let task = {
        let tasks = source.tasks.borrow();
        let mut known = tasks.values();
        known
            .find(|task| task.id.as_str() == order.task_id)
            .cloned()
    };
    let task = task
        .ok_or_else(|| ExecError::fatal(format!("task {} is not on this node", order.task_id)))?;
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let spec = ExecSpec {
        cmd: order.cmd.clone(),
        env: order.env.clone(),
        working_dir: some(&order.working_dir),
        user: some(&order.user),
        tty: order.tty,
        privileged: order.privileged,
        attach_stdin: order.stdin,
        attach_stdout: true,
        attach_stderr: true,
        detach_keys: None,
        console_size: order
            .size
            .map(|size| (small(size.rows), small(size.columns))),
    };
    source.executor.exec(&task, spec).await
}

/// Carries bytes both ways until the process has closed its output; returns its exit code, or nothing if nobody reads.
async fn converse(
    process: TaskExec,
    input: &mut Streaming<ExecInput>,
    output: &mpsc::Sender<ExecOutput>,
) -> Option<i32> {
    let TaskExec {
        output: mut data,
        input: stdin,
        control,
    } = process;
    let feeding = feed(input, stdin, control.as_ref());
    let draining = async {
        while let Some((stream, data)) = data.recv().await {
            let piece = ExecOutput {
                kind: Some(exec_output::Kind::Data(ExecData {
                    stream: stream as u32,
                    data,
                })),
            };
            output.send(piece).await.ok()?;
        }
        Some(())
    };
    tokio::select! {
        drained = draining => drained?,
        () = async { feeding.await; std::future::pending().await } => {}
    }
    Some(control.exit_code().await)
}

/// Gives the process what comes for it, until nothing more can.
async fn feed(
    input: &mut Streaming<ExecInput>,
    mut stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    control: &dyn ExecControl,
) {
    let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    // Who is gone types nothing more; the process sees the end of its input.
    while let Ok(Some(piece)) = input.message().await {
        match piece.kind {
            Some(exec_input::Kind::Stdin(bytes)) => {
                if let Some(to) = &mut stdin
                    && (to.write_all(&bytes).await.is_err() || to.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Some(exec_input::Kind::End(_)) => {
                if let Some(mut to) = stdin.take() {
                    let _ = to.shutdown().await; // it may have closed it itself
                }
            }
            Some(exec_input::Kind::Resize(size)) => {
                control.resize(small(size.rows), small(size.columns)).await;
            }
            Some(exec_input::Kind::Order(_)) | None => {}
        }
    }
    if let Some(mut to) = stdin.take() {
        let _ = to.shutdown().await;
    }
}
