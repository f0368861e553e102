//! Ranking: which of the nodes that can run a task shall.
//!
//! Branches of the spread preferences first (fewest tasks of the service), then nodes with few recent failures of this
//! very spec, fewest tasks of the service, fewest tasks at all, and the id so that the choice is the same everywhere.
//! Order as in SwarmKit's `nodeLess`.
//!
//! Without preferences the nodes that have no task of the service come in the order that the ledger keeps for all
//! services; only those that have some are ordered here. A node that is passed over stays out: while a group is placed
//! nodes only get fuller.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_api::Timestamp;

use super::{
    constraint::NodeAttribute,
    filter::{TaskNeeds, passes},
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
    /// Nodes on which this group keeps failing.
    failing: BTreeMap<Slot, usize>,
    plan: Plan,
}

enum Plan {
    /// No preferences.
    Flat {
        /// Where to go on among the nodes without tasks of the service.
        cursor: (u64, Slot),
        /// The other nodes that can run one more, best first; made when it is first needed.
        others: Option<BTreeSet<Score>>,
    },
    Tree(Tree),
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
    pub(super) fn of(ledger: &Ledger, needs: &TaskNeeds, now: Timestamp) -> Self {
        let mut ranking = Self {
            failing: failing(ledger, needs, now),
            plan: Plan::Flat {
                cursor: (0, 0),
                others: None,
            },
        };
        if !needs.spread.is_empty() {
            ranking.plan = Plan::Tree(Tree::of(ledger, needs, &ranking.failing));
        }
        ranking
    }

    /// The best node for the next task.
    pub(super) fn next(&mut self, ledger: &Ledger, needs: &TaskNeeds) -> Option<Slot> {
        let failing = &self.failing;
        match &mut self.plan {
            Plan::Tree(tree) => tree.best(),
            Plan::Flat { cursor, others } => {
                let mut fresh = ledger.fewest_from(*cursor);
                let fresh = fresh.find(|(_, slot)| {
                    !failing.contains_key(slot)
                        && ledger.tasks_of(&needs.service, *slot) == 0
                        && passes(needs, ledger, *slot)
                });
                match fresh {
                    Some(place) => {
                        *cursor = place;
                        Some(place.1)
                    }
                    None => {
                        *cursor = (u64::MAX, Slot::MAX);
                        let others =
                            others.get_or_insert_with(|| busy_nodes(ledger, needs, failing));
                        others.first().map(|score| score.3)
                    }
                }
            }
        }
    }

    /// Takes note of a task that was placed and counted on a node.
    pub(super) fn placed(&mut self, ledger: &Ledger, needs: &TaskNeeds, slot: Slot) {
        let score = score(ledger, needs, &self.failing, slot);
        let before = (score.0, score.1 - 1, score.2 - 1, slot);
        let stays = passes(needs, ledger, slot);
        match &mut self.plan {
            Plan::Tree(tree) => tree.placed(slot, before, stays.then_some(score)),
            Plan::Flat { others, .. } => {
                if let Some(others) = others {
                    others.remove(&before);
                    if stays {
                        others.insert(score);
                    }
                }
            }
        }
    }
}

/// The nodes that have tasks of the service or keep failing, as far as they can run one more.
fn busy_nodes(
    ledger: &Ledger,
    needs: &TaskNeeds,
    failing: &BTreeMap<Slot, usize>,
) -> BTreeSet<Score> {
    let with_tasks = ledger.nodes_of(&needs.service).map(|(slot, _)| slot);
    let slots: BTreeSet<Slot> = with_tasks.chain(failing.keys().copied()).collect();
    let passing = slots
        .into_iter()
        .filter(|slot| passes(needs, ledger, *slot));
    passing
        .map(|slot| score(ledger, needs, failing, slot))
        .collect()
}

fn score(ledger: &Ledger, needs: &TaskNeeds, failing: &BTreeMap<Slot, usize>, slot: Slot) -> Score {
    let failures = failing.get(&slot).copied().unwrap_or(0);
    let tasks = ledger.tasks_of(&needs.service, slot);
    (failures, tasks, ledger.info(slot).active, slot)
}

/// The nodes by the values of their preferred attributes, outermost first.
struct Tree {
    leaves: Vec<Leaf>,
    /// The leaf of each node.
    homes: Vec<u32>,
    /// Tasks of the service in each branch, at any depth.
    tasks: Vec<u64>,
}

/// The nodes with the same values.
struct Leaf {
    /// Its branches, outermost first, as places in [`Tree::tasks`].
    branches: Vec<usize>,
    /// Those that can run one more task, best first.
    nodes: BTreeSet<Score>,
}

impl Tree {
    fn of(ledger: &Ledger, needs: &TaskNeeds, failing: &BTreeMap<Slot, usize>) -> Self {
        let attributes = needs.spread.iter();
        let attributes: Vec<_> = attributes
            .filter_map(|key| NodeAttribute::parse(key))
            .collect();
        let mut tree = Self {
            leaves: Vec::new(),
            homes: Vec::new(),
            tasks: Vec::new(),
        };
        let mut branches: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        let mut homes: BTreeMap<Vec<String>, u32> = BTreeMap::new();
        for (slot, info) in ledger.iter() {
            let values = attributes.iter();
            let path: Vec<String> = values.map(|attribute| attribute.of(&info.node)).collect();
            let home = *homes.entry(path.clone()).or_insert_with(|| {
                let prefixes = (1..=path.len()).map(|depth| path[..depth].to_vec());
                let branches = prefixes.map(|prefix| {
                    *branches.entry(prefix).or_insert_with(|| {
                        tree.tasks.push(0);
                        tree.tasks.len() - 1
                    })
                });
                let branches = branches.collect();
                tree.leaves.push(Leaf {
                    branches,
                    nodes: BTreeSet::new(),
                });
                u32::try_from(tree.leaves.len() - 1).expect("as many as nodes")
            });
            tree.homes.push(home);
            let leaf = &mut tree.leaves[home as usize];
            if passes(needs, ledger, slot) {
                leaf.nodes.insert(score(ledger, needs, failing, slot));
            }
        }
        // Nodes that cannot take more still make their branch fuller.
        for (slot, tasks) in ledger.nodes_of(&needs.service) {
            tree.fill(slot, tasks);
        }
        tree
    }

    fn fill(&mut self, slot: Slot, tasks: u64) {
        let home = self.homes[slot as usize] as usize;
        for branch in &self.leaves[home].branches {
            self.tasks[*branch] += tasks;
        }
    }

    fn best(&self) -> Option<Slot> {
        let open = self.leaves.iter();
        let open = open.filter_map(|leaf| Some((leaf, leaf.nodes.first()?)));
        let best = open.min_by(|(a, best_a), (b, best_b)| {
            let fuller = self.fullness(a).cmp(self.fullness(b));
            fuller.then(best_a.cmp(best_b))
        });
        best.map(|(_, score)| score.3)
    }

    fn fullness<'t>(&'t self, leaf: &'t Leaf) -> impl Iterator<Item = u64> + 't {
        leaf.branches.iter().map(|branch| self.tasks[*branch])
    }

    fn placed(&mut self, slot: Slot, before: Score, after: Option<Score>) {
        self.fill(slot, 1);
        let home = self.homes[slot as usize] as usize;
        let nodes = &mut self.leaves[home].nodes;
        nodes.remove(&before);
        nodes.extend(after);
    }
}
