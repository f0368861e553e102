//! Logs on the wire: nodes listen and publish, managers subscribe.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt};
use shoal_api::wire::{
    ListenSubscriptionsRequest, PublishLogsMessage, PublishLogsResponse, SubscribeLogsRequest,
    SubscriptionMessage, log_broker_server::LogBroker, logs_server::Logs,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::authorize::{caller, calling_manager};
use crate::io::{
    log_broker::{Listening, selects},
    manager::{Desk, LogStream},
};

/// The `LogBroker` and `Logs` services.
#[derive(Clone)]
pub(crate) struct LogsService {
    pub(crate) desk: Desk,
}

#[async_trait]
impl LogBroker for LogsService {
    type ListenSubscriptionsStream = Listened;

    async fn listen_subscriptions(
        &self,
        request: Request<ListenSubscriptionsRequest>,
    ) -> Result<Response<Listened>, Status> {
        let node = caller(&request)?.node_id.clone();
        self.desk.require_leader().await?;
        let (listening, orders) = self.desk.logs.listen(node, &self.desk.store.state());
        Ok(Response::new(Listened {
            orders: ReceiverStream::new(orders),
            _listening: listening,
        }))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<PublishLogsMessage>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let mut stream = request.into_inner();
        let mut of = None;
        let published = async {
            while let Some(message) = stream.message().await? {
                let id = message
                    .subscription_id
                    .parse()
                    .map_err(|_| Status::invalid_argument("no such subscription"))?;
                if *of.get_or_insert(id) != id {
                    return Err(Status::invalid_argument("a stream is for one subscription"));
                }
                let Some((selector, lines)) = self.desk.logs.lines(id, &node) else {
                    return Ok(()); // nobody wants them any more
                };
                let state = self.desk.store.state();
                for mut line in message.messages {
                    let task = state.task(
                        &line
                            .task_id
                            .parse()
                            .map_err(|_| Status::invalid_argument("no task id"))?,
                    );
                    let is_own = task.filter(|task| {
                        task.node.as_ref() == Some(&node) && selects(&selector, task)
                    });
                    let Some(task) = is_own else { continue };
                    line.service_id = task.service.to_string();
                    line.node_id = node.to_string();
                    if lines.send(Ok(line)).await.is_err() {
                        return Ok(()); // the reader went away
                    }
                }
                if message.close {
                    return Ok(());
                }
            }
            Ok(())
        }
        .await;
        if let Some(id) = of {
            self.desk.logs.finished(id, &node);
        }
        published.map(|()| Response::new(PublishLogsResponse {}))
    }
}

#[async_trait]
impl Logs for LogsService {
    type SubscribeLogsStream = LogStream;

    async fn subscribe_logs(
        &self,
        request: Request<SubscribeLogsRequest>,
    ) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        calling_manager(&request)?;
        self.desk.require_leader().await?;
        Ok(Response::new(
            self.desk
                .logs
                .subscribe(&self.desk.store, request.into_inner())
                .boxed(),
        ))
    }
}

/// The subscriptions that a node is told of; when it stops listening, nobody waits for it any more.
pub(crate) struct Listened {
    orders: ReceiverStream<Result<SubscriptionMessage, Status>>,
    _listening: Listening,
}

impl Stream for Listened {
    type Item = Result<SubscriptionMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.orders.poll_next_unpin(cx)
    }
}
