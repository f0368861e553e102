//! Ratios against a peer, both sides in the same run on the same machine, in turn.
//!
//! Each subject is a module with a table of named pairs; `cargo xtask bench NAME …` runs some of them, without names all.
//! Each round measures ours and theirs; the ratio is taken round by round, and its median and spread are what counts:
//! absolute times drift with the machine.

mod api;
mod containers;
mod control;
mod dns;
mod docker;
mod footprint;
mod images;
mod ingress;
mod lb;
mod lossless;
mod network;
mod overlay;
mod scheduler;
mod services;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{packages, shell};

const PATIENCE: Duration = Duration::from_secs(120);

/// One benchmark that can be asked for by name.
pub(crate) struct Pair {
    /// The word on the command line.
    pub(crate) name: &'static str,
    /// What is measured against what.
    pub(crate) about: &'static str,
    /// Measures and prints.
    pub(crate) run: fn(&Bench) -> Result<()>,
}

/// What every benchmark may use.
pub(crate) struct Bench {
    /// The release build of the program, or the one that `SHOAL_BIN` names: packets do not care how it was built.
    pub(crate) shoal: PathBuf,
}

/// Every pair, subject by subject.
fn pairs() -> impl Iterator<Item = &'static Pair> {
    [
        containers::PAIRS,
        footprint::PAIRS,
        images::PAIRS,
        services::PAIRS,
        lossless::PAIRS,
        scheduler::PAIRS,
        overlay::PAIRS,
        lb::PAIRS,
        ingress::PAIRS,
        dns::PAIRS,
        control::PAIRS,
    ]
    .into_iter()
    .flatten()
}

/// Runs the named pairs, or all.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !pairs().any(|pair| pair.name == **name))
    {
        let there: Vec<String> = pairs()
            .map(|pair| format!("  {:12} {}", pair.name, pair.about))
            .collect();
        bail!("unknown pair {unknown:?}; there are\n{}", there.join("\n"));
    }
    shell::need_root("the benchmark")?;
    packages::ensure(&[packages::BUILD, packages::RUN, packages::BENCH])?;
    let shoal = match std::env::var_os("SHOAL_BIN") {
        Some(built) => PathBuf::from(built),
        None => {
            println!("building shoal in release");
            shell::build_shoal("release")?
        }
    };
    let bench = Bench { shoal };
    for pair in pairs().filter(|pair| names.is_empty() || names.contains(&pair.name)) {
        (pair.run)(&bench)?;
    }
    // All of them are measured before any is blamed.
    let missed = network::missed();
    if !missed.is_empty() {
        bail!("goals that were not met:\n  {}", missed.join("\n  "));
    }
    Ok(())
}

/// Asks until something is there.
fn until(what: &str, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !there()? {
        if began.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Prints both medians (ours, the peer's) and the ratio of each round as median, least and greatest. Returns the median
/// ratio, for those who hold it against a promise.
fn tell(name: &str, peer: &str, times: &[(Duration, Duration)]) -> f64 {
    let sorted = |of: &dyn Fn(&(Duration, Duration)) -> f64| {
        let mut values: Vec<f64> = times.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let ours = sorted(&|(ours, _)| ours.as_secs_f64());
    let theirs = sorted(&|(_, theirs)| theirs.as_secs_f64());
    let ratio = sorted(&|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64());
    let median = |values: &[f64]| values[values.len() / 2];
    println!(
        "{name}: shoal {:.3} s, {peer} {:.3} s (medians of {} rounds); {peer}/shoal {:.1} ({:.1} to {:.1})",
        median(&ours),
        median(&theirs),
        times.len(),
        median(&ratio),
        ratio[0],
        ratio[ratio.len() - 1],
    );
    median(&ratio)
}
