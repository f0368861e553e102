//! All of it: hosts, users and trouble, moved by one queue of events.

mod asking;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use shoal_api::{Timestamp, spec::NodeRole};
use shoal_ca::{PeerIdentity, Role};
use shoal_manager::{
    core::{consensus::Member, state::State},
    io::{grpc::authorize::judge, raft::Start},
};

use crate::{
    agent::{Agent, Body},
    disk::SimDisk,
    env::{Clock, Env, Event, HostId, MS, SECOND},
    genesis::genesis,
    leader::addresses,
    manager::{Died, Input, Manager, Me, TICK, address_of, host_of, node_of},
    oracle::SharedOracle,
    rpc::{Down, Up},
    trouble::{Faults, Trouble},
    user::{Reply, User},
};

/// How often a host looks at whether it shall be a manager.
const UPKEEP: u64 = SECOND;
/// Events within a second beyond which somebody works in vain: a busy loop costs a hundred times the most that clusters of
/// this size have been seen to need.
const STEPS_PER_SECOND_MAX: u64 = 200_000;
/// After the end of trouble, how long the cluster may take to become what was asked for.
pub const REST: u64 = 240 * SECOND;

/// A machine.
pub struct Host {
    /// Its number.
    pub id: HostId,
    life: u64,
    /// Whether its programs run.
    pub is_up: bool,
    is_paused: bool,
    deferred: Vec<Event>,
    clock: Clock,
    disk: SimDisk,
    /// Whether its disk holds a place in the group of managers.
    has_place: bool,
    /// Whether its log was damaged since it last started.
    is_rotten: bool,
    /// Its certificate.
    certificate: PeerIdentity,
    /// Number of its last request to be a manager.
    asked: u64,
    /// Its manager.
    pub manager: Option<Manager>,
    /// Its agent.
    pub agent: Option<Agent>,
    /// Containers and what its agent wrote down.
    pub body: Body,
}

fn certificate_of(host: HostId, is_manager: bool) -> PeerIdentity {
    PeerIdentity {
        node_id: node_of(host),
        role: if is_manager {
            Role::Manager
        } else {
            Role::Worker
        },
        cluster_id: "cluster".parse().expect("letters"),
        serial: String::new(),
        not_before: Timestamp(0),
        not_after: Timestamp(i64::MAX),
    }
}

impl Host {
    /// Its disk.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Its process.
    pub fn me(&self) -> Me {
        Me {
            host: self.id,
            life: self.life,
            clock: self.clock,
        }
    }
}

