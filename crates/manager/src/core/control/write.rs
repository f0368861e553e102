//! A write on its way: decided, proposed, and decided anew when the state has moved on under it.

use shoal_api::planted::{Bug, planted};

use super::{Decision, Intent, decide};
use crate::core::{
    reconcile::Ctx,
    state::{Rejected, State},
    validate::Refusal,
};

/// How often a write is decided because the state moves on under it.
const DECISIONS_MAX: u32 = 8;

/// What a write needs next.
#[derive(Debug)]
pub enum Turn {
    /// To be proposed; [`Write::rejected`] if the state refuses it.
    Propose(Decision),
    /// A read barrier, and then another look at the state: a leader that was deposed and does not know it yet would refuse
    /// by a state that is past.
    Confirm,
    /// Nothing: this is what the user is told.
    Refuse(Refusal),
}

/// A write that a leader tries to carry out.
#[derive(Debug)]
pub struct Write {
    intent: Intent,
    decisions: u32,
    is_confirmed: bool,
}

impl Write {
    /// Before it was decided for the first time.
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            decisions: 0,
            is_confirmed: planted(Bug::RefusesOnSight),
        }
    }

    /// Decides on the state as it is now; after [`Turn::Confirm`] that is the one behind the barrier.
    pub fn next(&mut self, state: &State, cx: &mut Ctx<'_>) -> Turn {
        self.decisions += 1;
        match decide(state, cx, self.intent.clone()) {
            Ok(decision) => Turn::Propose(decision),
            Err(_) if !std::mem::replace(&mut self.is_confirmed, true) => Turn::Confirm,
            Err(refusal) => Turn::Refuse(refusal),
        }
    }

    /// The proposal was refused. Gives what to tell the user, or nothing if it is to be decided again.
    pub fn rejected(&mut self, rejected: Rejected) -> Option<Refusal> {
        self.is_confirmed = true; // it leads, or nothing would have become of the proposal
        // Who came first has by now what was taken, and the next decision says so in words that name it.
        let is_moved = rejected.is_stale() || matches!(rejected, Rejected::Taken { .. });
        let is_over = !is_moved || self.decisions >= DECISIONS_MAX;
        is_over.then(|| rejected.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{control::Spec, fixture::service, world::World};

    #[test]
    fn a_refusal_is_only_told_behind_a_barrier() {
        let mut world = World::new(&["n1"]);
        let early = world.state.clone();
        let id = world.create(service("web", 1));
        let mut write = Write::new(Intent::Update {
            key: shoal_api::object::ObjectKey::Service(id.clone()),
            version: world.service(&id).meta.version,
            spec: Spec::Service(Box::new(service("web", 2))),
        });
        // The state of a leader that was deposed before the service was made knows of none.
        assert!(matches!(write.next(&early, &mut world.cx()), Turn::Confirm));
        let state = world.state.clone();
        assert!(matches!(
            write.next(&state, &mut world.cx()),
            Turn::Propose(_)
        ));
        let Turn::Refuse(refusal) = write.next(&early, &mut world.cx()) else {
            panic!("it was confirmed already");
        };
        assert_eq!(refusal.to_string(), format!("service {id} not found"));
    }
}
