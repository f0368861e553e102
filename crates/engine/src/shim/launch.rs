//! Builds and starts the container, in a child of the shim that becomes its process.
//!
//! The overlay is mounted in the container's mount namespace alone, so it is never seen by the host, survives every restart of
//! the daemon, and goes with the container's last process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::{Mount, Spec, User};

use super::birthplace::{Base, Birthplace};
use super::ending;
use super::exec::{self, pidfd_open};
use super::protocol::{Failure, LAUNCH_NAME, Launch, Supervise};
use super::rootfs::{self, MERGED, Root};
use super::serve::Spawned;
use super::{container, copy_tree, executor, stage};
use crate::core::user;

/// In the run directory: the socket on which the shim awaits the container's terminal.
pub(super) const CONSOLE_SOCKET: &str = "console";

/// The container's ends of its streams.
pub(super) struct Ends {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A container that is being built by a child of the shim; it does not run before [`Self::finish`], and goes again when
/// this is dropped before.
pub(super) struct Building {
    /// The builder, until it has become the container's process or has ended.
    builder: Option<Pid>,
    /// Closed when the container's process runs; says before why it does not, or which process it is if not the builder.
    report: File,
    /// A byte lets the container run; the end of it says that nobody wants it.
    go: Option<OwnedFd>,
    ours: Option<Ours>,
    console: Option<UnixListener>,
}

impl Building {
    /// Begins; the working directory is the container's run directory.
    pub(super) fn begin(sup: &Supervise, base: &Base) -> Result<Self, Failure> {
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
        let numbers = if sup.own_pids { libc::CLONE_NEWPID } else { 0 };
        match exec::fork_with(numbers).map_err(os)? {
            None => {
                drop((report_out, go_in));
                let report = report_in.into_raw_fd();
                let failure = build(sup, base, ends, go_out, report);
                executor::report(report, &failure);
                // SAFETY: ends this process at once; destructors and exit handlers are the shim's, not ours.
                unsafe { libc::_exit(0) }
            }
            Some(child) => Ok(Self {
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
        let pid = self.outcome(askers)?;
        let _ = std::fs::remove_file(LAUNCH_NAME);
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

    /// What became of the building: the container's process. Waits as long as anybody wants to know.
    fn outcome(&mut self, askers: &[BorrowedFd<'_>]) -> Result<Pid, Failure> {
        let hear = |errno: Errno| {
            Failure::new(format!(
                "cannot hear from the container's builder: {}",
                errno.desc()
            ))
        };
        let Some(builder) = self.builder else {
            return Err(Failure::new("the container was built already"));
        };
        let Some(notes) = read_notes(&mut self.report, askers).map_err(hear)? else {
            return Err(Failure::new("nobody wants the container any more"));
        };
        match exec::parse_notes(&notes) {
            (_, Some(failure)) => Err(failure),
            (Some(other), None) => {
                let _ = waitpid(builder, None);
                self.builder = None;
                Ok(other)
            }
            (None, None) => {
                self.builder = None;
                Ok(builder)
            }
        }
    }
}

impl Drop for Building {
    /// Whatever was made ends, wherever it stands: it may wait for something that never comes.
    fn drop(&mut self) {
        if self.builder.take().is_some() {
            ending::end_children();
        }
    }
}

/// Reads a report to its end; `None` when all of `askers` have gone before.
fn read_notes(report: &mut File, askers: &[BorrowedFd<'_>]) -> Result<Option<Vec<u8>>, Errno> {
    let (mut waiting, mut notes) = (askers.to_vec(), Vec::new());
    while !waiting.is_empty() {
        let mut fds = vec![PollFd::new(report.as_fd(), PollFlags::POLLIN)];
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
        let is_told = has_events(&fds[0]);
        let gone: Vec<bool> = fds[1..].iter().map(has_events).collect();
        if is_told {
            let mut piece = [0; 4096];
            match nix::unistd::read(&*report, &mut piece)? {
                0 => return Ok(Some(notes)),
                length => notes.extend_from_slice(&piece[..length]),
            }
            continue;
        }
        let mut gone = gone.into_iter();
        waiting.retain(|_| !gone.next().unwrap_or_default());
    }
    Ok(None)
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

/// Runs in the child: everything from the mount of the root filesystem to the exec of the container's process. Returns only to
/// say why that does not run.
fn build(sup: &Supervise, base: &Base, ends: Option<Ends>, go: OwnedFd, report: RawFd) -> Failure {
    let told = prepare(sup, base, ends.as_ref()).map(|prepared| {
        container::become_container(container::Parts {
            sup,
            prepared,
            ends,
            go,
            report,
        })
    });
    told.unwrap_or_else(|failure| failure)
}

/// A container's root filesystem, and what is to be done in it.
pub(super) struct Prepared {
    pub launch: Launch,
    pub spec: Spec,
    pub birthplace: Birthplace,
    pub root: Root,
    pub joined: Vec<container::Joined>,
    pub late: Vec<stage::Late>,
}

fn prepare(sup: &Supervise, base: &Base, ends: Option<&Ends>) -> Result<Prepared, Failure> {
    // When the shim dies half-way, so does what it began.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let text = std::fs::read(LAUNCH_NAME)
        .map_err(|err| Failure::new(format!("cannot read {LAUNCH_NAME}: {err}")))?;
    let launch: Launch = serde_json::from_slice(&text)
        .map_err(|err| Failure::new(format!("cannot understand {LAUNCH_NAME}: {err}")))?;
    let fetched = stage::fetch(&launch.staged)?;
    // Handles of networks are not among the mounts that come along.
    let joined = container::joined(&launch.spec)?;
    let birthplace = enter_namespaces(base, launch.loopback_only)?;

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
    std::env::set_current_dir(&sup.run_dir).map_err(at)?;
    // What later processes of the container are built from.
    let json = serde_json::to_vec(&spec).map_err(|err| Failure::new(err.to_string()))?;
    std::fs::write("config.json", json)
        .map_err(|err| Failure::new(format!("cannot write config.json: {err}")))?;
    if let (Some(ends), Some(process)) = (ends, spec.process()) {
        for fd in [&ends.stdin, &ends.stdout, &ends.stderr] {
            exec::give(fd, process.user());
        }
    }
    Ok(Prepared {
        launch,
        spec,
        birthplace,
        root,
        joined,
        late,
    })
}

/// A mount namespace that hears of the host's mounts and tells it none, and perhaps a network of loopback alone.
fn enter_namespaces(base: &Base, loopback_only: bool) -> Result<Birthplace, Failure> {
    let os = |errno: Errno| Failure::new(format!("cannot make namespaces: {}", errno.desc()));
    let also = if loopback_only {
        CloneFlags::CLONE_NEWNET
    } else {
        CloneFlags::empty()
    };
    let birthplace = base.enter(also).map_err(os)?;
    if loopback_only {
        loopback_up().map_err(os)?;
    }
    Ok(birthplace)
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
