//! A daemon that dies in the middle of its work, and a disk that is full: afterwards there is nothing half done.

mod crash;
mod cycles;
mod disk;
mod half_built;
mod residue;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::{lab::TestLab, wait};

use self::residue::Residue;

/// A host and how it is talked to.
struct Bench {
    lab: TestLab,
    socket: String,
    /// `DOCKER_CONFIG` of the client.
    config: Option<PathBuf>,
}

impl Bench {
    fn new(lab: TestLab, config: Option<PathBuf>) -> Self {
        let socket = lab.docker_host("n1");
        Self {
            lab,
            socket,
            config,
        }
    }

    /// Our client on the machine, talking to the host.
    fn client(&self, words: &str) -> Command {
        let mut command = Command::new(shoal_tests::lab::program());
        command.args(["-H", &self.socket]).args(words.split(' '));
        if let Some(config) = &self.config {
            command.env("DOCKER_CONFIG", config);
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Result<String> {
        shoal_tests::lab::text(&self.client(words).output()?)
            .with_context(|| format!("shoal {words}"))
    }

    /// Several commands whose failure is as good as their success.
    fn try_all(&self, commands: &[String]) -> Result<()> {
        for words in commands {
            self.client(words).output()?;
        }
        Ok(())
    }

    /// The process of the host's daemon, as the machine numbers it.
    fn daemon(&self) -> Result<u32> {
        let path = format!("/var/lib/shoal-lab/{}/lab.json", self.lab.name());
        let lab: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
        let pid = lab.pointer("/hosts/0/daemon/pid").context("no daemon")?;
        Ok(u32::try_from(pid.as_u64().context("no number")?)?)
    }

    fn residue(&self) -> Result<Residue> {
        Residue::of(&self.lab)
    }

    /// The same without any container: what those that have ended had goes a moment after them.
    fn residue_at_rest(&self) -> Result<Residue> {
        wait("what ended containers had to go", || {
            let now = self.residue()?;
            Ok(match now.about_to_go() {
                None => Ok(now),
                Some(link) => Err(link),
            })
        })
    }

    /// `system df` counts what the disk has, no more and no less.
    fn usage_adds_up(&self) -> Result<()> {
        let usage = self.run("system df --format json")?;
        let row = |kind: &str| -> Result<serde_json::Value> {
            for line in usage.lines() {
                let row: serde_json::Value = serde_json::from_str(line)?;
                if row["Type"] == kind {
                    return Ok(row);
                }
            }
            anyhow::bail!("no {kind} in {usage}")
        };
        let lib = self.lab.folder("n1").join("lib");
        for (kind, folder) in [("Containers", "containers"), ("Local Volumes", "volumes")] {
            let told = row(kind)?["TotalCount"].to_string().replace('"', "");
            let there = residue::names(&lib.join(folder)).len();
            anyhow::ensure!(
                told == there.to_string(),
                "{kind}: df tells of {told}, the disk has {there}"
            );
        }
        let raw = self.lab.output(
            "n1",
            &[
                "curl",
                "-s",
                "--unix-socket",
                "/run/shoal/shoal.sock",
                "http://d/system/df",
            ],
        )?;
        let raw: serde_json::Value = serde_json::from_str(&shoal_tests::lab::text(&raw)?)?;
        let there = residue::layer_bytes(&lib.join("layers"))?;
        anyhow::ensure!(
            raw["LayersSize"].as_u64() == Some(there),
            "layers: df tells of {} bytes, the disk has {there}",
            raw["LayersSize"]
        );
        Ok(())
    }
}
