//! The life of a shim: one loop over the container's output, its end, and those who ask.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use super::birthplace::Base;
use super::ending::{cgroup_processes, was_oom_killed, write_exit};
use super::exec;
use super::launch::Building;
use super::log::Logger;
use super::protocol::{
    Exit, ExitRecord, FRAME_HEADER, Failure, KIND_MESSAGE, Reply, Request, Streams, Supervise,
    VERSION, parse_header, push_frame, push_message, stream_of,
};

/// A client this far behind stops the container's output until it has caught up, as with Docker.
const CLIENT_BEHIND_MAX: usize = 1 << 20;
/// Standard input taken from clients ahead of the container.
const STDIN_AHEAD_MAX: usize = 64 << 10;
const READ_SIZE: usize = 32 << 10;
/// Ends of execs remembered for a daemon that is away.
const ENDED_EXECS_MAX: usize = 256;

/// A process just started, with our ends of its streams.
pub(super) struct Spawned {
    pub pid: Pid,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

struct Process {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_queue: Vec<u8>,
    stdin_ends: bool,
    out: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
}

struct Client {
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// The key of the process whose streams this connection carries.
    attached: Option<(Key, Streams)>,
    closing: bool,
    gone: bool,
}

/// `None` is the container's process 1, else an exec's id.
type Key = Option<String>;

struct Shim {
    sup: Supervise,
    base: Base,
    listener: UnixListener,
    clients: Vec<Client>,
    /// The container that is being built.
    building: Option<Building>,
    processes: BTreeMap<Key, Process>,
    logger: Option<Logger>,
    started_at: Timestamp,
    pid: i32,
    exit: Option<Exit>,
    /// Input that came before the container was started, and whether it ended already.
    early_stdin: Vec<u8>,
    early_stdin_ends: bool,
    /// Ends of execs that no daemon has heard of.
    ended_execs: Vec<(String, Exit)>,
}

/// Supervises one container; returns the exit code of the shim.
pub(super) fn run(sup: Supervise, listener: UnixListener, control: UnixStream, base: Base) -> i32 {
    // Paths of sockets are short only when they are relative.
    if std::env::set_current_dir(&sup.run_dir).is_err() {
        return 73;
    }
    if listener.set_nonblocking(true).is_err() || control.set_nonblocking(true).is_err() {
        return 73;
    }
    let mut shim = Shim {
        sup,
        base,
        listener,
        clients: vec![Client::new(control)],
        building: None,
        processes: BTreeMap::new(),
        logger: None,
        started_at: Timestamp::ZERO,
        pid: 0,
        exit: None,
        early_stdin: Vec::new(),
        early_stdin_ends: false,
        ended_execs: Vec::new(),
    };
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let started = shim.pid != 0;
        let idle = shim.clients.iter().all(|client| client.output.is_empty());
        // Over: the container has ended and everybody was told, or nobody will ever ask for a start.
        if idle && (shim.exit.is_some() || (!started && shim.clients.is_empty())) {
            return 0;
        }
        if shim.turn(&mut buffer).is_err() {
            return 74;
        }
    }
}

/// What a polled descriptor stands for.
enum Source {
    Listener,
    Client(usize),
    Ended(Key),
    Output(Key, StdStream),
    Stdin(Key),
}

