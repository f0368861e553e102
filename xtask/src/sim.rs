//! Simulated clusters, as many as asked for.

use anyhow::{Context, Result};

use crate::shell;

/// Seeds within which a planted bug must be found.
const MUTANT_SEEDS: &str = "2000";

/// Builds the simulator and hands it these words.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let sim = if words.contains(&"--mutants") {
        let package = ["--package", "shoal-sim", "--features", "planted-bugs"];
        shell::run(&shell::cargo(), &[&["build"], &package[..]].concat())?;
        shell::target().join("debug/shoal-sim")
    } else {
        shell::build("shoal-sim", "dev")?
    };
    let mut words = words.to_vec();
    if words.contains(&"--mutants") && !words.contains(&"--seeds") {
        words.extend(["--seeds", MUTANT_SEEDS]);
    }
    shell::run(sim.to_str().context("a path that is not UTF-8")?, &words)
}
