//! All control loops of a manager as one machine.
//!
//! The leader's driver is small: `begin` on becoming leader, `observe` after each applied batch, and whenever
//! [`Loops::next_wake`] says so a `pass`, whose batches it proposes. It waits until all of them have been applied, refused
//! or lost before the next pass; for each one refused or lost it calls `retry`. Two passes at a time would make twice
//! what is wanted once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_api::{NodeId, Timestamp, object::Batch};

use super::{
    allocator::Allocator,
    dispatch::{Drain, Forget, Orphans},
    orchestrator::{Orchestrator, Reaper},
    reconcile::{Ctx, Dirty, Reconciler},
    scheduler::Scheduler,
    state::{Event, State},
};

/// Difference between the clocks of managers that is bridged. A greater one is a fault of the clocks: to bridge it would
/// put off everything that waits for a time.
const SKEW_MAX: Duration = Duration::from_secs(10);

/// The control loops with their unfinished business.
#[derive(Debug)]
pub struct Loops {
    allocator: Dirty<Allocator>,
    orchestrator: Dirty<Orchestrator>,
    scheduler: Dirty<Scheduler>,
    drain: Dirty<Drain>,
    forget: Dirty<Forget>,
    orphans: Dirty<Orphans>,
    reaper: Dirty<Reaper>,
}

/// Runs the same on every loop.
macro_rules! each {
    ($self:ident, $control_loop:ident => $body:expr) => {{
        // Who makes room comes before who fills it.
        {
            let $control_loop = &mut $self.forget;
            $body
        }
        {
            let $control_loop = &mut $self.orphans;
            $body
        }
        {
            let $control_loop = &mut $self.drain;
            $body
        }
        {
            let $control_loop = &mut $self.allocator;
            $body
        }
        {
            let $control_loop = &mut $self.orchestrator;
            $body
        }
        {
            let $control_loop = &mut $self.scheduler;
            $body
        }
        {
            let $control_loop = &mut $self.reaper;
            $body
        }
    }};
}

impl Loops {
    /// The beginning of a leadership: everything is looked at.
    pub fn begin(state: &State) -> Self {
        let mut loops = Self {
            allocator: Dirty::new(Allocator),
            orchestrator: Dirty::new(Orchestrator),
            scheduler: Dirty::new(Scheduler::default()),
            drain: Dirty::new(Drain::default()),
            forget: Dirty::new(Forget),
            orphans: Dirty::new(Orphans),
            reaper: Dirty::new(Reaper),
        };
        loops.mark_all(state);
        loops
    }

    /// Looks at everything again, for instance after another state was taken over.
    pub fn mark_all(&mut self, state: &State) {
        each!(self, control_loop => control_loop.mark_all(state));
    }

    /// Takes note of what an applied batch changed; `state` is the one after it.
    pub fn observe(&mut self, state: &State, events: &[Event]) {
        each!(self, control_loop => control_loop.observe(state, events));
    }

    /// Takes note of the views that nodes have carried out, see [`super::dispatch::Views::acked`].
    pub fn acknowledged(&mut self, acked: &BTreeMap<NodeId, u64>) {
        if self.drain.reconciler.acked != *acked {
            self.drain.reconciler.acked.clone_from(acked);
            self.drain.mark_waiting();
        }
    }

    /// When to run a pass at the latest: `now` if there is something to do, `None` if only an event can bring work.
    pub fn next_wake(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        each!(self, control_loop => {
            let wake = control_loop.next_wake(now);
            next = next.map_or(wake, |next| Some(wake.map_or(next, |wake| wake.min(next))));
        });
        next
    }

    /// Plans on `state` and returns what to propose. No two of the batches touch the same object, so they may be proposed
    /// all at once.
    ///
    /// If the clock of the leader before was a little ahead of ours, its time goes on until ours has caught up: what was
    /// done before must not seem to lie in the future.
    pub fn pass(&mut self, state: &State, cx: &mut Ctx<'_>) -> Vec<Proposal> {
        if state.time().since(cx.now) <= SKEW_MAX {
            cx.now = cx.now.max(state.time());
        }
        let mut touched = BTreeSet::new();
        let mut proposals = Vec::new();
        each!(self, control_loop => {
            if let Some(batch) = control_loop.pass(state, cx, &mut touched) {
                proposals.push(Proposal { control_loop: name_of(control_loop), batch });
            }
        });
        proposals
    }

    /// Looks again at what a proposal was about, after it was refused or lost.
    pub fn retry(&mut self, control_loop: &str) {
        each!(self, candidate => {
            if name_of(candidate) == control_loop {
                candidate.retry();
            }
        });
    }
}

/// A batch of one control loop.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Whose it is, for [`Loops::retry`] and for logs.
    pub control_loop: &'static str,
    /// What to propose.
    pub batch: Batch,
}

/// A control loop's name in logs.
trait Named {
    const NAME: &'static str;
}

impl Named for Allocator {
    const NAME: &'static str = "allocator";
}
impl Named for Orchestrator {
    const NAME: &'static str = "orchestrator";
}
impl Named for Scheduler {
    const NAME: &'static str = "scheduler";
}
impl Named for Drain {
    const NAME: &'static str = "drain";
}
impl Named for Forget {
    const NAME: &'static str = "forget";
}
impl Named for Orphans {
    const NAME: &'static str = "orphans";
}
impl Named for Reaper {
    const NAME: &'static str = "reaper";
}

fn name_of<R: Reconciler + Named>(_: &Dirty<R>) -> &'static str {
    R::NAME
}
