//! Who is there: daemons that stand still, and leaders that are gone.

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

/// Sends the daemon of a host a signal.
fn signal(lab: &TestLab, host: &str, signal: &str) -> Result<()> {
    let find = format!("pkill -{signal} -o -f '[s]hoal daemon'");
    text(&lab.output(host, &["sh", "-c", &find])?).map(drop)
}

/// Version and state of a node's object: whatever is written about a node changes it.
fn node(lab: &TestLab, host: &str) -> Result<String> {
    lab.on(
        "n1",
        &[
            "node",
            "inspect",
            "--format",
            "{{.Version.Index}} {{.Status.State}}",
            host,
        ],
    )
}

#[test]
fn a_daemon_that_stands_still_for_a_second_is_not_given_up_and_one_that_stays_so_is() -> Result<()>
{
    let lab = TestLab::up(2, 1)?;
    let before = wait("n2 to be ready", || {
        let now = node(&lab, "n2")?;
        Ok(if now.ends_with("ready\n") {
            Ok(now)
        } else {
            Err(now)
        })
    })?;
    // What is stopped, and for how long, is what this is about: a second each, the manager and the worker.
    for host in ["n2", "n1"] {
        signal(&lab, host, "STOP")?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        signal(&lab, host, "CONT")?;
        // A write that comes back says that the manager has been through what had gathered.
        lab.on(
            "n1",
            &[
                "config",
                "create",
                &format!("after-{host}"),
                "/etc/hostname",
            ],
        )?;
    }
    // Heard of again by its session, which is the same one: nothing was written about it.
    lab.on("n2", &["ps"])?;
    assert_eq!(node(&lab, "n2")?, before);

    signal(&lab, "n2", "STOP")?;
    let state = wait("n2 to be down", || {
        let now = node(&lab, "n2")?;
        Ok(if now.ends_with("down\n") {
            Ok(now)
        } else {
            Err(now)
        })
    });
    signal(&lab, "n2", "CONT")?;
    state?;
    wait("n2 to be ready again", || {
        let now = node(&lab, "n2")?;
        Ok(if now.ends_with("ready\n") {
            Ok(())
        } else {
            Err(now)
        })
    })
}

#[test]
fn a_write_succeeds_on_another_manager_when_the_leader_dies_or_stands_still() -> Result<()> {
    let lab = TestLab::up(3, 3)?;
    for (way, back) in [("KILL", "start"), ("STOP", "CONT")] {
        let listed = lab.on(
            "n1",
            &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"],
        )?;
        let leader = listed.lines().find_map(|line| line.strip_suffix(" Leader"));
        let leader = leader.context("nobody leads")?.to_owned();
        let other = if leader == "n1" { "n2" } else { "n1" };
        match way {
            "KILL" => lab.lab("kill", &["--daemon", &leader]).map(drop)?,
            _ => signal(&lab, &leader, way)?,
        }
        // One call, which waits for the next leader: it is made once, whether the one before took it or not.
        let name = format!("idle-{}", way.to_lowercase());
        let words = [
            "service",
            "create",
            "--detach",
            "--name",
            &name,
            "shoal-demo:latest",
            "idle",
        ];
        lab.on(other, &words)?;
        let there = lab.on(other, &["service", "ls", "--format", "{{.Name}}"])?;
        assert!(there.lines().any(|line| line == name), "{there}");
        match back {
            "start" => lab.lab(back, &[&leader]).map(drop)?,
            _ => signal(&lab, &leader, back)?,
        }
        wait("all managers to be reachable", || {
            let listed = lab.on(
                other,
                &["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"],
            )?;
            let well = listed.lines().filter(|line| {
                line.starts_with("Ready")
                    && (line.ends_with("Leader") || line.ends_with("Reachable"))
            });
            Ok(if well.count() == 3 {
                Ok(())
            } else {
                Err(listed)
            })
        })?;
    }
    Ok(())
}
