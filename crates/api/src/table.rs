//! An ordered map whose copies are cheap: the shape in which the replicated state and the network views are kept.

use std::{borrow::Borrow, collections::BTreeMap, fmt, ops::Index, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries per chunk at most; a chunk is what a change after a copy must duplicate.
const CHUNK_ENTRIES_MAX: usize = 64;

/// Chunks have room for a multiple of so many entries: few sizes leave few holes in the heap that nothing fits into.
const CHUNK_GROWTH: usize = 8;

/// Chunks per branch at most; the list of them is copied with the chunk, as is that of the branches.
const BRANCH_CHUNKS_MAX: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;
/// Chunks, each with its first key beside it: a search reads one list after the other, and of the chunks but one.
type Branch<K, V> = Arc<Vec<(K, Chunk<K, V>)>>;

/// A sorted map in chunks that copies share until one of them changes a chunk.
///
/// Copying costs nothing; the first change after a copy duplicates one chunk and the lists that lead to it, which are short
/// however long the table is. That is what lets every batch be tried on a copy, every control loop plan on a scratch state,
/// and every reader hold a snapshot.
#[derive(Clone)]
pub struct Table<K, V> {
    /// Each with its first key. Chunks and branches are never empty; keys ascend within and across them.
    branches: Arc<Vec<(K, Branch<K, V>)>>,
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

/// Keeps the key beside a list that of its first entry.
fn set_first<K: Ord + Clone>(beside: &mut K, first: &K) {
    if beside != first {
        beside.clone_from(first);
    }
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
        Some(&self.branches[branch].1[chunk].1[at].1)
    }

    /// The value of a key, to be changed; it becomes this table's own.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (branch, chunk, at) = self.place_of(key)?;
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.branches)[branch].1);
        Some(&mut own(&mut branch[chunk].1)[at].1)
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        *self = Self::default();
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
            let chunk = Arc::new(vec![(key.clone(), value)]);
            branches.push((key.clone(), Arc::new(vec![(key, chunk)])));
            self.len = 1;
            return None;
        }
        let on = branches.partition_point(|(first, _)| *first <= key);
        let on = on.saturating_sub(1);
        let (branch_first, branch) = &mut branches[on];
        let branch = Arc::make_mut(branch);
        let place = branch.partition_point(|(first, _)| *first <= key);
        let place = place.saturating_sub(1);
        let (chunk_first, chunk) = &mut branch[place];
        let chunk = own(chunk);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                if chunk.len() == chunk.capacity() {
                    // Doubling would leave half of all chunks empty.
                    chunk.reserve_exact(room_for(chunk.len() + 1) - chunk.len());
                }
                chunk.insert(at, (key, value));
                self.len += 1;
                set_first(chunk_first, &chunk[0].0);
                if chunk.len() > CHUNK_ENTRIES_MAX {
                    let upper = chunk.split_off(chunk.len() / 2);
                    chunk.shrink_to_fit();
                    branch.insert(place + 1, (upper[0].0.clone(), Arc::new(upper)));
                }
                set_first(branch_first, &branch[0].0);
                if branch.len() > BRANCH_CHUNKS_MAX {
                    let upper = branch.split_off(branch.len() / 2);
                    branches.insert(on + 1, (upper[0].0.clone(), Arc::new(upper)));
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
        let (branch_first, branch) = &mut branches[on];
        let branch = Arc::make_mut(branch);
        let (chunk_first, chunk) = &mut branch[place];
        let chunk = Arc::make_mut(chunk);
        let (_, value) = chunk.remove(at);
        match chunk.first() {
            Some((first, _)) => set_first(chunk_first, first),
            None => drop(branch.remove(place)),
        }
        match branch.first() {
            Some((first, _)) => set_first(branch_first, first),
            None => drop(branches.remove(on)),
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let chunks = self.branches.iter().flat_map(|(_, branch)| branch.iter());
        let entries = chunks.flat_map(|(_, chunk)| chunk.iter());
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

    /// All values in the order of their keys, to be changed; they become this table's own.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let branches = Arc::make_mut(&mut self.branches).iter_mut();
        let chunks = branches.flat_map(|(_, branch)| Arc::make_mut(branch).iter_mut());
        chunks.flat_map(|(_, chunk)| own(chunk).iter_mut().map(|(_, value)| value))
    }

    /// The entries from the first key that is not `before` on; `before` must hold for a prefix of the keys.
    pub fn iter_from(&self, before: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &V)> {
        // The last list that begins before it may hold what is not, and those after it hold nothing else.
        let branches = self.branches.as_slice();
        let on = branches.partition_point(|(first, _)| before(first));
        let (chunks, rest) = match branches[on.saturating_sub(1)..].split_first() {
            Some(((_, branch), rest)) => {
                let place = branch.partition_point(|(first, _)| before(first));
                (&branch[place.saturating_sub(1)..], rest)
            }
            None => (&[][..], &[][..]),
        };
        let skip = chunks
            .first()
            .map_or(0, |(_, chunk)| chunk.partition_point(|(k, _)| before(k)));
        let rest = rest.iter().flat_map(|(_, branch)| branch.iter());
        let entries = chunks
            .iter()
            .chain(rest)
            .flat_map(|(_, chunk)| chunk.iter());
        entries.skip(skip).map(|(k, v)| (k, v))
    }

    /// The greatest entry that is still `before`; `before` must hold for a prefix of the keys.
    pub fn last_before(&self, before: impl Fn(&K) -> bool) -> Option<(&K, &V)> {
        let branches = &self.branches;
        let on = branches.partition_point(|(first, _)| before(first));
        let (_, branch) = &branches[on.checked_sub(1)?];
        let place = branch.partition_point(|(first, _)| before(first));
        let (_, chunk) = &branch[place.checked_sub(1)?];
        let at = chunk.partition_point(|(k, _)| before(k)).checked_sub(1)?;
        chunk.get(at).map(|(k, v)| (k, v))
    }

    /// Branch, chunk in it and entry in that, of a key that is there.
    fn place_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(usize, usize, usize)>
    where
        K: Borrow<Q>,
    {
        let branches = &self.branches;
        let on = branches.partition_point(|(first, _)| first.borrow() <= key);
        let on = on.checked_sub(1)?;
        let (_, branch) = &branches[on];
        let place = branch.partition_point(|(first, _)| first.borrow() <= key);
        let place = place.checked_sub(1)?;
        let (_, chunk) = &branch[place];
        let at = chunk.binary_search_by(|(k, _)| k.borrow().cmp(key));
        Some((on, place, at.ok()?))
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Table<K, V> {
    /// The entries in which another table differs from this one, in order of their keys: as they are here, and there.
    ///
    /// Where one was made from the other by a few changes, this takes time in proportion to those: what both share is
    /// passed over.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = Difference<'a, K, V>> {
        let (mut here, mut there) = (Cursor::of(self), Cursor::of(other));
        std::iter::from_fn(move || {
            loop {
                if here.pass_shared(&mut there) {
                    continue;
                }
                let (was, is) = (here.entry(), there.entry());
                match (was, is) {
                    (Some((key, was)), Some((same, is))) if key == same => {
                        here.advance();
                        there.advance();
                        if was != is {
                            return Some((key, Some(was), Some(is)));
                        }
                    }
                    (Some((key, was)), is) if is.is_none_or(|(other, _)| key < other) => {
                        here.advance();
                        return Some((key, Some(was), None));
                    }
                    (_, Some((key, is))) => {
                        there.advance();
                        return Some((key, None, Some(is)));
                    }
                    _ => return None,
                }
            }
        })
    }

    /// The same entries as in `other`, sharing with this table all that both have in common.
    #[must_use]
    pub fn moved_to(&self, other: &Self) -> Self {
        let mut moved = self.clone();
        for (key, _, is) in self.differences(other) {
            match is {
                Some(value) => drop(moved.insert(key.clone(), value.clone())),
                None => drop(moved.remove(key)),
            }
        }
        moved
    }
}

/// An entry that two tables do not have in common, as it is in each.
pub type Difference<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// A place in a table.
struct Cursor<'a, K, V> {
    branches: &'a [(K, Branch<K, V>)],
    /// Chunk in the first of the branches, and entry in that.
    chunk: usize,
    entry: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn of(table: &'a Table<K, V>) -> Self {
        Self {
            branches: &table.branches,
            chunk: 0,
            entry: 0,
        }
    }

    fn entry(&self) -> Option<(&'a K, &'a V)> {
        let (_, branch) = self.branches.first()?;
        let (key, value) = &branch[self.chunk].1[self.entry];
        Some((key, value))
    }

    fn advance(&mut self) {
        self.entry += 1;
        let branch = self.branches.first();
        if branch.is_some_and(|(_, branch)| self.entry == branch[self.chunk].1.len()) {
            self.pass_chunk();
        }
    }

    fn pass_chunk(&mut self) {
        (self.chunk, self.entry) = (self.chunk + 1, 0);
        let branch = self.branches.first();
        if branch.is_some_and(|(_, branch)| self.chunk == branch.len()) {
            self.pass_branch();
        }
    }

    fn pass_branch(&mut self) {
        self.branches = self.branches.get(1..).unwrap_or_default();
        (self.chunk, self.entry) = (0, 0);
    }

    /// Passes over what begins here and is the same place in memory in both; whether there was any.
    fn pass_shared(&mut self, other: &mut Self) -> bool {
        let (Some((_, here)), Some((_, there))) = (self.branches.first(), other.branches.first())
        else {
            return false;
        };
        if self.entry != 0 || other.entry != 0 {
            return false;
        }
        if self.chunk == 0 && other.chunk == 0 && Arc::ptr_eq(here, there) {
            self.pass_branch();
            other.pass_branch();
            return true;
        }
        let is_shared = Arc::ptr_eq(&here[self.chunk].1, &there[other.chunk].1);
        if is_shared {
            self.pass_chunk();
            other.pass_chunk();
        }
        is_shared
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let is_shared = Arc::ptr_eq(&self.branches, &other.branches);
        is_shared || (self.len == other.len && self.differences(other).next().is_none())
    }
}

