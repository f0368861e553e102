//! Processes beside those of tasks, for the users of this manager, whoever leads.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use shoal_api::wire::{ExecInput, ExecOrder, ExecOutput, exec_input, execs_client::ExecsClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{Desk, Manager, WriteError};
use crate::io::grpc::client;

/// What a process says, its exit code last. An error in it ends it.
pub type ExecStream = Pin<Box<dyn Stream<Item = Result<ExecOutput, Status>> + Send>>;

impl Manager {
    /// Starts a process beside a task's own, wherever the task runs; `input` goes to it. Dropping both lets it run alone.
    ///
    /// # Errors
    /// There is no such task, or it does not run; its node or the leader cannot be reached.
    pub async fn exec(
        &self,
        order: ExecOrder,
        input: mpsc::Receiver<ExecInput>,
    ) -> Result<ExecStream, WriteError> {
        let answer = self.desk.exec_at_leader(order, input).await;
        answer.map_err(|status| WriteError::Forward(Box::new(status)))
    }
}

impl Desk {
    async fn exec_at_leader(
        &self,
        order: ExecOrder,
        input: mpsc::Receiver<ExecInput>,
    ) -> Result<ExecStream, Status> {
        if self.leadership().is_leader {
            return self.exec(order, input).await;
        }
        let unknown = || client::not_leader(None);
        let address = self.leader_address().ok_or_else(unknown)?;
        let tls = Arc::clone(&self.client_tls.borrow());
        // A connection of its own: who reads slowly holds up nobody else.
        let channel = client::connect(&address, tls)
            .await
            .map_err(|_| unknown())?;
        let first = ExecInput {
            kind: Some(exec_input::Kind::Order(order)),
        };
        let pieces = stream::iter([first]).chain(ReceiverStream::new(input));
        let output = ExecsClient::new(channel).exec(Request::new(pieces)).await?;
        Ok(output.into_inner().boxed())
    }
}
