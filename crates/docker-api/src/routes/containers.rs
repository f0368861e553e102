//! `/containers`.

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use futures_util::{StreamExt, stream};
use http::HeaderValue;
use serde_json::json;
use shoal_api::container::{
    ChangeKind, ContainerFilter, ContainerStatus, ContainerSummary, PathStat, Port, PortProtocol,
    Stats,
};

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult, AttachOptions, ExtractOptions, WaitCondition},
    call::{Call, Query},
    convert::{
        container_check, container_create, container_show, image::read_platform, time::instant,
    },
    filters::Filters,
    reply::{self, Reply},
    server::Api,
    streams::{self, LogFormat},
    versions,
};

/// Time between two samples of `docker stats`; docker's.
const STATS_PERIOD: Duration = Duration::from_secs(1);

/// Label that the engine's containers of tasks carry.
const TASK_LABEL: &str = "com.docker.swarm.task.id";

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let engine = &api.engine;
    let query = call.query.clone();
    match (call.method.as_str(), &path[1..]) {
        ("GET", ["json"]) => list(api, &query).await,
        ("POST", ["create"]) => create(api, call).await,
        ("POST", ["prune"]) => {
            let filters = query.filters()?.only(&["until", "label", "label!"])?;
            let pruned = engine.container_prune(filters.prune(api.now())?).await?;
            Ok(reply::ok(&json!({
                "ContainersDeleted": pruned.deleted,
                "SpaceReclaimed": pruned.space_reclaimed,
            })))
        }
        ("GET", [name, "json"]) => {
            let container = engine.container_inspect(name, query.flag("size")).await?;
            let mut shown = container_show::inspect(&container);
            versions::container(call.minor, &mut shown);
            Ok(reply::ok(&shown))
        }
        ("DELETE", names @ ([_] | [_, _])) if query.flag("link") => {
            unlink(api, &names.join("/")).await?;
            Ok(reply::no_content())
        }
        ("DELETE", [name]) => {
            engine
                .container_remove(name, query.flag("force"), query.flag("v"))
                .await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "start"]) => {
            if query.text("checkpoint").is_some() {
                return Err(ApiError::not_implemented("starting from a checkpoint"));
            }
            engine.container_start(name).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "stop"]) => {
            let signal = query.text("signal").map(str::to_owned);
            engine.container_stop(name, signal, grace(&query)?).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "restart"]) => {
            let signal = query.text("signal").map(str::to_owned);
            engine
                .container_restart(name, signal, grace(&query)?)
                .await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "kill"]) => {
            engine
                .container_kill(name, query.text("signal").map(str::to_owned))
                .await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "wait"]) => wait(api, &query, name).await,
        ("POST", [name, "rename"]) => {
            let new = query
                .text("name")
                .ok_or_else(|| ApiError::invalid("Neither old nor new names may be empty"))?;
            engine.container_rename(name, new).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "pause"]) => {
            engine.container_pause(name).await?;
            Ok(reply::no_content())
        }
        ("POST", [name, "unpause"]) => {
            engine.container_unpause(name).await?;
            Ok(reply::no_content())
        }
        ("GET", [name, "top"]) => {
            let top = engine
                .container_top(name, query.text_or_empty("ps_args"))
                .await?;
            Ok(reply::ok(
                &json!({"Titles": top.titles, "Processes": top.processes}),
            ))
        }
        ("GET", [name, "stats"]) => stats(api, &query, name).await,
        ("GET", [name, "logs"]) => {
            let wanted = streams::log_query(&query)?;
            let container = engine.container_inspect(name, false).await?;
            let lines = engine.container_logs(name, wanted).await?;
            let lines = lines.take_until(api.stop.clone().cancelled_owned());
            let format = LogFormat::new(&query, container.spec.tty);
            let details = container.log_attributes;
            Ok(streams::logs(lines, format, call.minor, move |line| {
                (line, details.clone())
            }))
        }
        ("POST", [name, "attach"]) => {
            let options = attach_options(&query);
            match call.upgrade {
                // Nothing can be missed of what was said already, and Docker's SDK for Python loses what comes so soon
                // that it is read together with the answer's head.
                Some(upgrade) if options.logs && !options.stream => {
                    let tty = engine.container_inspect(name, false).await?.spec.tty;
                    let (engine, name) = (Arc::clone(engine), (*name).to_owned());
                    let attached = async move { engine.container_attach(&name, options).await };
                    let attached = Box::pin(attached);
                    Ok(streams::hijack_then(
                        api, upgrade, call.minor, tty, attached,
                    ))
                }
                upgrade => {
                    let attached = engine.container_attach(name, options).await?;
                    Ok(streams::hijack(api, upgrade, call.minor, attached))
                }
            }
        }
        ("POST", [name, "resize"]) => {
            let (rows, columns) = size(&query)?;
            engine.container_resize(name, rows, columns).await?;
            Ok(reply::done())
        }
        ("POST", [name, "exec"]) => super::execs::create(api, call, name).await,
        ("POST", [name, "update"]) => {
            let update = container_create::read_update(&call.bytes())?;
            container_check::update(&update.resources)?;
            let warnings = engine.container_update(name, update).await?;
            Ok(reply::ok(&json!({"Warnings": warnings})))
        }
        ("GET", [name, "export"]) => Ok(reply::stream(
            "application/octet-stream",
            engine.container_export(name).await?,
        )),
        ("GET", [name, "changes"]) => {
            let changes: Vec<_> = engine
                .container_changes(name)
                .await?
                .into_iter()
                .map(|(path, kind)| {
                    let kind = match kind {
                        ChangeKind::Modified => 0,
                        ChangeKind::Added => 1,
                        ChangeKind::Deleted => 2,
                    };
                    json!({"Path": path.to_string_lossy(), "Kind": kind})
                })
                .collect();
            Ok(reply::ok(&changes))
        }
        ("HEAD", [name, "archive"]) => {
            let stat = engine
                .container_path_stat(name, archive_path(&query)?)
                .await?;
            Ok(with_stat(reply::done(), &stat))
        }
        ("GET", [name, "archive"]) => {
            let path = archive_path(&query)?;
            let (stat, archive) = engine.container_archive(name, path).await?;
            Ok(with_stat(
                reply::stream("application/x-tar", archive),
                &stat,
            ))
        }
        ("PUT", [name, "archive"]) => {
            let options = ExtractOptions {
                no_overwrite_dir_non_dir: query.flag("noOverwriteDirNonDir"),
                copy_uid_gid: query.flag("copyUIDGID"),
            };
            let path = archive_path(&query)?;
            engine
                .container_extract(name, path, options, call.stream())
                .await?;
            Ok(reply::done())
        }
        (_, [_, "checkpoints", ..]) => Err(ApiError::not_implemented("checkpoints")),
        ("GET", [name, "attach", "ws"]) => websocket(api, call, name).await,
        _ => Err(unknown()),
    }
}

