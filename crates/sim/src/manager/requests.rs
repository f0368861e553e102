//! What others ask of a manager, and what becomes of it: users' writes and reads, hosts that want to take part, and what
//! its own reign proposes.

use shoal_api::{
    NodeId, TaskId,
    object::{ObjectKey, TaskStatus, Wish},
};
use shoal_manager::{
    Intent,
    core::{
        consensus::{
            Member,
            node::{Answer, Caller, ProposeError},
        },
        control::{Turn, Write},
        reconcile::Ctx,
        state::Rejected,
        validate::Refusal,
    },
};

use super::{Input, Manager, Me, address_of, host_of, node_of};
use crate::{
    env::{Env, Event, HostId},
    trouble::Trouble,
    user::{Op, Reply, Want},
};

/// Whom an answer is owed to.
#[derive(Debug)]
pub enum Owed {
    /// A control loop of this reign.
    Loop(u64, &'static str),
    /// The dispatcher of this reign.
    Observed(u64, Observed),
    /// The keeper of roles of this reign.
    Roles(u64),
    /// A user's write: what it is about, and what to do if it is refused.
    Write(Box<Op>, ObjectKey, Box<Write>),
    /// A user's write that is about to be refused.
    Confirm(Box<Op>, Box<Write>),
    /// A user's read.
    Read(Box<Op>),
    /// A host that wants to take part, and the number of its request.
    Admit((HostId, u64)),
}

/// What the dispatcher wants to write down.
#[derive(Debug, Clone)]
pub enum Observed {
    /// A node opened a session.
    Seen(NodeId),
    /// A node is silent.
    Condemned(NodeId),
    /// Reports of a node: connection, and what it said.
    Reports(NodeId, Vec<(u64, Vec<(TaskId, TaskStatus)>)>),
}

impl Manager {
    /// Remembers whom an answer is owed to.
    pub fn owe(&mut self, owed: Owed) -> Caller {
        self.next_caller += 1;
        self.owed.insert(self.next_caller, owed);
        self.next_caller
    }

    /// Hands an answer of consensus to whom it is owed.
    pub(super) fn answered(
        &mut self,
        caller: Caller,
        owed: Owed,
        answer: Answer,
        me: Me,
        env: &mut Env,
    ) {
        match owed {
            Owed::Loop(term, name) => {
                if let Some(reign) = self.reign.as_mut().filter(|reign| reign.term == term)
                    && !reign.planned(caller, name, &answer)
                {
                    self.end_reign(me, env);
                }
            }
            Owed::Observed(term, observed) => {
                if let Some(mut reign) = self.reign.take() {
                    let goes_on =
                        reign.term != term || reign.written(caller, observed, &answer, me, env);
                    self.reign = Some(reign);
                    if !goes_on {
                        self.end_reign(me, env);
                    }
                }
            }
            Owed::Roles(term) => {
                if let Some(reign) = self.reign.as_mut().filter(|reign| reign.term == term)
                    && !reign.roles_done(caller, &answer, env.now)
                {
                    self.end_reign(me, env);
                }
            }
            Owed::Write(op, key, write) => self.written(*op, key, *write, answer, me, env),
            Owed::Confirm(op, write) => match answer {
                Answer::At(_) => self.decide(*op, *write, me, env),
                _ => op.reply(Reply::NoLeader, me.host, env),
            },
            Owed::Read(op) => {
                let reply = match answer {
                    Answer::At(_) => Reply::Read(self.replica.state()),
                    _ => Reply::NoLeader,
                };
                op.reply(reply, me.host, env);
            }
            Owed::Admit((host, ask)) => {
                let answer = match answer {
                    Answer::Admitted(id) => Some((id, self.members.as_ref().clone())),
                    _ => None,
                };
                env.send(me.host, host, Event::Admitted { host, ask, answer });
            }
        }
    }

