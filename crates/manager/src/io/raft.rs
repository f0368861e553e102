//! Consensus among managers: `raft-rs` on a durable log, driven by one thread.
//!
//! [`Raft`] is the handle: it proposes, waits for reads to be safe, and changes the membership. Behind it one thread
//! drives the machine of [`crate::core::consensus::node`] and owns the log (`node`), so that nothing needs a lock and all proposals that wait
//! together become one append and one sync.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use raft::eraftpb::Message;
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::core::consensus::node::{
    FrozenState, Leadership, ProposeError, RemoveError, StateMachine,
};
use crate::core::consensus::{LogIndex, Member, Members, RaftId, node::BeginError};

pub mod disk;
pub mod membership;
mod node;
pub mod salvage;
pub mod seal;
pub mod snapshot;
pub mod storage;
pub mod transport;
pub mod wal;

use disk::Disk;
use node::{Driver, Input};
use seal::{DataKey, KeyRing, Owner};
use wal::WalError;

/// How much may wait for the node's thread. Beyond it proposals wait and messages are dropped, as Raft allows.
const INBOX_INPUTS_MAX: usize = 4096;

/// Carries messages to other managers.
pub trait Transport: Send + 'static {
    /// Sends, or drops. Never blocks.
    fn send(&mut self, message: Message);

    /// Tells whom there is to send to, at the start and after each change.
    fn set_members(&mut self, members: &Members);

    /// Tells of one more to send to, until the members change.
    fn add_guest(&mut self, raft_id: RaftId, guest: &Member);
}

/// Times and sizes. The defaults are those of the product.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// Length of a tick, also the period of heartbeats among managers.
    pub tick: Duration,
    /// Ticks without a leader before an election; the real number is drawn between this and its double.
    pub election_ticks: usize,
    /// Applied entries after which a snapshot is written. As SwarmKit's `DefaultSnapshotInterval`.
    pub snapshot_entries: u64,
    /// Bytes of applied entries after which a snapshot is written, so that few large entries do not fill the disk.
    pub snapshot_bytes: u64,
    /// How much of the last snapshot's size must have been applied before the next one, in percent.
    pub snapshot_growth_percent: u64,
    /// Entries kept behind a snapshot for managers that lag. As SwarmKit's `LogEntriesForSlowFollowers`.
    pub kept_entries: u64,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            // A leader that is gone is missed after 400 to 800 ms, so that a write waits for less than a second; stalls of
            // a loaded machine are shorter.
            tick: Duration::from_millis(50),
            election_ticks: 8,
            snapshot_entries: 10_000,
            snapshot_bytes: 64 << 20,
            snapshot_growth_percent: 100,
            kept_entries: 500,
            segment_bytes: wal::SEGMENT_BYTES,
        }
    }
}

/// Where a manager keeps its share of the log, and under which key.
#[derive(Debug, Clone)]
pub struct Vault {
    /// The directory.
    pub disk: Arc<dyn Disk>,
    /// The data key, and those before it if one is being replaced.
    pub key: KeyRing,
    /// Whose files they are.
    pub owner: Owner,
}

/// How a manager comes to its place in the group.
#[derive(Debug, Clone)]
pub enum Start {
    /// It is the first manager of a new cluster.
    Bootstrap {
        /// Itself.
        member: Member,
        /// The state to begin with, as [`StateMachine::snapshot`] writes it.
        state: Vec<u8>,
    },
    /// A leader has just admitted it.
    Join {
        /// The id that it was given.
        raft_id: RaftId,
        /// The members that it was told of.
        members: Members,
    },
    /// It is the only manager that is left of an earlier group, or begins with the state of one.
    Anew {
        /// Its id, which nobody has had.
        raft_id: RaftId,
        /// Itself, and the ids of those that once were members.
        members: Members,
        /// The state.
        state: Vec<u8>,
        /// Index of the last entry in it.
        index: LogIndex,
        /// A term that nobody has had.
        term: u64,
    },
    /// It has a log already.
    Restart,
}

