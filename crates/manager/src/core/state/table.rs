//! An ordered map whose copies are cheap: the shape in which the replicated state is kept.

use std::{borrow::Borrow, sync::Arc};

/// Entries per chunk at most; a chunk is what a change after a copy must duplicate.
const CHUNK_ENTRIES_MAX: usize = 64;

/// Chunks have room for a multiple of so many entries: few sizes leave few holes in the heap that nothing fits into.
const CHUNK_GROWTH: usize = 8;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// A sorted map in chunks that copies share until one of them changes a chunk.
///
/// Copying costs nothing; the first change after a copy duplicates one chunk and the list of chunks. That is what lets
/// every batch be tried on a copy, every control loop plan on a scratch state, and every reader hold a snapshot.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    /// Never contains an empty chunk; keys ascend within and across chunks.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::new(Vec::new()),
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
        let chunk = self.chunks.get(self.chunk_of(key)?)?;
        let at = chunk.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        Some(&chunk[at].1)
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
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.is_empty() {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        }
        let place = chunks
            .partition_point(|chunk| chunk[0].0 <= key)
            .saturating_sub(1);
        let chunk = own(&mut chunks[place]);
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
                    chunks.insert(place + 1, Arc::new(upper));
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
        let place = self.chunk_of(key)?;
        let at = self.chunks[place]
            .binary_search_by(|(k, _)| k.borrow().cmp(key))
            .ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[place]);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(place);
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .map(|(k, v)| (k, v))
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
        let first = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(|(k, _)| before(k)));
        let skip = self
            .chunks
            .get(first)
            .map_or(0, |chunk| chunk.partition_point(|(k, _)| before(k)));
        self.chunks[first..]
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip(skip)
            .map(|(k, v)| (k, v))
    }

    /// The greatest entry that is still `before`; `before` must hold for a prefix of the keys.
    pub fn last_before(&self, before: impl Fn(&K) -> bool) -> Option<(&K, &V)> {
        let place = self
            .chunks
            .partition_point(|chunk| before(&chunk[0].0))
            .checked_sub(1)?;
        let chunk = &self.chunks[place];
        let at = chunk.partition_point(|(k, _)| before(k)).checked_sub(1)?;
        chunk.get(at).map(|(k, v)| (k, v))
    }

    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        self.chunks
            .partition_point(|chunk| chunk[0].0.borrow() <= key)
            .checked_sub(1)
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
