//! Services of a compose file as service specs of the API.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{
    IMAGE, NAMESPACE, Problem, Scope,
    data::Data,
    network::Network,
    ports,
    read::Fields,
    volumes::{self, Volume},
    yaml::{Key, Node, Yaml},
};
use crate::flags::environment;

/// The other sections, by key.
pub(super) struct Declared<'a> {
    pub(super) networks: &'a BTreeMap<String, Network>,
    pub(super) volumes: &'a BTreeMap<String, Volume>,
    pub(super) secrets: &'a BTreeMap<String, Data>,
    pub(super) configs: &'a BTreeMap<String, Data>,
}

/// Keys that are part of the compose specification and mean nothing to a service of a cluster.
const WITHOUT_EFFECT: [&str; 36] = [
    "build",
    "depends_on",
    "container_name",
    "expose",
    "links",
    "external_links",
    "network_mode",
    "restart_policy",
    "privileged",
    "devices",
    "security_opt",
    "ipc",
    "pid",
    "shm_size",
    "userns_mode",
    "cgroup",
    "cgroup_parent",
    "mac_address",
    "domainname",
    "profiles",
    "pull_policy",
    "platform",
    "runtime",
    "scale",
    "develop",
    "gpus",
    "annotations",
    "attach",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "cpus",
    "cpu_shares",
    "pids_limit",
    "uts",
    "storage_opt",
];

/// Converts a service; notes the networks that it uses in `used`.
pub(super) fn convert(
    key: &Key,
    node: &Node,
    declared: &Declared<'_>,
    used: &mut Vec<String>,
    scope: &mut Scope<'_>,
) -> Result<Value> {
    let path = format!("services.{}", key.name);
    let mut fields = Fields::of(node, &path)?;
    scope.without_effect(&mut fields, &WITHOUT_EFFECT);
    let image = fields.text("image")?;
    let mut container = json!({"Image": image});
    container_basics(&mut fields, &mut container, scope)?;
    container["Mounts"] = volumes::mounts(&mut fields, declared.volumes, scope)?.into();
    container["Secrets"] = references(fields.take("secrets"), declared.secrets, "Secret")?.into();
    container["Configs"] = references(fields.take("configs"), declared.configs, "Config")?.into();
    let mut labels = fields.maybe("labels", Node::labels)?.unwrap_or_default();
    labels.insert(NAMESPACE.to_owned(), scope.stack.into());
    container["Labels"] = labels.into();

    let networks = attachments(fields.take("networks"), &key.name, declared.networks, used)?;
    let mut task = json!({"ContainerSpec": container, "Networks": networks});
    if let Some(node) = fields.take("logging") {
        let mut inner = Fields::of(node, &node.path)?;
        let driver = inner.text("driver")?;
        let options = inner.maybe("options", Node::labels)?.unwrap_or_default();
        inner.finish()?;
        task["LogDriver"] = json!({"Name": driver, "Options": options});
    }
    let mut endpoint = json!({});
    if let Some(list) = fields.take("ports") {
        endpoint["Ports"] = ports::convert(list, scope)?.into();
    }
    let restart = fields.take("restart");
    let mut spec = json!({"Name": scope.name(&key.name), "Mode": {"Replicated": {"Replicas": 1}}});
    let mut service_labels = Map::new();
    if let Some(node) = fields.take("deploy") {
        deploy(
            node,
            &mut spec,
            &mut task,
            &mut endpoint,
            &mut service_labels,
        )?;
    }
    if let (Some(restart), true) = (restart, task["RestartPolicy"].is_null()) {
        task["RestartPolicy"] = restart_policy(restart)?;
    }
    fields.finish()?;
    if image.is_empty() {
        return Err(key.place.problem(format!("{path} needs an image")).into());
    }
    service_labels.insert(NAMESPACE.to_owned(), scope.stack.into());
    service_labels.insert(IMAGE.to_owned(), image.into());
    spec["Labels"] = service_labels.into();
    spec["TaskTemplate"] = task;
    spec["EndpointSpec"] = endpoint;
    let mut said = crate::json::compact(&spec);
    // An empty mode does say something.
    said["Mode"] = spec["Mode"].take();
    Ok(said)
}

