//! A task that is nothing but a container's place in a network.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use shoal_api::object::{ContainerStatus, Task};
use shoal_worker::{
    core::assignment::TaskFiles,
    ports::{Controller, ExecError, Exit, Started},
};

use crate::network::NodeNetworks;

/// Follows a place for as long as its container has it.
pub(super) struct AttachmentController {
    pub(super) networks: Arc<NodeNetworks>,
    pub(super) task: Task,
}

impl AttachmentController {
    fn container(&self) -> ContainerStatus {
        ContainerStatus {
            container_id: self.task.spec.attached_container.clone(),
            ..ContainerStatus::default()
        }
    }
}

#[async_trait]
impl Controller for AttachmentController {
    async fn update(&self, _: &Task) -> Result<(), ExecError> {
        Ok(())
    }

    async fn prepare(&self, _: &TaskFiles) -> Result<(), ExecError> {
        match self.networks.attachments().ended(&self.task.id) {
            Some(_) => Ok(()),
            None => Err(ExecError::fatal(
                "the container is not attached to the network any more",
            )),
        }
    }

    async fn start(&self) -> Result<Started, ExecError> {
        Ok(Started {
            container: self.container(),
            ..Started::default()
        })
    }

    async fn wait(&self) -> Result<Exit, ExecError> {
        if let Some(ended) = self.networks.attachments().ended(&self.task.id) {
            ended.cancelled().await;
        }
        Ok(Exit {
            container: self.container(),
            reason: None,
        })
    }

    async fn shutdown(&self, _: Duration) -> Result<(), ExecError> {
        self.networks.detach_place(&self.task.id).await;
        Ok(())
    }

    async fn remove(&self) -> Result<(), ExecError> {
        self.networks.detach_place(&self.task.id).await;
        Ok(())
    }
}
