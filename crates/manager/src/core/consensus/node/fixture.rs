//! What tests of the machine begin with.

use super::{FrozenState, Limits, StateMachine};
use crate::core::state::Rejected;

/// A state that does not matter.
pub(super) struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: u64, _: &[u8]) -> Result<(), Rejected> {
        Ok(())
    }
    fn freeze(&self) -> FrozenState {
        Box::new(|_| {})
    }
    fn restore(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Numbers that are small enough for a test.
pub(super) fn limits() -> Limits {
    Limits {
        election_ticks: 10,
        snapshot_entries: 100,
        snapshot_bytes: 1 << 20,
        snapshot_growth_percent: 0,
        kept_entries: 10,
    }
}
