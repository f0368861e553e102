//! The replicated state on this manager: applied by consensus, read by everyone, changed by proposing.

use std::sync::{Arc, RwLock};

use shoal_api::{
    object::{Batch, Change, Expect, Object, ObjectKey},
    wire::{decode_batch_with, encode_batch, encode_batch_lean},
};
use tokio::sync::broadcast;

use super::raft::{ProposeError, Raft, StateMachine};
use crate::core::{
    consensus::{
        LogIndex,
        wire::{Malformed, Reader, Writer},
    },
    state::{Event, Rejected, State},
};

/// Notices that a watcher may be behind; one that is further behind looks at everything again.
const NOTICES_MAX: usize = 1024;

/// The state that consensus applies batches to; readers take copies, which is cheap.
#[derive(Debug, Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    notices: broadcast::Sender<Notice>,
}

/// Something happened to the state.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A batch was applied.
    Applied {
        /// The state after it.
        state: State,
        /// What it changed.
        events: Arc<[Event]>,
    },
    /// Anything may have changed: another state was taken over, or the watcher was too slow.
    Everything {
        /// The state as it is now.
        state: State,
    },
}

impl Notice {
    /// The state after what happened.
    pub fn state(&self) -> &State {
        match self {
            Self::Applied { state, .. } | Self::Everything { state } => state,
        }
    }
}

/// Sees every batch that is applied, in order.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    notices: broadcast::Receiver<Notice>,
}

impl Watch {
    /// Waits for the next thing to happen.
    pub async fn next(&mut self) -> Notice {
        match self.notices.recv().await {
            Ok(notice) => notice,
            Err(_) => Notice::Everything {
                state: self.shared.read(),
            },
        }
    }

    /// What has happened already and was not yet seen.
    pub fn try_next(&mut self) -> Option<Notice> {
        match self.notices.try_recv() {
            Ok(notice) => Some(notice),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Notice::Everything {
                state: self.shared.read(),
            }),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}

impl Shared {
    fn read(&self) -> State {
        self.state
            .read()
            .expect("nobody panics while holding the state")
            .clone()
    }

    fn replace(&self, state: State, events: Option<Vec<Event>>) {
        *self
            .state
            .write()
            .expect("nobody panics while holding the state") = state.clone();
        let notice = match events {
            Some(events) if events.is_empty() => return,
            Some(events) => Notice::Applied {
                state,
                events: events.into(),
            },
            None => Notice::Everything { state },
        };
        let _ = self.notices.send(notice); // nobody may be watching
    }
}

impl Default for Replica {
    fn default() -> Self {
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        Self {
            shared: Arc::new(Shared {
                state: RwLock::default(),
                notices,
            }),
        }
    }
}

impl Replica {
    /// The state as of the last batch applied here.
    pub fn state(&self) -> State {
        self.shared.read()
    }

    /// Watches from now on. Take the state afterwards, then nothing is missed.
    pub fn watch(&self) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            notices: self.shared.notices.subscribe(),
        }
    }
}

impl StateMachine for Replica {
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        let mut state = self.state();
        let known = state.clone();
        let batch = decode_batch_with(data, &|service, version| {
            known.task_spec(service, version).cloned()
        });
        let result = match &batch {
            Ok(batch) => state.apply(index, batch),
            Err(error) => Err(Rejected::Reference(format!(
                "a batch that cannot be read: {error}"
            ))),
        };
        match result {
            Ok(events) => {
                self.shared.replace(state, Some(events));
                Ok(())
            }
            Err(rejected) => {
                tracing::debug!(raft.index = index, %rejected, "a batch was refused");
                self.shared.replace(state, Some(Vec::new()));
                Err(rejected)
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        encode_state(&self.state())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let state = decode_state(snapshot)?;
        self.shared.replace(state, None);
        Ok(())
    }
}

/// Writes a whole state. Tasks come last, without the specs that their services have.
pub fn encode_state(state: &State) -> Vec<u8> {
    let (tasks, others): (Vec<_>, Vec<_>) = state
        .snapshot()
        .into_iter()
        .partition(|object| matches!(object, Object::Task(_)));
    let services = State::restore(state.index(), others.clone()).unwrap_or_default();
    let mut out = Writer::default();
    out.number(state.index());
    out.bytes(&encode_batch(&as_batch(others)));
    out.bytes(&encode_batch_lean(&as_batch(tasks), &|service, version| {
        services.task_spec(service, version).cloned()
    }));
    out.finish()
}

fn decode_state(bytes: &[u8]) -> Result<State, String> {
    let malformed = |error: Malformed| error.to_string();
    let mut input = Reader::new(bytes);
    let index = input.number().map_err(malformed)?;
    let others = decode_batch_with(input.bytes().map_err(malformed)?, &|_, _| None)
        .map_err(|e| e.to_string())?;
    let mut objects = as_objects(others);
    let services =
        State::restore(index, objects.clone()).map_err(|rejected| rejected.to_string())?;
    let tasks = decode_batch_with(input.bytes().map_err(malformed)?, &|service, version| {
        services.task_spec(service, version).cloned()
    });
    objects.extend(as_objects(tasks.map_err(|error| error.to_string())?));
    State::restore(index, objects).map_err(|rejected| rejected.to_string())
}

fn as_batch(objects: Vec<Object>) -> Batch {
    let put = |object| Change::Put {
        object: Box::new(object),
        expect: Expect::Absent,
    };
    Batch {
        actor: shoal_api::Actor::User,
        at: shoal_api::Timestamp::ZERO,
        changes: objects.into_iter().map(put).collect(),
    }
}

fn as_objects(batch: Batch) -> Vec<Object> {
    let object = |change| match change {
        Change::Put { object, .. } => Some(*object),
        Change::Delete { .. } => None,
    };
    batch.changes.into_iter().filter_map(object).collect()
}

/// The state with the way to change it.
#[derive(Debug, Clone)]
pub struct Store {
    replica: Replica,
    raft: Raft,
}

impl Store {
    /// Puts together a replica and the consensus that applies to it.
    pub fn new(replica: Replica, raft: Raft) -> Self {
        Self { replica, raft }
    }

    /// The consensus behind it.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The state as of the last batch applied here. May be behind the leader's.
    pub fn state(&self) -> State {
        self.replica.state()
    }

    /// The state with everything in it that anybody was told before this call.
    pub async fn latest(&self) -> Result<State, ProposeError> {
        self.raft.read_barrier().await?;
        Ok(self.state())
    }

    /// Watches from now on. Take the state afterwards, then nothing is missed.
    pub fn watch(&self) -> Watch {
        self.replica.watch()
    }

    /// Proposes a batch; returns once it is applied here.
    pub async fn propose(&self, batch: &Batch) -> Result<LogIndex, ProposeError> {
        let state = self.state();
        let data = encode_batch_lean(batch, &|service, version| {
            state.task_spec(service, version).cloned()
        });
        self.raft.propose(data).await
    }

    /// The object of a key, as last applied here.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        self.state().object(key)
    }
}
