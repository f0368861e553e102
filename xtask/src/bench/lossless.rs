//! Requests lost while a service is updated, drained and scaled: none.

use anyhow::Result;
use shoal_tests::{
    lab::{Place, TestLab},
    lossless,
};

use super::{Bench, Pair};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "lossless",
    about: "requests lost during 20 forced rolling updates, a drain and a scale-down, on a lab of three",
    run: lost,
}];

/// Forced updates, half of them stop-first and half start-first.
const ROUNDS: usize = 20;
/// Tasks on the host that is drained.
const DRAINED: usize = 10;

fn lost(bench: &Bench) -> Result<()> {
    let lab = TestLab::up_in(Place::take(), bench.shoal.clone(), (3, 1), &[])?;
    let told = lossless::story(&lab, ROUNDS, DRAINED)?;
    for (way, asked) in [
        ("virtual address", &told.inside),
        ("published port", &told.outside),
    ] {
        let seen = &asked.seen;
        println!(
            "{way}: {} of {} requests lost in {ROUNDS} updates, a drain and a scale-down; {} took about a second or more",
            seen.failed.len(),
            seen.requests,
            seen.slow.len(),
        );
        for slow in &seen.slow {
            println!("  {slow}");
        }
    }
    told.check()
}
