//! What only the leader does, begun with each election won and ended with each one lost.

use std::{sync::Arc, time::Duration};

use shoal_api::{RandomIds, Timestamp};
use shoal_ca::RootCertificate;
use tokio::sync::{mpsc, watch};

use super::{
    control_loop::{self, Acknowledged},
    dispatcher,
    manager::Desk,
    raft::{ProposeError, RemoveError},
};
use crate::core::{consensus::roles::role_work, control::end_root_rotation, reconcile::Ctx};

/// Pause before leading again in the same term.
const REIGN_PAUSE: Duration = Duration::from_millis(100);
/// When a manager that could not be removed is tried again: a new leader must first hear of those that stay.
const REMOVAL_RETRY: Duration = Duration::from_secs(1);

/// Leads whenever this manager is elected, until consensus stops.
pub(crate) async fn run(desk: Desk) {
    let mut leadership = desk.store.raft().leadership();
    loop {
        let Ok(term) = leadership
            .wait_for(|now| now.is_leader)
            .await
            .map(|now| now.term)
        else {
            return;
        };
        tracing::info!(raft.term = term, "leading");
        tokio::select! {
            () = reign(&desk) => {}
            _ = leadership.wait_for(|now| !now.is_leader || now.term != term) => {}
        }
        desk.announce_dispatcher(None);
        desk.passing.clear();
        // Leading still, but refused, as while leadership is being handed over: not to be tried again at full speed.
        let pause = tokio::time::sleep(REIGN_PAUSE);
        tokio::select! {
            () = pause => {}
            _ = leadership.wait_for(|now| !now.is_leader || now.term != term) => {}
        }
        tracing::info!(raft.term = term, "no longer leading");
    }
}

async fn reign(desk: &Desk) {
    let (commands, inbox) = mpsc::channel(dispatcher::COMMANDS_MAX);
    let (acknowledged_holder, acknowledged) = watch::channel(Acknowledged::default());
    let weak = commands.downgrade();
    desk.announce_dispatcher(Some(commands));
    // Whichever ends first has learnt that this manager no longer leads.
    tokio::select! {
        () = control_loop::run(&desk.store, acknowledged) => {}
        () = dispatcher::run(desk, inbox, weak, acknowledged_holder) => {}
        () = keep_roles(desk) => {}
        () = keep_root(desk) => {}
    }
}

/// Ends the replacement of the root certificate when all nodes have certificates from the new one.
async fn keep_root(desk: &Desk) {
    let mut watch = desk.store.watch_nodes();
    let mut state = desk.store.state();
    loop {
        let rotation = state.cluster().and_then(|c| c.root_rotation.clone());
        let incoming =
            rotation.and_then(|rotation| RootCertificate::from_pem(&rotation.ca_cert).ok());
        if let Some(incoming) = incoming {
            let batch = {
                let mut cx = Ctx {
                    now: Timestamp::now(),
                    ids: &mut RandomIds,
                };
                end_root_rotation(&state, &mut cx, &incoming.digest())
            };
            if let Some(batch) = batch {
                match desk.store.propose(&batch).await {
                    Ok(_) => tracing::info!("the root certificate is replaced"),
                    Err(ProposeError::Rejected(_)) => {} // somebody else wrote meanwhile; that wakes us below
                    Err(_) => return,
                }
            }
        }
        state = watch.next().await;
    }
}

/// Keeps the state in step with the membership, and the membership in step with the roles that users ask for.
async fn keep_roles(desk: &Desk) {
    let store = &desk.store;
    let mut watch = store.watch_nodes();
    let mut members = store.raft().members();
    loop {
        let now = Arc::clone(&members.borrow_and_update());
        let work = role_work(&store.state(), &now, Timestamp::now());
        if let Some(batch) = &work.batch {
            match store.propose(batch).await {
                Ok(_) => continue,
                Err(ProposeError::Rejected(_)) => {} // somebody else wrote meanwhile; that wakes us below
                Err(
                    ProposeError::NotLeader { .. } | ProposeError::Lost | ProposeError::Stopped,
                ) => return,
            }
        }
        let mut is_refused = false;
        for raft_id in &work.leaving {
            match store.raft().remove(*raft_id).await {
                Ok(()) => {}
                // The next leader will remove us.
                Err(RemoveError::IsLeader) => {
                    drop(store.raft().transfer().await);
                    is_refused = true; // still here, if nobody could take over
                }
                Err(RemoveError::Refused(refused)) => {
                    tracing::warn!(raft.id = raft_id, %refused, "cannot remove a manager yet");
                    is_refused = true;
                }
                Err(RemoveError::Propose(_)) => return,
            }
        }
        tokio::select! {
            _ = watch.next() => {}
            changed = members.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REMOVAL_RETRY), if is_refused => {}
        }
    }
}
