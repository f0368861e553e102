//! `shoal stack rm`: everything of a stack, and the end of it.

use anyhow::Result;
use serde_json::Value;
use shoal_api::stack::VolumesRemoved;

use super::{Remove, of_stack};
use crate::{
    client::{Client, Target, is_not_found},
    command::{network, service},
    json::text,
    output,
    progress::pulse::Pulse,
};

/// Attempts before the daemon's refusal is final. It holds each one for up to 15 s while tasks are leaving the network,
/// and refuses at once when they stay.
const NETWORK_ATTEMPTS: u32 = 4;

impl Remove {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let mut errors = Vec::new();
        for stack in &self.stacks {
            if let Err(error) = remove(stack, self.detach, self.volumes, client).await {
                errors.push(format!("{error:#}"));
            }
        }
        output::fail_with(errors)
    }
}

async fn remove(stack: &str, detach: bool, with_volumes: bool, client: &Client) -> Result<()> {
    let filter = [of_stack(stack)];
    let services = service::fetch(&filter, client).await?;
    let fetch = async |path: &str| -> Result<Vec<Value>> {
        let mut found = client.get(Target::new(path, &[]).filters(&filter)?).await?;
        Ok(found.as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    let secrets = fetch("/secrets").await?;
    let configs = fetch("/configs").await?;
    let networks = fetch("/networks").await?;
    let is_nothing =
        services.is_empty() && secrets.is_empty() && configs.is_empty() && networks.is_empty();
    if is_nothing && !with_volumes {
        output::note(format!("Nothing found in stack: {stack}"));
        return Ok(());
    }
    let mut errors = Vec::new();
    // Opened first, so that no end is missed.
    let mut pulses = Vec::new();
    for service in services.iter().filter(|_| !detach) {
        let changes = Target::new("/shoal/services/{}/changes", &[text(service, "/ID")]);
        pulses.push(Pulse::of(changes, client).await);
    }
    for (kind, list) in [
        ("service", &services),
        ("secret", &secrets),
        ("config", &configs),
    ] {
        for item in list {
            let name = text(item, "/Spec/Name");
            output::line(format!("Removing {kind} {name}"));
            let removed = client
                .delete(Target::new(&format!("/{kind}s/{{}}"), &[text(item, "/ID")]))
                .await;
            if let Err(error) = removed
                && !is_not_found(&error)
            {
                errors.push(format!("failed to remove {kind} {name}: {error:#}"));
            }
        }
    }
    if errors.is_empty() {
        for pulse in &mut pulses {
            pulse.ended().await;
        }
    }
    for item in &networks {
        let name = text(item, "/Name");
        output::line(format!("Removing network {name}"));
        if let Err(error) = remove_network(text(item, "/Id"), detach, client).await {
            errors.push(format!("failed to remove network {name}: {error:#}"));
        }
    }
    if with_volumes {
        match remove_volumes(stack, client).await {
            Ok(false) if is_nothing => output::note(format!("Nothing found in stack: {stack}")),
            Ok(_) => {}
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    output::fail_with(errors)
}

/// Removes the volumes on all nodes; says whether there were any.
async fn remove_volumes(stack: &str, client: &Client) -> Result<bool> {
    let removed = client
        .delete(Target::new("/shoal/stacks/{}/volumes", &[stack]))
        .await?;
    let nodes: Vec<VolumesRemoved> = serde_json::from_value(removed)?;
    let mut kept = Vec::new();
    for node in &nodes {
        for volume in &node.removed {
            output::line(format!("Removing volume {volume} on {}", node.node));
        }
        let reasons = node.kept.iter();
        kept.extend(reasons.map(|why| format!("failed to remove volumes on {}: {why}", node.node)));
    }
    output::fail_with(kept)?;
    Ok(nodes.iter().any(|node| !node.removed.is_empty()))
}

/// Removes a network as soon as the last task has left it.
async fn remove_network(id: &str, detach: bool, client: &Client) -> Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match network::remove(id, client).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error)
                if format!("{error:#}").contains("in use")
                    && !detach
                    && attempts < NETWORK_ATTEMPTS => {}
            result => return result,
        }
    }
}
