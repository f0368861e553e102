//! The scheduler alone, without a peer.

use anyhow::Result;

use super::{Bench, Pair};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "scheduler",
    about: "placements per second from 100 to 10,000 nodes, bytes per waiting task",
    run: placements,
}];

fn placements(_: &Bench) -> Result<()> {
    shell::run(&shell::example("scheduler")?.to_string_lossy(), &[])
}
