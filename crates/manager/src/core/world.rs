//! A cluster in a test: the real state and control loops, a clock that jumps, and agents that are a few lines.
//!
//! After every applied batch the audit is asked. Time moves only when nothing is left to do.

mod convergence;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use shoal_api::{
    NodeId, ServiceId, TaskId, TaskState, Timestamp,
    object::{Batch, NodeState, ObjectKey, Service, Task, TaskStatus},
    spec::{Availability, ClusterSpec, NodeSpec, ServiceSpec},
};

use super::{
    audit::audit,
    control::{self, Decision},
    dispatch::{self, Views},
    fixture::{self, CountingIds},
    loops::Loops,
    reconcile::Ctx,
    state::{Delta, Event, Rejected, State},
    validate::Refusal,
};

/// What the process of an image does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Runs until it is stopped.
    Runs,
    /// Cannot be prepared.
    Rejected,
    /// Ends so long after it has begun to run.
    Exits(Duration, i64),
    /// Prepares for ever.
    Hangs,
    /// Starts and does not become healthy.
    Starts,
}

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) ids: CountingIds,
    pub(crate) behaviours: BTreeMap<String, Behaviour>,
    /// Nodes whose agents do not answer.
    pub(crate) silent: Vec<NodeId>,
    /// Nodes that never confirm a view.
    pub(crate) deaf: Vec<NodeId>,
    /// Tasks in the order in which they got their stop signal.
    pub(crate) stopped: Vec<TaskId>,
    /// Whether the audit is left out, where there is too much to look at.
    pub(crate) unaudited: bool,
    loops: Loops,
    views: Views,
    index: u64,
}

impl World {
    /// A cluster of ready nodes; the first one is its manager.
    pub(crate) fn new(nodes: &[&str]) -> Self {
        Self::with(nodes, ClusterSpec::default())
    }

    /// The same with these settings.
    pub(crate) fn with(nodes: &[&str], spec: ClusterSpec) -> Self {
        let mut world = Self {
            state: State::default(),
            now: fixture::at(0),
            ids: CountingIds::default(),
            behaviours: BTreeMap::new(),
            silent: Vec::new(),
            deaf: Vec::new(),
            stopped: Vec::new(),
            unaudited: false,
            loops: Loops::begin(&State::default()),
            views: Views::default(),
            index: 0,
        };
        let first = fixture::node(nodes[0]);
        let bootstrap = control::Bootstrap {
            cluster: "cluster".parse().unwrap(),
            spec,
            root_ca_cert: String::new(),
            root_ca_key: String::new(),
            node: first.id.clone(),
            availability: Availability::Active,
            description: first.description.clone(),
            addr: "192.0.2.1".parse().unwrap(),
            manager_addr: "192.0.2.1:2377".to_owned(),
        };
        let batch = control::bootstrap(&mut world.cx(), bootstrap).unwrap();
        world.apply(batch).unwrap();
        world.up(nodes[0]);
        for name in &nodes[1..] {
            world.join(name);
        }
        world.settle();
        world
    }

