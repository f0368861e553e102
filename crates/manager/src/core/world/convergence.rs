//! Whatever users and faults do, the audit stays clean, and once trouble stops the cluster becomes what was asked for.

use std::time::Duration;

use proptest::prelude::*;
use shoal_api::{
    ServiceId, TaskState,
    object::NodeState,
    spec::{
        Availability, FailureAction, PortConfig, PublishMode, ServiceMode, UpdateConfig,
        UpdateOrder,
    },
};

use super::{Behaviour, World};
use crate::core::{
    control,
    fixture::{node_id, service},
};

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
enum Step {
    Create {
        replicas: u64,
        global: bool,
        publish: bool,
        start_first: bool,
        rollback: bool,
    },
    Scale {
        service: usize,
        replicas: u64,
    },
    Image {
        service: usize,
        bad: bool,
    },
    Rollback {
        service: usize,
    },
    Remove {
        service: usize,
    },
    Availability {
        node: usize,
        to: u8,
    },
    Kill {
        node: usize,
    },
    Up {
        node: usize,
    },
    Leader,
    Pass {
        milliseconds: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u64..6, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(replicas, global, publish, start_first, rollback)| Step::Create {
                replicas, global, publish, start_first, rollback
            }
        ),
        2 => (0usize..9, 0u64..8).prop_map(|(service, replicas)| Step::Scale { service, replicas }),
        3 => (0usize..9, any::<bool>()).prop_map(|(service, bad)| Step::Image { service, bad }),
        1 => (0usize..9).prop_map(|service| Step::Rollback { service }),
        1 => (0usize..9).prop_map(|service| Step::Remove { service }),
        2 => (0usize..4, 0u8..3).prop_map(|(node, to)| Step::Availability { node, to }),
        1 => (0usize..4).prop_map(|node| Step::Kill { node }),
        1 => (0usize..4).prop_map(|node| Step::Up { node }),
        1 => Just(Step::Leader),
        4 => (0u64..9_000).prop_map(|milliseconds| Step::Pass { milliseconds }),
    ]
}

struct Story {
    world: World,
    services: Vec<ServiceId>,
    versions: u32,
}

impl Story {
    fn pick(&self, service: usize) -> Option<ServiceId> {
        self.services
            .get(service % self.services.len().max(1))
            .cloned()
    }

    fn tell(&mut self, step: &Step) {
        let world = &mut self.world;
        match *step {
            Step::Create {
                replicas,
                global,
                publish,
                start_first,
                rollback,
            } => {
                self.versions += 1;
                let mut spec = service(&format!("s{}", self.versions), replicas);
                if global {
                    spec.mode = ServiceMode::Global;
                }
                if publish {
                    let mode = if global {
                        PublishMode::Host
                    } else {
                        PublishMode::Ingress
                    };
                    let published = if global {
                        9000 + u16::try_from(self.versions).unwrap()
                    } else {
                        0
                    };
                    spec.endpoint.ports = vec![PortConfig {
                        target: 80,
                        published,
                        mode,
                        ..PortConfig::default()
                    }];
                }
                let order = if start_first && !global {
                    UpdateOrder::StartFirst
                } else {
                    UpdateOrder::StopFirst
                };
                let failure_action = if rollback {
                    FailureAction::Rollback
                } else {
                    FailureAction::Continue
                };
                spec.update = Some(UpdateConfig {
                    order,
                    failure_action,
                    ..UpdateConfig::default()
                });
                spec.rollback = Some(UpdateConfig {
                    order,
                    failure_action: FailureAction::Continue,
                    ..UpdateConfig::default()
                });
                self.services.push(world.create(spec));
            }
            Step::Scale { service, replicas } => {
                if let Some(id) = self.pick(service) {
                    self.world.update(&id, |spec| {
                        if let ServiceMode::Replicated { replicas: wanted } = &mut spec.mode {
                            *wanted = replicas;
                        }
                    });
                }
            }
            Step::Image { service, bad } => {
                if let Some(id) = self.pick(service) {
                    self.versions += 1;
                    let image = format!("{}:{}", if bad { "bad" } else { "demo" }, self.versions);
                    if bad {
                        let behaviour = if self.versions.is_multiple_of(2) {
                            Behaviour::Rejected
                        } else {
                            Behaviour::Exits(Duration::from_secs(2), 1)
                        };
                        self.world.behaviours.insert(image.clone(), behaviour);
                    }
                    self.world
                        .update(&id, |spec| spec.task.container.image = image);
                }
            }
            Step::Rollback { service } => {
                if let Some(id) = self.pick(service) {
                    let version = self.world.service(&id).meta.version;
                    // There may be nothing to go back to.
                    let _ = self
                        .world
                        .user(|state, cx| control::rollback_service(state, cx, &id, version, None));
                }
            }
            Step::Remove { service } => {
                if let Some(id) = self.pick(service) {
                    self.services.retain(|kept| *kept != id);
                    self.world
                        .user(|state, cx| control::remove_service(state, cx, &id))
                        .unwrap();
                }
            }
            Step::Availability { node, to } => {
                let to = [
                    Availability::Active,
                    Availability::Pause,
                    Availability::Drain,
                ][usize::from(to)];
                world.change_node(NODES[node], |spec| spec.availability = to);
            }
            Step::Kill { node } => world.kill(NODES[node]),
            Step::Up { node } => world.up(NODES[node]),
            Step::Leader => world.change_leader(),
            Step::Pass { milliseconds } => world.advance(Duration::from_millis(milliseconds)),
        }
    }

