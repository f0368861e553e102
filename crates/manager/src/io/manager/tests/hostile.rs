//! Callers that want more than they may have.

use shoal_api::{
    TaskId, TaskState,
    object::TaskStatus,
    spec::SecretSpec,
    wire::{
        AssignmentsRequest, IssueNodeCertificateRequest, RaftMessage, SessionMessage,
        SessionRequest, SnapshotChunk, StreamMessagesResponse, SubscribeLogsRequest,
        UpdateTaskStatusRequest, WriteRequest, assignment_change::Item,
        dispatcher_client::DispatcherClient, logs_client::LogsClient, node_ca_client::NodeCaClient,
        raft_client::RaftClient, update_task_status_request::Update,
    },
};
use shoal_ca::{NodeKey, Subject};
use tonic::{Code, Response, transport::Channel};

use super::*;
use crate::core::{consensus::wire::encode_message, fixture};

fn channel(cluster: &Cluster, identity: Option<&NodeIdentity>) -> Channel {
    let root = cluster.managers[0].as_ref().unwrap().1.root().clone();
    client::dial(&cluster.remote(), client_config(&root, identity).unwrap())
}

/// Opens a session; gives its id and the stream that keeps it open.
async fn open(
    cluster: &Cluster,
    identity: &NodeIdentity,
) -> (
    String,
    DispatcherClient<Channel>,
    tonic::Streaming<SessionMessage>,
) {
    let mut client = DispatcherClient::new(channel(cluster, Some(identity)));
    let description = fixture::node("n").description;
    let request = SessionRequest {
        description: Some((&description).into()),
        ..SessionRequest::default()
    };
    let mut messages = client.session(request).await.unwrap().into_inner();
    let id = messages.message().await.unwrap().unwrap().session_id;
    (id, client, messages)
}

