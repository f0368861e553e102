//! Real nodes with real files, over a transport that hands messages from mailbox to mailbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use tempfile::TempDir;

use super::{disk::OsDisk, *};
use crate::core::{
    consensus::wire::{decode_message, encode_message},
    state::Rejected,
};

mod keeping;
mod promises;

/// The applied entries in order; "no" is refused.
#[derive(Debug, Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl StateMachine for Journal {
    fn apply(&mut self, _: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        let line = String::from_utf8(data.to_vec()).unwrap();
        if line == "no" {
            return Err(Rejected::Reference("no means no".into()));
        }
        self.0.lock().unwrap().push(line);
        Ok(())
    }
    fn freeze(&self) -> FrozenState {
        let lines = self.lines();
        Box::new(move |out| out.buffer().extend(lines.join("\n").as_bytes()))
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let text = String::from_utf8(snapshot.to_vec()).map_err(|error| error.to_string())?;
        *self.0.lock().unwrap() = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

/// Everyone's mailbox, and the pairs between which nothing passes.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<Links>>);

type Links = (BTreeMap<RaftId, Mailbox>, BTreeSet<RaftId>);

impl Net {
    fn cut(&self, id: RaftId) {
        self.0.lock().unwrap().1.insert(id);
    }
    fn heal(&self, id: RaftId) {
        self.0.lock().unwrap().1.remove(&id);
    }
}

struct NetPort(Net);

impl Transport for NetPort {
    fn send(&mut self, message: Message) {
        let net = self.0.0.lock().unwrap();
        if net.1.contains(&message.from) || net.1.contains(&message.to) {
            return;
        }
        if let Some(mailbox) = net.0.get(&message.to) {
            let snapshot_to = (message.snapshot.is_some()).then_some((message.from, message.to));
            mailbox.deliver(decode_message(&encode_message(&message)).unwrap(), None);
            if let Some((from, to)) = snapshot_to {
                net.0[&from].report_snapshot(to, true);
            }
        }
    }
    fn set_members(&mut self, _: &Members) {}
    fn add_guest(&mut self, _: RaftId, _: &Member) {}
}

struct Cluster {
    net: Net,
    directory: TempDir,
    config: RaftConfig,
    nodes: BTreeMap<RaftId, (Raft, Journal)>,
}

fn member(number: u64) -> Member {
    Member {
        node_id: format!("node{number}").parse().unwrap(),
        address: format!("10.0.0.{number}:2377"),
    }
}

impl Cluster {
    /// A cluster of one.
    fn new(config: RaftConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            net: Net::default(),
            directory,
            config,
            nodes: BTreeMap::new(),
        };
        cluster.start(
            1,
            Start::Bootstrap {
                member: member(1),
                state: b"genesis".to_vec(),
            },
        );
        cluster
    }

    async fn of_three() -> Self {
        let mut cluster = Self::new(fast());
        for _ in 0..2 {
            let joined = cluster.join().await;
            let mut members = cluster.nodes[&1].0.members();
            members
                .wait_for(|members| members.is_voter(joined))
                .await
                .unwrap();
        }
        cluster
    }

    fn start(&mut self, number: u64, start: Start) {
        let vault = vault(self.directory.path(), number);
        let journal = Journal::default();
        let net = self.net.clone();
        let raft = Raft::start(
            self.config.clone(),
            vault,
            start,
            journal.clone(),
            |mailbox| {
                net.0.lock().unwrap().0.insert(number, mailbox);
                Box::new(NetPort(net.clone()))
            },
        )
        .unwrap();
        assert_eq!(raft.raft_id(), number);
        self.nodes.insert(number, (raft, journal));
    }

    async fn join(&mut self) -> RaftId {
        let number = self.nodes.keys().max().unwrap() + 1;
        let leader = self.leader().await;
        let (raft_id, members) = self.nodes[&leader].0.admit(member(number)).await.unwrap();
        let members = Members::clone(&members);
        self.start(raft_id, Start::Join { raft_id, members });
        raft_id
    }

    /// The node that leads, among those that run.
    async fn leader(&self) -> RaftId {
        let (sender, mut receiver) = mpsc::channel(8);
        let watchers: Vec<_> = self
            .nodes
            .values()
            .map(|(raft, _)| {
                let (raft, sender) = (raft.clone(), sender.clone());
                tokio::spawn(async move {
                    let mut leadership = raft.leadership();
                    if leadership.wait_for(|now| now.is_leader).await.is_ok() {
                        let _ = sender.send(raft.raft_id()).await;
                    }
                })
            })
            .collect();
        let leader = receiver.recv().await.unwrap();
        watchers.iter().for_each(|watcher| watcher.abort());
        leader
    }

    /// Proposes wherever the leader is, until it is accepted.
    async fn write(&self, line: &str) -> LogIndex {
        loop {
            let leader = self.leader().await;
            match self.nodes[&leader].0.propose(line.to_owned()).await {
                Ok(index) => return index,
                Err(ProposeError::NotLeader { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }

    async fn crash(&mut self, number: RaftId) {
        let (raft, _) = self.nodes.remove(&number).unwrap();
        self.net.0.lock().unwrap().0.remove(&number);
        raft.halt().await;
    }
}

/// Waits until none of them writes any more, where nothing can be awaited.
pub(crate) fn halt_all(rafts: Vec<Raft>) {
    let halt = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            for raft in rafts {
                raft.halt().await;
            }
        });
    };
    // On a thread of its own, since the test's is inside a runtime.
    let _ = std::thread::spawn(halt).join();
}

impl Drop for Cluster {
    /// Whoever still writes when the directory goes ends the whole program.
    fn drop(&mut self) {
        halt_all(self.nodes.values().map(|(raft, _)| raft.clone()).collect());
    }
}

fn fast() -> RaftConfig {
    RaftConfig {
        tick: Duration::from_millis(10),
        segment_bytes: 1 << 16,
        // As often as the entries say.
        snapshot_growth_percent: 0,
        ..RaftConfig::default()
    }
}

fn vault(directory: &Path, number: u64) -> Vault {
    Vault {
        disk: Arc::new(OsDisk::open(&directory.join(number.to_string())).unwrap()),
        key: DataKey::new([number as u8; 32]).into(),
        owner: Owner::new(&"cluster1".parse().unwrap(), &member(number).node_id),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the cluster came to a standstill")
}

#[tokio::test]
async fn a_cluster_of_one_leads_at_once_and_remembers() {
    within(async {
        let mut cluster = Cluster::new(RaftConfig {
            tick: Duration::from_secs(3600),
            ..fast()
        });
        let first = cluster.write("a").await;
        assert!(cluster.write("b").await > first);
        let refused = cluster.nodes[&1].0.propose("no").await;
        assert_eq!(
            refused,
            Err(ProposeError::Rejected(Rejected::Reference(
                "no means no".into()
            )))
        );
        assert!(cluster.nodes[&1].0.read_barrier().await.unwrap() > first);
        cluster.crash(1).await;
        cluster.start(1, Start::Restart);
        cluster.write("c").await;
        assert_eq!(cluster.nodes[&1].1.lines(), ["genesis", "a", "b", "c"]);
    })
    .await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_leader_and_a_restart_of_all() {
    within(async {
        let mut cluster = Cluster::of_three().await;
        let mut acknowledged = vec!["genesis".to_owned()];
        for round in 0..3 {
            for number in 0..10 {
                let line = format!("{round}.{number}");
                cluster.write(&line).await;
                acknowledged.push(line);
            }
            let leader = cluster.leader().await;
            cluster.crash(leader).await;
            cluster.write(&format!("{round} without")).await;
            acknowledged.push(format!("{round} without"));
            cluster.start(leader, Start::Restart);
        }
        for number in 1..=3 {
            cluster.crash(number).await;
        }
        for number in 1..=3 {
            cluster.start(number, Start::Restart);
        }
        for (raft, journal) in cluster.nodes.values() {
            while raft.read_barrier().await.is_err() {} // until there is a leader
            assert_eq!(journal.lines(), acknowledged);
        }
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_is_cut_off_acknowledges_nothing() {
    within(async {
        let cluster = Cluster::of_three().await;
        cluster.write("before").await;
        let old = cluster.leader().await;
        let mut leadership = cluster.nodes[&old].0.leadership();
        cluster.net.cut(old);
        let lost = cluster.nodes[&old].0.propose("lost").await;
        assert!(
            matches!(
                lost,
                Err(ProposeError::Lost | ProposeError::NotLeader { .. })
            ),
            "{lost:?}"
        );
        leadership.wait_for(|now| !now.is_leader).await.unwrap();
        cluster.write("after").await;
        cluster.net.heal(old);
        let (raft, journal) = &cluster.nodes[&old];
        while raft.read_barrier().await.is_err() {}
        assert_eq!(journal.lines(), ["genesis", "before", "after"]);
    })
    .await;
}

#[tokio::test]
async fn a_late_joiner_gets_a_snapshot_and_old_segments_go() {
    within(async {
        let mut cluster = Cluster::new(RaftConfig {
            snapshot_entries: 50,
            kept_entries: 5,
            segment_bytes: 1 << 12,
            ..fast()
        });
        for number in 0..200 {
            cluster.write(&format!("line {number}")).await;
        }
        // Snapshots are written beside the writes: the last one, or what it replaces, may be on its way.
        let count = |prefix: &str| {
            let names = vault_names(&cluster, 1);
            names.iter().filter(|name| name.starts_with(prefix)).count()
        };
        while count("wal-") >= 10 || count("snap-") != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let joined = cluster.join().await;
        let (raft, journal) = &cluster.nodes[&joined];
        while raft.read_barrier().await.is_err() {}
        assert_eq!(journal.lines().len(), 201);
        cluster.crash(joined).await;
        cluster.crash(1).await;
        cluster.start(1, Start::Restart);
        cluster.start(joined, Start::Restart);
        cluster.write("the end").await;
        assert_eq!(cluster.nodes[&1].1.lines().len(), 202);
    })
    .await;
}

fn vault_names(cluster: &Cluster, number: u64) -> Vec<String> {
    let directory = cluster.directory.path().join(number.to_string());
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn leadership_is_handed_over_and_ids_are_not_reused() {
    within(async {
        let mut cluster = Cluster::of_three().await;
        cluster.write("a").await;
        let old = cluster.leader().await;
        cluster.nodes[&old].0.transfer().await.unwrap();
        let new = cluster.leader().await;
        assert_ne!(new, old);
        // A new leader has to hear of the others first.
        let remove = async |id| loop {
            match cluster.nodes[&new].0.remove(id).await {
                Err(RemoveError::Refused(_)) => tokio::task::yield_now().await,
                settled => break settled,
            }
        };
        assert_eq!(remove(new).await, Err(RemoveError::IsLeader));
        remove(old).await.unwrap();
        cluster.write("b").await;
        cluster.crash(old).await;
        let leader = cluster.leader().await;
        let (raft_id, members) = cluster.nodes[&leader].0.admit(member(old)).await.unwrap();
        assert_eq!(raft_id, 4);
        assert!(members.was_removed(old));
    })
    .await;
}

#[tokio::test]
async fn the_last_manager_and_a_needed_one_are_not_removed() {
    within(async {
        let mut cluster = Cluster::new(fast());
        cluster.write("a").await;
        let last = cluster.nodes[&1].0.remove(1).await;
        assert!(matches!(last, Err(RemoveError::Refused(_))), "{last:?}");
        cluster.join().await;
        cluster.write("b").await;
        let mut members = cluster.nodes[&1].0.members();
        members
            .wait_for(|members| members.is_voter(2))
            .await
            .unwrap();
    })
    .await;
}

/// Copies the files of a vault whose names begin with one of these.
fn copy(from: &Path, to: &Path, beginnings: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if beginnings
            .iter()
            .any(|beginning| name.starts_with(beginning))
        {
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

#[tokio::test]
async fn after_a_new_data_key_the_old_one_opens_nothing() {
    within(async {
        let mut cluster = Cluster::new(fast());
        for number in 0..50 {
            cluster.write(&number.to_string()).await;
        }
        let root = cluster.directory.path().to_owned();
        let before = root.join("before");
        copy(&root.join("1"), &before, &["wal-", "snap-", "place"]);
        let old: KeyRing = DataKey::new([1; 32]).into(); // as `vault` makes it
        let new = DataKey::new([9; 32]);
        cluster.nodes[&1].0.rekey(new.clone()).await.unwrap();
        cluster.write("after").await;
        let lines = cluster.nodes[&1].1.lines();
        cluster.crash(1).await;

        let begin = |directory: &Path, key: KeyRing| {
            let journal = Journal::default();
            let vault = Vault {
                disk: Arc::new(OsDisk::open(directory).unwrap()),
                key,
                owner: Owner::new(&"cluster1".parse().unwrap(), &member(1).node_id),
            };
            let raft = Raft::start(fast(), vault, Start::Restart, journal.clone(), |_| {
                Box::new(NetPort(Net::default()))
            });
            raft.map(|raft| (raft, journal))
        };
        let refused = begin(&root.join("1"), old.clone()).unwrap_err().to_string();
        assert!(refused.contains("sealed with another key"), "{refused}");
        for name in vault_names(&cluster, 1)
            .iter()
            .filter(|name| name.starts_with("wal-") || name.starts_with("snap-"))
        {
            let content = std::fs::read(root.join("1").join(name)).unwrap();
            assert_eq!(content[12..16], new.id().to_le_bytes(), "{name}");
        }
        let (raft, journal) = begin(&root.join("1"), new.clone().into()).unwrap();
        raft.read_barrier().await.unwrap();
        assert_eq!(journal.lines(), lines);
        raft.halt().await;

        // Wherever it ends half way, both keys together open everything, and the rest is done then.
        let (after, both) = (root.join("1"), old.succeeded_by(new.clone()));
        for (step, done) in [&[][..], &["snap-"], &["snap-", "place"]]
            .into_iter()
            .enumerate()
        {
            let half = root.join(format!("half{step}"));
            copy(&before, &half, &["wal-", "snap-", "place"]);
            copy(&after, &half, done);
            let (raft, journal) = begin(&half, both.clone()).unwrap();
            raft.read_barrier().await.unwrap();
            assert!(
                journal.lines().len() >= 50,
                "step {step}: {:?}",
                journal.lines()
            );
            raft.rekey(new.clone()).await.unwrap();
            raft.propose("more").await.unwrap();
            raft.halt().await;
            let (raft, journal) = begin(&half, new.clone().into()).unwrap();
            raft.read_barrier().await.unwrap();
            assert_eq!(journal.lines().last().map(String::as_str), Some("more"));
            raft.halt().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_member_that_is_reached_elsewhere_keeps_its_place() {
    within(async {
        let cluster = Cluster::of_three().await;
        cluster.write("a").await;
        let leader = cluster.leader().await;
        let raft = &cluster.nodes[&leader].0;
        let mover = cluster
            .nodes
            .keys()
            .copied()
            .find(|id| *id != leader)
            .unwrap();
        let moved = Member {
            address: "10.0.9.9:2377".to_owned(),
            ..member(mover)
        };
        raft.relocate(mover, moved.clone()).await.unwrap();
        let members = raft.members().borrow().clone();
        assert_eq!(members.get(mover), Some(&moved));
        assert!(members.is_voter(mover) && members.next_id() == 4);
        let refused = raft.relocate(mover, member(8)).await.unwrap_err();
        assert!(matches!(refused, ProposeError::Rejected(_)), "{refused}");
        cluster.write("b").await;
    })
    .await;
}
