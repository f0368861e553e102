//! Containers outlive the daemon.

use shoal_api::container::{ContainerStatus, LogQuery};

use crate::host::{Host, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_is_taken_over_with_its_process() {
    let mut host = Host::new().await;
    let id = host
        .start(sh(
            "echo before; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; exit 9",
        ))
        .await;
    host.wait_for_output(&id, "before").await;
    let before = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state;
    host.reopen().await;
    let after = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state;
    assert_eq!(
        (after.status, after.pid, after.started_at),
        (ContainerStatus::Running, before.pid, before.started_at)
    );
    assert_eq!(host.exec(&id, &["touch", "/tmp/go"]).await.0, 0);
    assert_eq!(host.wait(&id).await, 9);
    assert_eq!(host.logs(&id, LogQuery::default()).await, "before\nafter\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_while_the_daemon_was_away_is_known_afterwards() {
    let mut host = Host::new().await;
    let id = host
        .start(sh(
            "echo up; while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 6",
        ))
        .await;
    host.wait_for_output(&id, "up").await;
    let inspect = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect");
    // The other engine stands for no daemon at all: it knows nothing of this container.
    let other = Host::bare().await;
    let upper = inspect.graph.upper.clone();
    host.engine = other.engine.clone();
    let inside = std::path::PathBuf::from(format!("/proc/{}/root", inspect.state.pid));
    std::fs::write(inside.join("tmp/go"), "").expect("go");
    let record = upper.with_file_name("exit.json");
    while !record.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    host.reopen().await;
    let state = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state;
    assert_eq!(
        (state.status, state.exit_code),
        (ContainerStatus::Exited, 6)
    );
    host.cgroups_gone().await;
    host.engine
        .remove(id.as_str(), false, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_go_on_and_are_known_afterwards() {
    let mut host = Host::new().await;
    let id = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&id, "up").await;
    let exec = |command: &str| shoal_api::container::ExecSpec {
        cmd: vec!["/bin/sh".into(), "-c".into(), command.into()],
        ..Default::default()
    };
    let over = host
        .engine
        .exec_create(id.as_str(), exec("exit 4"))
        .expect("exec create");
    drop(host.engine.exec_start(&over).await.expect("exec start"));
    let running = host
        .engine
        .exec_create(
            id.as_str(),
            exec("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5"),
        )
        .expect("exec create");
    drop(host.engine.exec_start(&running).await.expect("exec start"));
    let ended = |host: &Host, exec: &str| {
        let exec = host.engine.exec_inspect(exec).expect("exec inspect");
        (exec.running, exec.exit_code)
    };
    while ended(&host, &over).1.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    host.reopen().await;
    assert_eq!(ended(&host, &over), (false, Some(4)));
    assert_eq!(ended(&host, &running), (true, None));
    assert_eq!(host.exec(&id, &["touch", "/tmp/go"]).await.0, 0);
    while ended(&host, &running).0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ended(&host, &running), (false, Some(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_daemon_left_half_done_is_swept() {
    let mut host = Host::new().await;
    // Its probe would die with a real daemon.
    assert_eq!(host.engine.self_test().await, Ok(()));
    let kept = host.engine.create(sh("true")).await.expect("create");
    let containers = host.root.join("lib/containers");
    // Killed between the directory and the record.
    let half = containers.join("e".repeat(64));
    std::fs::create_dir(&half).expect("directory");
    std::fs::write(half.join("container.json.new"), "{").expect("file");
    // Killed between the end of a container and the removal of its group and run directory.
    let run = host.root.join("run/c").join("d".repeat(64));
    std::fs::create_dir(&run).expect("directory");
    let groups = std::path::Path::new("/sys/fs/cgroup");
    let mounts = std::fs::read_dir(groups).expect("cgroups").flatten();
    let mounts = mounts.map(|entry| entry.path());
    for mount in mounts.chain([groups.to_owned()]) {
        if mount.join(&host.cgroup).is_dir() {
            std::fs::create_dir(mount.join(&host.cgroup).join("d".repeat(64))).expect("group");
        }
    }
    host.reopen().await;
    assert!(!half.exists() && !run.exists());
    // It has a group of its own until it ends.
    assert_eq!(host.engine.self_test().await, Ok(()));
    host.cgroups_gone().await;
    let left: Vec<_> = std::fs::read_dir(&containers)
        .expect("containers")
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("text"))
        .collect();
    assert_eq!(left, [kept.to_string()]);
}

#[test]
fn a_shim_of_another_version_is_understood() {
    use shoal_engine::shim::protocol::{Reply, Request};
    let now = Reply::State {
        start: 3,
        pid: 7,
        started_at: shoal_api::Timestamp::now(),
        exit: None,
        version: shoal_engine::shim::protocol::VERSION,
        execs: vec!["a".into()],
        ended_execs: Vec::new(),
    };
    // As the first version said it.
    let mut older = serde_json::to_value(&now).expect("JSON");
    let members = older["State"].as_object_mut().expect("members");
    for later in ["version", "execs", "ended_execs"] {
        members.remove(later);
    }
    let read: Reply = serde_json::from_value(older).expect("an older shim");
    assert!(
        matches!(
            read,
            Reply::State {
                start: 3,
                pid: 7,
                version: 0,
                ..
            }
        ),
        "{read:?}"
    );
    // As a later one may.
    let mut newer = serde_json::to_value(&now).expect("JSON");
    newer["State"]["mood"] = "good".into();
    let read: Reply = serde_json::from_value(newer).expect("a newer shim");
    assert!(
        matches!(
            read,
            Reply::State {
                start: 3,
                pid: 7,
                ..
            }
        ),
        "{read:?}"
    );
    let asked = r#"{"Kill": {"exec": null, "signal": 9, "why": "because"}}"#;
    let read: Request = serde_json::from_str(asked).expect("a newer daemon");
    assert!(
        matches!(
            read,
            Request::Kill {
                exec: None,
                signal: 9
            }
        ),
        "{read:?}"
    );
}