fn attach_options(query: &Query) -> AttachOptions {
    AttachOptions {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        detach_keys: query.text("detachKeys").map(str::to_owned),
    }
}

/// Attaches by a websocket, as terminals in browsers do: binary messages, unframed, each way.
async fn websocket(api: &Api, mut call: Call, name: &str) -> ApiResult<Reply> {
    let key = call.header("sec-websocket-key").map(str::to_owned);
    let (Some(key), Some(upgrade)) = (key, call.upgrade.take()) else {
        return Err(ApiError::invalid(
            "not a websocket handshake: the headers Upgrade and Sec-WebSocket-Key are needed",
        ));
    };
    let mut options = attach_options(&call.query);
    // Docker's websocket has all streams that are not named, too.
    if !(options.stdin || options.stdout || options.stderr) {
        (options.stdin, options.stdout, options.stderr) = (true, true, true);
    }
    let attached = api.engine.container_attach(name, options).await?;
    Ok(crate::websocket::hijack(api, upgrade, &key, attached))
}

fn archive_path(query: &Query) -> ApiResult<&str> {
    query
        .text("path")
        .filter(|path| !path.is_empty())
        .ok_or_else(|| ApiError::invalid("bad parameter: 'path' cannot be empty"))
}

/// Says what the path is in the header that docker's client reads.
fn with_stat(mut reply: Reply, stat: &PathStat) -> Reply {
    let json = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": container_show::go_file_mode(stat.mode),
        "mtime": instant(stat.mtime),
        "linkTarget": stat.link_target,
    });
    let text = base64::engine::general_purpose::STANDARD.encode(json.to_string());
    let value = HeaderValue::from_str(&text).expect("base 64 is plain");
    reply
        .headers_mut()
        .insert("X-Docker-Container-Path-Stat", value);
    reply
}

