//! What a manager does while it leads: the real control loops, dispatcher decisions and keeper of roles, driven as
//! `manager::io` drives them.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    NodeId, TaskId,
    network::{NetworkView, ViewUpdate},
    object::{NodeDescription, NodeState, TaskStatus},
};
use shoal_manager::{
    core::{
        consensus::{
            node::{Answer, ProposeError, RemoveError},
            roles::role_work,
        },
        dispatch::{
            AssignmentChange, AssignmentSet, Liveness, Passing, Verdict, Views, assignment_set,
            diff, node_seen, node_verdict,
        },
        loops::Loops,
        reconcile::Ctx,
        state::{Event as Change, State},
    },
    io::store::{Notice, Replica, Watch},
};
use shoal_worker::core::assignment::{Item, ItemKey, Message};

use crate::{
    env::{Conn, Env, Event, HostId, Instant, MS, SECOND},
    manager::{Input, Manager, Me, Observed, Owed, address_of, node_of},
    rng::Rng,
    rpc::{Down, Up},
    trouble::Point,
};

/// When a manager that could not be removed is tried again, as in the product.
const REMOVAL_RETRY: u64 = SECOND;

/// What a new leader gives every node at least to find it.
const GRACE_SURE: Instant = 2 * SECOND;

/// An open session.
#[derive(Debug)]
struct Session {
    id: u64,
    conn: Conn,
    host: HostId,
    held: AssignmentSet,
    count: u64,
    is_dirty: bool,
}

/// What one leadership does.
#[derive(Debug)]
pub struct Reign {
    /// The term in which it leads.
    pub term: u64,
    began: Instant,
    /// Nodes that have had a session.
    opened: BTreeSet<NodeId>,
    watch: Watch,
    state: State,
    ids: Rng,
    loops: Loops,
    planned: BTreeMap<u64, &'static str>,
    sessions: BTreeMap<NodeId, Session>,
    next_session: u64,
    liveness: Liveness,
    views: Views,
    passing: Passing,
    seen: BTreeMap<NodeId, (NodeDescription, std::net::IpAddr)>,
    condemned: BTreeMap<NodeId, &'static str>,
    reports: Vec<(NodeId, Conn, Vec<(TaskId, TaskStatus)>)>,
    writing: BTreeSet<u64>,
    told_managers: Vec<String>,
    roles: BTreeSet<u64>,
    roles_look: bool,
    roles_after: Instant,
    /// When it will be looked at next, if that is arranged.
    wakes_at: Option<Instant>,
}

impl Reign {
    /// Begins: everything is looked at.
    pub fn begin(term: u64, replica: &Replica, me: Me, env: &mut Env) -> Self {
        let watch = replica.watch();
        let state = replica.state();
        let period = period(&state);
        let liveness = Liveness::begin(&state, period, me.clock.read(env.now));
        Self {
            term,
            began: env.now,
            opened: BTreeSet::new(),
            loops: Loops::begin(&state),
            watch,
            state,
            ids: env.rng.fork(),
            planned: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: env.rng.next_u64() >> 1,
            liveness,
            views: Views::default(),
            passing: Passing::default(),
            seen: BTreeMap::new(),
            condemned: BTreeMap::new(),
            reports: Vec::new(),
            writing: BTreeSet::new(),
            told_managers: Vec::new(),
            roles: BTreeSet::new(),
            roles_look: true,
            roles_after: 0,
            wakes_at: None,
        }
    }

