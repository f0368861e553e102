//! An agent with managers that the test plays: real TLS, real gRPC, a node that only takes notes.

mod stage;

use std::sync::atomic::Ordering;

use shoal_api::{
    TaskState as S,
    container::LogQuery,
    network::NetworkView,
    wire::{self, LogSelector, SubscriptionMessage},
};
use stage::{Authority, Event, Manager, Notes, complete, incremental, remove, secret, task};

#[tokio::test]
async fn a_task_runs_and_stops_and_the_network_goes_first() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;

    let session = manager.session().await;
    assert_eq!(
        session.request.description.as_ref().expect("one").hostname,
        "worker-7"
    );
    let view = NetworkView {
        version: 41,
        ..NetworkView::default()
    };
    session
        .assign(complete(
            "1",
            Some(&view),
            &[task("t1", S::Assigned, S::Running)],
        ))
        .await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Running))
        .await;
    manager.seen(&Event::Acknowledged(41)).await;
    assert_eq!(
        notes.lines()[..3],
        ["converge 41", "publish 41", "prepare t1"]
    );

    let next = NetworkView {
        version: 42,
        ..view.clone()
    };
    // What has changed is enough.
    let mut message = incremental("1", "2", None, &[task("t1", S::Running, S::Shutdown)]);
    message.view_change = Some(wire::encode_view_change(&next.change_from(&view)));
    message.view_version = 42;
    session.assign(message).await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Shutdown))
        .await;
    assert_eq!(
        notes.lines()[3..],
        [
            "start t1",
            "wait t1",
            "converge 42",
            "publish 42",
            "shutdown t1"
        ]
    );

    session.assign(remove("2", "3", "t1")).await;
    notes.until("remove t1").await;
    manager.until(&Event::Heartbeat).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_missed_message_leads_to_a_new_session_that_starts_over() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;

    let session = manager.session().await;
    session
        .assign(complete("1", None, &[task("t1", S::Assigned, S::Running)]))
        .await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Running))
        .await;
    session
        .assign(incremental(
            "7",
            "8",
            None,
            &[task("t1", S::Running, S::Shutdown)],
        ))
        .await;
    let session = manager.session().await;
    assert_eq!(session.request.assignments_version, "");
    // This manager has not heard of the start.
    session
        .assign(complete("9", None, &[task("t1", S::Assigned, S::Running)]))
        .await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Running))
        .await;
    assert_eq!(
        notes.lines(),
        ["prepare t1", "start t1", "wait t1"],
        "the task ran on"
    );
}

#[tokio::test]
async fn when_a_manager_dies_the_next_one_is_called_and_tasks_run_on() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let (mut first, mut second) = (
        Manager::start(&authority).await,
        Manager::start(&authority).await,
    );
    let directory = tempfile::tempdir().expect("a directory");
    let agent = notes
        .agent(
            &authority,
            directory.path(),
            &[&first.address, &second.address],
        )
        .await;

    let session = first.session().await;
    session
        .assign(complete("1", None, &[task("t1", S::Assigned, S::Running)]))
        .await;
    first
        .until(&Event::Status("t1".to_owned(), S::Running))
        .await;
    first.stop().await;
    drop(session);
    let session = second.session().await;
    assert_eq!(session.request.assignments_version, "1");
    session
        .assign(incremental(
            "1",
            "2",
            None,
            &[task("t2", S::Assigned, S::Running)],
        ))
        .await;
    second
        .until(&Event::Status("t2".to_owned(), S::Running))
        .await;
    assert_eq!(
        agent.state().borrow().manager.as_deref(),
        Some(second.address.as_str())
    );
    assert!(!notes.lines().contains(&"shutdown t1".to_owned()));
}

#[tokio::test]
async fn a_follower_sends_the_agent_to_the_leader() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut leader = Manager::start(&authority).await;
    let follower = Manager::led_by(&authority, &leader.address).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(&authority, directory.path(), &[&follower.address])
        .await;
    leader.session().await;
}

#[tokio::test]
async fn a_new_agent_takes_up_the_tasks_without_a_manager() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let session = manager.session().await;
    let view = NetworkView {
        version: 41,
        ..NetworkView::default()
    };
    let tasks = ["t1", "t2"].map(|id| task(id, S::Assigned, S::Running));
    session.assign(complete("1", Some(&view), &tasks)).await;
    notes.until("wait t1").await;
    notes.until("wait t2").await;
    for id in ["t1", "t2"] {
        manager
            .seen(&Event::Status(id.to_owned(), S::Running))
            .await;
    }
    manager.stop().await;
    agent.stop().await;

    let later = Notes::default();
    let agent = later.agent(&authority, directory.path(), &[]).await;
    later.until("wait t1").await;
    later.until("wait t2").await;
    assert_eq!(later.lines()[..2], ["converge 41", "publish 41"]);
    assert!(
        !later
            .lines()
            .iter()
            .any(|line| line.starts_with("start") || line.starts_with("prepare"))
    );

    agent.leave().await;
    let lines = later.lines();
    for line in [
        "shutdown t1",
        "remove t1",
        "shutdown t2",
        "remove t2",
        "converge 0",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line} in {lines:?}");
    }
    assert_eq!(
        lines.last().map(String::as_str),
        Some("publish 0"),
        "the networks go last"
    );

    let empty = Notes::default();
    empty
        .agent(&authority, directory.path(), &[])
        .await
        .stop()
        .await;
    assert_eq!(empty.lines(), [""; 0]);
}

