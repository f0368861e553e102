//! Programming of load balancing, and what it costs a connection, from ten to 10,000 services.

use anyhow::Result;

use super::{Bench, Pair};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "lb",
    about: "services of ten endpoints in the kernel, from 10 to 10,000: all at once, one change, connections",
    run: programming,
}];

fn programming(_: &Bench) -> Result<()> {
    shell::run(&shell::example("lb")?.to_string_lossy(), &[])
}
