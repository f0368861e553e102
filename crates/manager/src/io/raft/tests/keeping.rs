//! Snapshots are written down while the log goes on.

use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc::{Receiver, Sender, channel},
};

use super::*;

/// A journal whose snapshots are as slow to write as the test wants: each says that it has begun and waits for leave.
struct SlowJournal {
    journal: Journal,
    began: Sender<usize>,
    leave: Arc<Mutex<Receiver<()>>>,
}

impl StateMachine for SlowJournal {
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        self.journal.apply(index, data)
    }
    fn freeze(&self) -> FrozenState {
        let (lines, began) = (self.journal.lines(), self.began.clone());
        let leave = Arc::clone(&self.leave);
        Box::new(move |out| {
            let _ = began.send(lines.len()); // the test may be over
            let _ = leave.lock().unwrap().recv();
            out.buffer().extend(lines.join("\n").as_bytes());
        })
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.journal.restore(snapshot)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_while_a_snapshot_is_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let config = RaftConfig {
        snapshot_entries: 10,
        kept_entries: 2,
        ..fast()
    };
    let (began, begun) = channel();
    let (give_leave, leave) = channel();
    let journal = Journal::default();
    let slow = SlowJournal {
        journal: journal.clone(),
        began,
        leave: Arc::new(Mutex::new(leave)),
    };
    let start = Start::Bootstrap {
        member: member(1),
        state: b"genesis".to_vec(),
    };
    let net = Net::default();
    let raft = Raft::start(
        config.clone(),
        vault(directory.path(), 1),
        start,
        slow,
        |_| Box::new(NetPort(net)),
    )
    .unwrap();
    let mut leadership = raft.leadership();
    leadership.wait_for(|now| now.is_leader).await.unwrap();
    let mut written = 1; // with the beginning
    let mut write = async |count: usize| {
        for _ in 0..count {
            raft.propose(format!("line {written}").into_bytes())
                .await
                .unwrap();
            written += 1;
        }
    };
    write(12).await;
    let frozen = begun.recv().unwrap();
    assert!(frozen <= 13, "{frozen}");

    // Twenty times as many as a snapshot is made after, and nobody waits for it; nor is another one begun.
    write(200).await;
    assert_eq!(journal.lines().len(), 213);
    assert!(begun.try_recv().is_err());

    // When it is done it says what was true when it was begun, and the next one is due.
    give_leave.send(()).unwrap();
    write(1).await;
    let next = tokio::task::spawn_blocking(move || begun.recv())
        .await
        .unwrap();
    assert!(next.unwrap() >= 213);
    drop(give_leave);
    raft.shutdown().await;

    let again = Journal::default();
    let raft = Raft::start(
        config,
        vault(directory.path(), 1),
        Start::Restart,
        again.clone(),
        |_| Box::new(NetPort(Net::default())),
    )
    .unwrap();
    let mut leadership = raft.leadership();
    leadership.wait_for(|now| now.is_leader).await.unwrap();
    assert_eq!(again.lines(), journal.lines(), "nothing is lost on the way");
    raft.shutdown().await;
}

/// Counts the snapshots.
#[derive(Clone, Default)]
struct CountingJournal {
    journal: Journal,
    snapshots: Arc<AtomicUsize>,
}

impl StateMachine for CountingJournal {
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        self.journal.apply(index, data)
    }
    fn freeze(&self) -> FrozenState {
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        self.journal.freeze()
    }
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.journal.restore(snapshot)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_larger_the_state_the_fewer_the_snapshots() {
    const LINES: usize = 640;
    let directory = tempfile::tempdir().unwrap();
    let config = RaftConfig {
        snapshot_entries: 10,
        kept_entries: 2,
        snapshot_growth_percent: 100,
        ..fast()
    };
    let journal = CountingJournal::default();
    let start = Start::Bootstrap {
        member: member(1),
        state: b"genesis".to_vec(),
    };
    let vault = vault(directory.path(), 1);
    let port = |_| Box::new(NetPort(Net::default())) as Box<dyn Transport>;
    let raft = Raft::start(config, vault, start, journal.clone(), port).unwrap();
    let mut leadership = raft.leadership();
    leadership.wait_for(|now| now.is_leader).await.unwrap();
    for number in 0..LINES {
        let line = format!("line {number:04}");
        raft.propose(line.into_bytes()).await.unwrap();
    }
    raft.shutdown().await;
    // Each is of twice as much as the one before, about: not one in ten lines.
    let snapshots = journal.snapshots.load(Ordering::Relaxed);
    assert!((3..LINES / 30).contains(&snapshots), "{snapshots}");
}
