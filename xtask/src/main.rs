//! Developer tasks: `cargo xtask demo | test | tidy | bench`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A tool for people at a terminal.

mod bench;
mod demo;
mod packages;
mod shell;
mod sim;
mod test;
mod tidy;
mod traffic;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--keep]     a cluster of three hosts on this machine, from image to routing mesh; needs root
  test [RUNG …]     all tests, or only those of some rungs: tidy unit sim net kernel cluster compat;
                    needs root
  sim [--seeds N] [--seed S] [--trace] [--gate [--least PERCENT]]
                    many simulated clusters, or one with its story
  tidy              the house rules that a program can check
  bench [PAIR …]    ratios against a peer in the same run, by name; needs root

Each installs the Debian packages that it needs and builds what it runs.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo"] => demo::run(false),
        ["demo", "--keep"] => demo::run(true),
        ["test", rungs @ ..] => test::run(rungs),
        ["sim", words @ ..] => sim::run(words),
        ["tidy"] => tidy::run(),
        ["bench", pairs @ ..] => bench::run(pairs),
        ["traffic", words @ ..] => traffic::run(words),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
