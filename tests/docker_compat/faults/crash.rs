//! The daemon is killed after so many of its calls that change files, mounts or networks.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    images,
    lab::{Place, TestLab},
    skipped, wait,
};

use super::Bench;
use crate::cli::host_in;

/// Calls after which the world is another one.
const CHANGES: &str = "mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
    fsync,fdatasync,syncfs,mount,umount2,move_mount,fsmount,unshare,setns,sendmsg,sendto,connect,kill,pidfd_send_signal,\
    ftruncate,copy_file_range,fchown,fchownat";

/// One thing to die in.
struct Act {
    name: &'static str,
    /// Makes ready what it needs.
    before: Vec<String>,
    words: String,
    /// Removes what it may have made.
    after: Vec<String>,
}

fn act(name: &'static str, before: &[&str], words: &str, after: &[&str]) -> Act {
    let all = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Act {
        name,
        before: all(before),
        words: words.to_owned(),
        after: all(after),
    }
}

fn acts(registry: &str, folder: &Path) -> Vec<Act> {
    let folder = folder.display();
    let run = "--name one -v kept:/v -v /anonymous -p 8080:80 --network net --restart no busybox:test sleep 1000";
    let running = format!("run -d {run}");
    let gone: &[&str] = &[
        "rm -f -v one",
        "volume rm kept",
        "network rm net",
        "image rm -f made:1",
    ];
    let network = "network create --subnet 10.213.7.0/24 net";
    vec![
        act("create", &[network], &format!("create {run}"), gone),
        act("run", &[network], &running, gone),
        act("stop", &[network, &running], "stop -t 0 one", gone),
        act("rm", &[network, &running], "rm -f -v one", gone),
        act("restart", &[network, &running], "restart -t 0 one", gone),
        act(
            "run --rm",
            &[network],
            "run --rm --network net busybox:test true",
            &["network rm net", "container prune -f"],
        ),
        act("network create", &[], network, gone),
        act("network rm", &[network], "network rm net", gone),
        act(
            "network connect",
            &[network, "run -d --name one busybox:test sleep 1000"],
            "network connect net one",
            gone,
        ),
        act("volume create", &[], "volume create kept", gone),
        act("commit", &[network, &running], "commit one made:1", gone),
        act(
            "build",
            &[],
            &format!("build -q -t made:1 {folder}/context"),
            &[
                "image rm -f made:1",
                "container prune -f",
                "image prune -f",
                "builder prune -a -f",
            ],
        ),
        act(
            "load",
            &[],
            &format!("load -q -i {folder}/other.tar"),
            &["image rm -f other:1"],
        ),
        act(
            "pull",
            &[],
            &format!("pull -q {registry}/other:1"),
            // Parts of a blob are kept for the next attempt, which uses them up.
            &[
                &format!("pull -q {registry}/other:1"),
                &format!("image rm -f {registry}/other:1"),
            ],
        ),
        act(
            "rmi",
            &[&format!("load -q -i {folder}/other.tar")],
            "image rm other:1",
            &["image rm -f other:1"],
        ),
    ]
}

/// `strace`, attached to every thread of the daemon.
struct Trace {
    child: Child,
    calls: mpsc::Receiver<()>,
    /// Somebody has decided: the reader to kill the daemon, or the end to let it go. A tracer that is told to let go of
    /// what is being killed waits for ever.
    decided: Arc<AtomicBool>,
}

impl Trace {
    /// Kills the daemon once it has made `last` calls; without a number they are counted.
    fn of(daemon: u32, last: Option<usize>) -> Result<Self> {
        let mut child = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-s",
                "0",
                "-e",
                &format!("trace=?{}", CHANGES.replace(',', ",?")),
                "-p",
            ])
            .arg(daemon.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // A process that has nothing left to do but this kills without delay.
        let mut killer = Command::new("sh")
            .args(["-c", "read go && kill -9 $0"])
            .arg(daemon.to_string())
            .stdin(Stdio::piped())
            .spawn()?;
        let mut trigger = killer.stdin.take().context("the pipe was asked for")?;
        let lines = BufReader::new(child.stderr.take().context("the pipe was asked for")?);
        let (tell, calls) = mpsc::channel();
        let decided = Arc::new(AtomicBool::new(false));
        let kills = Arc::clone(&decided);
        std::thread::spawn(move || {
            // Not the second halves of calls that were interrupted by those of other threads.
            let lines = lines.lines().map_while(Result::ok);
            let changes = lines.filter(|line| line.contains('(') && !line.contains("resumed>"));
            for (number, _) in changes.enumerate() {
                if Some(number + 1) == last && !kills.swap(true, Ordering::SeqCst) {
                    let _ = trigger.write_all(b"go\n");
                }
                // Nobody counts any more after the end.
                let _ = tell.send(());
            }
            drop(trigger);
            let _ = killer.wait();
        });
        // Attached to all threads: every one of them has a tracer.
        wait("the tracer", || {
            if !alive(daemon) {
                // What it does by itself was enough.
                return Ok(Ok(()));
            }
            let tasks = fs::read_dir(format!("/proc/{daemon}/task"))?;
            let mut free = 0;
            for task in tasks.flatten() {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                free += usize::from(status.contains("TracerPid:\t0"));
            }
            Ok(if free == 0 {
                Ok(())
            } else {
                Err(format!("{free} threads are free"))
            })
        })?;
        Ok(Self {
            child,
            calls,
            decided,
        })
    }

    /// Lets go of the daemon; tells how many calls there were.
    fn end(mut self) -> Result<usize> {
        if !self.decided.swap(true, Ordering::SeqCst) {
            // Politely, so that it detaches instead of leaving threads stopped.
            let pid = self.child.id().to_string();
            Command::new("kill").args(["-TERM", &pid]).output()?;
        }
        self.child.wait()?;
        Ok(self.calls.iter().count())
    }
}

