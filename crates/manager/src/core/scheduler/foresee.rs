//! Where the tasks of services would go that are yet to be made.

use std::{collections::BTreeMap, sync::Arc};

use shoal_api::{
    ServiceId,
    explain::Foresight,
    object::{Service, Task},
    spec::ServiceMode,
};

use super::{
    filter::{TaskNeeds, counts, first_failing},
    ledger::{Ledger, Slot},
    rank::Ranking,
};
use crate::core::{orchestrator::born, reconcile::Ctx, state::State};

/// Tasks of a service that are looked at; whoever plans more knows by then where they go, and a service may ask for any
/// number of them.
const TASKS_MAX: u64 = 10_000;

/// Says of services that have no tasks yet where theirs would go, one service after the other.
pub fn foresee(state: &State, services: &[ServiceId], cx: &mut Ctx<'_>) -> Vec<Foresight> {
    let mut ledger = Ledger::of(state);
    let services = services.iter().filter_map(|id| state.service(id));
    services
        .map(|service| {
            let needs = TaskNeeds::of_service(state, service);
            let mut task = born(service, Arc::new(service.spec.task.clone()), cx);
            task.ports = service.spec.endpoint.ports.as_slice().into();
            let mut placing = Placing {
                needs,
                task: Arc::new(task),
                ledger: &mut ledger,
                placed: BTreeMap::new(),
            };
            let (wanted, why) = placing.all(service, cx);
            let placed = std::mem::take(&mut placing.placed);
            let hostname = |slot| ledger.info(slot).node.description.hostname.clone();
            Foresight {
                name: service.spec.annotations.name.clone(),
                wanted,
                places: placed
                    .into_iter()
                    .map(|(slot, tasks)| (hostname(slot), tasks))
                    .collect(),
                why,
            }
        })
        .collect()
}

/// One service on its way to the nodes.
struct Placing<'l> {
    needs: TaskNeeds,
    /// Stands for all of its tasks.
    task: Arc<Task>,
    ledger: &'l mut Ledger,
    placed: BTreeMap<Slot, u64>,
}

impl Placing<'_> {
    /// Places all tasks that can be; returns how many there should be, and why there are not.
    fn all(&mut self, service: &Service, cx: &Ctx<'_>) -> (u64, String) {
        let wanted = match service.spec.mode {
            ServiceMode::Global | ServiceMode::GlobalJob => return self.everywhere(),
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::ReplicatedJob {
                max_concurrent,
                total_completions,
            } => max_concurrent.min(total_completions),
        };
        let wanted = wanted.min(TASKS_MAX);
        let mut ranking = Ranking::of(self.ledger, &self.needs, cx.now);
        for _ in 0..wanted {
            let Some(slot) = ranking.next(self.ledger, &self.needs) else {
                return (wanted, counts(&self.needs, self.ledger));
            };
            self.place(slot);
            ranking.placed(self.ledger, &self.needs, slot);
        }
        (wanted, String::new())
    }

    fn everywhere(&mut self) -> (u64, String) {
        let why = counts(&self.needs, self.ledger);
        let slots: Vec<Slot> = self.ledger.iter().map(|(slot, _)| slot).collect();
        for slot in &slots {
            if first_failing(&self.needs, self.ledger, *slot).is_none() {
                self.place(*slot);
            }
        }
        (slots.len() as u64, why)
    }

    fn place(&mut self, slot: Slot) {
        let reserved = &self.task.spec.resources.reservations;
        let assigned = self.ledger.info(slot).claim(reserved);
        self.ledger.plan(&self.task, slot, assigned);
        *self.placed.entry(slot).or_default() += 1;
    }
}