    pub(crate) fn cx(&mut self) -> Ctx<'_> {
        Ctx {
            now: self.now,
            ids: &mut self.ids,
        }
    }

    pub(crate) fn apply(&mut self, batch: Batch) -> Result<(), Rejected> {
        self.index += 1;
        let events = self.state.apply(self.index, &batch)?;
        for event in &events {
            if let Event::Task(Delta {
                old: Some(old),
                new: Some(new),
            }) = event
            {
                let forwards =
                    old.status.state <= new.status.state && old.desired_state <= new.desired_state;
                assert!(forwards, "{} goes back after {batch:#?}", new.name());
            }
        }
        self.loops.observe(&self.state, &events);
        if !self.unaudited {
            assert_eq!(audit(&self.state), Vec::<String>::new(), "after {batch:#?}");
        }
        Ok(())
    }

    /// Another leader takes over and knows nothing but the state.
    pub(crate) fn change_leader(&mut self) {
        self.loops = Loops::begin(&self.state);
        self.views = Views::default();
    }

    pub(crate) fn join(&mut self, name: &str) {
        let mut node = fixture::node(name);
        node.status.state = NodeState::Unknown;
        let batch = Batch {
            actor: shoal_api::Actor::Dispatcher,
            at: self.now,
            changes: vec![shoal_api::object::Change::Put {
                object: Box::new(shoal_api::object::Object::Node(node)),
                expect: shoal_api::object::Expect::Absent,
            }],
            wish: None,
        };
        self.apply(batch).unwrap();
        self.up(name);
    }

    pub(crate) fn up(&mut self, name: &str) {
        let id = fixture::node_id(name);
        self.silent.retain(|silent| *silent != id);
        let description = self.state.node(&id).unwrap().description.clone();
        if let Some(batch) = dispatch::node_seen(&self.state, &id, &description, None, self.now) {
            self.apply(batch).unwrap();
        }
    }

    /// The node loses power, and that is noticed.
    pub(crate) fn kill(&mut self, name: &str) {
        let id = fixture::node_id(name);
        self.silent.push(id.clone());
        self.views.forget(&id);
        let verdict = dispatch::node_verdict(
            &self.state,
            &id,
            NodeState::Down,
            "heartbeat failure",
            self.now,
        );
        if let Some(batch) = verdict {
            self.apply(batch).unwrap();
        }
    }

    pub(crate) fn change_node(&mut self, name: &str, change: impl FnOnce(&mut NodeSpec)) {
        let node = self.state.node(&fixture::node_id(name)).unwrap().clone();
        let mut spec = node.spec.clone();
        change(&mut spec);
        let state = self.state.clone();
        let decision =
            control::update_node(&state, &mut self.cx(), &node.id, node.meta.version, spec);
        self.carry_out(decision).unwrap();
    }

    /// Decides on a user's intent and applies it.
    pub(crate) fn user(
        &mut self,
        decide: impl FnOnce(&State, &mut Ctx<'_>) -> Result<Decision, Refusal>,
    ) -> Result<ObjectKey, Refusal> {
        let state = self.state.clone();
        let decision = decide(&state, &mut self.cx());
        self.carry_out(decision)
    }

    fn carry_out(&mut self, decision: Result<Decision, Refusal>) -> Result<ObjectKey, Refusal> {
        let Decision { batch, key } = decision?;
        self.apply(batch)?;
        Ok(key)
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> ServiceId {
        match self
            .user(|state, cx| control::create_service(state, cx, spec))
            .unwrap()
        {
            ObjectKey::Service(id) => id,
            key => panic!("{key:?} is no service"),
        }
    }

    pub(crate) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let service = self.service(id);
        let mut spec = service.spec.as_ref().clone();
        change(&mut spec);
        self.user(|state, cx| control::update_service(state, cx, id, service.meta.version, spec))
            .unwrap();
    }

    pub(crate) fn service(&self, id: &ServiceId) -> Arc<Service> {
        self.state.service(id).unwrap().clone()
    }

    /// Tasks of a service that are meant to run, by slot and node.
    pub(crate) fn runnable(&self, id: &ServiceId) -> Vec<Arc<Task>> {
        let tasks = self.state.tasks_of_service(id);
        let mut tasks: Vec<_> = tasks
            .filter(|task| task.desired_state <= TaskState::Running)
            .cloned()
            .collect();
        tasks.sort_by_key(|task| (task.slot, task.node.clone(), task.id.clone()));
        tasks
    }

    /// How many tasks of a service run and are meant to.
    pub(crate) fn running(&self, id: &ServiceId) -> usize {
        self.runnable(id)
            .iter()
            .filter(|task| task.status.state == TaskState::Running)
            .count()
    }

    /// One line per task that is meant to run: `slot node observed/desired image`.
    pub(crate) fn table(&self, id: &ServiceId) -> String {
        let mut lines = String::new();
        for task in self.runnable(id) {
            let node = task.node.as_ref().map_or("-", NodeId::as_str);
            let (state, desired) = (task.status.state, task.desired_state);
            let image = &task.spec.container.image;
            lines += &format!("{} {node} {state}/{desired} {image}\n", task.slot);
        }
        lines
    }

    /// Lets loops and agents work until nothing is left to do now.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.pass() && !self.agents() {
                return;
            }
        }
        panic!(
            "the cluster does not come to rest:\n{:#?}",
            self.state.tasks().collect::<Vec<_>>()
        );
    }

    /// Lets time pass, with everything that happens meanwhile.
    pub(crate) fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let wake = self.loops.next_wake(self.now);
            let next = wake
                .into_iter()
                .chain(self.next_exit())
                .filter(|at| *at > self.now)
                .min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = next,
                None => break,
            }
        }
        self.now = end;
        self.settle();
    }

    pub(crate) fn pass(&mut self) -> bool {
        for node in self.heard_nodes() {
            let view = dispatch::network_view(&self.state, &node);
            let sent = self.views.refresh(&view, &node, self.state.index());
            if let Some(version) = sent
                && !self.deaf.contains(&node)
            {
                self.views.acknowledge(&node, version);
            }
        }
        self.loops.acknowledged(self.views.acked());
        let state = self.state.clone();
        let mut cx = Ctx {
            now: self.now,
            ids: &mut self.ids,
        };
        let proposals = self.loops.pass(&state, &mut cx);
        for proposal in &proposals {
            let applied = self.apply(proposal.batch.clone());
            applied.unwrap_or_else(|e| panic!("{} was refused: {e}", proposal.control_loop));
        }
        !proposals.is_empty()
    }

    fn heard_nodes(&self) -> Vec<NodeId> {
        let nodes = self.state.nodes().map(|node| node.id.clone());
        nodes.filter(|node| !self.silent.contains(node)).collect()
    }

    /// Each agent moves each of its tasks by one step.
    pub(crate) fn agents(&mut self) -> bool {
        let mut moved = false;
        for node in self.heard_nodes() {
            let tasks = dispatch::assignment_set(&self.state, &node).tasks;
            let mut reports = Vec::new();
            for task in tasks.values() {
                if let Some(status) = self.step(task) {
                    if status.state == TaskState::Shutdown {
                        self.stopped.push(task.id.clone());
                    }
                    reports.push((task.id.clone(), status));
                }
            }
            if let Some(batch) = dispatch::merge_reports(&self.state, &node, &reports, self.now) {
                self.apply(batch).unwrap();
                moved = true;
            }
        }
        moved
    }

    fn behaviour(&self, task: &Task) -> Behaviour {
        self.behaviours
            .get(&task.spec.container.image)
            .copied()
            .unwrap_or(Behaviour::Runs)
    }

    fn exit_at(&self, task: &Task) -> Option<Timestamp> {
        match self.behaviour(task) {
            Behaviour::Exits(after, _) => Some(task.status.running_since? + after),
            _ => None,
        }
    }

    fn next_exit(&self) -> Option<Timestamp> {
        let running = self
            .state
            .tasks()
            .filter(|task| task.status.state == TaskState::Running);
        let heard = running.filter(|task| {
            !task
                .node
                .as_ref()
                .is_some_and(|node| self.silent.contains(node))
        });
        heard
            .filter_map(|task| self.exit_at(task))
            .filter(|at| *at > self.now)
            .min()
    }

    fn step(&self, task: &Task) -> Option<TaskStatus> {
        use TaskState as S;
        let (state, desired) = (task.status.state, task.desired_state);
        let next = match state {
            state if state.is_terminal() => return None,
            _ if desired >= S::Shutdown => S::Shutdown,
            S::Assigned => S::Accepted,
            S::Accepted => S::Preparing,
            S::Preparing => match self.behaviour(task) {
                Behaviour::Rejected => S::Rejected,
                Behaviour::Hangs => return None,
                _ => S::Ready,
            },
            S::Ready if desired >= S::Running => S::Starting,
            // Its process was started, and it does not become healthy.
            S::Starting if self.behaviour(task) == Behaviour::Starts => {
                return task.status.container.is_none().then(|| TaskStatus {
                    at: self.now,
                    container: Some(Box::default()),
                    ..task.status.clone()
                });
            }
            S::Starting => S::Running,
            S::Running if self.exit_at(task).is_some_and(|at| at <= self.now) => {
                match self.behaviour(task) {
                    Behaviour::Exits(_, 0) => S::Complete,
                    _ => S::Failed,
                }
            }
            _ => return None,
        };
        Some(TaskStatus {
            state: next,
            at: self.now,
            ..TaskStatus::default()
        })
    }
}
