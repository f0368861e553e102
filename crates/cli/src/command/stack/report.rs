//! Why a deployment that was waited for did not come to its end: each task that fails, with its last words.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use hyper::Method;
use serde_json::Value;

use crate::{
    client::{Client, Payload, Target},
    command::task::Names,
    json::{number, text},
    output, terminal,
};

/// Last lines of a task's output that are shown.
const LINES: usize = 5;

/// Waits for `converged`, but no longer than that; if it fails says what is wrong with each task.
pub(super) async fn in_time(
    limit: Option<Duration>,
    converged: impl Future<Output = Result<()>>,
    services: &[(String, String)],
    client: &Client,
) -> Result<()> {
    let result = match limit {
        None => converged.await,
        Some(limit) => match tokio::time::timeout(limit, converged).await {
            Ok(result) => result,
            Err(_) => Err(anyhow!(
                "the stack did not converge within {}",
                shown(limit)
            )),
        },
    };
    let Err(error) = result else { return Ok(()) };
    // Without a report there still is the error.
    if let Err(problem) = tell(services, client).await {
        output::note(format!("cannot tell which tasks fail: {problem:#}"));
    }
    bail!("{error:#}")
}

fn shown(limit: Duration) -> String {
    let nanos = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
    crate::flags::quantity::show_duration(nanos)
}

/// Says what is wrong with each slot whose newest task is not where it should be.
async fn tell(services: &[(String, String)], client: &Client) -> Result<()> {
    let names = Names::load(client).await?;
    for (_, id) in services {
        let filters = [format!("service={id}")];
        let tasks = client
            .get(Target::new("/tasks", &[]).filters(&filters)?)
            .await?;
        for task in failing(tasks.as_array().map_or(&[], Vec::as_slice)) {
            let state = text(task, "/Status/State");
            let error = match text(task, "/Status/Err") {
                "" => text(task, "/Status/Message"),
                error => error,
            };
            let node = match names.node(task) {
                node if node.is_empty() => String::new(),
                node => format!(" on {node}"),
            };
            output::note(format!("{}{node}: {state}: {error}", names.task(task)));
            for line in last_lines(text(task, "/ID"), client)
                .await
                .unwrap_or_default()
            {
                output::note(format!("    | {line}"));
            }
        }
    }
    Ok(())
}

/// The newest task of each slot that is not running or done; of one that is about to try again, the last that failed.
fn failing(tasks: &[Value]) -> Vec<&Value> {
    let slot = |task: &Value| match number(task, "/Slot") {
        0 => text(task, "/NodeID").to_owned(),
        slot => format!("{slot:020}"),
    };
    let mut slots: std::collections::BTreeMap<String, Vec<&Value>> = Default::default();
    for task in tasks {
        slots.entry(slot(task)).or_default().push(task);
    }
    let mut out = Vec::new();
    for mut tasks in slots.into_values() {
        let created = |task: &&Value| crate::human::time(text(task, "/CreatedAt"));
        tasks.sort_by_key(|task| std::cmp::Reverse(created(task)));
        let Some(newest) = tasks.first() else {
            continue;
        };
        if matches!(text(newest, "/Status/State"), "running" | "complete") {
            continue;
        }
        let has_failed =
            |task: &&&Value| matches!(text(task, "/Status/State"), "failed" | "rejected");
        out.push(*tasks.iter().find(has_failed).unwrap_or(newest));
    }
    out
}

async fn last_lines(task: &str, client: &Client) -> Result<Vec<String>> {
    let target = Target::new("/tasks/{}/logs", &[task]);
    let target = target
        .flag("stdout", true)
        .flag("stderr", true)
        .arg("tail", LINES);
    let answer = client.send(Method::GET, target, Payload::Empty).await?;
    let chunks = futures_util::StreamExt::map(crate::client::chunks(answer), |chunk| {
        chunk.map_err(std::io::Error::other)
    });
    let mut all = Vec::new();
    terminal::frames(
        tokio_util::io::StreamReader::new(chunks),
        async |_, bytes: &[u8]| {
            all.extend_from_slice(bytes);
        },
    )
    .await?;
    Ok(String::from_utf8_lossy(&all)
        .lines()
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_slot_that_fails_is_named_once() {
        let task = |id: &str, slot: u64, state: &str, at: u8| json!({"ID": id, "Slot": slot, "Status": {"State": state}, "CreatedAt": format!("2026-01-01T00:00:0{at}Z")});
        let tasks = [
            task("a1", 1, "failed", 1),
            task("a2", 1, "failed", 2),
            task("a3", 1, "ready", 3),
            task("b1", 2, "failed", 1),
            task("b2", 2, "running", 2),
            task("c1", 3, "pending", 1),
            task("d1", 4, "complete", 1),
        ];
        let seen: Vec<_> = failing(&tasks)
            .into_iter()
            .map(|task| text(task, "/ID"))
            .collect();
        assert_eq!(seen, ["a2", "c1"]);
    }
}
