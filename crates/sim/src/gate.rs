//! The search for planted bugs: a simulator that finds none of what was put there finds nothing else either.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use shoal_api::planted::{Bug, plant};

use crate::run::{Run, run};

/// What became of a planted bug.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// The bug.
    pub bug: Bug,
    /// The first seed that found it, if one did.
    pub found: Option<Run>,
}

/// What is known so far.
#[derive(Default)]
struct Board {
    found: BTreeMap<Bug, Run>,
    /// Whether a seed finds something without any planted bug, too.
    is_sound: BTreeMap<u64, bool>,
}

/// Tries `most` seeds from `first` on with each of the bugs, and stops at the first that finds it. A seed that finds
/// something without the bug as well has not found the bug.
pub fn hunt(first: u64, most: u64) -> Vec<Hunt> {
    let board = Mutex::new(Board::default());
    let lock = || board.lock().unwrap_or_else(PoisonError::into_inner);
    let bugs = Bug::ALL.len() as u64;
    let next = AtomicU64::new(0);
    // All bugs with one seed, then all that are left with the next: so no thread is left alone with a hard one.
    let work = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (seed, bug) = (first + number / bugs, Bug::ALL[(number % bugs) as usize]);
        if seed >= first + most {
            return;
        }
        let is_found = |board: &Board| board.found.get(&bug).is_some_and(|run| run.seed < seed);
        if is_found(&lock()) {
            continue;
        }
        plant(Some(bug));
        let found = run(seed, false);
        plant(None);
        if !found.failed() {
            continue;
        }
        let known = lock().is_sound.get(&seed).copied();
        let is_sound = known.unwrap_or_else(|| !run(seed, false).failed());
        let mut board = lock();
        board.is_sound.insert(seed, is_sound);
        if is_sound && !is_found(&board) {
            board.found.insert(bug, found);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
    let all = Bug::ALL.iter().map(|bug| Hunt {
        bug: *bug,
        found: board.found.remove(bug),
    });
    all.collect()
}
