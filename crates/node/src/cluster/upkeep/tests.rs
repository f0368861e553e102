use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::SystemTime,
};

use shoal_api::{
    object::{NodeDescription, ObjectKey},
    spec::{Availability, ClusterSpec},
};
use shoal_ca::{NodeKey, RootCa, Subject};
use shoal_manager::{Founding, Intent, Manager, NewCluster, Spec, State, join_cluster};
use tempfile::TempDir;

use super::*;
use crate::cluster::membership::{Membership, MembershipFiles, Stored};

const NOW: Timestamp = Timestamp(1_000_000_000_000);

fn facts(certified: Role, assigned: Option<Role>, runs_manager: bool) -> Facts {
    Facts {
        certified,
        assigned,
        runs_manager,
        is_expelled: false,
        lock_differs: false,
        root_differs: false,
        issuer_differs: false,
        renew_at: NOW + Duration::from_secs(1_000),
    }
}

fn step(facts: &Facts) -> Step {
    Pauses::default().next_step(facts, NOW)
}

#[test]
fn a_node_whose_role_is_in_force_waits_for_its_renewal() {
    for (role, runs_manager) in [(Role::Worker, false), (Role::Manager, true)] {
        for assigned in [None, Some(role)] {
            let mut facts = facts(role, assigned, runs_manager);
            assert_eq!(step(&facts), Step::WaitUntil(facts.renew_at));
            facts.renew_at = NOW;
            assert_eq!(step(&facts), Step::Do(Need::Renewal));
        }
    }
}

#[test]
fn a_promotion_is_a_certificate_and_then_a_manager() {
    let promoted = Some(Role::Manager);
    let steps = [
        step(&facts(Role::Worker, promoted, false)),
        step(&facts(Role::Manager, promoted, false)),
        step(&facts(Role::Manager, None, false)),
    ];
    let manager = Step::Do(Need::Manager);
    assert_eq!(steps, [Step::Do(Need::Role), manager, manager]);
}

#[test]
fn a_demotion_is_a_certificate_and_then_no_manager() {
    let demoted = Some(Role::Worker);
    let steps = [
        step(&facts(Role::Manager, demoted, true)),
        step(&facts(Role::Worker, demoted, true)),
        step(&facts(Role::Worker, None, true)),
    ];
    let no_manager = Step::Do(Need::NoManager);
    assert_eq!(steps, [Step::Do(Need::Role), no_manager, no_manager]);
}

#[test]
fn a_manager_that_was_expelled_begins_anew() {
    let mut facts = facts(Role::Manager, Some(Role::Manager), true);
    facts.is_expelled = true;
    assert_eq!(step(&facts), Step::Do(Need::NoManager));
    (facts.runs_manager, facts.is_expelled) = (false, false);
    assert_eq!(step(&facts), Step::Do(Need::Manager));
}

#[test]
fn failures_are_repeated_after_growing_pauses() {
    let mut pauses = Pauses::default();
    let due = Facts {
        renew_at: NOW,
        ..facts(Role::Worker, None, false)
    };
    let mut now = NOW;
    let mut lengths = Vec::new();
    for _ in 0..12 {
        assert_eq!(pauses.next_step(&due, now), Step::Do(Need::Renewal));
        pauses.failed(Need::Renewal, now);
        let Step::WaitUntil(at) = pauses.next_step(&due, now) else {
            panic!("no pause");
        };
        lengths.push(at.since(now).as_secs());
        now = at;
    }
    assert_eq!(
        lengths,
        [5, 10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600]
    );
    pauses.met(Need::Renewal);
    pauses.failed(Need::Renewal, now);
    assert_eq!(
        pauses.next_step(&due, now),
        Step::WaitUntil(now + PAUSE_MIN)
    );
}

#[test]
fn what_fails_does_not_keep_the_rest_waiting() {
    let mut pauses = Pauses::default();
    let mut stuck = facts(Role::Manager, None, false);
    pauses.failed(Need::Manager, NOW);
    assert_eq!(
        pauses.next_step(&stuck, NOW),
        Step::WaitUntil(NOW + PAUSE_MIN)
    );
    stuck.renew_at = NOW;
    assert_eq!(pauses.next_step(&stuck, NOW), Step::Do(Need::Renewal));
    pauses.failed(Need::Renewal, NOW);
    pauses.end();
    assert_eq!(pauses.next_step(&stuck, NOW), Step::Do(Need::Manager));
}

#[test]
fn only_a_session_says_which_role_is_in_force() {
    assert_eq!(assigned_role(&SessionState::default()), None);
}

#[test]
fn managers_are_asked_once() {
    let managers = ["a:1", "b:1", "a:1", "own:1"].map(str::to_owned);
    assert_eq!(without_repeats(managers.to_vec(), "own:1"), ["a:1", "b:1"]);
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port that nobody uses now.
fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a port");
    listener.local_addr().expect("it listens")
}

fn membership(managers: &[String]) -> Membership {
    let address = free_port();
    Membership {
        listen: address,
        advertise: address,
        data_path: LOOPBACK,
        is_own_address: true,
        managers: managers.to_vec(),
    }
}

fn files(directory: &TempDir, name: &str) -> MembershipFiles {
    MembershipFiles::new(directory.path().join(name))
}

