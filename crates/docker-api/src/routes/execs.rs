//! `/exec`, and `POST /containers/{id}/exec`.

use http::StatusCode;
use serde_json::json;
use shoal_api::container::ExecSpec;

use super::{containers::size, unknown};
use crate::{
    backend::{ApiError, ApiResult},
    call::Call,
    convert::container_show,
    fields::Fields,
    reply::{self, Reply},
    server::Api,
    streams,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    match (call.method.as_str(), &path[1..]) {
        ("POST", [id, "start"]) => start(api, call, id).await,
        ("POST", [id, "resize"]) => {
            let (rows, columns) = size(&call.query)?;
            api.engine.exec_resize(id, rows, columns).await?;
            Ok(reply::done())
        }
        ("GET", [id, "json"]) => {
            let exec = api.engine.exec_inspect(id).await?;
            Ok(reply::ok(&container_show::exec(&exec)))
        }
        _ => Err(unknown()),
    }
}

/// `POST /containers/{id}/exec`.
pub(super) async fn create(api: &Api, call: Call, container: &str) -> ApiResult<Reply> {
    let spec = read(&call)?;
    let id = api.engine.exec_create(container, spec).await?;
    Ok(reply::json(StatusCode::CREATED, &json!({"Id": id})))
}

/// Reads what is to be run.
pub(super) fn read(call: &Call) -> ApiResult<ExecSpec> {
    let mut f = Fields::body(&call.bytes())?;
    let spec = ExecSpec {
        cmd: f.get("Cmd")?,
        env: f.get("Env")?,
        working_dir: f.text("WorkingDir")?,
        user: f.text("User")?,
        tty: f.get("Tty")?,
        privileged: f.get("Privileged")?,
        attach_stdin: f.get("AttachStdin")?,
        attach_stdout: f.get("AttachStdout")?,
        attach_stderr: f.get("AttachStderr")?,
        detach_keys: f.text("DetachKeys")?,
        console_size: f
            .take::<(u16, u16)>("ConsoleSize")?
            .filter(|size| *size != (0, 0)),
    };
    // Whether the client will wait is said again at the start; Docker's SDK for Python names the container here too.
    f.ignore(&["Detach", "Container"]);
    f.finish()?;
    if spec.cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    Ok(spec)
}

async fn start(api: &Api, mut call: Call, id: &str) -> ApiResult<Reply> {
    // The body is read before the connection is taken over, and the upgrade must outlive it.
    let (upgrade, minor) = (call.upgrade.take(), call.minor);
    let mut f = Fields::body(&call.bytes())?;
    let detach: bool = f.get("Detach")?;
    let size: Option<(u16, u16)> = f.take("ConsoleSize")?;
    let tty: Option<bool> = f.take("Tty")?;
    if detach {
        api.engine.exec_start(id).await?;
        return Ok(reply::done());
    }
    let exec = api.engine.exec_inspect(id).await?;
    // As docker: whoever starts it says how it wants to read it.
    let tty = tty.unwrap_or(exec.spec.tty);
    let (engine, id) = (api.engine.clone(), id.to_owned());
    let attached = async move {
        let mut attached = engine.exec_attach(&id).await?;
        if let Some((rows, columns)) = size.filter(|size| *size != (0, 0) && attached.tty) {
            // The process may be over already.
            let _ = engine.exec_resize(&id, rows, columns).await;
        }
        attached.tty = tty;
        Ok(attached)
    };
    match upgrade {
        // As docker: the answer comes first and the process after it. Docker's SDK for Python loses what comes so soon
        // that it is read together with the answer's head.
        Some(upgrade) => Ok(streams::hijack_then(
            api,
            upgrade,
            minor,
            tty,
            Box::pin(attached),
        )),
        None => Ok(streams::hijack(api, None, minor, attached.await?)),
    }
}
