//! One host of a lab: a process 1 in its own network, mount, PID, UTS and IPC namespaces.

use std::{
    fs, io,
    io::{BufRead, BufReader, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::sethostname,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{LabError, doing};

/// Where a host's daemon keeps what a reboot empties: in memory, as on other hosts.
const RUN: &str = "/run/shoal";
/// Where it keeps the rest; bound to a folder of the lab, so that the default holds inside.
const LIB: &str = "/var/lib/shoal";

/// A process and when it started, in clock ticks since boot: together they name it for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id on the machine.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat (proc_pid_stat(5)).
    pub started: u64,
}

impl ProcessId {
    /// Names the process that has this number now; `None` if there is none, or only its remains.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, in parentheses, may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends it SIGKILL if it still runs, and does not wait.
    pub(super) fn kill(self) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // Fails only if it has ended meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(super) fn end(self) -> Result<(), LabError> {
        let what = || format!("cannot end process {}", self.pid);
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(problem) => return doing(Err(problem.into()), what),
        };
        // The handle is to whatever has the number; only now is it certain to be the right process.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(problem) => return doing(Err(problem.into()), what),
        }
        let mut gone = [rustix::event::PollFd::new(
            &handle,
            rustix::event::PollFlags::IN,
        )];
        loop {
            match rustix::event::poll(&mut gone, None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(problem) => return doing(Err(problem.into()), what),
            }
        }
    }
}

/// Makes a host and returns its process 1, as the machine numbers it.
pub(super) fn boot(name: &str, dir: &Path) -> Result<ProcessId, LabError> {
    let what = || format!("cannot boot {name}");
    for place in [RUN, LIB] {
        doing(fs::create_dir_all(place), || format!("cannot make {place}"))?;
    }
    let program = super::own_program()?;
    let output = Command::new(program)
        .args(["lab-host", "boot", name])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .output();
    let output = doing(output, what)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let pid = said.trim().parse().ok().filter(|_| output.status.success());
    pid.and_then(ProcessId::of)
        .ok_or_else(|| LabError::Command {
            host: name.to_owned(),
            command: "boot".to_owned(),
            problem: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
}

/// Entry of the hidden command `shoal lab-host`: `boot NAME DIR`, then `init DIR` as process 1 of the new host.
///
/// Must be called before the process has a second thread.
pub fn init(words: &[String]) -> io::Result<()> {
    match words {
        [verb, name, dir] if verb == "boot" => enter_namespaces(name, dir),
        [verb, dir] if verb == "init" => be_process_one(Path::new(dir)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "lab-host is for `shoal lab` alone",
        )),
    }
}

fn enter_namespaces(name: &str, dir: &str) -> io::Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )?;
    sethostname(name)?;
    // The first child is process 1 of the new PID namespace.
    let mut init = Command::new(std::env::current_exe()?)
        .args(["lab-host", "init", dir])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = init.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line != "ready\n" {
        let status = init.wait()?;
        return Err(io::Error::other(format!(
            "process 1 of {name} ended with {status}"
        )));
    }
    writeln!(io::stdout(), "{}", init.id())
}

fn be_process_one(dir: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        none,
    )?;
    let lib = dir.join("lib");
    mount(Some(&lib), LIB, none, MsFlags::MS_BIND, none)?;
    mount(
        Some("tmpfs"),
        RUN,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )?;
    // A lab has no way out. Without servers a look-up of an outside name fails at once instead of after a timeout.
    let resolv_conf = dir.join("resolv.conf");
    fs::write(&resolv_conf, "# No server: a lab has no way out.\n")?;
    if Path::new("/etc/resolv.conf").exists() {
        mount(
            Some(&resolv_conf),
            "/etc/resolv.conf",
            none,
            MsFlags::MS_BIND,
            none,
        )?;
    }
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.add(Signal::SIGTERM);
    awaited.thread_block()?;
    // Nobody reads the standard streams from here on.
    writeln!(io::stdout(), "ready")?;
    io::stdout().flush()?;
    let null = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdout(null.as_fd())?;
    nix::unistd::dup2_stderr(null.as_fd())?;
    loop {
        if awaited.wait()? == Signal::SIGTERM {
            return Ok(());
        }
        // Orphans of the whole host end here.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(problem) => return Err(problem.into()),
            }
        }
    }
}

/// Where the machine finds what a host has in [`RUN`], as long as it is up.
pub(super) fn run_of(init: ProcessId) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{RUN}", init.pid))
}

/// Starts a program inside a host.
///
/// A thread of its own enters the namespaces, since a mount namespace belongs to a thread only after it has given up
/// sharing its root and working directory; the child inherits them, and the thread ends.
pub(super) fn spawn_inside(init: ProcessId, mut command: Command) -> Result<Child, LabError> {
    let enter = move || -> io::Result<Child> {
        let handles = ["uts", "ipc", "net", "pid", "mnt"]
            .map(|kind| fs::File::open(format!("/proc/{}/ns/{kind}", init.pid)));
        unshare(CloneFlags::CLONE_FS)?;
        for handle in handles {
            setns(handle?, CloneFlags::empty())?;
        }
        command.spawn()
    };
    let joined = thread::spawn(enter)
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread ended early")));
    doing(joined, || "cannot start a program on the host".to_owned())
}

/// Removes the mount points that [`boot`] made, unless somebody else keeps something there.
pub(super) fn forget_places() {
    for place in [RUN, LIB] {
        // Fails where it is not empty, and then it is not ours alone.
        let _ = fs::remove_dir(place);
    }
}

/// Removes the cgroups below `parent` in every hierarchy, and says what would not go.
pub(super) fn remove_cgroups(parent: &str) -> Vec<String> {
    let mut roots: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    roots.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    let mut remains = Vec::new();
    for root in roots {
        let group = root.join(parent);
        if group.is_dir() {
            remove_group(&group, &mut remains);
        }
    }
    remains
}

fn remove_group(group: &Path, remains: &mut Vec<String>) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path(), remains);
        }
    }
    if let Err(problem) = fs::remove_dir(group)
        && problem.kind() != io::ErrorKind::NotFound
    {
        remains.push(format!("cgroup {}: {problem}", group.display()));
    }
}
