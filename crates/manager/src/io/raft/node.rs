//! The thread that drives a manager's Raft: inputs in, effects out to disk, peers and callers.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use raft::eraftpb::{Message, Snapshot};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};

use super::{
    Leadership, ProposeError, RaftConfig, RemoveError, Start, StartError, StateMachine, Transport,
    Vault,
    seal::DataKey,
    storage::Storage,
    wal::{WalError, disk_error},
};
use crate::core::consensus::{
    LogIndex, Member, Members, RaftId,
    node::{Answer, Caller, Effect, Frozen, Limits, Node},
};

/// Inputs taken at once; what they propose becomes one append and one sync.
const INPUTS_PER_ROUND_MAX: usize = 512;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Input {
    Propose {
        data: Bytes,
        reply: ProposeReply,
    },
    Read {
        reply: ProposeReply,
    },
    Admit {
        member: Member,
        reply: oneshot::Sender<Result<RaftId, ProposeError>>,
    },
    Remove {
        raft_id: RaftId,
        reply: oneshot::Sender<Result<(), RemoveError>>,
    },
    Relocate {
        raft_id: RaftId,
        member: Member,
        reply: oneshot::Sender<Result<(), ProposeError>>,
    },
    Rekey {
        key: DataKey,
        reply: oneshot::Sender<()>,
    },
    Transfer {
        reply: oneshot::Sender<()>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
    /// A message, and who sent it if that may be nobody we know.
    Message(Message, Option<Member>),
    Unreachable(RaftId),
    /// A peer knows that we were removed from the group.
    Removed,
    SnapshotSent {
        peer: RaftId,
        arrived: bool,
    },
}

pub(super) type ProposeReply = oneshot::Sender<Result<LogIndex, ProposeError>>;

/// Whom an answer goes to.
#[derive(Debug)]
enum Reply {
    At(ProposeReply),
    Admitted(oneshot::Sender<Result<RaftId, ProposeError>>),
    Removed(oneshot::Sender<Result<(), RemoveError>>),
    Relocated(oneshot::Sender<Result<(), ProposeError>>),
    Transferred(oneshot::Sender<()>),
}

impl Reply {
    /// Sends the answer; the asker may be gone.
    fn send(self, answer: Answer) {
        match (self, answer) {
            (Self::At(reply), Answer::At(index)) => drop(reply.send(Ok(index))),
            (Self::At(reply), Answer::Failed(why)) => drop(reply.send(Err(why))),
            (Self::Admitted(reply), Answer::Admitted(id)) => drop(reply.send(Ok(id))),
            (Self::Admitted(reply), Answer::Failed(why)) => drop(reply.send(Err(why))),
            (Self::Removed(reply), Answer::Done) => drop(reply.send(Ok(()))),
            (Self::Removed(reply), Answer::NotRemoved(why)) => drop(reply.send(Err(why))),
            (Self::Relocated(reply), Answer::Done) => drop(reply.send(Ok(()))),
            (Self::Relocated(reply), Answer::Failed(why)) => drop(reply.send(Err(why))),
            (Self::Transferred(reply), _) => drop(reply.send(())),
            (reply, answer) => unreachable!("{answer:?} is no answer for {reply:?}"),
        }
    }
}

pub(super) struct Driver {
    node: Node,
    config: RaftConfig,
    storage: Storage,
    transport: Box<dyn Transport>,
    next_caller: Caller,
    replies: HashMap<Caller, Reply>,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Arc<Members>>,
    log_bytes: Arc<AtomicU64>,
    /// The thread that writes down a snapshot, and what became of it.
    keeping: Option<JoinHandle<()>>,
    kept_holder: mpsc::UnboundedSender<KeptSnapshot>,
    kept: mpsc::UnboundedReceiver<KeptSnapshot>,
}

/// A snapshot that is durable, and the index up to which the log may be cut off.
type KeptSnapshot = Result<(Snapshot, LogIndex), WalError>;

impl Driver {
    pub(super) fn new(
        config: RaftConfig,
        vault: Vault,
        start: Start,
        state: Box<dyn StateMachine>,
        transport: Box<dyn Transport>,
        leadership: watch::Sender<Leadership>,
        members: watch::Sender<Arc<Members>>,
    ) -> Result<Self, StartError> {
        let (storage, kept) = Storage::open(vault, start, config.segment_bytes)?;
        let limits = Limits {
            election_ticks: config.election_ticks,
            snapshot_entries: config.snapshot_entries,
            snapshot_bytes: config.snapshot_bytes,
            snapshot_growth_percent: config.snapshot_growth_percent,
            kept_entries: config.kept_entries,
        };
        let mut incarnation = [0; 8];
        getrandom::fill(&mut incarnation)
            .expect("the operating system gives random bytes after boot");
        let node = Node::new(limits, kept, state, u64::from_le_bytes(incarnation))?;
        members.send_replace(Arc::new(node.members().clone()));
        let (kept_holder, kept) = mpsc::unbounded_channel();
        Ok(Self {
            node,
            config,
            storage,
            transport,
            next_caller: 0,
            replies: HashMap::new(),
            leadership,
            members,
            log_bytes: Arc::default(),
            keeping: None,
            kept_holder,
            kept,
        })
    }

    pub(super) fn raft_id(&self) -> RaftId {
        self.node.raft_id()
    }

    /// Bytes written to the log, as they grow.
    pub(super) fn log_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.log_bytes)
    }

    /// The thread's body. A failed write or sync, or a panic of the library, ends the process: what is on disk is then
    /// unknown, and to go on could break a promise. Containers outlive it.
    pub(super) fn run(mut self, inbox: mpsc::Receiver<Input>) {
        let raft_id = self.raft_id();
        let mut stopped = None;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .map_err(|source| WalError::Disk {
                    action: "create",
                    name: "a timer".into(),
                    source,
                })?;
            runtime.block_on(self.serve(inbox, &mut stopped))
        }));
        match ended {
            Ok(Ok(())) => {
                if let Some(thread) = self.keeping.take() {
                    let _ = thread.join(); // its snapshot is durable or will be swept at the next start
                }
                // Whoever waits may take the files over.
                drop(self);
                tracing::debug!(raft.id = raft_id, "consensus stopped");
                if let Some(reply) = stopped {
                    let _ = reply.send(()); // the asker may be gone
                }
            }
            Ok(Err(error)) => {
                tracing::error!(raft.id = raft_id, error = %error, cause = ?error, "consensus cannot go on");
                std::process::abort();
            }
            Err(_) => {
                tracing::error!(raft.id = raft_id, "consensus met a state that must not be");
                std::process::abort();
            }
        }
    }

    async fn serve(
        &mut self,
        mut inbox: mpsc::Receiver<Input>,
        stopped: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), WalError> {
        let mut ticks =
            tokio::time::interval_at(Instant::now() + self.config.tick, self.config.tick);
        // After a stall one tick is due, not many: being slow is no evidence against the leader.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inputs = Vec::with_capacity(INPUTS_PER_ROUND_MAX);
        self.carry_out()?;
        loop {
            tokio::select! {
                count = inbox.recv_many(&mut inputs, INPUTS_PER_ROUND_MAX) => {
                    if count == 0 {
                        return Ok(()); // every handle is gone
                    }
                }
                _ = ticks.tick() => self.node.tick(),
                Some(kept) = self.kept.recv() => {
                    let (snapshot, keep_from) = kept?;
                    self.storage.release(keep_from)?;
                    self.node.on_kept(snapshot);
                }
            }
            for input in inputs.drain(..) {
                if let Input::Stop { reply } = input {
                    *stopped = Some(reply);
                    return Ok(());
                }
                self.handle(input)?;
            }
            self.carry_out()?;
        }
    }

    fn handle(&mut self, input: Input) -> Result<(), WalError> {
        match input {
            Input::Rekey { key, reply } => {
                let (snapshot, record) = self.node.whole();
                self.storage.rekey(key, &snapshot, &record)?;
                let _ = reply.send(()); // the asker may be gone
            }
            Input::Propose { data, reply } => {
                let caller = self.owe(Reply::At(reply));
                self.node.propose(&data, caller);
            }
            Input::Read { reply } => {
                let caller = self.owe(Reply::At(reply));
                self.node.read(caller);
            }
            Input::Admit { member, reply } => {
                let caller = self.owe(Reply::Admitted(reply));
                self.node.admit(member, caller);
            }
            Input::Remove { raft_id, reply } => {
                let caller = self.owe(Reply::Removed(reply));
                self.node.remove(raft_id, caller);
            }
            Input::Transfer { reply } => {
                let caller = self.owe(Reply::Transferred(reply));
                self.node.transfer(caller);
            }
            Input::Message(message, sender) => self.node.step(message, sender),
            Input::Unreachable(peer) => self.node.report_unreachable(peer),
            Input::Removed => self.node.report_removed(),
            Input::SnapshotSent { peer, arrived } => self.node.report_snapshot(peer, arrived),
            Input::Relocate {
                raft_id,
                member,
                reply,
            } => {
                let caller = self.owe(Reply::Relocated(reply));
                self.node.relocate(raft_id, member, caller);
            }
            Input::Stop { .. } => unreachable!("stopping is handled by the loop"),
        }
        Ok(())
    }

    fn owe(&mut self, reply: Reply) -> Caller {
        self.next_caller += 1;
        self.replies.insert(self.next_caller, reply);
        self.next_caller
    }

    /// Carries out everything that Raft has decided, in its order.
    fn carry_out(&mut self) -> Result<(), WalError> {
        loop {
            let mut is_waiting = false;
            for effect in self.node.poll() {
                match effect {
                    Effect::Send(message) => self.transport.send(message),
                    Effect::Members(members) => {
                        self.transport.set_members(&members);
                        self.members.send_replace(members);
                    }
                    Effect::Guest(id, guest) => self.transport.add_guest(id, &guest),
                    Effect::Answer(caller, answer) => {
                        if let Some(reply) = self.replies.remove(&caller) {
                            reply.send(answer);
                        }
                    }
                    Effect::Leadership(now) => drop(self.leadership.send_replace(now)),
                    Effect::Keep(frozen) => self.keep(frozen)?,
                    Effect::Persist(persist) => {
                        self.storage.persist(&persist)?;
                        let bytes = self.storage.appended_bytes();
                        self.log_bytes.store(bytes, Ordering::Relaxed);
                        is_waiting = true;
                    }
                }
            }
            if !is_waiting {
                return Ok(());
            }
            self.node.on_persisted();
        }
    }

    /// Writes a snapshot down on a thread of its own, so that nobody waits for it.
    fn keep(&mut self, frozen: Frozen) -> Result<(), WalError> {
        let keeper = self.storage.keeper(frozen.index())?;
        let kept = self.kept_holder.clone();
        let write = move || {
            let snapshot = frozen.write();
            let outcome = keeper.keep(&snapshot).map(|from| (snapshot, from));
            let _ = kept.send(outcome); // stopped meanwhile
        };
        let name = format!("snapshot-{}", self.raft_id());
        let thread = std::thread::Builder::new().name(name).spawn(write);
        self.keeping = Some(thread.map_err(disk_error("start", "a thread for a snapshot"))?);
        Ok(())
    }
}