async fn create(api: &Api, call: Call) -> ApiResult<Reply> {
    let name = call.query.text("name").map(str::to_owned);
    let platform = read_platform(call.query.text("platform"))?;
    let mut spec = container_create::read_container(&call.bytes(), name)?;
    versions::create(call.minor, &mut spec)?;
    container_check::container(&spec)?;
    let created = api.engine.container_create(spec, platform).await?;
    Ok(reply::created(
        &json!({"Id": created.id.as_str(), "Warnings": created.warnings}),
    ))
}

/// Grace of a stop: a negative number waits for ever.
fn grace(query: &Query) -> ApiResult<Option<Duration>> {
    Ok(query
        .number::<i64>("t")?
        .map(|seconds| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)))
}

/// Rows and columns of a terminal.
pub(super) fn size(query: &Query) -> ApiResult<(u16, u16)> {
    let rows = query.number("h")?.unwrap_or(0);
    let columns = query.number("w")?.unwrap_or(0);
    Ok((rows, columns))
}

/// Waits. The header goes out as soon as no end can be missed any more: the client starts the container then.
async fn wait(api: &Api, query: &Query, name: &str) -> ApiResult<Reply> {
    let condition = match query.text("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::invalid(format!("invalid condition: {other:?}")));
        }
    };
    let ended = api.engine.container_wait(name, condition).await?;
    Ok(reply::json_stream(
        stream::once(ended)
            .map(|ended| {
                let (code, error) = match ended {
                    Ok(ended) => (ended.exit_code, ended.error),
                    Err(error) => (-1, error.message),
                };
                let mut answer = json!({"StatusCode": code});
                if !error.is_empty() {
                    answer["Error"] = json!({"Message": error});
                }
                Ok(answer)
            })
            .take_until(api.stop.clone().cancelled_owned()),
    ))
}

/// Samples once a second, or once.
async fn stats(api: &Api, query: &Query, name: &str) -> ApiResult<Reply> {
    let container = api.engine.container_inspect(name, false).await?;
    let (id, name) = (container.id.as_str().to_owned(), container.name);
    let first = api.engine.container_stats(&id).await?;
    let streaming = query.flag_or("stream", true);
    if !streaming && query.flag("one-shot") {
        return Ok(reply::ok(&container_show::stats(&id, &name, &first, None)));
    }
    let mut ticks = tokio::time::interval(STATS_PERIOD);
    ticks.tick().await;
    if !streaming {
        // The share of the CPU needs two samples.
        ticks.tick().await;
        let second = api.engine.container_stats(&id).await?;
        return Ok(reply::ok(&container_show::stats(
            &id,
            &name,
            &second,
            Some(&first),
        )));
    }
    let start = (api.engine.clone(), ticks, None::<Stats>, Some(first));
    let samples = stream::unfold(start, move |(engine, mut ticks, before, ready)| {
        let (id, name) = (id.clone(), name.clone());
        async move {
            let now = match ready {
                Some(first) => first,
                None => {
                    ticks.tick().await;
                    // A container that is gone has no more samples.
                    engine.container_stats(&id).await.ok()?
                }
            };
            let row = container_show::stats(&id, &name, &now, before.as_ref());
            Some((Ok(row), (engine, ticks, Some(now), None)))
        }
    });
    Ok(reply::json_stream(
        samples.take_until(api.stop.clone().cancelled_owned()),
    ))
}

/// Filters of `docker ps`.
const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// Removes the link `parent/alias`; some clients escape the slash, others do not.
async fn unlink(api: &Api, name: &str) -> ApiResult<()> {
    match name.split_once('/') {
        Some((parent, alias)) => api.engine.container_unlink(parent, alias).await,
        None => {
            api.engine.container_inspect(name, false).await?;
            Err(ApiError::internal(
                "Conflict, cannot remove the default link name of the container",
            ))
        }
    }
}

