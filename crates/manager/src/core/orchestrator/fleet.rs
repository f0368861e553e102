//! The tasks of one service by slot while a plan for them is made.

use std::{collections::BTreeMap, sync::Arc};

use shoal_api::{
    NodeId, TaskId, TaskState, Timestamp,
    object::{Node, Object, Service, Task, TaskStatus},
    spec::{EndpointSpec, PortConfig, PublishMode, SharedLabels, TaskSpec},
    template::task::names_labels,
};

use super::{
    TASKS_PER_PLAN_MAX,
    leave::{self, Leaving},
};
use crate::core::{
    allocator::publishes_ingress,
    depends::{Gate, gate},
    reconcile::{Ctx, Plan},
    scheduler::constraint::node_fits,
    state::State,
};

/// A place that one task of a service fills at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SlotKey {
    /// A number, of a replicated service.
    Number(u64),
    /// A node, of a global service.
    Node(NodeId),
}

/// A task as it will be when the plan is carried out.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) task: Arc<Task>,
    /// Whether it is of an older spec, in a way that matters.
    pub(super) dirty: bool,
    /// Whether its node should not carry it any more.
    pub(super) leaves: bool,
    fate: Fate,
}

/// What the plan does with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Changed,
    Created,
}

impl Entry {
    /// Whether it is meant to run, or to have run.
    pub(super) fn is_runnable(&self) -> bool {
        self.task.desired_state <= TaskState::Running
    }

    /// Whether it runs and is meant to.
    pub(super) fn runs(&self) -> bool {
        self.task.desired_state == TaskState::Running
            && self.task.status.state == TaskState::Running
    }

    /// Whether another task of its slot is to take its place.
    pub(super) fn is_stale(&self) -> bool {
        self.dirty || self.leaves
    }

    /// Raises the desired state; it never goes down.
    pub(super) fn desire(&mut self, desired: TaskState) {
        if self.task.desired_state < desired {
            self.change().desired_state = desired;
        }
    }

    fn change(&mut self) -> &mut Task {
        if self.fate == Fate::Kept {
            self.fate = Fate::Changed;
        }
        Arc::make_mut(&mut self.task)
    }
}

/// Whether a task's node still carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Footing {
    /// It does, or there is none yet.
    Firm,
    /// It is there but should not carry the task any more: drained, or no longer fit.
    Leaving,
    /// It is not there: down, gone by itself, or removed.
    Lost,
}

/// All tasks of a service by slot, oldest first, with what is needed to judge them.
pub(super) struct Fleet<'a, 'c> {
    pub(super) state: &'a State,
    pub(super) service: &'a Arc<Service>,
    pub(super) now: Timestamp,
    pub(super) slots: BTreeMap<SlotKey, Vec<Entry>>,
    /// The service as the plan changes it, if it does.
    pub(super) changed_service: Option<Service>,
    /// What may be done about tasks on nodes that they should leave.
    pub(super) leaving: Leaving,
    /// What must be so before tasks start.
    pub(super) gate: Gate,
    cx: &'a mut Ctx<'c>,
    plan: Plan,
    created: usize,
}

impl<'a, 'c> Fleet<'a, 'c> {
    pub(super) fn new(state: &'a State, service: &'a Arc<Service>, cx: &'a mut Ctx<'c>) -> Self {
        let mut dirt = Dirt::default();
        let mut slots: BTreeMap<SlotKey, Vec<Entry>> = BTreeMap::new();
        for task in state.tasks_of_service(&service.id) {
            let key = match (&task.node, task.slot) {
                (Some(node), 0) => SlotKey::Node(node.clone()),
                (_, slot) => SlotKey::Number(slot),
            };
            let node = task.node.as_ref().and_then(|node| state.node(node));
            let dirty = dirt.of(service, task, node.map(AsRef::as_ref));
            let footing = node_footing(node.map(AsRef::as_ref), task);
            slots.entry(key).or_default().push(Entry {
                task: task.clone(),
                dirty,
                leaves: leave::leaves(task, footing),
                fate: Fate::Kept,
            });
        }
        for slot in slots.values_mut() {
            slot.sort_by(|a, b| age(&a.task).cmp(&age(&b.task)));
        }
        let now = cx.now;
        Self {
            state,
            service,
            now,
            slots,
            changed_service: None,
            leaving: Leaving::AT_ONCE,
            gate: gate(state, service, now),
            cx,
            plan: Plan::default(),
            created: 0,
        }
    }

