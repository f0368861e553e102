//! Who uses what: objects that name other objects, and the messages when that stands in the way.

use std::fmt;

use shoal_api::{
    ConfigId, NetworkId, SecretId, ServiceId, TaskId,
    object::{Object, Service},
    spec::{NetworkTarget, TaskSpec},
};

use super::{Rejected, State};

/// An object that uses another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A service, by name and id.
    Service(String, ServiceId),
    /// A task that is not over.
    Task(TaskId),
}

impl fmt::Display for User {
    /// `service web` or `task <id>`, as in Swarm's messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, _) => write!(f, "service {name}"),
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}

fn service_user(service: &Service) -> User {
    User::Service(service.spec.annotations.name.clone(), service.id.clone())
}

impl State {
    /// The first service, or task that is not over, that is attached to a network.
    pub fn network_user(&self, network: &NetworkId) -> Option<User> {
        let attached = |service: &Service| {
            let targets = service.spec.task.networks.iter().map(|a| &a.target);
            let mut targets = targets.filter_map(|target| match target {
                NetworkTarget::Cluster(id) => Some(id),
                NetworkTarget::Node(_) => None,
            });
            let endpoint = service.endpoint.iter().flat_map(|e| &e.virtual_ips);
            targets.any(|id| id == network)
                || endpoint.into_iter().any(|vip| vip.network == *network)
        };
        let service = self.services().find(|service| attached(service));
        service.map(|service| service_user(service)).or_else(|| {
            let mut live = self.tasks().filter(|task| !task.status.state.is_terminal());
            let task = live.find(|task| task.networks.iter().any(|a| a.network == *network))?;
            Some(User::Task(task.id.clone()))
        })
    }

    /// The names of the services that use a secret.
    pub fn secret_users(&self, secret: &SecretId) -> Vec<String> {
        let uses = |s: &&std::sync::Arc<Service>| {
            s.spec
                .task
                .container
                .secrets
                .iter()
                .any(|r| r.id == *secret)
        };
        self.services()
            .filter(uses)
            .map(|s| s.spec.annotations.name.clone())
            .collect()
    }

    /// The names of the services that use a config.
    pub fn config_users(&self, config: &ConfigId) -> Vec<String> {
        let uses = |s: &&std::sync::Arc<Service>| {
            s.spec
                .task
                .container
                .configs
                .iter()
                .any(|r| r.id == *config)
        };
        self.services()
            .filter(uses)
            .map(|s| s.spec.annotations.name.clone())
            .collect()
    }
}

impl State {
    /// What of that which a task names there is not, in words.
    pub fn missing_reference(&self, task: &TaskSpec) -> Option<String> {
        let mut networks = task.networks.iter().filter_map(|a| match &a.target {
            NetworkTarget::Cluster(id) => Some(id),
            NetworkTarget::Node(_) => None,
        });
        if let Some(id) = networks.find(|id| self.network(id).is_none()) {
            return Some(format!("network {id} not found"));
        }
        let mut secrets = task.container.secrets.iter();
        if let Some(secret) = secrets.find(|secret| self.secret(&secret.id).is_none()) {
            return Some(format!("secret not found: {}", secret.name));
        }
        let mut configs = task.container.configs.iter();
        let config = configs.find(|config| self.config(&config.id).is_none())?;
        Some(format!("config not found: {}", config.name))
    }
}

/// Message for a secret or config that is in use, as in SwarmKit's `manager/controlapi/secret.go`.
pub fn in_use(kind: &str, name: &str, services: &[String]) -> String {
    let noun = if services.len() == 1 {
        "service"
    } else {
        "services"
    };
    format!(
        "{kind} '{name}' is in use by the following {noun}: {}",
        services.join(", ")
    )
}

/// Checks that everything a new object names exists.
pub(super) fn check_targets(state: &State, object: &Object) -> Result<(), Rejected> {
    match object {
        Object::Service(service) => match state.missing_reference(&service.spec.task) {
            Some(missing) => Err(Rejected::Reference(missing)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Checks that nothing uses an object that is to be deleted.
pub(super) fn check_unused(state: &State, object: &Object) -> Result<(), Rejected> {
    let (kind, name, users) = match object {
        Object::Network(network) => {
            return match state.network_user(&network.id) {
                None => Ok(()),
                Some(user) => Err(Rejected::Reference(format!(
                    "network {} is in use by {user}",
                    network.id
                ))),
            };
        }
        Object::Secret(o) => (
            "secret",
            &o.spec.annotations.name,
            state.secret_users(&o.id),
        ),
        Object::Config(o) => (
            "config",
            &o.spec.annotations.name,
            state.config_users(&o.id),
        ),
        _ => return Ok(()),
    };
    if users.is_empty() {
        Ok(())
    } else {
        Err(Rejected::Reference(in_use(kind, name, &users)))
    }
}