#[tokio::test]
async fn a_secret_that_comes_later_lets_its_task_go_on_and_is_never_written_down() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let session = manager.session().await;
    let (using, content) = (
        stage::task_with_secret("t1", "s1"),
        "correct horse battery staple",
    );
    session.assign(complete("1", None, &[using])).await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Preparing))
        .await;
    session.assign(secret("1", "2", "s1", content)).await;
    manager
        .until(&Event::Status("t1".to_owned(), S::Running))
        .await;
    agent.stop().await;
    let ledger = std::fs::read(directory.path().join("ledger")).expect("a ledger");
    assert!(
        !ledger
            .windows(content.len())
            .any(|bytes| bytes == content.as_bytes())
    );
}

#[tokio::test]
async fn a_manager_of_another_cluster_is_not_believed() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut foreign = Manager::start(&Authority::new()).await;
    let mut own = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(
            &authority,
            directory.path(),
            &[&foreign.address, &own.address],
        )
        .await;
    own.session().await;
    foreign.heard_nothing();
}

fn subscription(id: &str, services: &[&str], tasks: &[&str], follow: bool) -> SubscriptionMessage {
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let query = LogQuery {
        stdout: true,
        follow,
        ..LogQuery::default()
    };
    SubscriptionMessage {
        id: id.to_owned(),
        selector: Some(LogSelector {
            service_ids: ids(services),
            task_ids: ids(tasks),
        }),
        options: Some((&query).into()),
        close: false,
        exec: None,
    }
}

fn lines(lines: &[(&str, &str)]) -> Event {
    let line = |(task, text): &(&str, &str)| ((*task).to_owned(), (*text).to_owned());
    Event::Lines(lines.iter().map(line).collect())
}

#[tokio::test]
async fn a_reader_gets_the_lines_of_its_tasks_in_the_order_of_time() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let session = manager.session().await;
    let tasks = ["t1", "t2"].map(|id| task(id, S::Assigned, S::Running));
    session.assign(complete("1", None, &tasks)).await;
    for id in ["t1", "t2"] {
        manager
            .seen(&Event::Status(id.to_owned(), S::Running))
            .await;
    }

    session
        .subscribe(subscription("all", &["web"], &[], false))
        .await;
    let all = lines(&[("t1", "a"), ("t2", "a"), ("t1", "b"), ("t2", "b")]);
    assert_eq!(manager.published().await, all);
    assert_eq!(
        manager.published().await,
        Event::Published("all".to_owned())
    );
    assert_eq!(manager.published().await, Event::Unpublished);

    session
        .subscribe(subscription("one", &[], &["t2", "t9"], false))
        .await;
    assert_eq!(
        manager.published().await,
        lines(&[("t2", "a"), ("t2", "b")])
    );
    assert_eq!(
        manager.published().await,
        Event::Published("one".to_owned())
    );
    assert_eq!(manager.published().await, Event::Unpublished);

    session
        .subscribe(subscription("none", &["other"], &[], false))
        .await;
    assert_eq!(
        manager.published().await,
        Event::Published("none".to_owned())
    );
}

#[tokio::test]
async fn logs_that_break_off_are_sent_again_and_the_session_goes_on() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let mut session = manager.session().await;
    let running = task("t1", S::Assigned, S::Running);
    session.assign(complete("1", None, &[running])).await;
    manager
        .seen(&Event::Status("t1".to_owned(), S::Running))
        .await;
    manager.breaks.store(true, Ordering::Relaxed);
    let all = subscription("all", &["web"], &[], false);
    session.subscribe(all.clone()).await;
    let both = lines(&[("t1", "a"), ("t1", "b")]);
    assert_eq!(manager.published().await, both);
    manager.listens_anew(&mut session).await;
    session.subscribe(all).await;
    assert_eq!(manager.published().await, both);
    assert_eq!(
        manager.published().await,
        Event::Published("all".to_owned())
    );
    manager.until(&Event::Heartbeat).await;
}

#[tokio::test]
async fn who_follows_gets_the_lines_of_later_tasks_until_it_goes() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let _agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let session = manager.session().await;
    session
        .subscribe(subscription("all", &["web"], &[], true))
        .await;
    let mut heard = Vec::new();
    for (held, version, id) in [("", "1", "t1"), ("1", "2", "t2")] {
        let tasks = [task(id, S::Assigned, S::Running)];
        let message = if held.is_empty() {
            complete(version, None, &tasks)
        } else {
            incremental(held, version, None, &tasks)
        };
        session.assign(message).await;
        while heard.len() < 2 {
            let Event::Lines(lines) = manager.published().await else {
                panic!("the publication ended");
            };
            heard.extend(lines);
        }
        let heard = std::mem::take(&mut heard);
        assert_eq!(Event::Lines(heard), lines(&[(id, "a"), (id, "b")]));
    }
    let mut over = subscription("all", &[], &[], true);
    over.close = true;
    session.subscribe(over).await;
    assert_eq!(manager.published().await, Event::Unpublished);
}

#[tokio::test]
async fn a_node_that_leaves_tells_the_manager_of_its_session() {
    let (authority, notes) = (Authority::new(), Notes::default());
    let mut manager = Manager::start(&authority).await;
    let directory = tempfile::tempdir().expect("a directory");
    let agent = notes
        .agent(&authority, directory.path(), &[&manager.address])
        .await;
    let _session = manager.session().await;
    agent.calls().leave().await.expect("heard");
    manager.seen(&Event::Left).await;
    agent.leave().await;
}
