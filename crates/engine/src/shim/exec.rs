//! A further process in a running container.
//!
//! It enters the container by one `setns` on the descriptor of its process 1, and is put under the same limits, in the same
//! order, as that.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid,
};
use oci_spec::runtime::{Capabilities, Spec, User};

use super::executor::{become_process, describe};
use super::filter::Filter;
use super::groups;
use super::launch::streams_with;
use super::privileges;
use super::protocol::{ExecLaunch, Failure, Supervise};
use super::rootfs::Root;
use super::serve::Spawned;
use crate::core::capabilities::CapabilitySet;
use crate::core::user;

/// Starts `launch` beside `init`, the container's process 1 and a child of this process.
pub(super) fn spawn(sup: &Supervise, init: Pid, launch: &ExecLaunch) -> Result<Spawned, Failure> {
    let os = |errno: Errno| {
        Failure::new(format!(
            "cannot start a process in the container: {}",
            errno.desc()
        ))
    };
    let (ours, ends) = if launch.tty {
        (None, None)
    } else {
        streams_with(launch.streams.stdin)
            .map(|(ours, ends)| (Some(ours), Some(ends)))
            .map_err(os)?
    };
    let (terminal_ours, terminal_theirs) = UnixStream::pair()
        .map_err(|err| Failure::new(format!("cannot make a socket pair: {err}")))?;
    let (report_out, report_in) = pipe2(OFlag::O_CLOEXEC).map_err(os)?;
    // SAFETY: the shim has one thread.
    let helper = match unsafe { fork() }.map_err(os)? {
        ForkResult::Child => {
            drop((report_out, terminal_ours));
            let report = report_in.into_raw_fd();
            let failure = enter(sup, init, launch, ends, &terminal_theirs, report);
            if let Err(failure) = failure {
                super::executor::report(report, &failure);
            }
            // SAFETY: ends this process at once, without the shim's exit handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    drop((report_in, terminal_theirs, ends));
    let mut notes = Vec::new();
    let read = File::from(report_out).read_to_end(&mut notes);
    let _ = waitpid(helper, None);
    read.map_err(|err| Failure::new(format!("cannot hear from the new process: {err}")))?;
    let (pid, failure) = parse_notes(&notes);
    let pid = match (pid, failure) {
        (Some(pid), None) => pid,
        (pid, failure) => {
            if let Some(pid) = pid {
                let _ = waitpid(pid, None);
            }
            return Err(
                failure.unwrap_or_else(|| Failure::new("the new process ended without a word"))
            );
        }
    };
    let (stdin, stdout, stderr) = ours.unwrap_or((None, None, None));
    let mut spawned = Spawned {
        pid,
        pidfd: pidfd_open(pid).map_err(os)?,
        stdin,
        stdout,
        stderr,
        terminal: None,
    };
    if launch.tty {
        let master = receive_fd(&terminal_ours).map_err(os)?;
        use_terminal(&mut spawned, master, true).map_err(os)?;
    }
    Ok(spawned)
}

/// The helper writes the process id as a number, whoever fails writes a failure.
pub(super) fn parse_notes(notes: &[u8]) -> (Option<Pid>, Option<Failure>) {
    let (mut pid, mut failure) = (None, None);
    for note in serde_json::Deserializer::from_slice(notes)
        .into_iter::<serde_json::Value>()
        .flatten()
    {
        match note.as_i64().and_then(|number| i32::try_from(number).ok()) {
            Some(number) => pid = Some(Pid::from_raw(number)),
            None => failure = serde_json::from_value(note).ok(),
        }
    }
    (pid, failure)
}

/// Runs in the helper: joins the container and forks the process into it.
fn enter(
    sup: &Supervise,
    init: Pid,
    launch: &ExecLaunch,
    ends: Option<[OwnedFd; 3]>,
    terminal: &UnixStream,
    report: RawFd,
) -> Result<(), Failure> {
    let fail = |what: &str, errno: Errno| Failure::new(format!("cannot {what}: {}", errno.desc()));
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let mut spec = Spec::load(sup.run_dir.join("config.json"))
        .map_err(|err| Failure::new(format!("cannot read the container's spec: {err}")))?;
    let adjust = spec
        .process()
        .as_ref()
        .and_then(|process| process.oom_score_adj());
    let _ = std::fs::write("/proc/self/oom_score_adj", adjust.unwrap_or(0).to_string());
    let filter = Filter::read(&sup.run_dir)?;
    let bounding = super::bounding();
    let init = pidfd_open(init).map_err(|errno| fail("reach the container", errno))?;
    for dir in &sup.cgroups {
        groups::join(dir)
            .map_err(|err| Failure::new(format!("cannot join {}: {err}", dir.display())))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&init, namespaces).map_err(|errno| fail("enter the container", errno))?;
    // From here on `/` is the container's, and hostile.
    finish_spec(&mut spec, launch, bounding)?;
    match clone_sibling().map_err(|errno| fail("fork in the container", errno))? {
        Some(pid) => {
            super::executor::report_pid(report, pid);
            Ok(())
        }
        None => {
            let failure = match prepare(&spec, launch, filter.as_ref(), ends, terminal) {
                Ok(()) => become_process(&spec),
                Err(failure) => failure,
            };
            super::executor::report(report, &failure);
            // SAFETY: ends this process at once, without the shim's exit handlers.
            unsafe { libc::_exit(failure.exit_code) }
        }
    }
}

/// Forks with this process's parent as the parent; `None` in the child.
pub(super) fn clone_sibling() -> Result<Option<Pid>, Errno> {
    fork_with(libc::CLONE_PARENT)
}

/// Forks with these flags of `clone`, of which none shares memory; `None` in the child.
pub(super) fn fork_with(flags: libc::c_int) -> Result<Option<Pid>, Errno> {
    let flags = flags | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork; the process has one thread, and the other
    // arguments are not used with these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    let pid = Errno::result(pid)?;
    Ok((pid != 0).then(|| Pid::from_raw(i32::try_from(pid).expect("process ids are 32 bits"))))
}

/// Turns the container's spec into that of the new process.
fn finish_spec(
    spec: &mut Spec,
    launch: &ExecLaunch,
    bounding: CapabilitySet,
) -> Result<(), Failure> {
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| Failure::new("the container's spec has no process"))?;
    process.set_args(Some(launch.args.clone()));
    process.set_terminal(Some(launch.tty));
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    if let Some(wanted) = &launch.user {
        let root = Root::open(PathBuf::from("/"))?;
        let passwd = root.read_text(Path::new("/etc/passwd"), user::ACCOUNT_FILE_MAX)?;
        let group = root.read_text(Path::new("/etc/group"), user::ACCOUNT_FILE_MAX)?;
        let who = user::resolve(wanted, &[], &passwd, &group)
            .map_err(|err| Failure::new(err.to_string()))?;
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", who.home));
        let mut oci_user = User::default();
        oci_user
            .set_uid(who.uid)
            .set_gid(who.gid)
            .set_additional_gids(Some(who.groups));
        process.set_user(oci_user);
    }
    for entry in &launch.env {
        let key = entry.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(key));
        if entry.contains('=') {
            env.push(entry.clone());
        }
    }
    if launch.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(env));
    if let Some(cwd) = &launch.cwd {
        process.set_cwd(PathBuf::from(cwd));
    }
    if launch.privileged {
        let all: Capabilities = bounding.iter().collect();
        let mut caps = process.capabilities().clone().unwrap_or_default();
        caps.set_bounding(Some(all.clone()))
            .set_effective(Some(all.clone()))
            .set_permitted(Some(all));
        process.set_capabilities(Some(caps));
    }
    spec.set_process(Some(process));
    Ok(())
}

