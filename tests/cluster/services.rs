//! Services as users of Swarm know them, sentence by sentence, on two hosts.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::TestLab,
    wait,
};

/// A line of `shoal` on the manager; words are apart by blanks, `IMAGE` is the test's image, and `more` follows as it is.
fn shoal(lab: &TestLab, line: &str, more: &[&str]) -> Result<String> {
    lab.on("n1", &[&words(line)[..], more].concat())
}

/// The same for a line that must fail: what it says.
fn refused(lab: &TestLab, line: &str, more: &[&str]) -> Result<String> {
    Ok(lab.refused("n1", &[&words(line)[..], more].concat())?.1)
}

fn words(line: &str) -> Vec<&str> {
    let image = |word| if word == "IMAGE" { BUSYBOX } else { word };
    line.split_whitespace().map(image).collect()
}

/// The tasks of a service by a template, newest first in each slot.
fn tasks(lab: &TestLab, service: &str, format: &str) -> Result<Vec<String>> {
    let listed = shoal(lab, "service ps --no-trunc --format", &[format, service])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Waits until a service says so of its tasks.
fn wait_tasks(lab: &TestLab, service: &str, format: &str, want: &[&str]) -> Result<()> {
    wait(&format!("{service} to have {want:?}"), || {
        let mut seen = tasks(lab, service, format)?;
        seen.sort();
        let mut want: Vec<_> = want.iter().map(|line| (*line).to_owned()).collect();
        want.sort();
        Ok(if seen == want {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        })
    })
}

const HEAD: &str = "service create --detach -q --name";

#[test]
fn tasks_go_where_they_may_and_say_why_they_do_not() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    busybox::load(&lab, &["n1", "n2"])?;
    let create = |name: &str, rest: &str| shoal(&lab, &format!("{HEAD} {name} {rest}"), &[]);
    let node = |format: &str| shoal(&lab, "node inspect --format", &[format, "n1"]);

    // Constraints: by label and by range of addresses; an unknown key is refused.
    shoal(&lab, "node update --label-add zone=a n2", &[])?;
    create(
        "near",
        "--replicas 2 --constraint node.labels.zone==a IMAGE sleep 100000",
    )?;
    wait_tasks(&lab, "near", "{{.Node}}", &["n2", "n2"])?;
    let range = format!("node.ip=={}/32", lab.addr("n1"));
    shoal(
        &lab,
        &format!("{HEAD} here --constraint"),
        &[&range, BUSYBOX, "sleep", "100000"],
    )?;
    wait_tasks(&lab, "here", "{{.Node}}", &["n1"])?;
    let said = refused(
        &lab,
        &format!("{HEAD} no --constraint node.foo==x IMAGE"),
        &[],
    )?;
    ensure!(said.contains("node.foo"), "{said}");

    // Reservations: two tasks that each take more than half of a node.
    let memory: u64 = node("{{.Description.Resources.MemoryBytes}}")?
        .trim()
        .parse()?;
    let most = (memory / 10 * 6).to_string();
    let words = [
        "--reserve-memory",
        &most,
        "--constraint",
        "node.hostname==n1",
    ];
    let rest = [BUSYBOX, "sleep", "100000"];
    let more = [&words[..], &rest].concat();
    shoal(&lab, &format!("{HEAD} fat --replicas 2"), &more)?;
    let waits = "no suitable node (scheduling constraints not satisfied on 1 node; insufficient resources on 1 node)";
    let either = "no suitable node (insufficient resources on 1 node; scheduling constraints not satisfied on 1 node)";
    let error = wait("a task that says why it waits", || {
        let errors = tasks(&lab, "fat", "{{.Error}}")?;
        let found = errors
            .iter()
            .find(|error| error.contains("no suitable node"));
        Ok(found.cloned().ok_or_else(|| format!("{errors:?}")))
    })?;
    ensure!(error.contains(waits) || error.contains(either), "{error}");

    // At most one per node, three wanted.
    create(
        "each",
        "--replicas 3 --replicas-max-per-node 1 IMAGE sleep 100000",
    )?;
    wait_tasks(
        &lab,
        "each",
        "{{.Node}} {{.Error}}",
        &[
            "n1 ",
            "n2 ",
            " \"no suitable node (max replicas per node limit exceed on 2 nodes)\"",
        ],
    )?;

    // An explanation names each node and each waiting task; room makes the task run.
    shoal(&lab, "node update --availability pause n2", &[])?;
    let explained = shoal(&lab, "service explain each", &[])?;
    for part in [
        "the node is paused",
        "max replicas per node limit exceed: 1 of 1",
        "each.",
    ] {
        ensure!(
            explained.contains(part),
            "{part} is missing in\n{explained}"
        );
    }
    // A paused node keeps what it has and gets nothing new.
    create("late", "--replicas 2 IMAGE sleep 100000")?;
    wait_tasks(&lab, "late", "{{.Node}}", &["n1", "n1"])?;
    wait_tasks(
        &lab,
        "near",
        "{{.Node}} {{.DesiredState}}",
        &["n2 Running", "n2 Running"],
    )?;
    shoal(&lab, "node update --availability active n2", &[])?;

    // Templates: filled in where the task runs; a field that there is not is refused.
    let more = [
        "--hostname",
        "{{.Node.Hostname}}-{{.Task.Slot}}",
        "--constraint",
        "node.hostname==n2",
    ];
    shoal(&lab, &format!("{HEAD} named"), &[&more[..], &rest].concat())?;
    lab.wait_running("named", 1)?;
    let said = shoal(&lab, "service exec named.1 hostname", &[])?;
    assert_eq!(said, "n2-1\n");
    let said = refused(
        &lab,
        &format!("{HEAD} no --hostname"),
        &["{{.Node.Colour}}", BUSYBOX],
    )?;
    ensure!(said.contains("can't evaluate field Colour"), "{said}");

    // Who gives no name gets one.
    let id = shoal(&lab, "service create --detach -q IMAGE sleep 100000", &[])?;
    let name = shoal(
        &lab,
        "service inspect --format",
        &["{{.Spec.Name}}", id.trim()],
    )?;
    ensure!(name.contains('_'), "{name}");
    Ok(())
}

