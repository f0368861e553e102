//! Simulated clusters, as many as asked for.

use anyhow::Result;

use crate::shell;

/// Seeds within which a planted bug must be found.
const MUTANT_SEEDS: &str = "2000";

/// Builds the simulator and hands it these words.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let mut cargo = vec!["run", "--quiet", "--package", "shoal-sim"];
    if words.contains(&"--mutants") {
        cargo.extend(["--features", "planted-bugs"]);
    }
    cargo.push("--");
    if words.contains(&"--mutants") && !words.contains(&"--seeds") {
        cargo.extend(["--seeds", MUTANT_SEEDS]);
    }
    shell::run(&shell::cargo(), &[&cargo, words].concat())
}
