//! One manager's Raft as a machine: inputs in, an ordered list of effects out; no thread, clock, file or socket.
//!
//! Whoever drives it calls the inputs as they happen and then [`Node::poll`], carries the effects out in their order,
//! and after an [`Effect::Persist`] that is durable calls [`Node::on_persisted`] and polls again, until there is nothing
//! left. What waits for a disk is decided here and nowhere else: nothing is told to a peer or a caller that depends on
//! what is not yet durable.

mod batch;
#[cfg(test)]
mod fixture;
mod gather;
mod guests;
mod places;
mod transfer;
mod turns;
mod values;
mod whole;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use raft::{
    Config, RawNode, Ready, SnapshotStatus, StateRole,
    eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot},
};

use shoal_api::planted::{Bug, planted};

pub use self::values::{
    Answer, BeginError, Caller, Effect, Frozen, FrozenState, Kept, Leadership, Limits, Persist,
    ProposeError, RemoveError, StateMachine,
};
pub(crate) use self::whole::snapshot_data;
use self::{batch::batches, places::MembershipQueue, transfer::Transfer, turns::turn};
use super::{
    LogIndex, Member, MemberChange, Members, RaftId,
    log::Log,
    record::Record,
    tracing_drain,
    wire::{Malformed, Reader, Writer},
};

/// Bytes of entries in one message. Snapshots are cut by the transport.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages on the way to one peer. As SwarmKit's `MaxInflightMsgs`.
const INFLIGHT_MESSAGES_MAX: usize = 256;
/// Bytes proposed and not yet committed; beyond it proposals are refused until the quorum keeps up.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Ticks after which an unanswered read is asked again.
const READ_RETRY_TICKS: u64 = 3;

/// A manager's Raft.
pub struct Node {
    raw: RawNode<Log>,
    limits: Limits,
    state: Box<dyn StateMachine>,
    members: Members,
    guests: BTreeMap<RaftId, Member>,
    applied: LogIndex,
    applied_term: u64,
    applied_bytes: u64,
    /// Told to nobody else: which entries of the log are answers to our own callers, and how long to wait for a leader.
    incarnation: u64,
    next_ticket: u64,
    /// To be proposed with the next poll: ticket, caller, and the entry without its place.
    gathered: Vec<(u64, Caller, Entry)>,
    proposals: BTreeMap<u64, Caller>,
    reads: Reads,
    membership: MembershipQueue,
    transfer: Option<Transfer>,
    /// Whether peers say that we were removed; those that stay do not send us the removal itself.
    is_expelled: bool,
    ticks: u64,
    /// Tick at which each peer was last heard of.
    heard: BTreeMap<RaftId, u64>,
    leadership: Leadership,
    /// What goes on when the disk is done.
    persisting: Option<Ready>,
    /// Whether a change of the membership is applied whose commit is not on disk yet.
    is_commit_owed: bool,
    /// Whether a snapshot is being written down.
    is_keeping: bool,
    /// Whether a peer waits for a snapshot.
    is_snapshot_wished: bool,
    effects: VecDeque<Effect>,
    /// To be durable before anything else.
    amendment: Option<Record>,
}

/// Reads on their way: waiting to be asked, asked, and answered but ahead of what is applied.
#[derive(Default)]
struct Reads {
    waiting: Vec<(u64, Caller)>,
    asked: BTreeMap<u64, (u64, Vec<(u64, Caller)>)>,
    answered: Vec<(LogIndex, Caller)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("raft_id", &self.raft_id())
            .field("leadership", &self.leadership)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Begins with what was kept. `incarnation` is a number that no other start of any manager has drawn.
    ///
    /// # Errors
    /// What was kept is of no use.
    pub fn new(
        limits: Limits,
        kept: Kept,
        mut state: Box<dyn StateMachine>,
        incarnation: u64,
    ) -> Result<Self, BeginError> {
        let Kept {
            raft_id,
            mut members,
            snapshot,
            records,
        } = kept;
        let applied = snapshot.get_metadata().index;
        let applied_term = snapshot.get_metadata().term;
        if applied > 0 {
            members = restore(state.as_mut(), &snapshot).map_err(BeginError::Restore)?;
        }
        let log = Log::recover(snapshot, records).map_err(BeginError::Log)?;
        let settings = Config {
            id: raft_id,
            election_tick: limits.election_ticks,
            heartbeat_tick: 1,
            applied: applied - u64::from(planted(Bug::AppliesTwice) && applied > 1),
            max_size_per_msg: MESSAGE_BYTES_MAX as u64,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            // The library's own batching puts entries behind an empty append of another place, and the follower then
            // acknowledges entries that it does not have; see `batches`.
            batch_append: false,
            ..Config::default()
        };
        let amendment = log.amendment();
        let raw = RawNode::new(&settings, log, &tracing_drain::logger(raft_id))?;
        let mut node = Self {
            raw,
            limits,
            state,
            members,
            guests: BTreeMap::new(),
            applied,
            applied_term,
            applied_bytes: 0,
            incarnation,
            next_ticket: 1,
            gathered: Vec::new(),
            proposals: BTreeMap::new(),
            reads: Reads::default(),
            membership: MembershipQueue::default(),
            transfer: None,
            is_expelled: false,
            ticks: 0,
            heard: BTreeMap::new(),
            leadership: Leadership::default(),
            persisting: None,
            is_commit_owed: false,
            is_keeping: false,
            is_snapshot_wished: false,
            effects: VecDeque::new(),
            amendment,
        };
        if node.raw.store().conf_state().voters == [raft_id] {
            node.raw.campaign()?; // nobody to ask: no reason to wait for an election
        }
        node.tell_members();
        node.pin_election_timeout();
        Ok(node)
    }

