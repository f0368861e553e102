//! What agents are sent over real connections: from where they were, at their own pace, and what they say on their way.

use std::collections::BTreeSet;

use shoal_api::{
    TaskId, TaskState,
    network::NetworkView,
    object::{NodeState, TaskStatus},
    spec::{PortConfig, ServiceMode},
    wire::{
        AssignmentsMessage, AssignmentsRequest, HeartbeatRequest, SessionRequest,
        UpdateTaskStatusRequest,
        assignment_change::{Action, Item},
        assignments_message::Type,
        dispatcher_client::DispatcherClient,
        update_task_status_request::Update,
    },
};
use tokio::task::AbortHandle;
use tonic::{Streaming, transport::Channel};

use super::*;
use crate::core::fixture;

/// Largest message that these agents take.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// An agent that reads its assignments when the test does. Its heart beats on a connection of its own.
struct SlowAgent {
    client: DispatcherClient<Channel>,
    session: String,
    assignments: Streaming<AssignmentsMessage>,
    beats: AbortHandle,
}

impl Drop for SlowAgent {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl SlowAgent {
    /// Opens a session, holding this version.
    async fn open(cluster: &Cluster, identity: &NodeIdentity, holds: &str) -> Self {
        let tls = client_config(identity.root(), Some(identity)).unwrap();
        let dial = || DispatcherClient::new(client::dial(&cluster.remote(), tls.clone()));
        let (mut client, mut heart) = (dial().max_decoding_message_size(MESSAGE_BYTES_MAX), dial());
        let mut description = fixture::node("n").description;
        description.hostname = identity.peer().node_id.to_string();
        let request = SessionRequest {
            description: Some((&description).into()),
            assignments_version: holds.to_owned(),
            takes_view_changes: true,
            ..SessionRequest::default()
        };
        let mut messages = client.session(request).await.unwrap().into_inner();
        let first = messages.message().await.unwrap().unwrap();
        let session = first.session_id;
        let session_id = session.clone();
        let beats = tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    _ = beats.tick() => {
                        let session_id = session_id.clone();
                        if heart.heartbeat(HeartbeatRequest { session_id }).await.is_err() {
                            return;
                        }
                    }
                    message = messages.message() => if !matches!(message, Ok(Some(_))) { return },
                }
            }
        });
        let request = AssignmentsRequest {
            session_id: session.clone(),
        };
        let assignments = client.assignments(request).await.unwrap().into_inner();
        Self {
            client,
            session,
            assignments,
            beats: beats.abort_handle(),
        }
    }

    async fn next(&mut self) -> AssignmentsMessage {
        self.assignments.message().await.unwrap().unwrap()
    }

    /// Reads until it has so many tasks; how many messages that took, and the last one's version.
    async fn read_tasks(&mut self, tasks: &mut BTreeSet<String>, count: usize) -> (usize, String) {
        for messages in 1.. {
            let message = self.next().await;
            for change in message.read_changes().unwrap() {
                let (action, Some(Item::Task(task))) = (change.action(), change.item) else {
                    continue;
                };
                if action == Action::Update {
                    tasks.insert(task.id);
                }
            }
            if tasks.len() >= count {
                return (messages, message.results_in);
            }
        }
        unreachable!("the loop has no end of its own")
    }

    async fn report(&mut self, task: &TaskId, state: TaskState) {
        let status = TaskStatus {
            state,
            at: Timestamp::now(),
            ..TaskStatus::default()
        };
        let request = UpdateTaskStatusRequest {
            session_id: self.session.clone(),
            updates: vec![Update {
                task_id: task.to_string(),
                status: Some((&status).into()),
            }],
        };
        self.client.update_task_status(request).await.unwrap();
    }
}

/// A service with one task on every node.
fn everywhere(name: &str, env: String) -> Intent {
    let mut spec = fixture::service(name, 0);
    spec.mode = ServiceMode::Global;
    spec.task.container.env = vec![env];
    Intent::Create(Spec::Service(Box::new(spec)))
}

async fn worker(cluster: &Cluster) -> NodeIdentity {
    let (token, _) = cluster.manager(0).join_tokens().unwrap();
    cluster.admit(&token).await.unwrap()
}

