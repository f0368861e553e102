//! Services of a compose file as service specs of the API.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{
    IMAGE, NAMESPACE, Problem, Scope,
    data::Data,
    depends, deploy, extended,
    network::Network,
    ports,
    read::Fields,
    volumes::{self, Volume},
    yaml::{Key, Node, Place, Yaml},
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
const WITHOUT_EFFECT: [&str; 31] = [
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "credential_spec",
    "develop",
    "expose",
    "external_links",
    "isolation",
    "links",
    "mac_address",
    "models",
    "post_start",
    "pre_stop",
    "provider",
    "pull_refresh_after",
    "runtime",
    "storage_opt",
    "use_api_socket",
    "volume_driver",
    "log_driver",
    "log_opt",
    "net",
];

/// Keys of an attachment to a network that are for one host's bridges.
const ATTACHMENT_WITHOUT_EFFECT: [&str; 5] = [
    "gw_priority",
    "interface_name",
    "link_local_ips",
    "mac_address",
    "priority",
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
    let mut labels = label_files(&mut fields, scope)?;
    labels.extend(fields.maybe("labels", Node::labels)?.unwrap_or_default());
    labels.insert(NAMESPACE.to_owned(), scope.stack.into());
    container["Labels"] = labels.into();

    let mut addresses = Vec::new();
    let networks = networks(
        &mut fields,
        &key.name,
        declared.networks,
        used,
        &mut addresses,
        scope,
    )?;
    let mut task = json!({"ContainerSpec": container, "Networks": networks});
    if let Some(node) = fields.take("logging") {
        let mut inner = Fields::of(node, &node.path)?;
        // Without a name the options are for the driver that everybody has.
        let driver = inner.maybe("driver", Node::text)?;
        let driver = driver.unwrap_or_else(|| "json-file".to_owned());
        let options = inner.maybe("options", Node::labels)?.unwrap_or_default();
        inner.finish()?;
        task["LogDriver"] = json!({"Name": driver, "Options": options});
    }
    let mut endpoint = json!({});
    let mut reach = Map::new();
    if let Some(list) = fields.take("ports") {
        endpoint["Ports"] = ports::convert(list, &mut reach, scope)?.into();
    }
    if !addresses.is_empty() {
        reach.insert("shoal.ip".to_owned(), addresses.join(",").into());
    }
    if let Some(from) = fields.take("volumes_from") {
        return Err(from
            .problem("is not possible in a stack: tasks need not be on one node")
            .into());
    }
    let restart = fields.take("restart");
    let scale = fields.take("scale");
    let mut cdi = Vec::new();
    let mut extended = extended::labels(&mut fields, &mut cdi, scope)?;
    let depends_on = depends::label(fields.take("depends_on"), scope)?;
    let mut spec = json!({"Name": scope.name(&key.name), "Mode": {"Replicated": {"Replicas": 1}}});
    let mut service_labels = Map::new();
    if let Some(node) = fields.take("deploy") {
        deploy::deploy(
            node,
            &mut spec,
            &mut task,
            &mut endpoint,
            &mut service_labels,
            &mut cdi,
            scope,
        )?;
    }
    if !cdi.is_empty() {
        // One may be asked for in several ways.
        let mut seen = BTreeSet::new();
        cdi.retain(|device| seen.insert(device.clone()));
        let devices = shoal_api::spec::labels::list(&cdi);
        extended.insert("shoal.cdi-devices".to_owned(), devices.into());
    }
    if let (Some(restart), true) = (restart, task["RestartPolicy"].is_null()) {
        task["RestartPolicy"] = deploy::restart_policy(restart)?;
    }
    deploy::outside(&mut fields, scale, &mut spec, &mut task)?;
    for (label, value) in extended.into_iter().chain(reach) {
        // What `deploy.labels` says itself goes before it.
        service_labels.entry(label).or_insert(value);
    }
    if let Some((label, value)) = depends_on {
        service_labels.entry(label).or_insert(value.into());
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
    scope: &mut Scope<'_>,
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
fn env(fields: &mut Fields<'_>, scope: &mut Scope<'_>) -> Result<Vec<String>> {
    let mut all: BTreeMap<String, Option<String>> = BTreeMap::new();
    if let Some(files) = fields.take("env_file") {
        let list = match &files.value {
            Yaml::List(items) => items.iter().collect(),
            _ => vec![files],
        };
        for item in list {
            let (path, required) = env_file(item, scope)?;
            let path = scope.host_path(&item.place, &path);
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

/// Labels of `label_file`, which `labels` may change.
fn label_files(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Result<Map<String, Value>, Problem> {
    let mut labels = Map::new();
    let Some(node) = fields.take("label_file") else {
        return Ok(labels);
    };
    for file in node.texts()? {
        let path = scope.host_path(&node.place, &file);
        if scope.dry {
            continue;
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|error| node.problem(format!("cannot be read: {path}: {error}")))?;
        let lines = environment::parse_file(&text)
            .map_err(|error| node.problem(format!("{path}: {error:#}")))?;
        labels.extend(lines.iter().map(|line| {
            let (name, value) = crate::flags::pair(line);
            (name, Value::from(value))
        }));
    }
    Ok(labels)
}

fn env_file(item: &Node, scope: &mut Scope<'_>) -> Result<(String, bool), Problem> {
    let Yaml::Map(_) = item.value else {
        return Ok((item.text()?, true));
    };
    let mut fields = Fields::of(item, &item.path)?;
    let path = fields.text("path")?;
    let required = fields.maybe("required", Node::boolean)?.unwrap_or(true);
    // Lines are taken as they are, which is the format that there is.
    scope.without_effect(&mut fields, &["format"]);
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
    let mut seen = Vec::new();
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
        let name = target.unwrap_or_else(|| source.clone());
        let base = if kind == "Secret" {
            "/run/secrets/"
        } else {
            "/"
        };
        let whole = if name.starts_with('/') {
            name.clone()
        } else {
            format!("{base}{name}")
        };
        unique(&mut seen, whole, item)?;
        // A config stands at the root unless told otherwise, a secret below /run/secrets: the node's business.
        let file = json!({
            "Name": name,
            "UID": uid.unwrap_or_else(|| "0".to_owned()),
            "GID": gid.unwrap_or_else(|| "0".to_owned()),
            "Mode": mode.unwrap_or(0o444),
        });
        out.push(json!({format!("{kind}Name"): data.name, "File": file}));
    }
    out.sort_by_key(Value::to_string);
    Ok(out)
}

/// Refuses two of one service's things in one place.
pub(super) fn unique(
    seen: &mut Vec<(String, Place)>,
    target: String,
    item: &Node,
) -> Result<(), Problem> {
    if let Some((_, first)) = seen.iter().find(|(known, _)| *known == target) {
        return Err(item.problem(format!(
            "has the target {target:?}, which {}:{} has already",
            first.file, first.line
        )));
    }
    seen.push((target, item.place.clone()));
    Ok(())
}

/// What a service is attached to: `networks`, or the network of the node that `network_mode` names.
fn networks(
    fields: &mut Fields<'_>,
    service: &str,
    declared: &BTreeMap<String, Network>,
    used: &mut Vec<String>,
    addresses: &mut Vec<String>,
    scope: &mut Scope<'_>,
) -> Result<Vec<Value>, Problem> {
    let (mode, list) = (fields.take("network_mode"), fields.take("networks"));
    let Some(mode) = mode else {
        return attachments(list, service, declared, used, addresses, scope);
    };
    match mode.text()?.as_str() {
        "host" | "none" if list.is_some() => {
            Err(mode.problem("and networks cannot be set at the same time"))
        }
        target @ ("host" | "none") => Ok(vec![json!({"Target": target})]),
        _ => {
            let problem = mode.problem("has no effect in a stack, other than host and none");
            scope.warnings.push(problem.to_string());
            attachments(list, service, declared, used, addresses, scope)
        }
    }
}

fn attachments(
    node: Option<&Node>,
    service: &str,
    declared: &BTreeMap<String, Network>,
    used: &mut Vec<String>,
    addresses: &mut Vec<String>,
    scope: &mut Scope<'_>,
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
            // Of the service, which is one; its tasks have their own.
            for key in ["ipv4_address", "ipv6_address"] {
                if let Some(address) = fields.maybe(key, Node::text)? {
                    addresses.push(format!("{}={address}", network.name));
                }
            }
            scope.without_effect(&mut fields, &ATTACHMENT_WITHOUT_EFFECT);
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
