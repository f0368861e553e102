//! Objects, their names, and the changes of them.

use super::{DecodeError, Field, boxed, bridge, enums, messages, oneof};
use crate::{
    Actor, TaskState,
    object::{
        Batch, Change, Cluster, Config, ContainerStatus, Expect, Granted, JobStatus, ManagerInfo,
        Meta, Network, NetworkAllocation, Node, NodeDescription, NodeState, NodeStatus, Object,
        ObjectKey, Revision, RootRotation, Secret, Service, ServiceEndpoint, Task, TaskAttachment,
        TaskStatus, UpdateState, UpdateStatus, VirtualIp, Wish, Wishes,
    },
    wire,
};

enums! {
    Actor { User, Orchestrator, Allocator, Scheduler, Agent, Dispatcher, Reaper }
    NodeState { Unknown, Down, Ready, Disconnected }
    TaskState {
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed, Rejected,
        Remove, Orphaned,
    }
    UpdateState { Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted }
}

messages! {
    Meta { version, created_at, updated_at }
    Node { id, meta, spec, description, status, role, manager, availability_since }
    NodeDescription {
        hostname, platform, resources, engine_version, engine_labels, plugins, data_path_addr, certificate_issuer,
        volumes, tunnel_keys,
    }
    NodeStatus { state, message, addr, since }
    ManagerInfo { raft_id, addr }
    Service {
        id, meta, spec, spec_version, previous_spec, previous_spec_version, endpoint, update_status, job, revision, history,
    }
    Revision { number, spec, spec_version, replaced_at }
    ServiceEndpoint { spec, ports, virtual_ips }
    VirtualIp { network, addr }
    UpdateStatus { state, started_at, completed_at, message }
    JobStatus { iteration, last_execution }
    Task {
        id, meta, service, slot, node, spec_version, spec, service_name, desired_state, status, networks, ports,
        attempts, start_after, job_iteration, drained, service_labels, assigned,
    }
    TaskStatus { state, at, message, err, container, host_ports, running_since }
    ContainerStatus { container_id, pid, exit_code }
    TaskAttachment { network, addresses, aliases }
    Network { id, meta, spec, allocated }
    NetworkAllocation { vni, subnets }
    Secret { id, meta, spec }
    Config { id, meta, spec }
    Cluster {
        id, meta, spec, root_ca_cert, root_ca_key, worker_token, manager_token, blacklisted, last_raft_id,
        unlock_key, root_rotation, departed,
    }
    RootRotation { ca_cert, ca_key, cross_signed }
    Batch { actor, at, changes, wish }
    Wish { id, about, since }
    Granted { index, id, about }
    Wishes { forgotten, granted }
}

boxed!(Node, Service, Task, Network, Cluster);
oneof!(Object in object { Node, Service, Task, Network, Secret, Config, Cluster });
oneof!(ObjectKey in object_key {
    Node, Service, Task, Network, Secret, Config; Cluster => TheCluster
});
oneof!(Expect in expect { Version; Absent => Absent });

impl Field<wire::Change> for Change {
    fn to_wire(&self) -> wire::Change {
        use wire::change::{Delete, Kind, Put};
        let kind = match self {
            Self::Put { object, expect } => Kind::Put(Put {
                object: object.as_ref().to_wire(),
                expect: expect.to_wire(),
            }),
            Self::Delete { key, expect } => Kind::Delete(Delete {
                key: key.to_wire(),
                expect: expect.to_wire(),
            }),
        };
        wire::Change { kind: Some(kind) }
    }

    fn from_wire(wire: wire::Change) -> Result<Self, DecodeError> {
        use wire::change::Kind;
        let kind = wire
            .kind
            .ok_or_else(|| DecodeError::missing().within("kind"))?;
        Ok(match kind {
            Kind::Put(put) => Self::Put {
                object: Object::from_wire(put.object)
                    .map(Box::new)
                    .map_err(|e| e.within("object"))?,
                expect: Field::from_wire(put.expect).map_err(|e| e.within("expect"))?,
            },
            Kind::Delete(delete) => Self::Delete {
                key: Field::from_wire(delete.key).map_err(|e| e.within("key"))?,
                expect: Field::from_wire(delete.expect).map_err(|e| e.within("expect"))?,
            },
        })
    }
}
bridge!(Change);
