//! What must be true, whatever happens. The oracle sees every entry that any manager applies, every promise that one
//! makes, and every process that an agent starts; it knows one truth, and says where somebody differs from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use raft::eraftpb::{Entry, Message, MessageType};
use shoal_api::{
    Actor, NodeId, SecretId, TaskId, TaskState,
    object::{Change, Expect, NodeState, Object, ObjectKey, Task},
    spec::{Availability, UpdateConfig, UpdateOrder},
    wire::decode_batch_with,
};
use shoal_manager::{
    Intent,
    core::{
        audit::{audit, audit_objects},
        consensus::{
            Members, RaftId,
            node::{Kept, Node},
        },
        state::{Rejected, State},
    },
};
use shoal_worker::core::assignment::{Item, ItemKey, Message as Told};

use crate::{
    env::{HostId, Instant, SECOND},
    manager::node_of,
    plans,
    user::{Op, Reply, Want},
};

/// Every so many entries the whole state of a manager is compared with the truth, and the truth with its own snapshot.
const COMPARE_EVERY: u64 = 8;

/// A plan takes no longer than this from its making to its being applied.
const CLOSED_SURE: Instant = 10 * SECOND;

/// The oracle, seen from everywhere.
#[derive(Debug, Clone, Default)]
pub struct SharedOracle(Arc<Mutex<Oracle>>);

impl SharedOracle {
    /// Looks at it.
    pub fn lock(&self) -> MutexGuard<'_, Oracle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a host has been told to do.
#[derive(Debug, Default)]
struct Duty {
    tasks: BTreeMap<TaskId, BTreeSet<SecretId>>,
    secrets: BTreeSet<SecretId>,
}

/// A process that runs.
#[derive(Debug)]
struct Live {
    host: HostId,
    task: Arc<Task>,
}

/// The one who knows.
#[derive(Debug, Default)]
pub struct Oracle {
    /// What was seen that must not be.
    pub problems: Vec<String>,
    entries: BTreeMap<u64, (u64, bool)>,
    /// The states that plans were made on, by what they say.
    plans: BTreeMap<u64, u64>,
    /// The state after each entry.
    pub states: BTreeMap<u64, State>,
    /// The newest state.
    pub truth: State,
    terms: BTreeMap<u64, u64>,
    committed: u64,
    looked_up_to: BTreeMap<HostId, u64>,
    leaders: BTreeMap<u64, RaftId>,
    votes: BTreeMap<(u64, RaftId), RaftId>,
    members: BTreeMap<RaftId, NodeId>,
    /// Raft ids with which somebody has begun.
    begun: BTreeSet<RaftId>,
    /// Nodes that were removed.
    removed_nodes: BTreeSet<NodeId>,
    /// Bytes of each entry.
    sizes: BTreeMap<u64, u64>,
    terms_seen: BTreeMap<HostId, u64>,
    acked: BTreeMap<HostId, (u64, u64)>,
    /// The highest index that any user was told of.
    pub told: u64,
    excused: BTreeSet<TaskId>,
    live: BTreeMap<TaskId, Live>,
    /// Since when a task shall end.
    pub ends_since: BTreeMap<TaskId, Instant>,
    /// Since when a node is open for tasks, or ready, or not: state, and when it came to be so.
    nodes: BTreeMap<NodeId, ((bool, bool), Instant)>,
    duties: BTreeMap<HostId, Duty>,
    /// Processes that are being asked to stop, to be looked at by who sees all hosts.
    pub stops: Vec<(HostId, TaskId)>,
    /// Now.
    pub now: Instant,
    /// Whether to write down what becomes of the truth.
    pub trace: bool,
    /// What became of it, until somebody reads it.
    pub lines: Vec<String>,
}

impl Oracle {
    fn blame(&mut self, what: impl Into<String>) {
        let what = format!("at {:.3} s: {}", self.now as f64 / 1e9, what.into());
        self.problems.push(what);
    }

    /// A leader proposes what it has planned on the state of that index.
    pub fn plans(&mut self, data: &[u8], index: u64) {
        self.plans.insert(hash(data), index);
    }