/// Puts a further image into a file and into the registry, and a context beside it.
fn prepare(lab: &TestLab, registry: &images::Registry, folder: &Path) -> Result<()> {
    let context = folder.join("context");
    fs::create_dir(&context)?;
    fs::write(context.join("file"), "content")?;
    fs::write(
        context.join("Dockerfile"),
        "FROM busybox:test\nCOPY file /file\nRUN echo more > /more\nENV A=b\n",
    )?;
    let rootfs = folder.join("rootfs");
    fs::create_dir(&rootfs)?;
    for number in 0..20 {
        fs::write(rootfs.join(number.to_string()), vec![number; 20_000])?;
    }
    let layer = images::Layer::pack(&rootfs, &folder.join("layer.tar"))?;
    let layers = [layer];
    let image = images::Image {
        name: "other:1".to_owned(),
        layers: layers.iter().collect(),
        entrypoint: &[],
    };
    images::save(&[image], folder, &folder.join("other.tar"))?;
    let bench = lab.docker_host("n1");
    let name = format!("{}/other:1", registry.addr);
    let archive = folder.join("other.tar").display().to_string();
    lab.shoal(&["-H", &bench, "load", "-q", "-i", &archive])?;
    lab.shoal(&["-H", &bench, "tag", "other:1", &name])?;
    let pushed = Command::new(shoal_tests::lab::program())
        .args(["-H", &bench, "push", "-q", &name])
        .env("DOCKER_CONFIG", registry.credentials()?)
        .output()?;
    shoal_tests::lab::text(&pushed)?;
    lab.shoal(&["-H", &bench, "image", "rm", &name, "other:1"])?;
    Ok(())
}

#[test]
fn a_daemon_killed_at_any_point_leaves_nothing_half_done() -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        skipped("strace is not installed");
        return Ok(());
    }
    // How many points of every act; all of them takes an hour.
    let points: usize = std::env::var("SHOAL_CRASH_POINTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let only = std::env::var("SHOAL_CRASH_ACT").ok();
    let place = Place::take();
    let addr = format!("{}:5002", place.machine());
    let lab = host_in(place, &[&format!("--insecure-registry={addr}")])?;
    let registry = images::Registry::start(&addr)?;
    let folder = tempfile::tempdir()?;
    prepare(&lab, &registry, folder.path())?;
    let bench = Bench::new(lab, Some(registry.credentials()?));
    let mut wrong = Vec::new();
    for act in acts(&registry.addr, folder.path()) {
        if only.as_ref().is_some_and(|only| only != act.name) {
            continue;
        }
        if let Err(error) = die_in(&bench, &act, points) {
            wrong.push(format!("{}: {error:#}", act.name));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("\n\n"))
}

fn die_in(bench: &Bench, act: &Act, points: usize) -> Result<()> {
    // Once in peace: what it needs is there, what it leaves is known, and its calls are counted.
    let peace = |last: Option<usize>| -> Result<usize> {
        for words in &act.before {
            bench.run(words)?;
        }
        let trace = Trace::of(bench.daemon()?, last)?;
        let said = bench.client(&act.words).output()?;
        let calls = trace.end()?;
        if last.is_none() {
            shoal_tests::lab::text(&said).with_context(|| act.words.clone())?;
        }
        Ok(calls)
    };
    bench.try_all(&act.after)?;
    peace(None)?;
    bench.try_all(&act.after)?;
    let before = bench.residue_at_rest()?;
    let calls = peace(None)?;
    bench.try_all(&act.after)?;
    for point in 0..points {
        let last = (calls * (2 * point + 1) / (2 * points)).max(1);
        peace(Some(last))?;
        let at = || format!("killed after {last} of {calls} calls");
        if !alive(bench.daemon()?) {
            let _ = bench.lab.lab("kill", &["--daemon", "n1"]);
        }
        bench.lab.lab("start", &["n1"])?;
        whole(bench).with_context(at)?;
        bench.try_all(&act.after)?;
        wait(&format!("{}, {}: nothing left", act.name, at()), || {
            Ok(match bench.residue()?.difference(&before) {
                None => Ok(()),
                Some(difference) => Err(difference),
            })
        })?;
        bench.usage_adds_up().with_context(at)?;
    }
    Ok(())
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !(stat.is_empty() || stat.contains(") Z "))
}

/// Every container there is can be used, and what is counted is there.
fn whole(bench: &Bench) -> Result<()> {
    bench.usage_adds_up()?;
    for name in bench.run("ps -a --format {{.Names}}")?.lines() {
        let state = bench.run(&format!("inspect -f {{{{.State.Status}}}} {name}"))?;
        match state.trim() {
            "created" | "exited" => {
                bench.run(&format!("start {name}"))?;
            }
            "running" => {}
            other => bail!("container {name} is {other}"),
        }
        // Others than this one end by themselves.
        if name == "one" {
            bench.run(&format!("exec {name} true"))?;
        }
    }
    for name in bench.run("images -q")?.lines() {
        bench.run(&format!("image inspect {name}"))?;
    }
    Ok(())
}
