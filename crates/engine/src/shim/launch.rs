//! Builds and starts the container, in a child of the shim that ends when it is done.
//!
//! The child takes with it all that building costs in memory, and its mount namespace: the overlay stays mounted in
//! the container's namespace alone, so it is never seen by the host, survives every restart of the daemon, and goes
//! with the container's last process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec, User};

use super::ending;
use super::exec::{self, pidfd_open};
use super::executor::Payload;
use super::filter::{Filter, Walls};
use super::protocol::{Failure, LAUNCH_NAME, Launch, Supervise};
use super::rootfs::{self, MERGED, Root};
use super::serve::Spawned;
use super::{copy_tree, groups, probe, stage};
use crate::core::user;

const CONSOLE_SOCKET: &str = "console";
/// The directory of libcontainer's own state, in the run directory.
const RUNTIME_DIR: &str = "oci";
/// Below it: what libcontainer is told, where that is not the container's spec as it is.
const BUNDLE_DIR: &str = "bundle";

/// The container's ends of its streams.
struct Ends {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A container that is being built by a child of the shim; it does not run before [`Self::finish`], and goes again when
/// this is dropped before.
pub(super) struct Building {
    /// Until it has ended.
    builder: Option<Pid>,
    report: File,
    /// A byte lets the container run; the end of it says that nobody wants it.
    go: Option<OwnedFd>,
    ours: Option<Ours>,
    console: Option<UnixListener>,
}

impl Building {
    /// Begins; the working directory is the container's run directory.
    pub(super) fn begin(sup: &Supervise) -> Result<Self, Failure> {
        let os = |errno: Errno| {
            Failure::new(format!(
                "cannot make the container's streams: {}",
                errno.desc()
            ))
        };
        let console = if sup.tty {
            let bound = UnixListener::bind(CONSOLE_SOCKET);
            let told = |err| Failure::new(format!("cannot listen for the terminal: {err}"));
            Some(bound.map_err(told)?)
        } else {
            None
        };
        let (ours, ends) = if sup.tty {
            (None, None)
        } else {
            streams(sup.open_stdin)
                .map(|(o, e)| (Some(o), Some(e)))
                .map_err(os)?
        };
        let (report_out, report_in) = pipe2(OFlag::O_CLOEXEC).map_err(os)?;
        let (go_out, go_in) = pipe2(OFlag::O_CLOEXEC).map_err(os)?;
        // The container's process becomes a child of the shim when the builder, its first parent, ends. Only until
        // then: other orphans are not ours to wait for.
        nix::sys::prctl::set_child_subreaper(true).map_err(os)?;
        // SAFETY: the shim has one thread.
        match unsafe { fork() }.map_err(os)? {
            ForkResult::Child => {
                drop((report_out, go_in));
                let outcome = build(sup, ends, go_out);
                let json = serde_json::to_vec(&outcome).expect("an outcome is JSON");
                let _ = nix::unistd::write(&report_in, &json);
                // SAFETY: ends this process at once; destructors and exit handlers are the shim's, not ours.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => Ok(Self {
                builder: Some(child),
                report: report_out.into(),
                go: Some(go_in),
                ours,
                console,
            }),
        }
    }