    /// A manager applied an entry.
    pub fn applied(
        &mut self,
        host: HostId,
        index: u64,
        data: &[u8],
        result: &Result<(), Rejected>,
        before: &State,
        after: &State,
    ) {
        let entry = (hash(data), result.is_ok());
        match self.entries.get(&index) {
            None => {
                if self
                    .entries
                    .last_key_value()
                    .is_some_and(|(last, _)| *last > index)
                {
                    self.blame(format!(
                        "host {host} applies {index}, which was something else"
                    ));
                }
                self.entries.insert(index, entry);
                self.sizes.insert(index, data.len() as u64);
                if result.is_ok() {
                    self.judge(index, data, before, after);
                }
                self.states.insert(index, after.clone());
                self.truth = after.clone();
            }
            Some(known) if *known != entry => {
                self.blame(format!("host {host} applies another entry at {index}"));
            }
            Some(_) => {
                let truth = self.states.get(&index);
                let differs =
                    index % COMPARE_EVERY == 0 && truth.is_some_and(|truth| !truth.is_same(after));
                if differs {
                    self.blame(format!("host {host} has another state at {index}"));
                }
            }
        }
    }

    /// A manager took over a snapshot.
    pub fn restored(&mut self, host: HostId, state: &State) {
        match self.states.get(&state.index()) {
            Some(truth) if !truth.is_same(state) => {
                self.blame(format!(
                    "host {host} restored another state at {}",
                    state.index()
                ));
            }
            Some(_) => {}
            None if self.states.is_empty() => {
                self.states.insert(state.index(), state.clone());
                self.truth = state.clone();
            }
            None => self.blame(format!(
                "host {host} restored {}, never seen",
                state.index()
            )),
        }
    }

    /// Looks at a change of the truth.
    fn judge(&mut self, index: u64, data: &[u8], before: &State, after: &State) {
        let specs = |service: &_, version| before.task_spec(service, version).cloned();
        let Ok(batch) = decode_batch_with(data, &specs) else {
            return self.blame(format!("entry {index} was applied and cannot be read"));
        };
        for change in &batch.changes {
            let (key, expect) = match change {
                Change::Put { object, expect } => (object.key(), *expect),
                Change::Delete { key, expect } => (key.clone(), *expect),
            };
            let expected = match expect {
                Expect::Absent => None,
                Expect::Version(version) => Some(version),
            };
            if before.version(&key) != expected {
                let found = before.version(&key);
                self.blame(format!(
                    "{key:?} was {found:?}, not {expected:?} as {index} expected"
                ));
            }
            if self.trace
                && let Some(object) = after.object(&key)
            {
                let line = format!("{index} {:?}: {}", batch.actor, describe(&object));
                self.lines.push(line);
            }
            if let ObjectKey::Task(id) = &key {
                let (old, new) = (before.task(id).cloned(), after.task(id).cloned());
                self.judge_task(batch.actor, old.as_deref(), new.as_deref(), after);
            }
        }
        self.judge_removals(before, after);
        for node in after.nodes() {
            let is_ready = node.status.state == NodeState::Ready;
            let is_open = is_ready && node.spec.availability == Availability::Active;
            let now = ((is_ready, is_open), self.now);
            let known = self.nodes.entry(node.id.clone()).or_insert(now);
            if known.0 != now.0 {
                *known = now;
            }
            if !is_open {
                let tasks = after.tasks_of_node(&node.id);
                self.excused.extend(tasks.map(|task| task.id.clone()));
            }
        }
        let plan = self.plans.remove(&hash(data));
        let planned = plan.and_then(|index| self.states.get(&index)).cloned();
        let broken = planned.map(|planned| plans::judge(&batch, &planned, after));
        let audited = if index % COMPARE_EVERY == 0 {
            audit(after)
        } else {
            audit_objects(after)
        };
        for problem in broken.into_iter().flatten().chain(audited) {
            self.blame(problem);
        }
    }

    /// Who is removed stays out.
    fn judge_removals(&mut self, before: &State, after: &State) {
        let gone = before.nodes().filter(|node| after.node(&node.id).is_none());
        for node in gone {
            self.nodes.remove(&node.id);
            self.removed_nodes.insert(node.id.clone());
            let tasks = after.tasks_of_node(&node.id);
            self.excused.extend(tasks.map(|task| task.id.clone()));
        }
        let back = self
            .removed_nodes
            .iter()
            .find(|id| after.node(id).is_some());
        if let Some(id) = back.cloned() {
            self.blame(format!("node {id} was removed and is back"));
        }
    }

    /// A manager with this state does what a node asks it to.
    pub fn let_in(&mut self, node: &NodeId, state: &State) {
        if state.cluster().is_some() && state.node(node).is_none() {
            let index = state.index();
            self.blame(format!(
                "node {node} is let in by a manager that knows at {index} that it was removed"
            ));
        }
    }

