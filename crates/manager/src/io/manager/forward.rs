//! Writes carried to the leader.

use std::{sync::Arc, time::Duration};

use shoal_api::{object::Object, wire::control_client::ControlClient};
use tokio::sync::watch;
use tonic::{Request, Status, transport::Channel};

use super::{Desk, WriteError};
use crate::{
    core::control::Intent,
    io::{
        grpc::{client, control, from_status},
        raft::Leadership,
    },
};

/// How long a leader that was asked and then followed by another may still take for its answer: it handed over, and what it
/// had decided before is on its way.
const LATE_ANSWER: Duration = Duration::from_millis(200);
impl Desk {
    /// A connection to the leader, a new one each time: this is the moment to find out that it cannot be reached, while
    /// nothing was said yet. On one that is kept a write is lost with the leader, and nobody knows what became of it.
    pub(super) async fn leader_channel(&self) -> Result<Channel, WriteError> {
        let address = self.leader_address().ok_or(WriteError::NoLeader)?;
        let tls = Arc::clone(&self.client_tls.borrow());
        let channel = client::connect(&address, tls).await;
        channel.map_err(|_| WriteError::NoLeader)
    }

    /// Has the leader carry out what a user wants. `leadership` has seen who leads now; who leads next is asked instead as
    /// long as nothing was said.
    pub(super) async fn forward(
        &self,
        intent: &Intent,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Result<Option<Object>, WriteError> {
        let channel = tokio::select! {
            channel = self.leader_channel() => channel?,
            // A leader that stands still takes connections and says nothing.
            _ = leadership.changed() => {
                leadership.mark_changed();
                return Err(WriteError::NoLeader);
            }
        };
        let mut client = ControlClient::new(channel);
        let answer = tokio::select! {
            answer = client.write(Request::new(intent.into())) => answer,
            () = succeeded(leadership) => return Err(WriteError::Lost),
        };
        match answer {
            Ok(answer) => control::written(answer.into_inner()).map_err(|error| {
                WriteError::Forward(Box::new(Status::internal(error.to_string())))
            }),
            Err(status) if client::is_not_leader(&status) || client::was_not_sent(&status) => {
                Err(WriteError::NoLeader)
            }
            Err(status) => Err(from_status(&status)
                .map_or_else(|| WriteError::Forward(Box::new(status)), Into::into)),
        }
    }
}

/// Waits until another leads and the one before has had time to answer.
async fn succeeded(leadership: &mut watch::Receiver<Leadership>) {
    let before = leadership.borrow().leader;
    let another = leadership.wait_for(|now| now.leader.is_some() && now.leader != before);
    if another.await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LATE_ANSWER).await;
}