fn load(files: &MembershipFiles) -> (NodeIdentity, Membership) {
    match files.load(None).expect("readable") {
        Stored::Open(identity, membership) => (*identity, membership),
        stored => panic!("a membership, not {stored:?}"),
    }
}

/// A cluster of one manager, without an agent.
async fn found(directory: &TempDir) -> Seat {
    let membership = membership(&[]);
    let founding = NewCluster {
        spec: ClusterSpec::default(),
        availability: Availability::Active,
        description: NodeDescription::default(),
        address: LOOPBACK,
        advertise: membership.advertise.to_string(),
    };
    let Founding {
        identity, state, ..
    } = founding.found().expect("a cluster");
    let seat = Seat::new(
        files(directory, "founder"),
        identity,
        membership,
        None,
        Default::default(),
    )
    .expect("a seat");
    let begun = seat.start_manager(Begin::Found { state }).await;
    begun.expect("the first manager");
    seat
}

/// A certificate of the same node that is to be renewed since long.
fn aged(state: &State, identity: &NodeIdentity) -> NodeIdentity {
    let cluster = state.cluster().expect("there is one");
    let ca = RootCa::from_pem(&cluster.root_ca_cert, &cluster.root_ca_key).expect("a root");
    let subject = Subject {
        node_id: identity.peer().node_id.clone(),
        role: identity.peer().role,
        cluster_id: cluster.id.clone(),
    };
    let key = NodeKey::generate().expect("a key");
    let request = key.request_pem().expect("a request");
    let hour = Duration::from_secs(3_600);
    let long_ago = SystemTime::now() - hour + Duration::from_secs(60);
    let certificate = ca.issue(&request, &subject, hour, long_ago);
    let certificate = certificate.expect("a certificate");
    NodeIdentity::new(identity.root().clone(), certificate, key.pem()).expect("an identity")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(Duration::from_secs(60), future).await;
    ended.expect("the membership came to a standstill")
}

/// Gives the node a role and says what comes of it as a session would, until it is in force.
async fn assign(
    founder: &Manager,
    seat: &Seat,
    role: NodeRole,
    session: &watch::Sender<SessionState>,
) {
    let id = seat.identity().peer().node_id.clone();
    let state = founder.latest().await.expect("a leader");
    let node = state.node(&id).expect("it joined");
    let mut spec = node.spec.clone();
    spec.role = role;
    let intent = Intent::Update {
        key: ObjectKey::Node(id.clone()),
        version: node.meta.version,
        spec: Spec::Node(spec),
    };
    let mut watch = founder.watch();
    founder.write(intent).await.expect("a role");
    let mut state = founder.state();
    loop {
        let node = state.node(&id).expect("it stays");
        session.send_modify(|told| {
            told.managers = founder.manager_addresses();
            told.manager = told.managers.first().cloned();
            told.node = Some(node.as_ref().clone());
        });
        if node.role == role {
            return;
        }
        watch.next().await;
        state = founder.state();
    }
}

async fn until(wanted: impl Fn() -> bool) {
    while !wanted() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_renewed_promoted_and_demoted() {
    within(async {
        let directory = tempfile::tempdir().expect("a directory");
        let founder = found(&directory).await;
        let manager = founder.manager().expect("it runs");
        let state = manager.latest().await.expect("a leader");
        let remote = founder.membership().advertise.to_string();
        let (token, _) = manager.join_tokens().expect("a cluster");
        let joined = join_cluster(&remote, &token, "worker", Availability::Active).await;
        let aged = aged(&state, &joined.expect("admitted"));
        let serial = aged.peer().serial.clone();

        let files = files(&directory, "worker");
        let seat = Seat::new(
            files.clone(),
            aged,
            membership(&[remote]),
            None,
            Default::default(),
        )
        .expect("a seat");
        files.save(&seat.membership()).expect("saved");
        let seat = Arc::new(seat);
        let session = watch::Sender::new(SessionState::default());
        let mut tls = seat.tls();
        let upkeep = Upkeep::start(Arc::clone(&seat), session.subscribe());
        tls.changed().await.expect("a renewal");
        let (kept, _) = load(&files);
        assert_ne!(kept.peer().serial, serial);
        assert_eq!(kept.peer().role, Role::Worker);

        assign(&manager, &seat, NodeRole::Manager, &session).await;
        until(|| seat.manager().is_some()).await;
        let promoted = seat.manager().expect("it runs");
        promoted.latest().await.expect("it takes part");
        let raft_id = manager.members().borrow().id_of(&kept.peer().node_id);
        let mut members = manager.members();
        let votes = members.wait_for(|now| raft_id.is_some_and(|id| now.is_voter(id)));
        drop(votes.await.expect("it votes"));

        assign(&manager, &seat, NodeRole::Worker, &session).await;
        let is_worker = || seat.identity().peer().role == Role::Worker;
        until(|| is_worker() && seat.manager().is_none() && !files.manager().exists()).await;
        until(|| seat.trouble().is_none()).await;
        let (kept, membership) = load(&files);
        assert_eq!(kept.peer().role, Role::Worker);
        assert_eq!(membership.managers, manager.manager_addresses());
        upkeep.stop().await;
        founder.stop_manager().await;
    })
    .await;
}