    /// Does everything that can be done now.
    pub fn work(&mut self, manager: &mut Manager, me: Me, env: &mut Env) {
        self.wakes_at = self.wakes_at.filter(|at| *at > env.now);
        while let Some(notice) = self.watch.try_next() {
            self.take_note(&notice, me, env);
        }
        let now = me.clock.read(env.now);
        for Verdict::Down { node, message } in self.liveness.verdicts(now) {
            env.tell(|| format!("host {} gives up {node}: {message}", me.host));
            let is_sure = env.faults.clock == 0 && env.faults.drift <= 1_000;
            if is_sure && !self.opened.contains(&node) && env.now - self.began < GRACE_SURE {
                env.blame(format!("{node} had no time to find the new leader"));
            }
            self.drop_session(&node, me, env);
            self.seen.remove(&node);
            self.condemned.insert(node, message);
        }
        let managers = addresses(manager, me);
        if managers != self.told_managers {
            for session in self.sessions.values() {
                let news = Down::Managers(managers.clone());
                env.down(me.host, session.host, session.conn, news);
            }
            self.told_managers = managers;
            self.roles_look = true;
        }
        self.plan(manager, me, env);
        self.write(manager, me, env);
        self.keep_roles(manager, me, env);
        self.send_assignments(me, env);
        self.loops.acknowledged(self.views.acked());
        let plan = self
            .loops
            .next_wake(now)
            .filter(|_| self.planned.is_empty());
        let roles = self.roles_look && self.roles.is_empty();
        let next = [plan, self.liveness.next_deadline()];
        let next = next.into_iter().flatten();
        let next = next.map(|at| env.now + me.clock.until(env.now, at));
        let roles = roles.then(|| self.roles_after.max(env.now + MS));
        let Some(next) = next.chain(roles).min() else {
            return;
        };
        if self.wakes_at.is_none_or(|at| next < at) {
            self.wakes_at = Some(next);
            let Me { host, life, .. } = me;
            env.after(next - env.now, Event::Lead { host, life });
        }
    }

    /// Ends: agents are told.
    pub fn end(self, me: Me, env: &mut Env) {
        for session in self.sessions.into_values() {
            env.down(me.host, session.host, session.conn, Down::Closed);
        }
    }

    fn plan(&mut self, manager: &mut Manager, me: Me, env: &mut Env) {
        if !self.planned.is_empty() {
            return;
        }
        self.loops.acknowledged(self.views.acked());
        let now = me.clock.read(env.now);
        if self.loops.next_wake(now).is_none_or(|at| at > now) {
            return;
        }
        let mut cx = Ctx {
            now,
            ids: &mut self.ids,
        };
        for proposal in self.loops.pass(&self.state, &mut cx) {
            let name = proposal.control_loop;
            let caller = manager.propose(&proposal.batch, Owed::Loop(self.term, name), env);
            env.reach(Point::Plan, me.host);
            self.planned.insert(caller, name);
        }
    }

    /// What became of a plan. Returns whether the reign goes on.
    pub fn planned(&mut self, caller: u64, name: &'static str, answer: &Answer) -> bool {
        self.planned.remove(&caller);
        match answer {
            Answer::At(_) => true,
            Answer::Failed(ProposeError::Rejected(_)) => {
                self.loops.retry(name);
                true
            }
            _ => false,
        }
    }

    fn write(&mut self, manager: &mut Manager, me: Me, env: &mut Env) {
        if !self.writing.is_empty() {
            return;
        }
        let now = me.clock.read(env.now);
        let state = &self.state;
        let mut batches = Vec::new();
        self.seen.retain(|node, (description, address)| {
            let batch = node_seen(state, node, description, Some(*address), now);
            let is_news = batch.is_some();
            batches.extend(batch.map(|batch| (Observed::Seen(node.clone()), batch)));
            is_news
        });
        self.condemned.retain(|node, message| {
            let batch = node_verdict(state, node, NodeState::Down, message, now);
            let is_news = batch.is_some();
            batches.extend(batch.map(|batch| (Observed::Condemned(node.clone()), batch)));
            is_news
        });
        let mut by_node: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        for (node, conn, statuses) in self.reports.drain(..) {
            by_node.entry(node).or_default().push((conn, statuses));
        }
        let mut told = Vec::new();
        for (node, reports) in by_node {
            let statuses: Vec<_> = reports
                .iter()
                .flat_map(|(_, s)| s.iter().cloned())
                .collect();
            match self.passing.merge(state, &node, &statuses, now) {
                Some(batch) => batches.push((Observed::Reports(node, reports), batch)),
                None => told.push((node, reports)),
            }
        }
        for (node, reports) in told {
            self.answer_reports(&node, &reports, me, env);
        }
        for (observed, batch) in batches {
            let caller = manager.propose(&batch, Owed::Observed(self.term, observed), env);
            self.writing.insert(caller);
        }
    }

    fn answer_reports(
        &self,
        node: &NodeId,
        reports: &[(Conn, Vec<(TaskId, TaskStatus)>)],
        me: Me,
        env: &mut Env,
    ) {
        if let Some(session) = self.sessions.get(node) {
            for (conn, _) in reports.iter().filter(|(conn, _)| *conn == session.conn) {
                env.down(me.host, session.host, *conn, Down::Reported);
            }
        }
    }

