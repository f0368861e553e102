//! The daemon dies while a container is being built: whoever builds it notices and takes everything back.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::wait;

use super::Bench;
use crate::cli::host;

/// A process of the host, as the machine numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
}

/// All `shoal-shim` in the process namespace of the daemon.
fn shims(namespace: &std::path::Path) -> Vec<Process> {
    let of = |pid: i32| {
        let ns = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        let alive = !rest.starts_with('Z');
        (alive && ns == namespace && name == "shoal-shim").then_some(Process { pid, parent })
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The one that builds a container and the shim it works for, while they are at it: the nursery's grandchild.
fn builder(all: &[Process]) -> Option<(Process, Process)> {
    let by_pid = |pid: i32| all.iter().copied().find(|one| one.pid == pid);
    all.iter().find_map(|&one| {
        let shim = by_pid(one.parent)?;
        by_pid(shim.parent).map(|_| (one, shim))
    })
}

/// Whether the shim was told to let the container run, and waits for the builder's end.
fn waits(shim: Process) -> bool {
    let fds = fs::read_dir(format!("/proc/{}/fd", shim.pid));
    fds.into_iter().flatten().flatten().any(|fd| {
        fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().contains("pidfd"))
    })
}

fn kill(signal: &str, pid: i32) -> Result<()> {
    let said = Command::new("kill")
        .args([signal, &pid.to_string()])
        .output()?;
    shoal_tests::lab::text(&said).map(drop)
}

#[test]
fn a_daemon_killed_while_a_container_is_built_leaves_nobody_waiting() -> Result<()> {
    let bench = Bench::new(host(&[])?, None);
    // Copying this into a volume keeps the builder busy for as long as it takes to stop it.
    bench.run("run --name filler busybox:test dd if=/dev/zero of=/tmp/big bs=1M count=300")?;
    bench.run("commit filler big:1")?;
    bench.run("rm filler")?;
    wait("what was removed to be gone", || {
        let trash = super::residue::names(&bench.lab.folder("n1").join("lib/trash"));
        Ok(if trash.is_empty() {
            Ok(())
        } else {
            Err(trash.join(" "))
        })
    })?;
    let before = bench.residue_at_rest()?;
    let daemon = bench.daemon()?;
    let namespace = fs::read_link(format!("/proc/{daemon}/ns/pid"))?;

    let words = "run -d --name one -p 8080:80 -v kept:/tmp big:1 sleep 1000";
    let mut client = bench
        .client(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (one, shim) = wait("somebody who builds", || {
        Ok(builder(&shims(&namespace)).ok_or_else(|| "nobody".to_owned()))
    })?;
    kill("-STOP", one.pid)?;
    wait("the word to go on", || {
        Ok(if waits(shim) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        })
    })?;
    kill("-KILL", i32::try_from(daemon)?)?;
    client.wait().context("the client")?;
    let gone = wait("all who built to end", || {
        let left = shims(&namespace);
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    });
    // Whatever was found: a stopped process is not left behind.
    let _ = kill("-CONT", one.pid);
    gone?;
    // So that the lab knows of it, if it does not yet.
    let _ = bench.lab.lab("kill", &["--daemon", "n1"]);
    bench.lab.lab("start", &["n1"])?;
    let state = bench.run("inspect -f {{.State.Status}} one")?;
    anyhow::ensure!(state.trim() == "created", "it is {state}");
    for words in ["rm -v one", "volume rm kept"] {
        bench.run(words)?;
    }
    wait("nothing left", || {
        Ok(match bench.residue()?.difference(&before) {
            None => Ok(()),
            Some(difference) => Err(difference),
        })
    })?;
    bench.usage_adds_up()
}
