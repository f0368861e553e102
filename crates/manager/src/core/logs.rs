//! Whose output somebody wants to read, and which nodes have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    NodeId, ServiceId, TaskId, TaskState,
    object::{NodeState, Task},
};

use super::state::State;

/// The tasks whose output is wanted: all of these services, and these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogScope {
    /// All of their tasks, also those that come later.
    pub services: BTreeSet<ServiceId>,
    /// Single tasks.
    pub tasks: BTreeSet<TaskId>,
}

impl LogScope {
    /// Whether the output of this task is wanted.
    pub fn covers(&self, task: &Task) -> bool {
        self.services.contains(&task.service) || self.tasks.contains(&task.id)
    }

    /// The nodes that have output, and whether they can be asked for it: those that are away cannot.
    pub fn nodes(&self, state: &State) -> BTreeMap<NodeId, bool> {
        self.covered(state)
            .filter_map(|task| task.node.clone())
            .map(|id| {
                let node = state.node(&id);
                let is_there = node.is_some_and(|node| {
                    matches!(node.status.state, NodeState::Ready | NodeState::Unknown)
                });
                (id, is_there)
            })
            .collect()
    }

    /// Whether nodes may come to have output that have none yet, or are away.
    pub fn may_go_on(&self, state: &State) -> bool {
        let mut services = self.services.iter();
        let mut tasks = self.tasks.iter().filter_map(|task| state.task(task));
        services.any(|service| state.service(service).is_some())
            || tasks.any(|task| {
                task.desired_state <= TaskState::Running && !task.status.state.is_terminal()
            })
    }

    fn covered<'s>(&'s self, state: &'s State) -> impl Iterator<Item = &'s Arc<Task>> {
        let of_services = self
            .services
            .iter()
            .flat_map(|service| state.tasks_of_service(service));
        of_services.chain(self.tasks.iter().filter_map(|task| state.task(task)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        control,
        fixture::{node_id, service},
        world::World,
    };

    #[test]
    fn nodes_with_covered_tasks_are_asked_unless_they_are_away() {
        let mut world = World::new(&["n1", "n2", "n3"]);
        let web = world.create(service("web", 3));
        let lone = world.create(service("lone", 1));
        world.settle();
        let scope = LogScope {
            services: BTreeSet::from([web.clone()]),
            ..LogScope::default()
        };
        let asked = |scope: &LogScope, world: &World| Vec::from_iter(scope.nodes(&world.state));
        let all = ["n1", "n2", "n3"].map(|name| (node_id(name), true));
        assert_eq!(asked(&scope, &world), all);

        let task = world.runnable(&lone)[0].clone();
        let one = LogScope {
            tasks: BTreeSet::from([task.id.clone()]),
            ..LogScope::default()
        };
        assert_eq!(asked(&one, &world), [(task.node.clone().unwrap(), true)]);
        assert!(one.covers(&task) && !scope.covers(&task));

        world.kill("n3");
        assert!(asked(&scope, &world).contains(&(node_id("n3"), false)));
    }

    #[test]
    fn output_goes_on_while_a_service_is_there_or_a_task_runs() {
        let mut world = World::new(&["n1"]);
        let web = world.create(service("web", 1));
        world.settle();
        let task = world.runnable(&web)[0].clone();
        assert_eq!(task.status.state, TaskState::Running);
        let by_service = LogScope {
            services: BTreeSet::from([web.clone()]),
            ..LogScope::default()
        };
        let by_task = LogScope {
            tasks: BTreeSet::from([task.id.clone()]),
            ..LogScope::default()
        };
        assert!(by_task.may_go_on(&world.state));
        world.update(&web, |spec| {
            spec.mode = shoal_api::spec::ServiceMode::Replicated { replicas: 0 };
        });
        world.settle();
        assert!(!by_task.may_go_on(&world.state) && by_service.may_go_on(&world.state));
        world
            .user(|state, cx| control::remove_service(state, cx, &web))
            .unwrap();
        world.settle();
        assert!(!by_service.may_go_on(&world.state));
    }
}