/// Runs in the new process: everything before the exec.
fn prepare(
    spec: &Spec,
    launch: &ExecLaunch,
    filter: Option<&Filter>,
    ends: Option<[OwnedFd; 3]>,
    terminal: &UnixStream,
) -> Result<(), Failure> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |errno: Errno| Failure::new(format!("cannot {what}: {}", describe(errno)))
    };
    let _ = prctl::set_pdeathsig(None);
    setsid().map_err(fail("begin a session"))?;
    match ends {
        Some([stdin, stdout, stderr]) => set_streams(&stdin, &stdout, &stderr)?,
        None => {
            let slave =
                open_terminal(terminal, launch.console_size).map_err(fail("open a terminal"))?;
            set_streams(&slave, &slave, &slave)?;
        }
    }
    privileges::assume(spec, filter)
}

/// Makes these the standard streams of this process.
pub(super) fn set_streams(
    stdin: &OwnedFd,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<(), Failure> {
    let fail = |name: &'static str| {
        move |errno: Errno| Failure::new(format!("cannot set {name}: {}", describe(errno)))
    };
    dup2_stdin(stdin).map_err(fail("stdin"))?;
    dup2_stdout(stdout).map_err(fail("stdout"))?;
    dup2_stderr(stderr).map_err(fail("stderr"))
}

