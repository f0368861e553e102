//! Objects for tests: the least that is valid, and ids that count up.

use shoal_api::{
    IdSource, NodeId, Timestamp,
    object::{Node, NodeDescription, NodeState, NodeStatus},
    spec::{Annotations, NodeRole, NodeSpec, Platform, Resources, ServiceMode, ServiceSpec},
};

/// Ids 1, 2, 3, …
#[derive(Debug, Default)]
pub(crate) struct CountingIds(u128);

impl IdSource for CountingIds {
    fn next_bits(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

/// The time `seconds` after the beginning of a test.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp(1_000_000_000_000_000_000) + std::time::Duration::from_secs(seconds)
}

pub(crate) fn node_id(name: &str) -> NodeId {
    name.parse().expect("test ids are alphanumeric")
}

/// A node that is there, with 4 CPUs and 8 GB.
pub(crate) fn node(name: &str) -> Node {
    Node {
        id: node_id(name),
        meta: Default::default(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: name.to_owned(),
            platform: Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
            },
            resources: Resources {
                nano_cpus: 4_000_000_000,
                memory_bytes: 8_000_000_000,
                ..Resources::default()
            },
            plugins: vec![
                "Network/overlay".to_owned(),
                "Volume/local".to_owned(),
                "Log/json-file".to_owned(),
            ],
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            addr: Some("192.0.2.1".parse().expect("a literal address")),
            ..NodeStatus::default()
        },
        role: NodeRole::Worker,
        manager: None,
        availability_since: Timestamp::default(),
    }
}

/// A replicated service.
pub(crate) fn service(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = ServiceSpec {
        annotations: Annotations {
            name: name.to_owned(),
            ..Annotations::default()
        },
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    "demo:1".clone_into(&mut spec.task.container.image);
    spec
}
