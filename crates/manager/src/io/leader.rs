//! What only the leader does, begun with each election won and ended with each one lost.

use std::sync::Arc;

use shoal_api::Timestamp;

use super::{
    control_loop::{self, ControlLoop},
    manager::Desk,
    raft::{ProposeError, RemoveError},
};
use crate::core::consensus::roles::role_work;

/// Leads whenever this manager is elected, until consensus stops.
pub(crate) async fn run(desk: Desk) {
    let mut leadership = desk.store.raft().leadership();
    loop {
        let Ok(term) = leadership.wait_for(|now| now.is_leader).await.map(|now| now.term) else {
            return;
        };
        tracing::info!(raft.term = term, "leading");
        tokio::select! {
            () = reign(&desk) => {}
            lost = leadership.wait_for(|now| !now.is_leader || now.term != term) => if lost.is_err() { return },
        }
        tracing::info!(raft.term = term, "no longer leading");
    }
}

async fn reign(desk: &Desk) {
    tokio::join!(control_loop::run(&desk.store, loops()), keep_roles(desk));
}

/// All control loops of the cluster.
fn loops() -> Vec<Box<dyn ControlLoop>> {
    Vec::new()
}

/// Keeps the state in step with the membership, and the membership in step with the roles that users ask for.
async fn keep_roles(desk: &Desk) {
    let store = &desk.store;
    let mut watch = store.watch();
    let mut members = store.raft().members();
    loop {
        let now = Arc::clone(&members.borrow_and_update());
        let work = role_work(&store.state(), &now, Timestamp::now());
        if let Some(batch) = &work.batch {
            match store.propose(batch).await {
                Ok(_) => continue,
                Err(ProposeError::Rejected(_)) => {} // somebody else wrote meanwhile; that wakes us below
                Err(ProposeError::NotLeader { .. } | ProposeError::Lost | ProposeError::Stopped) => return,
            }
        }
        for raft_id in &work.leaving {
            match store.raft().remove(*raft_id).await {
                Ok(()) => {}
                // The next leader will remove us.
                Err(RemoveError::IsLeader) => drop(store.raft().transfer().await),
                Err(RemoveError::Refused(refused)) => {
                    tracing::warn!(raft.id = raft_id, %refused, "cannot remove a manager yet");
                }
                Err(RemoveError::Propose(_)) => return,
            }
        }
        tokio::select! {
            _ = watch.next() => {}
            changed = members.changed() => if changed.is_err() { return },
        }
    }
}