    /// Whether the plan may create one more task.
    pub(super) fn has_room(&self) -> bool {
        self.created < TASKS_PER_PLAN_MAX
    }

    /// Adds a task of the current spec to a slot.
    pub(super) fn create(&mut self, slot: &SlotKey, birth: Birth) {
        let service = self.service;
        let spec = self.state.task_spec(&service.id, service.spec_version);
        let spec = spec
            .cloned()
            .unwrap_or_else(|| Arc::new(service.spec.task.clone()));
        let mut task = born(service, spec, self.cx);
        match slot {
            SlotKey::Number(number) => task.slot = *number,
            SlotKey::Node(node) => task.node = Some(node.clone()),
        }
        task.desired_state = if self.gate.is_open() {
            birth.desired
        } else {
            TaskState::Ready
        };
        task.attempts = birth.attempts;
        task.start_after = birth.start_after;
        self.created += 1;
        let entry = Entry {
            task: Arc::new(task),
            dirty: false,
            leaves: false,
            fate: Fate::Created,
        };
        self.slots.entry(slot.clone()).or_default().push(entry);
    }

    /// Looks again at `at`.
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.plan.wake(at);
    }

    /// Whether the node of a task still carries it.
    pub(super) fn footing(&self, task: &Task) -> Footing {
        let node = task.node.as_ref().and_then(|node| self.state.node(node));
        node_footing(node.map(AsRef::as_ref), task)
    }

    /// Whether a task has ended as far as anybody can know.
    pub(super) fn is_over(&self, task: &Task) -> bool {
        task.status.state.is_terminal()
            || self.footing(task) == Footing::Lost
            || (task.status.state < TaskState::Assigned && task.desired_state > TaskState::Running)
    }

    /// Whether every task that ever filled a slot has ended as far as anybody can know.
    pub(super) fn is_vacant(&self, slot: &SlotKey) -> bool {
        let tasks = self.slots.get(slot).into_iter().flatten();
        tasks
            .map(|entry| &entry.task)
            .all(|task| self.is_over(task))
    }

    /// Finishes what has begun in each slot: old tasks end once their replacement runs, prepared tasks are let go once
    /// the old ones are over and their delay has passed, and tasks that never reached a node end where they stand.
    pub(super) fn settle(&mut self) {
        if let Some(until) = self.gate.until {
            self.wake(until);
        }
        let mut slots = std::mem::take(&mut self.slots);
        for slot in slots.values_mut() {
            self.settle_slot(slot);
        }
        self.slots = slots;
    }

    fn settle_slot(&mut self, slot: &mut [Entry]) {
        let is_hasty = shoal_api::planted::planted(shoal_api::planted::Bug::StartFirstHasty);
        if let Some(heir) = slot
            .iter()
            .position(|entry| !entry.is_stale() && (entry.runs() || is_hasty))
        {
            for (_, entry) in slot
                .iter_mut()
                .enumerate()
                .filter(|(place, _)| *place != heir)
            {
                if entry.is_runnable() {
                    entry.desire(TaskState::Shutdown);
                }
            }
        }
        // A task of an older spec beside it is one that start-first keeps until its replacement runs.
        let current = slot
            .iter()
            .filter(|entry| entry.is_runnable() && !entry.is_stale())
            .count();
        let next = slot
            .iter()
            .rposition(|entry| entry.task.desired_state == TaskState::Ready);
        if let Some(next) = next.filter(|_| !self.gate.is_open()) {
            let (state, reason) = (slot[next].task.status.state, self.gate.reason());
            if (TaskState::Assigned..=TaskState::Ready).contains(&state)
                && slot[next].task.status.err != reason
            {
                slot[next].change().status.err = reason.into();
            }
        } else if let Some(next) = next.filter(|next| current <= 1 || slot[*next].dirty) {
            match self.start_at(&slot[next].task, slot) {
                Some(at) if at <= self.now => slot[next].desire(TaskState::Running),
                Some(at) => self.wake(at),
                None => {}
            }
        }
        for entry in slot.iter_mut() {
            let waits =
                entry.task.status.state < TaskState::Assigned && entry.fate != Fate::Created;
            if waits && entry.task.desired_state == TaskState::Shutdown {
                let now = self.now;
                let status = &mut entry.change().status;
                status.state = TaskState::Shutdown;
                status.at = now;
                status.message = "shutdown".into();
            }
        }
    }

    /// When a prepared task may start at the earliest; `None` is "when something happens".
    fn start_at(&self, next: &Task, slot: &[Entry]) -> Option<Timestamp> {
        let after = next.start_after.unwrap_or(self.now);
        let old = slot
            .iter()
            .filter(|entry| !entry.is_runnable() && !self.is_over(&entry.task))
            .filter(|_| !shoal_api::planted::planted(shoal_api::planted::Bug::StopFirstOverlaps));
        // An old task that does not end must not keep its slot empty for ever.
        let patience = old.map(|entry| {
            let grace = entry
                .task
                .spec
                .container
                .stop_grace_period
                .unwrap_or(STOP_GRACE_DEFAULT);
            next.meta.created_at + grace + OLD_TASK_TIMEOUT
        });
        Some(patience.max().map_or(after, |patience| patience.max(after)))
    }

    /// The changes, in the order of the slots.
    pub(super) fn into_plan(self) -> Plan {
        let mut plan = self.plan;
        if let Some(service) = self.changed_service {
            plan.update(Object::Service(service));
        }
        for entry in self.slots.into_values().flatten() {
            let runnable = entry.is_runnable() || entry.task.desired_state == TaskState::Complete;
            let task = Arc::unwrap_or_clone(entry.task);
            match entry.fate {
                Fate::Kept => {}
                Fate::Changed => plan.update(Object::Task(task)),
                // What is made and unmade by one plan never was.
                Fate::Created if runnable => plan.create(Object::Task(task)),
                Fate::Created => {}
            }
        }
        plan
    }
}