fn container_basics(
    fields: &mut Fields<'_>,
    container: &mut Value,
    scope: &Scope<'_>,
) -> Result<()> {
    // The names are swapped: a compose command replaces the image's CMD, which the API calls Args.
    container["Command"] = fields.maybe("entrypoint", Node::command)?.into();
    container["Args"] = fields.maybe("command", Node::command)?.into();
    container["Env"] = env(fields, scope)?.into();
    for (key, name) in [
        ("hostname", "Hostname"),
        ("user", "User"),
        ("working_dir", "Dir"),
        ("stop_signal", "StopSignal"),
    ] {
        container[name] = fields.maybe(key, Node::text)?.into();
    }
    for (key, name) in [
        ("tty", "TTY"),
        ("stdin_open", "OpenStdin"),
        ("read_only", "ReadOnly"),
        ("init", "Init"),
    ] {
        container[name] = fields.maybe(key, Node::boolean)?.into();
    }
    for (key, name) in [("cap_add", "CapabilityAdd"), ("cap_drop", "CapabilityDrop")] {
        container[name] = crate::flags::capabilities(&fields.all(key, Node::texts)?).into();
    }
    container["Groups"] = fields.all("group_add", Node::texts)?.into();
    container["StopGracePeriod"] = fields.maybe("stop_grace_period", Node::duration)?.into();
    container["OomScoreAdj"] = fields.maybe("oom_score_adj", Node::integer::<i64>)?.into();
    container["Sysctls"] = fields.maybe("sysctls", Node::labels)?.into();
    container["DNSConfig"] = json!({
        "Nameservers": fields.all("dns", Node::texts)?,
        "Search": fields.all("dns_search", Node::texts)?,
        "Options": fields.all("dns_opt", Node::texts)?,
    });
    container["Hosts"] = fields.all("extra_hosts", hosts)?.into();
    container["Healthcheck"] = fields.maybe("healthcheck", healthcheck)?.into();
    container["Ulimits"] = fields.all("ulimits", ulimits)?.into();
    Ok(())
}

/// `environment` over `env_file`, sorted.
fn env(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Result<Vec<String>> {
    let mut all: BTreeMap<String, Option<String>> = BTreeMap::new();
    if let Some(files) = fields.take("env_file") {
        let list = match &files.value {
            Yaml::List(items) => items.iter().collect(),
            _ => vec![files],
        };
        for item in list {
            let (path, required) = env_file(item)?;
            let path = scope.host_path(&path);
            if scope.dry {
                continue;
            }
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(_) if !required => continue,
                Err(error) => {
                    return Err(item
                        .problem(format!("cannot be read: {path}: {error}"))
                        .into());
                }
            };
            let lines = environment::parse_file(&text)
                .map_err(|error| item.problem(format!("{path}: {error:#}")))?;
            for line in environment::variables(&lines, &[], scope.lookup)? {
                let (name, value) = crate::flags::pair(&line);
                all.insert(name, Some(value));
            }
        }
    }
    if let Some(node) = fields.take("environment") {
        for (name, value) in node.pairs()? {
            // A name alone takes the caller's value; without one it takes the image's away.
            let value = value.or_else(|| (scope.lookup)(&name));
            all.insert(name, value);
        }
    }
    let variable = |(name, value): (String, Option<String>)| match value {
        Some(value) => format!("{name}={value}"),
        None => name,
    };
    Ok(all.into_iter().map(variable).collect())
}

