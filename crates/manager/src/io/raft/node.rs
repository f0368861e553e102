//! The thread that owns a manager's Raft: inputs in, one `Ready` at a time out to disk, peers and state machine.

mod transfer;

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use raft::{
    Config, RawNode, SnapshotStatus, StateRole,
    eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};

use transfer::Transfer;

use super::{
    Leadership, ProposeError, RaftConfig, RemoveError, Start, StartError, StateMachine, Transport,
    Vault,
    log::Log,
    membership::{self, MembershipQueue},
    snapshot::Snapshots,
    tracing_drain,
    wal::{Record, Wal, WalError},
};
use crate::core::consensus::{
    LogIndex, Member, MemberChange, Members, RaftId,
    wire::{Malformed, Reader, Writer},
};

/// Inputs taken at once; what they propose becomes one append and one sync.
const INPUTS_PER_ROUND_MAX: usize = 512;
/// Bytes of entries in one message. Snapshots are cut by the transport.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Messages on the way to one peer. As SwarmKit's `MaxInflightMsgs`.
const INFLIGHT_MESSAGES_MAX: usize = 256;
/// Bytes proposed and not yet committed; beyond it proposals are refused until the quorum keeps up.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Ticks after which an unanswered read is asked again.
const READ_RETRY_TICKS: u64 = 3;

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
    Transfer {
        reply: oneshot::Sender<()>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
    Message(Message),
    Unreachable(RaftId),
    /// A peer knows that we were removed from the group.
    Removed,
    SnapshotSent {
        peer: RaftId,
        arrived: bool,
    },
}

pub(super) type ProposeReply = oneshot::Sender<Result<LogIndex, ProposeError>>;

pub(super) struct Node {
    pub(super) raw: RawNode<Log>,
    config: RaftConfig,
    wal: Wal,
    snapshots: Snapshots,
    state: Box<dyn StateMachine>,
    transport: Box<dyn Transport>,
    pub(super) members: Members,
    applied: LogIndex,
    applied_term: u64,
    applied_bytes: u64,
    /// Told to nobody else: which entries of the log are answers to our own callers.
    incarnation: u64,
    next_ticket: u64,
    proposals: HashMap<u64, ProposeReply>,
    reads: Reads,
    pub(super) membership: MembershipQueue,
    transfer: Option<Transfer>,
    /// Whether peers say that we were removed; those that stay do not send us the removal itself.
    is_expelled: bool,
    pub(super) ticks: u64,
    /// Tick at which each peer was last heard of.
    pub(super) heard: BTreeMap<RaftId, u64>,
    leadership: watch::Sender<Leadership>,
    members_out: watch::Sender<Arc<Members>>,
}

/// Reads on their way: waiting to be asked, asked, and answered but ahead of what is applied.
#[derive(Default)]
struct Reads {
    waiting: Vec<(u64, ProposeReply)>,
    asked: BTreeMap<u64, (u64, Vec<(u64, ProposeReply)>)>,
    answered: Vec<(LogIndex, ProposeReply)>,
}

impl Node {
    pub(super) fn new(
        config: RaftConfig,
        vault: Vault,
        start: Start,
        mut state: Box<dyn StateMachine>,
        mut transport: Box<dyn Transport>,
        leadership: watch::Sender<Leadership>,
        members_out: watch::Sender<Arc<Members>>,
    ) -> Result<Self, StartError> {
        let snapshots = Snapshots::new(vault.disk.clone(), vault.key.clone(), vault.owner);
        let (raft_id, told) = membership::prepare_place(&vault, &snapshots, start)?;
        let (wal, records) = Wal::open(vault.disk, vault.key, vault.owner, config.segment_bytes)?;
        let snapshot = snapshots.load()?.unwrap_or_default();
        let applied = snapshot.get_metadata().index;
        let applied_term = snapshot.get_metadata().term;
        let mut members = told;
        if applied > 0 {
            members = restore(state.as_mut(), &snapshot).map_err(StartError::Restore)?;
        }
        let log = Log::recover(snapshot, records).map_err(StartError::Unexpected)?;
        let settings = Config {
            id: raft_id,
            election_tick: config.election_ticks,
            heartbeat_tick: 1,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..Config::default()
        };
        let mut raw = RawNode::new(&settings, log, &tracing_drain::logger(raft_id))?;
        let voters = &raw.store().conf_state().voters;
        if *voters == [raft_id] {
            raw.campaign()?; // nobody to ask: no reason to wait for an election
        }
        transport.set_members(&members);
        members_out.send_replace(Arc::new(members.clone()));
        let mut incarnation = [0; 8];
        getrandom::fill(&mut incarnation)
            .expect("the operating system gives random bytes after boot");
        Ok(Self {
            raw,
            config,
            wal,
            snapshots,
            state,
            transport,
            members,
            applied,
            applied_term,
            applied_bytes: 0,
            incarnation: u64::from_le_bytes(incarnation),
            next_ticket: 1,
            proposals: HashMap::new(),
            reads: Reads::default(),
            membership: MembershipQueue::default(),
            transfer: None,
            is_expelled: false,
            ticks: 0,
            heard: BTreeMap::new(),
            leadership,
            members_out,
        })
    }