#[test]
fn ends_updates_and_jobs_follow_their_policies() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let create = |name: &str, line: &str, command: &str| {
        let line = format!("{HEAD} {name} {line}");
        shoal(&lab, &line, &["sh", "-c", command])
    };

    // Two more attempts are three tasks, then none.
    create(
        "fails",
        "--restart-delay 0s --restart-max-attempts 2 IMAGE",
        "exit 1",
    )?;
    wait_tasks(
        &lab,
        "fails",
        "{{.Error}}",
        &["\"task: non-zero exit (1)\""; 3],
    )?;
    // History: five tasks in a slot.
    create("loops", "--restart-delay 0s IMAGE", "exit 0")?;
    let seen = wait("a full history", || {
        let seen = tasks(&lab, "loops", "{{.ID}}")?;
        Ok(if seen.len() >= 5 {
            Ok(seen)
        } else {
            Err(format!("{seen:?}"))
        })
    })?;
    wait("older tasks to be forgotten", || {
        let now = tasks(&lab, "loops", "{{.ID}}")?;
        let moved = now.iter().all(|id| !seen.contains(id));
        ensure!(now.len() <= 6, "{now:?}");
        Ok(if moved {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        })
    })?;
    shoal(&lab, "service rm loops", &[])?;

    // A job completes as often as asked, and once more by force.
    let job = "--mode replicated-job --replicas 3 --max-concurrent 2 IMAGE";
    create("job", job, "sleep 1")?;
    let done = |times: usize| {
        wait(&format!("{times} completed tasks"), || {
            let seen = tasks(&lab, "job", "{{.ID}} {{.CurrentState}}")?;
            let complete = seen
                .iter()
                .filter(|line| line.contains(" Complete "))
                .count();
            let all = complete == times && seen.len() == times;
            let ids: BTreeSet<String> = seen
                .iter()
                .filter_map(|l| Some(l.split_once(' ')?.0.to_owned()))
                .collect();
            Ok(if all {
                Ok(ids)
            } else {
                Err(format!("{seen:?}"))
            })
        })
    };
    let first = done(3)?;
    // At most two at a time: of three spans of time, each meets another one at most.
    let spans = spans(&lab, "job")?;
    for (began, _) in &spans {
        let running = |(other, ended): &&(String, String)| other <= began && began < ended;
        let together = spans.iter().filter(running).count();
        ensure!((1..=2).contains(&together), "{spans:?}");
    }
    shoal(&lab, "service update --detach -q --force job", &[])?;
    wait("the job to run again", || {
        let again = done(3)?;
        Ok(if again.is_disjoint(&first) {
            Ok(())
        } else {
            Err(format!("{again:?}"))
        })
    })?;

    // An image that nobody has: the update fails in its time, says why, and the old task serves.
    let state = |service: &str, want: &str| {
        wait(&format!("the update of {service} to be {want}"), || {
            let format = "{{.UpdateStatus.State}}: {{.UpdateStatus.Message}}";
            let seen = shoal(&lab, "service inspect --format", &[format, service])?;
            Ok(if seen.starts_with(want) {
                Ok(seen)
            } else {
                Err(seen)
            })
        })
    };
    let spoil = |service: &str, action: &str| {
        let bad = "service update --detach -q --no-resolve-image --update-order start-first \
                   --update-progress-deadline 1s --image 127.0.0.1:1/nothing:1 --update-failure-action";
        shoal(&lab, bad, &[action, service])
    };
    create("web", "IMAGE", "sleep 100000")?;
    let old = lab.wait_running("web", 1)?.remove(0).0;
    spoil("web", "pause")?;
    let said = state("web", "paused")?;
    ensure!(
        said.contains("update paused due to failure or early termination of task"),
        "{said}"
    );
    let running = tasks(&lab, "web", "{{.ID}} {{.CurrentState}}")?;
    let serves = format!("{old} Running ");
    ensure!(
        running.iter().any(|task| task.starts_with(&serves)),
        "{running:?}"
    );

    // One that goes back by itself; and one that a user takes back to its first version, several changes ago.
    create("back", "--env V=1 IMAGE", "sleep 100000")?;
    let first = lab.wait_running("back", 1)?;
    spoil("back", "rollback")?;
    state("back", "rollback_completed")?;
    assert_eq!(lab.wait_running("back", 1)?, first);
    let change = "service update --detach -q --no-resolve-image --env-add V=2 back";
    shoal(&lab, change, &[])?;
    state("back", "completed")?;
    let history = shoal(&lab, "service history --format {{.Revision}} back", &[])?;
    ensure!(history.lines().any(|line| line == "1"), "{history}");
    shoal(&lab, "service rollback --detach --to 1 back", &[])?;
    let template = "{{.Spec.TaskTemplate.ContainerSpec.Env}}";
    let env = shoal(&lab, "service inspect --format", &[template, "back"])?;
    assert_eq!(env, "[V=1]\n");
    state("back", "rollback_completed")?;
    lab.wait_running("back", 1)?;
    Ok(())
}

