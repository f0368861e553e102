//! `shoal-sim [--seeds N] [--seed S] [--trace]`: many seeds, or one.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A tool for people at a terminal.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use shoal_sim::run::{Run, run};

const USAGE: &str = "usage: shoal-sim [--seeds N] [--seed S] [--trace]";

struct Words {
    seeds: u64,
    seed: u64,
    trace: bool,
}

fn words() -> Option<Words> {
    let mut words = Words {
        seeds: 1,
        seed: 1,
        trace: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        match word.as_str() {
            "--seeds" => words.seeds = given.next()?.parse().ok()?,
            "--seed" => words.seed = given.next()?.parse().ok()?,
            "--trace" => words.trace = true,
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
    let began = Instant::now();
    let runs = many(words.seed, words.seeds, words.trace);
    let failed: Vec<&Run> = runs.iter().filter(|run| run.problem.is_some()).collect();
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
fn many(first: u64, count: u64, trace: bool) -> Vec<Run> {
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get() as u64)
        .min(count);
    let next = AtomicU64::new(first);
    let mut runs: Vec<Run> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
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
