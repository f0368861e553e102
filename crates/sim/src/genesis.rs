//! The beginning of a cluster.

use shoal_api::{
    Actor, ClusterId, Timestamp,
    object::{Batch, Change, Expect, Node, NodeState, NodeStatus, Object},
    spec::{Availability, ClusterSpec, NodeRole, NodeSpec},
};
use shoal_manager::{
    core::{
        control::{Bootstrap, bootstrap},
        reconcile::Ctx,
        state::State,
    },
    io::store::encode_state,
};

use crate::{
    executor::describe,
    manager::{address_of, node_of},
    rng::Rng,
    trouble::Faults,
};

/// The state in which a cluster begins: all its nodes are known, none was seen yet.
pub fn genesis(rng: &mut Rng, faults: &Faults) -> Vec<u8> {
    let now = Timestamp(1_000_000_000_000_000_000);
    let cluster: ClusterId = "cluster".parse().expect("letters");
    let mut spec = ClusterSpec::default();
    spec.task_history_limit = 2;
    let mut cx = Ctx { now, ids: rng };
    let batch = bootstrap(
        &mut cx,
        Bootstrap {
            cluster,
            spec,
            root_ca_cert: String::new(),
            root_ca_key: String::new(),
            node: node_of(0),
            availability: Availability::Active,
            description: describe(0),
            addr: "10.0.0.1".parse().expect("an address"),
            manager_addr: address_of(0),
        },
    );
    let mut state = State::default();
    let batch = batch.expect("the settings are valid");
    state.apply(1, &batch).expect("nothing is there yet");
    let nodes = (1..faults.managers + faults.workers).map(|id| {
        let role = if id < faults.managers {
            NodeRole::Manager
        } else {
            NodeRole::Worker
        };
        let node = Node {
            id: node_of(id),
            meta: Default::default(),
            spec: NodeSpec {
                role,
                ..NodeSpec::default()
            },
            description: describe(id),
            status: NodeStatus {
                state: NodeState::Unknown,
                ..NodeStatus::default()
            },
            role,
            manager: None,
            availability_since: Timestamp(0),
        };
        Change::Put {
            object: Box::new(Object::Node(node)),
            expect: Expect::Absent,
        }
    });
    let batch = Batch {
        actor: Actor::Dispatcher,
        at: now,
        changes: nodes.collect(),
    };
    state.apply(1, &batch).expect("nodes with different ids");
    encode_state(&state)
}