    fn judge_task(&mut self, actor: Actor, old: Option<&Task>, new: Option<&Task>, state: &State) {
        use TaskState as S;
        let Some(new) = new else { return };
        let from = old.map(|task| task.status.state);
        let to = new.status.state;
        if let Some(old) = old {
            if to < old.status.state || old.status.state.is_terminal() && to != old.status.state {
                self.blame(format!(
                    "task {} went from {} to {to}",
                    new.id, old.status.state
                ));
            }
            if new.desired_state < old.desired_state {
                self.blame(format!("task {} is wanted again", new.id));
            }
        }
        if from != Some(to) {
            let owner = match to {
                S::New => Actor::Orchestrator,
                S::Pending => Actor::Allocator,
                S::Assigned => Actor::Scheduler,
                S::Orphaned => Actor::Dispatcher,
                S::Shutdown | S::Failed | S::Rejected if new.node.is_none() => actor,
                _ => Actor::Agent,
            };
            // What was not yet with an agent may be ended by others.
            let is_early = from.is_none_or(|from| from < S::Accepted) && to.is_terminal();
            if actor != owner && !is_early {
                self.blame(format!("{actor:?} made task {} {to}", new.id));
            }
            if to == S::Assigned {
                let node = new.node.as_ref().filter(|id| state.node(id).is_some());
                let node = node.and_then(|id| self.nodes.get(id));
                // What was planned while it was open may arrive a little later.
                let is_closed = node
                    .is_none_or(|((_, is_open), since)| !is_open && self.now - since > CLOSED_SURE);
                if is_closed {
                    self.blame(format!("task {} was assigned to a closed node", new.id));
                }
            }
        }
        let ends = new.desired_state >= S::Shutdown;
        if ends && old.is_none_or(|old| old.desired_state < S::Shutdown) {
            self.ends_since.insert(new.id.clone(), self.now);
        }
    }

    /// A manager started: what it has on disk must hold what it promised.
    pub fn check_kept(&mut self, host: HostId, kept: &Kept) {
        let term = kept
            .records
            .last()
            .map_or(0, |record| record.hard_state.term);
        let term = term.max(kept.snapshot.get_metadata().term);
        if let Some(seen) = self.terms_seen.get(&host).filter(|seen| **seen > term) {
            self.blame(format!("host {host} forgot term {seen}, it knows {term}"));
        }
        let state = kept.records.last().map(|record| &record.hard_state);
        let vote = state.and_then(|state| self.votes.get(&(state.term, kept.raft_id)).copied());
        if let Some((state, vote)) = state.zip(vote).filter(|(state, vote)| state.vote != *vote) {
            let (found, term) = (state.vote, state.term);
            self.blame(format!(
                "host {host} forgot that it voted for {vote} in term {term}, it knows of {found}"
            ));
        }
        let snapshot = kept.snapshot.get_metadata().index;
        let entries = kept.records.iter().flat_map(|record| &record.entries);
        let last = entries
            .map(|entry| entry.index)
            .max()
            .unwrap_or(0)
            .max(snapshot);
        if let Some((acked_term, acked)) = self.acked.get(&host)
            && *acked_term == term
            && last < *acked
        {
            self.blame(format!("host {host} forgot entries {last} to {acked}"));
        }
    }

    /// A manager begins without a log under that Raft id: under one that was used before it could break promises of which it
    /// knows nothing.
    pub fn begins(&mut self, raft_id: RaftId) {
        if !self.begun.insert(raft_id) {
            self.blame(format!(
                "Raft id {raft_id} is given to a log that begins anew"
            ));
        }
    }

    /// A host forgot its log, as it was told to.
    pub fn forgets(&mut self, host: HostId) {
        self.terms_seen.remove(&host);
        self.acked.remove(&host);
        self.looked_up_to.remove(&host);
    }

    /// A manager knows of these members.
    pub fn members(&mut self, members: &Members) {
        for (id, member) in members.iter() {
            self.member(id, &member.node_id);
            if members.was_removed(id) {
                self.blame(format!("manager {id} was removed and is back"));
            }
        }
    }

    /// Somebody is a member.
    fn member(&mut self, id: RaftId, node: &NodeId) {
        let known = self.members.entry(id).or_insert_with(|| node.clone());
        if known != node {
            let known = known.clone();
            self.blame(format!("Raft id {id} belongs to {known} and to {node}"));
        }
    }

