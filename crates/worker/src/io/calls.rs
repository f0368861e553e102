//! What a node asks of the managers on behalf of its own users.

use std::{sync::Arc, time::Duration};

use rustls::ClientConfig;
use shoal_api::wire::{AttachRequest, LeaveRequest, dispatcher_client::DispatcherClient};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{Code, Request, Status, transport::Channel};

use super::{agent::SessionState, dial::dial};

/// How long a request may take, an election included. Docker's daemon waits as long for its cluster.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node that leaves looks for somebody to tell, an election included. Unheard, it is a node that is down.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

type Client = DispatcherClient<Channel>;

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No manager answered in time.
    #[error("no manager of the cluster answered within {} s", .0.as_secs())]
    NoManager(Duration),
    /// What was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The manager's no, with the name of its kind.
    #[error("rpc error: code = {code} desc = {text}")]
    Refused {
        /// Name of the gRPC status code.
        code: String,
        /// The manager's words.
        text: String,
    },
}

impl CallError {
    /// Managers want no session with this node.
    fn shut_out(why: &str) -> Self {
        Self::Refused {
            code: format!("{:?}", Code::PermissionDenied),
            text: why.to_owned(),
        }
    }
}

/// Whether the connection broke, or its manager does not lead.
fn is_broken(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

/// Asks the manager of the agent's session, wherever it is now.
#[derive(Debug, Clone)]
pub struct AgentCalls {
    pub(super) state: watch::Receiver<SessionState>,
    pub(super) tls: Option<watch::Receiver<Arc<ClientConfig>>>,
}

impl AgentCalls {
    /// Asks for a place for a container in an attachable network.
    pub async fn attach(&self, request: AttachRequest) -> Result<(), CallError> {
        let call = |mut client: Client| {
            let request = Request::new(request.clone());
            async move { client.attach(request).await.map(drop) }
        };
        self.ask(CALL_TIMEOUT, call).await
    }

    /// Says that the node leaves the cluster, which then forgets it.
    pub async fn leave(&self) -> Result<(), CallError> {
        let call = |mut client: Client| async move {
            let request = Request::new(LeaveRequest {});
            client.leave(request).await.map(drop)
        };
        match self.ask(LEAVE_TIMEOUT, call).await {
            // It was removed already, be it by an earlier try whose answer was cut off with all else that it had open.
            Err(CallError::Refused { code, .. }) if code == "PermissionDenied" => Ok(()),
            answer => answer,
        }
    }

    /// Asks the manager of the session, again whenever there is another one.
    async fn ask<F>(&self, within: Duration, call: impl Fn(Client) -> F) -> Result<(), CallError>
    where
        F: Future<Output = Result<(), Status>>,
    {
        let deadline = Instant::now() + within;
        let no_manager = || CallError::NoManager(within);
        let mut state = self.state.clone();
        loop {
            let session =
                state.wait_for(|state| state.manager.is_some() || state.refused.is_some());
            let manager = match timeout_at(deadline, session).await {
                Ok(Ok(state)) => match (&state.manager, &state.refused) {
                    (None, Some(refused)) => return Err(CallError::shut_out(refused)),
                    (manager, _) => manager.clone().unwrap_or_default(),
                },
                _ => return Err(no_manager()),
            };
            let tls = self.tls.as_ref().ok_or_else(no_manager)?;
            let tls = Arc::clone(&tls.borrow());
            let answer = async {
                let channel = dial(&manager, tls).await.ok()?;
                Some(call(Client::new(channel)).await)
            };
            match timeout_at(deadline, answer).await {
                Ok(Some(Ok(()))) => return Ok(()),
                Ok(Some(Err(status))) if status.code() == Code::NotFound => {
                    return Err(CallError::NotFound(status.message().to_owned()));
                }
                Ok(Some(Err(status))) if !is_broken(&status) => {
                    return Err(CallError::Refused {
                        code: format!("{:?}", status.code()),
                        text: status.message().to_owned(),
                    });
                }
                Err(_) => return Err(no_manager()),
                // It does not lead any more, or is gone: the next session says who does.
                Ok(None | Some(Err(_))) => {
                    let changed = state.changed();
                    if !matches!(timeout_at(deadline, changed).await, Ok(Ok(()))) {
                        return Err(no_manager());
                    }
                }
            }
        }
    }
}
