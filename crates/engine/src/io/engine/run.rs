//! The running of containers: start, end, what follows from an end, and the shims of an earlier daemon.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::Timestamp;
use shoal_api::container::{ContainerStatus, RestartPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::prepare::write_etc;
use super::record::{Entry, PendingAttach, Record};
use super::{Engine, EngineError, networks};
use crate::core::{restart, signals};
use crate::io::network::NetworkReady;
use crate::io::nursery;
use crate::io::shim_client::{self, ShimEvent, ShimHandle, StreamRefused, open_streams};
use crate::shim::protocol::{EXIT_NAME, Exit, ExitRecord, Failure, Reply, Request, push_message};

const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long the answer to a kill waits for the end, as in docker.
const KILL_MAX: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// What Docker says of a container whose end nobody saw.
const EXIT_UNKNOWN: i32 = 255;

/// How to stop; absent means what the container's spec says.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// Name or number.
    pub signal: Option<String>,
    /// From the signal to the kill; [`Duration::MAX`] never kills.
    pub grace: Option<Duration>,
}

impl Engine {
    /// Starts a container. [`EngineError::NotModified`] when it runs already.
    pub async fn start(&self, name: &str) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        entry.live(|live| live.restart_cancel = None);
        let _op = entry.op.lock().await;
        match entry.record().state.status {
            ContainerStatus::Running => return Err(EngineError::NotModified(name.to_owned())),
            ContainerStatus::Paused => {
                return Err(EngineError::Conflict(
                    "cannot start a paused container, try unpause instead".into(),
                ));
            }
            ContainerStatus::Removing | ContainerStatus::Dead => {
                return Err(EngineError::Conflict(
                    "container is marked for removal and cannot be started".into(),
                ));
            }
            ContainerStatus::Created | ContainerStatus::Exited | ContainerStatus::Restarting => {}
        }
        // Written down together with the start.
        entry.change(|record| {
            record.stopped_by_user = false;
            record.failures = 0;
            record.restart_count = 0;
        });
        let started = self.start_locked(&entry).await;
        if started.is_err() && entry.record().spec.host.auto_remove {
            let _ = self.remove_ended(&entry, true).await;
        }
        started
    }

    /// Starts a container that does not run. The caller holds its lock.
    async fn start_locked(&self, entry: &Arc<Entry>) -> Result<(), EngineError> {
        self.self_test().await.map_err(EngineError::SelfTest)?;
        entry.update(|record| record.start += 1);
        let record = entry.record();
        match self.launch(entry, &record).await {
            Ok(events) => {
                self.tell(&entry.record(), "start", &[]);
                tokio::spawn(self.clone().supervise(entry.clone(), record.start, events));
                self.watch_health(entry, true);
                Ok(())
            }
            Err(err) => {
                self.release_network(entry, &record).await;
                self.release_volumes(&record);
                self.clear_run(entry).await;
                let exit_code = match &err {
                    EngineError::Start { exit_code, .. } => *exit_code,
                    _ => 128,
                };
                entry.update(|record| {
                    // Docker leaves a container that never ran in the state it had.
                    if record.state.status == ContainerStatus::Restarting {
                        record.state.status = ContainerStatus::Exited;
                    }
                    record.state.exit_code = exit_code;
                    record.state.error = err.report();
                    record.ends += 1;
                });
                entry.live(|live| live.pending.clear());
                Err(err)
            }
        }
    }

    async fn launch(
        &self,
        entry: &Arc<Entry>,
        record: &Arc<Record>,
    ) -> Result<mpsc::UnboundedReceiver<ShimEvent>, EngineError> {
        let failed = |err| EngineError::Shim(io::Error::other(err));
        let network = &self.inner.config.network;
        let space = Arc::new(self.network_space(entry, record)?);
        // The shim is forked while the namespace is made, and the container is built while the network is: neither has
        // to know of the other. It runs when both are ready.
        let (engine, entry2, record2) = (self.clone(), entry.clone(), record.clone());
        let forked = tokio::task::spawn_blocking(move || {
            let supervise = engine.supervise_of(&entry2, &record2)?;
            let nursery = &engine.inner.nursery;
            nursery.launch(&supervise).map_err(EngineError::Shim)
        });
        let opened = async {
            match &space.request {
                Some(request) => network.open(request).await,
                None => Ok(()),
            }
        };
        let (opened, control) = tokio::join!(opened, forked);
        opened?;
        // It ends by itself when its connection closes before it was told to start.
        let control = control.map_err(failed)??;
        let (engine, entry2, record2) = (self.clone(), entry.clone(), record.clone());
        let (space2, told) = (
            space.clone(),
            control.try_clone().map_err(EngineError::Shim)?,
        );
        let prepared = tokio::task::spawn_blocking(move || {
            engine.mount_volumes(&record2)?;
            let links = engine.prepare(&entry2, &record2, &space2)?;
            let mut message = Vec::new();
            push_message(&mut message, &Request::Prepare);
            io::Write::write_all(&mut &told, &message).map_err(EngineError::Shim)?;
            Ok::<_, EngineError>(links)
        });
        let connected = async {
            match &space.request {
                Some(request) => network.setup(request).await,
                None => Ok(NetworkReady::default()),
            }
        };
        let (ready, links) = tokio::join!(connected, prepared);
        let ready = ready.map_err(EngineError::from).and_then(|ready| {
            let links = links.map_err(failed)??;
            write_etc(entry, record, &space, &ready, &links)?;
            Ok(ready)
        });
        control.set_nonblocking(true).map_err(EngineError::Shim)?;
        let mut control = UnixStream::from_std(control).map_err(EngineError::Shim)?;
        let settings = match ready {
            Ok(ready) => ready.settings,
            Err(err) => {
                // What it has built is gone when it closes its end.
                let _ = control.shutdown().await;
                let _ = control.read(&mut [0]).await;
                return Err(err);
            }
        };
        let (shim, events) = ShimHandle::new(control);
        // Whoever attached before the start misses nothing of it.
        for pending in entry.live(|live| std::mem::take(&mut live.pending)) {
            self.connect_pending(entry, pending).await;
        }
        let (pid, at) = match shim.ask(Request::Start).await.map_err(EngineError::Shim)? {
            Reply::Started { pid, at } => (pid, at),
            Reply::Failed(failure) => return Err(failure.into()),
            other => {
                return Err(
                    Failure::new(format!("unexpected answer of the shim: {other:?}")).into(),
                );
            }
        };
        // Before it is said to run: who hears of that may send it a signal at once.
        entry.live(|live| live.shim = Some(shim));
        entry.update(|record| {
            record.state.status = ContainerStatus::Running;
            record.state.pid = pid;
            record.state.exit_code = 0;
            record.state.error.clear();
            record.state.oom_killed = false;
            record.state.started_at = at;
            record.state.finished_at = Timestamp::ZERO;
            record.network = settings;
        });
        Ok(events)
    }

    async fn connect_pending(&self, entry: &Entry, pending: PendingAttach) {
        match open_streams(&entry.run_dir, &Request::Attach(pending.streams)).await {
            // The client may have gone in the meantime.
            Ok(connection) => drop(pending.connected.send(connection)),
            Err(StreamRefused::Io(err)) => {
                tracing::warn!(container.id = %entry.id, error = %err, "cannot attach")
            }
            Err(StreamRefused::Failed(failure)) => {
                tracing::warn!(container.id = %entry.id, error = failure.message, "cannot attach");
            }
        }
    }

    /// Follows one run to its end.
    async fn supervise(
        self,
        entry: Arc<Entry>,
        start: u64,
        mut events: mpsc::UnboundedReceiver<ShimEvent>,
    ) {
        let mut ended = None;
        while let Some(event) = events.recv().await {
            match event {
                ShimEvent::Exited { exec: None, exit } => {
                    ended = Some(exit);
                    break;
                }
                ShimEvent::Exited {
                    exec: Some(id),
                    exit,
                } => self.on_exec_end(&entry, &id, exit),
                ShimEvent::Gone => break,
            }
        }
        let exit = ended
            .or_else(|| read_exit(&entry, start))
            .unwrap_or_else(|| {
                // The shim died without a word. Nothing holds the container's streams any more, so it ends too.
                tracing::error!(container.id = %entry.id, "the container's shim is gone");
                Exit {
                    code: EXIT_UNKNOWN,
                    at: Timestamp::now(),
                    oom_killed: false,
                }
            });
        self.on_end(&entry, start, exit).await;
    }

    /// Writes down the end of a run and does what follows from it.
    async fn on_end(&self, entry: &Arc<Entry>, start: u64, exit: Exit) {
        let _op = entry.op.lock().await;
        let record = entry.record();
        if record.start != start || !record.state.status.is_up() {
            return;
        }
        entry.live(|live| live.shim = None);
        self.end_execs(entry, exit.at);
        let (engine, group) = (self.clone(), self.group_of(&record));
        let emptied = tokio::spawn(async move { engine.inner.cgroups.remove(&group).await });
        // Before anybody hears of the end: addresses and ports are free for the next one.
        self.release_network(entry, &record).await;
        self.release_volumes(&record);
        let ran_for = exit.at.since(record.state.started_at);
        let end = restart::End {
            exit_code: exit.code,
            ran_for,
            failures: record.failures,
            restart_count: record.restart_count,
            stopped_by_user: record.stopped_by_user,
        };
        let next = restart::next_start(record.spec.host.restart, end);
        entry.update(|record| {
            record.state.status = if next.is_some() {
                ContainerStatus::Restarting
            } else {
                ContainerStatus::Exited
            };
            record.state.pid = 0;
            record.state.exit_code = exit.code;
            record.state.oom_killed = exit.oom_killed;
            record.state.finished_at = exit.at;
            record.network = networks::after_end(&record.network);
            record.ends += 1;
            if let Some((_, failures)) = next {
                record.failures = failures;
            }
        });
        let record = entry.record();
        if exit.oom_killed {
            self.tell(&record, "oom", &[]);
        }
        let duration = ran_for.as_secs().to_string();
        self.tell(
            &record,
            "die",
            &[
                ("exitCode", exit.code.to_string()),
                ("execDuration", duration),
            ],
        );
        if next.is_none() && record.spec.host.auto_remove {
            // Its group goes by itself; nobody will ever want the same one.
            if let Err(err) = self.remove_ended(entry, true).await {
                tracing::error!(container.id = %entry.id, error = err.report(), "cannot remove a container that asked for it");
            }
            return;
        }
        let _ = emptied.await;
        let _ = std::fs::remove_dir_all(&entry.run_dir);
        if let Some((delay, _)) = next {
            self.restart_later(entry, delay);
        }
    }

    pub(super) async fn release_network(&self, entry: &Entry, record: &Record) {
        if Self::uses_port(record) {
            let netns = self.netns_of(&entry.id);
            self.inner.config.network.teardown(&entry.id, &netns).await;
        }
    }

    /// Removes the control groups and the run directory of a run that is over.
    async fn clear_run(&self, entry: &Entry) {
        self.inner
            .cgroups
            .remove(&self.group_of(&entry.record()))
            .await;
        let _ = std::fs::remove_dir_all(&entry.run_dir);
    }

    fn restart_later(&self, entry: &Arc<Entry>, delay: Duration) {
        let (cancel, cancelled) = oneshot::channel::<()>();
        entry.live(|live| live.restart_cancel = Some(cancel));
        let (engine, entry) = (self.clone(), entry.clone());
        tokio::spawn(async move {
            tokio::select! {
                // The restart policy's back-off, which is a duration by definition.
                () = tokio::time::sleep(delay) => {}
                _ = cancelled => return,
            }
            // Boxed, because a start may lead to an end which leads here again.
            Box::pin(engine.restart_by_policy(&entry)).await;
        });
    }

    async fn restart_by_policy(&self, entry: &Arc<Entry>) {
        let _op = entry.op.lock().await;
        let record = entry.record();
        if record.state.status != ContainerStatus::Restarting || record.removed {
            return;
        }
        entry.update(|record| record.restart_count += 1);
        if let Err(err) = self.start_locked(entry).await {
            tracing::warn!(container.id = %entry.id, error = err.report(), "cannot restart a container");
        }
    }

    /// Sends a signal to process 1.
    pub async fn kill(&self, name: &str, signal: Option<&str>) -> Result<(), EngineError> {
        let number = parse_signal(signal.unwrap_or("KILL"))?;
        let entry = self.find(name)?;
        let record = entry.record();
        if record.state.status == ContainerStatus::Restarting && number == SIGKILL {
            return self.end_now(&entry).await;
        }
        let record = entry.settled().await;
        if !record.state.status.is_up() {
            return Err(EngineError::NotRunning(record.id.to_string()));
        }
        if record.state.status == ContainerStatus::Paused && number != SIGKILL {
            return Err(EngineError::Paused(record.id.to_string()));
        }
        // A user who kills it wants it gone; other signals may mean anything.
        if number == SIGKILL
            || number
                == record
                    .spec
                    .stop_signal
                    .as_deref()
                    .and_then(signals::parse)
                    .unwrap_or(SIGTERM)
        {
            entry.update(|record| record.stopped_by_user = true);
        }
        self.signal(&entry, number).await?;
        if record.state.status == ContainerStatus::Paused {
            self.inner
                .cgroups
                .freeze(&self.group_of(&entry.record()), false)
                .map_err(EngineError::io("thaw", "the control group"))?;
        }
        self.tell(&record, "kill", &[("signal", number.to_string())]);
        if number == SIGKILL {
            // As docker: who is killed is over when the answer comes. Not even the kernel can end some processes, and
            // then the answer comes all the same.
            let mut watch = entry.watch();
            let over = |now: &Arc<Record>| now.ends != record.ends || !now.state.status.is_up();
            let _ = tokio::time::timeout(KILL_MAX, watch.wait_for(over)).await;
        }
        Ok(())
    }

    async fn signal(&self, entry: &Entry, number: i32) -> Result<(), EngineError> {
        let not_running = || EngineError::NotRunning(entry.id.to_string());
        let shim = entry
            .live(|live| live.shim.clone())
            .ok_or_else(not_running)?;
        match shim
            .ask(Request::Kill {
                exec: None,
                signal: number,
            })
            .await
        {
            Ok(Reply::Failed(_)) | Err(_) => Err(not_running()),
            Ok(_) => Ok(()),
        }
    }

    /// Stops a container: signal, grace, kill. Answers when it has ended. [`EngineError::NotModified`] when it does
    /// not run.
    pub async fn stop(&self, name: &str, options: &StopOptions) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        self.stop_entry(&entry, options).await
    }

    async fn stop_entry(
        &self,
        entry: &Arc<Entry>,
        options: &StopOptions,
    ) -> Result<(), EngineError> {
        let record = entry.record();
        if record.state.status == ContainerStatus::Restarting {
            return self.end_now(entry).await;
        }
        if !record.state.status.is_up() {
            return Err(EngineError::NotModified(record.id.to_string()));
        }
        let spec = &record.spec;
        let signal = match options
            .signal
            .as_deref()
            .or(spec.stop_signal.as_deref())
            .filter(|text| !text.is_empty())
        {
            Some(text) => parse_signal(text)?,
            None => SIGTERM,
        };
        let grace = options.grace.or(spec.stop_timeout).unwrap_or(STOP_GRACE);
        let mut watch = entry.watch();
        entry.update(|record| record.stopped_by_user = true);
        // It may end by itself this very moment, which is as good.
        let _ = self.signal(entry, signal).await;
        if record.state.status == ContainerStatus::Paused {
            let _ = self
                .inner
                .cgroups
                .freeze(&self.group_of(&entry.record()), false);
        }
        self.tell(&record, "kill", &[("signal", signal.to_string())]);
        let ended = watch.wait_for(|now| now.ends != record.ends || now.removed);
        // Forever is a year too many for the timer.
        let grace = grace.min(Duration::from_secs(365 * 24 * 3600));
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::info!(container.id = %entry.id, "did not stop within the grace, killing it");
            self.end_now(entry).await?;
        }
        self.tell(&entry.record(), "stop", &[]);
        Ok(())
    }

    /// Kills a container, or calls off its restart, and waits until it has ended.
    pub(super) async fn end_now(&self, entry: &Arc<Entry>) -> Result<(), EngineError> {
        let mut watch = entry.watch();
        let record = entry.record();
        entry.update(|record| record.stopped_by_user = true);
        if record.state.status == ContainerStatus::Restarting {
            entry.live(|live| live.restart_cancel = None);
            let _op = entry.op.lock().await;
            // Unless the restart was quicker than we.
            if entry.record().state.status == ContainerStatus::Restarting {
                entry.update(|record| record.state.status = ContainerStatus::Exited);
                return Ok(());
            }
        }
        let ends = entry.record().ends;
        if !entry.record().state.status.is_up() {
            return Ok(());
        }
        let _ = self.signal(entry, SIGKILL).await;
        if entry.record().state.status == ContainerStatus::Paused {
            let _ = self
                .inner
                .cgroups
                .freeze(&self.group_of(&entry.record()), false);
        }
        let _ = watch.wait_for(|now| now.ends != ends || now.removed).await;
        Ok(())
    }

    /// Stops, if it runs, and starts.
    pub async fn restart(&self, name: &str, options: &StopOptions) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        match self.stop_entry(&entry, options).await {
            Ok(()) | Err(EngineError::NotModified(_)) => {}
            Err(err) => return Err(err),
        }
        match self.start(entry.id.as_str()).await {
            Ok(()) | Err(EngineError::NotModified(_)) => {}
            Err(err) => return Err(err),
        }
        self.tell(&entry.record(), "restart", &[]);
        Ok(())
    }

    /// Freezes all processes of a container.
    pub async fn pause(&self, name: &str) -> Result<(), EngineError> {
        self.set_paused(name, true).await
    }

    /// Lets them go on.
    pub async fn unpause(&self, name: &str) -> Result<(), EngineError> {
        self.set_paused(name, false).await
    }

    async fn set_paused(&self, name: &str, paused: bool) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        let _op = entry.op.lock().await;
        let record = entry.record();
        match (record.state.status, paused) {
            (ContainerStatus::Running, true) | (ContainerStatus::Paused, false) => {}
            (ContainerStatus::Paused, true) => {
                return Err(EngineError::AlreadyPaused(record.id.to_string()));
            }
            (ContainerStatus::Running, false) => {
                return Err(EngineError::NotPaused(record.id.to_string()));
            }
            _ => return Err(EngineError::NotRunning(record.id.to_string())),
        }
        self.inner
            .cgroups
            .freeze(&self.group_of(&entry.record()), paused)
            .map_err(EngineError::io("freeze", "the control group"))?;
        let (status, action) = if paused {
            (ContainerStatus::Paused, "pause")
        } else {
            (ContainerStatus::Running, "unpause")
        };
        entry.update(|record| record.state.status = status);
        self.tell(&record, action, &[]);
        Ok(())
    }

    /// Takes over what an earlier daemon left: running containers keep running, others are written down as ended and
    /// started again if their policy says so.
    pub(super) async fn readopt(&self) {
        for entry in self.entries() {
            let record = entry.record();
            match record.state.status {
                ContainerStatus::Running | ContainerStatus::Paused => {
                    self.readopt_one(&entry, &record).await
                }
                ContainerStatus::Restarting => self.restart_later(&entry, Duration::ZERO),
                ContainerStatus::Removing => {
                    let _op = entry.op.lock().await;
                    let _ = self.remove_ended(&entry, true).await;
                }
                ContainerStatus::Exited if record.spec.host.restart == RestartPolicy::Always => {
                    entry.update(|record| record.state.status = ContainerStatus::Restarting);
                    self.restart_later(&entry, Duration::ZERO);
                }
                // The last daemon had no time for it.
                ContainerStatus::Exited if record.spec.host.auto_remove => {
                    let _op = entry.op.lock().await;
                    let _ = self.remove_ended(&entry, true).await;
                }
                ContainerStatus::Created | ContainerStatus::Exited | ContainerStatus::Dead => {}
            }
        }
    }

    async fn readopt_one(&self, entry: &Arc<Entry>, record: &Arc<Record>) {
        match ask_state(entry).await {
            Ok((
                shim,
                events,
                Reply::State {
                    start,
                    exit: None,
                    execs,
                    ended_execs,
                    ..
                },
            )) if start == record.start => {
                tracing::info!(container.id = %entry.id, "took over a running container");
                self.adopt_execs(entry, &execs, &ended_execs);
                // A daemon that died between freezing it and writing so, or the other way round, leaves them at odds.
                let paused = record.state.status == ContainerStatus::Paused;
                let frozen = self.inner.cgroups.freeze(&self.group_of(record), paused);
                if let Err(error) = frozen.as_ref().map_err(|err| err.to_string()) {
                    tracing::debug!(container.id = %entry.id, error, "cannot freeze or thaw a container");
                }
                entry.live(|live| live.shim = Some(shim));
                tokio::spawn(self.clone().supervise(entry.clone(), record.start, events));
                self.watch_health(entry, false);
            }
            other => {
                let exit = match other {
                    Ok((_, _, Reply::State { start, exit, .. })) if start == record.start => exit,
                    Ok(_) | Err(_) => None,
                };
                let lost = Exit {
                    code: EXIT_UNKNOWN,
                    at: Timestamp::now(),
                    oom_killed: false,
                };
                let exit = exit
                    .or_else(|| read_exit(entry, record.start))
                    .unwrap_or(lost);
                self.on_end(entry, record.start, exit).await;
            }
        }
    }
}

