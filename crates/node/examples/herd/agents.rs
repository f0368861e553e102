//! Agents that run nothing: real sessions, real certificates, real ledgers, and tasks that are up at once.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use shoal_api::{
    container::LogQuery,
    network::NetworkView,
    object::{NodeDescription, Task},
    spec::{Availability, Platform, Resources},
};
use shoal_ca::client_config;
use shoal_manager::{JoinError, join_cluster};
use shoal_worker::{
    Agent, AgentConfig, Controller, ExecError, Executor, Exit, LogLines, NamePlane, NetworkPlane,
    PlaneError, Started, TaskFiles,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::Code;

/// Nodes that join at once: each waits for a write to the managers' disks.
const JOINING_MAX: usize = 8;

/// A node that says yes to everything.
struct Hollow {
    hostname: String,
}

/// Joins so many nodes, numbered from `first`, and starts their agents. Their ledgers are below `directory`.
pub(crate) async fn start(
    managers: &[String],
    token: &str,
    directory: &Path,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<Agent>> {
    let mut joining = JoinSet::new();
    let mut agents = Vec::new();
    for number in numbers {
        if joining.len() >= JOINING_MAX {
            if let Some(agent) = joining.join_next().await {
                agents.push(agent??);
            }
        }
        let (managers, token) = (managers.to_vec(), token.to_owned());
        let ledger = directory.join(format!("ledger-{number}"));
        joining.spawn(async move { hollow(managers, &token, &ledger, number).await });
    }
    while let Some(agent) = joining.join_next().await {
        agents.push(agent??);
    }
    Ok(agents)
}

async fn hollow(managers: Vec<String>, token: &str, ledger: &Path, number: usize) -> Result<Agent> {
    let hostname = format!("hollow-{number}");
    let to = managers.first().context("no manager")?;
    let identity = loop {
        match join_cluster(to, token, &hostname, Availability::Active).await {
            // The leader has just changed.
            Err(JoinError::Refused(status)) if status.code() == Code::Unavailable => {}
            joined => break joined?,
        }
    };
    // The holder of the sender is gone at once: the certificate outlives the herd.
    let tls = watch::channel(client_config(identity.root(), Some(&identity))?).1;
    let config = AgentConfig {
        managers,
        ledger: ledger.to_owned(),
        tls,
    };
    let node = Arc::new(Hollow { hostname });
    Ok(Agent::start(config, node.clone(), node.clone(), node).await?)
}

#[async_trait]
impl Executor for Hollow {
    async fn describe(&self) -> Result<NodeDescription, ExecError> {
        Ok(NodeDescription {
            hostname: self.hostname.clone(),
            platform: Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
            },
            resources: Resources {
                nano_cpus: 64_000_000_000,
                memory_bytes: 256 << 30,
                ..Resources::default()
            },
            ..NodeDescription::default()
        })
    }

    async fn controller(&self, _: &Task) -> Result<Box<dyn Controller>, ExecError> {
        Ok(Box::new(Nothing))
    }

    async fn logs(&self, _: &Task, _: &LogQuery) -> Result<Option<LogLines>, ExecError> {
        Ok(None)
    }
}

#[async_trait]
impl NetworkPlane for Hollow {
    async fn converge(&self, _: &Arc<NetworkView>) -> Result<(), Vec<PlaneError>> {
        Ok(())
    }
}

impl NamePlane for Hollow {
    fn publish(&self, _: &Arc<NetworkView>) {}
}

/// A task that is what it is told to be.
struct Nothing;

#[async_trait]
impl Controller for Nothing {
    async fn update(&self, _: &Task) -> Result<(), ExecError> {
        Ok(())
    }
    async fn prepare(&self, _: &TaskFiles) -> Result<(), ExecError> {
        Ok(())
    }
    async fn start(&self) -> Result<Started, ExecError> {
        Ok(Started::default())
    }
    async fn wait(&self) -> Result<Exit, ExecError> {
        std::future::pending().await
    }
    async fn shutdown(&self, _: Duration) -> Result<(), ExecError> {
        Ok(())
    }
    async fn remove(&self) -> Result<(), ExecError> {
        Ok(())
    }
}