fn env_file(item: &Node) -> Result<(String, bool), Problem> {
    let Yaml::Map(_) = item.value else {
        return Ok((item.text()?, true));
    };
    let mut fields = Fields::of(item, &item.path)?;
    let path = fields.text("path")?;
    let required = fields.maybe("required", Node::boolean)?.unwrap_or(true);
    fields.take("format");
    fields.finish()?;
    Ok((path, required))
}

/// Lines `IP name` from `name:IP`, `name=IP`, or a map.
fn hosts(node: &Node) -> Result<Vec<String>, Problem> {
    let line = |name: &str, ip: &str| {
        format!(
            "{} {name}",
            ip.trim().trim_start_matches('[').trim_end_matches(']')
        )
    };
    match &node.value {
        Yaml::List(items) => items
            .iter()
            .map(|item| {
                let text = item.text()?;
                match text.split_once(['=', ':']) {
                    Some((name, ip)) => Ok(line(name.trim(), ip)),
                    None => Err(item.problem(format!("must be host:ip, not {text:?}"))),
                }
            })
            .collect(),
        _ => {
            let mut out = Vec::new();
            for (key, value) in node.entries()? {
                for ip in value.texts()? {
                    out.push(line(&key.name, &ip));
                }
            }
            Ok(out)
        }
    }
}

fn healthcheck(node: &Node) -> Result<Value, Problem> {
    let mut fields = Fields::of(node, &node.path)?;
    let test = fields.take("test");
    let disable = fields.flag("disable")?;
    let mut out = json!({});
    for (key, name) in [
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start_period", "StartPeriod"),
        ("start_interval", "StartInterval"),
    ] {
        out[name] = fields.maybe(key, Node::duration)?.into();
    }
    out["Retries"] = fields.maybe("retries", Node::integer::<u32>)?.into();
    fields.finish()?;
    match test {
        Some(test) if disable => {
            return Err(test.problem("and disable cannot be set at the same time"));
        }
        None if disable => return Ok(json!({"Test": ["NONE"]})),
        Some(test) => {
            out["Test"] = match &test.value {
                Yaml::List(_) => {
                    let words = test.texts()?;
                    if !matches!(
                        words.first().map(String::as_str),
                        Some("NONE" | "CMD" | "CMD-SHELL")
                    ) {
                        return Err(test.problem("must begin with NONE, CMD or CMD-SHELL"));
                    }
                    words.into()
                }
                _ => json!(["CMD-SHELL", test.text()?]),
            };
        }
        None => {}
    }
    Ok(out)
}

fn ulimits(node: &Node) -> Result<Vec<Value>, Problem> {
    let mut out = Vec::new();
    for (key, value) in node.entries()? {
        let (soft, hard) = match &value.value {
            Yaml::Map(_) => {
                let mut fields = Fields::of(value, &value.path)?;
                let soft = fields.maybe("soft", Node::integer::<i64>)?;
                let hard = fields.maybe("hard", Node::integer::<i64>)?;
                fields.finish()?;
                match (soft, hard) {
                    (Some(soft), Some(hard)) => (soft, hard),
                    _ => return Err(value.problem("needs soft and hard")),
                }
            }
            _ => {
                let both = value.integer()?;
                (both, both)
            }
        };
        out.push(json!({"Name": key.name, "Soft": soft, "Hard": hard}));
    }
    out.sort_by(|a, b| crate::json::text(a, "/Name").cmp(crate::json::text(b, "/Name")));
    Ok(out)
}

