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