    pub(super) fn raft_id(&self) -> RaftId {
        self.raw.raft.id
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
        self.process_ready()?;
        loop {
            tokio::select! {
                count = inbox.recv_many(&mut inputs, INPUTS_PER_ROUND_MAX) => {
                    if count == 0 {
                        return Ok(()); // every handle is gone
                    }
                }
                _ = ticks.tick() => self.tick(),
            }
            for input in inputs.drain(..) {
                if let Input::Stop { reply } = input {
                    *stopped = Some(reply);
                    return Ok(());
                }
                self.handle(input);
            }
            self.ask_reads();
            self.propose_membership();
            self.process_ready()?;
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        let give_up = self
            .ticks
            .saturating_sub(2 * self.config.election_ticks as u64);
        let retry = self.ticks.saturating_sub(READ_RETRY_TICKS);
        let overdue: Vec<u64> = self
            .reads
            .asked
            .iter()
            .filter(|(_, (at, _))| *at < retry)
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            let (_, reads) = self.reads.asked.remove(&id).expect("it was just listed");
            self.reads.waiting.extend(reads);
        }
        let leader = self.leader();
        let (lost, waiting) = std::mem::take(&mut self.reads.waiting)
            .into_iter()
            .partition(|(at, _)| *at < give_up);
        self.reads.waiting = waiting;
        for (_, reply) in lost {
            let _ = reply.send(Err(ProposeError::NotLeader { leader })); // the asker may be gone
        }
        self.settle_transfer();
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Propose { data, reply } => self.propose(data, reply),
            Input::Read { reply } => self.reads.waiting.push((self.ticks, reply)),
            Input::Admit { member, reply } => self.admit(member, reply),
            Input::Remove { raft_id, reply } => self.remove(raft_id, reply),
            Input::Transfer { reply } => self.start_transfer(reply),
            Input::Message(message) => self.receive(message),
            Input::Unreachable(peer) => self.raw.report_unreachable(peer),
            Input::Removed => {
                self.is_expelled = true;
                self.watch_leadership();
            }
            Input::SnapshotSent { peer, arrived } => {
                let status = if arrived {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                self.raw.report_snapshot(peer, status);
            }
            Input::Stop { .. } => unreachable!("stopping is handled by the loop"),
        }
    }

    fn propose(&mut self, data: Bytes, reply: ProposeReply) {
        let ticket = self.take_ticket();
        let context = self.context(ticket, None);
        match self.try_propose(|raw| raw.propose(context, data.to_vec())) {
            Ok(()) => {
                self.proposals.insert(ticket, reply);
            }
            Err(refused) => {
                let _ = reply.send(Err(refused)); // the asker may be gone
            }
        }
    }