    /// A manager tells another one something.
    pub fn promised(&mut self, host: HostId, message: &Message) {
        let vote = match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => Some(message.to),
            MessageType::MsgRequestVote => Some(message.from),
            MessageType::MsgAppendResponse if !message.reject => {
                let acked = self.acked.entry(host).or_default();
                *acked = (*acked).max((message.term, message.index));
                None
            }
            _ => None,
        };
        if let Some(vote) = vote {
            let first = *self
                .votes
                .entry((message.term, message.from))
                .or_insert(vote);
            if first != vote {
                let (from, term) = (message.from, message.term);
                self.blame(format!(
                    "manager {from} voted for {first} and {vote} in term {term}"
                ));
            }
        }
        let is_real = !matches!(
            message.get_msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse
        );
        if is_real {
            let seen = self.terms_seen.entry(host).or_default();
            *seen = (*seen).max(message.term);
        }
    }

    /// A manager after it has done something.
    pub fn look_at(&mut self, host: HostId, node: &Node) {
        let (term, leads) = node.term();
        if leads {
            let is_next = self.leaders.range(term..).next().is_none();
            let leader = *self.leaders.entry(term).or_insert_with(|| node.raft_id());
            if leader != node.raft_id() {
                let id = node.raft_id();
                self.blame(format!("{leader} and {id} lead term {term}"));
            }
            // Whoever comes to lead has everything that was decided before.
            let committed = self.committed;
            let term_of = self.terms.get(&committed).copied();
            let has_it = |entry: &Entry| term_of.is_none_or(|term| entry.term == term);
            if is_next && node.applied() < committed && !node.entry(committed).is_some_and(has_it) {
                let id = node.raft_id();
                self.blame(format!("{id} leads term {term} and lacks {committed}"));
            }
        }
        let from = self.looked_up_to.get(&host).copied().unwrap_or(0);
        let to = node.applied();
        for index in from + 1..=to {
            let Some(entry) = node.entry(index) else {
                continue;
            };
            let term = *self.terms.entry(index).or_insert(entry.term);
            if term != entry.term {
                self.blame(format!(
                    "entry {index} was committed in term {term} and in {}",
                    entry.term
                ));
            }
        }
        self.looked_up_to.insert(host, to);
        self.committed = self.committed.max(to);
    }

    /// A user was answered; `floor` is what everybody knew when the question was asked.
    pub fn replied(&mut self, op: &Op, floor: u64, reply: &Reply) {
        match (&op.want, reply) {
            (Want::Read(()), Reply::Read(state)) => {
                if state.index() < floor {
                    let index = state.index();
                    self.blame(format!("a read gave state {index} after {floor} was known"));
                }
                self.told = self.told.max(state.index());
                let truth = self.states.get(&state.index());
                if truth.is_some_and(|truth| !truth.is_same(state)) {
                    let index = state.index();
                    self.blame(format!("a read gave another state {index} than there was"));
                }
            }
            (Want::Write(intent), Reply::Refused { text, index }) => {
                if *index < floor {
                    self.blame(format!(
                        "{intent:?} was refused by state {index} after {floor} was known: {text}"
                    ));
                }
                self.told = self.told.max(*index);
                let last = self.states.values().next_back();
                if last.is_some_and(|state| state.has_granted(op.id.into())) {
                    self.blame(format!("{intent:?} came to pass and was refused: {text}"));
                }
            }
            (Want::Write(intent), Reply::Written { index, key }) => {
                if *index <= floor {
                    self.blame(format!(
                        "a write took place at {index} after {floor} was known"
                    ));
                }
                self.told = self.told.max(*index);
                let before = self.states.range(..*index).next_back();
                let before = before.and_then(|(_, state)| state.version(key));
                let after = match self.states.get(index) {
                    Some(state) => state.version(key),
                    None => return self.blame(format!("a write at {index} that nobody applied")),
                };
                let is_done = match intent.as_ref() {
                    Intent::Create(_) => before.is_none() && after == Some(*index),
                    Intent::Update { version, .. }
                    | Intent::Rollback { version, .. }
                    | Intent::RotateRoot { version, .. } => {
                        before == Some(*version) && after == Some(*index)
                    }
                    Intent::Remove { .. } => before.is_some() && after.is_none(),
                    Intent::RotateTokens { .. } => after == Some(*index),
                };
                if !is_done {
                    self.blame(format!(
                        "{intent:?} was acknowledged at {index} and is not there"
                    ));
                }
            }
            _ => {}
        }
    }

