//! When a voter that hears no leader stands for election: each at its turn, so that no two stand at once and split the votes.

use crate::core::consensus::RaftId;

/// Ticks from the least time without a leader to the first turn. By then the others have given up the leader as well,
/// wherever between two ticks they are; earlier they would not listen (Raft thesis, 4.2.3).
const FIRST_TURN_TICKS: usize = 2;

/// Ticks without a leader after which this voter stands, at least `base` and less than its double. Turns are as far apart
/// as the number of voters allows, and go round from term to term, so that one that cannot win holds up few elections.
pub(super) fn turn(voters: &[RaftId], id: RaftId, term: u64, base: usize) -> usize {
    let count = voters.len().max(1);
    let rank = voters.iter().filter(|voter| **voter < id).count();
    let shift = usize::try_from(mix(term) % count as u64).unwrap_or(0);
    let first = FIRST_TURN_TICKS.min(base.saturating_sub(1));
    let spare = base.saturating_sub(first);
    base + first + (rank + shift) % count * spare / count
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn voters_take_turns() {
        const BASE: usize = 8;
        for count in 1..=6 {
            let voters: Vec<RaftId> = (0..count).map(|n| 10 + 3 * n).collect();
            let mut firsts = BTreeSet::new();
            for term in 1..50 {
                let turns = voters
                    .iter()
                    .map(|id| (turn(&voters, *id, term, BASE), *id));
                let turns: BTreeSet<(usize, RaftId)> = turns.collect();
                let ticks: BTreeSet<usize> = turns.iter().map(|(ticks, _)| *ticks).collect();
                assert_eq!(ticks.len(), voters.len(), "{turns:?}");
                assert!(
                    ticks
                        .iter()
                        .all(|ticks| (BASE + 2..2 * BASE).contains(ticks))
                );
                firsts.insert(turns.first().expect("somebody").1);
            }
            assert_eq!(firsts.len(), voters.len(), "everyone is first at times");
        }
    }

    #[test]
    fn who_is_no_voter_has_a_turn_that_means_nothing() {
        assert!((1..2).contains(&turn(&[], 1, 7, 1)));
        assert!((10..20).contains(&turn(&[1, 2, 3], 9, 7, 10)));
    }
}
