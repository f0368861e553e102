//! Simulated clusters, as many as asked for.

use anyhow::Result;

use crate::shell;

/// Builds the simulator and hands it these words.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let cargo = ["run", "--quiet", "--package", "shoal-sim", "--"];
    shell::run(&shell::cargo(), &[&cargo, words].concat())
}
