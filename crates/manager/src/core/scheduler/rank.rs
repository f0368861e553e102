//! Ranking: which of the nodes that can run a task shall.
//!
//! Branches of the spread preferences first (fewest tasks of the service), then nodes with few recent failures of this
//! very spec, fewest tasks of the service, fewest tasks at all, and the id so that the choice is the same everywhere.
//! Order as in SwarmKit's `nodeLess`.
//!
//! The nodes that have no task of the service come in the order that their class keeps for all services; only those that
//! have some are ordered here. A node that is passed over stays out: while a group is placed nodes only get fuller.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_api::Timestamp;

use super::{
    class::{Class, Leaf},
    filter::{TaskNeeds, has_room},
    ledger::{Ledger, Slot},
};

/// Failures from which on a node is avoided. One less than SwarmKit's `maxFailures`: they are counted among the tasks that
/// are kept, and a slot's history of five has four that are over.
const FAILURES_MIN: usize = 4;
/// How long a failure counts (SwarmKit's `monitorFailures`).
const FAILURES_WINDOW: Duration = Duration::from_secs(5 * 60);

/// Failures that count, tasks of the service, tasks, place by id: less is better.
type Score = (usize, u64, u64, Slot);

/// The nodes that can run tasks of one group, best first.
pub(super) struct Ranking {
    /// Place of the class in the ledger.
    class: usize,
    /// Nodes on which this group keeps failing.
    failing: BTreeMap<Slot, usize>,
    /// By leaf of the class.
    lanes: Vec<Lane>,
    /// By branch of the class: tasks of the service.
    tasks: Vec<u64>,
}

/// What is left of a leaf.
#[derive(Default)]
struct Lane {
    /// Where to go on among the nodes without tasks of the service.
    cursor: (u64, Slot),
    /// The other nodes with room for one more, best first; made when they are first needed.
    others: Option<BTreeSet<Score>>,
    /// The best node, once it was looked for.
    best: Option<Option<Score>>,
}

/// Failures of a group on nodes that count, where there are many.
pub(super) fn failing(ledger: &Ledger, needs: &TaskNeeds, now: Timestamp) -> BTreeMap<Slot, usize> {
    let group = (needs.service.clone(), needs.spec_version);
    let failures = ledger.failures_since(&group, now - FAILURES_WINDOW);
    failures
        .filter(|(_, failures)| *failures >= FAILURES_MIN)
        .collect()
}

impl Ranking {
    pub(super) fn of(ledger: &mut Ledger, needs: &TaskNeeds, now: Timestamp) -> Self {
        let place = ledger.class_of(needs);
        let class = ledger.class(place);
        let mut tasks = vec![0; class.branches];
        if !tasks.is_empty() {
            // Nodes that cannot take more still make their branch fuller.
            for (slot, count) in ledger.nodes_of(&needs.service) {
                fill(&mut tasks, class, slot, count);
            }
        }
        Self {
            class: place,
            failing: failing(ledger, needs, now),
            lanes: class.leaves.iter().map(|_| Lane::default()).collect(),
            tasks,
        }
    }

    /// The best node for the next task.
    pub(super) fn next(&mut self, ledger: &Ledger, needs: &TaskNeeds) -> Option<Slot> {
        let class = ledger.class(self.class);
        for home in 0..self.lanes.len() {
            if self.lanes[home].best.is_none() {
                let best = self.best_of(ledger, needs, home);
                self.lanes[home].best = Some(best);
            }
        }
        let open = self.lanes.iter().zip(&class.leaves);
        let open = open.filter_map(|(lane, leaf)| Some((leaf, lane.best??)));
        let best = open.min_by(|(a, best_a), (b, best_b)| {
            let fuller = self.fullness(a).cmp(self.fullness(b));
            fuller.then(best_a.cmp(best_b))
        });
        best.map(|(_, score)| score.3)
    }

    fn best_of(&mut self, ledger: &Ledger, needs: &TaskNeeds, home: usize) -> Option<Score> {
        let class = ledger.class(self.class);
        let failing = &self.failing;
        let lane = &mut self.lanes[home];
        let mut fresh = class.leaves[home].order.range(lane.cursor..);
        let fresh = fresh.find(|(_, slot)| {
            !failing.contains_key(slot)
                && ledger.tasks_of(&needs.service, *slot) == 0
                && has_room(needs, ledger, *slot)
        });
        if let Some((active, slot)) = fresh {
            lane.cursor = (*active, *slot);
            return Some((0, 0, *active, *slot));
        }
        lane.cursor = (u64::MAX, Slot::MAX);
        let others = lane.others.get_or_insert_with(|| {
            let with_tasks = ledger.nodes_of(&needs.service).map(|(slot, _)| slot);
            let slots: BTreeSet<Slot> = with_tasks.chain(failing.keys().copied()).collect();
            let open = slots.into_iter().filter(|slot| {
                class.homes[*slot as usize] as usize == home
                    && class.holds(*slot)
                    && has_room(needs, ledger, *slot)
            });
            open.map(|slot| score(ledger, needs, failing, slot))
                .collect()
        });
        others.first().copied()
    }

    fn fullness<'t>(&'t self, leaf: &'t Leaf) -> impl Iterator<Item = u64> + 't {
        leaf.branches.iter().map(|branch| self.tasks[*branch])
    }

    /// Takes note of a task that was placed and counted on a node.
    pub(super) fn placed(&mut self, ledger: &Ledger, needs: &TaskNeeds, slot: Slot) {
        let class = ledger.class(self.class);
        fill(&mut self.tasks, class, slot, 1);
        let lane = &mut self.lanes[class.homes[slot as usize] as usize];
        lane.best = None;
        if let Some(others) = &mut lane.others {
            let score = score(ledger, needs, &self.failing, slot);
            others.remove(&(score.0, score.1 - 1, score.2 - 1, slot));
            if has_room(needs, ledger, slot) {
                others.insert(score);
            }
        }
    }
}

fn fill(tasks: &mut [u64], class: &Class, slot: Slot, count: u64) {
    let home = class.homes[slot as usize] as usize;
    for branch in &class.leaves[home].branches {
        tasks[*branch] += count;
    }
}

fn score(ledger: &Ledger, needs: &TaskNeeds, failing: &BTreeMap<Slot, usize>, slot: Slot) -> Score {
    let failures = failing.get(&slot).copied().unwrap_or(0);
    let tasks = ledger.tasks_of(&needs.service, slot);
    (failures, tasks, ledger.info(slot).active, slot)
}