/// Why a manager's consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Log or snapshots are not usable.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// `Bootstrap` or `Join` where there is a log, or `Restart` where there is none.
    #[error("cannot start consensus: {0}")]
    Unexpected(&'static str),
    /// What is on disk cannot be begun with.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// No thread.
    #[error("cannot start the consensus thread")]
    Thread(#[from] std::io::Error),
}

/// Handle to a manager's consensus; clones are the same one. It ends when [`Raft::shutdown`] is called.
#[derive(Debug, Clone)]
pub struct Raft {
    raft_id: RaftId,
    inbox: mpsc::Sender<Input>,
    leadership: watch::Receiver<Leadership>,
    members: watch::Receiver<Arc<Members>>,
    log_bytes: Arc<AtomicU64>,
}

/// Where a transport delivers what it receives and what it finds out.
#[derive(Debug, Clone)]
pub struct Mailbox {
    inbox: mpsc::WeakSender<Input>,
}

impl Mailbox {
    /// A message from a peer whose identity was checked, see [`crate::core::consensus::node::Node::step`]. Dropped when
    /// too much waits already.
    pub fn deliver(&self, message: Message, sender: Option<Member>) {
        self.put(Input::Message(message, sender));
    }

    /// The peer cannot be reached.
    pub fn report_unreachable(&self, peer: RaftId) {
        self.put(Input::Unreachable(peer));
    }

    /// A peer says that this manager was removed from the group.
    pub fn report_removed(&self) {
        self.put(Input::Removed);
    }

    /// A snapshot has arrived at the peer, or has not.
    pub fn report_snapshot(&self, peer: RaftId, arrived: bool) {
        self.put(Input::SnapshotSent { peer, arrived });
    }

    fn put(&self, input: Input) {
        if let Some(inbox) = self.inbox.upgrade() {
            let _ = inbox.try_send(input); // dropped when full: Raft sends again
        }
    }
}

impl Raft {
    /// Starts consensus on its own thread. `transport` is made with the mailbox that it shall deliver to.
    pub fn start(
        config: RaftConfig,
        vault: Vault,
        start: Start,
        state: impl StateMachine,
        transport: impl FnOnce(Mailbox) -> Box<dyn Transport>,
    ) -> Result<Self, StartError> {
        let (sender, inbox) = mpsc::channel(INBOX_INPUTS_MAX);
        let transport = transport(Mailbox {
            inbox: sender.downgrade(),
        });
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (members_sender, members) = watch::channel(Arc::default());
        let driver = Driver::new(
            config,
            vault,
            start,
            Box::new(state),
            transport,
            leadership_sender,
            members_sender,
        )?;
        let (raft_id, log_bytes) = (driver.raft_id(), driver.log_bytes());
        std::thread::Builder::new()
            .name(format!("raft-{raft_id}"))
            .spawn(move || driver.run(inbox))?;
        Ok(Self {
            raft_id,
            inbox: sender,
            leadership,
            members,
            log_bytes,
        })
    }

    /// Our id.
    pub fn raft_id(&self) -> RaftId {
        self.raft_id
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The members, now and from now on.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Bytes of the records written to the log since the start.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Where to deliver messages of peers.
    pub fn mailbox(&self) -> Mailbox {
        Mailbox {
            inbox: self.inbox.downgrade(),
        }
    }

    /// Appends data to the log; returns once it is applied here, with its index.
    pub async fn propose(&self, data: impl Into<Bytes>) -> Result<LogIndex, ProposeError> {
        let data = data.into();
        self.ask(|reply| Input::Propose { data, reply }).await?
    }

    /// Waits until everything that was decided anywhere before this call is applied here; returns up to which index.
    pub async fn read_barrier(&self) -> Result<LogIndex, ProposeError> {
        self.ask(|reply| Input::Read { reply }).await?
    }

    /// Admits a manager. It receives the log at once and votes as soon as it has caught up.
    ///
    /// A node that already takes part loses its old place: it asks because it has lost its log.
    pub async fn admit(&self, member: Member) -> Result<(RaftId, Arc<Members>), ProposeError> {
        let raft_id = self.ask(|reply| Input::Admit { member, reply }).await??;
        Ok((raft_id, self.members.borrow().clone()))
    }

    /// Removes a manager for good.
    pub async fn remove(&self, raft_id: RaftId) -> Result<(), RemoveError> {
        self.ask(|reply| Input::Remove { raft_id, reply }).await?
    }

    /// Tells everyone that a member is reached elsewhere now. It must be the node that it was.
    pub async fn relocate(&self, raft_id: RaftId, member: Member) -> Result<(), ProposeError> {
        self.ask(|reply| Input::Relocate {
            raft_id,
            member,
            reply,
        })
        .await?
    }

    /// Seals everything on disk anew with this data key; when it returns nothing is left that another one could open.
    pub async fn rekey(&self, key: DataKey) -> Result<(), ProposeError> {
        self.ask(|reply| Input::Rekey { key, reply }).await
    }

    /// Hands leadership over, if this manager leads and another one can. Returns when that is settled.
    pub async fn transfer(&self) -> Result<(), ProposeError> {
        self.ask(|reply| Input::Transfer { reply }).await
    }

    /// Hands leadership over and stops. Everything acknowledged is durable already.
    pub async fn shutdown(&self) {
        let _ = self.transfer().await; // stopped already
        let _ = self.ask(|reply| Input::Stop { reply }).await;
    }

    /// Stops without handing over, as a crash would.
    pub async fn halt(&self) {
        let _ = self.ask(|reply| Input::Stop { reply }).await;
    }

    async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<T>) -> Input,
    ) -> Result<T, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.inbox
            .send(input(reply))
            .await
            .map_err(|_| ProposeError::Stopped)?;
        answer.await.map_err(|_| ProposeError::Stopped)
    }
}

#[cfg(test)]
pub(super) mod tests;