    /// A host wants to take part.
    pub fn on_admit(&mut self, (host, ask): (HostId, u64), me: Me, env: &mut Env) {
        if !self.leadership.is_leader {
            let answer = None;
            return env.send(me.host, host, Event::Admitted { host, ask, answer });
        }
        let member = Member {
            node_id: node_of(host),
            address: address_of(host),
        };
        let caller = self.owe(Owed::Admit((host, ask)));
        self.put(Input::Admit(member, caller));
    }

    /// A user's request; a follower hands it on.
    pub fn on_request(&mut self, mut op: Op, me: Me, env: &mut Env) {
        env.tell(|| format!("host {} hears {op:?}", me.host));
        match &op.want {
            Want::Read(_) => {
                let caller = self.owe(Owed::Read(Box::new(op)));
                self.put(Input::Read(caller));
            }
            Want::Write(intent) if self.leadership.is_leader => {
                if env.rng.chance(env.faults.strand) {
                    let alone = Trouble::Isolate(me.host, true, true);
                    env.after(0, Event::Trouble(alone));
                }
                let write = Write::new(Intent::clone(intent));
                self.decide(op, write, me, env);
            }
            Want::Write(_) => {
                let leader = self
                    .leadership
                    .leader
                    .filter(|id| *id != self.node.raft_id());
                let leader = leader.and_then(|id| host_of(&self.members.get(id)?.address));
                match leader {
                    Some(to) if !op.is_forwarded => {
                        op.is_forwarded = true;
                        env.send(me.host, to, Event::Request { to, op });
                    }
                    _ => op.reply(Reply::NoLeader, me.host, env),
                }
            }
        }
    }

    fn decide(&mut self, op: Op, mut write: Write, me: Me, env: &mut Env) {
        if !self.leadership.is_leader {
            return op.reply(Reply::NoLeader, me.host, env);
        }
        let state = self.replica.state();
        if let Some(reply) = op.granted(&state) {
            return op.reply(reply, me.host, env);
        }
        let mut ids = env.rng.fork();
        let mut cx = Ctx {
            now: me.clock.read(env.now),
            ids: &mut ids,
        };
        match write.next(&state, &mut cx) {
            Turn::Propose(mut decision) => {
                let key = decision.key.clone();
                decision.batch.wish = op.wish().map(|id| Wish {
                    id,
                    about: key.clone(),
                    since: op.since,
                });
                let owed = Owed::Write(Box::new(op), key, Box::new(write));
                self.propose(&decision.batch, owed, env);
            }
            Turn::Confirm => {
                let caller = self.owe(Owed::Confirm(Box::new(op), Box::new(write)));
                self.put(Input::Read(caller));
            }
            Turn::Refuse(refusal) => self.refuse(op, &refusal, me, env),
        }
    }

    fn refuse(&self, op: Op, refusal: &Refusal, me: Me, env: &mut Env) {
        let (text, index) = (refusal.to_string(), self.replica.state().index());
        op.reply(Reply::Refused { text, index }, me.host, env);
    }

    fn written(
        &mut self,
        op: Op,
        key: ObjectKey,
        mut write: Write,
        answer: Answer,
        me: Me,
        env: &mut Env,
    ) {
        let reply = match answer {
            Answer::At(index) => Reply::Written { index, key },
            Answer::Failed(ProposeError::Rejected(Rejected::Granted { .. })) => {
                op.granted(&self.replica.state()).unwrap_or(Reply::Unknown)
            }
            Answer::Failed(ProposeError::Rejected(Rejected::Forgotten)) => Reply::Unknown,
            Answer::Failed(ProposeError::Rejected(rejected)) => match write.rejected(rejected) {
                None => return self.decide(op, write, me, env),
                Some(refusal) => return self.refuse(op, &refusal, me, env),
            },
            Answer::Failed(ProposeError::NotLeader { .. }) => Reply::NoLeader,
            _ => Reply::Unknown,
        };
        op.reply(reply, me.host, env);
    }
}
