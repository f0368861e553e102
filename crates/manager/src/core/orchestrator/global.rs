//! Global services: one task on each node that fits.

use std::collections::BTreeSet;

use shoal_api::{
    NodeId, TaskState,
    object::{Node, NodeState},
    spec::Availability,
};

use super::{
    enforce::is_lost,
    fleet::{Birth, Entry, Fleet, SlotKey},
    restart, update,
};
use crate::core::scheduler::constraint::node_fits;

/// Brings a global service to one task of the current spec per node.
///
/// A drained node and one that no longer fits give their task up; a paused one keeps it as it is; one that is down keeps
/// it too, since nobody else could run it and its container may well have survived.
pub(super) fn reconcile(fleet: &mut Fleet<'_, '_>) {
    leave_nodes(fleet);
    let open: BTreeSet<SlotKey> = open_nodes(fleet).into_iter().map(SlotKey::Node).collect();
    for key in &open {
        let has_task = fleet
            .slots
            .get(key)
            .is_some_and(|slot| slot.iter().any(Entry::is_runnable));
        if has_task {
            restart::reconcile_slot(fleet, key);
        } else if fleet.has_room() {
            // What ran here before may not be over yet.
            fleet.create(key, Birth::NEXT);
        } else {
            fleet.wake(fleet.now);
        }
    }
    let open: Vec<SlotKey> = open.into_iter().collect();
    update::reconcile(fleet, &open);
    fleet.settle();
}

/// The nodes on which tasks may be made and replaced.
fn open_nodes(fleet: &Fleet<'_, '_>) -> Vec<NodeId> {
    let placement = &fleet.service.spec.task.placement;
    let open = |node: &Node| {
        node.status.state == NodeState::Ready
            && node.spec.availability == Availability::Active
            && node_fits(placement, node)
    };
    fleet
        .state
        .nodes()
        .filter(|node| open(node))
        .map(|node| node.id.clone())
        .collect()
}

/// Ends the tasks of nodes that should not carry them any more.
fn leave_nodes(fleet: &mut Fleet<'_, '_>) {
    let placement = &fleet.service.spec.task.placement;
    for (key, slot) in &mut fleet.slots {
        let SlotKey::Node(id) = key else { continue };
        let desired = match fleet.state.node(id) {
            None => TaskState::Remove,
            Some(node) if is_lost(node) => continue,
            Some(node) => match node.spec.availability {
                Availability::Drain => TaskState::Shutdown,
                Availability::Active if !node_fits(placement, node) => TaskState::Shutdown,
                Availability::Active | Availability::Pause => continue,
            },
        };
        for entry in slot
            .iter_mut()
            .filter(|entry| entry.is_runnable() || desired == TaskState::Remove)
        {
            entry.desire(desired);
        }
    }
}
