//! Requests while everything moves: none may fail.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use shoal_tests::{lab::TestLab, load::Load, wait};

/// Requests per second, on each way.
const RATE: u64 = 200;
/// Rolling updates under load, half of them in each order.
const UPDATES: usize = 20;

/// A service that answers, and a task in its network that asks its virtual address all the time.
fn set_up(lab: &TestLab) -> Result<()> {
    lab.on("n1", &["network", "create", "-d", "overlay", "net"])?;
    let common = ["service", "create", "--detach", "--network", "net"];
    let web = [
        "--name",
        "web",
        "--replicas",
        "4",
        "-p",
        "8080:80",
        "--update-parallelism",
        "2",
        "--update-monitor",
        "100ms",
        "--env",
        "TASK={{.Task.Slot}}",
        "shoal-demo:latest",
    ];
    lab.on("n1", &[&common[..], &web].concat())?;
    lab.wait_running("web", 4)?;
    Ok(())
}

/// The summary of the load inside the network, which is said when it is over.
fn vip_summary(lab: &TestLab) -> Result<String> {
    wait("the end of the load through the virtual address", || {
        let logs = lab.on("n1", &["service", "logs", "--raw", "load"])?;
        Ok(
            match logs.lines().find(|line| line.starts_with("requests=")) {
                Some(summary) => Ok(format!("{summary}\n{logs}")),
                None => Err(logs.lines().last().unwrap_or_default().to_owned()),
            },
        )
    })
}

#[test]
fn no_request_fails_while_tasks_are_replaced_moved_and_removed() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    set_up(&lab)?;
    let hosts =
        ["n1", "n2", "n3"].map(|host| SocketAddr::new(lab.addr(host).parse().unwrap(), 8080));
    let load = Load::begin(&hosts, RATE);
    // As long as what follows takes here; the summary comes at its end.
    let seconds = std::env::var("SHOAL_TEST_LOAD_SECONDS").unwrap_or_else(|_| "75".to_owned());
    let rate = RATE.to_string();
    lab.on(
        "n1",
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "load",
            "--network",
            "net",
            "--restart-condition",
            "none",
            "shoal-demo:latest",
            "load",
            "web",
            &rate,
            &seconds,
        ],
    )?;
    for round in 0..UPDATES {
        let order = if round % 2 == 0 {
            "start-first"
        } else {
            "stop-first"
        };
        lab.on(
            "n1",
            &[
                "service",
                "update",
                "--quiet",
                "--force",
                "--update-order",
                order,
                "web",
            ],
        )
        .with_context(|| format!("update {round}, {order}"))?;
    }
    lab.on("n1", &["node", "update", "--availability", "drain", "n2"])?;
    wait("no task on n2", || {
        let tasks = lab.wait_running("web", 4)?;
        Ok(if tasks.iter().all(|(_, node)| node != "n2") {
            Ok(())
        } else {
            Err(format!("{tasks:?}"))
        })
    })?;
    lab.on("n1", &["node", "update", "--availability", "active", "n2"])?;
    lab.on("n1", &["service", "scale", "--detach", "web=8"])?;
    lab.wait_running("web", 8)?;
    lab.on("n1", &["service", "scale", "--detach", "web=2"])?;
    lab.wait_running("web", 2)?;
    // Whoever was told to stop has some time to fail.
    std::thread::sleep(Duration::from_millis(500));
    let (sent, failures) = load.end();
    assert!(
        failures.is_empty(),
        "{} of {sent} requests to published ports failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    let summary = vip_summary(&lab)?;
    assert!(
        summary.starts_with("requests=") && summary.lines().next().unwrap().ends_with(" failed=0"),
        "{summary}"
    );
    Ok(())
}
