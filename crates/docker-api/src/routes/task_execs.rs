//! `/shoal/tasks/…/exec` and `/shoal/exec`: processes in tasks, wherever these run.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use http::StatusCode;
use serde_json::json;
use shoal_api::{TaskId, container::ExecSpec};
use tokio::sync::{mpsc, watch};

use super::{containers::size, execs, tasks, unknown};
use crate::{
    backend::{ApiError, ApiResult},
    call::Call,
    fields::Fields,
    reply::{self, Reply},
    server::Api,
    streams,
};

/// Processes in tasks that are remembered for their exit codes.
const EXECS_MAX: usize = 1_000;

/// Processes in tasks, by the id of the request; ids grow, so the first is the oldest.
#[derive(Debug, Default)]
pub(crate) struct TaskExecs(Mutex<(u64, BTreeMap<u64, Exec>)>);

#[derive(Debug, Clone)]
enum Exec {
    /// Asked for, not yet started.
    Asked(TaskId, Box<ExecSpec>),
    /// Started.
    Started {
        resize: mpsc::Sender<(u16, u16)>,
        exit: watch::Receiver<Option<i32>>,
    },
}

impl TaskExecs {
    fn add(&self, task: TaskId, spec: ExecSpec) -> u64 {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, execs) = &mut *held;
        *last += 1;
        execs.insert(*last, Exec::Asked(task, Box::new(spec)));
        if execs.len() > EXECS_MAX {
            execs.pop_first();
        }
        *last
    }

    fn set(&self, id: u64, exec: Exec) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.1.insert(id, exec);
    }

    fn get(&self, id: &str) -> ApiResult<(u64, Exec)> {
        let missing = || ApiError::not_found(format!("No such exec instance: {id}"));
        let number: u64 = id.parse().map_err(|_| missing())?;
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exec = held.1.get(&number).ok_or_else(missing)?;
        Ok((number, exec.clone()))
    }
}

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    match (call.method.as_str(), &path[1..]) {
        ("POST", ["tasks", id, "exec"]) => {
            let task = tasks::find(api, id).await?;
            let spec = execs::read(&call)?;
            let id = api.task_execs.add(task.id, spec);
            Ok(reply::json(
                StatusCode::CREATED,
                &json!({"Id": id.to_string()}),
            ))
        }
        ("POST", ["exec", id, "start"]) => start(api, call, id).await,
        ("POST", ["exec", id, "resize"]) => {
            let size = size(&call.query)?;
            if let (_, Exec::Started { resize, .. }) = api.task_execs.get(id)? {
                // It may be over.
                let _ = resize.send(size).await;
            }
            Ok(reply::done())
        }
        ("GET", ["exec", id, "json"]) => {
            let (_, exec) = api.task_execs.get(id)?;
            let code = match exec {
                Exec::Asked(..) => None,
                // The streams end a moment before the code is here.
                Exec::Started { mut exit, .. } => match exit.wait_for(Option::is_some).await {
                    Ok(code) => *code,
                    Err(_) => {
                        return Err(ApiError::internal(
                            "the task's node broke off before the process ended",
                        ));
                    }
                },
            };
            Ok(reply::ok(
                &json!({"ID": id, "Running": code.is_none(), "ExitCode": code}),
            ))
        }
        _ => Err(unknown()),
    }
}

async fn start(api: &Api, mut call: Call, id: &str) -> ApiResult<Reply> {
    // The body is read before the connection is taken over, and the upgrade must outlive it.
    let (upgrade, minor) = (call.upgrade.take(), call.minor);
    Fields::body(&call.bytes())?;
    let (number, exec) = api.task_execs.get(id)?;
    let Exec::Asked(task, spec) = exec else {
        return Err(ApiError::conflict(format!(
            "Error: Exec command {id} has already run"
        )));
    };
    let process = api.cluster.task_exec(&task, *spec).await?;
    let started = Exec::Started {
        resize: process.resize,
        exit: process.exit,
    };
    api.task_execs.set(number, started);
    Ok(streams::hijack(api, upgrade, minor, process.streams))
}
