//! Replicated services: tasks in slots 1, 2, 3, …

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    NodeId, TaskState,
    planted::{Bug, planted},
};

use super::{
    fleet::{Birth, Entry, Fleet, SlotKey},
    leave::{self, Leaving},
    restart, update,
};

/// Brings a replicated service to `replicas` slots of the current spec.
pub(super) fn reconcile(fleet: &mut Fleet<'_, '_>, replicas: u64) {
    fleet.leaving = Leaving::by(fleet.service.spec.update, leave::moving(fleet));
    for key in runnable_slots(fleet) {
        restart::reconcile_slot(fleet, &key);
    }
    scale(fleet, replicas);
    let slots = runnable_slots(fleet);
    update::reconcile(fleet, &slots);
    fleet.settle();
}

fn runnable_slots(fleet: &Fleet<'_, '_>) -> Vec<SlotKey> {
    let runnable = fleet.slots.iter().filter(|(_, slot)| {
        if planted(Bug::SlotTwice) {
            return slot.iter().any(Entry::runs);
        }
        slot.iter().any(Entry::is_runnable)
    });
    runnable.map(|(key, _)| key.clone()).collect()
}

fn scale(fleet: &mut Fleet<'_, '_>, replicas: u64) {
    let runnable: BTreeSet<SlotKey> = runnable_slots(fleet).into_iter().collect();
    let have = runnable.len() as u64;
    if have < replicas {
        let free = (1..)
            .map(SlotKey::Number)
            .filter(|key| !runnable.contains(key));
        for key in free.take(usize::try_from(replicas - have).unwrap_or(usize::MAX)) {
            if !fleet.has_room() {
                fleet.wake(fleet.now);
                return;
            }
            // What filled the slot when the service was larger may not be over yet.
            let birth = if fleet.is_vacant(&key) || planted(Bug::RefilledTooSoon) {
                Birth::NOW
            } else {
                Birth::NEXT
            };
            fleet.create(&key, birth);
        }
    } else {
        let excess = usize::try_from(have - replicas).unwrap_or(usize::MAX);
        let excess = excess.saturating_sub(usize::from(planted(Bug::ScaleDownForgets)));
        for key in to_remove(fleet, excess) {
            remove(fleet, &key);
        }
        // Slots without a task that is meant to run are history of a larger service.
        let dead: Vec<_> = fleet.slots.keys().cloned().collect();
        for key in dead {
            let is_dead = fleet.slots[&key].iter().all(|entry| !entry.is_runnable());
            if is_dead {
                remove(fleet, &key);
            }
        }
    }
}

fn remove(fleet: &mut Fleet<'_, '_>, key: &SlotKey) {
    for entry in fleet.slots.get_mut(key).into_iter().flatten() {
        entry.desire(TaskState::Remove);
    }
}

/// Returns the slots to remove when a service shrinks by `n`.
///
/// Prefers slots with no running task, then nodes carrying most of this service, then the highest slot
/// number. Order as in SwarmKit's replicated orchestrator.
fn to_remove(fleet: &Fleet<'_, '_>, n: usize) -> Vec<SlotKey> {
    let mut idle = Vec::new();
    let mut by_node: BTreeMap<Option<NodeId>, Vec<SlotKey>> = BTreeMap::new();
    for (key, slot) in &fleet.slots {
        let mut runnable = slot.iter().filter(|entry| entry.is_runnable()).peekable();
        if runnable.peek().is_none() {
            continue;
        }
        match runnable.find(|entry| entry.runs()) {
            Some(running) => by_node
                .entry(running.task.node.clone())
                .or_default()
                .push(key.clone()),
            None => idle.push(key.clone()),
        }
    }
    let mut chosen: Vec<SlotKey> = idle.into_iter().rev().take(n).collect();
    while chosen.len() < n {
        // Slots ascend within a node, so the last one is its highest.
        let fullest = by_node
            .values_mut()
            .max_by_key(|slots| (slots.len(), slots.last().cloned()));
        let Some(key) = fullest.and_then(Vec::pop) else {
            break;
        };
        chosen.push(key);
    }
    chosen
}
