//! Secrets, configs, nodes and the cluster.

use std::time::Duration;

use shoal_api::{
    spec::{
        Annotations, ClusterSpec, ConfigSpec, Driver, NodeSpec, SecretSpec, ServiceSpec, labels,
    },
    template::task,
};

use super::{Refusal, network::pools};
use crate::core::state::State;

/// Bytes of a secret, exclusive bound (SwarmKit's `api/validation/secrets.go`).
const SECRET_BYTES_BOUND: usize = 512_000;
/// Bytes of a config, exclusive bound.
const CONFIG_BYTES_BOUND: usize = 1_024_000;

/// Checks a secret's spec.
pub fn secret(spec: &SecretSpec) -> Result<(), Refusal> {
    data_name(&spec.annotations)?;
    templating(spec.templating.as_ref())?;
    size("secret", spec.data.len(), SECRET_BYTES_BOUND)?;
    let template = spec.templating.as_ref();
    template_parses(file(true, &spec.annotations.name, "", &spec.data, template))
}

/// Checks a config's spec.
pub fn config(spec: &ConfigSpec) -> Result<(), Refusal> {
    data_name(&spec.annotations)?;
    templating(spec.templating.as_ref())?;
    size("config", spec.data.len(), CONFIG_BYTES_BOUND)?;
    let template = spec.templating.as_ref();
    template_parses(file(
        false,
        &spec.annotations.name,
        "",
        &spec.data,
        template,
    ))
}

/// Checks that what a service's secrets and configs name as templates there is, once it is known which service has them.
pub(super) fn files(state: &State, spec: &ServiceSpec) -> Result<(), Refusal> {
    let container = &spec.task.container;
    let mut files = Vec::new();
    for used in &container.secrets {
        if let Some(secret) = state.secret(&used.id) {
            let (data, template) = (&secret.spec.data, secret.spec.templating.as_ref());
            files.push(file(true, &used.name, &used.target.name, data, template));
        }
    }
    for used in &container.configs {
        if let Some(config) = state.config(&used.id) {
            let (data, template) = (&config.spec.data, config.spec.templating.as_ref());
            files.push(file(false, &used.name, &used.target.name, data, template));
        }
    }
    let Annotations { name, labels, .. } = &spec.annotations;
    task::check_files(&files, &container.env, name, labels)
        .map_err(|error| Refusal::invalid(error.to_string()))
}

fn file<'a>(
    is_secret: bool,
    name: &'a str,
    target: &'a str,
    data: &'a [u8],
    template: Option<&Driver>,
) -> task::File<'a> {
    task::File {
        is_secret,
        name,
        target,
        data: Some(data),
        is_template: template.is_some_and(|driver| driver.name == task::DRIVER),
    }
}

fn template_parses(file: task::File<'_>) -> Result<(), Refusal> {
    task::check_template(&file).map_err(|error| Refusal::invalid(error.to_string()))
}

/// Checks the template driver.
fn templating(driver: Option<&Driver>) -> Result<(), Refusal> {
    match driver.map(|driver| driver.name.as_str()) {
        None | Some("" | task::DRIVER) => Ok(()),
        // SwarmKit's words (`template/getter.go`).
        Some(other) => Err(Refusal::invalid(format!(
            "unrecognized template type '{other}': expected {}",
            task::DRIVER
        ))),
    }
}

fn size(kind: &str, bytes: usize, bound: usize) -> Result<(), Refusal> {
    if bytes == 0 || bytes >= bound {
        return Err(Refusal::invalid(format!(
            "{kind} data must be larger than 0 and less than {bound} bytes"
        )));
    }
    Ok(())
}

/// Checks the name of a secret or config.
pub fn data_name(annotations: &Annotations) -> Result<(), Refusal> {
    let name = annotations.name.as_str();
    if name.is_empty() {
        return Err(Refusal::invalid("name must be provided"));
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() > 64
        || !edge(name.chars().next())
        || !edge(name.chars().last())
        || !name.chars().all(inner)
    {
        return Err(Refusal::invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be \
             [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

/// Checks a node's spec.
pub fn node(spec: &NodeSpec) -> Result<(), Refusal> {
    labels::drain_deadline(&spec.annotations.labels)
        .map_err(|error| Refusal::invalid(error.to_string()))?;
    if spec.annotations.name.is_empty() {
        Ok(())
    } else {
        super::name(&spec.annotations)
    }
}

/// Checks the cluster's spec.
pub fn cluster(spec: &ClusterSpec) -> Result<(), Refusal> {
    if spec.annotations.name != "default" {
        return Err(Refusal::invalid(
            "modification of cluster name is not allowed",
        ));
    }
    // Below it a certificate would have to be renewed faster than an outage can be noticed.
    if spec.cert_expiry < Duration::from_secs(3_600) {
        return Err(Refusal::invalid(
            "minimum certificate expiry time is: 1h0m0s, as a shorter one leaves no time for renewals",
        ));
    }
    if spec.heartbeat_period < Duration::from_millis(100) {
        return Err(Refusal::invalid(
            "heartbeat time period cannot be less than 100ms",
        ));
    }
    if spec.snapshot_interval == 0 {
        return Err(Refusal::invalid("snapshot interval must be at least 1"));
    }
    if !(1024..=49151).contains(&spec.data_path_port) {
        return Err(Refusal::invalid(format!(
            "invalid data path port number {}: expected 1024 to 49151",
            spec.data_path_port
        )));
    }
    labels::node_ttl(&spec.annotations.labels)
        .map_err(|error| Refusal::invalid(error.to_string()))?;
    pools(&spec.default_address_pools, spec.subnet_size)
}
