//! A manager's process: the real consensus machine with its log on a simulated disk, and while it leads everything else.

mod requests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use raft::eraftpb::{Message, MessageType, Snapshot};
use shoal_api::{ClusterId, NodeId, object::Batch, wire::encode_batch_lean};
use shoal_manager::{
    core::{
        consensus::{
            LogIndex, Member, Members, RaftId,
            node::{Caller, Effect, FrozenState, Leadership, Limits, Node, Persist, StateMachine},
            wire::{decode_message, encode_message},
        },
        state::{Rejected, State},
    },
    io::{
        raft::{
            Start, Vault,
            seal::{DataKey, Owner},
            storage::Storage,
        },
        store::Replica,
    },
};

pub use self::requests::{Observed, Owed};
use crate::{
    disk::SimDisk,
    env::{Clock, Env, Event, HostId, MS},
    leader::Reign,
    oracle::SharedOracle,
    trouble::{Point, Trouble},
};

/// Length of a tick; an election takes ten to twenty of them.
pub const TICK: u64 = 100 * MS;
const ELECTION_TICKS: usize = 10;
/// Small segments and few entries between snapshots, so that both happen often.
pub const SEGMENT_BYTES: u64 = 16 << 10;
/// Rest after a reign that ended, as in the product.
const REIGN_PAUSE: u64 = 100 * MS;

/// The process has ended.
#[derive(Debug)]
pub struct Died;

/// Which process acts.
#[derive(Debug, Clone, Copy)]
pub struct Me {
    /// Its host.
    pub host: HostId,
    /// Which start of its programs.
    pub life: u64,
    /// Its clock.
    pub clock: Clock,
}

/// Where a host's manager listens.
pub fn address_of(host: HostId) -> String {
    format!("10.0.0.{}:2377", host + 1)
}

/// The host that listens there.
pub fn host_of(address: &str) -> Option<HostId> {
    let last = address.strip_prefix("10.0.0.")?.strip_suffix(":2377")?;
    last.parse::<HostId>().ok()?.checked_sub(1)
}

/// The identity of a host's node.
pub fn node_of(host: HostId) -> NodeId {
    format!("node{}", host + 1)
        .parse()
        .expect("letters and digits")
}

/// What the consensus thread is told.
#[derive(Debug)]
pub enum Input {
    /// A tick.
    Tick,
    /// A message, and who sent it.
    Message(Box<Message>, Member),
    /// Data for the log.
    Propose(Vec<u8>, Caller),
    /// A barrier.
    Read(Caller),
    /// A new member.
    Admit(Member, Caller),
    /// A member that must go.
    Remove(RaftId, Caller),
    /// Another one shall lead.
    Transfer(Caller),
    /// A peer does not answer.
    Unreachable(RaftId),
    /// What became of a snapshot.
    Snapshot(RaftId, bool),
    /// A snapshot of our own is durable.
    Kept,
}

/// The replica, with somebody who looks over its shoulder.
struct Watched {
    replica: Replica,
    oracle: SharedOracle,
    host: HostId,
}

impl StateMachine for Watched {
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        let before = self.replica.state();
        let result = self.replica.apply(index, data);
        let after = self.replica.state();
        let mut oracle = self.oracle.lock();
        oracle.applied(self.host, index, data, &result, &before, &after);
        result
    }

    fn tell(&mut self) {
        self.replica.tell();
    }

    fn freeze(&self) -> FrozenState {
        self.replica.freeze()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.replica.restore(snapshot)?;
        (self.oracle.lock()).restored(self.host, &self.replica.state());
        Ok(())
    }
}

/// A manager that runs.
pub struct Manager {
    /// Its consensus.
    pub node: Node,
    storage: Storage,
    /// The state that it applies to.
    pub replica: Replica,
    disk: SimDisk,
    inbox: VecDeque<Input>,
    is_disk_busy: bool,
    /// Index of the last entry that was written since the start.
    last_index: LogIndex,
    /// A snapshot that is being written down, and up to where the log may be cut off then.
    keeping: Option<(Snapshot, LogIndex)>,
    owed: BTreeMap<Caller, Owed>,
    next_caller: Caller,
    /// The members that it knows of.
    pub members: Arc<Members>,
    /// Those of whose admission it has not heard.
    guests: BTreeMap<RaftId, Member>,
    /// Who leads, as it knows.
    pub leadership: Leadership,
    /// What it does while it leads.
    pub reign: Option<Reign>,
    reigns_after: u64,
}

