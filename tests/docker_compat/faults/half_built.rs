//! The daemon dies while a container is being built: whoever builds it notices and takes everything back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::wait;

use super::{Bench, Residue};
use crate::cli::host;

/// A process of the host, as the machine numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
}

/// All `shoal-shim` in the process namespace of the daemon, and their children, who may have one of their own already.
fn shims(namespace: &std::path::Path) -> Vec<Process> {
    let of = |pid: i32| {
        let ns = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        let alive = !rest.starts_with('Z');
        (alive && name == "shoal-shim").then_some((Process { pid, parent }, ns == namespace))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(Process, bool)> = entries
        .filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let is_ours = |pid: i32| all.iter().any(|(one, ours)| one.pid == pid && *ours);
    let ours = all.iter().map(|(one, _)| *one);
    ours.filter(|one| is_ours(one.pid) || is_ours(one.parent))
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

/// Whether the shim was told to let the container run: it has told the builder, and closed the pipe by which it did.
fn waits(shim: Process) -> bool {
    let fds = fs::read_dir(format!("/proc/{}/fd", shim.pid));
    !fds.into_iter().flatten().flatten().any(|fd| {
        let is_pipe = fs::read_link(fd.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"));
        // The link's mode is that of the descriptor.
        let is_read = fs::symlink_metadata(fd.path())
            .is_ok_and(|link| link.permissions().mode() & 0o400 != 0);
        is_pipe && !is_read
    })
}

fn kill(signal: &str, pid: i32) -> Result<()> {
    let said = Command::new("kill")
        .args([signal, &pid.to_string()])
        .output()?;
    shoal_tests::lab::text(&said).map(drop)
}

/// A host whose daemon builds a container, for as long as it takes to stop somebody.
struct Site {
    bench: Bench,
    before: Residue,
    client: Child,
    daemon: i32,
    namespace: PathBuf,
    builder: Process,
    shim: Process,
}

impl Site {
    fn open() -> Result<Self> {
        let bench = Bench::new(host(&[])?, None);
        // Copying this into a volume keeps the builder busy.
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
        let client = bench
            .client(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (builder, shim) = wait("somebody who builds", || {
            Ok(builder(&shims(&namespace)).ok_or_else(|| "nobody".to_owned()))
        })?;
        Ok(Self {
            bench,
            before,
            client,
            daemon: i32::try_from(daemon)?,
            namespace,
            builder,
            shim,
        })
    }

    /// Kills the daemon, which the client notices.
    fn kill_daemon(&mut self) -> Result<()> {
        kill("-KILL", self.daemon)?;
        self.client.wait().context("the client")?;
        // So that the lab knows of it, if it does not yet.
        let _ = self.bench.lab.lab("kill", &["--daemon", "n1"]);
        Ok(())
    }

    /// The next daemon has a container that was never started, and once it is removed nothing is left.
    fn is_left_clean(&self) -> Result<()> {
        let state = self.bench.run("inspect -f {{.State.Status}} one")?;
        anyhow::ensure!(state.trim() == "created", "it is {state}");
        for words in ["rm -v one", "volume rm kept"] {
            self.bench.run(words)?;
        }
        wait("nothing left", || {
            Ok(match self.bench.residue()?.difference(&self.before) {
                None => Ok(()),
                Some(difference) => Err(difference),
            })
        })?;
        self.bench.usage_adds_up()
    }
}

#[test]
fn a_daemon_killed_while_a_container_is_built_leaves_nobody_waiting() -> Result<()> {
    let mut site = Site::open()?;
    kill("-STOP", site.builder.pid)?;
    wait("the word to go on", || {
        Ok(if waits(site.shim) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        })
    })?;
    site.kill_daemon()?;
    let gone = wait("all who built to end", || {
        let left = shims(&site.namespace);
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    });
    // Whatever was found: a stopped process is not left behind.
    let _ = kill("-CONT", site.builder.pid);
    gone?;
    site.bench.lab.lab("start", &["n1"])?;
    site.is_left_clean()
}

/// On a busy machine the next daemon may ask a shim how things are before that has noticed that it works for nobody.
#[test]
fn a_shim_that_the_next_daemon_meets_while_it_builds_gives_up() -> Result<()> {
    let mut site = Site::open()?;
    kill("-STOP", site.shim.pid)?;
    site.kill_daemon()?;
    let started = std::thread::scope(|scope| {
        let start = scope.spawn(|| site.bench.lab.lab("start", &["n1"]));
        let met = wait("the next daemon to ask", || {
            let table = fs::read_to_string(format!("/proc/{}/net/unix", site.shim.pid))?;
            // One who listens, and one for each who is connected.
            let ends = table.lines().filter(|line| line.ends_with("/s"));
            Ok(match ends.count() {
                0 | 1 => Err("nobody is connected".to_owned()),
                _ => Ok(()),
            })
        });
        let _ = kill("-CONT", site.shim.pid);
        met?;
        start.join().expect("starting does not panic")
    });
    started?;
    site.is_left_clean()
}
