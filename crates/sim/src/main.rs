//! `shoal-sim [--seeds N] [--seed S] [--trace] [--bug NAME] [--gate [--least PERCENT]]`: many seeds, or one, with a planted
//! bug or without, or a search for all of them.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A tool for people at a terminal.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use shoal_api::planted::Bug;
use shoal_sim::run::{Run, run};

const USAGE: &str =
    "usage: shoal-sim [--seeds N] [--seed S] [--trace] [--bug NAME] [--gate [--least PERCENT]]";

const WITHOUT_BUGS: &str = "this build has no planted bugs; use cargo xtask sim";

/// Planted bugs in a hundred that must be found.
const GATE_PERCENT: usize = 95;

struct Words {
    seeds: u64,
    seed: u64,
    trace: bool,
    bug: Option<Bug>,
    gate: bool,
    least: usize,
}

fn words() -> Option<Words> {
    let mut words = Words {
        seeds: 1,
        seed: 1,
        trace: false,
        bug: None,
        gate: false,
        least: GATE_PERCENT,
    };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        match word.as_str() {
            "--seeds" => words.seeds = given.next()?.parse().ok()?,
            "--seed" => words.seed = given.next()?.parse().ok()?,
            "--trace" => words.trace = true,
            "--bug" => {
                let name = given.next()?;
                let mut all = Bug::ALL.iter();
                words.bug = Some(*all.find(|bug| format!("{bug:?}") == name)?);
            }
            "--gate" => words.gate = true,
            "--least" => words.least = given.next()?.parse().ok()?,
            _ => return None,
        }
    }
    Some(words)
}

fn main() -> ExitCode {
    let Some(words) = words() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // What a panic says is part of what was found; its place comes with `--trace`.
    if !words.trace {
        std::panic::set_hook(Box::new(|_| {}));
    }
    if words.bug.is_some() && !cfg!(feature = "planted-bugs") {
        eprintln!("{WITHOUT_BUGS}");
        return ExitCode::from(2);
    }
    if words.gate {
        return gate(words.seed, words.seeds, words.least);
    }
    let began = Instant::now();
    let runs = many(&words);
    let failed: Vec<&Run> = runs.iter().filter(|run| run.failed()).collect();
    for run in &failed {
        let problem = run.problem.as_deref().unwrap_or_default();
        println!("seed {}: {problem}", run.seed);
    }
    if let [run] = runs.as_slice() {
        println!(
            "seed {} hash {:016x} events {} entries {}",
            run.seed, run.hash, run.steps, run.entries
        );
    }
    let (steps, entries) = runs
        .iter()
        .fold((0, 0), |(s, e), run| (s + run.steps, e + run.entries));
    println!(
        "{} seeds, {} failed, {steps} events, {entries} entries, {:.1} s",
        runs.len(),
        failed.len(),
        began.elapsed().as_secs_f32()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs seeds on all processors; the results are in the order of the seeds.
fn many(words: &Words) -> Vec<Run> {
    let Words {
        seed: first,
        seeds: count,
        trace,
        bug,
        ..
    } = *words;
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get() as u64)
        .min(count);
    let next = AtomicU64::new(first);
    let mut runs: Vec<Run> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    live_with(bug);
                    let mut runs = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return runs;
                        }
                        runs.push(run(seed, trace));
                    }
                })
            })
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .flat_map(|runs| runs.expect("runs catch their panics"))
            .collect()
    });
    runs.sort_by_key(|run| run.seed);
    runs
}

#[cfg(feature = "planted-bugs")]
fn live_with(bug: Option<Bug>) {
    shoal_api::planted::plant(bug);
}

#[cfg(not(feature = "planted-bugs"))]
fn live_with(_: Option<Bug>) {}

/// Looks for every planted bug and says which were found, and how soon. With `least` so many in a hundred must be, and
/// all in the log and in consensus.
#[cfg(feature = "planted-bugs")]
fn gate(first: u64, most: u64, least: usize) -> ExitCode {
    let began = Instant::now();
    // The test that looks for the mark in the product would be blind if it were not here.
    let program = std::env::current_exe().and_then(std::fs::read);
    let mark = shoal_api::planted::MARK.as_bytes();
    if !program.is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark)) {
        eprintln!("this program does not carry the mark of planted bugs");
        return ExitCode::FAILURE;
    }
    let hunts = shoal_sim::gate::hunt(first, most);
    println!("{:22} {:12} {:>5} found because", "bug", "in", "seed");
    for hunt in &hunts {
        let (bug, area) = (format!("{:?}", hunt.bug), hunt.bug.area());
        let seed = hunt
            .found
            .as_ref()
            .map_or("-".to_owned(), |run| run.seed.to_string());
        let verdict = hunt.found.as_ref().map_or("NOT FOUND", |run| {
            let problem = run.problem.as_deref().unwrap_or_default();
            problem.lines().next().unwrap_or_default()
        });
        let verdict: String = verdict.chars().take(110).collect();
        println!("{bug:22} {area:12} {seed:>5} {verdict}");
    }
    let missed: Vec<_> = hunts.iter().filter(|hunt| hunt.found.is_none()).collect();
    let (all, found) = (hunts.len(), hunts.len() - missed.len());
    println!(
        "{found} of {all} planted bugs found within {most} seeds, {:.1} s",
        began.elapsed().as_secs_f32()
    );
    // A bug in the log or in consensus loses data: every one of them must be found, where there are seeds enough.
    let is_vital = |bug: Bug| ["log", "consensus"].contains(&bug.area());
    let vital = missed.iter().filter(|hunt| is_vital(hunt.bug)).count();
    if found * 100 >= all * least && (vital == 0 || least < GATE_PERCENT) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(not(feature = "planted-bugs"))]
fn gate(_: u64, _: u64, _: usize) -> ExitCode {
    eprintln!("{WITHOUT_BUGS}");
    ExitCode::from(2)
}
