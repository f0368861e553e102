//! Logs of tasks for the users of this manager, whoever leads.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use shoal_api::wire::{LogMessage, LogOptions, SubscribeLogsRequest, logs_client::LogsClient};
use tonic::{Request, Status};

use super::{Desk, LEADER_TIMEOUT, Manager, WriteError, wait_for_change};
use crate::io::grpc::client;

/// Lines of tasks' logs: in the order of time, or as they come if it follows. An error in it ends it.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogMessage, Status>> + Send>>;

impl Manager {
    /// Reads the logs of tasks, wherever they ran. Ends when all nodes have sent what they have or, if it follows, when
    /// nothing more can come. A tail is one per task.
    ///
    /// # Errors
    /// No leader is elected in time. Who follows goes on with the next leader, where the last one broke off.
    pub async fn logs(&self, request: SubscribeLogsRequest) -> Result<LogStream, WriteError> {
        let lines = self.desk.subscribe_logs(&request).await?;
        if !request.options.unwrap_or_default().follow {
            return Ok(lines);
        }
        let following = Following {
            desk: self.desk.clone(),
            request,
            lines,
            newest: BTreeMap::new(),
            known: BTreeMap::new(),
        };
        let next = |mut following: Following| async { Some((following.next().await?, following)) };
        Ok(stream::unfold(following, next).boxed())
    }
}

/// Lines that go on when the leader changes.
struct Following {
    desk: Desk,
    request: SubscribeLogsRequest,
    lines: LogStream,
    /// Time of the newest line of each node.
    newest: BTreeMap<String, i64>,
    /// The same as of the last change of the leader: what is not newer came already.
    known: BTreeMap<String, i64>,
}

impl Following {
    async fn next(&mut self) -> Option<Result<LogMessage, Status>> {
        loop {
            match self.lines.next().await? {
                Ok(line) if self.known.get(&line.node_id) >= Some(&line.timestamp) => {}
                Ok(line) => {
                    let newest = self.newest.entry(line.node_id.clone()).or_default();
                    *newest = line.timestamp.max(*newest);
                    return Some(Ok(line));
                }
                Err(status) => {
                    tracing::debug!(error = %status, "logs go on with the next leader");
                    match self.resume().await {
                        Ok(()) => {}
                        Err(error) => return Some(Err(Status::unavailable(error.to_string()))),
                    }
                }
            }
        }
    }

    async fn resume(&mut self) -> Result<(), WriteError> {
        // Whatever the error was, it must not be met again at full speed.
        let mut leadership = self.desk.store.raft().leadership();
        let _ = wait_for_change(&mut leadership).await; // the subscription says so as well
        let mut request = self.request.clone();
        if let (Some(options), Some(oldest)) = (&mut request.options, self.newest.values().min()) {
            *options = LogOptions {
                tail: -1,
                since: *oldest,
                ..*options
            };
        }
        self.lines = self.desk.subscribe_logs(&request).await?;
        self.known = self.newest.clone();
        Ok(())
    }
}

impl Desk {
    /// Subscribes to logs at the leader, and waits for one.
    async fn subscribe_logs(
        &self,
        request: &SubscribeLogsRequest,
    ) -> Result<LogStream, WriteError> {
        let mut leadership = self.store.raft().leadership();
        let subscribing = async {
            loop {
                leadership.mark_unchanged();
                match self.ask_for_logs(request.clone()).await {
                    Err(status) if client::is_not_leader(&status) => {
                        let _ = wait_for_change(&mut leadership).await; // the timeout ends it
                    }
                    answer => {
                        return answer.map_err(|status| WriteError::Forward(Box::new(status)));
                    }
                }
            }
        };
        tokio::time::timeout(LEADER_TIMEOUT, subscribing)
            .await
            .unwrap_or(Err(WriteError::NoLeader))
    }

    async fn ask_for_logs(&self, request: SubscribeLogsRequest) -> Result<LogStream, Status> {
        if self.leadership().is_leader {
            return self.read_logs(request).await;
        }
        let unknown = || client::not_leader(None);
        let address = self.leader_address().ok_or_else(unknown)?;
        let tls = Arc::clone(&self.client_tls.borrow());
        // A connection of its own: who reads slowly holds up nobody else.
        let channel = client::connect(&address, tls)
            .await
            .map_err(|_| unknown())?;
        let lines = LogsClient::new(channel)
            .subscribe_logs(Request::new(request))
            .await?;
        Ok(lines.into_inner().boxed())
    }
}