/// The whole simulated world.
pub struct World {
    /// What surrounds the hosts.
    pub env: Env,
    /// The hosts, managers first.
    pub hosts: Vec<Host>,
    /// The users.
    pub users: Vec<User>,
    next_op: u64,
    /// Whether trouble has ended.
    pub is_quiet: bool,
    /// Whether everything is as asked for.
    pub is_done: bool,
    /// What is still missing.
    pub missing: String,
    /// Events so far.
    pub steps: u64,
    /// The present second, and the events in it.
    second: (u64, u64),
    /// Hosts that do not start any more.
    pub dead: BTreeSet<HostId>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self::empty(seed, faults);
        for user in 0..faults.users {
            world.users.push(User::default());
            let at = 3 * SECOND + user as u64 * 100 * MS;
            world.env.after(at, Event::User { user, op: 0 });
        }
        world.env.after(4 * SECOND, Event::Trouble(Trouble::Next));
        world.env.after(faults.until, Event::Trouble(Trouble::End));
        world
    }

    /// A cluster without users, and without trouble except what `faults` does to messages and disks.
    pub fn empty(seed: u64, faults: Faults) -> Self {
        let oracle = SharedOracle::default();
        let mut env = Env::new(seed, faults, oracle);
        let count = faults.managers + faults.workers;
        let genesis = genesis(&mut env.rng, &faults);
        let hosts = (0..count).map(|id| {
            let drift = env.rng.range(0, 2 * faults.drift + 1) as i64 - faults.drift as i64;
            let wrong = if faults.drift > 0 { SECOND } else { 1 };
            let offset = env.rng.range(0, wrong) as i64;
            Host {
                id,
                life: 1,
                is_up: true,
                is_paused: false,
                deferred: Vec::new(),
                clock: Clock { drift, offset },
                disk: SimDisk::default(),
                has_place: false,
                is_rotten: false,
                certificate: certificate_of(id, id < faults.managers),
                asked: 0,
                manager: None,
                agent: None,
                body: Body::default(),
            }
        });
        let hosts = hosts.collect();
        let mut world = Self {
            env,
            hosts,
            users: Vec::new(),
            next_op: 0,
            is_quiet: false,
            is_done: false,
            missing: String::new(),
            steps: 0,
            second: (0, 0),
            dead: BTreeSet::new(),
        };
        let member = Member {
            node_id: node_of(0),
            address: address_of(0),
        };
        let start = Start::Bootstrap {
            member,
            state: genesis,
        };
        world.start_manager(0, start);
        for host in 0..count {
            world.start_agent(host);
            let life = world.hosts[host].life;
            let at = 500 * MS + host as u64 * 100 * MS;
            world.env.after(at, Event::Upkeep { host, life });
        }
        world
    }

    fn managers(&self) -> Vec<String> {
        (0..self.env.faults.managers).map(address_of).collect()
    }

    fn start_manager(&mut self, id: HostId, start: Start) {
        let host = &mut self.hosts[id];
        let me = host.me();
        if let Start::Join { raft_id, .. } = &start {
            self.env.oracle.lock().begins(*raft_id);
        }
        match Manager::start(me, &host.disk, start, &mut self.env) {
            Ok(_) if host.is_rotten => {
                let blind = format!("host {id} takes damage in its log for the end of it");
                self.env.blame(blind);
            }
            Ok(manager) => {
                host.manager = Some(manager);
                host.has_place = true;
                self.work(id);
            }
            Err(_) if host.disk.has_failed() => self.kill(id),
            // It says so, and whoever runs it does as the message says: the log is given up, and others have it.
            Err(error) if host.is_rotten => {
                self.env
                    .tell(|| format!("host {id} gives up its log: {error}"));
                self.forget_log(id);
            }
            Err(error) => self.env.blame(format!("host {id} cannot start: {error}")),
        }
    }

    fn start_agent(&mut self, id: HostId) {
        let managers = self.managers();
        let host = &mut self.hosts[id];
        let me = host.me();
        host.agent = Some(Agent::start(me, &mut host.body, &managers, &mut self.env));
    }

    /// Lets the next thing happen. Returns whether there was one.
    pub fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.env.queue.pop_first() else {
            return false;
        };
        self.env.now = at;
        self.env.oracle.lock().now = at;
        self.steps += 1;
        if at / SECOND != self.second.0 {
            self.second = (at / SECOND, 0);
        }
        self.second.1 += 1;
        if self.second.1 > STEPS_PER_SECOND_MAX {
            let busy = format!("more than {STEPS_PER_SECOND_MAX} events in a second");
            self.env.blame(busy);
        }
        let mut kind = DefaultHasher::new(); // one that has no key
        std::mem::discriminant(&event).hash(&mut kind);
        self.env.note(at ^ kind.finish());
        self.happen(event);
        self.check_stops();
        if self.env.trace {
            let lines = std::mem::take(&mut self.env.oracle.lock().lines);
            lines.into_iter().for_each(|line| self.env.tell(|| line));
        }
        true
    }

    /// The state as the newest entry left it.
    pub fn truth(&self) -> State {
        self.env.oracle.lock().truth.clone()
    }

    /// Whether something is wrong.
    pub fn problem(&self) -> Option<String> {
        self.env.oracle.lock().problems.first().cloned()
    }

    fn happen(&mut self, event: Event) {
        let target = match &event {
            Event::Tick { host, life }
            | Event::DiskDone { host, life }
            | Event::Kept { host, life }
            | Event::Lead { host, life }
            | Event::Upkeep { host, life }
            | Event::SnapshotSent { host, life, .. }
            | Event::Unreachable { host, life, .. }
            | Event::Timer { host, life, .. } => Some((*host, Some(*life))),
            Event::Raft { to, .. }
            | Event::Up { to, .. }
            | Event::Down { to, .. }
            | Event::Request { to, .. }
            | Event::Admit { to, .. } => Some((*to, None)),
            Event::Admitted { host, .. } => Some((*host, None)),
            Event::Exit { .. } | Event::Reply { .. } | Event::User { .. } | Event::Trouble(_) => {
                None
            }
        };
        if let Some((id, life)) = target {
            let host = &mut self.hosts[id];
            if !host.is_up || life.is_some_and(|life| life != host.life) {
                if let Event::Up { conn, .. } = event {
                    self.refuse(id, conn);
                }
                return;
            }
            if host.is_paused {
                return host.deferred.push(event);
            }
        }
        self.handle(event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { host, life } => {
                let rate = self.hosts[host].clock.drift;
                let tick = TICK.saturating_add_signed(-(TICK as i64) / 1_000_000 * rate);
                if let Some(manager) = &mut self.hosts[host].manager {
                    manager.put(Input::Tick);
                    self.env.after(tick, Event::Tick { host, life });
                    self.work(host);
                }
            }
            Event::DiskDone { host, .. } => {
                if let Some(manager) = &mut self.hosts[host].manager {
                    manager.on_disk_done();
                    self.work(host);
                }
            }
            Event::Kept { host, .. } => {
                if let Some(manager) = &mut self.hosts[host].manager {
                    manager.on_kept();
                    self.work(host);
                }
            }
            Event::Lead { host, .. } => self.work(host),
            Event::Upkeep { host, .. } => self.upkeep(host),
            Event::Raft {
                from,
                to,
                raft_id,
                bytes,
            } => self.on_raft(from, to, raft_id, &bytes),
            Event::SnapshotSent {
                host,
                peer,
                arrived,
                ..
            } => self.put(host, Input::Snapshot(peer, arrived)),
            Event::Unreachable { host, peer, .. } => self.put(host, Input::Unreachable(peer)),
            Event::Admit { to, host, ask } => {
                if !self.lets_in(to, host, "/shoal.v1.RaftMembership/Join") {
                    return;
                }
                let at = &mut self.hosts[to];
                let me = at.me();
                if let Some(manager) = &mut at.manager {
                    manager.on_admit((host, ask), me, &mut self.env);
                    self.work(to);
                }
            }
            Event::Admitted { host, ask, answer } => {
                if let Some((raft_id, members)) = answer
                    && !self.hosts[host].has_place
                    && self.hosts[host].asked == ask
                    && members
                        .get(raft_id)
                        .is_some_and(|m| m.node_id == node_of(host))
                {
                    self.start_manager(host, Start::Join { raft_id, members });
                }
            }
            Event::Up { to, conn, message } => self.on_up(to, conn, message),
            Event::Down { to, conn, message } => {
                let host = &mut self.hosts[to];
                let me = host.me();
                if let Some(agent) = &mut host.agent {
                    agent.on_down(conn, message, me, &mut host.body, &mut self.env);
                }
            }
            Event::Timer { host, timer, .. } => {
                let host = &mut self.hosts[host];
                let me = host.me();
                if let Some(agent) = &mut host.agent {
                    agent.on_timer(timer, me, &mut host.body, &mut self.env);
                }
            }
            Event::Exit {
                host,
                boot,
                task,
                code,
            } => {
                let host = &mut self.hosts[host];
                let me = host.me();
                if let Some(container) = host.body.containers.get_mut(&task)
                    && boot == host.body.boot
                    && container.runs()
                {
                    container.exit = Some(code);
                    self.env.oracle.lock().stopped(&task);
                    if let Some(agent) = host.agent.as_mut().filter(|_| !host.is_paused) {
                        agent.on_exit(&task, me, &mut host.body, &mut self.env);
                    }
                }
            }
            Event::Request { to, op } => {
                let host = &mut self.hosts[to];
                let me = host.me();
                match &mut host.manager {
                    Some(manager) => {
                        manager.on_request(op, me, &mut self.env);
                        self.work(to);
                    }
                    None => op.reply(Reply::NoLeader, to, &mut self.env),
                }
            }
            Event::Reply { op, reply } => self.on_reply(op, &reply),
            Event::User { user, op } => self.on_user(user, op),
            Event::Trouble(trouble) => crate::fate::strike(self, trouble),
        }
    }

    fn put(&mut self, host: HostId, input: Input) {
        if let Some(manager) = &mut self.hosts[host].manager {
            manager.put(input);
            self.work(host);
        }
    }

    /// Lets a manager work; the process may end on the way.
    pub fn work(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        let me = host.me();
        let Some(manager) = &mut host.manager else {
            return;
        };
        let worked = manager.work(me, &mut self.env);
        let is_removed = manager.leadership.is_removed;
        match worked {
            Err(Died) => self.kill(id),
            Ok(()) if is_removed => self.forget_log(id),
            Ok(()) => {}
        }
    }

    fn on_raft(&mut self, from: HostId, to: HostId, raft_id: u64, bytes: &[u8]) {
        if self.hosts[to].manager.is_none() {
            return;
        }
        let sender = shoal_manager::core::consensus::wire::decode_message(bytes);
        let sender = sender.map_or(0, |message| message.from);
        if !self.lets_in(to, from, "/shoal.v1.Raft/StreamMessages") {
            return;
        }
        let Some(manager) = &mut self.hosts[to].manager else {
            return;
        };
        if manager.members.was_removed(sender) {
            // The product answers such a message with that fact.
            let passes = self.env.net.passes(to, from);
            let is_it = self.hosts[from].manager.as_mut();
            if let Some(expelled) = is_it.filter(|manager| manager.node.raft_id() == sender)
                && passes
            {
                expelled.node.report_removed();
                self.work(from);
            }
            return;
        }
        manager.receive(from, raft_id, bytes);
        self.work(to);
    }

    /// A manager that was removed begins anew.
    fn forget_log(&mut self, id: HostId) {
        self.env
            .tell(|| format!("host {id} was removed and forgets its log"));
        let host = &mut self.hosts[id];
        let me = host.me();
        if let Some(mut manager) = host.manager.take() {
            manager.end_reign(me, &mut self.env);
        }
        host.has_place = false;
        host.is_rotten = false;
        host.disk.wipe();
        self.env.oracle.lock().forgets(id);
    }

    /// Whether a manager does what a host asks it to do by this call: its certificate and the state decide, as they do in the
    /// product.
    fn lets_in(&self, manager: HostId, caller: HostId, call: &str) -> bool {
        let Some(manager) = &self.hosts[manager].manager else {
            return true; // nobody is there to refuse
        };
        let identity = &self.hosts[caller].certificate;
        manager.replica.look(|state| {
            let lets = judge(state, call, Some(identity)).is_ok();
            if lets {
                let mut oracle = self.env.oracle.lock();
                oracle.let_in(&identity.node_id, state);
            }
            lets
        })
    }

    /// A host that shall be a manager and is none asks to become one.
    fn upkeep(&mut self, id: HostId) {
        let truth = self.env.oracle.lock().truth.clone();
        let shall = truth
            .node(&node_of(id))
            .is_some_and(|node| node.role == NodeRole::Manager);
        let life = self.hosts[id].life;
        // It renews its certificate when its role has changed.
        self.hosts[id].certificate = certificate_of(id, shall);
        if !shall && self.hosts[id].has_place {
            self.forget_log(id);
        }
        if shall && !self.hosts[id].has_place {
            let managers = truth.nodes().filter_map(|node| node.manager.as_ref());
            let managers: Vec<_> = managers.filter_map(|m| host_of(&m.addr)).collect();
            let to = if managers.is_empty() {
                0
            } else {
                *self.env.rng.pick(&managers)
            };
            if to != id {
                self.hosts[id].asked += 1;
                let ask = self.hosts[id].asked;
                let host = id;
                self.env.send(id, to, Event::Admit { to, host, ask });
            }
        }
        let pause = UPKEEP + self.env.rng.range(0, UPKEEP);
        self.env.after(pause, Event::Upkeep { host: id, life });
    }

    /// The host whose agent speaks over a connection.
    fn host_on(&self, conn: u64) -> Option<HostId> {
        let is_on = |host: &&Host| host.agent.as_ref().is_some_and(|a| a.is_on(conn));
        self.hosts.iter().find(is_on).map(|host| host.id)
    }

    fn refuse(&mut self, manager: HostId, conn: u64) {
        if let Some(to) = self.host_on(conn) {
            self.env.down(manager, to, conn, Down::Closed);
        }
    }

    fn on_up(&mut self, to: HostId, conn: u64, message: Up) {
        let caller = match &message {
            Up::Open { host, .. } => Some(*host),
            Up::Closed => None, // no message, but the end of a connection
            _ => self.host_on(conn),
        };
        if caller.is_some_and(|from| !self.lets_in(to, from, "/shoal.v1.Dispatcher/Session")) {
            return self.refuse(to, conn);
        }
        let host = &mut self.hosts[to];
        let me = host.me();
        let Some(manager) = &mut host.manager else {
            return self.refuse(to, conn);
        };
        let leads = manager.leadership.is_leader && manager.reign.is_some();
        let members = addresses(manager, me);
        match (&message, leads) {
            (Up::Open { host: from, .. }, false) => {
                let leader = manager
                    .leadership
                    .leader
                    .and_then(|id| manager.members.get(id));
                let leader = leader.map_or(String::new(), |member| member.address.clone());
                let from = *from;
                let answer = if leader.is_empty() {
                    Down::Closed
                } else {
                    Down::Redirect(leader)
                };
                return self.env.down(to, from, conn, answer);
            }
            (Up::Open { .. }, true) => {}
            (_, leads) => {
                let knows = leads && manager.reign.as_ref().is_some_and(|r| r.knows(conn));
                if !knows {
                    if !matches!(message, Up::Closed) {
                        self.refuse(to, conn);
                    }
                    return;
                }
            }
        }
        if let Some(reign) = &mut manager.reign {
            reign.on_up(conn, message, members, me, &mut self.env);
        }
        self.work(to);
    }

    /// The programs of a host end at once.
    pub fn kill(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        if !host.is_up {
            return;
        }
        self.env.tell(|| format!("host {id} dies"));
        host.is_up = false;
        host.is_paused = false;
        host.deferred.clear();
        host.life += 1;
        host.manager = None;
        host.agent = None;
        host.disk.crash(&mut self.env.rng);
        if !host.has_place {
            host.disk.wipe(); // what was begun of a place was never told to anybody
        }
        let delay = *self.env.rng.pick(&[MS, 50 * MS, SECOND, 5 * SECOND]);
        self.env.after(delay, Event::Trouble(Trouble::Start(id)));
    }

    /// The machine loses power: its containers end too.
    pub fn power_cut(&mut self, id: HostId) {
        self.kill(id);
        let body = &mut self.hosts[id].body;
        body.boot += 1;
        for (task, container) in &mut body.containers {
            if container.runs() {
                container.exit = Some(137);
                self.env.oracle.lock().stopped(task);
            }
        }
    }

    /// The programs of a host start.
    pub fn start(&mut self, id: HostId) {
        if self.hosts[id].is_up || self.dead.contains(&id) {
            return;
        }
        self.env.tell(|| format!("host {id} starts"));
        let host = &mut self.hosts[id];
        host.is_up = true;
        let life = host.life;
        self.env.after(UPKEEP, Event::Upkeep { host: id, life });
        if host.has_place {
            self.start_manager(id, Start::Restart);
        }
        if self.hosts[id].is_up {
            self.start_agent(id);
        }
    }

    /// The programs of a host stand still.
    pub fn pause(&mut self, id: HostId) {
        self.hosts[id].is_paused = self.hosts[id].is_up;
    }

    /// And go on.
    pub fn resume(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        if std::mem::take(&mut host.is_paused) {
            for event in std::mem::take(&mut host.deferred) {
                self.env.after(0, event);
            }
        }
    }

    /// A clock is set.
    pub fn set_clock(&mut self, id: HostId, by: i64) {
        self.hosts[id].clock.offset += by;
    }

    /// A disk begins to fail.
    pub fn fail_disk(&mut self, id: HostId, after: u64) {
        self.hosts[id].disk.fail_in(after);
    }

    /// A host that does not run forgets its log.
    pub fn wipe(&mut self, id: HostId) {
        self.kill(id);
        let host = &mut self.hosts[id];
        host.disk.wipe();
        host.has_place = false;
        host.is_rotten = false;
        self.env.oracle.lock().forgets(id);
    }

    /// The agent of a host is told where the managers are.
    pub fn tell_managers(&mut self, id: HostId, managers: Vec<String>) {
        let host = &mut self.hosts[id];
        if let Some(agent) = &mut host.agent {
            agent.is_told_managers(managers, &mut host.body);
        }
    }

    /// A bit of the log of a host that does not run flips.
    pub fn rot(&mut self, id: HostId) {
        self.kill(id);
        let host = &mut self.hosts[id];
        host.is_rotten |= host.has_place && host.disk.rot(&mut self.env.rng);
    }

    /// Whether a process that is asked to stop is out of all names and load balancers.
    fn check_stops(&mut self) {
        let stops = std::mem::take(&mut self.env.oracle.lock().stops);
        for (host, task) in stops {
            crate::rest::check_stop(self, host, &task);
        }
    }
}
