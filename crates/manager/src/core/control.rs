//! What users may do, as functions from an intent and the state to a batch.
//!
//! Everything here is decided on a state that may be a little old; what matters is checked again by `State::apply`,
//! whose refusals become the same messages ([`Refusal`]).

mod attachment;
mod cluster;
mod data;
mod network;
mod node;
mod service;
mod write;

#[cfg(test)]
mod tests;

use shoal_api::{
    Actor,
    object::{Batch, Change, Expect, Meta, Object, ObjectKey, RootRotation},
    spec::{ClusterSpec, ConfigSpec, NetworkSpec, NodeSpec, SecretSpec, ServiceSpec},
};

use super::{reconcile::Ctx, state::LogIndex, validate::Refusal};

pub use attachment::{AttachmentWish, attachable_network, create_attachment, give_up_attachment};
pub use cluster::{
    Bootstrap, bootstrap, end_root_rotation, rotate_root, rotate_tokens, update_cluster,
};
pub use data::{
    create_config, create_secret, remove_config, remove_secret, update_config, update_secret,
};
pub use network::{create_network, remove_network};
pub(super) use node::shut_out;
pub use node::{node_leaves, remove_node, update_node};
pub use service::{
    Checked, check_services, create_service, remove_service, rollback_service, update_service,
};
pub use write::{Turn, Write};

/// A decision that is ready for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to propose.
    pub batch: Batch,
    /// The object that it is about; afterwards the user sees it as the state has it.
    pub key: ObjectKey,
}

/// What became of an intent.
pub type Outcome = Result<Decision, Refusal>;

/// The spec of any object that users make.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// Of a node; nodes are not created this way.
    Node(NodeSpec),
    /// Of a service.
    Service(Box<ServiceSpec>),
    /// Of a network.
    Network(NetworkSpec),
    /// Of a secret.
    Secret(SecretSpec),
    /// Of a config.
    Config(ConfigSpec),
    /// Of the cluster.
    Cluster(ClusterSpec),
}

/// What a user wants, as `control.proto` carries it.
#[derive(Debug, Clone, PartialEq)]
pub enum Intent {
    /// Make an object.
    Create(Spec),
    /// Give an object another spec.
    Update {
        /// The object.
        key: ObjectKey,
        /// The version that the user has read.
        version: LogIndex,
        /// The spec.
        spec: Spec,
    },
    /// Give a service an earlier spec.
    Rollback {
        /// The service.
        key: ObjectKey,
        /// The version that the user has read.
        version: LogIndex,
        /// Number of the revision; `None` is the previous spec.
        to: Option<u64>,
    },
    /// Delete an object.
    Remove {
        /// The object.
        key: ObjectKey,
        /// Nodes: even if it is not down.
        force: bool,
    },
    /// Make join tokens invalid and new ones.
    RotateTokens {
        /// The one for workers.
        worker: bool,
        /// The one for managers.
        manager: bool,
        /// The key under which managers seal their disks, if they do.
        unlock_key: bool,
    },
    /// Begin to replace the root certificate, and change the cluster's settings along with it.
    RotateRoot {
        /// The version of the cluster's object that the user has read.
        version: LogIndex,
        /// The settings.
        spec: Box<ClusterSpec>,
        /// The root to come, certified by the one in force.
        rotation: RootRotation,
    },
}

/// Decides on any intent.
///
/// # Errors
/// The refusal for the user.
pub fn decide(state: &super::state::State, cx: &mut Ctx<'_>, intent: Intent) -> Outcome {
    match intent {
        Intent::Create(spec) => match spec {
            Spec::Service(spec) => create_service(state, cx, *spec),
            Spec::Network(spec) => create_network(state, cx, spec),
            Spec::Secret(spec) => create_secret(state, cx, spec),
            Spec::Config(spec) => create_config(state, cx, spec),
            Spec::Node(_) => Err(Refusal::invalid("a node is created by joining")),
            Spec::Cluster(_) => Err(Refusal::precondition("there is a cluster already")),
        },
        Intent::Update { key, version, spec } => match (key, spec) {
            (ObjectKey::Service(id), Spec::Service(spec)) => {
                update_service(state, cx, &id, version, *spec)
            }
            (ObjectKey::Node(id), Spec::Node(spec)) => update_node(state, cx, &id, version, spec),
            (ObjectKey::Secret(id), Spec::Secret(spec)) => {
                update_secret(state, cx, &id, version, spec)
            }
            (ObjectKey::Config(id), Spec::Config(spec)) => {
                update_config(state, cx, &id, version, spec)
            }
            (ObjectKey::Cluster, Spec::Cluster(spec)) => update_cluster(state, cx, version, spec),
            (key, _) => Err(Refusal::invalid(format!(
                "{key:?} cannot be updated with this spec"
            ))),
        },
        Intent::Rollback {
            key: ObjectKey::Service(id),
            version,
            to,
        } => rollback_service(state, cx, &id, version, to),
        Intent::Rollback { key, .. } => {
            Err(Refusal::invalid(format!("{key:?} cannot be rolled back")))
        }
        Intent::Remove { key, force } => match key {
            ObjectKey::Service(id) => remove_service(state, cx, &id),
            ObjectKey::Network(id) => remove_network(state, cx, &id),
            ObjectKey::Secret(id) => remove_secret(state, cx, &id),
            ObjectKey::Config(id) => remove_config(state, cx, &id),
            ObjectKey::Node(id) => remove_node(state, cx, &id, force),
            key @ (ObjectKey::Task(_) | ObjectKey::Cluster) => {
                Err(Refusal::invalid(format!("{key:?} cannot be removed")))
            }
        },
        Intent::RotateTokens {
            worker,
            manager,
            unlock_key,
        } => rotate_tokens(state, cx, worker, manager, unlock_key),
        Intent::RotateRoot {
            version,
            spec,
            rotation,
        } => rotate_root(state, cx, version, *spec, rotation),
    }
}

/// The `meta` of an object that does not exist yet; `State::apply` sets it.
fn unborn() -> Meta {
    Meta::default()
}

fn create(cx: &Ctx<'_>, object: Object) -> Decision {
    let key = object.key();
    decision(
        cx,
        key,
        vec![Change::Put {
            object: Box::new(object),
            expect: Expect::Absent,
        }],
    )
}

fn update(cx: &Ctx<'_>, object: Object) -> Decision {
    let (key, expect) = (object.key(), Expect::Version(object.meta().version));
    decision(
        cx,
        key,
        vec![Change::Put {
            object: Box::new(object),
            expect,
        }],
    )
}

fn remove(cx: &Ctx<'_>, key: ObjectKey, version: LogIndex) -> Decision {
    decision(
        cx,
        key.clone(),
        vec![Change::Delete {
            key,
            expect: Expect::Version(version),
        }],
    )
}

fn decision(cx: &Ctx<'_>, key: ObjectKey, changes: Vec<Change>) -> Decision {
    Decision {
        batch: Batch {
            actor: Actor::User,
            at: cx.now,
            changes,
            wish: None,
        },
        key,
    }
}

fn same_version(meta: &Meta, version: LogIndex) -> Result<(), Refusal> {
    if meta.version == version {
        Ok(())
    } else {
        Err(Refusal::out_of_sequence())
    }
}