impl Shim {
    fn turn(&mut self, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut watch = |source: Source, fd: BorrowedFd<'_>, flags: PollFlags| {
            sources.push(source);
            // SAFETY-free: descriptors live in `self`, which nothing changes while `poll` runs.
            fds.push((std::os::fd::AsRawFd::as_raw_fd(&fd), flags));
        };
        watch(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if !client.closing && self.takes_input(client) {
                flags |= PollFlags::POLLIN;
            }
            if !client.output.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            watch(Source::Client(index), client.socket.as_fd(), flags);
        }
        for (key, process) in &self.processes {
            if let Some(pidfd) = &process.pidfd {
                watch(Source::Ended(key.clone()), pidfd.as_fd(), PollFlags::POLLIN);
            }
            if !self.is_held_back(key) {
                for (slot, stream) in [StdStream::Stdout, StdStream::Stderr]
                    .into_iter()
                    .enumerate()
                {
                    if let Some(fd) = &process.out[slot] {
                        watch(
                            Source::Output(key.clone(), stream),
                            fd.as_fd(),
                            PollFlags::POLLIN,
                        );
                    }
                }
            }
            if let Some(fd) = &process.stdin
                && !process.stdin_queue.is_empty()
            {
                watch(Source::Stdin(key.clone()), fd.as_fd(), PollFlags::POLLOUT);
            }
        }
        let ready = poll_raw(&fds)?;
        // Output first, ends last: what a process wrote before it ended is told before its end.
        let (ended, others): (Vec<_>, Vec<_>) = sources
            .into_iter()
            .zip(ready)
            .filter(|(_, events)| !events.is_empty())
            .partition(|(source, _)| matches!(source, Source::Ended(_)));
        for (source, events) in others.into_iter().chain(ended) {
            match source {
                Source::Listener => self.accept(),
                Source::Client(index) => self.serve_client(index, events, buffer),
                Source::Output(key, stream) => {
                    self.read_output(&key, stream, buffer);
                }
                Source::Stdin(key) => self.write_stdin(&key),
                Source::Ended(key) => self.reap(&key, buffer),
            }
        }
        for client in &mut self.clients {
            client.flush();
        }
        let gone: Vec<(Key, Streams)> = self
            .clients
            .iter()
            .filter(|client| client.gone)
            .filter_map(|client| client.attached.clone())
            .collect();
        if self.pid == 0 && self.clients.iter().all(|client| client.gone) {
            // Nobody will ask for a start any more. Taken down before the last connection closes, so that whoever
            // waits for that finds nothing left.
            self.building = None;
        }
        self.clients.retain(|client| !client.gone);
        for (key, streams) in gone {
            self.on_detached(&key, streams);
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            // The directory lets nobody else in, but who got hold of it all the same shall not be heard.
            let root = getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            if root && socket.set_nonblocking(true).is_ok() {
                self.clients.push(Client::new(socket));
            }
        }
    }

    /// Standard input is taken only as fast as the process reads it.
    fn takes_input(&self, client: &Client) -> bool {
        match &client.attached {
            Some((key, _)) if self.is_awaited(key) => self.early_stdin.len() < STDIN_AHEAD_MAX,
            Some((key, _)) => self
                .processes
                .get(key)
                .is_none_or(|process| process.stdin_queue.len() < STDIN_AHEAD_MAX),
            None => true,
        }
    }

    fn is_held_back(&self, key: &Key) -> bool {
        self.clients.iter().any(|client| {
            client.output.len() - client.sent > CLIENT_BEHIND_MAX
                && client
                    .attached
                    .as_ref()
                    .is_some_and(|(attached, _)| attached == key)
        })
    }

    fn serve_client(&mut self, index: usize, events: PollFlags, buffer: &mut [u8]) {
        if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            match self.clients[index].socket.read(buffer) {
                Ok(0) => self.clients[index].gone = true,
                Ok(n) => self.clients[index].input.extend_from_slice(&buffer[..n]),
                Err(err)
                    if matches!(
                        err.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => self.clients[index].gone = true,
            }
        }
        while let Some((kind, payload)) = self.clients[index].next_frame() {
            if kind == KIND_MESSAGE {
                match serde_json::from_slice(&payload) {
                    Ok(request) => self.on_request(index, request),
                    Err(_) => self.clients[index].gone = true,
                }
            } else if stream_of(kind) == Some(StdStream::Stdin) {
                self.on_stdin(index, &payload);
            }
        }
    }

    fn on_request(&mut self, index: usize, request: Request) {
        let reply = match request {
            Request::Prepare => {
                // What fails now fails again, with an answer, at the start.
                if self.pid == 0 && self.building.is_none() {
                    self.building = Building::begin(&self.sup, &self.base).ok();
                }
                return;
            }
            Request::Start => match self.start() {
                Ok(()) => Reply::Started {
                    pid: self.pid,
                    at: self.started_at,
                },
                Err(failure) => {
                    self.clients[index].closing = true;
                    Reply::Failed(failure)
                }
            },
            Request::State => Reply::State {
                start: self.sup.start,
                pid: self.pid,
                started_at: self.started_at,
                exit: self.exit,
                version: VERSION,
                execs: self.processes.keys().flatten().cloned().collect(),
                ended_execs: std::mem::take(&mut self.ended_execs),
            },
            Request::Kill { exec, signal } => done(self.kill(&exec, signal)),
            Request::Resize { exec, rows, cols } => done(self.resize(&exec, rows, cols)),
            Request::Attach(streams) => {
                self.clients[index].attached = Some((None, streams));
                Reply::Done
            }
            Request::Exec(launch) => {
                let key = Some(launch.id.clone());
                let init = self.processes.get(&None).map(|process| process.pid);
                let started = match init {
                    Some(init) => exec::spawn(&self.sup, init, &launch),
                    None => Err(Failure::new("container is not running")),
                };
                match started {
                    Ok(spawned) => {
                        let pid = spawned.pid.as_raw();
                        self.processes.insert(key.clone(), Process::new(spawned));
                        if !launch.streams.stdin {
                            self.close_stdin(&key);
                        }
                        self.clients[index].attached = Some((key, launch.streams));
                        Reply::Started {
                            pid,
                            at: Timestamp::now(),
                        }
                    }
                    Err(failure) => Reply::Failed(failure),
                }
            }
        };
        push_message(&mut self.clients[index].output, &reply);
    }

    fn start(&mut self) -> Result<(), Failure> {
        if self.pid != 0 {
            return Err(Failure::new("container was started already"));
        }
        let log = std::mem::take(&mut self.sup.log);
        self.logger = Some(Logger::open(log).map_err(Failure::new)?);
        let building = match self.building.take() {
            Some(building) => building,
            None => Building::begin(&self.sup, &self.base)?,
        };
        let askers: Vec<_> = self.clients.iter().map(|one| one.socket.as_fd()).collect();
        let spawned = building.finish(&self.sup, &askers)?;
        self.pid = spawned.pid.as_raw();
        self.started_at = Timestamp::now();
        let mut process = Process::new(spawned);
        process.stdin_queue = std::mem::take(&mut self.early_stdin);
        process.stdin_ends = self.early_stdin_ends;
        self.processes.insert(None, process);
        self.write_stdin(&None);
        Ok(())
    }

    /// Whether process 1 is still to come. Clients attach before it does, and may be quick to write.
    fn is_awaited(&self, key: &Key) -> bool {
        key.is_none() && self.pid == 0
    }

    fn kill(&self, key: &Key, signal: i32) -> Result<(), Errno> {
        let signal = Signal::try_from(signal)?;
        // The process is our child and not yet waited for, so its number cannot mean another.
        match self.processes.get(key) {
            Some(process) if process.pidfd.is_some() => kill(process.pid, signal),
            _ => Err(Errno::ESRCH),
        }
    }

    fn resize(&self, key: &Key, rows: u16, cols: u16) -> Result<(), Errno> {
        let process = self.processes.get(key).ok_or(Errno::ESRCH)?;
        exec::set_size(process.terminal.as_ref().ok_or(Errno::ENOTTY)?, rows, cols)
    }

    fn on_stdin(&mut self, index: usize, payload: &[u8]) {
        let Some((key, streams)) = self.clients[index].attached.clone() else {
            return;
        };
        if !streams.stdin {
            return;
        }
        if payload.is_empty() {
            self.on_stdin_end(&key);
        } else if self.is_awaited(&key) {
            self.early_stdin.extend_from_slice(payload);
        } else if let Some(process) = self.processes.get_mut(&key)
            && process.stdin.is_some()
        {
            process.stdin_queue.extend_from_slice(payload);
            self.write_stdin(&key);
        }
    }

    /// The end of a client's input ends an exec's always, the container's only with `stdin_once` and no terminal.
    fn on_stdin_end(&mut self, key: &Key) {
        if key.is_some() || (self.sup.stdin_once && !self.sup.tty) {
            if self.is_awaited(key) {
                self.early_stdin_ends = true;
            }
            if let Some(process) = self.processes.get_mut(key) {
                process.stdin_ends = true;
            }
            self.write_stdin(key);
        }
    }

    /// As at the end of its input: whoever detaches from a terminal may come back to it.
    fn on_detached(&mut self, key: &Key, streams: Streams) {
        if streams.stdin {
            self.on_stdin_end(key);
        }
    }

    fn write_stdin(&mut self, key: &Key) {
        let Some(process) = self.processes.get_mut(key) else {
            return;
        };
        if let Some(fd) = &process.stdin {
            while !process.stdin_queue.is_empty() {
                match nix::unistd::write(fd, &process.stdin_queue) {
                    Ok(n) => {
                        process.stdin_queue.drain(..n);
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(_) => {
                        process.stdin_queue.clear();
                        process.stdin_ends = true;
                    }
                }
            }
        }
        if process.stdin_ends && process.stdin_queue.is_empty() {
            self.close_stdin(key);
        }
    }

    fn close_stdin(&mut self, key: &Key) {
        if let Some(process) = self.processes.get_mut(key) {
            process.stdin = None;
        }
    }

    /// Reads once; true when there may be more.
    fn read_output(&mut self, key: &Key, stream: StdStream, buffer: &mut [u8]) -> bool {
        let slot = usize::from(stream == StdStream::Stderr);
        let Some(process) = self.processes.get_mut(key) else {
            return false;
        };
        let Some(fd) = &process.out[slot] else {
            return false;
        };
        match nix::unistd::read(fd, buffer) {
            // A terminal whose last user has gone says EIO.
            Ok(0) | Err(Errno::EIO) => {
                process.out[slot] = None;
                false
            }
            Ok(n) => {
                let bytes = &buffer[..n];
                if key.is_none()
                    && let Some(logger) = &mut self.logger
                {
                    logger.write(stream, bytes);
                }
                for client in &mut self.clients {
                    if let Some((attached, streams)) = &client.attached
                        && attached == key
                        && streams.wants(stream)
                        && !client.gone
                    {
                        push_frame(&mut client.output, stream as u8, bytes);
                    }
                }
                true
            }
            Err(Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    fn reap(&mut self, key: &Key, buffer: &mut [u8]) {
        let Some(process) = self.processes.get_mut(key) else {
            return;
        };
        let Some(pidfd) = &process.pidfd else { return };
        let code = match waitid(
            Id::PIDFd(pidfd.as_fd()),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
        ) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => return,
            Err(_) => 255,
        };
        process.pidfd = None;
        let at = Timestamp::now();
        // What it wrote is in the pipes already. Not until their end: a child it left behind may hold them open.
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            while self.read_output(key, stream, buffer) {}
        }
        if key.is_none() {
            self.on_container_end(code, at);
        } else {
            let exit = Exit {
                code,
                at,
                oom_killed: false,
            };
            self.processes.remove(key);
            self.tell_end(key, exit);
        }
    }

    fn on_container_end(&mut self, code: i32, at: Timestamp) {
        // In a process namespace of its own nothing is left by now; with the host's the rest ends here.
        for pid in cgroup_processes(&self.sup.cgroups) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(logger) = &mut self.logger {
            logger.finish();
        }
        let exit = Exit {
            code,
            at,
            oom_killed: was_oom_killed(&self.sup.cgroups),
        };
        let record = ExitRecord {
            start: self.sup.start,
            started_at: self.started_at,
            exit,
        };
        // When the disk refuses, the daemon still learns it from us; only a daemon that is away does not.
        let _ = write_exit(&self.sup.container_dir, &record);
        let execs: Vec<Key> = self
            .processes
            .keys()
            .filter(|key| key.is_some())
            .cloned()
            .collect();
        for key in execs {
            self.processes.remove(&key);
            self.tell_end(
                &key,
                Exit {
                    code: 137,
                    at,
                    oom_killed: false,
                },
            );
        }
        self.processes.remove(&None);
        self.exit = Some(exit);
        self.tell_end(&None, exit);
    }

    /// Tells all who listen; those attached to that process have nothing more to hear and are closed.
    fn tell_end(&mut self, key: &Key, exit: Exit) {
        let reply = Reply::Exited {
            exec: key.clone(),
            exit,
        };
        let mut heard = false;
        for client in &mut self.clients {
            heard |= client.attached.is_none();
            match &client.attached {
                Some((attached, _)) if attached == key => {
                    push_message(&mut client.output, &reply);
                    client.closing = true;
                }
                Some(_) => {}
                None => push_message(&mut client.output, &reply),
            }
        }
        if let (Some(id), false) = (key, heard) {
            if self.ended_execs.len() >= ENDED_EXECS_MAX {
                self.ended_execs.remove(0);
            }
            self.ended_execs.push((id.clone(), exit));
        }
    }
}

impl Process {
    fn new(spawned: Spawned) -> Self {
        for fd in [&spawned.stdin, &spawned.stdout, &spawned.stderr]
            .into_iter()
            .flatten()
        {
            // Fails only for descriptors that are none.
            let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        }
        Self {
            pid: spawned.pid,
            pidfd: Some(spawned.pidfd),
            stdin: spawned.stdin,
            stdin_queue: Vec::new(),
            stdin_ends: false,
            out: [spawned.stdout, spawned.stderr],
            terminal: spawned.terminal,
        }
    }
}

impl Client {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            attached: None,
            closing: false,
            gone: false,
        }
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let header: [u8; FRAME_HEADER] = self.input.get(..FRAME_HEADER)?.try_into().ok()?;
        let Some((kind, len)) = parse_header(header) else {
            self.gone = true;
            self.input.clear();
            return None;
        };
        let payload = self.input.get(FRAME_HEADER..FRAME_HEADER + len)?.to_vec();
        self.input.drain(..FRAME_HEADER + len);
        Some((kind, payload))
    }

    fn flush(&mut self) {
        while self.sent < self.output.len() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        if self.closing {
            self.gone = true;
        }
    }
}

fn done(result: Result<(), Errno>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(errno) => Reply::Failed(Failure::new(errno.desc())),
    }
}

/// Waits for any of the descriptors.
#[allow(unsafe_code)]
fn poll_raw(fds: &[(i32, PollFlags)]) -> Result<Vec<PollFlags>, Errno> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        // SAFETY: the descriptors are owned by the shim, which does not run while it polls.
        .map(|&(fd, flags)| PollFd::new(unsafe { BorrowedFd::borrow_raw(fd) }, flags))
        .collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) => Ok(polled
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect()),
        Err(Errno::EINTR) => Ok(vec![PollFlags::empty(); fds.len()]),
        Err(errno) => Err(errno),
    }
}
