//! `shoal-sim [--seeds N] [--seed S] [--trace] [--mutants]`: many seeds, or one, or a search for planted bugs.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A tool for people at a terminal.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use shoal_sim::run::{Run, run};

const USAGE: &str = "usage: shoal-sim [--seeds N] [--seed S] [--trace] [--mutants]";

/// What the simulator has found and nobody has mended yet: the seed, and a part of what it says there.
///
/// These are told and counted apart, so that whatever else is found fails the run. A line goes with its mending.
const OPEN_FINDINGS: [(u64, &str); 9] = [
    // A learner under removals and joins in a row stays a learner: who missed the leader's admission refuses its messages.
    (12, "no rest: host 0 knows Members"),
    (32, "no rest: host 0 knows Members"),
    // A slot that is filled again right after scaling down does not wait for the task that leaves it.
    (75, "starts while"),
    (304, "starts while"),
    // The world's own mistakes, as far as is known: one of two voters wiped, all known managers of a node replaced.
    (92, "no rest: nobody leads"),
    (201, "no rest: node node2 is Some(Down)"),
    // A node that has not heard of the end of an endpoint sends to it, for longer than a stop waits.
    (106, "is stopped while host 2 sends to it"),
    (202, "is stopped while host 1 sends to it"),
    // Two services want one port; who has it is removed, and the other goes on waiting.
    (178, "is already in use by service"),
];

struct Words {
    seeds: u64,
    seed: u64,
    trace: bool,
    mutants: bool,
}

fn words() -> Option<Words> {
    let mut words = Words {
        seeds: 1,
        seed: 1,
        trace: false,
        mutants: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        match word.as_str() {
            "--seeds" => words.seeds = given.next()?.parse().ok()?,
            "--seed" => words.seed = given.next()?.parse().ok()?,
            "--trace" => words.trace = true,
            "--mutants" => words.mutants = true,
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
    if words.mutants {
        return mutants(words.seed, words.seeds);
    }
    let began = Instant::now();
    let runs = many(words.seed, words.seeds, words.trace);
    let found = runs.iter().filter(|run| run.problem.is_some());
    let (open, failed): (Vec<&Run>, Vec<&Run>) = found.partition(|run| is_open_finding(run));
    for (runs, open) in [(&failed, ""), (&open, " (an open finding)")] {
        for run in runs {
            let problem = run.problem.as_deref().unwrap_or_default();
            println!("seed {}{open}: {problem}", run.seed);
        }
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
        "{} seeds, {} failed, {} open findings, {steps} events, {entries} entries, {:.1} s",
        runs.len(),
        failed.len(),
        open.len(),
        began.elapsed().as_secs_f32()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn is_open_finding(run: &Run) -> bool {
    let says = |part: &str| {
        run.problem
            .as_deref()
            .is_some_and(|text| text.contains(part))
    };
    let mut findings = OPEN_FINDINGS.iter();
    findings.any(|(seed, part)| *seed == run.seed && says(part))
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

/// Looks for every planted bug and says which were found, and how soon.
#[cfg(feature = "planted-bugs")]
fn mutants(first: u64, most: u64) -> ExitCode {
    use shoal_api::planted::Bug;
    use shoal_sim::run::{Hunt, hunt};

    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let print = |hunt: &Hunt| {
        let (bug, area) = (format!("{:?}", hunt.bug), hunt.bug.area());
        let verdict = hunt.found.as_ref().map_or("NOT FOUND".to_owned(), |run| {
            let problem = run.problem.as_deref().unwrap_or_default();
            let line = problem.lines().next().unwrap_or_default();
            line.chars().take(90).collect()
        });
        println!("{bug:22} {area:12} {:>5} {verdict}", hunt.seeds);
    };
    println!("{:22} {:12} {:>5} found because", "bug", "in", "seeds");
    let hunts: Vec<Hunt> = std::thread::scope(|scope| {
        let work = || {
            let mut hunts = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(bug) = Bug::ALL.get(number) else {
                    return hunts;
                };
                let hunt = hunt(*bug, first, most);
                print(&hunt);
                hunts.push(hunt);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .flat_map(|hunts| hunts.expect("runs catch their panics"))
            .collect()
    });
    let missed: Vec<&Hunt> = hunts.iter().filter(|hunt| hunt.found.is_none()).collect();
    let (all, found) = (hunts.len(), hunts.len() - missed.len());
    println!("{found} of {all} planted bugs found within {most} seeds");
    // A bug in the log or in consensus loses data: every one of them must be found.
    let is_vital = |hunt: &&&Hunt| ["log", "consensus"].contains(&hunt.bug.area());
    let vital = missed.iter().filter(is_vital).count();
    if vital == 0 && found * 100 >= all * 95 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(not(feature = "planted-bugs"))]
fn mutants(_: u64, _: u64) -> ExitCode {
    eprintln!("this build has no planted bugs; use cargo xtask sim --mutants");
    ExitCode::from(2)
}
