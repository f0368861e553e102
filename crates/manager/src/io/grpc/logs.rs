//! Logs of tasks: agents that have them, and managers whose users want to read them.

use shoal_api::wire::{
    ListenSubscriptionsRequest, PublishLogsMessage, PublishLogsResponse, SubscribeLogsRequest,
    SubscriptionMessage, log_broker_server, logs_server,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::authorize::{caller, calling_manager};
use crate::io::manager::{Desk, LogStream};

/// The `LogBroker` and `Logs` services.
#[derive(Clone)]
pub(crate) struct LogsService {
    pub(crate) desk: Desk,
}

#[async_trait]
impl log_broker_server::LogBroker for LogsService {
    type ListenSubscriptionsStream = ReceiverStream<Result<SubscriptionMessage, Status>>;

    async fn listen_subscriptions(
        &self,
        request: Request<ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let node = caller(&request)?.node_id.clone();
        self.desk.require_leader().await?;
        let (agent, messages) = mpsc::channel(1);
        let desk = self.desk.clone();
        tokio::spawn(async move {
            let mut leadership = desk.store.raft().leadership();
            tokio::select! {
                () = desk.logs.tell(&node, &agent) => {}
                () = desk.execs.tell(&node, &agent) => {}
                _ = leadership.wait_for(|now| !now.is_leader) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<PublishLogsMessage>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let mut stream = request.into_inner();
        let done = || Ok(Response::new(PublishLogsResponse {}));
        let Some(first) = stream.message().await? else {
            return done();
        };
        let mut publication = self.desk.logs.publication(&first.subscription_id, &node)?;
        let mut next = Some(first);
        while let Some(message) = next {
            if message.subscription_id != publication.id() {
                return Err(Status::invalid_argument(
                    "one stream is for one subscription",
                ));
            }
            let state = self.desk.store.state();
            if !publication.forward(message.messages, &state).await {
                return done();
            }
            if message.close {
                publication.complete();
                return done();
            }
            next = tokio::select! {
                message = stream.message() => message?,
                () = publication.stopped() => return done(),
            };
        }
        done()
    }
}

#[async_trait]
impl logs_server::Logs for LogsService {
    type SubscribeLogsStream = LogStream;

    async fn subscribe_logs(
        &self,
        request: Request<SubscribeLogsRequest>,
    ) -> Result<Response<LogStream>, Status> {
        calling_manager(&request)?;
        let lines = self.desk.read_logs(request.into_inner()).await?;
        Ok(Response::new(lines))
    }
}