    pub(super) fn try_propose(
        &mut self,
        propose: impl FnOnce(&mut RawNode<Log>) -> raft::Result<()>,
    ) -> Result<(), ProposeError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader {
                leader: self.leader(),
            });
        }
        // Dropped when leadership is being handed over, or when too much is uncommitted.
        propose(&mut self.raw).map_err(|_| ProposeError::NotLeader { leader: None })
    }

    pub(super) fn leader(&self) -> Option<RaftId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != 0)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// What an entry carries besides its data: whose caller waits for it, and a change of the membership.
    pub(super) fn context(&self, ticket: u64, change: Option<&MemberChange>) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.incarnation);
        out.number(ticket);
        if let Some(change) = change {
            change.encode(&mut out);
        }
        out.finish()
    }

    fn receive(&mut self, message: Message) {
        let raft = &self.raw.raft;
        if message.to != raft.id || self.members.was_removed(message.from) {
            return;
        }
        // The library panics on a commit index beyond the log. A leader that says so has lost its mind, or we our log.
        let beyond = message.get_msg_type() == MessageType::MsgHeartbeat
            && message.commit > raft.raft_log.last_index();
        if beyond && message.term >= raft.term {
            tracing::error!(
                raft.id = raft.id,
                raft.from = message.from,
                "the leader knows more of our log than we do"
            );
            return;
        }
        self.heard.insert(message.from, self.ticks);
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(error = %error, "a message was ignored");
        }
    }

    fn ask_reads(&mut self) {
        if self.reads.waiting.is_empty() || self.leader().is_none() {
            return;
        }
        let ticket = self.take_ticket();
        let mut out = Writer::default();
        out.number(self.incarnation);
        out.number(ticket);
        self.raw.read_index(out.finish());
        self.reads.asked.insert(
            ticket,
            (self.ticks, std::mem::take(&mut self.reads.waiting)),
        );
    }

    /// Carries out everything that Raft has decided. The order is what makes it safe: nothing is told to a peer that
    /// depends on what is not yet on disk.
    fn process_ready(&mut self) -> Result<(), WalError> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            // A leader's appends may travel while its own disk works (Raft thesis, 10.2.1).
            self.send(ready.take_messages());

            let mut hard_state = self.raw.store().hard_state().clone();
            if let Some(changed) = ready.hs() {
                hard_state = changed.clone();
            }
            let snapshot =
                Some(ready.snapshot().clone()).filter(|snapshot| snapshot.get_metadata().index > 0);
            if let Some(snapshot) = &snapshot {
                self.snapshots.save(snapshot)?;
            }
            // A commit index alone need not be durable: the leader tells it again.
            if ready.must_sync() {
                self.wal.append(&Record {
                    hard_state: hard_state.clone(),
                    entries: ready.entries().clone(),
                    installed: snapshot
                        .as_ref()
                        .map(|s| (s.get_metadata().index, s.get_metadata().term)),
                })?;
            }
            if let Some(snapshot) = snapshot {
                self.install(snapshot);
            }
            let log = self.raw.mut_store();
            log.append(ready.entries());
            log.set_hard_state(hard_state);

            self.send(ready.take_persisted_messages());
            for read in ready.take_read_states() {
                self.read_answered(read.index, &read.request_ctx);
            }
            self.apply(ready.take_committed_entries());

            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().set_commit(commit);
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries());
            self.raw.advance_apply();

            self.finish_reads();
            self.keep_snapshot()?;
            self.watch_leadership();
            self.propose_membership();
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.transport.send(message);
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.applied = entry.index;
            self.applied_term = entry.term;
            self.applied_bytes += entry.data.len() as u64;
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {} // a new leader's first
                EntryType::EntryNormal => {
                    let result = self.state.apply(entry.index, &entry.data);
                    if let Some(reply) = self
                        .ticket_of(&entry)
                        .and_then(|ticket| self.proposals.remove(&ticket))
                    {
                        // The asker may be gone.
                        let _ = reply
                            .send(result.map(|()| entry.index).map_err(ProposeError::Rejected));
                    }
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_membership(&entry)
                }
            }
        }
    }

    /// The ticket of the caller who waits for this entry, if it is one of ours.
    fn ticket_of(&self, entry: &Entry) -> Option<u64> {
        let mut input = Reader::new(&entry.context);
        let ours = input
            .number()
            .is_ok_and(|incarnation| incarnation == self.incarnation);
        if ours { input.number().ok() } else { None }
    }

    fn apply_membership(&mut self, entry: &Entry) {
        let decode = || -> Result<MemberChange, Malformed> {
            let mut input = Reader::new(&entry.context);
            input.number()?;
            input.number()?;
            MemberChange::decode(&mut input)
        };
        // The library proposes an empty change of its own only to leave joint consensus, which we never enter.
        let Ok(change) = decode() else {
            tracing::error!(
                raft.index = entry.index,
                "a change of the membership cannot be read; it changes nothing"
            );
            return;
        };
        let mut applied = ConfChange {
            node_id: change.raft_id(),
            ..ConfChange::default()
        };
        applied.set_change_type(match change {
            MemberChange::AddLearner(..) => ConfChangeType::AddLearnerNode,
            MemberChange::SetVoter(..) => ConfChangeType::AddNode,
            MemberChange::Remove(_) => ConfChangeType::RemoveNode,
        });
        match self.raw.apply_conf_change(&applied) {
            Ok(conf_state) => {
                self.raw.mut_store().set_conf_state(conf_state);
                self.members.apply(&change);
                self.transport.set_members(&self.members);
                self.members_out
                    .send_replace(Arc::new(self.members.clone()));
                tracing::info!(
                    raft.id = self.raft_id(),
                    raft.index = entry.index,
                    ?change,
                    "the membership changed"
                );
            }
            Err(error) => {
                tracing::error!(error = %error, ?change, "a change of the membership was refused")
            }
        }
        let ticket = self.ticket_of(entry);
        self.membership_applied(ticket, &change);
    }

    fn read_answered(&mut self, index: LogIndex, context: &[u8]) {
        let mut input = Reader::new(context);
        let ticket = match (input.number(), input.number()) {
            (Ok(incarnation), Ok(ticket)) if incarnation == self.incarnation => ticket,
            _ => return,
        };
        if let Some((_, reads)) = self.reads.asked.remove(&ticket) {
            self.reads
                .answered
                .extend(reads.into_iter().map(|(_, reply)| (index, reply)));
        }
    }

    fn finish_reads(&mut self) {
        let applied = self.applied;
        let (done, ahead) = std::mem::take(&mut self.reads.answered)
            .into_iter()
            .partition(|(at, _)| *at <= applied);
        self.reads.answered = ahead;
        for (_, reply) in done {
            let _ = reply.send(Ok(applied)); // the asker may be gone
        }
    }

    fn install(&mut self, snapshot: Snapshot) {
        self.applied = snapshot.get_metadata().index;
        self.applied_term = snapshot.get_metadata().term;
        self.applied_bytes = 0;
        self.members = restore(self.state.as_mut(), &snapshot)
            .expect("a snapshot that a leader sent is one that a manager of this version wrote");
        self.transport.set_members(&self.members);
        self.members_out
            .send_replace(Arc::new(self.members.clone()));
        self.raw.mut_store().install(snapshot);
    }

    /// Makes a snapshot when enough was applied since the last one, or when a peer cannot go on without.
    fn keep_snapshot(&mut self) -> Result<(), WalError> {
        let wished = self.raw.store().take_snapshot_wish();
        let last = self.raw.store().snapshot().get_metadata().index;
        let due = self.applied - last >= self.config.snapshot_entries
            || self.applied_bytes >= self.config.snapshot_bytes;
        if !wished && !due {
            return Ok(());
        }
        let data = snapshot_data(&self.members, &self.state.snapshot());
        let mut snapshot = Snapshot {
            data,
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.applied, self.applied_term);
        metadata.set_conf_state(self.raw.store().conf_state().clone());
        let mut compact_to = 0;
        if due {
            let keep_from = self.snapshots.save(&snapshot)?;
            self.wal.release(keep_from)?;
            self.applied_bytes = 0;
            compact_to = self.applied.saturating_sub(self.config.kept_entries);
        }
        self.raw.mut_store().set_snapshot(snapshot, compact_to);
        if wished {
            self.raw.ping(); // the peer's answer makes the library send it
        }
        Ok(())
    }

    fn watch_leadership(&mut self) {
        let raft = &self.raw.raft;
        let id = raft.id;
        let leads = raft.state == StateRole::Leader;
        let now = Leadership {
            term: raft.term,
            leader: self.leader(),
            is_leader: leads && self.applied_term == raft.term,
            is_removed: self.is_expelled || self.members.was_removed(id),
        };
        let before = *self.leadership.borrow();
        if now == before {
            return;
        }
        if !leads || now.term != before.term {
            // Whoever waits for an entry of an earlier term cannot be told what became of it.
            for (_, reply) in self.proposals.drain() {
                let _ = reply.send(Err(ProposeError::Lost)); // the asker may be gone
            }
            self.membership.abandon(now.leader);
        }
        if now.is_leader {
            // Reads asked before this term's first commit went unanswered.
            let asked = std::mem::take(&mut self.reads.asked);
            self.reads
                .waiting
                .extend(asked.into_values().flat_map(|(_, reads)| reads));
            self.ask_reads();
        }
        if (now.leader, now.is_leader) != (before.leader, before.is_leader) {
            tracing::info!(raft.id = id, raft.term = now.term, raft.leader = ?now.leader, "leadership");
        }
        self.leadership.send_replace(now);
        self.settle_transfer();
    }

    pub(super) fn election_ticks(&self) -> u64 {
        self.config.election_ticks as u64
    }
}

/// Reads a snapshot into the state machine; gives the members that it knows of.
fn restore(state: &mut dyn StateMachine, snapshot: &Snapshot) -> Result<Members, String> {
    let mut input = Reader::new(&snapshot.data);
    let members = Members::decode(&mut input).map_err(|error| error.to_string())?;
    state.restore(input.bytes().map_err(|error| error.to_string())?)?;
    Ok(members)
}

/// Writes what [`restore`] reads.
pub(super) fn snapshot_data(members: &Members, state: &[u8]) -> Bytes {
    let mut out = Writer::default();
    members.encode(&mut out);
    out.bytes(state);
    out.finish().into()
}
