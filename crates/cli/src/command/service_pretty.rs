//! `service inspect --pretty`, in docker's form down to the last blank.

use serde_json::Value;
use shoal_api::Timestamp;

use crate::{
    client::{Client, Target},
    flags::quantity::show_duration,
    human::{ago, binary_size, time},
    json::{is, items, number, pairs, text, texts},
};

/// A service for people. `networks` are the names of those that it is attached to.
pub(super) fn pretty(service: &Value, networks: &[String], now: Timestamp) -> String {
    let mut out = String::from("\n");
    head(service, now, &mut out);
    let task = &service["Spec"]["TaskTemplate"];
    placement(&task["Placement"], &mut out);
    for (name, order) in [("UpdateConfig", "Update"), ("RollbackConfig", "Rollback")] {
        let config = &service["Spec"][name];
        if !config.is_null() {
            rolling(name, order, config, &mut out);
        }
    }
    let container = &task["ContainerSpec"];
    process(container, &mut out);
    files(container, &mut out);
    if !task["LogDriver"].is_null() {
        let name = text(task, "/LogDriver/Name");
        out.push_str(&format!("Log Driver:\n Name:\t\t{name}\n"));
        let options: Vec<_> = pairs(task, "/LogDriver/Options").collect();
        if !options.is_empty() {
            out.push_str(" LogOpts:\n");
        }
        for (key, value) in options {
            let value = value.as_str().unwrap_or_default();
            out.push_str(&format!("  {key}:       {value}\n"));
        }
        out.push('\n');
    }
    if !task["Resources"].is_null() {
        out.push_str("Resources:\n");
        resources("Reservations", &task["Resources"], &mut out);
        resources("Limits", &task["Resources"], &mut out);
    }
    if !networks.is_empty() {
        out.push_str(&format!("Networks: {} \n", networks.join(" ")));
    }
    let mode = text(service, "/Spec/EndpointSpec/Mode");
    out.push_str(&format!("Endpoint Mode:\t{mode}\n"));
    let ports: Vec<String> = items(service, "/Endpoint/Ports").iter().map(port).collect();
    if !ports.is_empty() {
        out.push_str(&format!("Ports:\n{} \n", ports.join("\n")));
    }
    health(&container["Healthcheck"], &mut out);
    out.push('\n');
    out
}

/// Names of the networks that a service is attached to, for [`pretty`]; one that is gone keeps its id.
pub(super) async fn networks(service: &Value, client: &Client) -> Vec<String> {
    let mut names = Vec::new();
    for place in items(service, "/Spec/TaskTemplate/Networks") {
        let target = text(place, "/Target");
        let found = client.get(Target::new("/networks/{}", &[target])).await;
        names.push(match found {
            Ok(network) => text(&network, "/Name").to_owned(),
            Err(_) => target.to_owned(),
        });
    }
    names
}

fn head(service: &Value, now: Timestamp, out: &mut String) {
    let (id, name) = (text(service, "/ID"), text(service, "/Spec/Name"));
    out.push_str(&format!("ID:\t\t{id}\nName:\t\t{name}\n"));
    let labels: Vec<_> = pairs(service, "/Spec/Labels").collect();
    if !labels.is_empty() {
        out.push_str("Labels:\n");
    }
    for (key, value) in labels {
        out.push_str(&match value.as_str() {
            None | Some("") => format!(" {key}\n"),
            Some(value) => format!(" {key}={value}\n"),
        });
    }
    let mode = &service["Spec"]["Mode"];
    let has = |name: &str| !mode[name].is_null();
    let replicas = number(mode, "/Replicated/Replicas");
    // Docker leaves the mode of jobs out.
    out.push_str(&match () {
        () if has("Replicated") => format!("Service Mode:\tReplicated\n Replicas:\t{replicas}\n"),
        () if has("Global") => "Service Mode:\tGlobal\n".to_owned(),
        () if has("GlobalJob") => "Service Mode:\tGlobalJob\n".to_owned(),
        () => format!(
            "Service Mode:\tReplicatedJob\n Max Concurrent:\t{}\n Total Completions:\t{}\n",
            number(mode, "/ReplicatedJob/MaxConcurrent"),
            number(mode, "/ReplicatedJob/TotalCompletions")
        ),
    });
    let state = text(service, "/UpdateStatus/State");
    if !state.is_empty() {
        out.push_str(&format!("UpdateStatus:\n State:\t\t{state}\n"));
        let mut at = |name: &str, field: &str| {
            let when = text(service, &format!("/UpdateStatus/{field}"));
            if !when.is_empty() {
                out.push_str(&format!(" {name}:\t{}\n", ago(now, time(when))));
            }
        };
        at("Started", "StartedAt");
        if state == "completed" {
            at("Completed", "CompletedAt");
        }
        let message = text(service, "/UpdateStatus/Message");
        out.push_str(&format!(" Message:\t{message}\n"));
    }
}

fn placement(placement: &Value, out: &mut String) {
    out.push_str("Placement:\n");
    let constraints = texts(placement, "/Constraints");
    if !constraints.is_empty() {
        let constraints = constraints.join(" ");
        out.push_str(&format!(" Constraints:\t[{constraints}]\n"));
    }
    let spread = |preference| format!("spread={}", text(preference, "/Spread/SpreadDescriptor"));
    let preferences: Vec<String> = items(placement, "/Preferences")
        .iter()
        .map(spread)
        .collect();
    if !preferences.is_empty() {
        let preferences = preferences.join(" ");
        out.push_str(&format!(" Preferences:   [{preferences}]\n"));
    }
    let most = number(placement, "/MaxReplicas");
    if most > 0 {
        out.push_str(&format!(" Max Replicas Per Node:   {most}\n"));
    }
}

