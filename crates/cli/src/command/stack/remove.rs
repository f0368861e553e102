//! `shoal stack rm`: everything of a stack, and the end of it.

use anyhow::Result;
use serde_json::Value;

use super::{Remove, of_stack};
use crate::{
    client::{Client, Target, is_not_found},
    command::{network, service},
    json::text,
    output,
};

/// Attempts before the daemon's refusal is final. It holds each one for up to 15 s while tasks are leaving the network,
/// and refuses at once when they stay.
const NETWORK_ATTEMPTS: u32 = 4;

impl Remove {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let mut errors = Vec::new();
        for stack in &self.stacks {
            if let Err(error) = remove(stack, self.detach, client).await {
                errors.push(format!("{error:#}"));
            }
        }
        output::fail_with(errors)
    }
}

async fn remove(stack: &str, detach: bool, client: &Client) -> Result<()> {
    let filter = [of_stack(stack)];
    let services = service::fetch(&filter, client).await?;
    let fetch = async |path: &str| -> Result<Vec<Value>> {
        let mut found = client.get(Target::new(path, &[]).filters(&filter)?).await?;
        Ok(found.as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    let secrets = fetch("/secrets").await?;
    let configs = fetch("/configs").await?;
    let networks = fetch("/networks").await?;
    if services.is_empty() && secrets.is_empty() && configs.is_empty() && networks.is_empty() {
        output::note(format!("Nothing found in stack: {stack}"));
        return Ok(());
    }
    let mut errors = Vec::new();
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
    for item in &networks {
        let name = text(item, "/Name");
        output::line(format!("Removing network {name}"));
        if let Err(error) = remove_network(text(item, "/Id"), detach, client).await {
            errors.push(format!("failed to remove network {name}: {error:#}"));
        }
    }
    output::fail_with(errors)
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