fn secret(name: &str) -> Intent {
    Intent::Create(Spec::Secret(SecretSpec {
        annotations: Annotations {
            name: name.into(),
            ..Annotations::default()
        },
        data: b"the crown jewels".to_vec(),
        ..SecretSpec::default()
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_worker_gets_nothing_that_is_not_its_own() {
    within(async {
        let cluster = Cluster::found().await;
        let manager = cluster.manager(0);
        let (token, _) = manager.join_tokens().unwrap();
        let honest = cluster.admit(&token).await.unwrap();
        let hostile = cluster.admit(&token).await.unwrap();

        // A service with a secret runs on the honest node alone.
        let ObjectKey::Secret(secret_id) = manager
            .write(secret("jewels"))
            .await
            .unwrap()
            .unwrap()
            .key()
        else {
            panic!("a secret was made")
        };
        let mut spec = fixture::service("vault", 1);
        spec.task.container.secrets = vec![shoal_api::spec::SecretReference {
            id: secret_id.clone(),
            name: "jewels".into(),
            target: shoal_api::spec::FileTarget {
                name: "jewels".into(),
                ..Default::default()
            },
        }];
        spec.task.placement.constraints = vec![format!("node.id=={}", honest.peer().node_id)];
        manager
            .write(Intent::Create(Spec::Service(Box::new(spec))))
            .await
            .unwrap();
        let (honest_session, mut honest_client, _messages) = open(&cluster, &honest).await;
        until(manager, |state| {
            state
                .tasks()
                .any(|task| task.status.state == TaskState::Assigned)
        })
        .await;
        let task: TaskId = manager.state().tasks().next().unwrap().id.clone();

        let own = |session_id: String| AssignmentsRequest { session_id };
        let mut stream = honest_client
            .assignments(own(honest_session.clone()))
            .await
            .unwrap()
            .into_inner();
        let mut seen = Vec::new();
        while !seen.iter().any(|item| matches!(item, Item::Task(_))) {
            let message = stream.message().await.unwrap().unwrap();
            seen.extend(
                message
                    .read_changes()
                    .unwrap()
                    .into_iter()
                    .filter_map(|change| change.item),
            );
        }
        assert!(
            seen.iter().any(
                |item| matches!(item, Item::Secret(secret) if secret.id == secret_id.as_str())
            )
        );

        // The hostile one sees neither task nor secret, under its own session or under the other's.
        let (session, mut client, _messages) = open(&cluster, &hostile).await;
        let mut stream = client
            .assignments(own(session.clone()))
            .await
            .unwrap()
            .into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert!(first.changes.is_empty(), "{:?}", first.changes);
        let stolen = client
            .assignments(own(honest_session.clone()))
            .await
            .unwrap_err();
        assert_eq!(stolen.code(), Code::NotFound);

        // What it says of another's task is not taken down.
        let lie = |session_id: String| UpdateTaskStatusRequest {
            session_id,
            updates: vec![Update {
                task_id: task.to_string(),
                status: Some(
                    (&TaskStatus {
                        state: TaskState::Failed,
                        at: Timestamp::now(),
                        ..TaskStatus::default()
                    })
                        .into(),
                ),
            }],
        };
        client.update_task_status(lie(session)).await.unwrap();
        let refused = client
            .update_task_status(lie(honest_session))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(
            manager
                .latest()
                .await
                .unwrap()
                .task(&task)
                .unwrap()
                .status
                .state,
            TaskState::Assigned
        );

        // Doors for managers stay shut.
        let denied = |answer: Result<(), Status>| {
            assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied)
        };
        let line = channel(&cluster, Some(&hostile));
        denied(
            ControlClient::new(line.clone())
                .write(WriteRequest::default())
                .await
                .map(drop),
        );
        denied(
            LogsClient::new(line.clone())
                .subscribe_logs(SubscribeLogsRequest::default())
                .await
                .map(drop),
        );
        let nothing = tokio_stream::empty();
        let streamed: Result<Response<StreamMessagesResponse>, _> =
            RaftClient::new(line.clone()).stream_messages(nothing).await;
        denied(streamed.map(drop));
        let join = RaftJoinRequest {
            addr: "127.0.0.1:1".into(),
            raft_id: 1,
        };
        denied(
            RaftMembershipClient::new(line.clone())
                .join(join)
                .await
                .map(drop),
        );
        let leave = RaftLeaveRequest {
            node_id: honest.peer().node_id.to_string(),
        };
        denied(RaftMembershipClient::new(line).leave(leave).await.map(drop));

        // A certificate for another node or role it does not get, whatever its request says.
        let key = NodeKey::generate().unwrap();
        let request = IssueNodeCertificateRequest {
            csr_pem: key.request_pem().unwrap(),
            ..Default::default()
        };
        let mut ca = NodeCaClient::new(channel(&cluster, Some(&hostile)));
        let issued = ca
            .issue_node_certificate(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (issued.node_id.as_str(), issued.role),
            (hostile.peer().node_id.as_str(), 0)
        );
        // Nor without a certificate or a token, nor by a request that is replayed for another's key: what comes back is a
        // certificate for that key, and whoever replays has not got it.
        let mut nobody = NodeCaClient::new(channel(&cluster, None));
        let refused = nobody
            .issue_node_certificate(request.clone())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let again = ca
            .issue_node_certificate(request)
            .await
            .unwrap()
            .into_inner();
        let other = NodeKey::generate().unwrap();
        NodeIdentity::new(hostile.root().clone(), again.certificate_pem, other.pem()).unwrap_err();

        // An oversize request is not read to its end.
        let huge = IssueNodeCertificateRequest {
            csr_pem: "x".repeat(1 << 20),
            ..Default::default()
        };
        let refused = nobody.issue_node_certificate(huge).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_and_one_of_another_cluster_open_nothing() {
    within(async {
        let (cluster, other) = (Cluster::found().await, Cluster::found().await);
        let (token, _) = cluster.manager(0).join_tokens().unwrap();
        let foreign = other.managers[0].as_ref().unwrap().1.clone();
        // It meets a manager that it does not believe, and that does not believe it.
        let tls = client_config(foreign.root(), Some(&foreign)).unwrap();
        let mut client = DispatcherClient::new(client::dial(&cluster.remote(), tls));
        assert_eq!(
            client
                .session(SessionRequest::default())
                .await
                .unwrap_err()
                .code(),
            Code::Unavailable
        );
        let trusting = client_config(
            cluster.managers[0].as_ref().unwrap().1.root(),
            Some(&foreign),
        )
        .unwrap();
        let mut client = DispatcherClient::new(client::dial(&cluster.remote(), trusting));
        client.session(SessionRequest::default()).await.unwrap_err();
        let refused = join_cluster(&other.remote(), &token, "lost", Availability::Active)
            .await
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the remote cluster's root certificate does not match the join token"
        );

        // Of this cluster, and too old.
        let state = cluster.manager(0).state();
        let known = cluster.admit(&token).await.unwrap();
        let root = state.cluster().unwrap();
        let ca = RootCa::from_pem(&root.root_ca_cert, &root.root_ca_key).unwrap();
        let key = NodeKey::generate().unwrap();
        let subject = Subject {
            node_id: known.peer().node_id.clone(),
            role: Role::Worker,
            cluster_id: root.id.clone(),
        };
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7_200);
        let hour = Duration::from_secs(3_600);
        let pem = ca
            .issue(&key.request_pem().unwrap(), &subject, hour, long_ago)
            .unwrap();
        let expired = NodeIdentity::new(known.root().clone(), pem, key.pem()).unwrap();
        let mut client = DispatcherClient::new(channel(&cluster, Some(&expired)));
        client.session(SessionRequest::default()).await.unwrap_err();
        let renewed = renew_identity(&[cluster.remote()], &expired).await;
        assert!(renewed.is_err(), "an expired certificate renews nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_guesses_tokens_is_made_to_wait() {
    within(async {
        let cluster = Cluster::found().await;
        let (token, _) = cluster.manager(0).join_tokens().unwrap();
        let wrong = format!("{}{}", &token[..token.len() - 25], "0".repeat(25));
        for _ in 0..20 {
            let refused = cluster.admit(&wrong).await.unwrap_err().to_string();
            assert_eq!(refused, "invalid join token");
        }
        let refused = cluster.admit(&wrong).await.unwrap_err().to_string();
        assert!(
            refused.starts_with("too many failed attempts to join from 127.0.0.1"),
            "{refused}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_manager_is_a_worker_whatever_its_certificate_says() {
    within(async {
        let mut cluster = Cluster::found().await;
        let place = cluster.join_manager().await;
        let identity = cluster.managers[place].as_ref().unwrap().1.clone();
        let id = identity.peer().node_id.clone();
        let manager = cluster.manager(0);
        until(manager, |state| {
            state.node(&id).is_some_and(|node| node.manager.is_some())
        })
        .await;
        let node = manager.latest().await.unwrap().node(&id).cloned().unwrap();
        let mut spec = node.spec.clone();
        spec.role = NodeRole::Worker;
        let demote = Intent::Update {
            key: ObjectKey::Node(id.clone()),
            version: node.meta.version,
            spec: Spec::Node(spec),
        };
        manager.write(demote).await.unwrap();
        until(manager, |state| {
            state
                .node(&id)
                .is_some_and(|node| node.role == NodeRole::Worker)
        })
        .await;
        let line = channel(&cluster, Some(&identity));
        let write = ControlClient::new(line.clone())
            .write(WriteRequest::default())
            .await;
        let refused = write.unwrap_err();
        assert_eq!(
            refused.message(),
            format!("node {id} is no longer a manager")
        );
        let join = RaftJoinRequest {
            addr: "127.0.0.1:1".into(),
            raft_id: 0,
        };
        let refused = RaftMembershipClient::new(line)
            .join(join)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_manager_speaks_for_itself_alone() {
    within(async {
        let mut cluster = Cluster::found().await;
        let place = cluster.join_manager().await;
        let identity = cluster.managers[place].as_ref().unwrap().1.clone();
        let (manager, hostile) = (cluster.manager(0), cluster.manager(place));
        let term = manager.leadership().borrow().term;
        let ids = [manager, hostile].map(|manager| manager.desk.store.raft().raft_id());
        // In the name of the leader, and of nobody, from a term that would unseat everyone.
        for (from, addr, code) in [
            (ids[0], "127.0.0.1:1", Code::PermissionDenied),
            (99, "", Code::FailedPrecondition),
        ] {
            let mut message = raft::eraftpb::Message::default();
            message.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
            (message.from, message.to, message.term) = (from, ids[0], u64::MAX);
            let envelope = RaftMessage {
                message: encode_message(&message),
                addr: addr.to_owned(),
                ..RaftMessage::default()
            };
            let mut client = RaftClient::new(channel(&cluster, Some(&identity)));
            let sent = client.stream_messages(tokio_stream::iter([envelope]));
            assert_eq!(sent.await.unwrap_err().code(), code, "from {from}");
        }
        // Half a snapshot is taken over by nobody.
        let mut message = raft::eraftpb::Message::default();
        message.set_msg_type(raft::eraftpb::MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (ids[1], ids[0], term);
        let chunk = SnapshotChunk {
            message: encode_message(&message),
            data: b"half of it".to_vec(),
            digest: vec![7; 32],
            ..SnapshotChunk::default()
        };
        let mut client = RaftClient::new(channel(&cluster, Some(&identity)));
        let sent = client.stream_snapshot(tokio_stream::iter([chunk])).await;
        assert_eq!(sent.unwrap_err().code(), Code::DataLoss);
        manager.write(config_object("after")).await.unwrap();
        assert_eq!(manager.leadership().borrow().term, term);
    })
    .await;
}
