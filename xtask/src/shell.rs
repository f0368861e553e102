//! Running programs and saying what went wrong.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// Runs a program with this one's output and fails if it fails.
pub(crate) fn run(program: &str, words: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(words)
        .current_dir(root())
        .status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("`{program} {}` ended with {status}", words.join(" "));
    }
    Ok(())
}

/// Runs a program and returns what it printed; its complaints go into the error.
pub(crate) fn read(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .current_dir(root())
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{program} {}` ended with {}: {}",
            words.join(" "),
            output.status,
            complaint.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Cargo as it runs this tool.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the `shoal` binary in a profile and returns its path.
pub(crate) fn build_shoal(profile: &str) -> Result<PathBuf> {
    build("shoal", profile)
}

/// Builds a binary in a profile and returns its path.
///
/// For the whole workspace, as the tests are: a package by itself would have its dependencies built once more, with the
/// fewer features that it alone asks for. Examples come along, which bring the features that only tests ask for, for the
/// same reason: in the profile of the tests one of them, in that of the benchmarks all, since those run them.
pub(crate) fn build(name: &str, profile: &str) -> Result<PathBuf> {
    let mut words = vec!["build", "--workspace", "--bin", name, "--profile", profile];
    if profile == "dev" {
        words.extend(["--example", "scheduler"]);
    } else {
        words.push("--examples");
    }
    run(&cargo(), &words)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target().join(folder).join(name))
}

/// An example as [`build`] leaves it in the release profile, built now where `SHOAL_BIN` has spared the benchmark its build.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    let example = target().join("release/examples").join(name);
    if std::env::var_os("SHOAL_BIN").is_some() && !example.exists() {
        build_shoal("release")?;
    }
    Ok(example)
}

/// Fails with a clear line unless this is root on Linux.
pub(crate) fn need_root(what: &str) -> Result<()> {
    if read("id", &["-u"])?.trim() != "0" {
        bail!("{what} makes namespaces, bridges and mounts: run it as root");
    }
    Ok(())
}
