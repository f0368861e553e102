//! The beginning of a cluster.

use shoal_api::{
    Actor, ClusterId, Timestamp,
    object::{Batch, Change, Expect, Node, NodeState, NodeStatus, Object},
    spec::{Availability, ClusterSpec, NodeRole, NodeSpec, SecretSpec},
};
use shoal_manager::{
    core::{
        control::{Bootstrap, bootstrap, create_network, create_secret},
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
    user::{named, network},
};

/// The state in which a cluster begins: all its nodes are known, none was seen yet.
pub fn genesis(rng: &mut Rng, faults: &Faults) -> Vec<u8> {
    let now = Timestamp(1_000_000_000_000_000_000);
    let cluster: ClusterId = "cluster".parse().expect("letters");
    let mut spec = ClusterSpec::default();
    spec.task_history_limit = 2;
    if faults.narrow {
        spec.subnet_size = 27;
    }
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
        wish: None,
    };
    state.apply(1, &batch).expect("nodes with different ids");
    // Something to use from the beginning: stories are short.
    for name in ["first", "second"] {
        let mut cx = Ctx { now, ids: rng };
        let secret = SecretSpec {
            annotations: named(name),
            data: name.as_bytes().to_vec(),
            templating: None,
        };
        let secret = create_secret(&state, &mut cx, secret).expect("nobody has the name");
        state.apply(1, &secret.batch).expect("it is the first one");
        let network = create_network(&state, &mut cx, network(name));
        let network = network.expect("nobody has the name");
        state.apply(1, &network.batch).expect("it is the first one");
    }
    encode_state(&state)
}
