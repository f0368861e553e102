//! Keys for which Swarm has no field: they become `shoal.…` labels of the service, which every client keeps.

use serde_json::{Map, Value};
use shoal_api::spec::labels::list;

use super::{
    Problem, Scope,
    read::Fields,
    yaml::{Node, Yaml},
};
use crate::flags::security;

/// Keys whose text is the label's value, with the words that make sense; no words is any text.
const TEXTS: [(&str, &str, &[&str]); 9] = [
    (
        "ipc",
        "shoal.ipc",
        &["none", "private", "shareable", "host"],
    ),
    ("pid", "shoal.pid", &["host"]),
    ("uts", "shoal.uts", &["host"]),
    ("userns_mode", "shoal.userns", &["host"]),
    ("cgroup", "shoal.cgroupns", &["private", "host"]),
    ("cgroup_parent", "shoal.cgroup-parent", &[]),
    ("domainname", "shoal.domainname", &[]),
    ("cpuset", "shoal.cpuset", &[]),
    ("mem_swappiness", "shoal.memory-swappiness", &[]),
];

/// Reads these keys into labels, and devices by name into `cdi`.
pub(super) fn labels(
    fields: &mut Fields<'_>,
    cdi: &mut Vec<String>,
    scope: &mut Scope<'_>,
) -> Result<Map<String, Value>, Problem> {
    let mut labels = Map::new();
    for (key, label) in [
        ("privileged", "shoal.privileged"),
        ("oom_kill_disable", "shoal.oom-kill-disable"),
    ] {
        if fields.flag(key)? {
            labels.insert(label.to_owned(), "true".into());
        }
    }
    for (key, label, words) in TEXTS {
        let Some(node) = fields.take(key) else {
            continue;
        };
        let text = node.text()?;
        if words.is_empty() || words.contains(&text.as_str()) {
            labels.insert(label.to_owned(), text.into());
        } else if text.contains(':') {
            // `service:web`: tasks of different services need not be on one node.
            let problem = node.problem("has no effect in a stack: tasks share no namespaces");
            scope.warnings.push(problem.to_string());
        } else {
            node.one_of(words)?;
        }
    }
    if let Some(node) = fields.take("shm_size") {
        let bytes = node.bytes()?;
        if bytes <= 0 {
            return Err(node.problem("must be more than 0"));
        }
        labels.insert("shoal.shm-size".to_owned(), bytes.to_string().into());
    }
    if let Some(node) = fields.take("memswap_limit") {
        let text = node.text()?;
        let value = if text == "-1" {
            text
        } else {
            node.bytes()?.to_string()
        };
        labels.insert("shoal.memory-swap".to_owned(), value.into());
    }
    if let Some(node) = fields.take("pull_policy") {
        let policy = match node.text()?.as_str() {
            "always" => Some("always"),
            "missing" | "if_not_present" => Some("missing"),
            "never" => Some("never"),
            "build" | "daily" | "weekly" => None,
            text if text.starts_with("every_") => None,
            text => {
                return Err(node.problem(format!(
                    "must be one of always, missing, if_not_present, never, not {text:?}"
                )));
            }
        };
        match policy {
            Some(policy) => {
                labels.insert("shoal.pull-policy".to_owned(), policy.into());
            }
            None => {
                let problem = node.problem("has no effect in a stack");
                scope.warnings.push(problem.to_string());
            }
        }
    }
    cdi.extend(gpus(fields.take("gpus"), scope)?);
    let mut devices = Vec::new();
    if let Some(list) = fields.take("devices") {
        for item in list.items()? {
            let device = device(item)?;
            if is_cdi(&device) {
                cdi.push(device);
            } else {
                devices.push(device);
            }
        }
    }
    let rules = fields.all("device_cgroup_rules", Node::texts)?;
    let mut options = Vec::new();
    if let Some(node) = fields.take("security_opt") {
        for option in node.texts()? {
            let place = |path: &str| scope.host_path(&node.place, path);
            options.push(if scope.dry {
                option
            } else {
                security::option(&option, place)
                    .map_err(|error| node.problem(format!("is wrong: {error:#}")))?
            });
        }
    }
    for (label, items) in [
        ("shoal.devices", devices),
        ("shoal.device-cgroup-rules", rules),
        ("shoal.security-opt", options),
    ] {
        if !items.is_empty() {
            labels.insert(label.to_owned(), list(&items).into());
        }
    }
    Ok(labels)
}

