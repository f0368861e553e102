//! Our grammar beside docker's: what docker's own help names is there, or is missing for a reason that is written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::lab::program;

use super::there_is_a_client;

/// Commands that docker has and we have not.
const NOT_OURS: &[(&str, &str)] = &[
    (
        "buildx",
        "a plugin of docker's, which works against our socket by itself",
    ),
    ("compose", "a plugin of docker's; stacks take compose files"),
    ("checkpoint", "processes are not frozen to disk"),
    (
        "manifest",
        "lists of images are made by whoever builds them",
    ),
    ("plugin", "there are no plugins"),
    (
        "trust",
        "images are verified by digest alone; docker has dropped it, too",
    ),
    ("volume update", "there are no volumes of the cluster"),
];

/// Flags that docker has and we have not, by command; `*` is every command.
const FLAGS_NOT_OURS: &[(&str, &[&str], &str)] = &[
    (
        "images",
        &["tree"],
        "experimental; an image is kept for one platform",
    ),
    (
        "image ls",
        &["tree"],
        "experimental; an image is kept for one platform",
    ),
    (
        "start",
        &["checkpoint", "checkpoint-dir"],
        "processes are not frozen to disk",
    ),
    (
        "container start",
        &["checkpoint", "checkpoint-dir"],
        "processes are not frozen to disk",
    ),
    (
        "secret create",
        &["driver"],
        "there are no plugins that would keep secrets",
    ),
    (
        "service create",
        &["credential-spec", "isolation"],
        "of Windows alone",
    ),
    (
        "service update",
        &["credential-spec", "isolation"],
        "of Windows alone",
    ),
    (
        "volume create",
        &[
            "availability",
            "group",
            "limit-bytes",
            "required-bytes",
            "scope",
            "secret",
            "sharing",
            "topology-preferred",
            "topology-required",
            "type",
        ],
        "there are no volumes of the cluster",
    ),
    (
        "volume ls",
        &["cluster"],
        "there are no volumes of the cluster",
    ),
];

/// Commands and flags of one command, by its help.
#[derive(Debug, Default)]
struct Help {
    commands: BTreeSet<String>,
    /// With the letter that stands for each.
    flags: BTreeMap<String, Option<char>>,
}

fn help(program: &std::path::Path, path: &[String]) -> Result<Help> {
    let output = Command::new(program)
        .args(path)
        .arg("--help")
        // Nobody is there, so nothing is hidden for what a daemon can or cannot.
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} {path:?} --help", program.display()))?;
    Ok(read(&String::from_utf8_lossy(&output.stdout)))
}

fn read(text: &str) -> Help {
    let (mut help, mut within) = (Help::default(), "");
    for line in text.lines() {
        if !line.starts_with(' ') {
            within = if line.ends_with("Commands:") {
                "commands"
            } else if line.ends_with(':') {
                "flags"
            } else {
                within
            };
            continue;
        }
        let words = line.trim_start();
        let indent = line.len() - words.len();
        if within == "commands" {
            // Continued lines stand further to the right.
            let name = words.split(' ').next().unwrap_or_default();
            if indent == 2 && !name.is_empty() {
                help.commands.insert(name.trim_end_matches('*').to_owned());
            }
            continue;
        }
        let (letter, rest) = match words
            .strip_prefix('-')
            .and_then(|rest| rest.split_once(", "))
        {
            Some((letter, rest)) if letter.len() == 1 => (letter.chars().next(), rest),
            _ => (None, words),
        };
        let Some(rest) = rest.strip_prefix("--").filter(|_| indent <= 6) else {
            continue;
        };
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let name = &rest[..end.unwrap_or(rest.len())];
        help.flags.insert(name.to_owned(), letter);
    }
    help
}

fn walk(path: &[String], problems: &mut Vec<String>) -> Result<()> {
    let name = path.join(" ");
    let (theirs, ours) = (help("docker".as_ref(), path)?, help(&program(), path)?);
    let excused = |flag: &str| {
        FLAGS_NOT_OURS
            .iter()
            .any(|(command, flags, _)| *command == name && flags.contains(&flag))
    };
    for (flag, letter) in &theirs.flags {
        match ours.flags.get(flag) {
            None if !excused(flag) => problems.push(format!("{name}: no flag --{flag}")),
            Some(own) if own != letter && letter.is_some() => {
                problems.push(format!("{name}: --{flag} is {own:?} and not {letter:?}"));
            }
            _ => {}
        }
    }
    for command in &theirs.commands {
        let mut below = path.to_vec();
        below.push(command.clone());
        let full = below.join(" ");
        if NOT_OURS.iter().any(|(other, _)| *other == full) {
            continue;
        }
        if !ours.commands.contains(command) {
            problems.push(format!("no command {full}"));
        } else if below.len() <= 2 {
            walk(&below, problems)?;
        }
    }
    Ok(())
}

#[test]
fn whatever_docker_can_be_told_shoal_can_be_told() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let mut problems = Vec::new();
    walk(&[], &mut problems)?;
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn a_help_is_read_with_its_letters() {
    let help = read(
        "Usage:  docker x\n\nCommon Commands:\n  run         Runs\n  swarm*      More\n\nOptions:\n  -a, --all list      All\n      --no-trunc      Not\n                       --short\n",
    );
    assert_eq!(help.commands.len(), 2);
    assert_eq!(help.flags["all"], Some('a'));
    assert_eq!(help.flags["no-trunc"], None);
    assert_eq!(help.flags.len(), 2);
}
