//! Processes beside those of tasks: agents that have them, and managers whose users want them.

use futures_util::{Stream, StreamExt};
use shoal_api::wire::{
    ExecInput, ExecOutput, exec_broker_server, exec_input, exec_output, execs_server,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::authorize::{caller, calling_manager};
use crate::io::{
    exec_broker::is_last,
    manager::{Desk, ExecStream},
};

/// Pieces of input that wait for an agent.
const PIECES_MAX: usize = 16;

/// The `ExecBroker` and `Execs` services.
#[derive(Clone)]
pub(crate) struct ExecService {
    pub(crate) desk: Desk,
}

type InputStream = std::pin::Pin<Box<dyn Stream<Item = Result<ExecInput, Status>> + Send>>;

#[async_trait]
impl exec_broker_server::ExecBroker for ExecService {
    type CarryExecStream = InputStream;

    async fn carry_exec(
        &self,
        request: Request<Streaming<ExecOutput>>,
    ) -> Result<Response<InputStream>, Status> {
        let node = caller(&request)?.node_id.clone();
        let mut pieces = request.into_inner();
        let first = pieces.message().await?;
        let Some(exec_output::Kind::Id(id)) = first.and_then(|first| first.kind) else {
            return Err(Status::invalid_argument("the first piece must be an id"));
        };
        let ends = self.desk.execs.take(&id, &node)?;
        let over = CancellationToken::new();
        // The agent waits for the end of its input, so that nothing of its output is lost.
        let guard = over.clone().drop_guard();
        tokio::spawn(async move {
            let _guard = guard;
            loop {
                let piece = tokio::select! {
                    piece = pieces.message() => piece,
                    () = ends.output.closed() => return,
                };
                let (piece, last) = match piece {
                    Ok(Some(piece)) => {
                        let last = is_last(&piece);
                        (Ok(piece), last)
                    }
                    Ok(None) => (Err(Status::unavailable("the node broke off")), true),
                    Err(status) => (Err(status), true),
                };
                if ends.output.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        let input = ReceiverStream::new(ends.input).map(Ok);
        let input = input.take_until(over.cancelled_owned());
        Ok(Response::new(Box::pin(input)))
    }
}

#[async_trait]
impl execs_server::Execs for ExecService {
    type ExecStream = ExecStream;

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<ExecStream>, Status> {
        calling_manager(&request)?;
        let mut pieces = request.into_inner();
        let first = pieces.message().await?;
        let Some(exec_input::Kind::Order(order)) = first.and_then(|first| first.kind) else {
            return Err(Status::invalid_argument("the first piece must be an order"));
        };
        let (sender, input) = mpsc::channel(PIECES_MAX);
        let output = self.desk.exec(order, input).await?;
        tokio::spawn(async move {
            while let Ok(Some(piece)) = pieces.message().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(output))
    }
}
