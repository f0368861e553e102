//! Starting containers, against docker.

use anyhow::Result;

use super::{
    Bench, Pair,
    docker::{IMAGE, Sides},
};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "run",
    about: "`run --rm IMAGE true` against docker",
    run,
}];

fn run(bench: &Bench) -> Result<()> {
    Sides::up(bench)?.pair("run --rm IMAGE true", 20, |side| {
        side(&["run", "--rm", IMAGE, "true"]).map(drop)
    })
}