async fn list(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query.filters()?.only(&FILTERS)?;
    let mut filter = read_filter(query, filters.clone())?;
    let names = name_patterns(&mut filter);
    // The last n are those of the names asked for.
    let limit = if names.is_empty() {
        None
    } else {
        filter.limit.take()
    };
    let exposed = ports(filters.values("expose"))?;
    let is_task = filters.flag("is-task")?;
    let now = api.now();
    let rows: Vec<_> = api
        .engine
        .container_list(filter)
        .await?
        .iter()
        .filter(|row| is_task.is_none_or(|wanted| row.labels.contains_key(TASK_LABEL) == wanted))
        .filter(|row| exposed.is_empty() || exposes(row, &exposed))
        .filter(|row| names.is_empty() || is_named(row, &names))
        .take(limit.unwrap_or(usize::MAX))
        .map(|row| container_show::summary(row, now))
        .collect();
    Ok(reply::ok(&rows))
}

/// Names are asked for by regular expressions, as in docker; one that is none fits nothing.
fn name_patterns(filter: &mut ContainerFilter) -> Vec<Option<regex::Regex>> {
    let texts = std::mem::take(&mut filter.name);
    // `all` does not depend on the names, so that the engine can be asked without them.
    texts
        .iter()
        .map(|text| regex::Regex::new(text).ok())
        .collect()
}

/// Whether a name fits, with or without the slash that it has in the API.
fn is_named(row: &ContainerSummary, patterns: &[Option<regex::Regex>]) -> bool {
    let full = format!("/{}", row.name.trim_start_matches('/'));
    patterns
        .iter()
        .flatten()
        .any(|pattern| pattern.is_match(&full) || pattern.is_match(&full[1..]))
}

fn exposes(row: &ContainerSummary, ports: &[Port]) -> bool {
    row.ports.iter().any(|have| {
        let have = Port {
            number: have.container_port,
            protocol: have.protocol,
        };
        ports.contains(&have)
    })
}

fn read_filter(query: &Query, mut filters: Filters) -> ApiResult<ContainerFilter> {
    let status = filters
        .take("status")
        .into_iter()
        .map(|text| {
            STATUSES
                .into_iter()
                .find(|status| status.as_str() == text)
                .ok_or_else(|| ApiError::invalid(format!("invalid filter 'status={text}'")))
        })
        .collect::<ApiResult<Vec<_>>>()?;
    let exited = filters
        .take("exited")
        .into_iter()
        .map(|text| {
            text.parse()
                .map_err(|_| ApiError::invalid(format!("invalid filter 'exited={text}'")))
        })
        .collect::<ApiResult<Vec<i32>>>()?;
    let limit = query
        .number::<i64>("limit")?
        .and_then(|limit| usize::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    Ok(ContainerFilter {
        // "The last n" and "ended so" are about containers that do not run, too.
        all: query.flag("all") || limit.is_some() || !exited.is_empty(),
        limit,
        size: query.flag("size"),
        id: filters.take("id"),
        name: filters.take("name"),
        label: filters.take("label"),
        status,
        ancestor: filters.take("ancestor"),
        exited,
        health: health_filter(filters.take("health"))?,
        volume: filters.take("volume"),
        network: filters.take("network"),
        publish: ports(filters.values("publish"))?,
        before: filters.take("before"),
        since: filters.take("since"),
    })
}

fn health_filter(texts: Vec<String>) -> ApiResult<Vec<String>> {
    const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
    match texts.iter().find(|text| !HEALTH.contains(&text.as_str())) {
        None => Ok(texts),
        Some(odd) => Err(ApiError::invalid(format!(
            "Unrecognised filter value for health: {odd}"
        ))),
    }
}

const STATUSES: [ContainerStatus; 7] = [
    ContainerStatus::Created,
    ContainerStatus::Running,
    ContainerStatus::Paused,
    ContainerStatus::Restarting,
    ContainerStatus::Removing,
    ContainerStatus::Exited,
    ContainerStatus::Dead,
];

/// `80`, `80/udp`, `80-90/tcp`.
fn ports(texts: &[String]) -> ApiResult<Vec<Port>> {
    let mut ports = Vec::new();
    for text in texts {
        let invalid = || ApiError::invalid(format!("invalid filter: invalid port {text:?}"));
        let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => PortProtocol::Tcp,
            "udp" => PortProtocol::Udp,
            "sctp" => PortProtocol::Sctp,
            _ => return Err(invalid()),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (
            first.parse().map_err(|_| invalid())?,
            last.parse().map_err(|_| invalid())?,
        );
        ports.extend((first..=last).map(|number| Port { number, protocol }));
    }
    Ok(ports)
}
