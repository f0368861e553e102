//! Waiting for a service to converge, as `service create`, `update` and `scale` do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Result, bail};
use serde_json::Value;
use shoal_api::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::{Lines, pulse::Pulse};
use crate::{
    client::{Client, Target},
    human::time,
    json::{number, text},
    output,
};

/// Slots that get a line of their own.
const LINES_MAX: usize = 20;
/// How long all tasks must run where the update config does not say.
const MONITOR: i64 = 5_000_000_000;
/// States in which a task is on its way, with its place on the bar.
const STEPS: [&str; 9] = [
    "new",
    "allocated",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
];

/// Shows how the service's tasks come up, until all have and stay.
///
/// # Errors
/// The daemon's, or that the update was paused.
pub(crate) async fn converge(id: &str, quiet: bool, client: &Client) -> Result<()> {
    let mut lines = (!quiet).then(Lines::new);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut pulse = Pulse::of(Target::new("/shoal/services/{}/changes", &[id]), client).await;
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            () = pulse.next(watch.wakes_in(Timestamp::now())) => {}
            _ = interrupt.recv() => {
                output::line("Operation continuing in background.");
                output::line(format!("Use `shoal service ps {id}` to check progress."));
                return Ok(());
            }
        }
        let service = client.get(Target::new("/services/{}", &[id])).await?;
        let filters = [format!("service={id}"), "_up-to-date=true".to_owned()];
        let tasks = client
            .get(Target::new("/tasks", &[]).filters(&filters)?)
            .await?;
        let nodes = client.get(Target::new("/nodes", &[])).await?;
        let seen = watch.look(&service, list(&tasks), list(&nodes), Timestamp::now());
        if let Some(lines) = &mut lines {
            for (line, status, bar) in &seen.lines {
                lines.set(line, status, bar.as_deref());
            }
        }
        match seen.verdict {
            Verdict::Converging => {}
            Verdict::Converged => return Ok(()),
            Verdict::Stopped(why) => bail!("{why}"),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What was seen at one moment: lines as id, status and bar, and what follows from it.
struct Seen {
    lines: Vec<(String, String, Option<String>)>,
    verdict: Verdict,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Converging,
    Converged,
    Stopped(String),
}

/// What must be remembered from one look to the next.
#[derive(Default)]
struct Watch {
    converged_at: Option<Timestamp>,
    rolling_back: bool,
    updating: bool,
}

impl Watch {
    /// When there is something to see without a change: the seconds that are counted while tasks are watched.
    fn wakes_in(&self, now: Timestamp) -> Option<Duration> {
        let since = self.converged_at?;
        let into_second = now.since(since).subsec_nanos();
        Some(Duration::from_secs(1) - Duration::from_nanos(into_second.into()))
    }

    fn look(&mut self, service: &Value, tasks: &[Value], nodes: &[Value], now: Timestamp) -> Seen {
        let mut lines = Vec::new();
        let mut say = |id: &str, status: String, bar: Option<String>| {
            lines.push((id.to_owned(), status, bar))
        };
        let stopped = |why: String| Seen {
            lines: Vec::new(),
            verdict: Verdict::Stopped(why),
        };
        let message = text(service, "/UpdateStatus/Message");
        match text(service, "/UpdateStatus/State") {
            "updating" => self.updating = true,
            "completed" if self.updating => {
                self.converged_at.get_or_insert(now);
            }
            "paused" if self.updating => {
                return stopped(format!("service update paused: {message}"));
            }
            "rollback_paused" if self.rolling_back => {
                return stopped(format!("service rollback paused: {message}"));
            }
            "rollback_started" => {
                if !self.rolling_back && !message.is_empty() {
                    say("rollback", message.to_owned(), None);
                }
                self.rolling_back = true;
                self.updating = true;
            }
            "rollback_completed" if self.rolling_back => {
                return stopped(format!("service rolled back: {message}"));
            }
            _ => {}
        }
        let progress = Progress::of(service, tasks, nodes);
        if let Some(why) = progress.hopeless(service) {
            return stopped(why);
        }
        say("overall progress", progress.overall(), None);
        if progress.wanted <= LINES_MAX {
            for (place, (name, newest)) in progress.slots.iter().enumerate() {
                let (status, bar) = slot_line(newest.as_ref());
                let label = match &progress.names {
                    Some(hosts) => hosts.get(name).cloned().unwrap_or_else(|| name.clone()),
                    None => format!("{}/{}", place + 1, progress.wanted),
                };
                say(&label, status, bar);
            }
        }
        let updating = matches!(
            text(service, "/UpdateStatus/State"),
            "updating" | "rollback_started"
        );
        if progress.done < progress.wanted || (updating && !progress.job) {
            self.converged_at = None;
            if self.updating && progress.done >= progress.wanted {
                say(
                    "verify",
                    "Waiting for the update to end...".to_owned(),
                    None,
                );
            }
            return Seen {
                lines,
                verdict: Verdict::Converging,
            };
        }
        let since = *self.converged_at.get_or_insert(now);
        let monitor = match service
            .pointer("/Spec/UpdateConfig/Monitor")
            .and_then(Value::as_i64)
        {
            Some(monitor) if monitor > 0 => monitor,
            _ => MONITOR,
        };
        // An update has watched its tasks itself; a job that is done stays done.
        let monitor = if self.updating || progress.job {
            0
        } else {
            monitor
        };
        let left = monitor - (now.0 - since.0);
        if left <= 0 || progress.wanted == 0 {
            let id = text(service, "/ID");
            let text = if progress.job {
                "job complete".to_owned()
            } else {
                format!("Service {id} converged")
            };
            say(if progress.job { "job" } else { "verify" }, text, None);
            return Seen {
                lines,
                verdict: Verdict::Converged,
            };
        }
        let seconds = (left + 999_999_999) / 1_000_000_000;
        say(
            "verify",
            format!("Waiting {seconds} seconds to verify that tasks are stable..."),
            Some(String::new()),
        );
        Seen {
            lines,
            verdict: Verdict::Converging,
        }
    }
}

/// How far the tasks of a service are.
struct Progress {
    /// Per slot (number or node id) its newest task.
    slots: Vec<(String, Option<Value>)>,
    /// Hostnames by node id, for global services.
    names: Option<BTreeMap<String, String>>,
    wanted: usize,
    done: usize,
    job: bool,
}

impl Progress {
    fn of(service: &Value, tasks: &[Value], nodes: &[Value]) -> Self {
        let spec = |pointer: &str| {
            service
                .pointer(&format!("/Spec/Mode/{pointer}"))
                .filter(|value| !value.is_null())
        };
        let job = spec("ReplicatedJob").is_some() || spec("GlobalJob").is_some();
        let global = spec("Global").is_some() || spec("GlobalJob").is_some();
        let iteration = number(service, "/JobStatus/JobIteration/Index");
        let current = |task: &&Value| !job || number(task, "/JobIteration/Index") == iteration;
        let mut newest: BTreeMap<String, &Value> = BTreeMap::new();
        for task in tasks.iter().filter(current) {
            let slot = match global {
                true => text(task, "/NodeID").to_owned(),
                false => format!("{:020}", number(task, "/Slot")),
            };
            let is_over = matches!(text(task, "/DesiredState"), "shutdown" | "remove");
            if is_over && !job && !is_final(service, task) {
                continue;
            }
            let entry = newest.entry(slot).or_insert(task);
            if time(text(task, "/CreatedAt")) > time(text(entry, "/CreatedAt")) {
                *entry = task;
            }
        }
        let up: BTreeSet<&str> = nodes
            .iter()
            .filter(|node| {
                text(node, "/Status/State") != "down" && text(node, "/Spec/Availability") != "drain"
            })
            .map(|node| text(node, "/ID"))
            .collect();
        let goal = if job { "complete" } else { "running" };
        let reached = |task: &Value| {
            (text(task, "/Status/State") == goal || is_done(service, task))
                && (!global || up.contains(text(task, "/NodeID")))
        };
        let done = newest.values().filter(|task| reached(task)).count();
        let (slots, wanted, names) = if global {
            let slots: Vec<(String, Option<Value>)> = newest
                .iter()
                .filter(|(node, _)| up.contains(node.as_str()))
                .map(|(node, task)| (node.clone(), Some((*task).clone())))
                .collect();
            let names = nodes.iter().map(|node| {
                (
                    text(node, "/ID").to_owned(),
                    text(node, "/Description/Hostname").to_owned(),
                )
            });
            // Which nodes fit is the orchestrator's judgement; it makes a task for each of them.
            let wanted = number(service, "/ServiceStatus/DesiredTasks")
                .try_into()
                .unwrap_or(0)
                .max(slots.len());
            (slots, wanted, Some(names.collect()))
        } else {
            let replicas = match spec("ReplicatedJob") {
                Some(job) => number(job, "/TotalCompletions"),
                None => spec("Replicated").map_or(1, |mode| number(mode, "/Replicas")),
            };
            let wanted = usize::try_from(replicas).unwrap_or(0);
            let mut slots: Vec<(String, Option<Value>)> = newest
                .iter()
                .map(|(slot, task)| (slot.clone(), Some((*task).clone())))
                .collect();
            slots.truncate(wanted);
            // Slots without a task yet wait at the end.
            slots.resize(wanted, (String::new(), None));
            (slots, wanted, None)
        };
        Self {
            slots,
            names,
            wanted,
            done: done.min(wanted),
            job,
        }
    }

    /// Why the service cannot converge any more, if nothing will be tried again.
    fn hopeless(&self, service: &Value) -> Option<String> {
        let tasks = self.slots.iter().filter_map(|(_, task)| task.as_ref());
        let failed = |task: &&Value| {
            matches!(text(task, "/Status/State"), "failed" | "rejected") && is_final(service, task)
        };
        let task = tasks.into_iter().find(failed)?;
        let name = text(service, "/Spec/Name");
        let error = text(task, "/Status/Err");
        Some(format!(
            "service {name} failed and is not restarted: {error}"
        ))
    }

    fn overall(&self) -> String {
        let word = if self.job { "jobs" } else { "tasks" };
        format!("{} out of {} {word}", self.done, self.wanted)
    }
}

/// Whether nothing will take this task's place, because the restart policy says so.
fn is_final(service: &Value, task: &Value) -> bool {
    match text(service, "/Spec/TaskTemplate/RestartPolicy/Condition") {
        "none" => true,
        "on-failure" => text(task, "/Status/State") == "complete",
        _ => false,
    }
}

/// Whether this task has ended well, for good.
fn is_done(service: &Value, task: &Value) -> bool {
    text(task, "/Status/State") == "complete" && is_final(service, task)
}

/// Status and bar of one slot.
fn slot_line(task: Option<&Value>) -> (String, Option<String>) {
    let Some(task) = task else {
        return (String::new(), Some(String::new()));
    };
    let state = text(task, "/Status/State");
    let error = text(task, "/Status/Err");
    if !error.is_empty() {
        return (error.replace('\n', " "), None);
    }
    let bar = STEPS.iter().position(|step| *step == state).map(|step| {
        let width = (step + 1) * 50 / STEPS.len();
        format!(
            "[{}>{}]",
            "=".repeat(width.saturating_sub(1)),
            " ".repeat(50 - width)
        )
    });
    (format!("{state:<9}"), bar)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(replicas: u64, update: Value) -> Value {
        json!({"ID": "s1", "Spec": {"Mode": {"Replicated": {"Replicas": replicas}}}, "UpdateStatus": update})
    }

    fn task(slot: u64, state: &str) -> Value {
        json!({"Slot": slot, "DesiredState": "running", "Status": {"State": state}, "CreatedAt": "2026-01-01T00:00:00Z"})
    }

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    #[test]
    fn a_service_has_converged_when_its_tasks_stay_up() {
        let mut watch = Watch::default();
        let service = service(2, Value::Null);
        let half = [task(1, "running"), task(2, "preparing")];
        let seen = watch.look(&service, &half, &[], seconds(0));
        assert_eq!(seen.verdict, Verdict::Converging);
        let shown: Vec<String> = seen
            .lines
            .iter()
            .map(|(id, status, _)| format!("{id}: {}", status.trim()))
            .collect();
        assert_eq!(
            shown,
            [
                "overall progress: 1 out of 2 tasks",
                "1/2: running",
                "2/2: preparing"
            ]
        );
        let all = [task(1, "running"), task(2, "running")];
        assert_eq!(
            watch.look(&service, &all, &[], seconds(1)).verdict,
            Verdict::Converging
        );
        // One that falls over starts the watch again.
        assert_eq!(
            watch.look(&service, &half, &[], seconds(5)).verdict,
            Verdict::Converging
        );
        assert_eq!(
            watch.look(&service, &all, &[], seconds(6)).verdict,
            Verdict::Converging
        );
        assert_eq!(
            watch.look(&service, &all, &[], seconds(10)).verdict,
            Verdict::Converging
        );
        let last = watch.look(&service, &all, &[], seconds(11));
        assert_eq!(last.verdict, Verdict::Converged);
        assert_eq!(last.lines.last().unwrap().1, "Service s1 converged");
    }

    #[test]
    fn a_paused_update_is_an_error() {
        let mut watch = Watch::default();
        watch.look(
            &service(1, json!({"State": "updating"})),
            &[],
            &[],
            seconds(0),
        );
        let paused = service(
            1,
            json!({"State": "paused", "Message": "update paused due to failure"}),
        );
        assert_eq!(
            watch.look(&paused, &[], &[], seconds(1)).verdict,
            Verdict::Stopped("service update paused: update paused due to failure".to_owned())
        );
        // One that was paused before this command is not its business.
        let seen = Watch::default().look(&paused, &[task(1, "pending")], &[], seconds(1));
        assert_eq!(seen.verdict, Verdict::Converging);
    }

    #[test]
    fn a_task_that_ends_well_and_for_good_is_there() {
        let once = |condition: &str| {
            let mut service = service(1, Value::Null);
            service["Spec"]["TaskTemplate"] = json!({"RestartPolicy": {"Condition": condition}});
            service
        };
        let mut done = task(1, "complete");
        done["DesiredState"] = "shutdown".into();
        for (condition, verdict) in [
            ("none", Verdict::Converged),
            ("on-failure", Verdict::Converged),
            ("any", Verdict::Converging),
        ] {
            let mut watch = Watch::default();
            watch.look(
                &once(condition),
                std::slice::from_ref(&done),
                &[],
                seconds(0),
            );
            let seen = watch.look(
                &once(condition),
                std::slice::from_ref(&done),
                &[],
                seconds(9),
            );
            assert_eq!(seen.verdict, verdict, "{condition}");
        }
        let mut failed = task(1, "failed");
        failed["Status"]["Err"] = "task: non-zero exit (3)".into();
        let seen = Watch::default().look(&once("none"), &[failed], &[], seconds(0));
        assert_eq!(
            seen.verdict,
            Verdict::Stopped(
                "service  failed and is not restarted: task: non-zero exit (3)".to_owned()
            )
        );
    }

    #[test]
    fn a_service_scaled_to_nothing_is_there_at_once() {
        let seen = Watch::default().look(&service(0, Value::Null), &[], &[], seconds(0));
        assert_eq!(seen.verdict, Verdict::Converged);
    }
}
