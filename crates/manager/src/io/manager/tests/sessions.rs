//! Agents in session with managers: they say everything runs, and sometimes they vanish.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use shoal_api::{
    NodeId, TaskId, TaskState,
    object::{NodeState, Task, TaskStatus},
    spec::ServiceMode,
    wire::{
        AcknowledgeViewRequest, AssignmentsRequest, HeartbeatRequest, LeaveRequest,
        ListenSubscriptionsRequest, LogMessage, LogOptions, LogSelector, PublishLogsMessage,
        SessionRequest, SubscribeLogsRequest, UpdateTaskStatusRequest,
        assignment_change::{Action, Item},
        dispatcher_client::DispatcherClient,
        log_broker_client::LogBrokerClient,
        update_task_status_request::Update,
    },
};

use super::*;
use crate::core::fixture;

/// An agent whose tasks run at once and stop when told to.
struct FakeAgent(tokio::task::AbortHandle);

impl FakeAgent {
    fn start(identity: &NodeIdentity, managers: Vec<String>) -> Self {
        let tls = client_config(identity.root(), Some(identity)).unwrap();
        let hostname = identity.peer().node_id.to_string();
        let agent = async move {
            let mut managers = managers;
            let mut turn = 0;
            loop {
                let here = managers[turn % managers.len()].clone();
                turn += 1;
                let client = DispatcherClient::new(client::dial(&here, tls.clone()));
                match session(client, &hostname, &here).await {
                    Ok(Some(leader)) => managers.insert(turn % managers.len(), leader),
                    Ok(None) | Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        Self(tokio::spawn(agent).abort_handle())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds a session until it breaks; the leader, if it is elsewhere.
async fn session(
    mut client: DispatcherClient<tonic::transport::Channel>,
    hostname: &str,
    here: &str,
) -> Result<Option<String>, Status> {
    let mut description = fixture::node("n").description;
    hostname.clone_into(&mut description.hostname);
    let request = SessionRequest {
        description: Some((&description).into()),
        ..SessionRequest::default()
    };
    let mut messages = client.session(request).await?.into_inner();
    let first = messages
        .message()
        .await?
        .ok_or_else(|| Status::unavailable("closed"))?;
    if first.leader != here {
        return Ok(Some(first.leader));
    }
    let session_id = first.session_id;
    let mut assignments = client
        .assignments(AssignmentsRequest {
            session_id: session_id.clone(),
        })
        .await?
        .into_inner();
    let mut beats = tokio::time::interval(Duration::from_millis(first.heartbeat_period_ms));
    let mut tasks: BTreeMap<TaskId, Task> = BTreeMap::new();
    let mut held = String::new();
    loop {
        let message = tokio::select! {
            _ = beats.tick() => {
                client.heartbeat(HeartbeatRequest { session_id: session_id.clone() }).await?;
                continue;
            }
            told = messages.message() => {
                told?.ok_or_else(|| Status::unavailable("closed"))?;
                continue;
            }
            message = assignments.message() => message?.ok_or_else(|| Status::unavailable("closed"))?,
        };
        assert_eq!(message.applies_to, held);
        held.clone_from(&message.results_in);
        if let Some(view) = message.read_view().unwrap() {
            let version = view.version();
            client
                .acknowledge_view(AcknowledgeViewRequest {
                    session_id: session_id.clone(),
                    version,
                })
                .await?;
        }
        let mut updates = Vec::new();
        for change in message.read_changes().unwrap() {
            let (action, Some(Item::Task(task))) = (change.action(), change.item) else {
                continue;
            };
            if action == Action::Remove {
                tasks.remove(task.id.as_str());
                continue;
            }
            let task = Task::try_from(task).unwrap();
            let state = if task.desired_state > TaskState::Running {
                TaskState::Shutdown
            } else {
                TaskState::Running
            };
            let status = TaskStatus {
                state,
                at: Timestamp::now(),
                ..TaskStatus::default()
            };
            updates.push(Update {
                task_id: task.id.to_string(),
                status: Some((&status).into()),
            });
            tasks.insert(task.id.clone(), task);
        }
        client
            .update_task_status(UpdateTaskStatusRequest {
                session_id: session_id.clone(),
                updates,
            })
            .await?;
    }
}

fn service(name: &str, replicas: u64) -> Intent {
    Intent::Create(Spec::Service(Box::new(fixture::service(name, replicas))))
}

fn running(state: &State) -> Vec<(u64, NodeId)> {
    let running = |task: &&Arc<Task>| {
        task.status.state == TaskState::Running && task.desired_state == TaskState::Running
    };
    let mut slots: Vec<_> = state
        .tasks()
        .filter(running)
        .filter(|task| {
            let node = task.node.as_ref().and_then(|node| state.node(node));
            node.is_some_and(|node| node.status.state == NodeState::Ready)
        })
        .map(|task| (task.slot, task.node.clone().unwrap()))
        .collect();
    slots.sort();
    slots
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_runs_scales_and_moves_away_from_a_lost_node() {
    within(async {
        let cluster = Cluster::found().await;
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let mut agents = Vec::new();
        for _ in 0..2 {
            let identity = cluster.admit(&worker).await.unwrap();
            agents.push((
                identity.peer().node_id.clone(),
                FakeAgent::start(&identity, vec![cluster.remote()]),
            ));
        }
        let manager = cluster.manager(0);
        until(manager, |state| {
            state
                .nodes()
                .filter(|node| node.status.state == NodeState::Ready)
                .count()
                == 2
        })
        .await;
        let began = std::time::Instant::now();
        let created = manager.write(service("web", 4)).await.unwrap().unwrap();
        until(manager, |state| running(state).len() == 4).await;
        tracing::info!(elapsed = ?began.elapsed(), "four tasks run");
        let nodes: Vec<_> = running(&manager.state())
            .into_iter()
            .map(|(_, node)| node)
            .collect();
        assert!(
            agents
                .iter()
                .all(|(node, _)| nodes.iter().filter(|at| *at == node).count() == 2),
            "{nodes:?}"
        );

        // Scaling down stops what is too much, without waiting for the bound on draining.
        let Object::Service(service) = manager.state().object(&created.key()).unwrap() else {
            panic!("not a service")
        };
        let mut spec = service.spec.as_ref().clone();
        spec.mode = ServiceMode::Replicated { replicas: 2 };
        let update = |version, spec| Intent::Update {
            key: created.key(),
            version,
            spec: Spec::Service(Box::new(spec)),
        };
        let began = std::time::Instant::now();
        manager
            .write(update(service.meta.version, spec))
            .await
            .unwrap();
        until(manager, |state| {
            running(state).len() == 2
                && state
                    .tasks()
                    .all(|task| task.desired_state <= TaskState::Running || task.drained)
        })
        .await;
        assert!(
            began.elapsed() < Duration::from_millis(1_500),
            "{:?}",
            began.elapsed()
        );

        let (lost, agent) = agents.pop().unwrap();
        drop(agent);
        until(manager, |state| {
            let running = running(state);
            running.len() == 2 && running.iter().all(|(_, node)| *node != lost)
        })
        .await;
        let node = manager.state().node(&lost).cloned().unwrap();
        assert_eq!(
            (node.status.state, node.status.message.as_str()),
            (NodeState::Down, "session closed")
        );

        manager
            .write(Intent::Remove {
                key: created.key(),
                force: false,
            })
            .await
            .unwrap();
        until(manager, |state| {
            running(state).is_empty() && state.services().next().is_none()
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_find_the_next_leader_and_their_tasks_stay() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        cluster.join_manager().await;
        let addresses: Vec<_> = (0..3)
            .map(|place| cluster.manager(place).address().to_string())
            .collect();
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let identity = cluster.admit(&worker).await.unwrap();
        let _agent = FakeAgent::start(&identity, addresses);
        cluster.manager(1).write(service("web", 3)).await.unwrap();
        until(cluster.manager(1), |state| running(state).len() == 3).await;
        let before: Vec<_> = cluster
            .manager(1)
            .state()
            .tasks()
            .map(|task| task.id.clone())
            .collect();

        let leader = cluster.manager(0).leadership().borrow().leader.unwrap();
        cluster.stop(usize::try_from(leader).unwrap() - 1).await;
        let left = cluster.managers.iter().flatten().next().unwrap();
        left.0.write(service("other", 1)).await.unwrap();
        until(&left.0, |state| running(state).len() == 4).await;
        let state = left.0.state();
        assert!(before.iter().all(|task| {
            state
                .task(task)
                .is_some_and(|task| task.status.state == TaskState::Running)
        }));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_alone() {
    within(async {
        let cluster = Cluster::found().await;
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let [one, two] = [
            cluster.admit(&worker).await.unwrap(),
            cluster.admit(&worker).await.unwrap(),
        ];
        let client = |identity: &NodeIdentity| {
            let tls = client_config(identity.root(), Some(identity)).unwrap();
            DispatcherClient::new(client::dial(&cluster.remote(), tls))
        };
        let description = fixture::node("n").description;
        let request = SessionRequest {
            description: Some((&description).into()),
            ..SessionRequest::default()
        };
        let mut messages = client(&one).session(request).await.unwrap().into_inner();
        let session_id = messages.message().await.unwrap().unwrap().session_id;
        client(&one)
            .heartbeat(HeartbeatRequest {
                session_id: session_id.clone(),
            })
            .await
            .unwrap();
        let foreign = client(&two)
            .heartbeat(HeartbeatRequest {
                session_id: session_id.clone(),
            })
            .await;
        assert_eq!(foreign.unwrap_err().code(), tonic::Code::NotFound);
        let foreign = client(&two)
            .assignments(AssignmentsRequest { session_id })
            .await;
        assert_eq!(foreign.unwrap_err().code(), tonic::Code::NotFound);

        // A removed node's session ends, and it gets no other.
        let key = ObjectKey::Node(one.peer().node_id.clone());
        cluster
            .manager(0)
            .write(Intent::Remove { key, force: true })
            .await
            .unwrap();
        while let Ok(Some(_)) = messages.message().await {}
        let refused = client(&one)
            .session(SessionRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);

        // One that leaves is forgotten and shut out as well; its name stays, for who would remove it.
        let id = two.peer().node_id.clone();
        // The answer may be cut off with everything else that it has open.
        let _ = client(&two).leave(LeaveRequest {}).await;
        until(cluster.manager(0), |state| state.node(&id).is_none()).await;
        let state = cluster.manager(0).state();
        assert!(state.cluster().unwrap().departed.contains_key(&id));
        assert!(
            !state
                .cluster()
                .unwrap()
                .departed
                .contains_key(&one.peer().node_id)
        );
        let refused = client(&two).leave(LeaveRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    })
    .await;
}

/// A node that answers every subscription with one line of each of its tasks and each of these times.
async fn publish_lines(
    mut broker: LogBrokerClient<tonic::transport::Channel>,
    tasks: Vec<String>,
    times: &[i64],
) -> Result<(), Status> {
    let mut orders = broker
        .listen_subscriptions(ListenSubscriptionsRequest {})
        .await?
        .into_inner();
    while let Some(order) = orders.message().await? {
        if order.close {
            continue;
        }
        let line = |task_id: &String, timestamp: i64| LogMessage {
            task_id: task_id.clone(),
            timestamp,
            stream: 1,
            data: b"hello".to_vec(),
            ..LogMessage::default()
        };
        let message = PublishLogsMessage {
            subscription_id: order.id,
            messages: times
                .iter()
                .flat_map(|time| tasks.iter().map(|task| line(task, *time)))
                .collect(),
            close: true,
        };
        broker.publish_logs(tokio_stream::once(message)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_nodes_that_have_them() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let [one, two] = [
            cluster.admit(&worker).await.unwrap(),
            cluster.admit(&worker).await.unwrap(),
        ];
        let mut agents: Vec<_> = [&one, &two]
            .map(|identity| FakeAgent::start(identity, vec![cluster.remote()]))
            .into();
        let ready = |state: &State| {
            state
                .nodes()
                .filter(|node| node.status.state == NodeState::Ready)
                .count()
                == 2
        };
        until(cluster.manager(0), ready).await;
        let Object::Service(web) = cluster
            .manager(0)
            .write(service("web", 2))
            .await
            .unwrap()
            .unwrap()
        else {
            panic!("not a service")
        };
        until(cluster.manager(1), |state| running(state).len() == 2).await;
        let request = |follow| SubscribeLogsRequest {
            selector: Some(LogSelector {
                service_ids: vec![web.id.to_string()],
                task_ids: Vec::new(),
            }),
            options: Some(LogOptions {
                stdout: true,
                tail: -1,
                follow,
                ..LogOptions::default()
            }),
        };

        // Nobody listens yet: the nodes are there, so they are waited for.
        let early = cluster.manager(1).logs(request(false)).await.unwrap();
        let mut following = cluster.manager(1).logs(request(true)).await.unwrap();

        // Each node sends the lines of all tasks; only those of its own get through.
        let tasks: Vec<_> = cluster
            .manager(0)
            .state()
            .tasks()
            .map(|task| task.id.to_string())
            .collect();
        let mut publishers: Vec<_> = [&one, &two]
            .map(|identity| {
                let tls = client_config(identity.root(), Some(identity)).unwrap();
                let broker = LogBrokerClient::new(client::dial(&cluster.remote(), tls));
                let tasks = tasks.clone();
                tokio::spawn(async move { publish_lines(broker, tasks, &[1]).await })
            })
            .into();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 2 {
            let line = following.next().await.unwrap().unwrap();
            let task = cluster
                .manager(0)
                .state()
                .task(&line.task_id.parse().unwrap())
                .cloned()
                .unwrap();
            assert_eq!(
                task.node.as_ref().map(|node| node.as_str()),
                Some(line.node_id.as_str())
            );
            assert_eq!(
                (line.service_id.as_str(), line.data.as_slice()),
                (web.id.as_str(), b"hello".as_slice())
            );
            seen.insert(line.task_id);
        }
        let whole: Vec<_> = cluster
            .manager(0)
            .logs(request(false))
            .await
            .unwrap()
            .collect()
            .await;
        let early: Vec<_> = early.collect().await;
        for lines in [&early, &whole] {
            assert!(
                lines.len() == 2 && lines.iter().all(Result::is_ok),
                "{lines:?}"
            );
        }

        // A node that goes away is named, and what it had is left out.
        let (lost, _) = (agents.pop().unwrap(), publishers.pop().unwrap().abort());
        drop(lost);
        until(cluster.manager(0), |state| !ready(state)).await;
        let lines = cluster.manager(1).logs(request(false)).await.unwrap();
        let lines: Vec<_> = lines.collect().await;
        let warning = lines.last().unwrap().as_ref().unwrap_err().message();
        assert!(
            lines[0].is_ok()
                && warning.ends_with(&format!("node {} is not available", two.peer().node_id)),
            "{lines:?}"
        );

        // Who follows is let go when there is nothing left to follow.
        let key = ObjectKey::Service(web.id.clone());
        let remove = Intent::Remove { key, force: false };
        cluster.manager(0).write(remove).await.unwrap();
        while following.next().await.is_some() {}
        publishers.iter().for_each(|publisher| publisher.abort());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_logs_outlives_the_leader() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        cluster.join_manager().await;
        let addresses: Vec<_> = (0..3)
            .map(|place| cluster.manager(place).address().to_string())
            .collect();
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let identity = cluster.admit(&worker).await.unwrap();
        let _agent = FakeAgent::start(&identity, addresses);
        cluster.manager(1).write(service("web", 1)).await.unwrap();
        until(cluster.manager(1), |state| running(state).len() == 1).await;
        let task = cluster.manager(1).state().tasks().next().cloned().unwrap();
        let request = SubscribeLogsRequest {
            selector: Some(LogSelector {
                service_ids: vec![task.service.to_string()],
                task_ids: Vec::new(),
            }),
            options: Some(LogOptions {
                stdout: true,
                follow: true,
                ..LogOptions::default()
            }),
        };
        let leader = |manager: &Manager| {
            let leader = manager.leadership().borrow().leader.unwrap();
            usize::try_from(leader).unwrap() - 1
        };
        let publish = |address: String, times: &'static [i64]| {
            let tls = client_config(identity.root(), Some(&identity)).unwrap();
            let broker = LogBrokerClient::new(client::dial(&address, tls));
            let tasks = vec![task.id.to_string()];
            tokio::spawn(async move { publish_lines(broker, tasks, times).await })
        };
        let first = leader(cluster.manager(0));
        let other = (first + 1) % 3;
        let mut lines = cluster.manager(other).logs(request).await.unwrap();
        let publisher = publish(cluster.manager(first).address().to_string(), &[5]);
        assert_eq!(lines.next().await.unwrap().unwrap().timestamp, 5);
        publisher.abort();

        cluster.stop(first).await;
        let manager = cluster.manager(other);
        let mut leadership = manager.leadership();
        let elected = leadership.wait_for(|now| {
            now.leader
                .is_some_and(|leader| usize::try_from(leader).unwrap() - 1 != first)
        });
        elected.await.unwrap();
        let second = cluster.manager(leader(manager)).address().to_string();
        // What came already does not come again.
        let _publisher = publish(second, &[5, 6]);
        assert_eq!(lines.next().await.unwrap().unwrap().timestamp, 6);
    })
    .await;
}
