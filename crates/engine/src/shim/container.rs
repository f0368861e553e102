//! The last part of the building of a container: the builder enters the container's namespaces, fills its root and becomes
//! its process.
//!
//! A container with process numbers of its own is built by what will be its process 1; the kernel numbers it so from its
//! beginning. Where it joins the numbers of another one, or has the host's, nothing tells the two ways apart but one fork.
#![allow(unsafe_code)]

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::setsid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::exec::{clone_sibling, open_terminal, set_streams};
use super::executor::{self, Payload, describe};
use super::filter::Filter;
use super::launch::{CONSOLE_SOCKET, Ends, Prepared};
use super::protocol::{Failure, Supervise};
use super::stage;
use super::trees::{Attributes, Tree};
use super::{groups, hooks, mounts, privileges};

/// What the builder has got together.
pub(super) struct Parts<'a> {
    pub sup: &'a Supervise,
    pub prepared: Prepared,
    pub ends: Option<Ends>,
    /// See [`super::launch::Building`].
    pub go: OwnedFd,
    pub report: RawFd,
}

fn fail(what: &str) -> impl FnOnce(Errno) -> Failure {
    let what = what.to_owned();
    move |errno| Failure::new(format!("cannot {what}: {}", describe(errno)))
}

/// Becomes the container's process; returns only to say why not. The working directory is the run directory.
pub(super) fn become_container(parts: Parts<'_>) -> Failure {
    match prepare(parts) {
        Ok((spec, payload)) => payload.run(&spec),
        Err(failure) => failure,
    }
}

fn prepare(parts: Parts<'_>) -> Result<(Spec, Payload), Failure> {
    let Parts {
        sup,
        prepared,
        ends,
        go,
        report,
    } = parts;
    let Prepared {
        launch,
        spec,
        birthplace,
        root,
        joined,
        late,
    } = prepared;
    let filter = Filter::read(&sup.run_dir)?;
    let process = privileges::process_of(&spec)?;
    if let Some(adjust) = process.oom_score_adj() {
        let set = std::fs::write("/proc/self/oom_score_adj", adjust.to_string());
        set.map_err(|err| Failure::new(format!("cannot set oom_score_adj to {adjust}: {err}")))?;
    }
    for dir in &sup.cgroups {
        groups::join(dir)
            .map_err(|err| Failure::new(format!("cannot join {}: {err}", dir.display())))?;
    }
    let hooks = spec.hooks().as_ref();
    let call = |hooks, status| hooks::call(hooks, &sup.id, &sup.run_dir, status);
    call(
        hooks.and_then(|hooks| hooks.create_runtime().as_ref()),
        "creating",
    )?;
    enter(&spec, joined, report)?;
    call(
        hooks.and_then(|hooks| hooks.create_container().as_ref()),
        "creating",
    )?;
    setsid().map_err(fail("begin a session"))?;
    let console = if sup.tty {
        let connected = UnixStream::connect(CONSOLE_SOCKET);
        Some(connected.map_err(|err| Failure::new(format!("cannot reach for a terminal: {err}")))?)
    } else {
        None
    };
    mounts::mount_all(&root, &spec)?;
    mounts::make_devices(&root, &spec)?;
    mounts::set_sysctls(&root, &spec)?;
    mounts::hide(&root, &spec)?;
    let left = birthplace.leave_for(&root);
    left.map_err(fail("enter the root filesystem"))?;
    if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        super::trees::restrict(Path::new("/"), Attributes::READ_ONLY)
            .map_err(fail("protect the root filesystem"))?;
    }
    // Nothing of the host may stay open by which the container's process could come back to it.
    drop(root);
    stage::place_late(&late)?;
    drop(late);
    match (ends, console) {
        (Some(ends), _) => set_streams(&ends.stdin, &ends.stdout, &ends.stderr)?,
        (None, Some(console)) => {
            let terminal = open_terminal(&console, sup.console_size);
            let terminal = terminal.map_err(fail("open a terminal"))?;
            place_console(&terminal).map_err(fail("make /dev/console"))?;
            set_streams(&terminal, &terminal, &terminal)?;
        }
        (None, None) => return Err(Failure::new("the container has no streams")),
    }
    // What is called at the start itself needs the rights that go now.
    let at_start = hooks.and_then(|hooks| hooks.start_container().as_ref());
    let is_early = at_start.is_none_or(Vec::is_empty);
    if !is_early {
        wait(&go)?;
        call(at_start, "created")?;
    }
    privileges::assume(&spec, filter.as_ref())?;
    let payload = if launch.probe {
        Payload::Probe
    } else {
        executor::check(&spec)?;
        Payload::Process {
            report,
            init: launch.init,
        }
    };
    if is_early {
        wait(&go)?;
    }
    let _ = nix::sys::prctl::set_pdeathsig(None);
    Ok((spec, payload))
}

