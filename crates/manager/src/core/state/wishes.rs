//! Wishes of users that were granted lately: one that is passed on again, since nobody knows what became of it, is found
//! here and not granted twice.

use shoal_api::{
    object::{Granted, ObjectKey, Wish},
    planted::{Bug, planted},
};

use super::{LogIndex, Rejected, State, Table};

/// Wishes that are remembered. A manager asks again for as long as a user waits; one that comes later than that is refused,
/// never granted twice.
const WISHES_MAX: usize = 8_192;

/// The wishes that are remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    by_id: Table<u128, (LogIndex, ObjectKey)>,
    by_index: Table<LogIndex, u128>,
    forgotten: LogIndex,
}

impl Wishes {
    fn get(&self, id: u128) -> Option<&(LogIndex, ObjectKey)> {
        let granted = self.by_id.get(&id);
        granted.filter(|_| !planted(Bug::WishGrantedTwice))
    }

    /// Refuses a wish that was granted before, or may have been.
    pub(super) fn check(&self, wish: &Wish) -> Result<(), Rejected> {
        if let Some((_, about)) = self.get(wish.id) {
            let about = about.clone();
            return Err(Rejected::Granted { about });
        }
        match wish.since {
            Some(since) if since < self.forgotten => Err(Rejected::Forgotten),
            _ => Ok(()),
        }
    }

    /// Remembers a wish, and forgets the oldest one where there are too many.
    pub(super) fn remember(&mut self, index: LogIndex, id: u128, about: ObjectKey) {
        self.by_id.insert(id, (index, about));
        self.by_index.insert(index, id);
        if self.by_index.len() > WISHES_MAX {
            let oldest = self.by_index.iter().next();
            let (oldest, id) = oldest.map(|(at, id)| (*at, *id)).expect("there are many");
            self.by_index.remove(&oldest);
            self.by_id.remove(&id);
            self.forgotten = oldest;
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.forgotten == other.forgotten
            && self.by_id.iter().eq(other.by_id.iter())
            && self.by_index.iter().eq(other.by_index.iter())
    }
}

impl State {
    /// At which index a wish was granted, and what it was about, if it is remembered.
    pub fn granted(&self, wish: u128) -> Option<(LogIndex, &ObjectKey)> {
        let (index, about) = self.wishes.get(wish)?;
        Some((*index, about))
    }

    /// Whether a wish was granted and is remembered, whatever is made of that.
    pub fn has_granted(&self, wish: u128) -> bool {
        self.wishes.by_id.contains(&wish)
    }

    /// The wishes that are remembered, for a snapshot of the log.
    pub fn wishes(&self) -> shoal_api::object::Wishes {
        let granted = |(index, id): (&LogIndex, &u128)| {
            let (_, about) = self.wishes.by_id.get(id)?;
            Some(Granted {
                index: *index,
                id: *id,
                about: about.clone(),
            })
        };
        shoal_api::object::Wishes {
            forgotten: self.wishes.forgotten,
            granted: self.wishes.by_index.iter().filter_map(granted).collect(),
        }
    }

    /// Remembers the wishes of a snapshot, and no others.
    pub fn set_wishes(&mut self, wishes: shoal_api::object::Wishes) {
        self.wishes = Wishes {
            forgotten: wishes.forgotten,
            ..Wishes::default()
        };
        for Granted { index, id, about } in wishes.granted {
            self.wishes.remember(index, id, about);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(id: u128, since: Option<LogIndex>) -> Wish {
        let about = ObjectKey::Cluster;
        Wish { id, about, since }
    }

    #[test]
    fn a_wish_is_granted_once_and_never_when_nobody_knows() {
        let mut state = State::default();
        let count = WISHES_MAX as u64 + 10;
        for index in 1..=count {
            let wish = wish(index.into(), None);
            assert_eq!(state.wishes.check(&wish), Ok(()));
            state.wishes.remember(index, wish.id, wish.about);
        }
        let (first, kept) = (1, 11);
        assert_eq!(state.granted(first), None);
        assert_eq!(state.granted(kept), Some((11, &ObjectKey::Cluster)));
        let granted = Rejected::Granted {
            about: ObjectKey::Cluster,
        };
        assert_eq!(state.wishes.check(&wish(kept, Some(10))), Err(granted));
        // It may have been the first one, which is forgotten.
        let check = |since| state.wishes.check(&wish(first, Some(since)));
        assert_eq!(check(0), Err(Rejected::Forgotten));
        assert_eq!(check(9), Err(Rejected::Forgotten));
        // It was made when that was over.
        assert_eq!(check(10), Ok(()));

        let mut restored = State::default();
        restored.set_wishes(state.wishes());
        assert!(restored.wishes.is_same(&state.wishes));
        assert_eq!(restored.wishes.by_index.len(), WISHES_MAX);
    }
}