impl<K: Ord + Clone, V: Clone + Eq> Eq for Table<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = self.branches.iter().flat_map(|(_, branch)| branch.iter());
        let entries = chunks.flat_map(|(_, chunk)| chunk.iter());
        f.debug_map().entries(entries.map(|(k, v)| (k, v))).finish()
    }
}

impl<'a, K: Ord + Clone, V: Clone> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Table<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for Table<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        Self::from_iter(entries)
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut table = Self::default();
        table.extend(entries);
        table
    }
}

impl<K: Ord + Clone + Borrow<Q>, Q: Ord + ?Sized, V: Clone> Index<&Q> for Table<K, V> {
    type Output = V;
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is in the table")
    }
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de>
    for Table<K, V>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from_iter)
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
        fn differences_lead_from_one_table_to_another(
            keys in prop::collection::btree_map(0u16..9_000, 0u8..3, 0..6_000),
            steps in prop::collection::vec((0u16..9_000, prop::option::of(0u8..3)), 0..400),
        ) {
            let before: Table<u16, u8> = keys.iter().map(|(key, value)| (*key, *value)).collect();
            let (mut after, mut map) = (before.clone(), keys.clone());
            for (key, value) in steps {
                match value {
                    Some(value) => drop((after.insert(key, value), map.insert(key, value))),
                    None => drop((after.remove(&key), map.remove(&key))),
                }
            }
            let all: std::collections::BTreeSet<&u16> = keys.keys().chain(map.keys()).collect();
            let differ = all.into_iter().map(|key| (key, keys.get(key), map.get(key)));
            let differ: Vec<_> = differ.filter(|(_, was, is)| was != is).collect();
            prop_assert_eq!(before.differences(&after).collect::<Vec<_>>(), differ.clone());
            prop_assert_eq!(before == after, differ.is_empty());
            // Made apart, so that nothing is shared.
            let apart: Table<u16, u8> = map.clone().into_iter().collect();
            prop_assert_eq!(before.differences(&apart).collect::<Vec<_>>(), differ);
            prop_assert!(apart == after);
            let moved = before.moved_to(&apart);
            prop_assert!(moved.iter().eq(apart.iter()));
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

    #[test]
    fn what_two_tables_share_is_not_looked_at() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COMPARED: AtomicUsize = AtomicUsize::new(0);
        #[derive(Clone)]
        struct Counted(u32);
        impl PartialEq for Counted {
            fn eq(&self, other: &Self) -> bool {
                COMPARED.fetch_add(1, Ordering::Relaxed);
                self.0 == other.0
            }
        }
        let before: Table<u32, Counted> = (0..100_000).map(|n| (n, Counted(n))).collect();
        let mut after = before.clone();
        after.insert(50_000, Counted(0));
        after.remove(&70_000);
        after.insert(200_000, Counted(0));
        assert_eq!(before.differences(&after).count(), 3);
        let compared = COMPARED.load(Ordering::Relaxed);
        assert!(
            compared <= 3 * CHUNK_ENTRIES_MAX,
            "{compared} values were compared"
        );
    }
}