    /// What became of something written down. Returns whether the reign goes on.
    pub fn written(
        &mut self,
        caller: u64,
        observed: Observed,
        answer: &Answer,
        me: Me,
        env: &mut Env,
    ) -> bool {
        self.writing.remove(&caller);
        match (observed, answer) {
            (Observed::Reports(node, reports), Answer::At(_)) => {
                self.answer_reports(&node, &reports, me, env);
            }
            (_, Answer::At(_)) => {}
            (observed, Answer::Failed(ProposeError::Rejected(rejected))) => {
                let is_stale = rejected.is_stale();
                if !is_stale {
                    env.blame(format!("an observation breaks the rules: {rejected}"));
                }
                match observed {
                    Observed::Reports(node, reports) if is_stale => {
                        let again = reports.into_iter();
                        self.reports
                            .extend(again.map(|(conn, s)| (node.clone(), conn, s)));
                    }
                    Observed::Reports(..) => {}
                    Observed::Seen(node) if !is_stale => drop(self.seen.remove(&node)),
                    Observed::Condemned(node) if !is_stale => drop(self.condemned.remove(&node)),
                    Observed::Seen(_) | Observed::Condemned(_) => {}
                }
            }
            _ => return false,
        }
        true
    }

    fn keep_roles(&mut self, manager: &mut Manager, me: Me, env: &mut Env) {
        if !self.roles.is_empty() || !self.roles_look || env.now < self.roles_after {
            return;
        }
        self.roles_look = false;
        let work = role_work(&self.state, &manager.members, me.clock.read(env.now));
        if let Some(batch) = work.batch {
            self.roles_look = true;
            let caller = manager.propose(&batch, Owed::Roles(self.term), env);
            self.roles.insert(caller);
            return;
        }
        for raft_id in work.leaving {
            self.roles_look = true;
            let caller = manager.owe(Owed::Roles(self.term));
            self.roles.insert(caller);
            let is_own = raft_id == manager.node.raft_id();
            manager.put(if is_own {
                Input::Transfer(caller)
            } else {
                Input::Remove(raft_id, caller)
            });
        }
    }

    /// What became of the keeping of roles. Returns whether the reign goes on.
    pub fn roles_done(&mut self, caller: u64, answer: &Answer, now: Instant) -> bool {
        self.roles.remove(&caller);
        self.roles_look = true;
        match answer {
            Answer::At(_) => {}
            Answer::Failed(ProposeError::Rejected(_)) => {}
            Answer::Done | Answer::NotRemoved(RemoveError::Refused(_) | RemoveError::IsLeader) => {
                self.roles_after = now + REMOVAL_RETRY;
            }
            _ => return false,
        }
        true
    }

    fn take_note(&mut self, notice: &Notice, me: Me, env: &mut Env) {
        let Some(state) = notice.state() else {
            return;
        };
        self.state = state.clone();
        self.roles_look = true;
        for session in self.sessions.values_mut() {
            session.is_dirty = true;
        }
        let Notice::Applied { events, .. } = notice else {
            self.passing.settle_all(&self.state);
            return self.loops.mark_all(&self.state);
        };
        self.passing.settle(&self.state, events);
        self.loops.observe(&self.state, events);
        self.liveness.set_period(period(&self.state));
        for event in events.iter() {
            if let Change::Node(delta) = event
                && delta.is_deleted()
            {
                let node = delta.any().id.clone();
                self.drop_session(&node, me, env);
                self.liveness.forget(&node);
                self.seen.remove(&node);
                self.condemned.remove(&node);
            }
        }
    }

    fn drop_session(&mut self, node: &NodeId, me: Me, env: &mut Env) {
        self.views.forget(node);
        if let Some(session) = self.sessions.remove(node) {
            env.down(me.host, session.host, session.conn, Down::Closed);
        }
    }

