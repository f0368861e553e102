//! From a compose file to answers on every host.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use shoal_tests::{
    lab::{TestLab, get},
    wait,
};

/// The demo's stack.
pub(crate) fn demo_file() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/demo.yml");
    path.canonicalize()
        .expect("the example is there")
        .to_string_lossy()
        .into_owned()
}

/// Asks a host's published port until so many different tasks have answered; every answer must name the machine as the
/// client and carry the backend's.
pub(crate) fn answers(lab: &TestLab, host: &str, tasks: usize) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    wait(&format!("{tasks} tasks to answer on {host}"), || {
        let body = get(&lab.addr(host), 8080, "/")?;
        if !body.contains(&format!(" client={} ", lab.machine()))
            || !body.contains("backend=[task=backend.1")
        {
            return Ok(Err(body));
        }
        seen.extend(body.split_whitespace().next().map(str::to_owned));
        Ok(if seen.len() == tasks {
            Ok(seen.clone())
        } else {
            Err(format!("{seen:?}"))
        })
    })
}

#[test]
fn a_stack_answers_on_every_host_with_the_clients_address() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    lab.on(
        "n1",
        &["stack", "deploy", "--detach", "-c", &demo_file(), "demo"],
    )?;
    lab.wait_running("demo_web", 3)?;
    for host in ["n1", "n2", "n3"] {
        assert_eq!(answers(&lab, host, 3)?.len(), 3);
    }

    lab.on("n1", &["service", "scale", "--detach", "demo_web=6"])?;
    let spread = lab.wait_running("demo_web", 6)?;
    for host in ["n1", "n2", "n3"] {
        assert_eq!(
            spread.iter().filter(|(_, node)| node == host).count(),
            2,
            "{spread:?}"
        );
        answers(&lab, host, 6)?;
    }

    // Deploying the same file again changes nothing but the number of replicas that it names.
    let before: BTreeSet<_> = lab.wait_running("demo_backend", 1)?.into_iter().collect();
    lab.on(
        "n1",
        &["stack", "deploy", "--detach", "-c", &demo_file(), "demo"],
    )?;
    lab.wait_running("demo_web", 3)?;
    let after: BTreeSet<_> = lab.wait_running("demo_backend", 1)?.into_iter().collect();
    assert_eq!(before, after);

    let logs = wait("the logs of all tasks", || {
        let logs = lab.on("n1", &["service", "logs", "demo_web"])?;
        let tasks = logs
            .lines()
            .filter(|line| line.contains("listening on port 80"))
            .count();
        Ok(if tasks >= 3 { Ok(logs) } else { Err(logs) })
    })?;
    assert!(logs.contains("demo_web.1."), "{logs}");

    lab.on("n1", &["stack", "rm", "demo"])?;
    assert_eq!(lab.on("n1", &["service", "ls", "-q"])?, "");
    for host in ["n1", "n2", "n3"] {
        wait("the containers to be gone", || {
            let left = lab.on(host, &["ps", "-aq"])?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        })?;
        assert!(
            get(&lab.addr(host), 8080, "/").is_err(),
            "{host} still answers"
        );
    }
    Ok(())
}
