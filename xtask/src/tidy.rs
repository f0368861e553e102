//! House rules that a program can check, each with its reason.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, bail};

use crate::shell;

/// A file longer than this holds a second subject.
const LINES_MAX: usize = 700;

/// Checks every file that git tracks.
pub(crate) fn run() -> Result<()> {
    shell::run(&shell::cargo(), &["fmt", "--all", "--check"])?;
    let files = shell::read("git", &["ls-files"])?;
    let mut problems = Vec::new();
    for file in files.lines() {
        let Ok(text) = fs::read_to_string(shell::root().join(file)) else {
            continue; // Deleted but not committed, or not text.
        };
        check_text(file, &text, &mut problems);
        if file.ends_with(".rs") {
            check_rust(file, &text, &mut problems);
        }
        if file.starts_with("crates/") && file.ends_with("Cargo.toml") {
            check_layers(file, &text, &mut problems);
        }
    }
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if problems.is_empty() {
        println!("tidy: {} files, 0 problems", files.lines().count());
        return Ok(());
    }
    bail!("{} problems", problems.len())
}

fn check_text(file: &str, text: &str, problems: &mut Vec<String>) {
    // Expected outputs are to the letter what a program writes.
    if ["Cargo.lock", "LICENSE"].contains(&file) || file.contains("/expected/") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let mut problem = |what: &str| problems.push(format!("{file}:{}: {what}", number + 1));
        if line.ends_with([' ', '\t']) {
            problem("trailing space");
        }
        if line.contains('\t') && file.ends_with(".rs") && !line.contains("\\t") {
            problem("a tab");
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push(format!("{file}: no newline at the end"));
    }
}

fn check_rust(file: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!(
            "{file}: {lines} lines, over {LINES_MAX}: which second subject is in it?"
        ));
    }
    // Decisions are made in `core`: no clock, randomness, sockets, files or environment there.
    let core = file.contains("/src/core/") || file.ends_with("/src/core.rs");
    let forbidden_in_core: &[&str] = &[
        "tokio::",
        "std::fs",
        "std::env::",
        "std::net::Tcp",
        "std::net::Udp",
        "SystemTime",
        "Instant::now",
        "getrandom::",
        "HashMap",
    ];
    let product = file.starts_with("crates/") && file.contains("/src/");
    let own = file == "xtask/src/tidy.rs";
    // Test modules at the end of a file may do what the product may not.
    let body = text.split("#[cfg(test)]").next().unwrap_or(text);
    for (number, line) in body.lines().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        let mut problem = |what: String| problems.push(format!("{file}:{}: {what}", number + 1));
        if core {
            // What the compiler knows of its target is no reading of the environment.
            let code = code.replace("std::env::consts", "");
            for word in forbidden_in_core
                .iter()
                .filter(|word| code.contains(**word))
            {
                problem(format!("`{word}` in a core"));
            }
        }
        if !own
            && ["todo!(", "unimplemented!(", "dbg!("]
                .iter()
                .any(|word| code.contains(word))
        {
            problem("a promise not kept".to_owned());
        }
        if product && code.contains("thread::sleep(") {
            problem("a sleep where an event is to be awaited".to_owned());
        }
    }
    if !own
        && text
            .lines()
            .any(|line| line.trim_start().starts_with("#[ignore"))
    {
        problems.push(format!("{file}: an ignored test"));
    }
}

/// Which of our crates each may use (DESIGN: layers see only what is below them).
fn check_layers(file: &str, text: &str, problems: &mut Vec<String>) {
    let allowed: &[(&str, &[&str])] = &[
        ("api", &[]),
        ("ca", &["api"]),
        ("overlay", &["api"]),
        ("dns", &["api"]),
        ("engine", &["api"]),
        ("manager", &["api", "ca"]),
        ("worker", &["api", "ca"]),
        ("docker-api", &["api"]),
        (
            "node",
            &[
                "api",
                "ca",
                "dns",
                "docker-api",
                "engine",
                "manager",
                "overlay",
                "worker",
            ],
        ),
        ("cli", &["api", "ca", "docker-api", "engine", "node"]),
        ("sim", &["api", "ca", "dns", "manager", "overlay", "worker"]),
    ];
    let name = Path::new(file)
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some((_, may)) = allowed.iter().find(|(crate_name, _)| *crate_name == name) else {
        problems.push(format!(
            "{file}: crate {name:?} has no place in the layers; give it one in xtask/src/tidy.rs"
        ));
        return;
    };
    let may: BTreeSet<String> = may.iter().map(|other| format!("shoal-{other}")).collect();
    let normal = text.split("[dev-dependencies]").next().unwrap_or(text);
    let uses = normal
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|word| word.starts_with("shoal-"));
    for other in uses.filter(|other| !may.contains(*other)) {
        problems.push(format!("{file}: {name} may not use {other}"));
    }
}