/// Lets the container's user open its own streams again, as programs that log to `/dev/stdout` do.
pub(super) fn give(fd: &impl AsFd, user: &User) {
    let ours = nix::sys::stat::fstat(fd).is_ok_and(|stat| {
        matches!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO) || libc::major(stat.st_rdev) == 136
    });
    // Never the null device, which is the host's.
    if ours {
        let _ = nix::unistd::fchown(fd, Some(Uid::from_raw(user.uid())), None);
    }
}

/// A terminal of the container's own devpts: sends the master to the shim, takes the slave as controlling terminal.
pub(super) fn open_terminal(to: &UnixStream, size: Option<(u16, u16)>) -> Result<OwnedFd, Errno> {
    let open = |path: &str| {
        nix::fcntl::open(
            path,
            OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    };
    let master = open("/dev/pts/ptmx")?;
    // A container may put anything at that path; only the multiplexer of a devpts has this number.
    let stat = nix::sys::stat::fstat(&master)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != libc::makedev(5, 2) {
        return Err(Errno::ENXIO);
    }
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which lives until after the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and makes a new descriptor. It asks the master itself for its
    // other end, so no path is walked.
    let slave =
        Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) })?;
    // SAFETY: just made by the kernel and owned by nobody else.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    if let Some((rows, cols)) = size {
        set_size(&master, rows, cols)?;
    }
    let fds = [master.as_raw_fd()];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(b"t")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    // SAFETY: TIOCSCTTY takes an int by value.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(slave)
}

/// Lets the shim's side of a process be a terminal.
pub(super) fn use_terminal(
    spawned: &mut Spawned,
    master: OwnedFd,
    stdin: bool,
) -> Result<(), Errno> {
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::EMFILE);
    spawned.stdout = Some(copy(&master)?);
    spawned.stdin = if stdin { Some(copy(&master)?) } else { None };
    spawned.terminal = Some(master);
    Ok(())
}

/// Takes the terminal that a container's process sends to its console socket.
pub(super) fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd, Errno> {
    let (socket, _) = listener.accept().map_err(|_| Errno::ENOTCONN)?;
    receive_fd(&socket)
}

fn receive_fd(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut byte = [0_u8; 64];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let [fd] = fds.as_slice()
        {
            // SAFETY: just made by the kernel for this process and owned by nobody else.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(Errno::EBADMSG)
}

/// Sets the size of a terminal.
pub(super) fn set_size(terminal: &impl AsFd, rows: u16, cols: u16) -> Result<(), Errno> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize, which lives until after the call.
    Errno::result(unsafe {
        libc::ioctl(
            terminal.as_fd().as_raw_fd(),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    })
    .map(drop)
}

/// A descriptor of a child that was not waited for yet.
pub(super) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers and makes a new descriptor (close-on-exec by itself).
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: just made by the kernel and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) })
}
