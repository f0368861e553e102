//! Runs the control loops of a leader: what happened marks keys, a pass plans, plans are proposed, and so on.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use shoal_api::{NodeId, RandomIds, Timestamp};
use tokio::sync::watch;

use super::{
    raft::ProposeError,
    store::{Notice, Store, Watch},
};
use crate::core::{loops::Loops, reconcile::Ctx, state::State};

/// For each node the last state whose network view it has carried out, as the dispatcher tells it.
pub(crate) type Acknowledged = Arc<BTreeMap<NodeId, u64>>;

/// Runs the loops until this manager no longer leads. All plans of a round are proposed together and share one sync.
pub(crate) async fn run(store: &Store, mut acknowledged: watch::Receiver<Acknowledged>) {
    let (mut state, mut watch) = store.watch_state();
    let mut loops = Loops::begin(&state);
    loop {
        while let Some(notice) = watch.try_next() {
            take_note(&mut loops, &mut state, &notice);
        }
        loops.acknowledged(&acknowledged.borrow_and_update());
        let now = Timestamp::now();
        let proposals = match loops.next_wake(now) {
            Some(at) if at <= now => loops.pass(
                &state,
                &mut Ctx {
                    now,
                    ids: &mut RandomIds,
                },
            ),
            _ => Vec::new(),
        };
        if proposals.is_empty() {
            wait(&mut watch, &mut loops, &mut state, &mut acknowledged).await;
            continue;
        }
        let outcomes = join_all(
            proposals
                .iter()
                .map(|proposal| store.propose(&proposal.batch)),
        )
        .await;
        for (proposal, outcome) in proposals.iter().zip(outcomes) {
            let (name, changes) = (proposal.control_loop, proposal.batch.changes.len());
            match outcome {
                Ok(index) => tracing::debug!(
                    control_loop = name,
                    changes,
                    raft.index = index,
                    "applied a plan"
                ),
                Err(ProposeError::Rejected(rejected)) => {
                    tracing::debug!(control_loop = name, changes, %rejected, "a plan was made on old facts");
                    loops.retry(name);
                }
                Err(
                    ProposeError::NotLeader { .. } | ProposeError::Lost | ProposeError::Stopped,
                ) => return,
            }
        }
    }
}

fn take_note(loops: &mut Loops, seen: &mut State, notice: &Notice) {
    match notice {
        Notice::Applied { state, events } => loops.observe(state, events),
        Notice::Everything { state } => loops.mark_all(state),
        Notice::Made(_) => {}
    }
    if let Some(state) = notice.state() {
        seen.clone_from(state);
    }
}

/// Waits until something happens or a deadline is due.
async fn wait(
    watch: &mut Watch,
    loops: &mut Loops,
    state: &mut State,
    acknowledged: &mut watch::Receiver<Acknowledged>,
) {
    let now = Timestamp::now();
    let deadline = loops.next_wake(now);
    let due = async {
        match deadline {
            // A moment that was asked for: the end of a delay or of a watch over an update.
            Some(at) => tokio::time::sleep(at.since(now)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        notice = watch.next() => take_note(loops, state, &notice),
        Ok(()) = acknowledged.changed() => {}
        () = due => {}
    }
}
