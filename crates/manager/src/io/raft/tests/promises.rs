//! What the log promises when files are damaged, networks cut and disks fail.

use std::{
    io,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize},
};

use super::*;
use crate::io::raft::disk::DiskFile;

/// A disk that counts what is made durable, and that can fail at it.
#[derive(Debug, Clone)]
struct Watched {
    disk: Arc<OsDisk>,
    syncs: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

impl Watched {
    fn open(directory: &Path) -> Self {
        Self {
            disk: Arc::new(OsDisk::open(directory).unwrap()),
            syncs: Arc::default(),
            is_broken: Arc::default(),
        }
    }

    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let (syncs, is_broken) = (self.syncs.clone(), self.is_broken.clone());
        Box::new(WatchedFile {
            file,
            syncs,
            is_broken,
        })
    }

    /// The only manager of a cluster, on this disk.
    fn manager(&self) -> (Raft, Journal) {
        let vault = Vault {
            disk: Arc::new(self.clone()),
            key: DataKey::new([1; 32]).into(),
            owner: Owner::new(&"cluster1".parse().unwrap(), &member(1).node_id),
        };
        let start = Start::Bootstrap {
            member: member(1),
            state: b"genesis".to_vec(),
        };
        let journal = Journal::default();
        let raft = Raft::start(fast(), vault, start, journal.clone(), |_| {
            Box::new(NetPort(Net::default()))
        });
        (raft.unwrap(), journal)
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Box<dyn DiskFile>,
    syncs: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

impl Disk for Watched {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.disk.read(name)
    }
    fn create(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.create(name, size)?))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.open(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

impl DiskFile for WatchedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk is broken"));
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
}

#[tokio::test]
async fn proposals_that_wait_together_are_made_durable_together() {
    within(async {
        const LINES: usize = 500;
        let directory = tempfile::tempdir().unwrap();
        let disk = Watched::open(directory.path());
        let (raft, journal) = disk.manager();
        let mut leadership = raft.leadership();
        leadership.wait_for(|now| now.is_leader).await.unwrap();
        let before = disk.syncs.load(Ordering::Relaxed);
        let all = (0..LINES).map(|number| raft.propose(format!("line {number}")));
        let indexes = futures_util::future::join_all(all).await;
        assert!(indexes.iter().all(Result::is_ok));
        assert_eq!(journal.lines().len(), LINES + 1);
        let syncs = disk.syncs.load(Ordering::Relaxed) - before;
        assert!(
            (1..=LINES / 10).contains(&syncs),
            "{syncs} syncs for {LINES} proposals"
        );
        raft.halt().await;
    })
    .await;
}

/// Set for the process that meets a broken disk.
const BROKEN_DISK: &str = "SHOAL_TEST_BROKEN_DISK";

#[test]
fn a_disk_that_cannot_sync_ends_the_process_and_acknowledges_nothing() {
    use std::os::unix::process::ExitStatusExt;
    if std::env::var_os(BROKEN_DISK).is_some() {
        return write_to_a_broken_disk();
    }
    let name = "io::raft::tests::promises::a_disk_that_cannot_sync_ends_the_process_and_acknowledges_nothing";
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(BROKEN_DISK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.signal(), Some(6), "SIGABRT expected: {said}");
    assert!(said.contains("one is written"), "{said}");
    assert!(!said.contains("acknowledged"), "{said}");
}

fn write_to_a_broken_disk() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(within(async {
        let directory = tempfile::tempdir().unwrap();
        let disk = Watched::open(directory.path());
        let (raft, _) = disk.manager();
        let mut leadership = raft.leadership();
        leadership.wait_for(|now| now.is_leader).await.unwrap();
        raft.propose("one").await.unwrap();
        println!("one is written");
        disk.is_broken.store(true, Ordering::Relaxed);
        let told = raft.propose("two").await;
        println!("acknowledged: {told:?}");
    }));
}

#[tokio::test]
async fn a_damaged_snapshot_gives_way_to_the_one_before() {
    within(async {
        let mut cluster = Cluster::new(RaftConfig {
            snapshot_entries: 20,
            kept_entries: 5,
            ..fast()
        });
        for number in 0..100 {
            cluster.write(&format!("line {number}")).await;
        }
        let lines = cluster.nodes[&1].1.lines();
        cluster.crash(1).await;
        let mut snapshots = vault_names(&cluster, 1);
        snapshots.retain(|name| name.starts_with("snap-"));
        snapshots.sort();
        assert!(snapshots.len() >= 2, "{snapshots:?}");
        let newest = cluster
            .directory
            .path()
            .join("1")
            .join(snapshots.last().unwrap());
        let mut content = std::fs::read(&newest).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&newest, content).unwrap();
        cluster.start(1, Start::Restart);
        cluster.write("after").await;
        let after = cluster.nodes[&1].1.lines();
        assert_eq!(after[..lines.len()], lines);
        assert_eq!(after[lines.len()..], ["after"]);
    })
    .await;
}

#[tokio::test]
async fn who_was_cut_off_and_comes_back_unseats_nobody() {
    within(async {
        let cluster = Cluster::of_three().await;
        cluster.write("before").await;
        let leader = cluster.leader().await;
        let term = cluster.nodes[&leader].0.leadership().borrow().term;
        let away = (1..=3).find(|id| *id != leader).unwrap();
        let mut lonely = cluster.nodes[&away].0.leadership();
        cluster.net.cut(away);
        // It hears of no leader any more, and asks for votes that nobody gives.
        lonely.wait_for(|now| now.leader.is_none()).await.unwrap();
        for number in 0..20 {
            cluster.write(&format!("meanwhile {number}")).await;
        }
        cluster.net.heal(away);
        lonely
            .wait_for(|now| now.leader == Some(leader))
            .await
            .unwrap();
        cluster.write("after").await;
        for (raft, _) in cluster.nodes.values() {
            let now = *raft.leadership().borrow();
            assert_eq!((now.leader, now.term), (Some(leader), term));
        }
    })
    .await;
}
