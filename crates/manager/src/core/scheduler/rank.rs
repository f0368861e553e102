//! Ranking: which of the nodes that can run a task shall.
//!
//! Branches of the spread preferences first (fewest tasks of the service), then nodes with few recent failures of this
//! very spec, fewest tasks of the service, fewest tasks at all, and the id so that the choice is the same everywhere.
//! Order as in SwarmKit's `nodeLess`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_api::{NodeId, Timestamp};

use super::{
    constraint::NodeAttribute,
    filter::{TaskNeeds, passes},
    nodes::{NodeInfo, Nodes},
};

/// Failures from which on a node is avoided. One less than SwarmKit's `maxFailures`: they are counted among the tasks that
/// are kept, and a slot's history of five has four that are over.
const FAILURES_MIN: usize = 4;
/// How long a failure counts (SwarmKit's `monitorFailures`).
const FAILURES_WINDOW: Duration = Duration::from_secs(5 * 60);

/// Failures that count, tasks of the service, tasks, id: less is better.
type Score = (usize, u64, u64, NodeId);

/// The nodes that can run tasks of one group, best first.
pub(super) struct Ranking {
    attributes: Vec<NodeAttribute>,
    failures: BTreeMap<NodeId, usize>,
    /// All candidates, best first as far as preferences leave a choice.
    order: BTreeSet<Score>,
    /// The score under which a candidate stands in `order`.
    scores: BTreeMap<NodeId, Score>,
    /// With preferences: the values of each candidate, outermost first.
    branches: BTreeMap<NodeId, Vec<String>>,
    /// Tasks of the service per branch, by path.
    branch_tasks: BTreeMap<Vec<String>, u64>,
}

impl Ranking {
    pub(super) fn of(nodes: &Nodes<'_>, needs: &TaskNeeds, now: Timestamp) -> Self {
        let attributes: Vec<_> = needs
            .spread
            .iter()
            .filter_map(|key| NodeAttribute::parse(key))
            .collect();
        let mut ranking = Self {
            attributes,
            failures: BTreeMap::new(),
            order: BTreeSet::new(),
            scores: BTreeMap::new(),
            branches: BTreeMap::new(),
            branch_tasks: BTreeMap::new(),
        };
        for node in nodes.iter() {
            let id = &node.node.id;
            if !ranking.attributes.is_empty() {
                // Nodes that cannot take more still make their branch fuller.
                let path: Vec<_> = ranking
                    .attributes
                    .iter()
                    .map(|attribute| attribute.of(&node.node))
                    .collect();
                let tasks = node.active_of(&needs.service);
                ranking.count_branches(&path, tasks);
                if passes(needs, node) {
                    ranking.branches.insert(id.clone(), path);
                }
            }
            if passes(needs, node) {
                let recent = recent_failures(node, needs, now);
                if recent >= FAILURES_MIN {
                    ranking.failures.insert(id.clone(), recent);
                }
                ranking.rank(node, needs);
            }
        }
        ranking
    }

    /// The best node for the next task.
    pub(super) fn next(&mut self, nodes: &Nodes<'_>, needs: &TaskNeeds) -> Option<NodeId> {
        loop {
            let best = if self.attributes.is_empty() {
                self.order.first().cloned()
            } else {
                self.order
                    .iter()
                    .min_by_key(|score| (self.fullness(&score.3), (*score).clone()))
                    .cloned()
            }?;
            // What was placed meanwhile may have filled it up.
            if nodes.get(&best.3).is_some_and(|node| passes(needs, node)) {
                return Some(best.3);
            }
            self.order.remove(&best);
        }
    }

    /// Takes note of a task that was placed and counted on a node.
    pub(super) fn placed(&mut self, nodes: &Nodes<'_>, needs: &TaskNeeds, id: &NodeId) {
        if let Some(path) = self.branches.get(id).cloned() {
            self.count_branches(&path, 1);
        }
        if let Some(node) = nodes.get(id) {
            self.rank(node, needs);
        }
    }

    fn rank(&mut self, node: &NodeInfo, needs: &TaskNeeds) {
        let score = self.score(node, needs);
        if let Some(before) = self.scores.insert(score.3.clone(), score.clone()) {
            self.order.remove(&before);
        }
        self.order.insert(score);
    }

    fn count_branches(&mut self, path: &[String], tasks: u64) {
        for depth in 1..=path.len() {
            *self.branch_tasks.entry(path[..depth].to_vec()).or_default() += tasks;
        }
    }

    /// Tasks of the service in the branches of a node, outermost first.
    fn fullness(&self, id: &NodeId) -> Vec<u64> {
        let path = self.branches.get(id).map_or(&[][..], Vec::as_slice);
        (1..=path.len())
            .map(|depth| self.branch_tasks.get(&path[..depth]).copied().unwrap_or(0))
            .collect()
    }

    fn score(&self, node: &NodeInfo, needs: &TaskNeeds) -> Score {
        let id = node.node.id.clone();
        let failures = self.failures.get(&id).copied().unwrap_or(0);
        (failures, node.active_of(&needs.service), node.active, id)
    }
}

fn recent_failures(node: &NodeInfo, needs: &TaskNeeds, now: Timestamp) -> usize {
    let key = (needs.service.clone(), needs.spec_version);
    let failures = node.failures.get(&key).map_or(&[][..], Vec::as_slice);
    failures
        .iter()
        .filter(|at| **at > now - FAILURES_WINDOW)
        .count()
}