async fn until_ready(cluster: &Cluster, count: usize) {
    until(cluster.manager(0), |state| {
        let ready = |node: &&Arc<shoal_api::object::Node>| node.status.state == NodeState::Ready;
        state.nodes().filter(ready).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_back_is_told_what_has_changed_since() {
    within(async {
        let cluster = Cluster::found().await;
        let manager = cluster.manager(0);
        let identity = worker(&cluster).await;
        let mut agent = SlowAgent::open(&cluster, &identity, "").await;
        let first = agent.next().await;
        assert_eq!(
            (first.r#type(), first.applies_to.as_str()),
            (Type::Complete, "")
        );
        manager
            .write(everywhere("one", "A=b".to_owned()))
            .await
            .unwrap();
        let mut tasks = BTreeSet::new();
        let (_, held) = agent.read_tasks(&mut tasks, 1).await;
        drop(agent);

        // Something happens while it is away.
        manager
            .write(everywhere("two", "A=b".to_owned()))
            .await
            .unwrap();
        until(manager, |state| {
            state
                .tasks()
                .filter(|task| task.status.state == TaskState::Assigned)
                .count()
                == 2
        })
        .await;
        let mut agent = SlowAgent::open(&cluster, &identity, &held).await;
        let told = agent.next().await;
        assert_eq!(
            (told.r#type(), &told.applies_to),
            (Type::Incremental, &held)
        );
        let changes = told.read_changes().unwrap();
        assert_eq!(
            changes.len(),
            1,
            "one task is new, and nothing else is told again"
        );
        assert!(told.view.is_none(), "it has its view");
        let last = told.results_in;
        drop(agent);

        // The last message was lost on the way: it is still known what the agent held before.
        let mut agent = SlowAgent::open(&cluster, &identity, &held).await;
        let again = agent.next().await;
        assert_eq!(
            (again.r#type(), &again.applies_to),
            (Type::Incremental, &held)
        );
        assert_eq!(again.read_changes().unwrap().len(), 1);
        assert_ne!(again.results_in, last, "a version is never given twice");
        drop(agent);

        // What nobody knows any more, everything follows.
        for unknown in ["1.1", ""] {
            let mut agent = SlowAgent::open(&cluster, &identity, unknown).await;
            let all = agent.next().await;
            assert_eq!(all.r#type(), Type::Complete);
            assert_eq!(all.read_changes().unwrap().len(), 2);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_its_networks_an_agent_is_told_what_differs_from_what_it_holds() {
    within(async {
        let cluster = Cluster::found().await;
        let manager = cluster.manager(0);
        let identity = worker(&cluster).await;
        let node = identity.peer().node_id.clone();
        let mut agent = SlowAgent::open(&cluster, &identity, "").await;
        let first = agent.next().await;
        assert!(first.view.is_some() && first.view_change.is_none());
        let mut held = first.read_view().unwrap().unwrap().onto(None);
        let mut version = first.results_in;
        for (name, port) in [("one", 8081), ("two", 8082)] {
            let mut spec = fixture::service(name, 0);
            spec.mode = ServiceMode::Global;
            spec.endpoint.ports = vec![PortConfig {
                target: 80,
                published: port,
                ..PortConfig::default()
            }];
            manager
                .write(Intent::Create(Spec::Service(Box::new(spec))))
                .await
                .unwrap();
            let placed = |view: &Option<NetworkView>| {
                let mut networks = view.iter().flat_map(|view| view.networks.values());
                networks.any(|network| {
                    let mut services = network.services.values();
                    let service = services.any(|service| service.name == name);
                    service && network.endpoints.len() == network.services.len()
                })
            };
            while !placed(&held) {
                let message = agent.next().await;
                assert!(message.view.is_none(), "it holds most of that already");
                if let Some(update) = message.read_view().unwrap() {
                    held = update.onto(held.as_ref());
                }
                version = message.results_in;
            }
            // Another session goes on from there.
            drop(agent);
            agent = SlowAgent::open(&cluster, &identity, &version).await;
        }
        let now = crate::core::dispatch::network_view(&manager.state(), &node);
        let held = held.unwrap();
        assert_eq!((&held.networks, &held.peers), (&now.networks, &now.peers));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_reads_nothing_holds_up_nobody_and_later_gets_what_is_left_at_once() {
    const SERVICES: usize = 40;
    within(async {
        let cluster = Cluster::found().await;
        let manager = cluster.manager(0);
        let (one, two) = (worker(&cluster).await, worker(&cluster).await);
        let mut quick = SlowAgent::open(&cluster, &one, "").await;
        let mut slow = SlowAgent::open(&cluster, &two, "").await;
        until_ready(&cluster, 2).await;
        // Six megabytes to each: more than any socket takes in for a reader who does not read.
        let mut tasks = BTreeSet::new();
        let mut messages = 0;
        for number in 1..=SERVICES {
            let env = format!("PAD={}", "x".repeat(150 << 10));
            manager
                .write(everywhere(&format!("s{number}"), env))
                .await
                .unwrap();
            messages += quick.read_tasks(&mut tasks, number).await.0;
        }
        assert!(messages >= SERVICES, "one by one: {messages}");

        let mut tasks = BTreeSet::new();
        let (messages, _) = slow.read_tasks(&mut tasks, SERVICES).await;
        assert!(messages < SERVICES * 3 / 4, "the rest in one: {messages}");
        for identity in [&one, &two] {
            let node = manager.state().node(&identity.peer().node_id).cloned();
            assert_eq!(node.unwrap().status.state, NodeState::Ready);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_task_is_on_its_way_is_seen_on_every_manager_and_written_on_none() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        let identity = worker(&cluster).await;
        let mut agent = SlowAgent::open(&cluster, &identity, "").await;
        until_ready(&cluster, 1).await;
        cluster
            .manager(1)
            .write(everywhere("web", "A=b".to_owned()))
            .await
            .unwrap();
        let mut tasks = BTreeSet::new();
        agent.read_tasks(&mut tasks, 1).await;
        let task: TaskId = tasks.pop_first().unwrap().parse().unwrap();
        let before = cluster.manager(1).latest().await.unwrap();
        for state in [
            TaskState::Accepted,
            TaskState::Preparing,
            TaskState::Starting,
        ] {
            agent.report(&task, state).await;
            for place in [0, 1] {
                let passing = cluster.manager(place).passing().await;
                assert_eq!(passing[&task].state, state, "manager {place}");
            }
        }
        let after = cluster.manager(1).latest().await.unwrap();
        let written = |state: &State| state.task(&task).unwrap().status.clone();
        assert_eq!(written(&after), written(&before));
        assert_eq!(written(&after).state, TaskState::Assigned);
        agent.report(&task, TaskState::Running).await;
        until(cluster.manager(1), |state| {
            written(state).state == TaskState::Running
        })
        .await;
        // The one that leads has heard it from itself by the time that it has answered.
        assert!(cluster.manager(1).passing().await.is_empty());
    })
    .await;
}
