//! `shoal service exec`: another process in a task, on whatever node it runs.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::Value;

use super::{exec::Process, task::Names};
use crate::{
    client::{Client, Target, is_not_found},
    json::{number, text},
};

/// Execute a command in a running task, on whatever node it runs
#[derive(Args)]
#[command(
    after_help = "TASK is a task's id, SERVICE.SLOT, SERVICE.NODE of a global service, or SERVICE for any of its tasks.\n\nExamples:\n  shoal service exec -it web.2 -- sh\n  shoal service exec web cat /etc/hosts"
)]
pub(crate) struct Exec {
    #[command(flatten)]
    process: Process,
    /// Task, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["TASK", "COMMAND"], num_args = 2..)]
    task_and_command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (name, command) = self
            .task_and_command
            .split_first()
            .expect("clap demands two values");
        // `--` may stand between the two.
        let command = match command {
            [first, rest @ ..] if first == "--" => rest,
            command => command,
        };
        if command.is_empty() {
            bail!("no command to execute in {name}");
        }
        let task = find(name, client).await?;
        let create = Target::new("/shoal/tasks/{}/exec", &[&task]);
        self.process
            .run(create, "/shoal", command, false, client)
            .await
    }
}

/// The id of the task that is meant.
async fn find(name: &str, client: &Client) -> Result<String> {
    let (service, place) = match name.split_once('.') {
        // A task's whole name ends in its id, which says nothing more.
        Some((service, rest)) => (service, rest.split('.').next()),
        None => (name, None),
    };
    let found = client.get(Target::new("/services/{}", &[service])).await;
    let service = match found {
        Ok(service) => service,
        Err(error) if is_not_found(&error) && place.is_none() => {
            let task = client.get(Target::new("/tasks/{}", &[name])).await;
            let task = task.map_err(|error| {
                if is_not_found(&error) {
                    anyhow!("no such task or service: {name}")
                } else {
                    error
                }
            })?;
            return Ok(text(&task, "/ID").to_owned());
        }
        Err(error) => return Err(error),
    };
    let filters = [format!("service={}", text(&service, "/ID"))];
    let target = Target::new("/tasks", &[]).filters(&filters)?;
    let tasks = client.get(target).await?;
    let names = Names::load(client).await?;
    let tasks = tasks.as_array().map_or(&[][..], Vec::as_slice);
    choose(tasks, place, |task| names.node(task)).map_err(|what| anyhow!("{name}: {what}"))
}

/// The newest running task at a place: a slot, or a node's name or id; anywhere without one.
fn choose(
    tasks: &[Value],
    place: Option<&str>,
    node: impl Fn(&Value) -> String,
) -> Result<String, String> {
    let is_there = |task: &&Value| match place {
        None => true,
        Some(place) => {
            number(task, "/Slot").to_string() == place && place != "0"
                || text(task, "/NodeID") == place
                || node(task) == place
        }
    };
    let mut there: Vec<&Value> = tasks.iter().filter(is_there).collect();
    there.sort_by_key(|task| {
        let running = text(task, "/Status/State") == "running";
        let created = crate::human::time(text(task, "/CreatedAt"));
        (!running, number(task, "/Slot"), std::cmp::Reverse(created))
    });
    match there.first() {
        None => Err("there is no such task".to_owned()),
        Some(task) => match text(task, "/Status/State") {
            "running" | "starting" => Ok(text(task, "/ID").to_owned()),
            state => Err(format!("the task is not running: it is {state}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_is_found_by_its_place() {
        let task = |id: &str, slot: u64, node: &str, state: &str, at: u8| json!({"ID": id, "Slot": slot, "NodeID": node, "Status": {"State": state}, "CreatedAt": format!("2026-01-01T00:00:0{at}Z")});
        let tasks = [
            task("old", 2, "x", "failed", 1),
            task("two", 2, "y", "running", 2),
            task("one", 1, "x", "running", 1),
            task("three", 3, "z", "preparing", 1),
        ];
        let host = |task: &Value| format!("host-{}", text(task, "/NodeID"));
        let found = |place| choose(&tasks, place, host);
        assert_eq!(found(Some("2")).as_deref(), Ok("two"));
        assert_eq!(found(None).as_deref(), Ok("one"));
        assert_eq!(found(Some("host-y")).as_deref(), Ok("two"));
        assert_eq!(
            found(Some("3")).unwrap_err(),
            "the task is not running: it is preparing"
        );
        assert_eq!(found(Some("9")).unwrap_err(), "there is no such task");
    }
}
