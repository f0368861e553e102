//! Ratios against docker, both sides in the same run on the same machine, in turn.
//!
//! Docker (Debian's `docker.io`) runs on a lab host of its own beside ours, so that both have their own network
//! namespace, disk folder and process tree. Each round measures ours and theirs; the ratio is taken round by round, and
//! its median and spread are what counts: absolute times drift with the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use shoal_tests::images::{Image, Layer, save};

use crate::{packages, shell};

const LAB: &str = "bench";
const IMAGE: &str = "bench.local/busybox:1";
/// Debian's client of the same version as its daemon; another one on PATH would not be a fair peer.
const DOCKER: &str = "/usr/bin/docker";
const SOCKET: &str = "unix:///run/shoal/docker.sock";
const PATIENCE: Duration = Duration::from_secs(120);

const PAIRS: [&str; 2] = ["run", "service"];

/// Runs the named pairs, or all.
pub(crate) fn run(pairs: &[&str]) -> Result<()> {
    if let Some(unknown) = pairs.iter().find(|pair| !PAIRS.contains(pair)) {
        bail!("unknown pair {unknown:?}: there are {}", PAIRS.join(" "));
    }
    shell::need_root("the benchmark")?;
    packages::ensure(&[packages::BUILD, packages::RUN, packages::BENCH])?;
    println!("building shoal in release");
    let bench = Bench {
        shoal: shell::build_shoal("release")?,
    };
    if bench
        .machine(&["lab", "ls", "-q"])?
        .lines()
        .any(|name| name == LAB)
    {
        bench.machine(&["lab", "down", "--name", LAB])?;
    }
    let measured = bench.all(pairs);
    let down = bench.machine(&["lab", "down", "--name", LAB]);
    measured?;
    down.map(drop)
}

struct Bench {
    shoal: PathBuf,
}

/// Docker's daemon, ended when dropped.
struct Dockerd(Child);

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    fn machine(&self, words: &[&str]) -> Result<String> {
        shell::read(
            self.shoal.to_str().context("a path that is not UTF-8")?,
            words,
        )
    }

    fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["lab", "exec", "--name", LAB, host, "--"];
        all.extend(words);
        self.machine(&all)
    }

    fn ours(&self, words: &[&str]) -> Result<String> {
        self.on("n1", &[&["shoal"], words].concat())
    }

    fn theirs(&self, words: &[&str]) -> Result<String> {
        self.on("n2", &[&[DOCKER, "-H", SOCKET], words].concat())
    }

    fn all(&self, pairs: &[&str]) -> Result<()> {
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
        self.machine(&words)?;
        let _dockerd = self.start_dockerd()?;
        let folder = shell::target().join("bench");
        let archive = busybox(&folder)?;
        self.ours(&["load", "-q", "-i", &archive.to_string_lossy()])?;
        self.theirs(&["load", "-q", "-i", &archive.to_string_lossy()])?;
        fs::remove_dir_all(&folder)?;
        let wanted = |pair| pairs.is_empty() || pairs.contains(&pair);
        if wanted("run") {
            self.pair("run --rm IMAGE true", 20, |side| {
                side(&["run", "--rm", IMAGE, "true"]).map(drop)
            })?;
        }
        if wanted("service") {
            self.ours(&["swarm", "init", "--advertise-addr", "198.18.0.11"])?;
            self.theirs(&["swarm", "init", "--advertise-addr", "198.18.0.12"])?;
            self.services()?;
        }
        Ok(())
    }

    fn start_dockerd(&self) -> Result<Dockerd> {
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
        let child = Command::new(&self.shoal)
            .args(words)
            .args(files)
            .args(pid)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let dockerd = Dockerd(child);
        until("docker's daemon", || Ok(self.theirs(&["version"]).is_ok()))?;
        Ok(dockerd)
    }

    /// Times one thing on both sides, in turn.
    fn pair(
        &self,
        name: &str,
        rounds: usize,
        act: impl Fn(&dyn Fn(&[&str]) -> Result<String>) -> Result<()>,
    ) -> Result<()> {
        let ours = |words: &[&str]| self.ours(words);
        let theirs = |words: &[&str]| self.theirs(words);
        act(&ours)?;
        act(&theirs)?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let began = Instant::now();
            act(&ours)?;
            let ours = began.elapsed();
            let began = Instant::now();
            act(&theirs)?;
            times.push((ours, began.elapsed()));
        }
        tell(name, &times);
        Ok(())
    }

    /// Time from `service create` to all tasks running, docker's own way to wait left out.
    fn services(&self) -> Result<()> {
        let up = |side: &dyn Fn(&[&str]) -> Result<String>| -> Result<Duration> {
            let began = Instant::now();
            let words = [
                "service",
                "create",
                "--detach",
                "--quiet",
                "--name",
                "idle",
                "--replicas",
                "50",
            ];
            let rest = ["--stop-grace-period", "0s", IMAGE, "sleep", "100000"];
            side(&[words.as_slice(), rest.as_slice()].concat())?;
            until("50 tasks", || {
                Ok(side(&["service", "ls", "--format", "{{.Replicas}}"])?.starts_with("50/50"))
            })?;
            let took = began.elapsed();
            side(&["service", "rm", "idle"])?;
            until("no containers", || Ok(side(&["ps", "-aq"])?.is_empty()))?;
            Ok(took)
        };
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push((
                up(&|words| self.ours(words))?,
                up(&|words| self.theirs(words))?,
            ));
        }
        tell("service of 50 replicas, created to running", &times);
        Ok(())
    }
}

fn until(what: &str, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !there()? {
        if began.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Prints both medians and the ratio of each round as median, least and greatest.
fn tell(name: &str, times: &[(Duration, Duration)]) {
    let sorted = |of: &dyn Fn(&(Duration, Duration)) -> f64| {
        let mut values: Vec<f64> = times.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let ours = sorted(&|(ours, _)| ours.as_secs_f64());
    let theirs = sorted(&|(_, theirs)| theirs.as_secs_f64());
    let ratio = sorted(&|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64());
    let median = |values: &[f64]| values[values.len() / 2];
    println!(
        "{name}: shoal {:.3} s, docker {:.3} s (medians of {} rounds); docker/shoal {:.1} ({:.1} to {:.1})",
        median(&ours),
        median(&theirs),
        times.len(),
        median(&ratio),
        ratio[0],
        ratio[ratio.len() - 1],
    );
}

/// An image of Debian's static busybox with its commands as links.
fn busybox(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["sh", "true", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
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
