//! Updates look at health: a task counts as running when it is healthy.

use anyhow::{Result, ensure};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::TestLab,
    wait,
};

/// Healthy as soon as `$STATE` is `good`.
const STACK: &str = "
services:
  web:
    image: BUSYBOX
    command: sleep 100000
    environment: {STATE: good, VERSION: '1'}
    stop_grace_period: 0s
    healthcheck:
      test: test $$STATE = good || test -e /tmp/good
      interval: 500ms
      start_interval: 200ms
      start_period: 4s
      retries: 2
    deploy:
      replicas: 2
      update_config: {order: start-first, monitor: 1s, failure_action: ACTION}
      restart_policy: {delay: 0s, condition: none}
";

#[test]
fn a_task_counts_when_it_is_healthy_and_the_old_one_serves_until_then() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stack.yml");
    let path = file.to_string_lossy().into_owned();
    let deploy = |state: &str, version: &str, action: &str| -> Result<()> {
        let text = STACK.replace("BUSYBOX", BUSYBOX);
        let text = text.replace("STATE: good", &format!("STATE: {state}"));
        let text = text.replace("VERSION: '1'", &format!("VERSION: '{version}'"));
        std::fs::write(&file, text.replace("ACTION", action))?;
        let words = ["stack", "deploy", "--detach", "--resolve-image", "never"];
        lab.on("n1", &[&words[..], &["-c", &path, "s"]].concat())
            .map(drop)
    };
    let tasks = |format: &str| -> Result<Vec<String>> {
        let words = ["service", "ps", "--no-trunc", "--format", format, "s_web"];
        let listed = lab.on("n1", &words)?;
        Ok(listed.lines().map(str::to_owned).collect())
    };
    let status = || {
        lab.on(
            "n1",
            &[
                "service",
                "inspect",
                "--format",
                "{{.UpdateStatus.State}}",
                "s_web",
            ],
        )
    };
    let wait_status = |want: &str| {
        wait(&format!("the update to be {want}"), || {
            let seen = status()?;
            Ok(if seen.trim() == want {
                Ok(())
            } else {
                Err(seen)
            })
        })
    };
    let in_use = |version: &str| -> Result<usize> {
        let words = "ps -q --filter label=com.docker.swarm.service.name=s_web";
        let ids = lab.on("n1", &words.split(' ').collect::<Vec<_>>())?;
        let mut count = 0;
        for id in ids.lines() {
            let env = lab.on("n1", &["inspect", "--format", "{{.Config.Env}}", id])?;
            count += usize::from(env.contains(&format!("VERSION={version}")));
        }
        Ok(count)
    };
    deploy("good", "1", "pause")?;
    lab.wait_running("s_web", 2)?;

    // A new task that starts is not there yet: it is on its way until it is healthy, beside the old one.
    deploy("late", "2", "pause")?;
    wait("a new task that starts", || {
        let seen = tasks("{{.CurrentState}}")?;
        let starts = seen.iter().any(|state| state.starts_with("Starting"));
        Ok(if starts {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        })
    })?;
    assert_eq!(in_use("1")?, 2, "both old ones serve");
    let format = "{{.Replicas}}";
    let replicas = lab.on("n1", &["service", "ls", "--format", format])?;
    assert_eq!(replicas, "2/2\n");
    // Healthy, they take over one after the other.
    for round in 0..2 {
        wait(&format!("new task {round} to be made healthy"), || {
            let words =
                "ps -q --filter label=com.docker.swarm.service.name=s_web --filter health=starting";
            let ids = lab.on("n1", &words.split(' ').collect::<Vec<_>>())?;
            let Some(id) = ids.lines().next() else {
                return Ok(if in_use("2")? == 2 { Ok(()) } else { Err(ids) });
            };
            lab.on("n1", &["exec", id, "touch", "/tmp/good"])?;
            Ok(Ok(()))
        })?;
        if round == 0 {
            wait("an old task to go", || {
                let left = in_use("1")?;
                Ok(if left < 2 {
                    Ok(())
                } else {
                    Err(left.to_string())
                })
            })?;
        }
    }
    wait_status("completed")?;
    assert_eq!((in_use("1")?, in_use("2")?), (0, 2));

    // One that never is healthy has failed, in docker's words, and the old ones were not touched.
    let mut before = lab.wait_running("s_web", 2)?;
    before.sort();
    deploy("bad", "3", "pause")?;
    wait_status("paused")?;
    let errors = tasks("{{.Error}}")?;
    ensure!(
        errors
            .iter()
            .any(|error| error.contains("dockerexec: unhealthy container")),
        "{errors:?}"
    );
    assert_eq!(in_use("2")?, 2);
    // By itself it goes back where that is asked for; who was there before is there still.
    deploy("late", "2", "rollback")?;
    deploy("bad", "4", "rollback")?;
    wait_status("rollback_completed")?;
    let mut now = lab.wait_running("s_web", 2)?;
    now.sort();
    assert_eq!(now, before);
    Ok(())
}