    /// Lets the container run, once it is built. Gives up when all of `askers`, who want that, have closed their ends.
    pub(super) fn finish(
        mut self,
        sup: &Supervise,
        askers: &[BorrowedFd<'_>],
    ) -> Result<Spawned, Failure> {
        let os =
            |errno: Errno| Failure::new(format!("cannot start the container: {}", errno.desc()));
        if let Some(go) = self.go.take() {
            // A builder that has failed already says why.
            let _ = nix::unistd::write(&go, &[1]);
        }
        let outcome = self.outcome(askers)?;
        let _ = std::fs::remove_file(LAUNCH_NAME);
        let pid = Pid::from_raw(outcome?);
        let pidfd = pidfd_open(pid).map_err(os)?;
        let (stdin, stdout, stderr) = self.ours.take().unwrap_or_default();
        let mut spawned = Spawned {
            pid,
            pidfd,
            stdin,
            stdout,
            stderr,
            terminal: None,
        };
        if let Some(console) = self.console.take() {
            let master = exec::receive_terminal(&console).map_err(os)?;
            let _ = std::fs::remove_file(CONSOLE_SOCKET);
            exec::use_terminal(&mut spawned, master, sup.open_stdin).map_err(os)?;
        }
        Ok(spawned)
    }

    /// What became of the building; waits for its end as long as anybody wants to know.
    fn outcome(&mut self, askers: &[BorrowedFd<'_>]) -> Result<Result<i32, Failure>, Failure> {
        let hear = |errno: Errno| {
            Failure::new(format!(
                "cannot hear from the container's builder: {}",
                errno.desc()
            ))
        };
        let Some(builder) = self.builder else {
            return Err(Failure::new("the container was built already"));
        };
        let pidfd = pidfd_open(builder).map_err(hear)?;
        if !has_ended(&pidfd, askers).map_err(hear)? {
            return Err(Failure::new("nobody wants the container any more"));
        }
        let _ = waitpid(builder, None);
        self.builder = None;
        // Without waiting: what it started has the pipe open, too, until it runs the container's process.
        fcntl(&self.report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(hear)?;
        let mut json = Vec::new();
        let _ = (&self.report).read_to_end(&mut json);
        let outcome = serde_json::from_slice(&json);
        if outcome.is_err() {
            ending::end_children();
        }
        let _ = nix::sys::prctl::set_child_subreaper(false);
        outcome.map_err(|_| Failure::new("the container's builder ended without a word"))
    }
}

impl Drop for Building {
    /// Whatever was made ends, wherever the builder stands: it may wait for something that never comes.
    fn drop(&mut self) {
        if let Some(builder) = self.builder.take() {
            let _ = kill(builder, Signal::SIGKILL);
            let _ = waitpid(builder, None);
            ending::end_children();
            let _ = nix::sys::prctl::set_child_subreaper(false);
        }
    }
}

/// Waits for the end of a process; false when all of `askers` have gone before.
fn has_ended(pidfd: &OwnedFd, askers: &[BorrowedFd<'_>]) -> Result<bool, Errno> {
    let mut waiting = askers.to_vec();
    while !waiting.is_empty() {
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // What they say meanwhile is read later. That they have gone is told unasked.
        fds.extend(
            waiting
                .iter()
                .map(|&fd| PollFd::new(fd, PollFlags::empty())),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        let has_events = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
        if has_events(&fds[0]) {
            return Ok(true);
        }
        waiting = waiting
            .iter()
            .zip(&fds[1..])
            .filter_map(|(&fd, polled)| (!has_events(polled)).then_some(fd))
            .collect();
    }
    Ok(false)
}

type Ours = (Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>);

/// Three pipes, or `/dev/null` as standard input.
pub(super) fn streams_with(stdin: bool) -> Result<(Ours, [OwnedFd; 3]), Errno> {
    let (theirs_in, ours_in) = if stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (read, Some(write))
    } else {
        let null = nix::fcntl::open(
            "/dev/null",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )?;
        (null, None)
    };
    let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((
        (ours_in, Some(out_read), Some(err_read)),
        [theirs_in, out_write, err_write],
    ))
}

fn streams(stdin: bool) -> Result<(Ours, Ends), Errno> {
    let (ours, [stdin, stdout, stderr]) = streams_with(stdin)?;
    Ok((
        ours,
        Ends {
            stdin,
            stdout,
            stderr,
        },
    ))
}

/// Runs in the child: everything from the mount of the root filesystem to the exec of the container's process.
fn build(sup: &Supervise, ends: Option<Ends>, go: OwnedFd) -> Result<i32, Failure> {
    // When the shim dies half-way, so does what it began.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let text = std::fs::read(LAUNCH_NAME)
        .map_err(|err| Failure::new(format!("cannot read {LAUNCH_NAME}: {err}")))?;
    let mut launch: Launch = serde_json::from_slice(&text)
        .map_err(|err| Failure::new(format!("cannot understand {LAUNCH_NAME}: {err}")))?;
    let fetched = stage::fetch(&launch.staged)?;
    enter_namespaces(launch.loopback_only)?;
    let _network = let_go_of_handles(&mut launch.spec);

    let at = |err: io::Error| {
        Failure::new(format!(
            "cannot enter {}: {err}",
            sup.container_dir.display()
        ))
    };
    std::env::set_current_dir(&sup.run_dir).map_err(at)?;
    let late = stage::place(&launch.staged, fetched)?;
    std::env::set_current_dir(&sup.container_dir).map_err(at)?;
    rootfs::mount_overlay(&launch.layers, launch.volatile)?;
    let root = Root::open(sup.container_dir.join(MERGED))?;
    let spec = finish_spec(&launch, &root)?;
    // Nothing of the host may stay open by which the container's process could come back to it.
    drop(root);

    std::env::set_current_dir(&sup.run_dir).map_err(at)?;
    write_spec(Path::new("."), &spec)?;
    if let (Some(ends), Some(process)) = (&ends, spec.process()) {
        for fd in [&ends.stdin, &ends.stdout, &ends.stderr] {
            exec::give(fd, process.user());
        }
    }
    groups::enter_early(sup, &spec).map_err(|err| {
        Failure::new(format!(
            "cannot enter the container's control groups: {err}"
        ))
    })?;
    run_libcontainer(sup, &launch, spec, ends, &late, go)
}

/// Writes a spec into the directory of a bundle.
fn write_spec(bundle: &Path, spec: &Spec) -> Result<(), Failure> {
    let json = serde_json::to_vec(spec).map_err(|err| Failure::new(err.to_string()))?;
    let written = std::fs::write(bundle.join("config.json"), json);
    written.map_err(|err| Failure::new(format!("cannot write config.json: {err}")))
}

fn run_libcontainer(
    sup: &Supervise,
    launch: &Launch,
    mut spec: Spec,
    ends: Option<Ends>,
    late: &[stage::Late],
    go: OwnedFd,
) -> Result<i32, Failure> {
    let fail = |err: &dyn std::error::Error| Failure::new(chain(err));
    let runtime = sup.run_dir.join(RUNTIME_DIR);
    let _ = std::fs::remove_dir_all(&runtime);
    let made = std::fs::create_dir(&runtime);
    made.map_err(|err| Failure::new(format!("cannot create {}: {err}", runtime.display())))?;
    // What later processes of the container are built from stays whole: libcontainer gets a spec of its own.
    let (mut bundle, mut walls) = (sup.run_dir.clone(), None);
    if let Some(filter) = Filter::read(&sup.run_dir)? {
        walls = Some(Walls::take(filter, &mut spec));
        bundle = runtime.join(BUNDLE_DIR);
        let made = std::fs::create_dir(&bundle);
        made.map_err(|err| Failure::new(format!("cannot create {}: {err}", bundle.display())))?;
        write_spec(&bundle, &spec)?;
    }
    let (report_out, report_in) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::new(errno.desc()))?;
    let report_in = report_in.into_raw_fd();
    let mut builder = ContainerBuilder::new("c".to_owned(), SyscallType::default())
        .with_root_path(&runtime)
        .map_err(|err| fail(&err))?
        .with_console_socket(sup.tty.then(|| sup.run_dir.join(CONSOLE_SOCKET)));
    builder = if launch.probe {
        builder.with_executor(probe::Probe { walls })
    } else {
        builder.with_executor(Payload {
            report: report_in,
            init: launch.init,
            console_size: sup.console_size.filter(|_| sup.tty),
            walls,
        })
    };
    if let Some(ends) = ends {
        builder = builder
            .with_stdin(ends.stdin)
            .with_stdout(ends.stdout)
            .with_stderr(ends.stderr);
    }
    let built = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .build();
    let started = built.map_err(|err| fail(&err)).and_then(|container| {
        let pid = container
            .pid()
            .ok_or_else(|| Failure::new("libcontainer tells no process id"))?;
        let spared = groups::spare_from_oom_killer(sup, &spec)
            .map_err(|err| Failure::new(format!("cannot disable the OOM killer: {err}")));
        if let Err(failure) = spared.and_then(|()| stage::place_late(late, pid.as_raw())) {
            // It waits for a word that will not come.
            let _ = kill(Pid::from_raw(pid.as_raw()), Signal::SIGKILL);
            return Err(failure);
        }
        if !matches!(nix::unistd::read(&go, &mut [0]), Ok(1)) {
            let pid = Pid::from_raw(pid.as_raw());
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            return Err(Failure::new("nobody wants the container any more"));
        }
        NotifySocket::new(runtime.join("c").join(NOTIFY_FILE))
            .notify_container_start()
            .map_err(|err| fail(&err))?;
        Ok(pid.as_raw())
    });
    close_raw(report_in);
    // What could not be run is told through the pipe, in better words than libcontainer passes on.
    let mut json = Vec::new();
    let _ = File::from(report_out).read_to_end(&mut json);
    if let Ok(failure) = serde_json::from_slice::<Failure>(&json) {
        return Err(Failure {
            message: format!("unable to start container process: {}", failure.message),
            ..failure
        });
    }
    started
}

fn close_raw(fd: RawFd) {
    // SAFETY: taken out of its owner with `into_raw_fd` and closed once.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let more = err.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = err.source();
    }
    text
}

/// A mount namespace that hears of the host's mounts and tells it none, and perhaps a network of loopback alone.
fn enter_namespaces(loopback_only: bool) -> Result<(), Failure> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    if loopback_only {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    let os = |errno: Errno| Failure::new(format!("cannot make namespaces: {}", errno.desc()));
    unshare(flags).map_err(os)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .map_err(os)?;
    if loopback_only {
        loopback_up().map_err(os)?;
    }
    Ok(())
}

/// Opens the handle of the container's network and lets go of the mount that holds the handles of all containers, if there
/// is such a one: libcontainer reads the list of mounts at every turn. The spec then names the descriptor, which must stay
/// open as long as it is used.
fn let_go_of_handles(spec: &mut Spec) -> Option<OwnedFd> {
    let mut linux = spec.linux().clone()?;
    let mut namespaces = linux.namespaces().clone()?;
    let network = namespaces
        .iter_mut()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    let path = network.path().clone()?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let handle = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).ok()?;
    // Fails where the directory is no mount, and changes nothing then.
    umount2(path.parent()?, MntFlags::MNT_DETACH).ok()?;
    network.set_path(Some(format!("/proc/self/fd/{}", handle.as_raw_fd()).into()));
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Some(handle)
}

/// Sets the loopback interface up.
fn loopback_up() -> Result<(), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives until after the call.
    Errno::result(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })
    .map(drop)
}

