//! From creation to removal.

use std::time::{Duration, Instant};

use shoal_api::container::{
    ContainerFilter, ContainerStatus, HealthCheck, HealthStatus, LogQuery, MountKind, MountSpec,
    RestartPolicy,
};
use shoal_engine::io::EngineErrorKind;
use shoal_engine::io::engine::{StopOptions, WaitCondition};

use crate::host::{Host, cmd, sh};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_output_reach_the_caller() {
    let host = Host::new().await;
    assert_eq!(host.run(cmd(&["true"])).await, (0, String::new()));
    assert_eq!(host.run(cmd(&["false"])).await.0, 1);
    assert_eq!(
        host.sh("echo out; echo err >&2; exit 7").await,
        (7, "out\nerr\n".into())
    );
    assert_eq!(host.sh("sleep 1000 & kill -9 $!; wait $!").await.0, 137);
    host.cgroups_gone().await;
    assert!(host.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why_in_dockers_words() {
    let host = Host::new().await;
    for (command, code, words) in [
        (
            "nowhere",
            127,
            r#"exec: "nowhere": executable file not found in $PATH"#,
        ),
        (
            "/bin/nowhere",
            127,
            r#"exec: "/bin/nowhere": stat /bin/nowhere: no such file or directory"#,
        ),
        ("/bin/text", 126, r#"exec: "/bin/text": permission denied"#),
        ("/etc", 126, r#"exec: "/etc": is a directory"#),
    ] {
        let id = host.engine.create(cmd(&[command])).await.expect("create");
        let err = host
            .engine
            .start(id.as_str())
            .await
            .expect_err("it cannot start");
        assert!(err.report().contains(words), "{}", err.report());
        assert_eq!(err.kind(), EngineErrorKind::Invalid);
        let state = host
            .engine
            .inspect(id.as_str(), false)
            .await
            .expect("inspect")
            .state;
        assert_eq!(
            (state.status, state.exit_code),
            (ContainerStatus::Created, code)
        );
    }
    let mut spec = cmd(&["true"]);
    spec.user = Some("nobody".into());
    let id = host.engine.create(spec).await.expect("create");
    let err = host
        .engine
        .start(id.as_str())
        .await
        .expect_err("no such user");
    assert!(
        err.report()
            .contains("unable to find user nobody: no matching entries in passwd file"),
        "{}",
        err.report()
    );
    host.cgroups_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_kept_cut_and_followed() {
    let host = Host::new().await;
    let id = host
        .start(sh("for n in 1 2 3; do echo line $n; done; echo oops >&2"))
        .await;
    assert_eq!(host.wait(&id).await, 0);
    assert_eq!(
        host.logs(&id, LogQuery::default()).await,
        "line 1\nline 2\nline 3\noops\n"
    );
    assert_eq!(
        host.logs(
            &id,
            LogQuery {
                tail: Some(2),
                ..LogQuery::default()
            }
        )
        .await,
        "line 3\noops\n"
    );
    let id = host
        .start(sh(
            "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last",
        ))
        .await;
    host.wait_for_output(&id, "first").await;
    let following = host.logs(
        &id,
        LogQuery {
            follow: true,
            ..LogQuery::default()
        },
    );
    let (all, _) = tokio::join!(following, host.exec(&id, &["touch", "/tmp/go"]));
    assert_eq!(all, "first\nlast\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_rotates() {
    let host = Host::new().await;
    let mut spec = sh("for n in $(seq 1 200); do echo number $n; done");
    spec.host.log.options = [
        ("max-size".to_owned(), "4k".to_owned()),
        ("max-file".to_owned(), "2".to_owned()),
    ]
    .into();
    let id = host.start(spec).await;
    host.wait(&id).await;
    let path = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .log_path;
    assert!(path.metadata().expect("log").len() <= 4096);
    assert!(path.with_extension("log.1").exists() && !path.with_extension("log.2").exists());
    let text = host.logs(&id, LogQuery::default()).await;
    assert!(text.ends_with("number 200\n") && !text.contains("number 1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_is_a_signal_a_grace_and_a_kill() {
    let host = Host::new().await;
    let polite = host
        .start(sh(
            "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
        ))
        .await;
    host.wait_for_output(&polite, "up").await;
    host.engine
        .stop(polite.as_str(), &StopOptions::default())
        .await
        .expect("stop");
    let state = host
        .engine
        .inspect(polite.as_str(), false)
        .await
        .expect("inspect")
        .state;
    assert_eq!(
        (state.status, state.exit_code),
        (ContainerStatus::Exited, 3)
    );
    assert!(
        host.logs(&polite, LogQuery::default())
            .await
            .ends_with("bye\n")
    );

    let deaf = host
        .start(sh("trap '' TERM; echo up; while :; do sleep 1; done"))
        .await;
    host.wait_for_output(&deaf, "up").await;
    let before = Instant::now();
    let grace = Some(Duration::from_millis(300));
    host.engine
        .stop(
            deaf.as_str(),
            &StopOptions {
                signal: None,
                grace,
            },
        )
        .await
        .expect("stop");
    assert!(
        before.elapsed() >= Duration::from_millis(300) && before.elapsed() < Duration::from_secs(5)
    );
    assert_eq!(host.wait(&deaf).await, 137);
    let again = host
        .engine
        .stop(deaf.as_str(), &StopOptions::default())
        .await
        .expect_err("it does not run");
    assert_eq!(again.kind(), EngineErrorKind::NotModified);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_remove_and_names() {
    let host = Host::new().await;
    let mut spec = sh("sleep 1000");
    spec.name = Some("web".into());
    let id = host.start(spec.clone()).await;
    let taken = host
        .engine
        .create(spec)
        .await
        .expect_err("the name is taken");
    assert!(
        taken
            .to_string()
            .starts_with("Conflict. The container name \"/web\" is already in use by container")
    );
    let running = host
        .engine
        .remove("web", false, false)
        .await
        .expect_err("it runs");
    assert_eq!(running.kind(), EngineErrorKind::Conflict);
    host.engine
        .kill(id.short(), Some("SIGKILL"))
        .await
        .expect("kill by the beginning of the id");
    assert_eq!(host.wait(&id).await, 137);
    host.engine.rename("web", "old").await.expect("rename");
    host.engine.start("old").await.expect("start again");
    host.engine
        .remove("old", true, true)
        .await
        .expect("remove by force");
    assert_eq!(
        host.engine
            .inspect(id.as_str(), false)
            .await
            .expect_err("gone")
            .kind(),
        EngineErrorKind::NotFound
    );
    assert!(
        host.engine
            .list(&ContainerFilter {
                all: true,
                ..Default::default()
            })
            .await
            .expect("list")
            .is_empty()
    );
    assert_eq!(
        std::fs::read_dir(host.root.join("lib/containers"))
            .expect("directory")
            .count(),
        0
    );
    host.cgroups_gone().await;
    assert!(host.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_remove_leaves_nothing_and_still_tells_the_code() {
    let host = Host::new().await;
    let mut spec = sh("echo hi; exit 4");
    spec.host.auto_remove = true;
    spec.volumes.insert("/scratch".into());
    let id = host.engine.create(spec).await.expect("create");
    let gone = host
        .engine
        .wait(id.as_str(), WaitCondition::Removed)
        .expect("wait");
    assert_eq!(
        host.run_created(&id).await.expect("run"),
        (4, "hi\n".into())
    );
    assert_eq!(gone.await.exit_code, 4);
    assert!(host.engine.volumes().expect("volumes").is_empty());
    assert_eq!(
        std::fs::read_dir(host.root.join("lib/containers"))
            .expect("directory")
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_can_be_started_again_with_its_files() {
    let host = Host::new().await;
    let id = host
        .engine
        .create(sh("echo x >> /tmp/count; wc -l < /tmp/count"))
        .await
        .expect("create");
    for round in 1..=3 {
        assert_eq!(
            host.run_created(&id).await.expect("run"),
            (0, format!("{round}\n"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restart_policy_tries_again() {
    let host = Host::new().await;
    let mut spec = sh("echo x >> /tmp/count; [ $(wc -l < /tmp/count) -ge 3 ]");
    spec.host.restart = RestartPolicy::OnFailure { max_retries: 5 };
    let id = host.start(spec).await;
    // A wait ends with an end, also with one that is followed by a restart.
    while host.wait(&id).await != 0 {}
    assert_eq!(
        host.engine
            .inspect(id.as_str(), false)
            .await
            .expect("inspect")
            .restart_count,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_filled_once_and_survive() {
    let host = Host::new().await;
    let mut spec = sh("cat /data/seed; stat -c %a /data/seed; echo more >> /data/seed");
    spec.host.binds = vec!["store:/data".into()];
    // The image has nothing at /data, but it has at /var/data.
    spec.host.mounts = vec![MountSpec {
        target: "/var/data".into(),
        read_only: false,
        kind: MountKind::Volume {
            name: Some("filled".into()),
            no_copy: false,
            labels: Default::default(),
            driver: None,
            driver_opts: Default::default(),
            subpath: None,
        },
    }];
    assert_eq!(host.run(spec).await.0, 0);
    let mut spec =
        sh("cat /v/seed; stat -c %a /v/seed; echo two >> /v/seed; cat /v/seed; touch /ro/x");
    spec.host.binds = vec!["filled:/v".into(), "filled:/ro:ro".into()];
    let (code, text) = host.run(spec).await;
    assert_eq!(code, 1, "{text}");
    assert!(
        text.starts_with("from the image\n640\nfrom the image\ntwo\n")
            && text.contains("Read-only"),
        "{text}"
    );
    let busy = host.start({
        let mut spec = sh("sleep 1000");
        spec.host.binds = vec!["filled:/v".into()];
        spec
    });
    let id = busy.await;
    assert_eq!(
        host.engine
            .volume_remove("filled", false)
            .expect_err("in use")
            .kind(),
        EngineErrorKind::Conflict
    );
    host.engine
        .remove(id.as_str(), true, false)
        .await
        .expect("remove");
    host.engine.volume_remove("filled", false).expect("remove");
    host.engine.volume_remove("store", false).expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_come_to_a_verdict() {
    let host = Host::new().await;
    let mut spec = sh("sleep 1000");
    spec.healthcheck = Some(HealthCheck {
        test: vec!["CMD-SHELL".into(), "test -e /tmp/good && echo fine".into()],
        interval: Some(Duration::from_millis(50)),
        retries: Some(2),
        ..HealthCheck::default()
    });
    let id = host.start(spec).await;
    let mut events = host.engine.events();
    let mut verdict = async |wanted: &str| {
        while !events
            .recv()
            .await
            .expect("event")
            .action
            .starts_with(wanted)
        {}
    };
    verdict("health_status: unhealthy").await;
    host.exec(&id, &["touch", "/tmp/good"]).await;
    verdict("health_status: healthy").await;
    let health = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .health
        .expect("health");
    assert_eq!(health.status, HealthStatus::Healthy);
    assert_eq!(health.log.last().expect("probe").output, "fine\n");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_freezes_and_stats_count() {
    let host = Host::new().await;
    let id = host
        .start(sh("n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"))
        .await;
    host.wait_for_output(&id, "3").await;
    host.engine.pause(id.as_str()).await.expect("pause");
    let status = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .status;
    assert_eq!(status, ContainerStatus::Paused);
    assert_eq!(
        host.engine
            .kill(id.as_str(), Some("TERM"))
            .await
            .expect_err("paused")
            .kind(),
        EngineErrorKind::Conflict
    );
    host.engine.unpause(id.as_str()).await.expect("unpause");
    let stats = host.engine.stats(id.as_str()).expect("stats");
    assert!(
        stats.cpu.total_ns > 0 && stats.memory.usage_bytes > 0 && stats.pids.current >= 1,
        "{stats:?}"
    );
    let top = host.engine.top(id.as_str(), "").await.expect("top");
    assert!(
        top.processes
            .iter()
            .any(|row| row.last().is_some_and(|command| command.contains("while"))),
        "{top:?}"
    );
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}
