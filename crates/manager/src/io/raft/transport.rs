//! Messages between managers over gRPC: one stream per peer, snapshots in chunks beside it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use raft::eraftpb::Message;
use rustls::ClientConfig;
use sha2::{Digest, Sha256};
use shoal_api::wire::{RaftMessage, SnapshotChunk, raft_client::RaftClient};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Status};

use super::{Mailbox, Transport};
use crate::{
    core::consensus::{Member, Members, RaftId, wire::encode_message},
    io::grpc::client::{dial, is_removed},
};

/// Messages that wait for a peer; beyond it they are dropped and Raft is told.
const QUEUE_MESSAGES_MAX: usize = 1024;
/// Bytes of a snapshot in one chunk, well below gRPC's limit of 4 MiB a message.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks of a snapshot in memory besides the snapshot itself.
const CHUNKS_AHEAD: usize = 2;

/// The transport of a manager.
pub struct GrpcTransport {
    runtime: Handle,
    mailbox: Mailbox,
    tls: watch::Receiver<Arc<ClientConfig>>,
    peers: BTreeMap<RaftId, Peer>,
    /// Where the others reach us, whatever the members say.
    own: Arc<str>,
}

struct Peer {
    address: String,
    queue: mpsc::Sender<Letter>,
}

/// A message with our address, for a peer that does not know us yet, or not where we are.
struct Letter {
    message: Message,
    sender: Arc<str>,
}

impl GrpcTransport {
    /// Sends as `tls` says who we are and as `own` where, from tasks on `runtime`; what fails is reported to `mailbox`.
    pub fn new(
        runtime: Handle,
        mailbox: Mailbox,
        tls: watch::Receiver<Arc<ClientConfig>>,
        own: &str,
    ) -> Self {
        Self {
            runtime,
            mailbox,
            tls,
            peers: BTreeMap::new(),
            own: own.into(),
        }
    }

    fn add_peer(&mut self, id: RaftId, address: &str) {
        if self
            .peers
            .get(&id)
            .is_some_and(|peer| peer.address == address)
        {
            return;
        }
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let address = address.to_owned();
        let line = Line {
            peer: id,
            address: address.clone(),
            mailbox: self.mailbox.clone(),
            tls: self.tls.clone(),
        };
        self.runtime.spawn(line.run(messages));
        self.peers.insert(id, Peer { address, queue });
    }
}

impl Transport for GrpcTransport {
    fn send(&mut self, message: Message) {
        let to = message.to;
        let is_snapshot = message.snapshot.is_some();
        let letter = Letter {
            message,
            sender: Arc::clone(&self.own),
        };
        let sent = self
            .peers
            .get(&to)
            .is_some_and(|peer| peer.queue.try_send(letter).is_ok());
        if !sent {
            self.mailbox.report_unreachable(to);
            if is_snapshot {
                self.mailbox.report_snapshot(to, false);
            }
        }
    }

    fn set_members(&mut self, members: &Members) {
        // Dropping a queue ends its task.
        self.peers.retain(|id, peer| {
            members
                .get(*id)
                .is_some_and(|member| member.address == peer.address)
        });
        for (id, member) in members.iter() {
            self.add_peer(id, &member.address);
        }
    }

    fn add_guest(&mut self, raft_id: RaftId, guest: &Member) {
        self.add_peer(raft_id, &guest.address);
    }
}

/// The way to one peer.
struct Line {
    peer: RaftId,
    address: String,
    mailbox: Mailbox,
    tls: watch::Receiver<Arc<ClientConfig>>,
}

/// Why a stream of messages ended.
enum End {
    /// There is nothing more to send.
    Over,
    /// We are somebody with another certificate now, and the peer will not listen to the old one for long.
    Renewed,
    /// It broke.
    Broken(Status),
}

