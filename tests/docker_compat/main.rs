//! Docker's own client, unmodified, against our socket.

mod build;
mod cli;
mod clusters;
mod containers;
mod exchange;
mod exposure;
mod faults;
mod golden;
mod grammar;
mod hooks;
mod host;
mod ports;
mod promises;
mod sdk;
mod services;
mod streams;
mod system;
mod takeover;

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, text},
    skipped,
};

/// Docker's client pointed at one host.
struct Docker<'a> {
    lab: &'a TestLab,
}

impl Docker<'_> {
    fn run(&self, words: &[&str]) -> Result<String> {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", self.lab.docker_host("n1"))
            .args(words)
            .stdin(Stdio::null());
        text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
    }

    fn code(&self, words: &[&str]) -> Result<i32> {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", self.lab.docker_host("n1"))
            .args(words);
        docker
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(docker.status()?.code().unwrap_or(-1))
    }
}

fn there_is_a_client() -> bool {
    let there = Command::new("docker")
        .arg("--version")
        .output()
        .is_ok_and(|said| said.status.success());
    if !there {
        skipped("docker's client is not on PATH");
    }
    there
}

const IMAGE: &str = "shoal-demo:latest";
