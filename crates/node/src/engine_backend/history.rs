//! Events of the recent past, and those to come.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use shoal_api::{Timestamp, container::Event};
use shoal_docker_api::backend::ItemStream;
use shoal_engine::io::Engine;
use tokio::sync::broadcast::{self, error::RecvError};

/// Events remembered for `--since`, as docker's.
const EVENTS_KEPT_MAX: usize = 256;
/// Events that a slow listener may lag behind.
const EVENTS_AHEAD_MAX: usize = 1024;

/// Remembers events. One lock orders the memory and the stream, so that a listener gets each event once.
#[derive(Debug, Clone)]
pub(super) struct History {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    kept: VecDeque<Event>,
    live: broadcast::Sender<Event>,
}

impl History {
    /// Begins to listen to the engine, until it ends.
    pub(super) fn of(engine: &Engine) -> Self {
        let (live, _) = broadcast::channel(EVENTS_AHEAD_MAX);
        let shared = Shared {
            kept: VecDeque::new(),
            live,
        };
        let history = Self {
            shared: Arc::new(Mutex::new(shared)),
        };
        let (mut events, writer) = (engine.events(), history.clone());
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => writer.push(event),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events came faster than they could be kept");
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
        history
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut shared = self.shared();
        if shared.kept.len() == EVENTS_KEPT_MAX {
            shared.kept.pop_front();
        }
        shared.kept.push_back(event.clone());
        // Fails only when nobody listens.
        let _ = shared.live.send(event);
    }

    /// What happened since `since` and is still known, then what happens, until `until`.
    pub(super) fn read(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ItemStream<Event> {
        let (past, live) = {
            let shared = self.shared();
            let wanted = |event: &&Event| {
                since.is_some_and(|since| event.time >= since)
                    && until.is_none_or(|until| event.time <= until)
            };
            let past: Vec<Event> = shared.kept.iter().filter(wanted).cloned().collect();
            (past, shared.live.subscribe())
        };
        let past = stream::iter(past.into_iter().map(Ok));
        let left = until.map(|until| until.since(Timestamp::now()));
        if left == Some(Duration::ZERO) {
            return Box::pin(past);
        }
        let live = stream::unfold(live, |mut live| async move {
            loop {
                match live.recv().await {
                    Ok(event) => return Some((Ok(event), live)),
                    // A listener that slow cannot be told everything; it goes on with what is left.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        match left {
            None => Box::pin(past.chain(live)),
            Some(left) => Box::pin(past.chain(live).take_until(tokio::time::sleep(left))),
        }
    }
}
