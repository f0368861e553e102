//! What hosts have that others have not: volumes, things with names.

use std::fs;

use anyhow::{Result, ensure};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::TestLab,
    wait,
};

/// A specification of a device, which is /dev/zero.
const THING: &str = r#"{
    "cdiVersion": "0.6.0",
    "kind": "example.com/thing",
    "devices": [{
        "name": "one",
        "containerEdits": {
            "env": ["THING=one"],
            "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}]
        }
    }]
}"#;

const HEAD: [&str; 5] = ["service", "create", "--detach", "-q", "--name"];

#[test]
fn a_stateful_service_waits_for_its_volume_and_named_things_have_one_owner() -> Result<()> {
    let gpus = [
        "--daemon-arg",
        "--node-generic-resource=gpu=UUID1,gpu=UUID2,apple=3",
    ];
    let devices = ["--daemon-arg", "--cdi-spec-dir=/var/lib/shoal/cdi"];
    let lab = TestLab::up_with(3, 1, &[gpus, devices].concat())?;
    busybox::load(&lab, &["n1", "n2", "n3"])?;

    // Data is written where the service runs first.
    let stateful = [
        "db",
        "--label",
        "shoal.volumes.stay=true",
        "--constraint",
        "node.role==worker",
    ];
    let mount = [
        "--mount",
        "type=volume,source=db-{{.Task.Slot}},target=/data",
    ];
    let command = [
        BUSYBOX,
        "sh",
        "-c",
        "echo $(hostname) >> /data/seen; exec sleep 100000",
    ];
    lab.on("n1", &[&HEAD[..], &stateful, &mount, &command].concat())?;
    let home = lab.wait_running("db", 1)?.remove(0).1;
    let node = ["node", "inspect", "--format", "{{.Status.State}}", &home];

    // Without power there the service waits, and says for what, instead of starting with nothing.
    lab.lab("kill", &[&home])?;
    wait("the service to say what it waits for", || {
        let format = "{{.CurrentState}} {{.Error}}";
        let seen = lab.on(
            "n1",
            &["service", "ps", "--no-trunc", "--format", format, "db"],
        )?;
        let why = "no suitable node (";
        let waits = seen.starts_with("Pending ") && seen.contains(why);
        Ok(if waits && seen.contains("missing volume on ") {
            Ok(())
        } else {
            Err(seen)
        })
    })?;
    let explained = lab.on("n1", &["service", "explain", "db"])?;
    ensure!(explained.contains("the node is down"), "{explained}");
    lab.lab("start", &[&home])?;
    wait("the host to be back", || {
        let seen = lab.on("n1", &node)?;
        Ok(if seen.trim() == "ready" {
            Ok(())
        } else {
            Err(seen)
        })
    })?;
    let back = lab.wait_running("db", 1)?.remove(0).1;
    assert_eq!(back, home);
    let lines = lab.on("n1", &["service", "exec", "db.1", "wc", "-l", "/data/seen"])?;
    ensure!(
        lines.starts_with("2 "),
        "the data of before is there: {lines}"
    );

    // Three tasks that each want a thing of its own, on the one node that may be theirs: two get one.
    let wants = [
        "--generic-resource",
        "gpu=1",
        "--generic-resource",
        "apple=1",
    ];
    let here = [
        "gpu",
        "--replicas",
        "3",
        "--constraint",
        "node.hostname==n1",
    ];
    let command = [BUSYBOX, "sleep", "100000"];
    lab.on("n1", &[&HEAD[..], &here, &wants, &command].concat())?;
    let mut seen = wait("two tasks with a thing each", || {
        let mut seen = Vec::new();
        for slot in ["gpu.1", "gpu.2", "gpu.3"] {
            let script = "echo $DOCKER_RESOURCE_GPU $DOCKER_RESOURCE_APPLE";
            seen.extend(lab.on("n1", &["service", "exec", slot, "sh", "-c", script]));
        }
        Ok(if seen.len() == 2 {
            Ok(seen)
        } else {
            Err(format!("{seen:?}"))
        })
    })?;
    seen.sort();
    assert_eq!(seen, ["UUID1 1\n", "UUID2 1\n"]);
    let tasks = lab.on(
        "n1",
        &[
            "service",
            "ps",
            "--no-trunc",
            "--format",
            "{{.Error}}",
            "gpu",
        ],
    )?;
    ensure!(
        tasks.contains("insufficient resources on 1 node"),
        "{tasks}"
    );
    let (_, said) = lab.refused(
        "n1",
        &[
            &HEAD[..],
            &["x", "--generic-resource", "gpu=UUID1", BUSYBOX],
        ]
        .concat(),
    )?;
    ensure!(
        said.contains("Named Generic Resources is not supported"),
        "{said}"
    );

    // A device with a name: the service waits until a host has it, and runs there.
    let wants = ["cdi", "--label", "shoal.cdi-devices=example.com/thing=one"];
    let command = [BUSYBOX, "sleep", "100000"];
    lab.on("n1", &[&HEAD[..], &wants, &command].concat())?;
    let format = "{{.CurrentState}} {{.Error}}";
    let words = ["service", "ps", "--no-trunc", "--format", format, "cdi"];
    wait("the service to say what it waits for", || {
        let seen = lab.on("n1", &words)?;
        let why = "no suitable node (missing device on 3 nodes)";
        Ok(if seen.contains(why) {
            Ok(())
        } else {
            Err(seen)
        })
    })?;
    let explained = lab.on("n1", &["service", "explain", "cdi"])?;
    ensure!(
        explained.contains("missing device: example.com/thing=one"),
        "{explained}"
    );
    let folder = lab.folder("n3").join("lib/cdi");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("thing.json"), THING)?;
    assert_eq!(lab.wait_running("cdi", 1)?.remove(0).1, "n3");
    let script = "echo $THING; head -c 3 /dev/thing | wc -c";
    let said = lab.on("n1", &["service", "exec", "cdi.1", "sh", "-c", script])?;
    assert_eq!(said, "one\n3\n");
    Ok(())
}
