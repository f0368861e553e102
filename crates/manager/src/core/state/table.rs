//! An ordered map whose copies are cheap: the shape in which the replicated state is kept.

use std::{borrow::Borrow, sync::Arc};

/// Entries per chunk at most; a chunk is what a change after a copy must duplicate.
const CHUNK_ENTRIES_MAX: usize = 64;

/// Chunks have room for a multiple of so many entries: few sizes leave few holes in the heap that nothing fits into.
const CHUNK_GROWTH: usize = 8;

/// Chunks per branch at most; the list of them is copied with the chunk, as is that of the branches.
const BRANCH_CHUNKS_MAX: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;
type Branch<K, V> = Arc<Vec<Chunk<K, V>>>;

/// A sorted map in chunks that copies share until one of them changes a chunk.
///
/// Copying costs nothing; the first change after a copy duplicates one chunk and the lists that lead to it, which are short
/// however long the table is. That is what lets every batch be tried on a copy, every control loop plan on a scratch state,
/// and every reader hold a snapshot.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    /// Chunks and branches are never empty; keys ascend within and across them.
    branches: Arc<Vec<Branch<K, V>>>,
    len: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            branches: Arc::new(Vec::new()),
            len: 0,
        }
    }
}

/// Room of a chunk for so many entries.
fn room_for(entries: usize) -> usize {
    entries.next_multiple_of(CHUNK_GROWTH)
}

/// The chunk for this table alone, copied with room for one more if others share it.
fn own<K: Clone, V: Clone>(chunk: &mut Chunk<K, V>) -> &mut Vec<(K, V)> {
    if Arc::get_mut(chunk).is_none() {
        let mut copy = Vec::with_capacity(room_for(chunk.len() + 1));
        copy.extend_from_slice(chunk);
        *chunk = Arc::new(copy);
    }
    Arc::make_mut(chunk)
}

fn first_of<K, V>(branch: &Branch<K, V>) -> &K {
    &branch[0][0].0
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (branch, chunk, at) = self.place_of(key)?;
        Some(&self.branches[branch][chunk][at].1)
    }

    /// The value of a key, to be changed; it becomes this table's own.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (branch, chunk, at) = self.place_of(key)?;
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.branches)[branch]);
        Some(&mut own(&mut branch[chunk])[at].1)
    }

    /// Whether there is an entry of this key.
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets the value of a key and returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let branches = Arc::make_mut(&mut self.branches);
        if branches.is_empty() {
            branches.push(Arc::new(vec![Arc::new(vec![(key, value)])]));
            self.len = 1;
            return None;
        }
        let on = branches.partition_point(|branch| *first_of(branch) <= key);
        let on = on.saturating_sub(1);
        let branch = Arc::make_mut(&mut branches[on]);
        let place = branch.partition_point(|chunk| chunk[0].0 <= key);
        let place = place.saturating_sub(1);
        let chunk = own(&mut branch[place]);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                if chunk.len() == chunk.capacity() {
                    // Doubling would leave half of all chunks empty.
                    chunk.reserve_exact(room_for(chunk.len() + 1) - chunk.len());
                }
                chunk.insert(at, (key, value));
                self.len += 1;
                if chunk.len() > CHUNK_ENTRIES_MAX {
                    let upper = chunk.split_off(chunk.len() / 2);
                    chunk.shrink_to_fit();
                    branch.insert(place + 1, Arc::new(upper));
                }
                if branch.len() > BRANCH_CHUNKS_MAX {
                    let upper = branch.split_off(branch.len() / 2);
                    branches.insert(on + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    /// Removes a key and returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (on, place, at) = self.place_of(key)?;
        let branches = Arc::make_mut(&mut self.branches);
        let branch = Arc::make_mut(&mut branches[on]);
        let chunk = Arc::make_mut(&mut branch[place]);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            branch.remove(place);
        }
        if branch.is_empty() {
            branches.remove(on);
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let chunks = self.branches.iter().flat_map(|branch| branch.iter());
        let entries = chunks.flat_map(|chunk| chunk.iter());
        entries.map(|(k, v)| (k, v))
    }

    /// All keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(k, _)| k)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, v)| v)
    }

    /// The entries from the first key that is not `before` on; `before` must hold for a prefix of the keys.
    pub fn iter_from(&self, before: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &V)> {
        let is_over = |chunk: &Chunk<K, V>| chunk.last().is_some_and(|(k, _)| before(k));
        let branches = self.branches.as_slice();
        let on = branches.partition_point(|branch| branch.last().is_some_and(is_over));
        let (chunks, rest) = match branches[on..].split_first() {
            Some((branch, rest)) => (&branch[branch.partition_point(is_over)..], rest),
            None => (&[][..], &[][..]),
        };
        let skip = chunks
            .first()
            .map_or(0, |chunk| chunk.partition_point(|(k, _)| before(k)));
        let rest = rest.iter().flat_map(|branch| branch.iter());
        let entries = chunks.iter().chain(rest).flat_map(|chunk| chunk.iter());
        entries.skip(skip).map(|(k, v)| (k, v))
    }

    /// The greatest entry that is still `before`; `before` must hold for a prefix of the keys.
    pub fn last_before(&self, before: impl Fn(&K) -> bool) -> Option<(&K, &V)> {
        let branches = &self.branches;
        let on = branches.partition_point(|branch| before(first_of(branch)));
        let branch = &branches[on.checked_sub(1)?];
        let place = branch.partition_point(|chunk| before(&chunk[0].0));
        let chunk = &branch[place.checked_sub(1)?];
        let at = chunk.partition_point(|(k, _)| before(k)).checked_sub(1)?;
        chunk.get(at).map(|(k, v)| (k, v))
    }

    /// Branch, chunk in it and entry in that, of a key that is there.
    fn place_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(usize, usize, usize)>
    where
        K: Borrow<Q>,
    {
        let branches = &self.branches;
        let on = branches.partition_point(|branch| first_of(branch).borrow() <= key);
        let on = on.checked_sub(1)?;
        let branch = &branches[on];
        let place = branch.partition_point(|chunk| chunk[0].0.borrow() <= key);
        let place = place.checked_sub(1)?;
        let at = branch[place].binary_search_by(|(k, _)| k.borrow().cmp(key));
        Some((on, place, at.ok()?))
    }
}

