//! Bringing images from a registry, against docker.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use shoal_tests::images::{Image, Layer, save};

use super::{Bench, Pair, docker::Sides, tell, until};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "pull",
    about: "pull and unpack of an image of 1 GB in 8 gzip layers against docker",
    run: pull,
}];

/// The same on both hosts: a registry of its own on loopback, so that both trust it and none is further away.
const REGISTRY: &str = "127.0.0.1:5000";
const NAME: &str = "127.0.0.1:5000/bench/big:1";
const LAYERS: usize = 8;
/// About what the images of common languages hold: 30,000 files of 35 kB.
const FILES_PER_LAYER: usize = 3_750;
const FILE_BYTES: usize = 35_000;

/// Registries that end with their owner.
struct Registries(Vec<Child>);

impl Drop for Registries {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pull(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let folder = shell::target().join("bench-images");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let _registries = registries(bench, &sides, &folder)?;
    let archive = image(&folder)?;
    sides.ours(&["load", "-q", "-i", &archive.to_string_lossy()])?;
    sides.ours(&["push", "-q", NAME])?;
    sides.ours(&["rmi", NAME])?;
    let once = |side: &dyn Fn(&[&str]) -> Result<String>| -> Result<Duration> {
        let began = Instant::now();
        side(&["pull", "-q", NAME])?;
        let took = began.elapsed();
        side(&["rmi", NAME])?;
        Ok(took)
    };
    let daemon = sides.daemon_pid("n1")?;
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        forget_peak(daemon)?;
        let ours = once(&|words| sides.ours(words))?;
        peaks.push(peak_kilobytes(daemon)?);
        times.push((ours, once(&|words| sides.theirs(words))?));
    }
    tell("pull of 1 GB in 8 layers", "docker", &times);
    let most = peaks.into_iter().max().unwrap_or(0);
    println!(
        "memory of the daemon while it pulls: at most {} MB",
        most >> 10
    );
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Has the kernel begin anew with what a process had resident at most.
fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn peak_kilobytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("process {pid} has no VmHWM"))?;
    Ok(number.parse()?)
}

/// Starts Debian's registry on both hosts, with one storage.
fn registries(bench: &Bench, sides: &Sides<'_>, folder: &Path) -> Result<Registries> {
    let config = folder.join("registry.yml");
    let storage = folder.join("storage");
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
            storage.display()
        ),
    )?;
    let mut registries = Registries(Vec::new());
    for host in ["n1", "n2"] {
        let words = [
            "lab",
            "exec",
            "--name",
            "bench",
            host,
            "--",
            "docker-registry",
            "serve",
        ];
        let child = Command::new(&bench.shoal)
            .args(words)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry is not installed")?;
        registries.0.push(child);
        let address = format!("http://{REGISTRY}/v2/");
        until("a registry", || {
            Ok(sides.on(host, &["curl", "-sf", &address]).is_ok())
        })?;
    }
    Ok(registries)
}

/// Writes an archive of an image of that size, the same whenever it is made.
fn image(folder: &Path) -> Result<PathBuf> {
    let mut words = Words(0x9e37_79b9_7f4a_7c15);
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let root = folder.join(format!("root{number}"));
        for file in 0..FILES_PER_LAYER {
            let dir = root.join(format!("usr/lib/part{number}/dir{}", file / 50));
            fs::create_dir_all(&dir)?;
            fs::File::create(dir.join(format!("file{file}")))?
                .write_all(&words.text(FILE_BYTES))?;
        }
        layers.push(Layer::pack_gzip(
            &root,
            &folder.join(format!("layer{number}.tar.gz")),
        )?);
        fs::remove_dir_all(&root)?;
    }
    let archive = folder.join("image.tar");
    let image = Image {
        name: NAME.to_owned(),
        layers: layers.iter().collect(),
        entrypoint: &[],
    };
    save(&[image], folder, &archive)?;
    Ok(archive)
}

/// Text that packs about as well as programs do: numbers of changing length between common words.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn text(&mut self, bytes: usize) -> Vec<u8> {
        const COMMON: [&[u8]; 8] = [
            b"return ",
            b"function ",
            b"const ",
            b"import ",
            b"    if ",
            b"struct ",
            b"value = ",
            b"\n\n// ",
        ];
        let mut text = Vec::with_capacity(bytes + 16);
        while text.len() < bytes {
            let number = self.next();
            text.extend_from_slice(COMMON[usize::try_from(number % 8).unwrap_or(0)]);
            let word = format!("{number:x}");
            text.extend_from_slice(&word.as_bytes()[..word.len() / 2]);
        }
        text.truncate(bytes);
        text
    }
}