/// Makes the root filesystem ready for the mounts, and puts into the spec what only the image can tell.
fn finish_spec(launch: &Launch, root: &Root) -> Result<Spec, Failure> {
    let mut spec = launch.spec.clone();
    root.claim_system_dirs()?;
    // Before mount points are made: what the image does not have changes nothing of a volume.
    for fresh in &launch.populate {
        populate(root, &fresh.target, &fresh.volume)?;
    }
    let mounts = place_mounts(spec.mounts().clone().unwrap_or_default(), root)?;
    spec.set_mounts(Some(mounts));
    let mut oci_root = spec.root().clone().unwrap_or_default();
    oci_root.set_path(root.path.clone());
    spec.set_root(Some(oci_root));

    let passwd = root.read_text(Path::new("/etc/passwd"), user::ACCOUNT_FILE_MAX)?;
    let group = root.read_text(Path::new("/etc/group"), user::ACCOUNT_FILE_MAX)?;
    let who = user::resolve(&launch.user, &launch.group_add, &passwd, &group)
        .map_err(|err| Failure::new(format!("unable to start container process: {err}")))?;
    if let Some(mut process) = spec.process().clone() {
        let cwd = process.cwd().clone();
        // The working directory is made when it is missing, unless a mount will stand there.
        if !is_under_mount(&cwd, spec.mounts().as_deref().unwrap_or_default()) {
            let resolved = root.resolve(&cwd)?;
            root.ensure(&resolved, true).map_err(|_| {
                Failure::new(format!(
                    "the working directory {} is not a directory",
                    cwd.display()
                ))
            })?;
        }
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", who.home));
        }
        process.set_env(Some(env));
        let mut oci_user = User::default();
        oci_user.set_uid(who.uid).set_gid(who.gid);
        oci_user.set_additional_gids((!who.groups.is_empty()).then_some(who.groups));
        process.set_user(oci_user);
        spec.set_process(Some(process));
    }
    Ok(spec)
}