impl Manager {
    /// Starts, on what the disk holds or as `start` says.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn start(me: Me, disk: &SimDisk, start: Start, env: &mut Env) -> Result<Self, String> {
        let cluster: ClusterId = "cluster".parse().expect("letters");
        let vault = Vault {
            disk: Arc::new(disk.clone()),
            key: DataKey::new([me.host as u8 + 1; 32]).into(),
            owner: Owner::new(&cluster, &node_of(me.host)),
        };
        let (storage, kept) =
            Storage::open(vault, start, SEGMENT_BYTES).map_err(|error| error.to_string())?;
        env.oracle.lock().check_kept(me.host, &kept);
        let replica = Replica::default();
        let watched = Watched {
            replica: replica.clone(),
            oracle: env.oracle.clone(),
            host: me.host,
        };
        let limits = Limits {
            election_ticks: ELECTION_TICKS,
            snapshot_entries: env.faults.snapshot_entries,
            snapshot_bytes: 1 << 20,
            snapshot_growth_percent: 0,
            kept_entries: env.faults.snapshot_entries / 4,
        };
        let incarnation = env.rng.next_u64();
        let node = Node::new(limits, kept, Box::new(watched), incarnation)
            .map_err(|error| error.to_string())?;
        disk.pass();
        let members = Arc::new(node.members().clone());
        let first = env.rng.range(0, TICK);
        let Me { host, life, .. } = me;
        env.after(first, Event::Tick { host, life });
        Ok(Self {
            node,
            storage,
            replica,
            disk: disk.clone(),
            inbox: VecDeque::new(),
            is_disk_busy: false,
            last_index: 0,
            keeping: None,
            owed: BTreeMap::new(),
            next_caller: 0,
            members,
            guests: BTreeMap::new(),
            leadership: Leadership::default(),
            reign: None,
            reigns_after: 0,
        })
    }

    /// Puts something into the consensus thread's inbox.
    pub fn put(&mut self, input: Input) {
        // After a stall one tick is due, not many.
        let is_spare =
            matches!(input, Input::Tick) && self.inbox.iter().any(|i| matches!(i, Input::Tick));
        if !is_spare {
            self.inbox.push_back(input);
        }
    }

    /// A message from a peer.
    pub fn receive(&mut self, from: HostId, raft_id: RaftId, bytes: &[u8]) {
        if raft_id == self.node.raft_id()
            && let Ok(message) = decode_message(bytes)
        {
            let sender = Member {
                node_id: node_of(from),
                address: address_of(from),
            };
            // As the product does: a member's messages are believed from its own node alone.
            let known = self.members.get(message.from);
            if known.is_none_or(|known| known.node_id == sender.node_id) {
                self.put(Input::Message(Box::new(message), sender));
            }
        }
    }

    /// Proposes a batch.
    pub fn propose(&mut self, batch: &Batch, owed: Owed, env: &Env) -> Caller {
        let state = self.replica.state();
        let data = encode_batch_lean(batch, &|service, version| {
            state.task_spec(service, version).cloned()
        });
        if matches!(owed, Owed::Loop(..)) {
            env.oracle.lock().plans(&data, state.index());
        }
        let caller = self.owe(owed);
        self.put(Input::Propose(data, caller));
        caller
    }

    /// The disk is done.
    pub fn on_disk_done(&mut self) {
        self.is_disk_busy = false;
        self.disk.pass();
        self.node.on_persisted();
    }

    /// Whether a record takes back entries that the log holds.
    fn overwrites(&mut self, persist: &Persist) -> bool {
        let entries = persist.record.iter().flat_map(|record| &record.entries);
        let mut indexes = entries.map(|entry| entry.index);
        let Some(first) = indexes.next() else {
            return false;
        };
        let before = self.last_index;
        self.last_index = indexes.last().unwrap_or(first);
        first <= before
    }

    /// Whether the process ends when another manager's snapshot is durable and before the log says so. If it does, what its
    /// next life appends shows soon whether that was understood.
    fn dies_before_saying(&mut self, persist: &Persist, me: Me, env: &mut Env) -> bool {
        if !env.rng.chance(env.faults.points[Point::Installed as usize]) {
            return false;
        }
        let snapshot = Persist {
            snapshot: persist.snapshot.clone(),
            record: None,
        };
        if self.storage.persist(&snapshot).is_ok() {
            self.disk.pass();
        }
        let delay = env.rng.range(200 * MS, 8_000 * MS);
        env.after(delay, Event::Trouble(Trouble::Kill(me.host)));
        true
    }

    /// A snapshot is durable.
    pub fn on_kept(&mut self) {
        if self.is_disk_busy {
            return self.inbox.push_back(Input::Kept);
        }
        let Some((snapshot, keep_from)) = self.keeping.take() else {
            return;
        };
        // A disk that fails here has been broken by the simulation, which then ends the process itself.
        if self.storage.release(keep_from).is_ok() {
            self.disk.pass();
            self.node.on_kept(snapshot);
        }
    }

    /// Works until there is nothing left to do at this moment.
    ///
    /// # Errors
    /// The process ended on the way.
    pub fn work(&mut self, me: Me, env: &mut Env) -> Result<(), Died> {
        loop {
            self.consent(me, env)?;
            self.lead(me, env);
            if self.inbox.is_empty() || self.is_disk_busy {
                return Ok(());
            }
        }
    }

    fn consent(&mut self, me: Me, env: &mut Env) -> Result<(), Died> {
        while !self.is_disk_busy {
            while let Some(input) = self.inbox.pop_front() {
                env.tell(|| summary(&input));
                self.handle(input);
            }
            let effects = self.node.poll();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.carry_out(effect, me, env)?;
            }
            env.oracle.lock().look_at(me.host, &self.node);
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.node.tick(),
            Input::Message(message, sender) => self.node.step(*message, Some(sender)),
            Input::Propose(data, caller) => self.node.propose(&data.into(), caller),
            Input::Read(caller) => self.node.read(caller),
            Input::Admit(member, caller) => self.node.admit(member, caller),
            Input::Remove(raft_id, caller) => self.node.remove(raft_id, caller),
            Input::Transfer(caller) => self.node.transfer(caller),
            Input::Unreachable(peer) => self.node.report_unreachable(peer),
            Input::Snapshot(peer, arrived) => self.node.report_snapshot(peer, arrived),
            Input::Kept => self.on_kept(),
        }
    }

    fn carry_out(&mut self, effect: Effect, me: Me, env: &mut Env) -> Result<(), Died> {
        match effect {
            Effect::Send(message) => self.send(&message, me, env),
            Effect::Members(members) => {
                env.oracle.lock().members(&members);
                self.members = members;
                self.guests.clear();
            }
            Effect::Guest(id, guest) => drop(self.guests.insert(id, guest)),
            Effect::Answer(caller, answer) => {
                if let Some(owed) = self.owed.remove(&caller) {
                    self.answered(caller, owed, answer, me, env);
                }
            }
            Effect::Leadership(now) => {
                env.tell(|| format!("host {} {now:?}", me.host));
                self.leadership = now;
            }
            Effect::Keep(frozen) => {
                let keeper = self.storage.keeper(frozen.index()).map_err(|_| Died)?;
                let snapshot = frozen.write();
                let keep_from = keeper.keep(&snapshot).map_err(|_| Died)?;
                let (crash, delay) = env.faults.persisting(&mut env.rng, false, true);
                if crash {
                    return Err(Died);
                }
                self.keeping = Some((snapshot, keep_from));
                env.reach(Point::Kept, me.host);
                let Me { host, life, .. } = me;
                env.after(delay, Event::Kept { host, life });
            }
            Effect::Persist(persist) => {
                let is_vote = persist
                    .record
                    .as_ref()
                    .is_some_and(|r| r.entries.is_empty());
                if persist.snapshot.is_some() && self.dies_before_saying(&persist, me, env) {
                    return Err(Died);
                }
                if self.storage.persist(&persist).is_err() {
                    return Err(Died); // what is on disk is unknown: the product ends itself here
                }
                let (crash, delay) =
                    env.faults
                        .persisting(&mut env.rng, is_vote, persist.snapshot.is_some());
                if crash {
                    return Err(Died);
                }
                if self.overwrites(&persist) {
                    env.reach(Point::Overwritten, me.host);
                }
                if env.rng.chance(env.faults.points[Point::Synced as usize]) {
                    self.disk.pass();
                    return Err(Died);
                }
                if delay == 0 {
                    self.disk.pass();
                    self.node.on_persisted();
                } else {
                    self.is_disk_busy = true;
                    let Me { host, life, .. } = me;
                    env.after(delay, Event::DiskDone { host, life });
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, message: &Message, me: Me, env: &mut Env) {
        env.oracle.lock().promised(me.host, message);
        // Nothing tempts a manager to break its word like dying right after it has given it.
        let is_vote = message.get_msg_type() == MessageType::MsgRequestVoteResponse;
        if is_vote && !message.reject && env.rng.chance(env.faults.crash_voting) {
            let delay = env.rng.range(0, 2 * MS);
            env.after(delay, Event::Trouble(Trouble::Kill(me.host)));
        }
        let known = self.members.get(message.to);
        let Some(member) = known.or_else(|| self.guests.get(&message.to)) else {
            return;
        };
        let Some(to) = host_of(&member.address) else {
            return;
        };
        let is_bulk = !message.entries.is_empty();
        let bytes = encode_message(message);
        let arrives = env.send_raft((me.host, to), message.to, bytes, is_bulk);
        let Me { host, life, .. } = me;
        let (peer, delay) = (message.to, env.rng.range(MS, 200 * MS));
        if message.snapshot.is_some() {
            let arrived = arrives;
            env.after(
                delay,
                Event::SnapshotSent {
                    host,
                    life,
                    peer,
                    arrived,
                },
            );
        } else if !arrives && env.rng.chance(300_000) {
            env.after(delay, Event::Unreachable { host, life, peer });
        }
    }

    /// Begins, does and ends what only a leader does.
    fn lead(&mut self, me: Me, env: &mut Env) {
        let Leadership {
            is_leader, term, ..
        } = self.leadership;
        if let Some(reign) = &self.reign
            && (!is_leader || reign.term != term)
        {
            self.end_reign(me, env);
        }
        if is_leader && self.reign.is_none() {
            if env.now < self.reigns_after {
                let Me { host, life, .. } = me;
                env.after(self.reigns_after - env.now, Event::Lead { host, life });
                return;
            }
            env.tell(|| format!("host {} leads term {term}", me.host));
            env.reach(Point::Reign, me.host);
            self.reign = Some(Reign::begin(term, &self.replica, me, env));
        }
        if let Some(mut reign) = self.reign.take() {
            reign.work(self, me, env);
            self.reign = Some(reign);
        }
    }

    /// Ends the reign: its sessions are closed.
    pub fn end_reign(&mut self, me: Me, env: &mut Env) {
        if let Some(reign) = self.reign.take() {
            reign.end(me, env);
            self.reigns_after = env.now + REIGN_PAUSE;
        }
    }

    /// The state as this manager has it.
    pub fn state(&self) -> State {
        self.replica.state()
    }
}

/// A line about a message, for whoever reads what happens.
fn summary(input: &Input) -> String {
    let Input::Message(m, _) = input else {
        return format!("{input:?}").chars().take(60).collect();
    };
    let entries: Vec<(u64, u64)> = m.entries.iter().map(|e| (e.index, e.term)).collect();
    let (kind, from, to) = (m.get_msg_type(), m.from, m.to);
    let (term, index, log_term, commit) = (m.term, m.index, m.log_term, m.commit);
    let reject = m.reject;
    format!(
        "{kind:?} {from}>{to} term {term} after {index}/{log_term} commit {commit} {entries:?} {reject}"
    )
}
