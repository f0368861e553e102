//! `shoal service logs`: lines of all tasks, each with where it is from.

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;
use shoal_api::Timestamp;
use tokio_util::io::StreamReader;

use super::{container::LogArgs, task};
use crate::{
    client::{Client, Payload, Target, chunks, is_not_found},
    json::text,
    output, terminal,
};

/// Fetch the logs of a service or task
#[derive(Args)]
pub(crate) struct Logs {
    #[arg(value_name = "SERVICE|TASK")]
    name: String,
    #[command(flatten)]
    wanted: LogArgs,
    /// Do not map IDs to Names in output
    #[arg(long)]
    no_resolve: bool,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
}

impl Logs {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        logs(self, client).await
    }
}

async fn logs(args: Logs, client: &Client) -> Result<()> {
    let (path, object) = match client.get(Target::new("/services/{}", &[&args.name])).await {
        Ok(service) => ("/services/{}/logs", service),
        Err(error) if is_not_found(&error) => {
            let task = client.get(Target::new("/tasks/{}", &[&args.name])).await;
            let task = task.map_err(|error| {
                if is_not_found(&error) {
                    anyhow!("no such task or service: {}", args.name)
                } else {
                    error
                }
            })?;
            ("/tasks/{}/logs", task)
        }
        Err(error) => return Err(error),
    };
    let spec = if path.starts_with("/services") {
        "/Spec/TaskTemplate"
    } else {
        "/Spec"
    };
    let tty = object.pointer(&format!("{spec}/ContainerSpec/TTY")) == Some(&Value::Bool(true));
    if tty && !args.raw {
        bail!("tty service logs only supported with --raw");
    }
    let target = Target::new(path, &[text(&object, "/ID")]);
    let target = args
        .wanted
        .apply(target, Timestamp::now())
        .arg("details", 1);
    let response = client.send(Method::GET, target, Payload::Empty).await?;
    let stream = futures_util::StreamExt::map(chunks(response), |chunk| {
        chunk.map_err(std::io::Error::other)
    });
    let reader = StreamReader::new(stream);
    if tty {
        return terminal::copy_out(reader, true).await;
    }
    let mut source = Sources::load(&args, client).await?;
    let mut lines = [Vec::new(), Vec::new()];
    terminal::frames(reader, |stream, bytes| {
        let pending = &mut lines[usize::from(stream == 2)];
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let shown = source.shown(&line);
            if stream == 2 {
                output::write_error(&shown)
            } else {
                output::write(&shown)
            }
        }
    })
    .await
    .context("the logs broke off")
}

/// Says where a line of a service's log comes from.
struct Sources {
    names: task::Names,
    tasks: Vec<Value>,
    raw: bool,
    ids: bool,
    whole_ids: bool,
    timestamps: bool,
    widest: usize,
}

impl Sources {
    async fn load(args: &Logs, client: &Client) -> Result<Self> {
        let resolve = !args.raw && !args.no_resolve;
        let (names, tasks) = if resolve {
            let tasks = client.get(Target::new("/tasks", &[])).await?;
            (
                task::Names::load(client).await?,
                tasks.as_array().cloned().unwrap_or_default(),
            )
        } else {
            (task::Names::default(), Vec::new())
        };
        Ok(Self {
            names,
            tasks,
            raw: args.raw,
            ids: !args.no_task_ids,
            whole_ids: args.no_trunc,
            timestamps: args.wanted.timestamps(),
            widest: 0,
        })
    }

    /// The line with `task.1.id@node    | ` before it instead of the labels in which the daemon says so.
    fn shown(&mut self, line: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(line);
        let (time, rest) = match self.timestamps.then(|| text.split_once(' ')).flatten() {
            Some((time, rest)) => (Some(time), rest),
            None => (None, &*text),
        };
        let Some((details, message)) = rest.split_once(' ') else {
            return line.to_vec();
        };
        let mut out = time.map(|time| format!("{time} ")).unwrap_or_default();
        if !self.raw {
            let label = |key: &str| {
                details.split(',').find_map(|pair| {
                    let (name, value) = pair.split_once('=')?;
                    (name == key).then(|| value.to_owned())
                })
            };
            let task = label("com.docker.swarm.task.id").unwrap_or_default();
            let node = label("com.docker.swarm.node.id").unwrap_or_default();
            let known = self
                .tasks
                .iter()
                .find(|known| self::text(known, "/ID") == task);
            let short = if self.whole_ids {
                task.as_str()
            } else {
                crate::human::short_id(&task)
            };
            let source = match known {
                Some(known) => {
                    let name = self.names.task(known);
                    let id = if self.ids {
                        format!(".{short}")
                    } else {
                        String::new()
                    };
                    format!("{name}{id}@{}", self.names.node(known))
                }
                None => format!("{short}@{node}"),
            };
            self.widest = self.widest.max(source.chars().count());
            out.push_str(&format!("{source:<width$}    | ", width = self.widest));
        }
        out.push_str(message);
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_log_line_names_its_task() {
        let mut sources = Sources {
            names: task::Names::default(),
            tasks: vec![json!({"ID": "t1", "ServiceID": "s1", "NodeID": "n1", "Slot": 2})],
            raw: false,
            ids: true,
            whole_ids: false,
            timestamps: false,
            widest: 0,
        };
        let line = b"com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1 hello there\n";
        assert_eq!(
            String::from_utf8(sources.shown(line)).unwrap(),
            "s1.2.t1@n1    | hello there\n"
        );
        sources.raw = true;
        assert_eq!(sources.shown(line), b"hello there\n");
    }
}