/// Whether a node, if it is there, still carries a task.
fn node_footing(node: Option<&Node>, task: &Task) -> Footing {
    match node {
        Some(node) => super::enforce::footing(node, task),
        None if task.node.is_none() => Footing::Firm,
        None => Footing::Lost,
    }
}

/// Time that an old task is given to end, beyond its own grace period (SwarmKit's `defaultOldTaskTimeout`).
const OLD_TASK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Docker's grace period between the stop signal and the kill.
const STOP_GRACE_DEFAULT: std::time::Duration = std::time::Duration::from_secs(10);

/// Circumstances under which a task is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Birth {
    pub(super) desired: TaskState,
    pub(super) attempts: u64,
    pub(super) start_after: Option<Timestamp>,
}

impl Birth {
    /// Starts as soon as it can.
    pub(super) const NOW: Self = Self {
        desired: TaskState::Running,
        attempts: 0,
        start_after: None,
    };
    /// Is prepared, and starts when those before it in the slot are over.
    pub(super) const NEXT: Self = Self {
        desired: TaskState::Ready,
        attempts: 0,
        start_after: None,
    };
}

fn age(task: &Task) -> (Timestamp, u64, &TaskId) {
    (task.meta.created_at, task.attempts, &task.id)
}

/// A task of a service as it is now, in no slot yet and meant to run.
pub(in crate::core) fn born(service: &Service, spec: Arc<TaskSpec>, cx: &mut Ctx<'_>) -> Task {
    let labels = if names_labels(&service.spec.task.container) {
        service.spec.annotations.labels.clone().into()
    } else {
        SharedLabels::default()
    };
    Task {
        id: cx.ids.next(),
        meta: shoal_api::object::Meta {
            version: 0,
            created_at: cx.now,
            updated_at: cx.now,
        },
        service: service.id.clone(),
        slot: 0,
        node: None,
        spec_version: service.spec_version,
        spec,
        service_name: service.spec.annotations.name.as_str().into(),
        service_labels: labels,
        desired_state: TaskState::Running,
        status: TaskStatus {
            state: TaskState::New,
            at: cx.now,
            message: "created".into(),
            ..TaskStatus::default()
        },
        networks: Box::default(),
        ports: Box::default(),
        attempts: 0,
        start_after: None,
        job_iteration: service.job.map(|job| job.iteration),
        drained: false,
        assigned: None,
    }
}

