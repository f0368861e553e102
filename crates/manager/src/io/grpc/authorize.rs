//! Every request passes here first: the caller's role must allow the call, and its node must not be shut out.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use shoal_api::{
    planted::{Bug, planted},
    spec::NodeRole,
};
use shoal_ca::{PeerIdentity, Role, is_allowed};
use tonic::{Request, Status};
use tower::{Layer, Service};

use super::server::Caller;
use crate::{core::state::State, io::store::Replica};

/// Checks callers against the authorization table and the replicated list of removed nodes.
#[derive(Debug, Clone)]
pub struct Authorize {
    replica: Replica,
}

impl Authorize {
    /// Checks against this replica's state.
    pub fn new(replica: Replica) -> Self {
        Self { replica }
    }
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized {
            inner,
            replica: self.replica.clone(),
        }
    }
}

/// A service behind [`Authorize`].
#[derive(Debug, Clone)]
pub struct Authorized<S> {
    inner: S,
    replica: Replica,
}

impl<S, Req, Res> Service<http::Request<Req>> for Authorized<S>
where
    S: Service<http::Request<Req>, Response = http::Response<Res>>,
    Res: Default,
{
    type Response = http::Response<Res>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Req>) -> Self::Future {
        let identity = request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.identity.as_deref());
        let verdict = self
            .replica
            .look(|state| judge(state, request.uri().path(), identity));
        match verdict {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(refusal) => {
                tracing::warn!(rpc = request.uri().path(), caller = ?identity, "{}", refusal.message());
                Either::Left(ready(Ok(refusal.into_http())))
            }
        }
    }
}

/// Whether this caller may make this call.
///
/// # Errors
/// Why it may not.
pub fn judge(state: &State, path: &str, caller: Option<&PeerIdentity>) -> Result<(), Status> {
    if !is_allowed(path, caller.map(|identity| identity.role)) {
        return Err(match caller {
            None => Status::unauthenticated("this call needs a certificate"),
            Some(identity) => {
                Status::permission_denied(format!("a {} may not make this call", identity.role))
            }
        });
    }
    let (Some(identity), Some(cluster)) = (caller, state.cluster()) else {
        return Ok(());
    };
    if cluster.id != identity.cluster_id {
        return Err(Status::permission_denied(
            "the certificate is of another cluster",
        ));
    }
    // A certificate says what its holder was; demoted, it is a worker from then on. Messages of consensus are bound to the
    // membership instead, which also tells an expelled member that it is one.
    let is_demoted = identity.role == Role::Manager
        && !path.starts_with("/shoal.v1.Raft/")
        && state
            .node(&identity.node_id)
            .is_some_and(|node| node.role == NodeRole::Worker);
    if is_demoted && !is_allowed(path, Some(Role::Worker)) {
        return Err(Status::permission_denied(format!(
            "node {} is no longer a manager",
            identity.node_id
        )));
    }
    if cluster.blacklisted.contains_key(&identity.node_id) && !planted(Bug::RemovedMayCall) {
        return Err(Status::permission_denied(format!(
            "node {} was removed from the cluster",
            identity.node_id
        )));
    }
    Ok(())
}

/// The caller of a request that the table lets only nodes make.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Arc<PeerIdentity>, Status> {
    let caller = request
        .extensions()
        .get::<Caller>()
        .and_then(|caller| caller.identity.clone());
    caller.ok_or_else(|| Status::unauthenticated("this call needs a certificate"))
}

/// The same, where it must be a manager.
pub(crate) fn calling_manager<T>(request: &Request<T>) -> Result<Arc<PeerIdentity>, Status> {
    let caller = caller(request)?;
    if caller.role == Role::Manager {
        Ok(caller)
    } else {
        Err(Status::permission_denied("only managers may"))
    }
}
