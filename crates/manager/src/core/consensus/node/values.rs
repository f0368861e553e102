//! What goes into the machine and what comes out of it.

use std::{fmt, sync::Arc};

use raft::eraftpb::{Message, Snapshot, SnapshotMetadata};

use super::snapshot_data;
use crate::core::{
    consensus::{LogIndex, Member, Members, RaftId, RemovalRefused, record::Record, wire::Writer},
    state::Rejected,
};

/// Writes down a state that no longer changes.
pub type FrozenState = Box<dyn FnOnce(&mut Writer) + Send>;

/// What the log's entries are applied to.
pub trait StateMachine: Send + 'static {
    /// Applies one committed entry. Every manager gets the same entries in the same order, and must decide alike.
    ///
    /// # Errors
    /// Why the entry changes nothing.
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected>;

    /// Tells those who watch what was applied since the last time. Entries that are committed together are told together.
    fn tell(&mut self) {}

    /// The whole state as it is after the last applied entry, to be written down by whoever has the time: the state goes on
    /// meanwhile.
    fn freeze(&self) -> FrozenState;

    /// After how many applied entries the users want a snapshot, if they have a say: instead of
    /// [`Limits::snapshot_entries`].
    fn snapshot_entries(&self) -> Option<u64> {
        None
    }

    /// Replaces the whole state.
    ///
    /// # Errors
    /// Why the snapshot cannot be read. The process ends: it must not go on with half a state.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}

/// Numbers that the machine goes by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Ticks without a leader before an election; the real number is drawn between this and its double.
    pub election_ticks: usize,
    /// Applied entries after which a snapshot is written.
    pub snapshot_entries: u64,
    /// Bytes of applied entries after which a snapshot is written.
    pub snapshot_bytes: u64,
    /// How much of the last snapshot's size must have been applied before the next one, in percent: what snapshots cost
    /// then stays in proportion to what is written, however large the state is.
    pub snapshot_growth_percent: u64,
    /// Entries kept behind a snapshot for managers that lag.
    pub kept_entries: u64,
}

/// What a manager has on disk when it starts.
#[derive(Debug)]
pub struct Kept {
    /// Its id in the group.
    pub raft_id: RaftId,
    /// The members, as far as it was told when it was admitted.
    pub members: Members,
    /// The newest snapshot; an empty one where there is none.
    pub snapshot: Snapshot,
    /// The records of its log, in order.
    pub records: Vec<Record>,
}

/// Names a caller to whom an answer is owed. The driver chooses the numbers.
pub type Caller = u64;

/// What a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A proposal was applied at this index, or everything up to this index can be read.
    At(LogIndex),
    /// A manager was admitted under this id.
    Admitted(RaftId),
    /// A manager was removed, or leadership was handed over as far as that can be done.
    Done,
    /// It was not done, or nobody knows.
    Failed(ProposeError),
    /// A member is not removed.
    NotRemoved(RemoveError),
}

/// What the driver has to carry out.
#[derive(Debug)]
pub enum Effect {
    /// Send, or drop. A leader's appends may travel while its own disk works (Raft thesis, 10.2.1); the order sees to it.
    Send(Message),
    /// From here on these are the members to send to.
    Members(Arc<Members>),
    /// And this one, whose admission has not reached us, until the members change.
    Guest(RaftId, Member),
    /// Tell a caller.
    Answer(Caller, Answer),
    /// Tell everyone who leads.
    Leadership(Leadership),
    /// Make durable, then call [`Node::on_persisted`]; no input before that. Always the last effect of a poll.
    Persist(Persist),
    /// Write down and make durable, beside everything else and however long it takes; then cut off the log what it covers
    /// and call [`Node::on_kept`]. There is one at a time.
    Keep(Frozen),
}

/// A snapshot that is still to be written down.
pub struct Frozen {
    pub(super) metadata: SnapshotMetadata,
    pub(super) members: Members,
    pub(super) state: FrozenState,
    /// About how many bytes it will have; room for more costs nothing, since no memory is touched in vain.
    pub(super) bytes_expected: usize,
}

impl Frozen {
    /// Index of the last entry in it.
    pub fn index(&self) -> LogIndex {
        self.metadata.index
    }

    /// Writes it down.
    pub fn write(self) -> Snapshot {
        let mut snapshot = Snapshot {
            data: snapshot_data(&self.members, self.bytes_expected, self.state),
            ..Snapshot::default()
        };
        snapshot.set_metadata(self.metadata);
        snapshot
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen")
            .field("index", &self.metadata.index)
            .finish_non_exhaustive()
    }
}

/// What must be durable before anything that follows from it is told.
#[derive(Debug, Clone)]
pub struct Persist {
    /// A leader's snapshot, to be durable before the record.
    pub snapshot: Option<Snapshot>,
    /// A record of the log.
    pub record: Option<Record>,
}

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This manager does not lead; nothing was changed.
    #[error("this manager is not the leader")]
    NotLeader {
        /// Who does, if it is known.
        leader: Option<RaftId>,
    },
    /// Every manager refused it alike; nothing was changed.
    #[error("{0}")]
    Rejected(Rejected),
    /// Leadership was lost on the way: it may or may not come to pass.
    #[error("the leader changed before the proposal was decided")]
    Lost,
    /// This manager is stopping, or was removed from the group.
    #[error("this manager is no longer part of the cluster")]
    Stopped,
}

/// Why a member was not removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// The cluster would stand still.
    #[error(transparent)]
    Refused(#[from] RemovalRefused),
    /// A leader hands over first.
    #[error("the leader cannot remove itself")]
    IsLeader,
    /// It could not be decided.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Who leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term, which grows with each election.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<RaftId>,
    /// Whether it is this manager, and everything that earlier leaders decided is applied here.
    pub is_leader: bool,
    /// Whether this manager was removed from the group: its log says so, or another manager.
    pub is_removed: bool,
}

/// Why a manager's consensus cannot begin with what it has kept.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Log and snapshots do not fit together.
    #[error("cannot start consensus: {0}")]
    Log(&'static str),
    /// The state in the snapshot cannot be read.
    #[error("cannot restore the replicated state: {0}")]
    Restore(String),
    /// The library refused the configuration.
    #[error("cannot start consensus")]
    Raft(#[from] raft::Error),
}
