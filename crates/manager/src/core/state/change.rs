//! What a batch did to the state, or why it was refused.

use std::sync::Arc;

use shoal_api::{
    Actor, ServiceId,
    object::{Cluster, Config, Network, Node, ObjectKey, Secret, Service, Task},
};

use super::Claim;

/// Position in the replicated log.
pub type LogIndex = u64;

/// One object before and after a change; at least one of the two is there.
#[derive(Debug, Clone)]
pub struct Delta<T> {
    /// Before; `None` when it was created.
    pub old: Option<Arc<T>>,
    /// After; `None` when it was deleted.
    pub new: Option<Arc<T>>,
}

impl<T> Delta<T> {
    /// The object as it is, or as it was last.
    pub fn any(&self) -> &Arc<T> {
        self.new
            .as_ref()
            .or(self.old.as_ref())
            .expect("a change has a before or an after")
    }

    /// Whether the object is gone.
    pub fn is_deleted(&self) -> bool {
        self.new.is_none()
    }

    /// Whether the object is new.
    pub fn is_created(&self) -> bool {
        self.old.is_none()
    }

    /// Whether what `of` sees has changed; coming and going are changes.
    pub fn changed<F: PartialEq>(&self, of: impl Fn(&T) -> F) -> bool {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => of(old) != of(new),
            _ => true,
        }
    }
}

/// A change that was applied.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node.
    Node(Delta<Node>),
    /// A service.
    Service(Delta<Service>),
    /// A task.
    Task(Delta<Task>),
    /// A network.
    Network(Delta<Network>),
    /// A secret.
    Secret(Delta<Secret>),
    /// A config.
    Config(Delta<Config>),
    /// The cluster.
    Cluster(Delta<Cluster>),
}

impl Event {
    /// The object's name in the state.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Node(d) => ObjectKey::Node(d.any().id.clone()),
            Self::Service(d) => ObjectKey::Service(d.any().id.clone()),
            Self::Task(d) => ObjectKey::Task(d.any().id.clone()),
            Self::Network(d) => ObjectKey::Network(d.any().id.clone()),
            Self::Secret(d) => ObjectKey::Secret(d.any().id.clone()),
            Self::Config(d) => ObjectKey::Config(d.any().id.clone()),
            Self::Cluster(_) => ObjectKey::Cluster,
        }
    }
}

/// Why a batch was refused, by every manager alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The batch was computed from an older object.
    #[error("update out of sequence")]
    Stale {
        /// The object.
        key: ObjectKey,
        /// The version that the batch had seen; `None` is "does not exist".
        expected: Option<LogIndex>,
        /// The version that it has.
        found: Option<LogIndex>,
    },
    /// The batch grants a wish that was granted before.
    #[error("the wish was granted before")]
    Granted {
        /// The object that it is about.
        about: ObjectKey,
    },
    /// The batch grants a wish that may have been granted before, longer ago than is remembered.
    #[error("the leader changed before the write was decided")]
    Forgotten,
    /// The batch leaves out a task spec that the state had when it was computed, and has no more.
    #[error("update out of sequence")]
    SpecGone {
        /// The service that had it.
        service: ServiceId,
        /// The version of the service's spec.
        version: u64,
    },
    /// The actor does not own what it tried to change.
    #[error("{actor:?} may not change {field} of {key:?}")]
    NotOwner {
        /// Who tried.
        actor: Actor,
        /// The object.
        key: ObjectKey,
        /// The field, or what was tried.
        field: &'static str,
    },
    /// Another object holds what only one may hold.
    #[error("{claim} is taken by {holder:?}")]
    Taken {
        /// What.
        claim: Claim,
        /// By whom.
        holder: ObjectKey,
    },
    /// Another object still uses what was to be deleted, or what is to be used does not exist.
    #[error("{0}")]
    Reference(String),
    /// The change breaks a rule of the state.
    #[error("{key:?}: {rule}")]
    Illegal {
        /// The object.
        key: ObjectKey,
        /// The rule.
        rule: &'static str,
    },
}

impl Rejected {
    /// Whether the batch was computed from an older state, so that the same may succeed if computed again.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Stale { .. } | Self::SpecGone { .. })
    }
}