    /// An agent was told something: no secret without a task that uses it.
    pub fn told(&mut self, host: HostId, told: &Told, now: Instant) {
        self.now = now;
        let duty = self.duties.entry(host).or_default();
        if told.complete {
            *duty = Duty::default();
        }
        for removal in &told.removals {
            match removal {
                ItemKey::Task(id) => drop(duty.tasks.remove(id)),
                ItemKey::Secret(id) => drop(duty.secrets.remove(id)),
                ItemKey::Config(_) => {}
            }
        }
        let mut foreign = None;
        for item in &told.updates {
            match item {
                Item::Task(task) => {
                    let used = &task.spec.container.secrets;
                    let is_over = task.status.state.is_terminal();
                    let used = used.iter().filter(|_| !is_over);
                    let used = used.map(|used| used.id.clone()).collect();
                    duty.tasks.insert(task.id.clone(), used);
                    if task.node != Some(node_of(host)) {
                        foreign = Some(task.id.clone());
                    }
                }
                Item::Secret(secret) => drop(duty.secrets.insert(secret.id.clone())),
                Item::Config(_) => {}
            }
        }
        let used: BTreeSet<_> = duty.tasks.values().flatten().cloned().collect();
        let spare = duty.secrets.difference(&used).next().cloned();
        if let Some(secret) = spare {
            self.blame(format!(
                "host {host} holds secret {secret} that no task of it uses"
            ));
        }
        if let Some(task) = foreign {
            self.blame(format!(
                "host {host} was told of task {task} of another node"
            ));
        }
    }

    /// A process starts: its slot must be free.
    pub fn started(&mut self, host: HostId, task: &Task, now: Instant) {
        self.now = now;
        let place = (task.slot, (task.slot == 0).then_some(host));
        let is_excused = |oracle: &Self, id: &TaskId| {
            oracle.excused.contains(id)
                || oracle
                    .truth
                    .task(id)
                    .is_none_or(|task| task.status.state.is_terminal())
        };
        let same = self.live.values().filter(|live| {
            let its = (live.task.slot, (live.task.slot == 0).then_some(live.host));
            live.task.service == task.service && its == place && live.task.id != task.id
        });
        let others: Vec<TaskId> = same.map(|live| live.task.id.clone()).collect();
        let service = self.truth.service(&task.service).cloned();
        let start_first = service.is_none_or(|service| {
            let is = |config: &Option<UpdateConfig>| {
                config.is_some_and(|config| config.order == UpdateOrder::StartFirst)
            };
            is(&service.spec.update)
                || is(&service.spec.rollback)
                || service
                    .previous_spec
                    .as_ref()
                    .is_some_and(|spec| is(&spec.update))
        });
        for other in others {
            if !start_first && !is_excused(self, &other) && !is_excused(self, &task.id) {
                self.blame(format!(
                    "task {} starts while {other} runs in its slot",
                    task.id
                ));
            }
        }
        let task = Arc::new(task.clone());
        self.live.insert(task.id.clone(), Live { host, task });
    }

    /// A process is asked to stop.
    pub fn stopping(&mut self, host: HostId, task: &Task, now: Instant) {
        self.now = now;
        self.stops.push((host, task.id.clone()));
    }

    /// A process has ended.
    pub fn stopped(&mut self, task: &TaskId) {
        self.live.remove(task);
    }

    /// The processes that run, with their hosts.
    pub fn running(&self) -> impl Iterator<Item = (HostId, &TaskId)> {
        self.live.iter().map(|(id, live)| (live.host, id))
    }

    /// Whether the rules for a task's slot are lifted: its node was lost or closed.
    pub fn is_excused(&self, task: &TaskId) -> bool {
        self.excused.contains(task)
    }

    /// Since when a node is ready; `None` if it is not.
    pub fn ready_since(&self, node: &NodeId) -> Option<Instant> {
        let ((is_ready, _), since) = self.nodes.get(node)?;
        is_ready.then_some(*since)
    }

    /// Bytes of all entries behind that index.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.sizes.range(index + 1..).map(|(_, bytes)| bytes).sum()
    }

    /// The highest index known to be committed.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// A number for the whole truth.
    pub fn fingerprint(&self) -> u64 {
        let entries = self.entries.iter();
        entries.fold(7, |sum, (index, (data, ok))| {
            (sum ^ index ^ data.rotate_left(17) ^ u64::from(*ok))
                .wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// Objects by what they are, for messages.
pub fn describe(object: &Object) -> String {
    match object {
        Object::Task(task) => format!(
            "{} slot {} version {} {}/{} on {:?} {}",
            task.id,
            task.slot,
            task.spec_version,
            task.status.state,
            task.desired_state,
            task.node,
            task.status.err
        ),
        Object::Node(node) => format!("{} {:?} {:?}", node.id, node.status.state, node.spec),
        Object::Service(o) => format!("{} {:?}", o.spec.annotations.name, o.update_status),
        other => format!("{:?}", other.key()),
    }
}

/// FNV-1a.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
