//! Start gates: which services must have come how far before tasks of another one start.
//!
//! A gate is passed once per version of the spec: restarts and new places of tasks that have been let go once do not wait
//! again, so that a dependency that is ill does not take its dependents with it. Meanings as in the compose-spec.

use std::{collections::BTreeSet, sync::Arc};

use shoal_api::{
    NodeId, TaskState, Timestamp,
    object::{Node, NodeState, Service, Task, UpdateState},
    spec::{
        Availability, Dependency, DependencyCondition, RestartCondition, ServiceMode, ServiceSpec,
    },
    stack::NAMESPACE,
};

use super::{
    orchestrator::is_dirty,
    scheduler::constraint::node_fits,
    state::{Kind, State},
};

/// Whether tasks may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// What is waited for, in words; empty is an open gate.
    pub waits: Vec<String>,
    /// When it will be waited for no longer.
    pub until: Option<Timestamp>,
}

impl Gate {
    /// Whether tasks may start.
    pub fn is_open(&self) -> bool {
        self.waits.is_empty()
    }

    /// Why a task waits.
    pub fn reason(&self) -> String {
        format!("waiting for {}", self.waits.join(", "))
    }
}

/// The names by which a service may know another one, the most specific first.
fn names(dependent: &ServiceSpec, name: &str) -> Vec<String> {
    let stack = dependent.annotations.labels.get(NAMESPACE);
    let in_stack = stack.map(|stack| format!("{stack}_{name}"));
    in_stack.into_iter().chain([name.to_owned()]).collect()
}

/// The service that a dependency of `dependent` names: one of its stack before any other.
pub fn resolve<'s>(
    state: &'s State,
    dependent: &ServiceSpec,
    dependency: &Dependency,
) -> Option<&'s Arc<Service>> {
    let names = names(dependent, &dependency.service);
    let mut found = names.iter().filter_map(|name| {
        let shoal_api::object::ObjectKey::Service(id) = state.named(Kind::Service, name)? else {
            return None;
        };
        state.service(id)
    });
    found.next()
}

/// Whether a service waits for another one, as far as names go.
pub fn names_service(dependent: &ServiceSpec, other: &Service) -> bool {
    let name = &other.spec.annotations.name;
    let mut wanted = dependent.depends_on.iter();
    wanted.any(|dependency| names(dependent, &dependency.service).contains(name))
}

/// The gate before a service's tasks.
pub fn gate(state: &State, service: &Service, now: Timestamp) -> Gate {
    let mut gate = Gate {
        waits: Vec::new(),
        until: None,
    };
    if service.spec.depends_on.is_empty() || has_passed(state, service) {
        return gate;
    }
    let since = service
        .history
        .last()
        .map_or(service.meta.created_at, |revision| revision.replaced_at);
    let patience = service.spec.depends_on_timeout.map(|time| since + time);
    for dependency in &service.spec.depends_on {
        let found = resolve(state, &service.spec, dependency);
        let missing = match found {
            None if !dependency.required => continue,
            None => "which does not exist".to_owned(),
            Some(other) => match shortfall(state, other, dependency.condition) {
                None => continue,
                Some(missing) => missing,
            },
        };
        if !dependency.required
            && let Some(until) = patience
        {
            if until <= now {
                continue;
            }
            gate.until = Some(gate.until.map_or(until, |first| first.min(until)));
        }
        let (name, condition) = (&dependency.service, dependency.condition.as_str());
        gate.waits
            .push(format!("service {name} ({condition}): {missing}"));
    }
    gate
}

/// Whether tasks of the spec in force have been let go before. Going back is never held up.
fn has_passed(state: &State, service: &Service) -> bool {
    let goes_back = service.update_status.as_ref().is_some_and(|status| {
        matches!(
            status.state,
            UpdateState::RollbackStarted
                | UpdateState::RollbackPaused
                | UpdateState::RollbackCompleted
        )
    });
    let let_go = |task: &Task| {
        task.spec_version == service.spec_version
            && (matches!(task.desired_state, TaskState::Running | TaskState::Complete)
                || task.status.running_since.is_some())
    };
    goes_back || state.tasks_of_service(&service.id).any(|task| let_go(task))
}

