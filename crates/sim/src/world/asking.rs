//! What users of the world ask of managers, and what they make of the answers.

use super::World;
use crate::{
    env::{Event, MS, SECOND},
    user::{Op, PATIENCE, Reply, USERS, Want, thought},
};

/// After the end of trouble, how long managers may take to find each other.
const CALM: u64 = 10 * SECOND;

impl World {
    pub(super) fn on_user(&mut self, number: usize, op: u64) {
        let user = &mut self.users[number];
        if let Some((pending, _)) = &user.pending {
            if pending.id != op {
                return; // an old alarm
            }
            self.check_answered(number);
            if !self.users_rest() && self.ask_again(number) {
                return;
            }
            self.users[number].pending = None; // it waited long enough
        } else if op != 0 && self.users_rest() {
            return;
        }
        if self.users_rest() {
            return;
        }
        let mut user = std::mem::take(&mut self.users[number]);
        let want = user.think(number, &mut self.env);
        self.next_op += 1;
        let op = Op {
            id: self.next_op,
            want,
            is_forwarded: false,
            since: None,
        };
        let floor = self.env.oracle.lock().told;
        user.pending = Some((op.clone(), floor));
        self.users[number] = user;
        let user = number;
        let to = self.addressee();
        self.users[user].asked = to;
        self.env.after(PATIENCE, Event::User { user, op: op.id });
        let id = op.id;
        self.env
            .tell(|| format!("user {user} asks host {to}: {op:?}"));
        self.env.note(id);
        self.env.send(USERS, to, Event::Request { to, op });
    }

    /// Whoever is asked when trouble has long ended answers, if only that it does not know.
    fn check_answered(&mut self, number: usize) {
        let user = &self.users[number];
        let is_calm = self.env.now - PATIENCE > self.env.faults.until + CALM;
        if let Some((op, _)) = user.pending.as_ref().filter(|_| is_calm)
            && self.is_quiet
            && !self.dead.contains(&user.asked)
        {
            let silent = format!("host {} does not answer {op:?}", user.asked);
            self.env.blame(silent);
        }
    }

    /// Whether users want nothing more.
    fn users_rest(&self) -> bool {
        let faults = &self.env.faults;
        self.is_quiet && self.env.now >= faults.until + faults.encore
    }

    /// Whom a user asks: anybody, or, where users are eager, whoever believes for longest that it leads.
    fn addressee(&mut self) -> usize {
        let anybody = self.env.rng.index(self.hosts.len());
        if !self.env.faults.eager || self.env.rng.chance(500_000) {
            return anybody;
        }
        let leads = self.hosts.iter().filter_map(|host| {
            let leadership = host.manager.as_ref()?.leadership;
            leadership.is_leader.then_some((leadership.term, host.id))
        });
        leads.min().map_or(anybody, |(_, host)| host)
    }

    /// Asks once more what may have come to pass, as a manager does that has lost the leader.
    fn ask_again(&mut self, number: usize) -> bool {
        let Some((op, floor)) = &mut self.users[number].pending else {
            return false;
        };
        if !matches!(op.want, Want::Write(_)) || op.since.is_some() {
            return false;
        }
        op.since = Some(*floor);
        let (user, op) = (number, op.clone());
        let to = self.env.rng.index(self.hosts.len());
        self.users[user].asked = to;
        self.env.after(PATIENCE, Event::User { user, op: op.id });
        self.env
            .tell(|| format!("user {user} asks host {to} again: {op:?}"));
        self.env.send(USERS, to, Event::Request { to, op });
        true
    }

    pub(super) fn on_reply(&mut self, id: u64, reply: &Reply) {
        let user = self.users.iter().position(|user| {
            user.pending
                .as_ref()
                .is_some_and(|(pending, _)| pending.id == id)
        });
        let Some(number) = user else { return };
        if matches!(reply, Reply::Unknown) && self.ask_again(number) {
            return;
        }
        let Some((op, floor)) = self.users[number].pending.take() else {
            return;
        };
        self.env.oracle.lock().replied(&op, floor, reply);
        match reply {
            Reply::Read(state) => self.users[number].seen = state.clone(),
            Reply::Written { index, .. } => self.env.note(*index),
            _ => {}
        }
        self.env
            .tell(|| format!("user {number} is told: {}", told(reply)));
        let is_curious = self.env.faults.eager && matches!(reply, Reply::Written { .. });
        self.users[number].is_curious = is_curious;
        let thought = if is_curious {
            self.env.rng.range(0, 5 * MS)
        } else {
            thought(&mut self.env)
        };
        self.env.after(
            thought,
            Event::User {
                user: number,
                op: 0,
            },
        );
    }
}

fn told(reply: &Reply) -> String {
    match reply {
        Reply::Read(state) => format!("state {}", state.index()),
        other => format!("{other:?}"),
    }
}
