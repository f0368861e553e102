//! What happens when many want something at once, and when processes of ours die.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_api::container::{ContainerStatus, ExecSpec, LogQuery};
use shoal_engine::shim::protocol::Streams;

use crate::host::{Host, cmd, read, sh};

/// The parent of a process.
pub(crate) fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("process");
    let after_name = stat.rsplit(") ").next().expect("fields");
    after_name
        .split(' ')
        .nth(1)
        .and_then(|ppid| ppid.parse().ok())
        .expect("parent")
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("process")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_start_and_end_at_once() {
    let host = Host::new().await;
    let runs = (0..24).map(|n| {
        let host = &host;
        async move {
            let mut spec = sh(&format!("echo {n}; exit {n}"));
            spec.host.auto_remove = n % 2 == 0;
            let id = host.engine.create(spec).await.expect("create");
            assert_eq!(
                host.run_created(&id).await.expect("run"),
                (n, format!("{n}\n"))
            );
            host.engine.remove(id.as_str(), true, true).await.is_ok()
        }
    });
    futures_util::future::join_all(runs).await;
    host.cgroups_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shim_ends_its_container_and_a_dead_nursery_is_replaced() {
    let host = Host::new().await;
    let id = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&id, "up").await;
    let pid = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .pid;
    let shim = parent(pid);
    let nursery = parent(shim);
    kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill the nursery");
    assert_eq!(
        host.exec(&id, &["true"]).await.0,
        0,
        "the container does not need it"
    );
    assert_eq!(
        host.run(cmd(&["true"])).await.0,
        0,
        "another one takes its place"
    );

    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kill the shim");
    assert_eq!(host.wait(&id).await, 255);
    host.cgroups_gone().await;
    // It may still wait for the host's process 1 to take note of its end.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    host.engine
        .start(id.as_str())
        .await
        .expect("it can start again");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_and_executing_leaks_nothing() {
    let host = Host::new().await;
    let id = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&id, "up").await;
    let shim = parent(
        host.engine
            .inspect(id.as_str(), false)
            .await
            .expect("inspect")
            .state
            .pid,
    );
    host.exec(&id, &["true"]).await;
    let before = descriptors(shim);
    for _ in 0..50 {
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        drop(
            host.engine
                .attach(id.as_str(), streams)
                .await
                .expect("attach"),
        );
        assert_eq!(host.exec(&id, &["echo", "x"]).await, (0, "x\n".into()));
        let spec = ExecSpec {
            cmd: vec!["nowhere".into()],
            ..ExecSpec::default()
        };
        let exec = host
            .engine
            .exec_create(id.as_str(), spec)
            .expect("exec create");
        host.engine
            .exec_start(&exec)
            .await
            .expect_err("no such program");
    }
    // One or two may be about to be closed, but not a hundred and fifty.
    assert!(
        descriptors(shim) <= before + 2,
        "{} descriptors, {before} before",
        descriptors(shim)
    );
    let children =
        std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).expect("children");
    let told: Vec<String> = children
        .split_whitespace()
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
        .collect();
    assert_eq!(told.len(), 1, "no zombies: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_only_itself_up() {
    let host = Host::new().await;
    let id = host
        .engine
        .create(sh(
            "dd if=/dev/zero bs=64k count=100 2>/dev/null; echo done >&2",
        ))
        .await
        .expect("create");
    let streams = Streams {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let slow = host
        .engine
        .attach(id.as_str(), streams)
        .await
        .expect("attach");
    host.engine.start(id.as_str()).await.expect("start");
    let state = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state;
    assert_eq!(state.status, ContainerStatus::Running);
    // Six megabytes do not fit into what is kept for a reader, so the container waits for this one.
    let text = read(slow).await;
    assert_eq!(text.len(), 100 * 65536 + "done\n".len());
    assert_eq!(host.wait(&id).await, 0);

    let id = host
        .engine
        .create(sh("dd if=/dev/zero bs=64k count=100 2>/dev/null"))
        .await
        .expect("create");
    let gone = host
        .engine
        .attach(id.as_str(), streams)
        .await
        .expect("attach");
    host.engine.start(id.as_str()).await.expect("start");
    drop(gone);
    assert_eq!(
        host.wait(&id).await,
        0,
        "a reader that left holds nobody up"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_may_follow_one_log() {
    let host = Host::new().await;
    let id = host
        .start(sh(
            "echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last",
        ))
        .await;
    host.wait_for_output(&id, "up").await;
    let query = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let following = futures_util::future::join_all((0..300).map(|_| host.logs(&id, query.clone())));
    let (all, _) = tokio::join!(following, host.exec(&id, &["touch", "/tmp/go"]));
    assert!(all.iter().all(|text| text == "up\nlast\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_lives_leave_nothing() {
    let host = Host::new().await;
    let lives: usize = std::env::var("SHOAL_LIVES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(500);
    let open = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .count()
    };
    let entries = |dir: &str| {
        let dir = std::fs::read_dir(host.root.join(dir));
        dir.into_iter().flatten().count()
    };
    // The first lives make what stays: the nursery, directories.
    for _ in 0..4 {
        assert_eq!(host.sh("true").await.0, 0);
    }
    let before = open();
    let one = |number: usize| {
        let host = &host;
        async move {
            let mut spec = sh("echo alive; exit 3");
            spec.host.binds = vec!["/anonymous".into()];
            spec.host.auto_remove = number.is_multiple_of(2);
            let id = host.engine.create(spec).await.expect("create");
            let gone = host
                .engine
                .wait(
                    id.as_str(),
                    shoal_engine::io::engine::WaitCondition::NextExit,
                )
                .expect("wait");
            host.engine.start(id.as_str()).await.expect("start");
            assert_eq!(gone.await.exit_code, 3);
            if !number.is_multiple_of(2) {
                host.engine
                    .remove(id.as_str(), false, true)
                    .await
                    .expect("remove");
            }
        }
    };
    for number in (0..lives).step_by(4) {
        tokio::join!(
            one(number),
            one(number + 1),
            one(number + 2),
            one(number + 3)
        );
    }
    host.cgroups_gone().await;
    for _ in 0..500 {
        if entries("lib/trash") == 0 && entries("run/c") == 0 && entries("lib/volumes") == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    for dir in [
        "lib/trash",
        "lib/containers",
        "lib/volumes",
        "run/c",
        "run/netns",
    ] {
        assert_eq!(entries(dir), 0, "{dir}");
    }
    assert!(host.mounts().is_empty());
    // Other tests of this process have some open, too; a leak would be one for every life.
    assert!(
        open() < before + lives / 10,
        "{} descriptors, {before} before",
        open()
    );
}
