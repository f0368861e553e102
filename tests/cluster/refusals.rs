//! Bad input on a real cluster: a clear error in docker's form, and nothing left behind.

use std::fs;

use anyhow::Result;
use shoal_tests::lab::TestLab;

#[test]
fn bad_input_is_refused_by_name_and_leaves_nothing() -> Result<()> {
    let lab = TestLab::up(2, 0)?;

    // Without a cluster.
    let (_, said) = lab.refused("n1", &["service", "ls"])?;
    assert!(
        said.contains("This node is not a swarm manager. Use \"docker swarm init\""),
        "{said}"
    );

    lab.on(
        "n1",
        &["swarm", "init", "--advertise-addr", &lab.addr("n1")],
    )?;
    let manager = format!("{}:2377", lab.addr("n1"));
    let token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    let token = token.trim();

    // Tokens: mangled, of another cluster, with a wrong secret.
    let (_, said) = lab.refused(
        "n2",
        &["swarm", "join", "--token", "SWMTKN-1-nonsense", &manager],
    )?;
    assert!(said.contains("invalid join token"), "{said}");
    let (head, secret) = token.rsplit_once('-').unwrap();
    let (_, said) = lab.refused(
        "n2",
        &[
            "swarm",
            "join",
            "--token",
            &format!("{head}-{}", "0".repeat(25)),
            &manager,
        ],
    )?;
    assert!(said.contains("token"), "{said}");
    let foreign = format!("SWMTKN-1-{}-{secret}", "1".repeat(50));
    let (_, said) = lab.refused("n2", &["swarm", "join", "--token", &foreign, &manager])?;
    assert!(
        said.contains("root certificate does not match the join token"),
        "{said}"
    );
    assert!(
        lab.on("n2", &["info", "--format", "{{.Swarm.LocalNodeState}}"])?
            .contains("inactive")
    );
    lab.on("n2", &["swarm", "join", "--token", token, &manager])?;

    // A worker does not answer for the cluster.
    let (_, said) = lab.refused("n2", &["service", "ls"])?;
    assert!(
        said.contains("Worker nodes can't be used to view or modify cluster state"),
        "{said}"
    );

    // Images.
    let (code, said) = lab.refused("n1", &["run", "--rm", "127.0.0.1:1/nothing:1", "true"])?;
    assert_eq!(code, 125, "{said}");

    // A port that another service has.
    let image = "shoal-demo:latest";
    lab.on(
        "n1",
        &[
            "service", "create", "--detach", "--name", "first", "-p", "8081:80", image,
        ],
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "service", "create", "--detach", "--name", "second", "-p", "8081:80", image,
        ],
    )?;
    assert!(
        said.contains("port '8081' is already in use by service 'first'"),
        "{said}"
    );
    let (_, said) = lab.refused(
        "n1",
        &["service", "create", "--detach", "--name", "first", image],
    )?;
    assert!(
        said.contains("name conflicts with an existing object"),
        "{said}"
    );

    // Subnets that overlap.
    lab.on(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.77.0.0/24",
            "one",
        ],
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.77.0.128/25",
            "two",
        ],
    )?;
    assert!(said.contains("overlap"), "{said}");

    // No free address: the task says so.
    lab.on(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.78.0.0/29",
            "small",
        ],
    )?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "crowd",
        "--network",
        "small",
        "--replicas",
        "9",
    ];
    lab.on("n1", &[words.as_slice(), &[image, "idle"]].concat())?;
    shoal_tests::wait("a task that says that its subnet is full", || {
        let tasks = lab.on("n1", &["service", "ps", "--no-trunc", "crowd"])?;
        let said = tasks.contains("no address left in 10.78.0.0/29");
        Ok(if said { Ok(()) } else { Err(tasks) })
    })?;

    // A compose file with a key that does not exist: named with its line, nothing made.
    let file = tempfile::Builder::new().suffix(".yml").tempfile()?;
    fs::write(
        file.path(),
        "services:\n  web:\n    image: shoal-demo:latest\n    replicsa: 3\n",
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "stack",
            "deploy",
            "-c",
            &file.path().to_string_lossy(),
            "typo",
        ],
    )?;
    assert!(said.contains("replicsa") && said.contains('4'), "{said}");
    assert!(!lab.on("n1", &["network", "ls"])?.contains("typo"));

    let services = lab.on("n1", &["service", "ls", "--format", "{{.Name}}"])?;
    assert_eq!(
        services.lines().collect::<Vec<_>>(),
        ["crowd", "first"],
        "{services}"
    );
    Ok(())
}