/// `source:target:permissions` of a device, or its name in the Container Device Interface.
fn device(item: &Node) -> Result<String, Problem> {
    let text = match &item.value {
        Yaml::Map(_) => {
            let mut fields = Fields::of(item, &item.path)?;
            let source = fields.text("source")?;
            let target = fields.maybe("target", Node::text)?;
            let permissions = fields.maybe("permissions", Node::text)?;
            fields.finish()?;
            if is_cdi(&source) {
                return Ok(source);
            }
            let target = target.unwrap_or_else(|| source.clone());
            format!(
                "{source}:{target}:{}",
                permissions.as_deref().unwrap_or("rwm")
            )
        }
        _ => item.text()?,
    };
    if !text.starts_with('/') && !is_cdi(&text) {
        return Err(item.problem(format!(
            "must be a path of the host or a CDI name, not {text:?}"
        )));
    }
    Ok(text)
}

/// Whether a device is named as in the Container Device Interface: `vendor.com/class=name`.
fn is_cdi(text: &str) -> bool {
    let Some((kind, name)) = text.split_once('=') else {
        return false;
    };
    !text.starts_with('/') && kind.split('/').count() == 2 && !name.is_empty()
}

/// CDI names of the devices that `gpus` asks for.
fn gpus(node: Option<&Node>, scope: &mut Scope<'_>) -> Result<Vec<String>, Problem> {
    let Some(node) = node else {
        return Ok(Vec::new());
    };
    match &node.value {
        Yaml::List(items) => {
            let mut out = Vec::new();
            for item in items {
                out.extend(reserved(item, scope)?);
            }
            Ok(out)
        }
        _ if node.text()? == "all" => Ok(vec!["nvidia.com/gpu=all".to_owned()]),
        _ => Err(node.problem("must be all, or a list of devices")),
    }
}

/// CDI names of the devices that one entry of `deploy.resources.reservations.devices` asks for.
pub(super) fn reserved(item: &Node, scope: &mut Scope<'_>) -> Result<Vec<String>, Problem> {
    let mut fields = Fields::of(item, &item.path)?;
    let driver = fields.maybe("driver", Node::text)?;
    let ids = fields.all("device_ids", Node::texts)?;
    let count = fields.maybe("count", Node::text)?;
    // The specification asks for some; a device by name has all of its own.
    if let Some(node) = fields.take("capabilities")
        && let Some(other) = node.texts()?.iter().find(|text| *text != "gpu")
    {
        let problem = node.problem(format!("has no effect in a stack for {other:?}"));
        scope.warnings.push(problem.to_string());
    }
    scope.without_effect(&mut fields, &["options"]);
    fields.finish()?;
    let driver = driver.as_deref().unwrap_or("nvidia");
    if driver == "cdi" {
        return Ok(ids);
    }
    let kind = match driver {
        "nvidia" => "nvidia.com/gpu",
        "amd" => "amd.com/gpu",
        other => {
            return Err(item.problem(format!(
                "must have the driver cdi, nvidia or amd, not {other:?}"
            )));
        }
    };
    let name = |id: &str| format!("{kind}={id}");
    match count.as_deref() {
        _ if !ids.is_empty() => Ok(ids.iter().map(|id| name(id)).collect()),
        None | Some("all" | "-1") => Ok(vec![name("all")]),
        Some(count) => {
            let count: u32 = count.parse().map_err(|_| {
                item.problem(format!(
                    "must have a count that is a number or all, not {count:?}"
                ))
            })?;
            Ok((0..count).map(|id| name(&id.to_string())).collect())
        }
    }
}
