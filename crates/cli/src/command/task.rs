//! Lists of tasks, as `service ps`, `node ps` and `stack ps` show them.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use shoal_api::Timestamp;

use crate::{
    client::{Client, Target},
    human::{ago, ellipsis, short_id, time},
    image_ref,
    json::{items, number, text},
    output::{ListFormat, Row, column, row},
};

/// Characters of an error in a table.
const ERROR_WIDTH: usize = 32;

/// How tasks are shown.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Shape {
    /// Do not map IDs to Names
    #[arg(long)]
    no_resolve: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
}

/// Names of services and nodes by id.
#[derive(Default)]
pub(crate) struct Names {
    services: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl Names {
    /// Asks for all of them.
    pub(crate) async fn load(client: &Client) -> Result<Self> {
        let map = |list: Value, name: &str| {
            let list = list.as_array().cloned().unwrap_or_default();
            let entry = |item: &Value| (text(item, "/ID").to_owned(), text(item, name).to_owned());
            list.iter().map(entry).collect()
        };
        Ok(Self {
            services: map(
                client.get(Target::new("/services", &[])).await?,
                "/Spec/Name",
            ),
            nodes: map(
                client.get(Target::new("/nodes", &[])).await?,
                "/Description/Hostname",
            ),
        })
    }

    /// The name of a task without its id: `web.1`, or `web.<node id>` for a global service.
    pub(crate) fn task(&self, task: &Value) -> String {
        let service = text(task, "/ServiceID");
        let service = self.services.get(service).map_or(service, String::as_str);
        match number(task, "/Slot") {
            0 => format!("{service}.{}", text(task, "/NodeID")),
            slot => format!("{service}.{slot}"),
        }
    }

    /// The name of a task's node.
    pub(crate) fn node(&self, task: &Value) -> String {
        let node = text(task, "/NodeID");
        self.nodes
            .get(node)
            .map_or_else(|| node.to_owned(), Clone::clone)
    }
}

/// Prints the tasks that pass the filters.
pub(crate) async fn print(
    filters: &[String],
    format: &ListFormat,
    shape: &Shape,
    client: &Client,
) -> Result<()> {
    let tasks = client
        .get(Target::new("/tasks", &[]).filters(filters)?)
        .await?;
    let tasks = tasks.as_array().cloned().unwrap_or_default();
    let names = if shape.no_resolve {
        Names::default()
    } else {
        Names::load(client).await?
    };
    let columns = [
        column("ID", "ID"),
        column("Name", "NAME"),
        column("Image", "IMAGE"),
        column("Node", "NODE"),
        column("DesiredState", "DESIRED STATE"),
        column("CurrentState", "CURRENT STATE"),
        column("Error", "ERROR"),
        column("Ports", "PORTS"),
    ];
    let table = format
        .format
        .as_deref()
        .is_none_or(|f| f.starts_with("table"));
    format.print(
        &columns,
        "ID",
        rows(tasks, &names, shape, table, Timestamp::now()),
    )
}

fn rows(
    mut tasks: Vec<Value>,
    names: &Names,
    shape: &Shape,
    table: bool,
    now: Timestamp,
) -> Vec<Row> {
    // By name, within a slot the newest first: the history below the task that is.
    tasks.sort_by_cached_key(|task| {
        let created = std::cmp::Reverse(time(text(task, "/CreatedAt")));
        (
            text(task, "/ServiceID").to_owned(),
            number(task, "/Slot"),
            text_if_global(task),
            created,
        )
    });
    tasks.sort_by_cached_key(|task| {
        names
            .task(task)
            .rsplit_once('.')
            .map(|(service, _)| service.to_owned())
    });
    let mut previous = String::new();
    tasks
        .iter()
        .map(|task| {
            let name = names.task(task);
            let shown = match (table, name == previous) {
                (true, true) => format!(" \\_ {name}"),
                _ => name.clone(),
            };
            previous = name;
            let id = text(task, "/ID");
            let state = text(task, "/Status/State");
            let since = ago(now, time(text(task, "/Status/Timestamp"))).to_lowercase();
            let error = match text(task, "/Status/Err") {
                "" => String::new(),
                error if shape.no_trunc => format!("\"{error}\""),
                error => format!("\"{}\"", ellipsis(error, ERROR_WIDTH - 2)),
            };
            let image = text(task, "/Spec/ContainerSpec/Image");
            row! {
                "ID" => if shape.no_trunc { id } else { short_id(id) },
                "Name" => shown,
                "Image" => if shape.no_trunc { image.to_owned() } else { image_ref::familiar(image) },
                "Node" => names.node(task),
                "DesiredState" => capital(text(task, "/DesiredState")),
                "CurrentState" => format!("{} {since}", capital(state)),
                "Error" => error,
                "Ports" => ports(task),
            }
        })
        .collect()
}

fn text_if_global(task: &Value) -> String {
    match number(task, "/Slot") {
        0 => text(task, "/NodeID").to_owned(),
        _ => String::new(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

fn ports(task: &Value) -> String {
    let all: Vec<String> = items(task, "/Status/PortStatus/Ports")
        .iter()
        .map(|port| {
            format!(
                "*:{}->{}/{}",
                number(port, "/PublishedPort"),
                number(port, "/TargetPort"),
                text(port, "/Protocol")
            )
        })
        .collect();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn history_stands_below_the_task_that_is() {
        let task = |id: &str, slot: u64, created: &str, state: &str, error: &str| {
            json!({"ID": id, "ServiceID": "s1", "NodeID": "n1", "Slot": slot, "CreatedAt": created,
                "Spec": {"ContainerSpec": {"Image": "nginx:1@sha256:00"}}, "DesiredState": "running",
                "Status": {"State": state, "Timestamp": "2026-01-01T00:00:00Z", "Err": error}})
        };
        let tasks = vec![
            task(
                "aaaaaaaaaaaaaaaa",
                1,
                "2026-01-01T00:00:00Z",
                "failed",
                "task: non-zero exit (1): and a long story",
            ),
            task("b", 2, "2026-01-01T00:00:00Z", "running", ""),
            task("c", 1, "2026-01-01T00:00:09Z", "running", ""),
            task("d", 10, "2026-01-01T00:00:09Z", "running", ""),
        ];
        let names = Names {
            services: [("s1".to_owned(), "web".to_owned())].into(),
            nodes: [("n1".to_owned(), "host1".to_owned())].into(),
        };
        let now = time("2026-01-01T00:02:00Z");
        let seen: Vec<String> = rows(tasks, &names, &Shape::default(), true, now)
            .iter()
            .map(|row| {
                let field = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
                [
                    "ID",
                    "Name",
                    "Image",
                    "Node",
                    "DesiredState",
                    "CurrentState",
                    "Error",
                ]
                .map(field)
                .join("|")
            })
            .collect();
        expect_test::expect![[r#"
            c|web.1|nginx:1|host1|Running|Running 2 minutes ago|
            aaaaaaaaaaaa| \_ web.1|nginx:1|host1|Running|Failed 2 minutes ago|"task: non-zero exit (1): and …"
            b|web.2|nginx:1|host1|Running|Running 2 minutes ago|
            d|web.10|nginx:1|host1|Running|Running 2 minutes ago|"#]]
        .assert_eq(&seen.join("\n"));
    }
}