fn rolling(name: &str, verb: &str, config: &Value, out: &mut String) {
    let parallelism = number(config, "/Parallelism");
    out.push_str(&format!("{name}:\n Parallelism:\t{parallelism}\n"));
    let delay = number(config, "/Delay");
    if delay > 0 {
        out.push_str(&format!(" Delay:\t\t{}\n", show_duration(delay)));
    }
    let action = text(config, "/FailureAction");
    out.push_str(&format!(" On failure:\t{action}\n"));
    let monitor = number(config, "/Monitor");
    if monitor > 0 {
        let monitor = show_duration(monitor);
        out.push_str(&format!(" Monitoring Period: {monitor}\n"));
    }
    let ratio = config["MaxFailureRatio"].as_f64().unwrap_or_default();
    out.push_str(&format!(" Max failure ratio: {ratio}\n"));
    let title = format!("{verb} order:");
    out.push_str(&format!(" {title:<18} {}\n", text(config, "/Order")));
}

fn process(container: &Value, out: &mut String) {
    let image = text(container, "/Image");
    out.push_str(&format!("ContainerSpec:\n Image:\t\t{image}\n"));
    for name in ["Args", "Env"] {
        let list = texts(container, &format!("/{name}"));
        if !list.is_empty() {
            out.push_str(&format!(" {name}:\t\t{} \n", list.join(" ")));
        }
    }
    let dir = text(container, "/Dir");
    if !dir.is_empty() {
        out.push_str(&format!(" Dir:\t\t{dir}\n"));
    }
    if let Some(init) = container["Init"].as_bool() {
        out.push_str(&format!(" Init:\t\t{init}\n"));
    }
    let user = text(container, "/User");
    if !user.is_empty() {
        out.push_str(&format!(" User: {user}\n"));
    }
    let added = texts(container, "/CapabilityAdd").join(", ");
    let dropped = texts(container, "/CapabilityDrop").join(", ");
    if !(added.is_empty() && dropped.is_empty()) {
        out.push_str("Capabilities:\n");
    }
    for (name, list) in [("Add", added), ("Drop", dropped)] {
        if !list.is_empty() {
            out.push_str(&format!(" {name}: {list}\n"));
        }
    }
    let sysctls: Vec<_> = pairs(container, "/Sysctls").collect();
    if !sysctls.is_empty() {
        out.push_str("SysCtls:\n");
    }
    for (key, value) in sysctls {
        let value = value.as_str().unwrap_or_default();
        out.push_str(&format!(" {key}: {value}\n"));
    }
    let limit = |limit| {
        let bounds = (number(limit, "/Soft"), number(limit, "/Hard"));
        format!(" {}: {}:{}\n", text(limit, "/Name"), bounds.0, bounds.1)
    };
    let mut limits: Vec<String> = items(container, "/Ulimits").iter().map(limit).collect();
    limits.sort();
    if !limits.is_empty() {
        out.push_str(&format!("Ulimits:\n{}", limits.concat()));
    }
}

fn files(container: &Value, out: &mut String) {
    let mounts = items(container, "/Mounts");
    if !mounts.is_empty() {
        out.push_str("Mounts:\n");
    }
    for mount in mounts {
        out.push_str(&format!(
            " Target:\t{}\n  Source:\t{}\n  ReadOnly:\t{}\n  Type:\t\t{}\n",
            text(mount, "/Target"),
            text(mount, "/Source"),
            is(mount, "/ReadOnly"),
            text(mount, "/Type")
        ));
    }
    for (title, name) in [("Configs", "/ConfigName"), ("Secrets", "/SecretName")] {
        let list = items(container, &format!("/{title}"));
        if !list.is_empty() {
            out.push_str(&format!("{title}:\n"));
        }
        for data in list {
            let (target, source) = (text(data, "/File/Name"), text(data, name));
            out.push_str(&format!(" Target:\t{target}\n  Source:\t{source}\n"));
        }
    }
}

fn resources(title: &str, resources: &Value, out: &mut String) {
    let amounts = &resources[title];
    let cpus = number(amounts, "/NanoCPUs");
    let bytes = number(amounts, "/MemoryBytes");
    let pids = number(amounts, "/Pids");
    if cpus <= 0 && bytes <= 0 && pids <= 0 {
        return;
    }
    out.push_str(&format!(" {title}:\n"));
    if cpus > 0 {
        out.push_str(&format!("  CPU:\t\t{}\n", cpus as f64 / 1e9));
    }
    if bytes > 0 {
        let bytes = binary_size(bytes.unsigned_abs());
        out.push_str(&format!("  Memory:\t{bytes}\n"));
    }
    if pids > 0 {
        out.push_str(&format!("  PIDs:\t\t{pids}\n"));
    }
}

fn port(port: &Value) -> String {
    format!(
        " PublishedPort = {}\n  Protocol = {}\n  TargetPort = {}\n  PublishMode = {}",
        number(port, "/PublishedPort"),
        text(port, "/Protocol"),
        number(port, "/TargetPort"),
        text(port, "/PublishMode")
    )
}

fn health(check: &Value, out: &mut String) {
    if check.is_null() {
        return;
    }
    let span = |field: &str| show_duration(number(check, field));
    out.push_str(&format!(
        " Healthcheck:\n  Interval = {}\n  Retries = {}\n  StartPeriod =\t{}\n  Timeout =\t{}\n",
        span("/Interval"),
        number(check, "/Retries"),
        span("/StartPeriod"),
        span("/Timeout")
    ));
    let tests = texts(check, "/Test");
    if !tests.is_empty() {
        let lines: Vec<String> = tests
            .iter()
            .map(|word| format!("\t Test = {word}"))
            .collect();
        out.push_str(&format!("  Tests:\n{} \n", lines.join("\n")));
    }
}
