//! Attaching to containers, and further processes in them.

use std::sync::Arc;

use shoal_api::Timestamp;
use shoal_api::container::{ContainerStatus, ExecInspect, ExecSpec};
use tokio::sync::oneshot;

use super::record::{Entry, PendingAttach};
use super::{Engine, EngineError};
use crate::io::shim_client::{Attachment, StreamConnection, StreamRefused, attach, open_streams};
use crate::io::volumes::random_hex;
use crate::shim::protocol::{ExecLaunch, Exit, Reply, Request, Streams};

/// Execs remembered per container; older ones that have ended are forgotten.
const EXECS_MAX: usize = 256;
/// Where they are written down, in the run directory.
const EXECS_NAME: &str = "execs.json";
/// What Docker says of an end that nobody saw.
const EXIT_UNKNOWN: i32 = 255;

impl Engine {
    /// Attaches to the streams of process 1. A container that does not run yet is attached to when it starts, and
    /// nothing of it is missed.
    pub async fn attach(&self, name: &str, streams: Streams) -> Result<Attachment, EngineError> {
        let entry = self.find(name)?;
        // A start that is under way takes pending attachments along, so none may come too late for it.
        let _op = entry.op.lock().await;
        let record = entry.record();
        let streams = Streams {
            stdin: streams.stdin && record.spec.open_stdin,
            ..streams
        };
        let tty = record.spec.tty;
        self.tell(&record, "attach", &[]);
        match record.state.status {
            ContainerStatus::Paused => Err(EngineError::Conflict(format!(
                "container {} is paused, unpause the container before attach",
                record.id
            ))),
            ContainerStatus::Restarting => Err(EngineError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                record.id
            ))),
            ContainerStatus::Running => {
                let request = Request::Attach(streams);
                let connection = open_streams(&entry.run_dir, &request)
                    .await
                    .map_err(refused)?;
                Ok(attach(
                    Box::pin(async { Some(connection) }),
                    streams,
                    tty,
                    |_| {},
                ))
            }
            _ => {
                let (connected, connection) = oneshot::channel::<StreamConnection>();
                entry.live(|live| live.pending.push(PendingAttach { streams, connected }));
                Ok(attach(
                    Box::pin(async { connection.await.ok() }),
                    streams,
                    tty,
                    |_| {},
                ))
            }
        }
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, name: &str, rows: u16, cols: u16) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        entry.settled().await;
        self.resize_process(&entry, None, rows, cols).await
    }

    async fn resize_process(
        &self,
        entry: &Entry,
        exec: Option<String>,
        rows: u16,
        cols: u16,
    ) -> Result<(), EngineError> {
        let not_running = || EngineError::NotRunning(entry.id.to_string());
        let shim = entry
            .live(|live| live.shim.clone())
            .ok_or_else(not_running)?;
        match shim
            .ask(Request::Resize { exec, rows, cols })
            .await
            .map_err(EngineError::Shim)?
        {
            Reply::Failed(failure) => Err(EngineError::Invalid(format!(
                "cannot resize: {}",
                failure.message
            ))),
            _ => Ok(()),
        }
    }

    /// Prepares a further process in a running container; returns the exec's id.
    pub fn exec_create(&self, name: &str, spec: ExecSpec) -> Result<String, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        match record.state.status {
            ContainerStatus::Running => {}
            ContainerStatus::Paused => {
                return Err(EngineError::Conflict(format!(
                    "Container {} is paused, unpause the container before exec",
                    record.id
                )));
            }
            _ => return Err(EngineError::NotRunning(record.id.to_string())),
        }
        if spec.cmd.first().is_none_or(String::is_empty) {
            return Err(EngineError::Invalid("No exec command specified".into()));
        }
        let id = random_hex();
        let action = format!("exec_create: {}", spec.cmd.join(" "));
        let inspect = ExecInspect {
            id: id.clone(),
            container: entry.id.clone(),
            spec,
            running: false,
            exit_code: None,
            pid: 0,
        };
        entry.live(|live| {
            if live.execs.len() >= EXECS_MAX {
                live.execs.retain(|_, exec| exec.exit_code.is_none());
            }
            live.execs.insert(id.clone(), inspect);
        });
        self.tell(&record, &action, &[("execID", id.clone())]);
        Ok(id)
    }

    /// Starts a prepared exec and returns its streams. Drop them to let it run alone.
    pub async fn exec_start(&self, id: &str) -> Result<Attachment, EngineError> {
        let entry = self.find_exec(id)?;
        let exec = entry.live(|live| {
            let exec = live.execs.get_mut(id)?;
            let fresh = !exec.running && exec.exit_code.is_none();
            exec.running = true;
            fresh.then(|| exec.clone())
        });
        let exec = exec.ok_or_else(|| {
            EngineError::Conflict(format!("Error: Exec command {id} has already run"))
        })?;
        let spec = exec.spec;
        let streams = Streams {
            stdin: spec.attach_stdin,
            stdout: spec.attach_stdout,
            stderr: spec.attach_stderr,
        };
        let action = format!("exec_start: {}", spec.cmd.join(" "));
        let (tty, launched_size) = (spec.tty, spec.console_size);
        let launch = ExecLaunch {
            id: id.to_owned(),
            args: spec.cmd,
            env: spec.env,
            cwd: spec.working_dir.filter(|dir| !dir.is_empty()),
            user: spec.user.filter(|user| !user.is_empty()),
            tty,
            console_size: spec.console_size,
            privileged: spec.privileged,
            streams,
        };
        match open_streams(&entry.run_dir, &Request::Exec(Box::new(launch))).await {
            Ok(connection) => {
                let pid = connection.pid;
                let size = entry.live(|live| {
                    let exec = live.execs.get_mut(id)?;
                    exec.pid = pid;
                    exec.spec.console_size
                });
                if let Some((rows, cols)) = size.filter(|_| tty && size != launched_size) {
                    // The process may be over already.
                    let exec = Some(id.to_owned());
                    let _ = self.resize_process(&entry, exec, rows, cols).await;
                }
                save_execs(&entry);
                self.tell(&entry.record(), &action, &[("execID", id.to_owned())]);
                let (engine, ended, id) = (self.clone(), entry.clone(), id.to_owned());
                let on_end = move |exit| engine.on_exec_end(&ended, &id, exit);
                Ok(attach(
                    Box::pin(async { Some(connection) }),
                    streams,
                    tty,
                    on_end,
                ))
            }
            Err(err) => {
                let err = match refused(err) {
                    EngineError::Start { exit_code, message } => {
                        EngineError::Exec { exit_code, message }
                    }
                    other => other,
                };
                let exit_code = match &err {
                    EngineError::Exec { exit_code, .. } => *exit_code,
                    _ => 128,
                };
                entry.live(|live| {
                    if let Some(exec) = live.execs.get_mut(id) {
                        exec.running = false;
                        exec.exit_code = Some(exit_code);
                    }
                });
                Err(err)
            }
        }
    }

    /// What is known of an exec.
    pub fn exec_inspect(&self, id: &str) -> Result<ExecInspect, EngineError> {
        let missing = || EngineError::NoSuchExec(id.to_owned());
        self.find_exec(id)?
            .live(|live| live.execs.get(id).cloned())
            .ok_or_else(missing)
    }

    /// Sets the size of an exec's terminal. Clients send it right behind the start, on a connection of its own: what
    /// comes before the process is there is kept for it.
    pub async fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Result<(), EngineError> {
        let entry = self.find_exec(id)?;
        let kept = entry.live(|live| match live.execs.get_mut(id) {
            Some(exec) if exec.pid == 0 && exec.exit_code.is_none() => {
                exec.spec.console_size = Some((rows, cols));
                true
            }
            _ => false,
        });
        if kept {
            return Ok(());
        }
        self.resize_process(&entry, Some(id.to_owned()), rows, cols)
            .await
    }

    /// Kills an exec.
    pub(super) async fn exec_kill(&self, entry: &Entry, id: &str) {
        if let Some(shim) = entry.live(|live| live.shim.clone()) {
            let _ = shim
                .ask(Request::Kill {
                    exec: Some(id.to_owned()),
                    signal: 9,
                })
                .await;
        }
    }

    fn find_exec(&self, id: &str) -> Result<Arc<Entry>, EngineError> {
        self.entries()
            .into_iter()
            .find(|entry| entry.live(|live| live.execs.contains_key(id)))
            .ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))
    }

    /// Told once by the streams of the exec and once by the shim; the first counts.
    pub(super) fn on_exec_end(&self, entry: &Entry, id: &str, exit: Exit) {
        let news = entry.live(|live| match live.execs.get_mut(id) {
            Some(exec) if exec.exit_code.is_none() => {
                exec.running = false;
                exec.exit_code = Some(exit.code);
                true
            }
            _ => false,
        });
        if news {
            save_execs(entry);
            let attributes = [
                ("execID", id.to_owned()),
                ("exitCode", exit.code.to_string()),
            ];
            self.tell(&entry.record(), "exec_die", &attributes);
        }
    }

    /// Takes over the execs of a container that outlived the daemon: `running` is what its shim still has, `ended` what
    /// ended meanwhile.
    pub(super) fn adopt_execs(&self, entry: &Entry, running: &[String], ended: &[(String, Exit)]) {
        let json = std::fs::read(entry.run_dir.join(EXECS_NAME)).unwrap_or_default();
        let execs: Vec<ExecInspect> = serde_json::from_slice(&json).unwrap_or_default();
        for mut exec in execs {
            let id = exec.id.clone();
            let over = exec.exit_code.is_some();
            let exit = ended.iter().find(|(ended, _)| *ended == id);
            if !over && exit.is_none() && !running.contains(&id) {
                // A shim of an older version does not tell.
                exec.running = false;
                exec.exit_code = Some(EXIT_UNKNOWN);
            }
            entry.live(|live| live.execs.insert(id.clone(), exec));
            if let Some((_, exit)) = exit {
                self.on_exec_end(entry, &id, *exit);
            }
        }
    }

    /// Nothing of a container outlives its process 1.
    pub(super) fn end_execs(&self, entry: &Entry, at: Timestamp) {
        let running: Vec<String> = entry.live(|live| {
            live.execs
                .iter()
                .filter(|(_, exec)| exec.running)
                .map(|(id, _)| id.clone())
                .collect()
        });
        for id in running {
            self.on_exec_end(
                entry,
                &id,
                Exit {
                    code: 137,
                    at,
                    oom_killed: false,
                },
            );
        }
    }
}

/// Writes down which execs there are, for the next daemon. What the disk refuses only it will miss.
fn save_execs(entry: &Entry) {
    let execs: Vec<ExecInspect> = entry.live(|live| {
        let known = live.execs.values();
        known.filter(|exec| exec.pid != 0).cloned().collect()
    });
    let new = entry.run_dir.join(format!("{EXECS_NAME}.new"));
    let saved = serde_json::to_vec(&execs)
        .map_err(std::io::Error::from)
        .and_then(|json| std::fs::write(&new, json))
        .and_then(|()| std::fs::rename(&new, entry.run_dir.join(EXECS_NAME)));
    if let Err(err) = saved {
        tracing::debug!(container.id = %entry.id, error = %err, "cannot write down the execs");
    }
}

fn refused(err: StreamRefused) -> EngineError {
    match err {
        StreamRefused::Io(err) => EngineError::Shim(err),
        StreamRefused::Failed(failure) => failure.into(),
    }
}
