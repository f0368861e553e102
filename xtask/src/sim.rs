//! Simulated clusters, as many as asked for.

use anyhow::{Context, Result};

use crate::shell;

/// Seeds within which a planted bug must be found.
const GATE_SEEDS: &str = "2000";

/// Builds the simulator.
///
/// In a profile of its own, since thousands of clusters repay a build with optimisation, and with the planted bugs
/// compiled in, which are asleep unless the gate wakes one.
pub(crate) fn build() -> Result<()> {
    let package = ["--package", "shoal-sim", "--features", "planted-bugs"];
    shell::run(
        &shell::cargo(),
        &[&["build", "--profile", "sim"], &package[..]].concat(),
    )
}

/// Hands the simulator, as it is now, these words.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    build()?;
    let sim = shell::target().join("sim/shoal-sim");
    let mut words = words.to_vec();
    if words.contains(&"--gate") && !words.contains(&"--seeds") {
        words.extend(["--seeds", GATE_SEEDS]);
    }
    shell::run(sim.to_str().context("a path that is not UTF-8")?, &words)
}
