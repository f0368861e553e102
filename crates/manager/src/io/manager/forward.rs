//! Writes carried to the leader, and to the one after it if that one is lost on the way.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use shoal_api::{
    IdSource, RandomIds,
    object::{Object, ObjectKey, Wish},
    wire::{WriteRequest, control_client::ControlClient},
};
use tokio::{sync::watch, time::timeout};
use tonic::{Request, Status, transport::Channel};

use super::{Desk, LEADER_TIMEOUT, WriteError, wait_for_change};
use crate::{
    core::{consensus::LogIndex, control::Intent},
    io::{
        grpc::{client, control, from_status},
        raft::Leadership,
    },
};

/// A wish by its name, under which it is granted once however often it is passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WishName {
    /// 128 random bits.
    pub(crate) id: u128,
    /// See [`Wish::since`].
    pub(crate) since: Option<LogIndex>,
}

impl WishName {
    /// The wish of this name.
    pub(crate) fn about(self, about: &ObjectKey) -> Wish {
        Wish {
            id: self.id,
            about: about.clone(),
            since: self.since,
        }
    }
}

/// A connection to the leader that many calls share: made with the first one, and made again when it breaks.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Arc<Mutex<Option<Dialled>>>);

#[derive(Debug)]
struct Dialled {
    address: String,
    tls: Arc<ClientConfig>,
    channel: Channel,
}

impl Line {
    fn to(&self, address: String, tls: Arc<ClientConfig>) -> Channel {
        let mut dialled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*dialled {
            Some(known) if known.address == address && Arc::ptr_eq(&known.tls, &tls) => {
                known.channel.clone()
            }
            _ => {
                let channel = client::dial(&address, Arc::clone(&tls));
                *dialled = Some(Dialled {
                    address,
                    tls,
                    channel: channel.clone(),
                });
                channel
            }
        }
    }
}

impl Desk {
    /// Carries out what a user wants, here or at the leader, and if that one is lost at the next one.
    pub(super) async fn write(&self, intent: Intent) -> Result<Option<Object>, WriteError> {
        let mut leadership = self.store.raft().leadership();
        let since = self.store.state().index();
        let mut name = WishName {
            id: RandomIds.next_bits(),
            since: None,
        };
        let waiting = async {
            loop {
                leadership.mark_unchanged();
                let outcome = if leadership.borrow().is_leader {
                    self.write_as_leader(intent.clone(), Some(name)).await
                } else {
                    self.forward(&intent, name, &mut leadership).await
                };
                match outcome {
                    Err(WriteError::NoLeader) => {}
                    // The next one finds out what became of it.
                    Err(WriteError::Lost) => name.since = Some(since),
                    settled => return settled,
                }
                if wait_for_change(&mut leadership).await.is_err() {
                    return Err(WriteError::NoLeader); // consensus has stopped here
                }
            }
        };
        let outcome = timeout(LEADER_TIMEOUT, waiting).await;
        match outcome.unwrap_or(Err(WriteError::NoLeader)) {
            Err(WriteError::NoLeader) if name.since.is_some() => Err(WriteError::Lost),
            settled => settled,
        }
    }

    /// The way to the leader, by one of our lines.
    pub(super) fn leader_channel(&self, line: &Line) -> Result<Channel, WriteError> {
        let address = self.leader_address().ok_or(WriteError::NoLeader)?;
        let tls = Arc::clone(&self.client_tls.borrow());
        Ok(line.to(address, tls))
    }

    /// Has the leader carry out what a user wants. `leadership` has seen who leads now: when another one does, nothing more
    /// is waited for.
    async fn forward(
        &self,
        intent: &Intent,
        name: WishName,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Result<Option<Object>, WriteError> {
        let mut client = ControlClient::new(self.leader_channel(&self.writes)?);
        let request = WriteRequest {
            wish: name.id.to_be_bytes().to_vec(),
            since: name.since,
            ..WriteRequest::from(intent)
        };
        // A leader that stands still takes everything and says nothing.
        let answer = tokio::select! {
            answer = client.write(Request::new(request)) => answer,
            () = succeeded(leadership) => return Err(WriteError::Lost),
        };
        match answer {
            Ok(answer) => control::written(answer.into_inner()).map_err(|error| {
                WriteError::Forward(Box::new(Status::internal(error.to_string())))
            }),
            Err(status) if client::is_not_leader(&status) || client::was_not_sent(&status) => {
                Err(WriteError::NoLeader)
            }
            Err(status) if client::is_lost(&status) => Err(WriteError::Lost),
            Err(status) => Err(from_status(&status)
                .map_or_else(|| WriteError::Forward(Box::new(status)), Into::into)),
        }
    }
}

/// Waits until another one leads than the one that did; that is a change which nobody has seen yet.
async fn succeeded(leadership: &mut watch::Receiver<Leadership>) {
    let before = leadership.borrow().leader;
    let another = leadership.wait_for(|now| now.leader.is_some() && now.leader != before);
    if another.await.is_err() {
        std::future::pending::<()>().await;
    }
    leadership.mark_changed();
}
