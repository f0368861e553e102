//! All tests, rung by rung, with one line at the end that says how many ran and what was skipped because of what.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{packages, shell, sim, tidy};

/// The rungs of the ladder in the order in which they are cheap.
const RUNGS: [&str; 7] = ["tidy", "unit", "sim", "net", "kernel", "cluster", "compat"];
/// Simulated clusters in the rung of that name.
const SEEDS: &str = "500";
/// How long they may take, so that everybody goes on running them.
const SEEDS_TIME_MAX: Duration = Duration::from_secs(300);
/// And the planted bugs that as many seeds as there is time for must find; `cargo xtask sim --gate` has more of both.
const GATE: [&str; 5] = ["--gate", "--seeds", "60", "--least", "90"];

/// What the rungs so far have shown.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Reason → number of tests.
    skipped: BTreeMap<String, u64>,
    /// What tests that failed said: it is told again at the end, where it is looked for.
    complaints: Vec<Complaint>,
    /// Whether what comes belongs to the last of them.
    is_complaining: bool,
    broken: Vec<String>,
}

/// The first and the last lines of what a test said that failed.
struct Complaint {
    test: String,
    first: Vec<String>,
    last: VecDeque<String>,
}

/// How many lines of each are kept.
const COMPLAINT_LINES: usize = 20;

/// Runs the named rungs, or all.
pub(crate) fn run(rungs: &[&str]) -> Result<()> {
    if let Some(unknown) = rungs.iter().find(|rung| !RUNGS.contains(rung)) {
        bail!("unknown rung {unknown:?}: there are {}", RUNGS.join(" "));
    }
    shell::need_root("the test suite")?;
    packages::ensure(&[packages::BUILD, packages::RUN, packages::TEST])?;
    let mut tally = Tally::default();
    for rung in RUNGS
        .into_iter()
        .filter(|rung| rungs.is_empty() || rungs.contains(rung))
    {
        let began = Instant::now();
        println!("== {rung}");
        let done = match rung {
            "tidy" => tidy::run(),
            "unit" => cargo_test(&["--workspace", "--lib", "--bins"], &mut tally),
            "sim" => simulated(),
            "net" => namespaces(&mut tally),
            // Tests of the same programs in another kernel, where `SHOAL_LAB_KERNEL` names one.
            "kernel" => with_shoal(&["--workspace", "--test", "kernel"], &mut tally),
            "cluster" => with_shoal(&["--workspace", "--test", "cluster"], &mut tally),
            _ => with_shoal(&["--workspace", "--test", "docker_compat"], &mut tally),
        };
        if let Err(problem) = done {
            tally.broken.push(format!("{rung}: {problem:#}"));
        }
        println!("== {rung}: {:.0} s", began.elapsed().as_secs_f32());
    }
    tally.tell()
}

/// Simulated clusters in the time that they may take, and the planted bugs.
fn simulated() -> Result<()> {
    sim::build()?;
    let began = Instant::now();
    sim::run(&["--seeds", SEEDS])?;
    let took = began.elapsed();
    if took > SEEDS_TIME_MAX {
        bail!("{SEEDS} seeds took {took:.0?}, at most {SEEDS_TIME_MAX:?} expected");
    }
    sim::run(&GATE)
}

/// The tests of each crate that need namespaces of their own. By name, since to leave out the package of the other rungs
/// would have all dependencies built once more, with the features that the rest asks for.
fn namespaces(tally: &mut Tally) -> Result<()> {
    let mut words = vec!["--workspace".to_owned()];
    for name in integration_tests()? {
        words.extend(["--test".to_owned(), name]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    cargo_test(&words, tally)
}

/// Names of the test programs below `crates/*/tests`: a file, or a folder with a `main.rs`.
fn integration_tests() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in fs::read_dir(shell::root().join("crates"))? {
        let tests = package?.path().join("tests");
        if !tests.is_dir() {
            continue;
        }
        for entry in fs::read_dir(tests)? {
            let path = entry?.path();
            let is_program = if path.is_dir() {
                path.join("main.rs").exists()
            } else {
                path.extension().is_some_and(|kind| kind == "rs")
            };
            if let Some(name) = path.file_stem().filter(|_| is_program) {
                names.insert(name.to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

/// The rungs that start the real program get it built first, and its path.
fn with_shoal(words: &[&str], tally: &mut Tally) -> Result<()> {
    let shoal = shell::build_shoal("dev")?;
    cargo_test_with(
        words,
        &[(
            "SHOAL_BIN",
            shoal.to_str().context("a path that is not UTF-8")?,
        )],
        tally,
    )
}

fn cargo_test(words: &[&str], tally: &mut Tally) -> Result<()> {
    cargo_test_with(words, &[], tally)
}

/// Runs `cargo test`, shows its output as it comes and counts what it says.
fn cargo_test_with(words: &[&str], env: &[(&str, &str)], tally: &mut Tally) -> Result<()> {
    // Tests write `skipped, because …` straight to standard error, which the harness does not capture; both streams
    // come through one pipe, in order.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "exec \"$@\" 2>&1",
            "sh",
            &shell::cargo(),
            "test",
            "--no-fail-fast",
        ])
        .args(words);
    command
        .current_dir(shell::root())
        .envs(env.iter().copied())
        // Where the stack stood says less than the message, and pushes it out of sight.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("the pipe was asked for")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(std::io::stdout(), "{line}")?;
        tally.read(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo test {} ended with {status}", words.join(" "));
    }
    Ok(())
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            for part in counts.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (count, what) = (
                    words.next().and_then(|word| word.parse::<u64>().ok()),
                    words.next(),
                );
                match (count, what) {
                    (Some(count), Some("passed")) => self.passed += count,
                    (Some(count), Some("failed")) => self.failed += count,
                    _ => {}
                }
            }
        }
        if let Some((_, reason)) = line.split_once("skipped, because ") {
            *self.skipped.entry(reason.trim().to_owned()).or_default() += 1;
        }
        self.hear(line);
    }

    /// Keeps what the harness says of the tests that failed, below a line with the name of each.
    fn hear(&mut self, line: &str) {
        let named = line.strip_prefix("---- ");
        if let Some(test) = named.and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.is_complaining = true;
            self.complaints.push(Complaint {
                test: test.to_owned(),
                first: Vec::new(),
                last: VecDeque::new(),
            });
        } else if line == "failures:" {
            self.is_complaining = false;
        } else if self.is_complaining
            && let Some(complaint) = self.complaints.last_mut()
        {
            if complaint.first.len() < COMPLAINT_LINES {
                complaint.first.push(line.to_owned());
                return;
            }
            complaint.last.push_back(line.to_owned());
            if complaint.last.len() > COMPLAINT_LINES {
                complaint.last.pop_front();
            }
        }
    }

    fn tell(self) -> Result<()> {
        let skipped: u64 = self.skipped.values().sum();
        println!();
        for (reason, count) in &self.skipped {
            println!("skipped {count}, because {reason}");
        }
        for Complaint { test, first, last } in &self.complaints {
            println!("-- {test}");
            for line in first.iter().chain(last).filter(|line| !line.is_empty()) {
                println!("   {line}");
            }
        }
        for broken in &self.broken {
            println!("failed: {broken}");
        }
        println!(
            "{} passed, {} failed, {skipped} skipped",
            self.passed - skipped.min(self.passed),
            self.failed
        );
        if !self.broken.is_empty() || self.failed > 0 {
            bail!("not all tests passed");
        }
        if self.passed == 0 && self.failed == 0 {
            println!("no test ran in these rungs");
        }
        Ok(())
    }
}