    /// Our id.
    pub fn raft_id(&self) -> RaftId {
        self.raw.raft.id
    }

    /// Who leads, as last told.
    pub fn leadership(&self) -> Leadership {
        self.leadership
    }

    /// The members, as of the last applied entry.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Index up to which entries are known to be committed.
    pub fn committed(&self) -> LogIndex {
        self.raw.raft.raft_log.committed
    }

    /// The current term, and whether this manager believes that it leads it.
    pub fn term(&self) -> (u64, bool) {
        (self.raw.raft.term, self.is_leader())
    }

    /// Term and data of an entry, if it is durable here and not yet cut off.
    pub fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.raw.store().entry(index)
    }

    /// The time of a tick has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        let give_up = self
            .ticks
            .saturating_sub(2 * self.limits.election_ticks as u64);
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
        for (_, caller) in lost {
            self.fail(caller, ProposeError::NotLeader { leader });
        }
        self.settle_transfer();
        self.speak_up();
        self.pin_election_timeout();
    }

    /// A message from a peer whose identity was checked. `sender` says who that is and where, if it is a manager of the
    /// cluster whose admission may not have reached us: otherwise we would refuse the very messages that tell of it.
    pub fn step(&mut self, message: Message, sender: Option<Member>) {
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
        if let Some(sender) = sender {
            self.receive_guest(message.from, sender);
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(error = %error, "a message was ignored");
        }
        self.pin_election_timeout();
    }

    /// Answered with [`Answer::At`] once everything that was decided anywhere before is applied here.
    pub fn read(&mut self, caller: Caller) {
        if planted(Bug::ReadWithoutBarrier) {
            return self.answer(caller, Answer::At(self.applied));
        }
        self.reads.waiting.push((self.ticks, caller));
    }

    /// A peer cannot be reached.
    pub fn report_unreachable(&mut self, peer: RaftId) {
        self.raw.report_unreachable(peer);
    }

    /// A snapshot has arrived at the peer, or has not.
    pub fn report_snapshot(&mut self, peer: RaftId, arrived: bool) {
        let status = if arrived {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(peer, status);
    }

    /// A peer says that this manager was removed from the group.
    pub fn report_removed(&mut self) {
        self.is_expelled = true;
        self.watch_leadership();
    }

    /// Everything that Raft has decided so far, in the order in which it must be carried out.
    pub fn poll(&mut self) -> Vec<Effect> {
        if let record @ Some(_) = self.amendment.take() {
            let snapshot = None;
            let persist = Persist { snapshot, record };
            self.effects.push_back(Effect::Persist(persist));
            return self.effects.drain(..).collect();
        }
        self.propose_gathered();
        self.ask_reads();
        self.propose_membership();
        while self.persisting.is_none() && self.raw.has_ready() {
            let mut ready = self.raw.ready();
            // A leader's appends may travel while its disk works, but not before it is durable that it leads: the only
            // voter asks nobody, and would forget a term of which others have entries.
            let known_term = self.raw.store().hard_state().term;
            if ready.hs().is_none_or(|now| now.term == known_term) {
                self.send(ready.take_messages());
            }
            if planted(Bug::SendBeforePersist) {
                self.send(ready.take_persisted_messages());
            }
            let snapshot =
                Some(ready.snapshot().clone()).filter(|snapshot| snapshot.get_metadata().index > 0);
            // A commit index alone need not be durable: the leader tells it again.
            let record = ready.must_sync().then(|| Record {
                hard_state: self.hard_state_after(&ready),
                entries: ready.entries().clone(),
                installed: snapshot
                    .as_ref()
                    .map(|s| (s.get_metadata().index, s.get_metadata().term)),
            });
            if snapshot.is_some() || record.is_some() {
                self.persisting = Some(ready);
                let persist = Persist { snapshot, record };
                self.effects.push_back(Effect::Persist(persist));
            } else {
                self.conclude(ready);
            }
        }
        self.note_membership();
        self.pin_election_timeout();
        self.effects.drain(..).collect()
    }

    /// What the last [`Effect::Persist`] told is durable now.
    pub fn on_persisted(&mut self) {
        if let Some(ready) = self.persisting.take() {
            self.conclude(ready);
        }
    }

    /// The snapshot of the last [`Effect::Keep`] is durable now.
    pub fn on_kept(&mut self, snapshot: Snapshot) {
        self.is_keeping = false;
        let index = snapshot.get_metadata().index;
        // A leader's may have taken its place meanwhile.
        if index >= self.raw.store().snapshot().get_metadata().index {
            let compact_to = index.saturating_sub(self.limits.kept_entries);
            self.raw.mut_store().set_snapshot(snapshot, compact_to);
        }
        if std::mem::take(&mut self.is_snapshot_wished) {
            self.raw.ping(); // the peer's answer makes the library send it
        }
        self.keep_snapshot();
    }

    fn hard_state_after(&self, ready: &Ready) -> raft::eraftpb::HardState {
        ready
            .hs()
            .unwrap_or_else(|| self.raw.store().hard_state())
            .clone()
    }

    /// The rest of a step, after what had to be durable is.
    fn conclude(&mut self, mut ready: Ready) {
        let hard_state = self.hard_state_after(&ready);
        if ready.snapshot().get_metadata().index > 0 {
            self.install(ready.snapshot().clone());
        }
        let log = self.raw.mut_store();
        log.append(ready.entries());
        log.set_hard_state(hard_state);

        self.send(ready.take_messages());
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
        self.watch_leadership();
        self.propose_membership();
        self.keep_snapshot();
    }

    fn send(&mut self, messages: Vec<Message>) {
        self.effects
            .extend(batches(messages).into_iter().map(Effect::Send));
    }

    fn tell_members(&mut self) {
        let members = Arc::new(self.members.clone());
        self.effects.push_back(Effect::Members(members));
        self.tell_guests();
    }

    fn answer(&mut self, caller: Caller, answer: Answer) {
        self.effects.push_back(Effect::Answer(caller, answer));
    }

    fn fail(&mut self, caller: Caller, why: ProposeError) {
        self.answer(caller, Answer::Failed(why));
    }

    fn try_propose(
        &mut self,
        propose: impl FnOnce(&mut RawNode<Log>) -> raft::Result<()>,
    ) -> Result<(), ProposeError> {
        if !self.is_leader() {
            return Err(ProposeError::NotLeader {
                leader: self.leader(),
            });
        }
        // Dropped when leadership is being handed over, or when too much is uncommitted.
        propose(&mut self.raw).map_err(|_| ProposeError::NotLeader { leader: None })
    }

    fn leader(&self) -> Option<RaftId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != 0)
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// What an entry carries besides its data: whose caller waits for it, and a change of the membership.
    fn context(&self, ticket: u64, change: Option<&MemberChange>) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.incarnation);
        out.number(ticket);
        if let Some(change) = change {
            change.encode(&mut out);
        }
        out.finish()
    }

    /// The library draws its election timeout from the thread's randomness. Ours is our turn among the voters, so that a
    /// simulation can be repeated.
    fn pin_election_timeout(&mut self) {
        let base = self.limits.election_ticks.max(1);
        let (id, term) = (self.raw.raft.id, self.raw.raft.term);
        let ticks = turn(&self.raw.store().conf_state().voters, id, term, base);
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    fn ask_reads(&mut self) {
        if self.reads.waiting.is_empty() || self.leader().is_none() {
            return;
        }
        let ticket = self.take_ticket();
        let context = self.context(ticket, None);
        self.raw.read_index(context);
        self.reads.asked.insert(
            ticket,
            (self.ticks, std::mem::take(&mut self.reads.waiting)),
        );
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            self.applied = entry.index;
            self.applied_term = entry.term;
            self.applied_bytes += entry.data.len() as u64;
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {} // a new leader's first
                EntryType::EntryNormal => {
                    let result = self.state.apply(entry.index, &entry.data);
                    if let Some(caller) = self
                        .ticket_of(&entry)
                        .and_then(|ticket| self.proposals.remove(&ticket))
                    {
                        let answer = result.map_or_else(
                            |rejected| Answer::Failed(ProposeError::Rejected(rejected)),
                            |()| Answer::At(entry.index),
                        );
                        self.answer(caller, answer);
                    }
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_membership(&entry)
                }
            }
        }
        self.state.tell();
    }

    /// The ticket of the caller who waits for this entry, if it is one of ours.
    fn ticket_of(&self, entry: &Entry) -> Option<u64> {
        self.own_ticket(&entry.context)
    }

    fn own_ticket(&self, context: &[u8]) -> Option<u64> {
        let mut input = Reader::new(context);
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
        match self.raw.apply_conf_change(&to_raft(&change)) {
            Ok(conf_state) => {
                self.raw.mut_store().set_conf_state(conf_state);
                self.members.apply(&change);
                self.is_commit_owed = true;
                self.tell_members();
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
        let asked = self
            .own_ticket(context)
            .and_then(|ticket| self.reads.asked.remove(&ticket));
        if let Some((_, reads)) = asked {
            let answered = reads.into_iter().map(|(_, caller)| (index, caller));
            self.reads.answered.extend(answered);
        }
    }

    fn finish_reads(&mut self) {
        let applied = self.applied;
        let (done, ahead) = std::mem::take(&mut self.reads.answered)
            .into_iter()
            .partition(|(at, _)| *at <= applied || planted(Bug::ReadAheadOfApply));
        self.reads.answered = ahead;
        for (_, caller) in done {
            self.answer(caller, Answer::At(applied));
        }
    }

    fn install(&mut self, snapshot: Snapshot) {
        self.applied = snapshot.get_metadata().index;
        self.applied_term = snapshot.get_metadata().term;
        self.applied_bytes = 0;
        self.members = restore(self.state.as_mut(), &snapshot)
            .expect("a snapshot that a leader sent is one that a manager of this version wrote");
        self.tell_members();
        self.raw.mut_store().install(snapshot);
    }

    /// Begins a snapshot when enough was applied since the last one, or when a peer cannot go on without.
    fn keep_snapshot(&mut self) {
        self.is_snapshot_wished |= self.raw.store().take_snapshot_wish();
        if self.is_keeping {
            return;
        }
        let last = self.raw.store().snapshot();
        let grown = last.data.len() as u64 * self.limits.snapshot_growth_percent / 100;
        let entries = self.applied.saturating_sub(last.get_metadata().index);
        // Asked for last: the state is looked at for it.
        let wished = || self.state.snapshot_entries();
        let many = || wished().unwrap_or(self.limits.snapshot_entries);
        let due = (self.applied_bytes >= grown && entries >= many())
            || self.applied_bytes >= self.limits.snapshot_bytes.max(grown);
        if self.is_snapshot_wished || due {
            self.is_keeping = true;
            let frozen = self.freeze();
            self.applied_bytes = 0;
            self.effects.push_back(Effect::Keep(frozen));
        }
    }

    fn watch_leadership(&mut self) {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let now = Leadership {
            term: raft.term,
            leader: self.leader(),
            is_leader: leads && self.applied_term == raft.term,
            is_removed: self.is_expelled || self.members.was_removed(raft.id),
        };
        let before = self.leadership;
        if now == before {
            return;
        }
        if !leads || now.term != before.term {
            // Whoever waits for an entry of an earlier term cannot be told what became of it.
            for caller in std::mem::take(&mut self.proposals).into_values() {
                if planted(Bug::LossIsSuccess) {
                    self.answer(caller, Answer::At(self.applied));
                    continue;
                }
                self.fail(caller, ProposeError::Lost);
            }
            self.abandon_membership(now.leader);
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
            let id = self.raft_id();
            tracing::info!(raft.id = id, raft.term = now.term, raft.leader = ?now.leader, "leadership");
        }
        self.leadership = now;
        self.effects.push_back(Effect::Leadership(now));
        self.settle_transfer();
    }
}

fn to_raft(change: &MemberChange) -> ConfChange {
    let mut raft_change = ConfChange {
        node_id: change.raft_id(),
        ..ConfChange::default()
    };
    raft_change.set_change_type(match change {
        MemberChange::AddLearner(..) => ConfChangeType::AddLearnerNode,
        MemberChange::SetVoter(..) => ConfChangeType::AddNode,
        MemberChange::Remove(_) => ConfChangeType::RemoveNode,
    });
    raft_change
}

/// Reads a snapshot into the state machine; gives the members that it knows of.
pub(crate) fn restore(
    state: &mut dyn StateMachine,
    snapshot: &Snapshot,
) -> Result<Members, String> {
    let mut input = Reader::new(&snapshot.data);
    let members = Members::decode(&mut input).map_err(|error| error.to_string())?;
    state.restore(input.bytes().map_err(|error| error.to_string())?)?;
    Ok(members)
}
