//! Managers with real ports, certificates and files, on loopback.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

use shoal_api::{
    NodeId,
    object::{NodeDescription, ObjectKey},
    spec::{Annotations, Availability, ClusterSpec, ConfigSpec, NodeRole},
};
use shoal_ca::{Role, RootCa};
use tempfile::TempDir;

mod dispatch;
mod forward;
mod hostile;
mod renewal;
mod sessions;

use super::*;
use crate::{
    core::control::Spec,
    io::grpc::client::{JoinError, join_cluster, renew_identity},
};
use shoal_api::wire::{RaftJoinRequest, control_client::ControlClient};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Cluster {
    directory: TempDir,
    managers: Vec<Option<(Manager, NodeIdentity, ManagerConfig)>>,
}

/// A port that nobody uses now.
async fn free_port() -> SocketAddr {
    TcpListener::bind((LOOPBACK, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn config(directory: &Path) -> ManagerConfig {
    let listen = free_port().await;
    fs::create_dir_all(directory).unwrap();
    ManagerConfig {
        directory: directory.to_owned(),
        listen,
        advertise: listen.to_string(),
        lock: None,
        raft: RaftConfig {
            tick: Duration::from_millis(20),
            ..RaftConfig::default()
        },
    }
}

impl Drop for Cluster {
    /// Whoever still writes when the directory goes ends the whole program.
    fn drop(&mut self) {
        let managers = self.managers.iter().flatten();
        let rafts = managers.map(|(manager, ..)| manager.desk.store.raft().clone());
        crate::io::raft::tests::halt_all(rafts.collect());
    }
}

impl Cluster {
    async fn found() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("0")).await;
        let founding = NewCluster {
            spec: ClusterSpec::default(),
            availability: Availability::Active,
            description: NodeDescription {
                hostname: "first".into(),
                ..NodeDescription::default()
            },
            address: LOOPBACK,
            advertise: config.advertise.clone(),
        };
        let Founding {
            identity, state, ..
        } = founding.found().unwrap();
        let manager = Manager::start(config.clone(), identity.clone(), Begin::Found { state })
            .await
            .unwrap();
        Self {
            directory,
            managers: vec![Some((manager, identity, config))],
        }
    }

    fn manager(&self, place: usize) -> &Manager {
        &self.managers[place].as_ref().unwrap().0
    }

    fn remote(&self) -> String {
        self.manager(0).address().to_string()
    }

    async fn admit(&self, token: &str) -> Result<NodeIdentity, JoinError> {
        join_cluster(&self.remote(), token, "joiner", Availability::Active).await
    }

    async fn join_manager(&mut self) -> usize {
        let (_, token) = self.manager(0).join_tokens().unwrap();
        let identity = self.admit(&token).await.unwrap();
        self.join_manager_as(identity).await
    }

    async fn join_manager_as(&mut self, identity: NodeIdentity) -> usize {
        let place = self.managers.len();
        let config = config(&self.directory.path().join(place.to_string())).await;
        let begin = Begin::Join {
            managers: vec![self.remote()],
        };
        let manager = Manager::start(config.clone(), identity.clone(), begin)
            .await
            .unwrap();
        self.managers.push(Some((manager, identity, config)));
        let raft_id = self.manager(place).desk.store.raft().raft_id();
        self.manager(0)
            .members()
            .wait_for(|members| members.is_voter(raft_id))
            .await
            .unwrap();
        place
    }

    async fn stop(&mut self, place: usize) -> (NodeIdentity, ManagerConfig) {
        let (manager, identity, config) = self.managers[place].take().unwrap();
        manager.stop().await;
        (identity, config)
    }
}

fn config_object(name: &str) -> Intent {
    Intent::Create(Spec::Config(ConfigSpec {
        annotations: Annotations {
            name: name.into(),
            ..Annotations::default()
        },
        data: b"content".to_vec(),
        templating: None,
    }))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the cluster came to a standstill")
}

/// Waits until a manager's state is as wanted.
async fn until(manager: &Manager, wanted: impl Fn(&State) -> bool) {
    let mut watch = manager.watch();
    let mut state = manager.state();
    while !wanted(&state) {
        watch.next().await;
        state = manager.state();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founded_cluster_takes_writes_and_survives_a_restart() {
    within(async {
        let mut cluster = Cluster::found().await;
        let written = cluster
            .manager(0)
            .write(config_object("motd"))
            .await
            .unwrap()
            .unwrap();
        let twice = cluster
            .manager(0)
            .write(config_object("motd"))
            .await
            .unwrap_err();
        assert!(matches!(twice, WriteError::Refused(_)), "{twice:?}");
        let tokens = cluster.manager(0).join_tokens();
        let (identity, config) = cluster.stop(0).await;
        assert!(Manager::has_log(&config.directory, &identity, None).unwrap());
        let manager = Manager::start(config, identity, Begin::Restart)
            .await
            .unwrap();
        assert_eq!(
            manager.latest().await.unwrap().object(&written.key()),
            Some(written)
        );
        assert_eq!(manager.join_tokens(), tokens);
        manager.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_admits_to_its_role_and_nothing_else_does() {
    within(async {
        let cluster = Cluster::found().await;
        let (worker, manager) = cluster.manager(0).join_tokens().unwrap();
        let identity = cluster.admit(&worker).await.unwrap();
        assert_eq!(identity.peer().role, Role::Worker);
        let node = cluster
            .manager(0)
            .state()
            .node(&identity.peer().node_id)
            .cloned()
            .unwrap();
        assert_eq!(
            (node.role, node.description.hostname.as_str()),
            (NodeRole::Worker, "joiner")
        );
        assert_eq!(
            cluster.admit(&manager).await.unwrap().peer().role,
            Role::Manager
        );

        let wrong_secret = format!("{}{}", &worker[..worker.len() - 25], "0".repeat(25));
        let refused = cluster.admit(&wrong_secret).await.unwrap_err();
        assert_eq!(refused.to_string(), "invalid join token");
        let other = RootCa::create(std::time::SystemTime::now())
            .unwrap()
            .new_join_token()
            .reveal();
        let refused = cluster.admit(&other).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("does not match the join token"),
            "{refused}"
        );

        cluster
            .manager(0)
            .write(Intent::RotateTokens {
                unlock_key: false,
                worker: true,
                manager: false,
            })
            .await
            .unwrap();
        assert_eq!(
            cluster.admit(&worker).await.unwrap_err().to_string(),
            "invalid join token"
        );
        cluster.admit(&manager).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_not_do_a_managers_work() {
    within(async {
        let cluster = Cluster::found().await;
        let (worker, _) = cluster.manager(0).join_tokens().unwrap();
        let identity = cluster.admit(&worker).await.unwrap();
        let tls = client_config(identity.root(), Some(&identity)).unwrap();
        let write = ControlClient::new(client::dial(&cluster.remote(), tls.clone()))
            .write(Request::new((&config_object("x")).into()))
            .await;
        assert_eq!(write.unwrap_err().code(), tonic::Code::PermissionDenied);
        let join = RaftMembershipClient::new(client::dial(&cluster.remote(), tls.clone()))
            .join(Request::new(RaftJoinRequest {
                addr: "127.0.0.1:1".into(),
                raft_id: 0,
            }))
            .await;
        assert_eq!(join.unwrap_err().code(), tonic::Code::PermissionDenied);
        let anonymous = client_config(identity.root(), None).unwrap();
        let write = ControlClient::new(client::dial(&cluster.remote(), anonymous))
            .write(Request::new((&config_object("x")).into()))
            .await;
        assert_eq!(write.unwrap_err().code(), tonic::Code::Unauthenticated);

        // Renewal works for as long as the node is part of the cluster.
        let renewed = renew_identity(&[cluster.remote()], &identity)
            .await
            .unwrap();
        assert_eq!(renewed.peer().node_id, identity.peer().node_id);
        assert_ne!(renewed.peer().serial, identity.peer().serial);
        let key = ObjectKey::Node(identity.peer().node_id.clone());
        cluster
            .manager(0)
            .write(Intent::Remove { key, force: true })
            .await
            .unwrap();
        let refused = renew_identity(&[cluster.remote()], &identity)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("was removed from the cluster"),
            "{refused}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_share_one_state_and_outlive_their_leader() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        cluster.join_manager().await;
        // A follower forwards, and everyone reads what was written.
        let written = cluster
            .manager(2)
            .write(config_object("a"))
            .await
            .unwrap()
            .unwrap();
        for place in 0..3 {
            let state = cluster.manager(place).latest().await.unwrap();
            assert_eq!(state.object(&written.key()), Some(written.clone()));
            until(cluster.manager(place), |state| {
                state
                    .nodes()
                    .filter(|node| node.role == NodeRole::Manager && node.manager.is_some())
                    .count()
                    == 3
            })
            .await;
        }
        let leader = cluster.manager(0).leadership().borrow().leader.unwrap();
        let (identity, config) = cluster.stop(usize::try_from(leader).unwrap() - 1).await;
        let left: Vec<_> = cluster.managers.iter().flatten().collect();
        left[0].0.write(config_object("b")).await.unwrap();
        left[1].0.write(config_object("c")).await.unwrap();
        let back = Manager::start(config, identity, Begin::Restart)
            .await
            .unwrap();
        assert_eq!(back.latest().await.unwrap().configs().count(), 3);
        back.leave().await.unwrap();
        back.stop().await;
        until(&left[0].0, |state| {
            state.nodes().filter(|node| node.manager.is_some()).count() == 2
        })
        .await;
        left[1].0.write(config_object("d")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_manager_leaves_the_group() {
    within(async {
        let mut cluster = Cluster::found().await;
        let place = cluster.join_manager().await;
        let id = cluster.managers[place]
            .as_ref()
            .unwrap()
            .1
            .peer()
            .node_id
            .clone();
        let role = |role| {
            let node = cluster.manager(0).state().node(&id).cloned().unwrap();
            let mut spec = node.spec.clone();
            spec.role = role;
            Intent::Update {
                key: ObjectKey::Node(id.clone()),
                version: node.meta.version,
                spec: Spec::Node(spec),
            }
        };
        until(cluster.manager(0), |state| {
            state.node(&id).unwrap().manager.is_some()
        })
        .await;
        cluster
            .manager(0)
            .write(role(NodeRole::Worker))
            .await
            .unwrap();
        until(cluster.manager(0), |state| {
            let node = state.node(&id).unwrap();
            node.role == NodeRole::Worker && node.manager.is_none()
        })
        .await;
        let identity = cluster.managers[place].as_ref().unwrap().1.clone();
        let renewed = renew_identity(&[cluster.remote()], &identity)
            .await
            .unwrap();
        assert_eq!(renewed.peer().role, Role::Worker);
    })
    .await;
}

/// Changes the cluster's own settings.
async fn set_cluster(manager: &Manager, change: impl Fn(&mut ClusterSpec)) {
    let state = manager.latest().await.unwrap();
    let cluster = state.cluster().unwrap();
    let mut spec = cluster.spec.clone();
    change(&mut spec);
    let update = Intent::Update {
        key: ObjectKey::Cluster,
        version: cluster.meta.version,
        spec: Spec::Cluster(spec),
    };
    manager.write(update).await.unwrap();
}

async fn write_numbered(manager: &Manager, number: usize) {
    let config = config_object(&format!("c{number}"));
    manager.write(config).await.unwrap();
}

/// Snapshots that a manager has.
fn snapshots(config: &ManagerConfig) -> Vec<String> {
    let names = fs::read_dir(config.directory.join("raft")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("snap-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_as_frequent_as_the_cluster_says_and_travel_in_pieces() {
    within(async {
        let mut cluster = Cluster::found().await;
        let config = cluster.managers[0].as_ref().unwrap().2.clone();
        let first = snapshots(&config);
        // Several times as much as goes into one chunk.
        for number in 0..4 {
            let Intent::Create(Spec::Config(mut spec)) = config_object(&format!("large{number}"))
            else {
                panic!("a config is made")
            };
            spec.data = vec![b'x'; 900 << 10];
            let large = Intent::Create(Spec::Config(spec));
            cluster.manager(0).write(large).await.unwrap();
        }
        for number in 0..20 {
            write_numbered(cluster.manager(0), number).await;
        }
        assert_eq!(snapshots(&config), first);
        set_cluster(cluster.manager(0), |spec| spec.snapshot_interval = 10).await;
        // Written down beside the writes, each about as large as what was written since the one before.
        let mut number = 20;
        while snapshots(&config) == first {
            write_numbered(cluster.manager(0), number).await;
            number += 1;
        }
        // A manager that comes later begins with one.
        let place = cluster.join_manager().await;
        let state = cluster.manager(place).latest().await.unwrap();
        assert_eq!(state.configs().count(), 4 + number);
        let joined = cluster.managers[place].as_ref().unwrap().2.clone();
        assert!(!snapshots(&joined).is_empty());
    })
    .await;
}

async fn demotion(manager: &Manager, id: &NodeId) -> Intent {
    let state = manager.latest().await.unwrap();
    let node = state.node(id).unwrap();
    let mut spec = node.spec.clone();
    spec.role = NodeRole::Worker;
    Intent::Update {
        key: ObjectKey::Node(id.clone()),
        version: node.meta.version,
        spec: Spec::Node(spec),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_removed_in_its_absence_is_told() {
    within(async {
        let mut cluster = Cluster::found().await;
        let place = cluster.join_manager().await;
        cluster.join_manager().await;
        let (identity, config) = cluster.stop(place).await;
        let id = &identity.peer().node_id;
        let demote = demotion(cluster.manager(0), id).await;
        cluster.manager(0).write(demote).await.unwrap();
        until(cluster.manager(0), |state| {
            state.node(id).unwrap().role == NodeRole::Worker
        })
        .await;
        let back = Manager::start(config, identity.clone(), Begin::Restart);
        let back = back.await.unwrap();
        let mut leadership = back.leadership();
        leadership.wait_for(|now| now.is_removed).await.unwrap();
        back.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_leader_is_removed_by_the_next_one() {
    within(async {
        let mut cluster = Cluster::found().await;
        let others = [cluster.join_manager().await, cluster.join_manager().await];
        let founder = cluster.managers[0].as_ref().unwrap().1.clone();
        let id = &founder.peer().node_id;
        let demote = demotion(cluster.manager(0), id).await;
        cluster.manager(0).write(demote).await.unwrap();
        for place in others {
            until(cluster.manager(place), |state| {
                let node = state.node(id).unwrap();
                node.role == NodeRole::Worker && node.manager.is_none()
            })
            .await;
        }
        let remotes = others.map(|place| cluster.manager(place).address().to_string());
        let renewed = renew_identity(&remotes, &founder).await.unwrap();
        assert_eq!(renewed.peer().role, Role::Worker);
    })
    .await;
}
