//! Nodes that stay down are forgotten after a time, where the cluster says so.

use shoal_api::{
    Actor, NodeId,
    object::{Node, NodeState, Object, ObjectKey},
    spec::{NodeRole, labels},
};

use crate::core::{
    control::shut_out,
    reconcile::{Ctx, Plan, Reconciler},
    state::{Event, State},
};

/// Forgets nodes by [`labels::NODE_TTL`], as if a user had removed them.
///
/// A manager that is down stays: without it the others may not agree on anything, which is for people to decide.
#[derive(Debug, Default, Clone, Copy)]
pub struct Forget;

impl Reconciler for Forget {
    type Key = NodeId;
    const ACTOR: Actor = Actor::Dispatcher;

    fn affected(&self, state: &State, event: &Event) -> Vec<NodeId> {
        match event {
            Event::Node(delta) if delta.new.as_ref().is_some_and(|node| may_go(node)) => {
                vec![delta.any().id.clone()]
            }
            Event::Cluster(delta) if delta.changed(|cluster| cluster.spec.annotations.clone()) => {
                self.all(state)
            }
            _ => Vec::new(),
        }
    }

    fn all(&self, state: &State) -> Vec<NodeId> {
        let nodes = state.nodes().filter(|node| may_go(node));
        nodes.map(|node| node.id.clone()).collect()
    }

    fn reconcile(&self, state: &State, id: &NodeId, cx: &mut Ctx<'_>) -> Plan {
        let mut plan = Plan::default();
        let (Some(node), Some(cluster)) = (state.node(id), state.cluster()) else {
            return plan;
        };
        // What is not a time was refused when it was set.
        let ttl = labels::node_ttl(&cluster.spec.annotations.labels).unwrap_or_default();
        let Some(ttl) = ttl.filter(|_| may_go(node)) else {
            return plan;
        };
        let at = node.status.since + ttl;
        if at > cx.now {
            plan.wake(at);
            return plan;
        }
        plan.delete(ObjectKey::Node(id.clone()), node.meta.version);
        let mut cluster = cluster.as_ref().clone();
        let hostname = node.description.hostname.clone();
        shut_out(&mut cluster, cx.now, id, Some(hostname));
        plan.update(Object::Cluster(cluster));
        plan
    }
}

fn may_go(node: &Node) -> bool {
    let is_manager = node.manager.is_some() || node.spec.role == NodeRole::Manager;
    node.status.state == NodeState::Down && !is_manager
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::{
        control::{node_leaves, update_cluster},
        fixture::{node_id, service},
        world::World,
    };

    const HOUR: Duration = Duration::from_secs(3_600);

    fn say(world: &mut World, ttl: &str) -> Result<(), String> {
        let cluster = world.state.cluster().unwrap().clone();
        let mut spec = cluster.spec.clone();
        let labels = &mut spec.annotations.labels;
        labels.insert(labels::NODE_TTL.to_owned(), ttl.to_owned());
        let version = cluster.meta.version;
        world
            .user(|state, cx| update_cluster(state, cx, version, spec))
            .map(drop)
            .map_err(|refusal| refusal.text)
    }

    fn is_known(world: &World, name: &str) -> bool {
        world.state.node(&node_id(name)).is_some()
    }

    #[test]
    fn a_node_that_stays_down_is_forgotten_where_the_cluster_says_so() {
        let mut world = World::new(&["n1", "n2", "n3"]);
        world.kill("n2");
        world.settle();
        world.advance(HOUR);
        assert!(is_known(&world, "n2"), "as in Swarm");
        assert_eq!(
            say(&mut world, "soon").unwrap_err(),
            "label 'shoal.node-ttl' has the invalid value 'soon': expected DURATION"
        );
        say(&mut world, "2h").unwrap();
        world.settle();
        world.kill("n1"); // a manager
        world.kill("n3");
        world.settle();
        world.advance(HOUR / 2);
        world.up("n3");
        world.settle();
        assert!(is_known(&world, "n2"));
        world.advance(HOUR / 2);
        assert!(!is_known(&world, "n2"));
        world.advance(3 * HOUR);
        assert!(is_known(&world, "n1") && is_known(&world, "n3"));
        let cluster = world.state.cluster().unwrap();
        assert!(cluster.blacklisted.contains_key(&node_id("n2")));
        say(&mut world, "0s").unwrap();
        world.kill("n3");
        world.settle();
        world.advance(24 * HOUR);
        assert!(is_known(&world, "n3"), "0 is never");
    }

    #[test]
    fn a_node_that_leaves_is_forgotten_at_once_and_its_tasks_move() {
        let mut world = World::new(&["n1", "n2"]);
        let id = world.create(service("web", 2));
        world.settle();
        let refused = world.user(|state, cx| node_leaves(state, cx, &node_id("n1")));
        assert_eq!(
            refused.unwrap_err().text,
            "node n1 is a member of the raft cluster, which it leaves first"
        );
        world
            .user(|state, cx| node_leaves(state, cx, &node_id("n2")))
            .unwrap();
        assert!(!is_known(&world, "n2"));
        world.settle();
        assert_eq!(world.running(&id), 2);
        assert_eq!(world.state.tasks_of_node(&node_id("n1")).count(), 2);
        let cluster = world.state.cluster().unwrap();
        assert!(cluster.blacklisted.contains_key(&node_id("n2")));
        assert_eq!(cluster.departed[&node_id("n2")], "n2");
        // Nobody is remembered for longer than its certificate could be good.
        let until = cluster.blacklisted[&node_id("n2")];
        world.join("n3");
        world.advance(until.since(world.now) + HOUR);
        world
            .user(|state, cx| node_leaves(state, cx, &node_id("n3")))
            .unwrap();
        let cluster = world.state.cluster().unwrap();
        let departed: Vec<_> = cluster.departed.keys().collect();
        assert_eq!(departed, [&node_id("n3")]);
    }
}