/// From when to when each container of a service ran on the first host, in times that compare as texts.
fn spans(lab: &TestLab, service: &str) -> Result<Vec<(String, String)>> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let ids = lab.on("n1", &["ps", "-aq", "--filter", &filter])?;
    let format = "{{.State.StartedAt}} {{.State.FinishedAt}}";
    let mut spans = Vec::new();
    for id in ids.lines() {
        let times = lab.on("n1", &["inspect", "--format", format, id])?;
        let (began, ended) = times.trim().split_once(' ').context("two times")?;
        spans.push((moment(began), moment(ended)));
    }
    Ok(spans)
}

/// A time of the API such that later ones are greater: digits of its fraction may be cut.
pub(crate) fn moment(text: &str) -> String {
    let text = text.trim().trim_end_matches('Z');
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{seconds}.{fraction:0<9}")
}

#[test]
fn a_global_job_runs_once_on_every_node_that_there_is_and_comes() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    busybox::load(&lab, &["n1", "n2", "n3"])?;
    shoal(&lab, "node update --availability pause n3", &[])?;
    let job = format!("{HEAD} everywhere --mode global-job IMAGE true");
    shoal(&lab, &job, &[])?;
    let state = "{{.Node}} {{.DesiredState}}";
    wait_tasks(&lab, "everywhere", state, &["n1 Complete", "n2 Complete"])?;
    let counts = ["n1 Complete", "n2 Complete", "n3 Complete"];
    let all_done = |count: usize| {
        wait("all of them to be complete", || {
            let seen = tasks(&lab, "everywhere", "{{.Node}} {{.CurrentState}}")?;
            let done = seen.iter().filter(|line| line.contains(" Complete "));
            Ok(if done.count() == count && seen.len() == count {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            })
        })
    };
    all_done(2)?;
    // A node that takes tasks again has its own run; the others have theirs behind them.
    shoal(&lab, "node update --availability active n3", &[])?;
    wait_tasks(&lab, "everywhere", state, &counts)?;
    all_done(3)?;
    let listed = shoal(
        &lab,
        "service ls --format",
        &["{{.Name}} {{.Mode}} {{.Replicas}}"],
    )?;
    assert_eq!(listed, "everywhere global job 0/0 (3/3 completed)\n");
    Ok(())
}
