//! What a node asks of the managers on behalf of its own users.

use std::{sync::Arc, time::Duration};

use rustls::ClientConfig;
use shoal_api::wire::{AttachRequest, dispatcher_client::DispatcherClient};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{Code, Request};

use super::{agent::SessionState, dial::dial};

/// How long a request may take, an election included. Docker's daemon waits as long for its cluster.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No manager answered in time.
    #[error("no manager of the cluster answered within {} s", CALL_TIMEOUT.as_secs())]
    NoManager,
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

/// Asks the manager of the agent's session, wherever it is now.
#[derive(Debug, Clone)]
pub struct AgentCalls {
    pub(super) state: watch::Receiver<SessionState>,
    pub(super) tls: Option<watch::Receiver<Arc<ClientConfig>>>,
}

impl AgentCalls {
    /// Asks for a place for a container in an attachable network.
    pub async fn attach(&self, request: AttachRequest) -> Result<(), CallError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut state = self.state.clone();
        loop {
            let session = state.wait_for(|state| state.manager.is_some());
            let manager = match timeout_at(deadline, session).await {
                Ok(Ok(state)) => state.manager.clone().unwrap_or_default(),
                _ => return Err(CallError::NoManager),
            };
            let tls = self.tls.as_ref().ok_or(CallError::NoManager)?;
            let tls = Arc::clone(&tls.borrow());
            let answer = async {
                let channel = dial(&manager, tls).await.ok()?;
                let mut client = DispatcherClient::new(channel);
                Some(client.attach(Request::new(request.clone())).await)
            };
            match timeout_at(deadline, answer).await {
                Ok(Some(Ok(_))) => return Ok(()),
                Ok(Some(Err(status))) if status.code() == Code::NotFound => {
                    return Err(CallError::NotFound(status.message().to_owned()));
                }
                Ok(Some(Err(status))) if status.code() != Code::Unavailable => {
                    return Err(CallError::Refused {
                        code: format!("{:?}", status.code()),
                        text: status.message().to_owned(),
                    });
                }
                Err(_) => return Err(CallError::NoManager),
                // It does not lead any more, or is gone: the next session says who does.
                Ok(None | Some(Err(_))) => {
                    let changed = state.changed();
                    if !matches!(timeout_at(deadline, changed).await, Ok(Ok(()))) {
                        return Err(CallError::NoManager);
                    }
                }
            }
        }
    }
}
