//! `deploy` of a service: how many tasks, where, and how they are replaced. Beside it the keys that say the same outside of
//! `deploy`.

use serde_json::{Map, Value, json};

use super::{Problem, Scope, read::Fields, yaml::Node};

/// The old `restart`.
pub(super) fn restart_policy(node: &Node) -> Result<Value, Problem> {
    let text = node.text()?;
    let (name, count) = text.split_once(':').unwrap_or((&text, ""));
    Ok(match (name, count) {
        ("no", "") => json!({"Condition": "none"}),
        ("always" | "unless-stopped", "") => json!({"Condition": "any"}),
        ("on-failure", "") => json!({"Condition": "on-failure"}),
        ("on-failure", count) => {
            let attempts: u64 = count
                .parse()
                .map_err(|_| node.problem(format!("has no number of attempts: {text:?}")))?;
            json!({"Condition": "on-failure", "MaxAttempts": attempts})
        }
        _ => return Err(node.problem(format!("is an unknown restart policy: {text:?}"))),
    })
}

/// Reads `deploy` into the parts of a service's spec, and devices that it asks for by name into `cdi`.
pub(super) fn deploy(
    node: &Node,
    spec: &mut Value,
    task: &mut Value,
    endpoint: &mut Value,
    labels: &mut Map<String, Value>,
    cdi: &mut Vec<String>,
    scope: &mut Scope<'_>,
) -> Result<(), Problem> {
    let mut fields = Fields::of(node, &node.path)?;
    if let Some(given) = fields.maybe("labels", Node::labels)? {
        *labels = given;
    }
    let modes = ["replicated", "global", "replicated-job", "global-job"];
    let mode = fields.maybe("mode", |node| node.one_of(&modes))?;
    let replicas_node = fields.take("replicas");
    let replicas = replicas_node.map(Node::integer::<u64>).transpose()?;
    spec["Mode"] = match (mode.as_deref().unwrap_or("replicated"), replicas) {
        ("replicated", replicas) => json!({"Replicated": {"Replicas": replicas.unwrap_or(1)}}),
        ("replicated-job", replicas) => {
            let count = replicas.unwrap_or(1);
            json!({"ReplicatedJob": {"MaxConcurrent": count, "TotalCompletions": count}})
        }
        (_, Some(_)) => {
            let node = replicas_node.unwrap_or(node);
            return Err(node.problem("can only be used with replicated or replicated-job mode"));
        }
        ("global", None) => json!({"Global": {}}),
        _ => json!({"GlobalJob": {}}),
    };
    if let Some(mode) = fields.maybe("endpoint_mode", |node| node.one_of(&["vip", "dnsrr"]))? {
        endpoint["Mode"] = mode.into();
    }
    if let Some(node) = fields.take("update_config") {
        spec["UpdateConfig"] = rolling(node, &["pause", "continue", "rollback"])?;
    }
    if let Some(node) = fields.take("rollback_config") {
        spec["RollbackConfig"] = rolling(node, &["pause", "continue"])?;
    }
    if let Some(node) = fields.take("restart_policy") {
        let mut inner = Fields::of(node, &node.path)?;
        let mut policy = json!({});
        policy["Condition"] = inner
            .maybe("condition", |node| {
                node.one_of(&["none", "on-failure", "any"])
            })?
            .into();
        policy["Delay"] = inner.maybe("delay", Node::duration)?.into();
        policy["MaxAttempts"] = inner.maybe("max_attempts", Node::integer::<u64>)?.into();
        policy["Window"] = inner.maybe("window", Node::duration)?.into();
        inner.finish()?;
        task["RestartPolicy"] = policy;
    }
    if let Some(node) = fields.take("placement") {
        let mut inner = Fields::of(node, &node.path)?;
        let mut placement = json!({"Constraints": inner.all("constraints", Node::texts)?});
        if let Some(list) = inner.take("preferences") {
            let mut preferences = Vec::new();
            for item in list.items()? {
                let mut preference = Fields::of(item, &item.path)?;
                let spread = preference.text("spread")?;
                preference.finish()?;
                preferences.push(json!({"Spread": {"SpreadDescriptor": spread}}));
            }
            placement["Preferences"] = preferences.into();
        }
        placement["MaxReplicas"] = inner
            .maybe("max_replicas_per_node", Node::integer::<u64>)?
            .into();
        inner.finish()?;
        task["Placement"] = placement;
    }
    if let Some(node) = fields.take("resources") {
        let mut inner = Fields::of(node, &node.path)?;
        let limits = inner.maybe("limits", |node| resources(node, None))?;
        let reservations = inner.maybe("reservations", |node| {
            resources(node, Some((&mut *cdi, &mut *scope)))
        })?;
        inner.finish()?;
        task["Resources"] = json!({"Limits": limits, "Reservations": reservations});
    }
    fields.finish()
}

