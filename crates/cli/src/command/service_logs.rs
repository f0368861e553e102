//! `shoal service logs`: lines of all tasks, each with where it is from.

use std::collections::BTreeSet;

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
    terminal::frames(reader, async |stream, bytes: &[u8]| {
        let pending = &mut lines[usize::from(stream == 2)];
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            source.learn(&line, client).await;
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

/// The labels that say where a line is from.
const TASK: &str = "com.docker.swarm.task.id";
const NODE: &str = "com.docker.swarm.node.id";

/// Says where a line of a service's log comes from.
struct Sources {
    names: task::Names,
    tasks: Vec<Value>,
    /// Whether ids are turned into names.
    resolve: bool,
    /// Tasks that were looked up in vain.
    nameless: BTreeSet<String>,
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
            known(client).await?
        } else {
            (task::Names::default(), Vec::new())
        };
        Ok(Self {
            names,
            tasks,
            resolve,
            nameless: BTreeSet::new(),
            raw: args.raw,
            ids: !args.no_task_ids,
            whole_ids: args.no_trunc,
            timestamps: args.wanted.timestamps(),
            widest: 0,
        })
    }

    /// Looks up the task of a line if it came after the others.
    async fn learn(&mut self, line: &[u8], client: &Client) {
        let line = String::from_utf8_lossy(line);
        let Some(task) = label(&line, TASK).filter(|_| self.resolve) else {
            return;
        };
        let is_known = |tasks: &[Value]| tasks.iter().any(|known| text(known, "/ID") == task);
        if is_known(&self.tasks) || self.nameless.contains(task) {
            return;
        }
        // Without names there are ids.
        if let Ok((names, tasks)) = known(client).await {
            (self.names, self.tasks) = (names, tasks);
        }
        if !is_known(&self.tasks) {
            self.nameless.insert(task.to_owned());
        }
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
            let task = label(details, TASK).unwrap_or_default();
            let node = label(details, NODE).unwrap_or_default();
            let known = self
                .tasks
                .iter()
                .find(|known| self::text(known, "/ID") == task);
            let short = if self.whole_ids {
                task
            } else {
                crate::human::short_id(task)
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

/// The names of things, and the tasks that there are.
async fn known(client: &Client) -> Result<(task::Names, Vec<Value>)> {
    let tasks = client.get(Target::new("/tasks", &[])).await?;
    let tasks = tasks.as_array().cloned().unwrap_or_default();
    Ok((task::Names::load(client).await?, tasks))
}

/// A label among the details of a line, which stand before its text.
fn label<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let labels = line.split(' ').find(|part| part.contains(key))?;
    labels.split(',').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name == key).then_some(value)
    })
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
            resolve: true,
            nameless: BTreeSet::new(),
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