    /// Ends all trouble: every node is up and open, every image works.
    fn heal(&mut self) {
        self.world.behaviours.clear();
        for name in NODES {
            self.world.up(name);
            self.world
                .change_node(name, |spec| spec.availability = Availability::Active);
        }
        self.world.advance(Duration::from_secs(600));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_cluster_becomes_what_was_asked_for(steps in prop::collection::vec(step(), 1..40)) {
        let mut story = Story { world: World::new(&NODES), services: Vec::new(), versions: 0 };
        for step in &steps {
            story.tell(step);
        }
        story.heal();
        let world = &story.world;
        prop_assert!(world.state.nodes().all(|node| node.status.state == NodeState::Ready));
        for id in &story.services {
            let service = world.service(id);
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => usize::try_from(replicas).unwrap(),
                _ => NODES.len(),
            };
            prop_assert_eq!(world.running(id), wanted, "{} {:?}\n{}", service.spec.annotations.name, service.update_status, world.table(id));
            prop_assert_eq!(world.runnable(id).len(), wanted, "nothing else is meant to run");
            for task in world.runnable(id) {
                let node = task.node.as_ref().and_then(|node| world.state.node(node));
                let dirty = crate::core::orchestrator::is_dirty(&service, &task, node.map(AsRef::as_ref));
                prop_assert!(!dirty, "{} still runs an older spec", task.name());
            }
        }
        let stray = world.state.tasks().filter(|task| !story.services.contains(&task.service)).count();
        prop_assert_eq!(stray, 0, "removed services leave nothing");
        let undead = world.state.tasks().filter(|task| {
            task.desired_state > TaskState::Running && !task.status.state.is_terminal()
        });
        prop_assert_eq!(undead.count(), 0, "what shall end has ended");
    }
}

#[test]
fn a_thousand_tasks_take_a_handful_of_batches() {
    let mut world = World::new(&NODES);
    world.unaudited = true;
    let before = world.state.index();
    let id = world.create(service("web", 1_000));
    let mut batches = 0;
    while world.pass() {
        batches += 1;
    }
    let assigned = world
        .runnable(&id)
        .iter()
        .filter(|task| task.status.state == TaskState::Assigned)
        .count();
    assert_eq!(
        (
            assigned,
            world.state.task(&world.runnable(&id)[0].id).is_some()
        ),
        (1_000, true)
    );
    assert!(
        batches <= 6 && world.state.index() - before <= 12,
        "{batches} passes"
    );
    assert!(world.state.node(&node_id("n1")).is_some());
}