/// Mounts the runtime makes fresh filesystems for; targets below them need no preparation.
fn is_fresh(mount: &Mount) -> bool {
    !matches!(mount.typ().as_deref(), None | Some("bind"))
}

fn is_under_mount(path: &Path, mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .any(|mount| path.starts_with(mount.destination()))
}

/// Replaces every target by what it resolves to inside the root and makes sure that it exists.
fn place_mounts(mounts: Vec<Mount>, root: &Root) -> Result<Vec<Mount>, Failure> {
    let mut placed: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mut mount in mounts {
        let target = mount.destination().clone();
        let above = placed
            .iter()
            .filter(|other| {
                target.starts_with(other.destination()) && other.destination() != &target
            })
            .max_by_key(|other| other.destination().components().count());
        match above {
            Some(above) if is_fresh(above) => {}
            Some(above) => {
                let rest = target.strip_prefix(above.destination()).unwrap_or(&target);
                if let Some(source) = above.source() {
                    rootfs::refuse_links(source, rest, &target)?;
                }
            }
            None => {
                let resolved = root.resolve(&target)?;
                let on_file = !is_fresh(&mount)
                    && mount
                        .source()
                        .as_ref()
                        .is_some_and(|source| !source.is_dir());
                root.ensure(&resolved, !on_file)?;
                mount.set_destination(resolved);
            }
        }
        placed.push(mount);
    }
    Ok(placed)
}

fn populate(root: &Root, target: &Path, volume: &PathBuf) -> Result<(), Failure> {
    let fail = |errno: Errno| {
        Failure::new(format!(
            "cannot copy {} into its volume: {}",
            target.display(),
            errno.desc()
        ))
    };
    let resolved = root.resolve(target)?;
    let from = match root.directory(&resolved) {
        Ok(from) => from,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(fail(errno)),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let to = nix::fcntl::open(volume, flags, nix::sys::stat::Mode::empty()).map_err(fail)?;
    if copy_tree::is_empty(&to).map_err(fail)? {
        copy_tree::copy_into(from, &to).map_err(fail)?;
    }
    Ok(())
}