    /// A message of an agent. `members` are the addresses to tell it of.
    pub fn on_up(&mut self, conn: Conn, message: Up, members: Vec<String>, me: Me, env: &mut Env) {
        let now = me.clock.read(env.now);
        let found = self.sessions.iter().find(|(_, s)| s.conn == conn);
        let found = found.map(|(node, session)| (node.clone(), session.id, session.host));
        match (message, found) {
            (
                Up::Open {
                    description,
                    address,
                    host,
                },
                _,
            ) => {
                let node = node_of(host);
                if self.state.node(&node).is_none() {
                    return env.down(me.host, host, conn, Down::Closed);
                }
                self.drop_session(&node, me, env);
                self.next_session += 1;
                let session = self.next_session;
                self.liveness.opened(node.clone(), session, now);
                self.condemned.remove(&node);
                self.opened.insert(node.clone());
                self.seen.insert(node.clone(), (*description, address));
                self.sessions.insert(
                    node,
                    Session {
                        id: session,
                        conn,
                        host,
                        held: AssignmentSet::default(),
                        count: 0,
                        is_dirty: true,
                    },
                );
                let period = period(&self.state).as_nanos() as u64;
                let opened = Down::Opened {
                    session,
                    managers: members,
                    period,
                };
                env.down(me.host, host, conn, opened);
            }
            (Up::Heartbeat(said), Some((node, _, host))) => {
                let answer = if self.liveness.heartbeat(&node, said, now) {
                    Down::Beaten
                } else {
                    Down::Closed
                };
                env.down(me.host, host, conn, answer);
            }
            (Up::Report(said, statuses), Some((node, session, _))) if said == session => {
                self.reports.push((node, conn, statuses));
            }
            (Up::AcknowledgeView(said, version), Some((node, session, _))) if said == session => {
                self.views.acknowledge(&node, version);
            }
            (Up::Closed, Some((node, session, _))) => {
                self.liveness.closed(&node, session, now);
                self.sessions.remove(&node);
                self.views.forget(&node);
            }
            (Up::Report(..) | Up::AcknowledgeView(..), Some((_, _, host))) => {
                env.down(me.host, host, conn, Down::Closed);
            }
            (_, None) => {}
        }
    }

    /// Whether this connection is one of a session of this reign.
    pub fn knows(&self, conn: Conn) -> bool {
        self.sessions.values().any(|session| session.conn == conn)
    }

    fn send_assignments(&mut self, me: Me, env: &mut Env) {
        for (node, session) in &mut self.sessions {
            if !std::mem::take(&mut session.is_dirty) {
                continue;
            }
            let set = assignment_set(&self.state, node);
            let view = self.views.refresh(&set.view, node, self.state.index());
            let changes = diff(&session.held, &set);
            let is_first = session.count == 0;
            if is_first || !changes.is_empty() || view.is_some() {
                let id = session.id;
                let version = |count: u64| {
                    if count == 0 {
                        String::new()
                    } else {
                        format!("{id}.{count}")
                    }
                };
                let mut message = Message {
                    complete: is_first,
                    applies_to: version(session.count),
                    results_in: version(session.count + 1),
                    view: view.map(|version| {
                        let view = NetworkView {
                            version,
                            ..set.view.as_ref().clone()
                        };
                        match is_first {
                            true => ViewUpdate::Whole(view),
                            false => ViewUpdate::Change(view.change_from(&session.held.view)),
                        }
                    }),
                    ..Message::default()
                };
                changes.iter().for_each(|change| add(&mut message, change));
                session.count += 1;
                let message = Down::Assignments(Box::new(message));
                env.down(me.host, session.host, session.conn, message);
            }
            session.held = set;
        }
    }
}

fn add(message: &mut Message, change: &AssignmentChange) {
    match change {
        AssignmentChange::PutSecret(secret) => {
            message.updates.push(Item::Secret(secret.as_ref().clone()));
        }
        AssignmentChange::PutConfig(config) => {
            message.updates.push(Item::Config(config.as_ref().clone()));
        }
        AssignmentChange::PutTask(task) => {
            message
                .updates
                .push(Item::Task(Box::new(task.as_ref().clone())));
        }
        AssignmentChange::RemoveTask(task) => message.removals.push(ItemKey::Task(task.clone())),
        AssignmentChange::RemoveSecret(id) => message.removals.push(ItemKey::Secret(id.clone())),
        AssignmentChange::RemoveConfig(id) => message.removals.push(ItemKey::Config(id.clone())),
    }
}

fn period(state: &State) -> std::time::Duration {
    let cluster = state.cluster();
    cluster.map_or(std::time::Duration::from_secs(1), |cluster| {
        cluster.spec.heartbeat_period
    })
}

/// The addresses of managers that agents are told, the speaker first.
pub fn addresses(manager: &Manager, me: Me) -> Vec<String> {
    let own = address_of(me.host);
    let others = manager
        .members
        .iter()
        .map(|(_, member)| member.address.clone());
    let others = others.filter(|address| *address != own);
    [own.clone()].into_iter().chain(others).collect()
}