async fn ask_state(
    entry: &Entry,
) -> io::Result<(ShimHandle, mpsc::UnboundedReceiver<ShimEvent>, Reply)> {
    let (shim, events) = ShimHandle::new(connect(entry)?);
    let reply = shim.ask(Request::State).await?;
    Ok((shim, events, reply))
}

/// What a shim says of its state, and the connection to it, over which nothing more was asked.
pub(super) async fn first_state(entry: &Entry) -> io::Result<(UnixStream, Reply)> {
    let mut stream = connect(entry)?;
    let reply = shim_client::ask_once(&mut stream, &Request::State).await?;
    Ok((stream, reply))
}

fn connect(entry: &Entry) -> io::Result<UnixStream> {
    let stream = nursery::connect(&entry.run_dir)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The record that a shim left of the end of this run.
fn read_exit(entry: &Entry, start: u64) -> Option<Exit> {
    let json = std::fs::read(entry.dir.join(EXIT_NAME)).ok()?;
    let record: ExitRecord = serde_json::from_slice(&json).ok()?;
    (record.start == start).then_some(record.exit)
}

fn parse_signal(text: &str) -> Result<i32, EngineError> {
    signals::parse(text).ok_or_else(|| EngineError::Invalid(format!("invalid signal: {text}")))
}
