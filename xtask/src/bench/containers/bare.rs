//! A runtime without an engine: what a start costs at the least.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    super::{Bench, docker::IMAGE, docker::Sides, tell},
    ROUNDS,
};
use crate::shell;

/// Both run `true` in namespaces of their own, the network's among them, with the same filter, capabilities, masked paths
/// and control groups; ours comes with the client, the engine, the image's overlay, a log and the removal of all that.
pub(super) fn against_runc(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let folder = shell::target().join("bench-runc");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    bundle(&sides, &folder)?;
    let (bundle, root) = (folder.to_string_lossy(), folder.join("state"));
    let root = root.to_string_lossy();
    let runc = ["--root", &root, "run", "--bundle", &bundle, "shoal-bench"];
    let (shoal, host) = (bench.shoal.to_string_lossy(), sides.our_api().host());
    let alone = [
        "-H",
        &host,
        "run",
        "--rm",
        "--network",
        "none",
        IMAGE,
        "true",
    ];
    let connected = ["-H", &host, "run", "--rm", IMAGE, "true"];
    for (name, words) in [
        ("run --rm --network none IMAGE true", &alone[..]),
        (
            "run --rm IMAGE true, with veth, address, names",
            &connected[..],
        ),
    ] {
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let began = Instant::now();
            shell::read(&shoal, words)?;
            let ours = began.elapsed();
            let began = Instant::now();
            shell::read("runc", &runc)?;
            // The first brings everything into the caches.
            if round > 0 {
                times.push((ours, began.elapsed()));
            }
        }
        tell(name, "runc run", &times);
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Writes a bundle like the one that a container of ours runs from.
fn bundle(sides: &Sides<'_>, folder: &Path) -> Result<()> {
    let api = sides.our_api();
    let id = api.create(IMAGE, &super::IDLE, r#""NetworkMode":"none""#)?;
    api.start(&id)?;
    let config = sides
        .run_folder("n1")
        .join("c")
        .join(&id)
        .join("config.json");
    let config = fs::read_to_string(&config)
        .with_context(|| format!("no configuration at {}", config.display()));
    let rootfs = folder.join("rootfs");
    let copied = api.call("GET", &format!("/containers/{id}/json"), "");
    api.remove(&id)?;
    copied?;
    super::super::docker::busybox_root(&rootfs)?;
    for name in ["etc", "dev", "proc", "sys"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    let config = translated(&config?, &rootfs)?;
    fs::write(folder.join("config.json"), config)?;
    Ok(())
}

/// Our configuration for another runtime: its own root, command and group with limits like ours, and no files of a container
/// that has gone.
fn translated(config: &str, rootfs: &PathBuf) -> Result<String> {
    let script = r#"
import json, sys
config = json.loads(sys.argv[1])
config["root"]["path"] = sys.argv[2]
config["process"]["args"] = ["true"]
config["linux"]["cgroupsPath"] = "/shoal-bench-runc"
config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/etc/")]
names = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]
config["linux"]["namespaces"] = names + [{"type": "network"}]
config["linux"]["resources"] = {
    "pids": {"limit": 4096},
    "devices": [{"allow": False, "access": "rwm"}],
}
print(json.dumps(config))
"#;
    shell::read(
        "python3",
        &["-c", script, config, &rootfs.to_string_lossy()],
    )
}
