//! Docker (Debian's `docker.io`) as a peer: on a lab host of its own beside ours, so that both have their own network
//! namespace, disk folder and process tree.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::images::{Image, Layer, save};

use super::{Bench, api::Api, network::below, until};
use crate::shell;

const LAB: &str = "bench";
/// What both sides run.
pub(super) const IMAGE: &str = "bench.local/busybox:1";
/// Debian's client of the same version as its daemon; another one on PATH would not be a fair peer.
pub(super) const CLIENT: &str = "/usr/bin/docker";
const SOCKET: &str = "unix:///run/shoal/docker.sock";
/// Our host and docker's, by address.
pub(super) const OURS: &str = "198.18.0.11";
/// See [`OURS`].
pub(super) const THEIRS: &str = "198.18.0.12";

/// A lab of two hosts: ours is `n1`, docker's daemon runs on `n2`; both hold [`IMAGE`]. Gone when dropped.
pub(super) struct Sides<'a> {
    bench: &'a Bench,
    dockerd: Option<Child>,
}

impl Drop for Sides<'_> {
    fn drop(&mut self) {
        if let Some(mut dockerd) = self.dockerd.take() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
        let _ = self.bench.machine(&["lab", "down", "--name", LAB]);
    }
}

impl Bench {
    /// Runs shoal on this machine.
    pub(super) fn machine(&self, words: &[&str]) -> Result<String> {
        shell::read(
            self.shoal.to_str().context("a path that is not UTF-8")?,
            words,
        )
    }
}

impl<'a> Sides<'a> {
    /// Brings both sides up.
    pub(super) fn up(bench: &'a Bench) -> Result<Self> {
        if bench
            .machine(&["lab", "ls", "-q"])?
            .lines()
            .any(|name| name == LAB)
        {
            bench.machine(&["lab", "down", "--name", LAB])?;
        }
        let words = [
            "lab",
            "up",
            "--name",
            LAB,
            "--nodes",
            "2",
            "--subnet",
            "198.18.0.0/24",
        ];
        bench.machine(&words)?;
        let mut sides = Self {
            bench,
            dockerd: None,
        };
        sides.start_dockerd()?;
        let archive = Self::archive()?;
        sides.ours(&["load", "-q", "-i", &archive.to_string_lossy()])?;
        sides.theirs(&["load", "-q", "-i", &archive.to_string_lossy()])?;
        fs::remove_dir_all(shell::target().join("bench"))?;
        Ok(sides)
    }

    /// The image that both sides run, as an archive to be loaded. It is made anew and stays until the next run.
    pub(super) fn archive() -> Result<PathBuf> {
        let folder = shell::target().join("bench");
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => busybox(&folder),
        }
    }

    /// Runs a command on a lab host.
    pub(super) fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["lab", "exec", "--name", LAB, host, "--"];
        all.extend(words);
        self.bench.machine(&all)
    }

    /// The words by which a command of this machine runs on a lab host.
    pub(super) fn words(&self, host: &str) -> Vec<String> {
        let shoal = self.bench.shoal.to_string_lossy();
        ["env", &shoal, "lab", "exec", "--name", LAB, host, "--"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Docker's daemon, as this machine numbers it: the process below the one that entered the host.
    pub(super) fn dockerd_pid(&self) -> Result<u32> {
        let dockerd = self.dockerd.as_ref().context("docker's daemon runs")?;
        below(dockerd.id(), "dockerd")
    }

    /// Runs our client against our daemon.
    pub(super) fn ours(&self, words: &[&str]) -> Result<String> {
        self.on("n1", &[&["shoal"], words].concat())
    }

    /// Runs docker's client against docker's daemon.
    pub(super) fn theirs(&self, words: &[&str]) -> Result<String> {
        self.on("n2", &[&[CLIENT, "-H", SOCKET], words].concat())
    }

    /// Our daemon's API, as this machine reaches it.
    pub(super) fn our_api(&self) -> Api {
        Api::at(self.run_folder("n1").join("shoal.sock"))
    }

    /// Docker's.
    pub(super) fn their_api(&self) -> Api {
        Api::at(self.run_folder("n2").join("docker.sock"))
    }

    /// What a lab host has at `/run/shoal`.
    pub(super) fn run_folder(&self, host: &str) -> PathBuf {
        lab_folder().join(host).join("run")
    }

    /// The words after our program by which a command runs on a lab host.
    pub(super) fn entering<'h>(&self, host: &'h str) -> [&'h str; 6] {
        ["lab", "exec", "--name", LAB, host, "--"]
    }

    /// Process 1 of a lab host, as this machine numbers it.
    pub(super) fn init_pid(&self, host: &str) -> Result<u32> {
        process_of(host, "init")
    }

    /// The process that entered docker's host and has docker's daemon below it.
    pub(super) fn above_dockerd(&self) -> Result<u32> {
        let entered = self.dockerd.as_ref().context("docker's daemon runs")?;
        Ok(entered.id())
    }

    /// Our daemon on a lab host, as this machine numbers it.
    pub(super) fn daemon_pid(&self, host: &str) -> Result<u32> {
        process_of(host, "daemon")
    }

    fn start_dockerd(&mut self) -> Result<()> {
        let words = [
            "lab", "exec", "--name", LAB, "n2", "--", "dockerd", "-H", SOCKET,
        ];
        let files = [
            "--data-root",
            "/var/lib/shoal/docker",
            "--exec-root",
            "/run/shoal/docker",
        ];
        let pid = [
            "--pidfile",
            "/run/shoal/docker.pid",
            "--userland-proxy=false",
        ];
        let child = Command::new(&self.bench.shoal)
            .args(words)
            .args(files)
            .args(pid)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.dockerd = Some(child);
        until("docker's daemon", || Ok(self.theirs(&["version"]).is_ok()))
    }
}

fn lab_folder() -> PathBuf {
    Path::new("/var/lib/shoal-lab").join(LAB)
}

/// What the lab has written down of a process of a host.
fn process_of(host: &str, role: &str) -> Result<u32> {
    let path = lab_folder().join("lab.json");
    let text = fs::read_to_string(&path)?;
    let after = |text: &'_ str, word: &str| {
        let found = text.split_once(&format!("\"{word}\""));
        found.map(|(_, rest)| rest.to_owned())
    };
    let pid = after(&text, host)
        .and_then(|text| after(&text, role))
        .and_then(|text| after(&text, "pid"));
    let digits = pid.map(|text| {
        let digits = text.chars().skip_while(|c| !c.is_ascii_digit());
        digits.take_while(char::is_ascii_digit).collect::<String>()
    });
    let digits = digits.with_context(|| format!("no {role} of {host} in {}", path.display()))?;
    Ok(digits.parse()?)
}

/// What that image holds.
pub(super) fn busybox_root(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["sh", "true", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

/// An image of Debian's static busybox with its commands as links.
fn busybox(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    busybox_root(&root)?;
    let layer = Layer::pack(&root, &folder.join("layer.tar"))?;
    let archive = folder.join("image.tar");
    save(
        &[Image {
            name: IMAGE.to_owned(),
            layers: vec![&layer],
            entrypoint: &[],
        }],
        folder,
        &archive,
    )?;
    Ok(archive)
}
