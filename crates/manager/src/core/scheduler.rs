//! Which node runs a task.
//!
//! A pass looks at what waits, service by service. What the nodes carry is kept in a ledger that follows the state; tasks of
//! one service and spec version need the same, so each placement afterwards costs one step in an ordered set. A task that
//! fits nowhere stays pending and says why, in SwarmKit's words.

mod class;
pub mod constraint;
mod explain;
mod filter;
mod foresee;
mod ledger;
mod rank;
mod volumes;

#[cfg(test)]
mod tests;

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use shoal_api::{
    Actor, TaskState, Words,
    object::{Object, Task},
};

use super::{
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

pub use explain::explain;
pub use foresee::foresee;

use filter::TaskNeeds;
use ledger::{Ledger, Slot};

/// Tasks that one plan changes at most; the rest follows in the next batch.
const TASKS_PER_PLAN_MAX: usize = 2_000;
/// Tasks of one service that a plan places even if many services wait.
const TASKS_PER_SERVICE_MIN: usize = 100;

/// Gives pending tasks a node.
#[derive(Debug, Default, Clone)]
pub struct Scheduler {
    /// What the nodes carry, as a matter of speed: a function of the state.
    ledger: RefCell<Option<Ledger>>,
}

impl Reconciler for Scheduler {
    /// There is one thing to look at: everything that waits.
    type Key = ();
    const ACTOR: Actor = Actor::Scheduler;

    fn observe(&self, state: &State, event: &Event) {
        let mut ledger = self.ledger.borrow_mut();
        let followed = ledger.as_mut().map(|ledger| ledger.follow(state, event));
        if followed == Some(false) {
            *ledger = None;
        }
    }

    fn affected(&self, state: &State, event: &Event) -> Vec<()> {
        let concerns = match event {
            Event::Task(delta) => match (&delta.old, &delta.new) {
                (_, Some(task)) if task.status.state == TaskState::Pending => {
                    delta.changed(|task| (task.status.state, task.desired_state))
                }
                // A task that ends or goes may make room.
                (Some(old), new) => {
                    !old.status.state.is_terminal()
                        && old.node.is_some()
                        && new.as_ref().is_none_or(|new| {
                            new.status.state.is_terminal() || new.desired_state != old.desired_state
                        })
                        && something_waits(state)
                }
                (None, _) => false,
            },
            Event::Node(delta) => {
                let facts = |node: &shoal_api::object::Node| {
                    let description = (node.description.clone(), node.status.addr);
                    (node.status.state, node.spec.clone(), node.role, description)
                };
                delta.changed(facts) && something_waits(state)
            }
            _ => false,
        };
        if concerns { vec![()] } else { Vec::new() }
    }

    fn all(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn reconcile(&self, state: &State, (): &(), cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        if !something_waits(state) {
            return plan;
        }
        let mut cached = self.ledger.borrow_mut();
        if !cached.as_ref().is_some_and(|ledger| ledger.is_of(state)) {
            *cached = None;
        }
        let ledger = cached.get_or_insert_with(|| Ledger::of(state));
        // Of the last plan, if it was refused or lost.
        ledger.forget_plan();
        #[cfg(test)]
        assert!(
            ledger.is_true(&Ledger::of(state)),
            "the ledger follows the state"
        );
        let mut services = state.services_waiting(TaskState::Pending);
        // Each plan begins with another service, so that none has to wait for all the others.
        let first = state.index() % services.len().max(1) as u64;
        services.rotate_left(usize::try_from(first).unwrap_or(0));
        let share = (TASKS_PER_PLAN_MAX / services.len().max(1)).max(TASKS_PER_SERVICE_MIN);
        let mut placing = Placing {
            state,
            cx,
            ledger,
            plan: &mut plan,
        };
        for service in &services {
            let mut room = share.min(TASKS_PER_PLAN_MAX - placing.plan.changes.len());
            let tasks = state.tasks_of_service_waiting(TaskState::Pending, service);
            let mut tasks = tasks.filter(|task| task.desired_state <= TaskState::Complete);
            // Tasks that wait for long are passed over in steps, so that they do not keep the rest from its turn.
            loop {
                let step: Vec<&Arc<Task>> = tasks.by_ref().take(room).collect();
                if step.is_empty() {
                    break;
                }
                let mut groups: BTreeMap<(u64, Vec<String>), Vec<&Arc<Task>>> = BTreeMap::new();
                for task in step {
                    let group = (task.spec_version, volumes::of_task(task));
                    groups.entry(group).or_default().push(task);
                }
                for tasks in groups.values() {
                    placing.group(tasks, &mut room);
                }
                if room == 0 {
                    // Look again at once.
                    placing.plan.wake(placing.cx.now);
                    break;
                }
            }
            if placing.plan.changes.len() >= TASKS_PER_PLAN_MAX {
                placing.plan.wake(placing.cx.now);
                break;
            }
        }
        plan
    }
}

fn something_waits(state: &State) -> bool {
    state.tasks_waiting(TaskState::Pending).next().is_some()
}

/// A plan in the making.
struct Placing<'a, 'c> {
    state: &'a State,
    cx: &'a Ctx<'c>,
    ledger: &'a mut Ledger,
    plan: &'a mut Plan,
}

impl Placing<'_, '_> {
    /// Places tasks that need the same, at most `room` of them, and takes the changes from it.
    fn group(&mut self, tasks: &[&Arc<Task>], room: &mut usize) {
        let needs = TaskNeeds::of(self.state, tasks[0]);
        let message = "scheduler assigned task to node".into();
        let mut ranking = None;
        let mut nowhere: Option<Words> = None;
        for task in tasks {
            let changes = self.plan.changes.len();
            if task.node.is_some() {
                self.confirm(&needs, task);
            } else if let Some(why) = &nowhere {
                explain_wait(task, why, self.cx, self.plan);
            } else {
                let ranking = ranking
                    .get_or_insert_with(|| rank::Ranking::of(self.ledger, &needs, self.cx.now));
                match ranking.next(self.ledger, &needs) {
                    Some(slot) => {
                        self.assign(task, slot, &message);
                        ranking.placed(self.ledger, &needs, slot);
                    }
                    None => {
                        let why = filter::explain_all(&needs, self.ledger).into();
                        explain_wait(task, &why, self.cx, self.plan);
                        nowhere = Some(why);
                    }
                }
            }
            *room -= self.plan.changes.len() - changes;
        }
    }

    /// Checks the node that a global service's task was made for.
    fn confirm(&mut self, needs: &TaskNeeds, task: &Arc<Task>) {
        let slot = task.node.as_ref().and_then(|node| self.ledger.slot(node));
        let why = match slot {
            None => "no suitable node".to_owned(),
            Some(slot) => match filter::first_failing(needs, self.ledger, slot) {
                Some(filter) => format!("no suitable node ({})", filter.explain(1)),
                None => {
                    let message = "scheduler confirmed task can run on preassigned node";
                    self.assign(task, slot, &message.into());
                    return;
                }
            },
        };
        explain_wait(task, &why.into(), self.cx, self.plan);
    }

    fn assign(&mut self, task: &Arc<Task>, slot: Slot, message: &Words) {
        let info = self.ledger.info(slot);
        let node = info.node.id.clone();
        let assigned = info.claim(&task.spec.resources.reservations);
        self.ledger.plan(task, slot, assigned.clone());
        let mut task = task.as_ref().clone();
        task.node = Some(node);
        task.assigned = assigned;
        task.status.state = TaskState::Assigned;
        task.status.at = self.cx.now;
        task.status.message = message.clone();
        task.status.err.clear();
        self.plan.update(Object::Task(task));
    }
}

/// Says why a task waits, unless it says so already.
fn explain_wait(task: &Task, why: &Words, cx: &Ctx<'_>, plan: &mut Plan) {
    if task.status.err != *why {
        let mut task = task.clone();
        task.status.err = why.clone();
        task.status.at = cx.now;
        plan.update(Object::Task(task));
    }
}