/// What a service lacks of a condition, in words; `None` if it holds.
fn shortfall(state: &State, service: &Service, condition: DependencyCondition) -> Option<String> {
    let is_current = |task: &&Arc<Task>| {
        let node = task.node.as_ref().and_then(|node| state.node(node));
        match service.job {
            Some(job) => task.job_iteration == Some(job.iteration),
            None => !is_dirty(service, task, node.map(AsRef::as_ref)),
        }
    };
    let holds = |task: &&Arc<Task>| {
        let (observed, desired) = (task.status.state, task.desired_state);
        match condition {
            DependencyCondition::CompletedSuccessfully => observed == TaskState::Complete,
            // What has ended well has started.
            _ if service.job.is_some() && observed == TaskState::Complete => true,
            DependencyCondition::Started => has_started(task) && desired <= TaskState::Complete,
            DependencyCondition::Healthy => {
                observed == TaskState::Running && desired <= TaskState::Complete
            }
        }
    };
    let tasks = state.tasks_of_service(&service.id);
    let tasks = tasks.filter(is_current).filter(holds);
    let slots: BTreeSet<(u64, Option<&NodeId>)> = tasks
        .map(|task| (task.slot, task.node.as_ref().filter(|_| task.slot == 0)))
        .collect();
    let (have, wanted) = (slots.len(), wanted_slots(state, service));
    let done = match condition {
        DependencyCondition::Started => "started",
        DependencyCondition::Healthy if service.job.is_some() => "running",
        DependencyCondition::Healthy => "running and healthy",
        DependencyCondition::CompletedSuccessfully => "completed",
    };
    (have < wanted).then(|| format!("{have} of {wanted} tasks {done}"))
}

/// Whether a task's process runs, healthy or not. Where its health is checked, it is the container that tells.
pub fn has_started(task: &Task) -> bool {
    match task.status.state {
        TaskState::Running => true,
        TaskState::Starting => task.status.container.is_some(),
        _ => false,
    }
}

/// How many slots a service shall fill.
fn wanted_slots(state: &State, service: &Service) -> usize {
    let placement = &service.spec.task.placement;
    let open = |node: &Node| {
        node.status.state == NodeState::Ready
            && node.spec.availability == Availability::Active
            && node_fits(placement, node)
    };
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::ReplicatedJob {
            total_completions, ..
        } => total_completions,
        ServiceMode::Global => return state.nodes().filter(|node| open(node)).count(),
        ServiceMode::GlobalJob => {
            let began = service.job.map(|job| job.last_execution);
            let there = state.nodes().filter(|node| open(node));
            return there
                .filter(|node| began.is_none_or(|began| node.meta.created_at <= began))
                .count();
        }
    };
    usize::try_from(wanted).unwrap_or(usize::MAX)
}

/// Whether a service can ever end well, which one that is restarted for ever cannot.
pub fn can_complete(spec: &ServiceSpec) -> bool {
    matches!(
        spec.mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    ) || spec.task.restart.condition != RestartCondition::Any
}

/// A circle of dependencies that a spec would close, as names; the first is its own.
pub fn cycle(state: &State, spec: &ServiceSpec) -> Option<Vec<String>> {
    let start = spec.annotations.name.clone();
    let mut seen = BTreeSet::new();
    // Depth first; the path to each name is kept with it.
    let mut open: Vec<(Vec<String>, &ServiceSpec)> = vec![(vec![start.clone()], spec)];
    while let Some((path, dependent)) = open.pop() {
        for dependency in &dependent.depends_on {
            let by_name = names(dependent, &dependency.service);
            let mut longer = path.clone();
            let next = resolve(state, dependent, dependency);
            // The service itself may not exist yet, or change with this spec.
            if by_name.contains(&start)
                && next.is_none_or(|next| next.spec.annotations.name == start)
            {
                longer.push(start);
                return Some(longer);
            }
            let Some(next) = next else { continue };
            if seen.insert(next.id.clone()) {
                longer.push(next.spec.annotations.name.clone());
                open.push((longer, &next.spec));
            }
        }
    }
    None
}
