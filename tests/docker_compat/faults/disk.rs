//! A data root that is full.

use std::process::Command;

use anyhow::{Context, Result, bail};
use shoal_tests::{
    images,
    lab::{TestLab, text},
    wait,
};

use super::Bench;

/// Size of the data root in MiB: room for the image and little more.
const SIZE_MIB: usize = 24;

/// A folder of the machine with a small file system on it, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        let size = format!("size={SIZE_MIB}m");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]);
        text(&mount.arg(folder.path()).output()?)?;
        Ok(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The host that used it is gone by now; a lazy unmount cannot fail for a straggler.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_refuses_clearly_and_leaves_nothing_half_done() -> Result<()> {
    let small = Small::new()?;
    let root = small.0.path().join("data");
    let lab = TestLab::up_with(
        1,
        0,
        &[&format!("--daemon-arg=--data-root={}", root.display())],
    )?;
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let bench = Bench::new(lab, None);
    bench.run(&format!("load -q -i {}", archive.display()))?;
    bench.run("run -d --name up -v kept:/v busybox:test sleep 1000")?;
    let before = bench.run("system df --format json")?;

    // From inside, until nothing fits any more.
    bench
        .client("exec up dd if=/dev/zero of=/v/ballast bs=64k")
        .output()?;
    let free = Command::new("df")
        .arg("--output=avail")
        .arg(small.0.path())
        .output()?;
    let free = text(&free)?;
    let free: u64 = free.lines().last().context("a number")?.trim().parse()?;
    assert!(free < 64, "{free} kB are free");

    let context = folder.path().join("context");
    std::fs::create_dir(&context)?;
    std::fs::write(context.join("file"), vec![7; 1 << 20])?;
    std::fs::write(
        context.join("Dockerfile"),
        "FROM busybox:test\nCOPY file /file\n",
    )?;
    for words in [
        format!("load -q -i {}", archive.display()),
        format!("build -q -t made:1 {}", context.display()),
        format!("cp {} up:/tmp", context.join("file").display()),
        "commit up made:2".to_owned(),
        "create --name half -v /anonymous busybox:test true".to_owned(),
        "run --name half2 busybox:test dd if=/dev/zero of=/x bs=1M count=4".to_owned(),
        "volume create another".to_owned(),
    ] {
        let output = bench.client(&words).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // What needs no room may succeed.
        if !output.status.success() {
            let clear = said.to_lowercase().contains("no space left on device");
            assert!(clear, "{words}: {said}");
        }
    }
    // What ran goes on running, and can be ended and asked.
    bench.run("exec up true")?;
    bench.run("ps")?;
    bench.lab.lab("kill", &["--daemon", "n1"])?;
    bench.lab.lab("start", &["n1"])?;
    let state = bench.run("inspect -f {{.State.Status}} up")?;
    if state.trim() != "running" {
        bail!("the container is {state}");
    }
    // With room again everything works, and what failed has left nothing.
    bench.run("exec up rm /v/ballast")?;
    bench.try_all(&[
        "rm -f -v half half2".to_owned(),
        "image rm -f made:1 made:2".to_owned(),
        "volume rm another".to_owned(),
        "image prune -f".to_owned(),
        "builder prune -a -f".to_owned(),
    ])?;
    wait("the same usage as before", || {
        let now = bench.run("system df --format json")?;
        Ok(if now == before {
            Ok(())
        } else {
            Err(format!("{before}\n{now}"))
        })
    })?;
    let library = residue_of(&root);
    assert_eq!(library, Vec::<String>::new());
    bench.run("run --rm busybox:test true")?;
    bench.run("rm -f -v up").map(drop)
}

/// What is in the folders where things are made.
fn residue_of(root: &std::path::Path) -> Vec<String> {
    let folders = ["trash", "layers/incoming", "images/incoming"];
    let inside = |folder: &str| {
        let folder = folder.to_owned();
        super::residue::names(&root.join(&folder))
            .into_iter()
            .map(move |name| format!("{folder}/{name}"))
    };
    folders.into_iter().flat_map(inside).collect()
}