fn rolling(node: &Node, actions: &[&str]) -> Result<Value, Problem> {
    let mut fields = Fields::of(node, &node.path)?;
    let mut out =
        json!({"Parallelism": fields.maybe("parallelism", Node::integer::<u64>)?.unwrap_or(1)});
    out["Delay"] = fields.maybe("delay", Node::duration)?.into();
    out["Monitor"] = fields.maybe("monitor", Node::duration)?.into();
    out["FailureAction"] = fields
        .maybe("failure_action", |node| node.one_of(actions))?
        .into();
    out["MaxFailureRatio"] = fields.maybe("max_failure_ratio", Node::float)?.into();
    out["Order"] = fields
        .maybe("order", |node| node.one_of(&["start-first", "stop-first"]))?
        .into();
    fields.finish()?;
    Ok(out)
}

/// Reads limits, or with a place for devices reservations.
fn resources(
    node: &Node,
    devices: Option<(&mut Vec<String>, &mut Scope<'_>)>,
) -> Result<Value, Problem> {
    let mut fields = Fields::of(node, &node.path)?;
    let mut out = json!({});
    out["NanoCPUs"] = fields.maybe("cpus", Node::cpus)?.into();
    out["MemoryBytes"] = fields.maybe("memory", Node::bytes)?.into();
    if let Some((devices, scope)) = devices {
        if let Some(list) = fields.take("devices") {
            for item in list.items()? {
                devices.extend(super::extended::reserved(item, scope)?);
            }
        }
        if let Some(list) = fields.take("generic_resources") {
            let mut all = Vec::new();
            for item in list.items()? {
                let mut inner = Fields::of(item, &item.path)?;
                let discrete = inner
                    .take("discrete_resource_spec")
                    .ok_or_else(|| item.problem("needs a discrete_resource_spec"))?;
                inner.finish()?;
                let mut inner = Fields::of(discrete, &discrete.path)?;
                let kind = inner.text("kind")?;
                let value = inner.maybe("value", Node::integer::<i64>)?.unwrap_or(0);
                inner.finish()?;
                all.push(json!({"DiscreteResourceSpec": {"Kind": kind, "Value": value}}));
            }
            out["GenericResources"] = all.into();
        }
    } else {
        out["Pids"] = fields.maybe("pids", Node::integer::<i64>)?.into();
    }
    fields.finish()?;
    Ok(out)
}

/// Reads the keys outside of `deploy` that say the same as some in it. What both say must be the same.
pub(super) fn outside(
    fields: &mut Fields<'_>,
    scale: Option<&Node>,
    spec: &mut Value,
    task: &mut Value,
) -> Result<(), Problem> {
    if let Some(scale) = scale {
        let count = scale.integer::<u64>()?;
        let replicas = spec.pointer_mut("/Mode/Replicated/Replicas");
        let replicas =
            replicas.ok_or_else(|| scale.problem("can only be used with the mode replicated"))?;
        *replicas = count.into();
    }
    for (key, group, name) in [
        ("cpus", "Limits", "NanoCPUs"),
        ("mem_limit", "Limits", "MemoryBytes"),
        ("pids_limit", "Limits", "Pids"),
        ("mem_reservation", "Reservations", "MemoryBytes"),
    ] {
        let Some(node) = fields.take(key) else {
            continue;
        };
        let amount = match key {
            "cpus" => node.cpus()?,
            // −1 is no limit, and so is nothing.
            "pids_limit" => node.integer::<i64>()?.max(0),
            _ => node.bytes()?,
        };
        let place = &mut task["Resources"][group][name];
        if !place.is_null() && *place != amount {
            return Err(node.problem("and deploy.resources say different things"));
        }
        *place = amount.into();
    }
    if let Some(node) = fields.take("platform") {
        let text = node.text()?;
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap_or_default(), parts.next());
        let constraints = &mut task["Placement"]["Constraints"];
        let mut all = constraints.as_array().cloned().unwrap_or_default();
        all.push(format!("node.platform.os=={os}").into());
        if let Some(architecture) = architecture {
            // Nodes say what their kernel says.
            let kernel = match architecture {
                "amd64" => "x86_64",
                "arm64" => "aarch64",
                other => other,
            };
            all.push(format!("node.platform.arch=={kernel}").into());
        }
        *constraints = all.into();
    }
    Ok(())
}
