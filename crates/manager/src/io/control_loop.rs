//! Runs the reconcilers of a leader: what happened marks keys, a pass plans, plans are proposed, and so on.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use shoal_api::{RandomIds, Timestamp, object::Batch};

use super::{
    raft::ProposeError,
    store::{Notice, Store, Watch},
};
use crate::core::{
    reconcile::{Ctx, Dirty, Reconciler},
    state::{Event, State},
};

/// A reconciler of any kind of key, with its unfinished business.
pub trait ControlLoop: Send {
    /// Everything is to be looked at.
    fn mark_all(&mut self, state: &State);
    /// Takes note of what a batch changed.
    fn observe(&mut self, state: &State, events: &[Event]);
    /// When to plan again at the latest.
    fn next_wake(&self, now: Timestamp) -> Option<Timestamp>;
    /// Plans; see [`Dirty::pass`].
    fn pass(&mut self, state: &State, cx: &mut Ctx<'_>, foreign: &mut BTreeSet<shoal_api::object::ObjectKey>)
    -> Option<Batch>;
    /// The last plan came to nothing.
    fn retry(&mut self);
}

impl<R: Reconciler + Send> ControlLoop for Dirty<R>
where
    R::Key: Send,
{
    fn mark_all(&mut self, state: &State) {
        Self::mark_all(self, state);
    }
    fn observe(&mut self, state: &State, events: &[Event]) {
        Self::observe(self, state, events);
    }
    fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        Self::next_wake(self, now)
    }
    fn pass(
        &mut self,
        state: &State,
        cx: &mut Ctx<'_>,
        foreign: &mut BTreeSet<shoal_api::object::ObjectKey>,
    ) -> Option<Batch> {
        Self::pass(self, state, cx, foreign)
    }
    fn retry(&mut self) {
        Self::retry(self);
    }
}

/// Runs the loops until this manager no longer leads. All plans of a round are proposed together and share one sync.
pub async fn run(store: &Store, mut loops: Vec<Box<dyn ControlLoop>>) {
    let mut watch = store.watch();
    let mut state = store.state();
    for control in &mut loops {
        control.mark_all(&state);
    }
    loop {
        while let Some(notice) = watch.try_next() {
            take_note(&mut loops, &notice);
            state = notice.state().clone();
        }
        let now = Timestamp::now();
        let mut foreign = BTreeSet::new();
        let mut plans = Vec::new();
        for (place, control) in loops.iter_mut().enumerate() {
            if control.next_wake(now).is_some_and(|at| at <= now) {
                let mut cx = Ctx { now, ids: &mut RandomIds };
                if let Some(batch) = control.pass(&state, &mut cx, &mut foreign) {
                    plans.push((place, batch));
                }
            }
        }
        if plans.is_empty() {
            state = wait(&mut watch, &mut loops, state).await;
            continue;
        }
        let outcomes = join_all(plans.iter().map(|(_, batch)| store.propose(batch))).await;
        for ((place, batch), outcome) in plans.iter().zip(outcomes) {
            match outcome {
                Ok(index) => {
                    tracing::debug!(actor = ?batch.actor, changes = batch.changes.len(), raft.index = index, "applied");
                }
                Err(ProposeError::Rejected(rejected)) => {
                    tracing::debug!(actor = ?batch.actor, %rejected, "a plan was made on old facts");
                    loops[*place].retry();
                }
                Err(ProposeError::NotLeader { .. } | ProposeError::Lost | ProposeError::Stopped) => return,
            }
        }
    }
}

fn take_note(loops: &mut [Box<dyn ControlLoop>], notice: &Notice) {
    for control in loops {
        match notice {
            Notice::Applied { state, events } => control.observe(state, events),
            Notice::Everything { state } => control.mark_all(state),
        }
    }
}

/// Waits until something happens or a deadline is due.
async fn wait(watch: &mut Watch, loops: &mut [Box<dyn ControlLoop>], state: State) -> State {
    let now = Timestamp::now();
    let deadline = loops.iter().filter_map(|control| control.next_wake(now)).min();
    let due = async {
        match deadline {
            Some(at) => tokio::time::sleep(at.since(now)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        notice = watch.next() => {
            take_note(loops, &notice);
            notice.state().clone()
        }
        () = due => state,
    }
}
