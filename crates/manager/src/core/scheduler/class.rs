//! Nodes that are the same to tasks of the same needs: what does not change with what the nodes carry is looked at once.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::spec::Platform;

use super::{
    constraint::{Constraint, NodeAttribute},
    filter::{TaskNeeds, fits},
    ledger::{NodeInfo, Slot},
};

/// What tasks need of a node whatever it carries, and how they shall be spread.
#[derive(Debug, Clone, PartialEq)]
struct Kind {
    plugins: Vec<String>,
    constraints: Option<Vec<Constraint>>,
    platforms: Vec<Platform>,
    spread: Vec<String>,
}

impl Kind {
    fn of(needs: &TaskNeeds) -> Self {
        Self {
            plugins: needs.plugins.clone(),
            constraints: needs.constraints.clone(),
            platforms: needs.platforms.clone(),
            spread: needs.spread.clone(),
        }
    }
}

/// The nodes that fit tasks of a kind, by the values of their preferred attributes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Class {
    kind: Kind,
    /// Nodes with the same values; one leaf without preferences.
    pub(super) leaves: Vec<Leaf>,
    /// By slot: the leaf of each node, whether it fits or not.
    pub(super) homes: Vec<u32>,
    /// By slot: whether the node fits.
    fits: Vec<bool>,
    /// Branches at any depth.
    pub(super) branches: usize,
}

/// The nodes with the same values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leaf {
    /// The branches that it is on, outermost first, by number.
    pub(super) branches: Vec<usize>,
    /// Its nodes that fit, those with the fewest active tasks first.
    pub(super) order: BTreeSet<(u64, Slot)>,
}

impl Class {
    pub(super) fn of(needs: &TaskNeeds, nodes: &[NodeInfo]) -> Self {
        let attributes = needs.spread.iter();
        let attributes: Vec<_> = attributes
            .filter_map(|key| NodeAttribute::parse(key))
            .collect();
        let mut class = Self {
            kind: Kind::of(needs),
            leaves: Vec::new(),
            homes: Vec::with_capacity(nodes.len()),
            fits: nodes.iter().map(|info| fits(needs, &info.node)).collect(),
            branches: 0,
        };
        let mut branches: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        let mut homes: BTreeMap<Vec<String>, u32> = BTreeMap::new();
        let mut order: Vec<Vec<(u64, Slot)>> = Vec::new();
        for (slot, info) in (0..).zip(nodes) {
            let values = attributes.iter();
            let path: Vec<String> = values.map(|attribute| attribute.of(&info.node)).collect();
            let home = match homes.get(&path) {
                Some(home) => *home,
                None => {
                    let prefixes = (1..=path.len()).map(|depth| path[..depth].to_vec());
                    let numbers = prefixes.map(|prefix| {
                        *branches.entry(prefix).or_insert_with(|| {
                            class.branches += 1;
                            class.branches - 1
                        })
                    });
                    let numbers = numbers.collect();
                    class.leaves.push(Leaf {
                        branches: numbers,
                        order: BTreeSet::new(),
                    });
                    order.push(Vec::new());
                    let home = u32::try_from(order.len() - 1).expect("as many as nodes at most");
                    homes.insert(path, home);
                    home
                }
            };
            class.homes.push(home);
            if class.fits[slot as usize] {
                order[home as usize].push((info.active, slot));
            }
        }
        for (leaf, mut nodes) in class.leaves.iter_mut().zip(order) {
            nodes.sort_unstable();
            leaf.order = nodes.into_iter().collect();
        }
        class
    }

    /// Whether it is that of tasks with these needs.
    pub(super) fn is_of(&self, needs: &TaskNeeds) -> bool {
        self.kind.constraints == needs.constraints
            && self.kind.spread == needs.spread
            && self.kind.platforms == needs.platforms
            && self.kind.plugins == needs.plugins
    }

    /// Takes note that a node carries another number of active tasks.
    pub(super) fn load(&mut self, slot: Slot, before: u64, after: u64) {
        if self.fits[slot as usize] {
            let order = &mut self.leaves[self.homes[slot as usize] as usize].order;
            order.remove(&(before, slot));
            order.insert((after, slot));
        }
    }

    /// Whether a node fits, whatever it carries.
    pub(super) fn holds(&self, slot: Slot) -> bool {
        self.fits[slot as usize]
    }

    /// The same class made anew.
    #[cfg(test)]
    pub(super) fn anew(&self, nodes: &[NodeInfo]) -> Self {
        let Kind {
            plugins,
            constraints,
            platforms,
            spread,
        } = self.kind.clone();
        let needs = TaskNeeds::of_kind(plugins, constraints, platforms, spread);
        Self::of(&needs, nodes)
    }
}