/// Waits for the word that lets the container run.
fn wait(go: &OwnedFd) -> Result<(), Failure> {
    loop {
        match nix::unistd::read(go, &mut [0]) {
            Ok(1) => return Ok(()),
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return Err(Failure::new("nobody wants the container any more")),
        }
    }
}

/// A namespace that the container shares with others.
pub(super) type Joined = (OwnedFd, CloneFlags);

/// Namespaces of a spec that the builder has to see to, with the paths of those that are there already.
fn namespaces(spec: &Spec) -> impl Iterator<Item = (CloneFlags, Option<&PathBuf>)> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_deref());
    all.unwrap_or_default().iter().filter_map(|namespace| {
        let path = namespace.path().as_ref();
        let kind = match namespace.typ() {
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Pid if path.is_some() => CloneFlags::CLONE_NEWPID,
            _ => return None,
        };
        Some((kind, path))
    })
}

/// Opens the namespaces that are to be joined.
pub(super) fn joined(spec: &Spec) -> Result<Vec<Joined>, Failure> {
    let there = namespaces(spec).filter_map(|(kind, path)| Some((kind, path?)));
    let opened = there.map(|(kind, path)| {
        let opened = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let opened = opened.map_err(fail(&format!("open {}", path.display())))?;
        Ok((opened, kind))
    });
    opened.collect()
}

/// Enters the container's namespaces, but for that of its mounts, in which the builder is already.
fn enter(spec: &Spec, joined: Vec<Joined>, report: RawFd) -> Result<(), Failure> {
    let own = namespaces(spec).filter(|(_, path)| path.is_none());
    let own = own.fold(CloneFlags::empty(), |all, (kind, _)| all | kind);
    let has_host_name = namespaces(spec).any(|(kind, _)| kind == CloneFlags::CLONE_NEWUTS);
    unshare(own).map_err(fail("make namespaces"))?;
    let mut numbers = false;
    for (namespace, kind) in joined {
        setns(&namespace, kind).map_err(fail("join a namespace"))?;
        numbers |= kind == CloneFlags::CLONE_NEWPID;
    }
    if has_host_name {
        if let Some(name) = spec.hostname() {
            nix::unistd::sethostname(name).map_err(fail("set the host name"))?;
        }
        if let Some(name) = spec.domainname() {
            set_domain(name).map_err(fail("set the domain name"))?;
        }
    }
    // Only children of a process have the numbers that it joined.
    if numbers && let Some(pid) = clone_sibling().map_err(fail("fork"))? {
        executor::report_pid(report, pid);
        // SAFETY: ends this process at once; destructors and exit handlers are the shim's, not ours.
        unsafe { libc::_exit(0) }
    }
    Ok(())
}

fn set_domain(name: &str) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as it is told, which live until after the call.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Lets `/dev/console` be the container's terminal.
fn place_console(terminal: &OwnedFd) -> Result<(), Errno> {
    let console = "/dev/console";
    let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match open(console, new, Mode::from_bits_truncate(0o600)) {
        Err(errno) if errno != Errno::EEXIST => return Err(errno),
        Ok(_) | Err(_) => {}
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = open(console, flags, Mode::empty())?;
    Tree::of_place(terminal, false)?.attach_at(&place)
}
