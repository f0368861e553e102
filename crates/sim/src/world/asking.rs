//! What users of the world ask of managers, and what they make of the answers.

use super::World;
use crate::{
    env::{Event, MS},
    user::{Op, PATIENCE, Reply, USERS, Want, thought},
};

impl World {
    pub(super) fn on_user(&mut self, number: usize, op: u64) {
        let user = &mut self.users[number];
        if let Some((pending, _)) = &user.pending {
            if pending.id != op {
                return; // an old alarm
            }
            if !self.is_quiet && self.ask_again(number) {
                return;
            }
            self.users[number].pending = None; // it waited long enough
        } else if op != 0 && self.is_quiet {
            return;
        }
        if self.is_quiet {
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
        let to = self.env.rng.index(self.hosts.len());
        self.env.after(PATIENCE, Event::User { user, op: op.id });
        let id = op.id;
        self.env
            .tell(|| format!("user {user} asks host {to}: {op:?}"));
        self.env.note(id);
        self.env.send(USERS, to, Event::Request { to, op });
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