/// Whether a task differs from its service's spec in a way that only a replacement mends.
///
/// As SwarmKit's `IsTaskDirty`: placement alone does not matter as long as the node fits, nor do the credentials for an
/// image that is there. Published numbers do not matter either, since the nodes follow them without touching the task;
/// whether it is in the ingress network does.
pub fn is_dirty(service: &Service, task: &Task, node: Option<&Node>) -> bool {
    Dirt::default().of(service, task, node)
}

/// Comparisons of specs, made once per spec version instead of once per task.
#[derive(Default)]
struct Dirt {
    by_version: BTreeMap<u64, SpecDifference>,
}

/// What two specs differ in, as far as it decides whether a task must be replaced.
#[derive(Clone, Copy, Default)]
struct SpecDifference {
    /// What the task is.
    substance: bool,
    /// Where it may be.
    placement: bool,
    /// With which credentials its image is pulled.
    credentials: bool,
}

impl Dirt {
    fn of(&mut self, service: &Service, task: &Task, node: Option<&Node>) -> bool {
        if task.spec_version == service.spec_version {
            return false;
        }
        let difference = self
            .by_version
            .entry(task.spec_version)
            .or_insert_with(|| spec_difference(&service.spec.task, &task.spec));
        let placement = &service.spec.task.placement;
        let has_image = (TaskState::Ready..=TaskState::Running).contains(&task.status.state);
        difference.substance
            || (difference.placement && !node.is_some_and(|node| node_fits(placement, node)))
            || (difference.credentials && !has_image)
            // What has no addresses yet gets those of the current spec.
            || (task.status.state > TaskState::New && !fits_endpoint(&service.spec.endpoint, task))
    }
}

fn spec_difference(wanted: &TaskSpec, have: &TaskSpec) -> SpecDifference {
    if wanted == have {
        return SpecDifference::default();
    }
    let mut same = wanted.clone();
    same.placement = have.placement.clone();
    same.container.pull_auth = have.container.pull_auth.clone();
    SpecDifference {
        substance: same != *have,
        placement: wanted.placement != have.placement,
        credentials: wanted.container.pull_auth != have.container.pull_auth,
    }
}

fn fits_endpoint(wanted: &EndpointSpec, task: &Task) -> bool {
    let host = |ports: &[PortConfig]| {
        let mut host: Vec<_> = ports
            .iter()
            .filter(|port| port.mode == PublishMode::Host)
            .cloned()
            .collect();
        host.sort();
        host
    };
    let has_ingress = task
        .ports
        .iter()
        .any(|port| port.mode == PublishMode::Ingress);
    host(&wanted.ports) == host(&task.ports) && (has_ingress || !publishes_ingress(wanted))
}
