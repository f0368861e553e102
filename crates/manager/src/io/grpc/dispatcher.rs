//! Sessions of agents. The node is always the one in the caller's certificate.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt};
use rustls::pki_types::CertificateDer;
use shoal_api::{
    NodeId, Timestamp,
    object::NodeDescription,
    wire::{
        AcknowledgeViewRequest, AcknowledgeViewResponse, AssignmentsMessage, AssignmentsRequest,
        AttachRequest, AttachResponse, DescribeRequest, DescribeResponse, HeartbeatRequest,
        HeartbeatResponse, LeaveRequest, LeaveResponse, SessionMessage, SessionRequest,
        UpdateTaskStatusRequest, UpdateTaskStatusResponse, dispatcher_server::Dispatcher,
    },
};
use shoal_ca::RootCertificate;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, async_trait};

use super::{authorize::caller, server::Caller};
use crate::{
    core::control::AttachmentWish,
    io::{dispatcher::Command, manager::Desk},
};

/// The `Dispatcher` service.
pub(crate) struct DispatcherService {
    pub(crate) desk: Desk,
}

impl DispatcherService {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Status>>) -> Command,
    ) -> Result<T, Status> {
        let dispatcher = self.desk.dispatcher().await?;
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("this manager is not the leader");
        dispatcher.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl DispatcherService {
    /// Where a node speaks from, and the digest of the root that has issued its certificate.
    fn origin<T>(&self, request: &Request<T>) -> Result<(IpAddr, String), Status> {
        let caller = request.extensions().get::<Caller>();
        let address = caller.map(|caller| caller.address.ip().to_canonical());
        let address = address.ok_or_else(|| Status::internal("a connection without an address"))?;
        let certificate = caller.and_then(|caller| caller.certificate.as_ref());
        let issuer = certificate.map(|certificate| self.issuer_of(certificate));
        Ok((address, issuer.unwrap_or_default()))
    }

    /// The digest of the root that has issued a certificate: the one in force, or the one on its way in.
    fn issuer_of(&self, certificate: &CertificateDer<'_>) -> String {
        let state = self.desk.store.state();
        let Some(cluster) = state.cluster() else {
            return String::new();
        };
        let incoming = cluster
            .root_rotation
            .as_ref()
            .map(|rotation| &rotation.ca_cert);
        let roots = [Some(&cluster.root_ca_cert), incoming]
            .into_iter()
            .flatten();
        let mut roots = roots.filter_map(|pem| RootCertificate::from_pem(pem).ok());
        let issuer = roots.find(|root| root.has_signed(certificate));
        issuer.map(|root| root.digest()).unwrap_or_default()
    }
}

/// What a node says of itself, with the issuer that its certificate has.
fn described(
    said: Option<shoal_api::wire::NodeDescription>,
    issuer: String,
) -> Result<Box<NodeDescription>, Status> {
    let said = said.ok_or_else(|| missing("description"))?;
    let mut description = Box::new(NodeDescription::try_from(said).map_err(invalid)?);
    description.certificate_issuer = issuer;
    Ok(description)
}

#[async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionMessage, Status>> + Send>>;
    type AssignmentsStream = ReceiverStream<Result<AssignmentsMessage, Status>>;

    async fn session(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = caller(&request)?;
        let (address, issuer) = self.origin(&request)?;
        let request = request.into_inner();
        let description = described(request.description, issuer)?;
        let (holds, takes_view_changes) = (request.assignments_version, request.takes_view_changes);
        let dispatcher = match self.desk.dispatcher().await {
            Ok(dispatcher) => dispatcher,
            Err(refused) => {
                // Where the leader is known, its address is the answer.
                let leader = self.desk.leader_address().ok_or(refused)?;
                let managers = self.desk.manager_addresses();
                let redirect = SessionMessage {
                    leader,
                    managers,
                    ..SessionMessage::default()
                };
                return Ok(Response::new(tokio_stream::once(Ok(redirect)).boxed()));
            }
        };
        let node = identity.node_id.clone();
        let opened = self
            .ask(|reply| Command::Open {
                node: node.clone(),
                description,
                address,
                holds,
                takes_view_changes,
                reply,
            })
            .await?;
        let stream = Watched {
            messages: WatchStream::new(opened.messages),
            _guard: Guard {
                dispatcher,
                node,
                session: opened.session,
            },
        };
        // A session does not outlive the certificate that it was opened with.
        let expiry = tokio::time::sleep(identity.not_after.since(Timestamp::now()));
        Ok(Response::new(stream.take_until(expiry).boxed()))
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let (address, issuer) = self.origin(&request)?;
        let request = request.into_inner();
        let session = session_id(&request.session_id)?;
        let description = described(request.description, issuer)?;
        self.ask(|reply| Command::Describe {
            node,
            session,
            description,
            address,
            reply,
        })
        .await?;
        Ok(Response::new(DescribeResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let session = session_id(&request.into_inner().session_id)?;
        let period = self
            .ask(|reply| Command::Heartbeat {
                node,
                session,
                reply,
            })
            .await?;
        let period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(HeartbeatResponse { period_ms }))
    }

    async fn assignments(
        &self,
        request: Request<AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let node = caller(&request)?.node_id.clone();
        let session = session_id(&request.into_inner().session_id)?;
        let messages = self
            .ask(|reply| Command::Assignments {
                node,
                session,
                reply,
            })
            .await?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusRequest>,
    ) -> Result<Response<UpdateTaskStatusResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let request = request.into_inner();
        let session = session_id(&request.session_id)?;
        let mut statuses = Vec::with_capacity(request.updates.len());
        for update in request.updates {
            let task = update
                .task_id
                .parse()
                .map_err(|error: shoal_api::id::InvalidId| invalid(error))?;
            let status = update.status.ok_or_else(|| missing("status"))?;
            statuses.push((
                task,
                status
                    .try_into()
                    .map_err(|error: shoal_api::wire::DecodeError| invalid(error))?,
            ));
        }
        self.ask(|reply| Command::Report {
            node,
            session,
            statuses,
            reply,
        })
        .await?;
        Ok(Response::new(UpdateTaskStatusResponse {}))
    }

    async fn acknowledge_view(
        &self,
        request: Request<AcknowledgeViewRequest>,
    ) -> Result<Response<AcknowledgeViewResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        let AcknowledgeViewRequest {
            session_id: id,
            version,
        } = request.into_inner();
        let session = session_id(&id)?;
        self.ask(|reply| Command::AcknowledgeView {
            node,
            session,
            version,
            reply,
        })
        .await?;
        Ok(Response::new(AcknowledgeViewResponse {}))
    }

    async fn attach(
        &self,
        request: Request<AttachRequest>,
    ) -> Result<Response<AttachResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        self.desk.require_leader().await?;
        let request = request.into_inner();
        let addresses = request.addresses.iter().map(|text| {
            let bad = |_| invalid(format!("address {text:?} is not an IP address"));
            text.parse().map_err(bad)
        });
        let wish = AttachmentWish {
            id: request.attachment_id.parse().map_err(invalid)?,
            network: request.network,
            addresses: addresses.collect::<Result<_, _>>()?,
            container: request.container_id,
            name: request.container_name,
            aliases: request.aliases,
        };
        if wish.container.is_empty() {
            return Err(missing("container_id"));
        }
        let network = self.desk.attach(&node, &wish).await?;
        Ok(Response::new(AttachResponse {
            network_id: network.to_string(),
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let node = caller(&request)?.node_id.clone();
        self.desk.require_leader().await?;
        self.desk.depart(&node).await?;
        Ok(Response::new(LeaveResponse {}))
    }
}

fn session_id(text: &str) -> Result<u64, Status> {
    text.parse()
        .map_err(|_| Status::not_found("there is no such session"))
}

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The messages of a session, which is closed when nobody listens any more.
struct Watched {
    messages: WatchStream<SessionMessage>,
    _guard: Guard,
}

impl Stream for Watched {
    type Item = Result<SessionMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages
            .poll_next_unpin(cx)
            .map(|message| message.map(Ok))
    }
}

struct Guard {
    dispatcher: mpsc::Sender<Command>,
    node: NodeId,
    session: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let closed = Command::Closed {
            node: self.node.clone(),
            session: self.session,
        };
        if let Err(mpsc::error::TrySendError::Full(closed)) = self.dispatcher.try_send(closed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let dispatcher = self.dispatcher.clone();
            runtime.spawn(async move { dispatcher.send(closed).await });
        }
    }
}
