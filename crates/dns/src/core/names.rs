//! Names of a network with what is known of each, found in the same time however many there are.
//!
//! With more names than a processor's caches hold, what a question costs is the places of memory that it reads one after the
//! other: the index, and an entry in which the name and its first records lie themselves.

use super::short::Bytes;

/// A table that is made once and never changes: entries, and an index by hash with open addressing.
#[derive(Debug, Clone)]
pub(super) struct Names<T> {
    entries: Vec<(Bytes, T)>,
    /// At most half of it is in use.
    index: Box<[Slot]>,
}

/// A place of the index. Most names that are not meant are told by their hash alone, without fetching them from memory.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Number of an entry plus one; 0 where there is none.
    number: u32,
    /// The part of its hash that does not say where it is.
    tag: u32,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self::new(std::iter::empty())
    }
}

impl<T> Names<T> {
    /// A table of these names, as labels in lower case, each of which comes once.
    pub(super) fn new(entries: impl Iterator<Item = (Box<[u8]>, T)>) -> Self {
        let entries: Vec<_> = entries
            .map(|(name, value)| (Bytes::from(&name[..]), value))
            .collect();
        let size = (entries.len() * 2).next_power_of_two();
        let mut index = vec![Slot::default(); size].into_boxed_slice();
        for (number, (name, _)) in (1u32..).zip(&entries) {
            let (mut at, tag) = place(name, size);
            while index[at].number != 0 {
                at = (at + 1) & (size - 1);
            }
            index[at] = Slot { number, tag };
        }
        Self { entries, index }
    }

    /// What is known of a name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&T> {
        let (mut at, tag) = place(name, self.index.len());
        loop {
            let slot = self.index[at];
            let number = slot.number.checked_sub(1)?;
            if slot.tag == tag {
                let (held, value) = &self.entries[number as usize];
                if **held == *name {
                    return Some(value);
                }
            }
            at = (at + 1) & (self.index.len() - 1);
        }
    }
}

/// Where in an index of a power of two to look first, and the rest of the hash: FNV-1a, its upper half folded in.
fn place(name: &[u8], size: usize) -> (usize, u32) {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let at = (hash ^ (hash >> 32)) as usize & (size - 1);
    (at, (hash >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        let name = |number: usize| format!("web{number}").into_bytes().into_boxed_slice();
        for count in [0, 1, 2, 3, 1000] {
            let names = Names::new((0..count).map(|number| (name(number), number)));
            for number in 0..count {
                assert_eq!(names.get(&name(number)), Some(&number));
            }
            assert_eq!(names.get(&name(count)), None);
        }
    }
}
