//! What the managers would refuse of a stack's services, asked before anything is made.

use anyhow::{Result, bail};
use serde_json::Value;

use super::deploy::{Ids, Known, NODE_NETWORKS, resolve};
use crate::{
    client::{Client, Target, is_not_found},
    json::{items, text},
};

/// Has the managers look at the services as they would be, and refuses what they would.
///
/// What the stack is yet to make is left out of the services: that it will be there has been checked with the files. A
/// daemon that cannot be asked says no when its turn comes.
pub(super) async fn services(
    services: &[Value],
    ids: &Ids,
    known: &Known,
    client: &Client,
) -> Result<()> {
    let mut asked = Vec::new();
    for spec in services {
        let mut spec = spec.clone();
        resolve(&mut spec, ids)?;
        leave_out(&mut spec, known);
        asked.push(spec);
    }
    let target = Target::new("/shoal/services/check", &[]);
    let refused = match client.post(target, Value::from(asked)).await {
        Err(error) if is_not_found(&error) => return Ok(()),
        answer => answer?,
    };
    let mut errors = Vec::new();
    for one in items(&refused, "") {
        errors.push(format!(
            "service {} is refused: {}",
            text(one, "/Name"),
            text(one, "/Message")
        ));
    }
    if errors.is_empty() {
        return Ok(());
    }
    bail!("{}", errors.join("\n"))
}

/// Takes out what there is not yet.
fn leave_out(spec: &mut Value, known: &Known) {
    let Some(task) = spec["TaskTemplate"].as_object_mut() else {
        return;
    };
    keep(task.get_mut("Networks"), |attachment| {
        let target = text(attachment, "/Target");
        NODE_NETWORKS.contains(&target)
            || known
                .networks
                .iter()
                .any(|network| [text(network, "/Id"), text(network, "/Name")].contains(&target))
    });
    let Some(container) = task.get_mut("ContainerSpec") else {
        return;
    };
    for (list, kind) in [("Secrets", "secret"), ("Configs", "config")] {
        let id = if kind == "secret" {
            "/SecretID"
        } else {
            "/ConfigID"
        };
        keep(container.get_mut(list), |reference| {
            let mut known = known.data(kind).iter();
            known.any(|object| text(object, "/ID") == text(reference, id))
        });
    }
}

fn keep(list: Option<&mut Value>, is_known: impl Fn(&Value) -> bool) {
    if let Some(list) = list.and_then(Value::as_array_mut) {
        list.retain(is_known);
    }
}