impl Line {
    /// Opens a stream when there is something to send, and again after it broke. What was on its way is lost then; with a
    /// new certificate a new stream follows the old one, which the peer reads to its end.
    async fn run(mut self, mut messages: mpsc::Receiver<Letter>) {
        while let Some(first) = messages.recv().await {
            let tls = Arc::clone(&self.tls.borrow_and_update());
            let channel = dial(&self.address, tls);
            let (stream, receiver) = mpsc::channel(QUEUE_MESSAGES_MAX);
            let call = {
                let mut client = RaftClient::new(channel.clone());
                let stream = ReceiverStream::new(receiver);
                tokio::spawn(async move { client.stream_messages(Request::new(stream)).await })
            };
            let end = self.feed(first, &mut messages, &stream, &channel, call);
            let status = match end.await {
                End::Over => return,
                End::Renewed => continue,
                End::Broken(status) => status,
            };
            tracing::debug!(raft.to = self.peer, peer = self.address, error = %status, "a stream of messages broke");
            if is_removed(&status) {
                self.mailbox.report_removed();
            }
            self.mailbox.report_unreachable(self.peer);
            // What has gathered meanwhile is old; Raft sends again what still matters.
            while messages.try_recv().is_ok_and(|letter| {
                if letter.message.snapshot.is_some() {
                    self.mailbox.report_snapshot(self.peer, false);
                }
                true
            }) {}
        }
    }

    /// Hands messages to the stream until it ends.
    async fn feed(
        &mut self,
        first: Letter,
        messages: &mut mpsc::Receiver<Letter>,
        stream: &mpsc::Sender<RaftMessage>,
        channel: &tonic::transport::Channel,
        mut call: tokio::task::JoinHandle<
            Result<tonic::Response<shoal_api::wire::StreamMessagesResponse>, Status>,
        >,
    ) -> End {
        let closed = || Status::unavailable("closed");
        let mut next = Some(first);
        loop {
            if let Some(Letter { message, sender }) = next.take() {
                let addr = sender.to_string();
                if message.snapshot.is_some() {
                    self.send_snapshot(message, addr, channel.clone());
                } else {
                    let (from, to) = (message.from, message.to);
                    let envelope = RaftMessage {
                        from,
                        to,
                        message: encode_message(&message),
                        addr,
                    };
                    if stream.send(envelope).await.is_err() {
                        let status = call.await.ok().and_then(Result::err);
                        return End::Broken(status.unwrap_or_else(closed));
                    }
                }
            }
            tokio::select! {
                ended = &mut call => {
                    let status = ended.map(|answer| answer.err().unwrap_or_else(closed));
                    return End::Broken(status.unwrap_or_else(|error| Status::internal(error.to_string())));
                }
                Ok(()) = self.tls.changed() => return End::Renewed,
                message = messages.recv() => match message {
                    Some(message) => next = Some(message),
                    None => {
                        call.abort();
                        return End::Over;
                    }
                },
            }
        }
    }

    fn send_snapshot(
        &self,
        mut message: Message,
        addr: String,
        channel: tonic::transport::Channel,
    ) {
        let (peer, mailbox) = (self.peer, self.mailbox.clone());
        tokio::spawn(async move {
            let (from, to) = (message.from, message.to);
            let data: Bytes = std::mem::take(&mut message.mut_snapshot().data);
            let index = message.get_snapshot().get_metadata().index;
            tracing::info!(
                raft.to = peer,
                snapshot.index = index,
                snapshot.bytes = data.len(),
                "sending a snapshot"
            );
            let first = SnapshotChunk {
                from,
                to,
                message: encode_message(&message),
                data: Vec::new(),
                digest: Sha256::digest(&data).to_vec(),
                addr,
            };
            let chunks = (0..data.len()).step_by(CHUNK_BYTES).map(move |start| {
                let end = data.len().min(start + CHUNK_BYTES);
                SnapshotChunk {
                    from,
                    to,
                    message: Vec::new(),
                    data: data[start..end].to_vec(),
                    digest: Vec::new(),
                    addr: String::new(),
                }
            });
            let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
            let feeding = async move {
                let mut chunks = tokio_stream::iter(std::iter::once(first).chain(chunks));
                while let Some(chunk) = chunks.next().await {
                    if sender.send(chunk).await.is_err() {
                        return; // the answer says why
                    }
                }
            };
            let mut client = RaftClient::new(channel);
            let (answer, ()) = tokio::join!(
                client.stream_snapshot(ReceiverStream::new(receiver)),
                feeding
            );
            if let Err(status) = &answer {
                tracing::info!(raft.to = peer, error = %status, "a snapshot did not arrive");
            }
            mailbox.report_snapshot(peer, answer.is_ok());
        });
    }
}
