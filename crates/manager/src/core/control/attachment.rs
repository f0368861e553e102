//! Containers that users start themselves, on attachable networks.
//!
//! Such a container is an endpoint like that of a service's task, so it is a task too: one that belongs to no service, is
//! bound to its node from the start, and is over when the container is.

use std::{net::IpAddr, sync::Arc};

use shoal_api::{
    Actor, NetworkId, NodeId, ServiceId, TaskId, TaskState,
    object::{Batch, Change, Expect, Object, ObjectKey, Task, TaskStatus},
    spec::{NetworkAttachmentSpec, NetworkTarget, TaskSpec},
    tunnel::ENCRYPTED_PLUGIN,
};

use super::{Decision, Outcome, unborn};
use crate::core::{
    reconcile::Ctx,
    state::{Kind, State},
    validate::{Refusal, RefusalKind},
};

/// What a node asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentWish {
    /// Id of the task that will stand for it.
    pub id: TaskId,
    /// Network by name or id.
    pub network: String,
    /// Id of the container.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// Addresses that must be given.
    pub addresses: Vec<IpAddr>,
}

/// The network that a wish names.
///
/// # Errors
/// There is none, or it is not for containers of users.
pub fn attachable_network(state: &State, name: &str) -> Result<NetworkId, Refusal> {
    let by_id = name.parse().ok().and_then(|id| state.network(&id));
    let by_name = || match state.named(Kind::Network, name) {
        Some(ObjectKey::Network(id)) => state.network(id),
        _ => None,
    };
    let network = by_id
        .or_else(by_name)
        .ok_or_else(|| Refusal::not_found("network", name))?;
    if network.spec.attachable {
        return Ok(network.id.clone());
    }
    Err(Refusal::new(
        RefusalKind::PermissionDenied,
        format!(
            "network {} not manually attachable",
            network.spec.annotations.name
        ),
    ))
}

/// Checks that a node can carry a network as it is to be carried.
fn can_carry(state: &State, network: &NetworkId, node: &NodeId) -> Result<(), Refusal> {
    let encrypted = state.network(network).filter(|n| n.spec.is_encrypted());
    let can = state.node(node).is_some_and(|node| {
        let plugins = &node.description.plugins;
        plugins.iter().any(|plugin| plugin == ENCRYPTED_PLUGIN)
    });
    match encrypted {
        Some(network) if !can => Err(Refusal::new(
            RefusalKind::FailedPrecondition,
            format!(
                "network {} is encrypted, which this node cannot carry: its kernel lacks WireGuard (CONFIG_WIREGUARD) or IPv6",
                network.spec.annotations.name
            ),
        )),
        _ => Ok(()),
    }
}

/// Makes the task that stands for a container's place; the allocator gives it its addresses.
///
/// # Errors
/// The network does not exist, is not attachable, or cannot have these addresses.
pub fn create_attachment(
    state: &State,
    cx: &mut Ctx<'_>,
    node: &NodeId,
    wish: &AttachmentWish,
) -> Outcome {
    let network = attachable_network(state, &wish.network)?;
    can_carry(state, &network, node)?;
    let service: ServiceId = wish
        .id
        .as_str()
        .parse()
        .map_err(|_| Refusal::invalid("the id of an attachment is not one of a service"))?;
    let spec = TaskSpec {
        attached_container: wish.container.clone(),
        networks: vec![NetworkAttachmentSpec {
            target: NetworkTarget::Cluster(network),
            aliases: wish.aliases.clone(),
            addresses: wish.addresses.clone(),
            driver_options: std::collections::BTreeMap::new(),
        }],
        ..TaskSpec::default()
    };
    let task = Task {
        id: wish.id.clone(),
        meta: unborn(),
        service,
        slot: 0,
        node: Some(node.clone()),
        spec_version: 0,
        spec: Arc::new(spec),
        service_name: wish.name.as_str().into(),
        service_labels: Default::default(),
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
        job_iteration: None,
        drained: false,
        assigned: None,
    };
    Ok(as_orchestrator(cx, Object::Task(task), Expect::Absent))
}

/// Gives a place back that cannot be had, or that nobody waits for any more.
pub fn give_up_attachment(cx: &Ctx<'_>, task: &Task) -> Decision {
    let mut task = task.clone();
    task.desired_state = TaskState::Remove;
    let expect = Expect::Version(task.meta.version);
    as_orchestrator(cx, Object::Task(task), expect)
}

fn as_orchestrator(cx: &Ctx<'_>, object: Object, expect: Expect) -> Decision {
    let key = object.key();
    let object = Box::new(object);
    Decision {
        batch: Batch {
            actor: Actor::Orchestrator,
            at: cx.now,
            changes: vec![Change::Put { object, expect }],
            wish: None,
        },
        key,
    }
}