/// References to secrets or configs, by the name in the cluster.
fn references(
    list: Option<&Node>,
    declared: &BTreeMap<String, Data>,
    kind: &str,
) -> Result<Vec<Value>, Problem> {
    let mut out = Vec::new();
    let Some(list) = list else { return Ok(out) };
    for item in list.items()? {
        let (source, target, uid, gid, mode) = match &item.value {
            Yaml::Map(_) => {
                let mut fields = Fields::of(item, &item.path)?;
                let read = (
                    fields.text("source")?,
                    fields.maybe("target", Node::text)?,
                    fields.maybe("uid", Node::text)?,
                    fields.maybe("gid", Node::text)?,
                    fields.maybe("mode", Node::mode)?,
                );
                fields.finish()?;
                read
            }
            _ => (item.text()?, None, None, None, None),
        };
        let data = declared.get(&source).ok_or_else(|| {
            item.problem(format!(
                "uses the {} {source:?}, which the file does not declare",
                kind.to_lowercase()
            ))
        })?;
        // A config stands at the root unless told otherwise, a secret below /run/secrets: the node's business.
        let file = json!({
            "Name": target.unwrap_or_else(|| source.clone()),
            "UID": uid.unwrap_or_else(|| "0".to_owned()),
            "GID": gid.unwrap_or_else(|| "0".to_owned()),
            "Mode": mode.unwrap_or(0o444),
        });
        out.push(json!({format!("{kind}Name"): data.name, "File": file}));
    }
    out.sort_by_key(Value::to_string);
    Ok(out)
}

fn attachments(
    node: Option<&Node>,
    service: &str,
    declared: &BTreeMap<String, Network>,
    used: &mut Vec<String>,
) -> Result<Vec<Value>, Problem> {
    let mut wanted: Vec<(String, Option<&Node>, Option<&Node>)> = Vec::new();
    match node.map(|node| (&node.value, node)) {
        None => wanted.push(("default".to_owned(), None, None)),
        Some((Yaml::List(items), _)) => {
            for item in items {
                wanted.push((item.text()?, Some(item), None));
            }
        }
        Some((_, node)) => {
            for (key, value) in node.entries()? {
                let settings = (!matches!(value.value, Yaml::Null)).then_some(value);
                wanted.push((key.name.clone(), Some(value), settings));
            }
        }
    }
    let mut out = Vec::new();
    for (key, place, settings) in wanted {
        let network = declared.get(&key).ok_or_else(|| {
            let what = format!("uses the network {key:?}, which the file does not declare");
            place
                .expect("the default network is always declared")
                .problem(what)
        })?;
        used.push(key);
        let mut aliases = Vec::new();
        let mut attachment = json!({"Target": network.name});
        if let Some(settings) = settings {
            let mut fields = Fields::of(settings, &settings.path)?;
            aliases = fields.all("aliases", Node::texts)?;
            if let Some(options) = fields.maybe("driver_opts", Node::labels)? {
                attachment["DriverOpts"] = options.into();
            }
            if let Some(fixed) = fields
                .take("ipv4_address")
                .or_else(|| fields.take("ipv6_address"))
            {
                return Err(
                    fixed.problem("cannot be given to a service: its tasks need one address each")
                );
            }
            fields.take("priority");
            fields.take("gw_priority");
            fields.finish()?;
        }
        // The node's own networks know no aliases.
        if !["host", "none", "bridge", "default"].contains(&network.name.as_str()) {
            aliases.push(service.to_owned());
            attachment["Aliases"] = aliases.into();
        }
        out.push(attachment);
    }
    out.sort_by(|a, b| crate::json::text(a, "/Target").cmp(crate::json::text(b, "/Target")));
    Ok(out)
}

/// The old `restart`.
fn restart_policy(node: &Node) -> Result<Value, Problem> {
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

fn deploy(
    node: &Node,
    spec: &mut Value,
    task: &mut Value,
    endpoint: &mut Value,
    labels: &mut Map<String, Value>,
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
        let limits = inner.maybe("limits", |node| resources(node, false))?;
        let reservations = inner.maybe("reservations", |node| resources(node, true))?;
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

fn resources(node: &Node, reservation: bool) -> Result<Value, Problem> {
    let mut fields = Fields::of(node, &node.path)?;
    let mut out = json!({});
    out["NanoCPUs"] = fields.maybe("cpus", Node::cpus)?.into();
    out["MemoryBytes"] = fields.maybe("memory", Node::bytes)?.into();
    if reservation {
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