impl<K: Ord + Clone + PartialEq, V: Clone + PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

/// Tables by a name that their entries have in common, which then costs each of them nothing. None of them is empty.
#[derive(Debug, Clone)]
pub struct Groups<G, K, V>(Table<G, Table<K, V>>);

impl<G, K, V> Default for Groups<G, K, V> {
    fn default() -> Self {
        Self(Table::default())
    }
}

impl<G: Ord + Clone, K: Ord + Clone, V: Clone> Groups<G, K, V> {
    /// All tables by name.
    pub fn tables(&self) -> &Table<G, Table<K, V>> {
        &self.0
    }

    /// The entries of this name.
    pub fn of<'s, Q: Ord + ?Sized>(
        &'s self,
        name: &Q,
    ) -> impl DoubleEndedIterator<Item = (&'s K, &'s V)> + use<'s, G, K, V, Q>
    where
        G: Borrow<Q>,
    {
        self.0.get(name).into_iter().flat_map(Table::iter)
    }

    /// Sets the value of a key among those of this name.
    pub fn insert(&mut self, name: G, key: K, value: V) {
        match self.0.get_mut(&name) {
            Some(table) => drop(table.insert(key, value)),
            None => {
                let mut table = Table::default();
                table.insert(key, value);
                self.0.insert(name, table);
            }
        }
    }

    /// Removes a key from those of this name.
    pub fn remove<Q: Ord + ?Sized>(&mut self, name: &Q, key: &K)
    where
        G: Borrow<Q>,
    {
        if let Some(table) = self.0.get_mut(name) {
            table.remove(key);
            if table.is_empty() {
                self.0.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_is_an_ordered_map(steps in prop::collection::vec((0u16..400, prop::option::of(0u8..9)), 0..1500)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (key, value) in steps {
                let copy = table.clone();
                match value {
                    Some(value) => prop_assert_eq!(table.insert(key, value), map.insert(key, value)),
                    None => prop_assert_eq!(table.remove(&key), map.remove(&key)),
                }
                drop(copy);
                prop_assert_eq!(table.len(), map.len());
            }
            prop_assert!(table.iter().eq(map.iter()));
            for key in 0..400 {
                prop_assert_eq!(table.get(&key), map.get(&key));
                prop_assert!(table.iter_from(|k| *k < key).eq(map.range(key..)));
                prop_assert_eq!(table.last_before(|k| *k < key), map.range(..key).next_back());
            }
        }

        #[test]
        fn a_long_table_is_an_ordered_map(stride in 1u32..30_000, count in 5_000u32..5_500) {
            // All keys once, in an order that jumps about.
            let keys = (0..count).map(|n| n.wrapping_mul(stride * 2 + 1) % 65_536);
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for key in keys.clone() {
                prop_assert_eq!(table.insert(key, key), map.insert(key, key));
            }
            prop_assert!(table.branches.len() > 1);
            prop_assert!(table.iter().eq(map.iter()) && table.iter().rev().eq(map.iter().rev()));
            for key in keys.step_by(97) {
                prop_assert!(table.iter_from(|k| *k < key).take(99).eq(map.range(key..).take(99)));
                prop_assert_eq!(table.last_before(|k| *k < key), map.range(..key).next_back());
                prop_assert_eq!(table.get_mut(&key), map.get_mut(&key));
                prop_assert_eq!(table.remove(&key), map.remove(&key));
            }
            prop_assert!(table.iter().eq(map.iter()) && table.len() == map.len());
        }

        #[test]
        fn groups_are_tables_by_name(steps in prop::collection::vec((0u8..5, 0u8..30, prop::option::of(0u8..9)), 0..300)) {
            let (mut groups, mut map) = (Groups::default(), BTreeMap::new());
            for (name, key, value) in steps {
                match value {
                    Some(value) => {
                        groups.insert(name, key, value);
                        map.insert((name, key), value);
                    }
                    None => {
                        groups.remove(&name, &key);
                        map.remove(&(name, key));
                    }
                }
            }
            for name in 0..5 {
                let of = map.range((name, 0)..=(name, u8::MAX)).map(|((_, key), value)| (key, value));
                prop_assert!(groups.of(&name).eq(of));
            }
            prop_assert!(groups.tables().values().all(|table| !table.is_empty()));
        }

        #[test]
        fn a_copy_does_not_see_later_changes(keys in prop::collection::btree_set(0u16..999, 1..300)) {
            let mut table = Table::default();
            for key in &keys {
                table.insert(*key, *key);
            }
            let copy = table.clone();
            for key in &keys {
                table.remove(key);
            }
            prop_assert!(table.is_empty());
            prop_assert!(copy.keys().eq(keys.iter()));
        }
    }
}
