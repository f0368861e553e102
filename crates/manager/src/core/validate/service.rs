//! Services: each part of the spec by itself, then what it refers to, then the ports that others have.

use std::collections::BTreeSet;

use shoal_api::{
    ServiceId,
    spec::{
        EndpointMode, EndpointSpec, FailureAction, GenericResource, NetworkTarget, PortConfig,
        PublishMode, Resources, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
        labels::ALLOW_PRIVILEGED,
    },
    template::task::{Values, expand},
    wire,
};

use super::{Refusal, container::container, data, depends::dependencies, reach};
use crate::core::{
    scheduler::constraint::{NodeAttribute, node_fits, parse_all},
    state::State,
};

/// Bytes of a spec on the wire at most.
const SPEC_BYTES_MAX: usize = 256 * 1024;

/// Smallest CPU reservation or limit, in billionths (SwarmKit's `validateResources`).
const NANO_CPUS_MIN: u64 = 1_000_000;
/// Smallest memory reservation or limit.
const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Tasks of one service: a slip of the finger must not fill the memory of all managers.
const TASKS_PER_SERVICE_MAX: u64 = 100_000;

/// Checks a service's spec; `id` is the service that is updated, if it exists.
pub fn service(state: &State, id: Option<&ServiceId>, spec: &ServiceSpec) -> Result<(), Refusal> {
    super::name(&spec.annotations)?;
    task(&spec.task)?;
    templates(spec)?;
    mode(spec)?;
    for (config, what) in [(&spec.update, "update"), (&spec.rollback, "rollback")] {
        if let Some(config) = config {
            update(config, what)?;
        }
    }
    endpoint(&spec.endpoint)?;
    reach::ports(&spec.endpoint)?;
    size(spec)?;
    host_ports_can_be_replaced(state, spec)?;
    references(state, &spec.task)?;
    data::files(state, spec)?;
    reach::addresses(state, id, spec)?;
    dependencies(state, spec)?;
    privileges(state, spec)?;
    service_ports(state, id, &spec.endpoint)
}

fn task(task: &TaskSpec) -> Result<(), Refusal> {
    container(&task.container)?;
    resources(&task.resources.limits)?;
    resources(&task.resources.reservations)?;
    let (limits, reserved) = (&task.resources.limits, &task.resources.reservations);
    if limits.memory_bytes != 0 && reserved.memory_bytes > limits.memory_bytes {
        return Err(Refusal::invalid(format!(
            "invalid memory reservation {}: more than the limit {}",
            reserved.memory_bytes, limits.memory_bytes
        )));
    }
    if limits.nano_cpus != 0 && reserved.nano_cpus > limits.nano_cpus {
        return Err(Refusal::invalid(format!(
            "invalid cpu reservation {}: more than the limit {}",
            reserved.nano_cpus as f64 / 1e9,
            limits.nano_cpus as f64 / 1e9
        )));
    }
    parse_all(&task.placement).map_err(|error| Refusal::invalid(error.to_string()))?;
    for spread in &task.placement.spread {
        if !matches!(
            NodeAttribute::parse(spread),
            Some(NodeAttribute::NodeLabel(_) | NodeAttribute::EngineLabel(_))
        ) {
            return Err(Refusal::invalid(format!(
                "invalid placement preference '{spread}': expected node.labels.<key> or engine.labels.<key>"
            )));
        }
    }
    Ok(())
}

/// Fills in the templates once, with made-up values: what would fail on every node is refused here.
fn templates(spec: &ServiceSpec) -> Result<(), Refusal> {
    let values = Values::example(&spec.annotations.name, &spec.annotations.labels);
    expand(&spec.task.container, &values)
        .map(drop)
        .map_err(|error| Refusal::invalid(error.to_string()))
}

fn resources(resources: &Resources) -> Result<(), Refusal> {
    for (kind, amount) in &resources.generic {
        match amount {
            GenericResource::Discrete(1..) => {}
            // Which ones a task gets is the scheduler's affair.
            GenericResource::Named(_) => {
                return Err(Refusal::invalid(format!(
                    "invalid generic-resource request `{kind}`, Named Generic Resources is not supported for service create or update"
                )));
            }
            GenericResource::Discrete(0) => {
                return Err(Refusal::invalid(format!(
                    "invalid generic-resource request `{kind}=0`: Must be at least 1"
                )));
            }
        }
    }
    if resources.nano_cpus != 0 && resources.nano_cpus < NANO_CPUS_MIN {
        return Err(Refusal::invalid(format!(
            "invalid cpu value {}: Must be at least {}",
            resources.nano_cpus as f64 / 1e9,
            NANO_CPUS_MIN as f64 / 1e9
        )));
    }
    if resources.memory_bytes != 0 && resources.memory_bytes < MEMORY_BYTES_MIN {
        return Err(Refusal::invalid(format!(
            "invalid memory value {}: Must be at least 4MiB",
            resources.memory_bytes
        )));
    }
    Ok(())
}

fn mode(spec: &ServiceSpec) -> Result<(), Refusal> {
    let tasks = match spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::ReplicatedJob {
            total_completions, ..
        } => total_completions,
        ServiceMode::Global | ServiceMode::GlobalJob => 0,
    };
    if tasks > TASKS_PER_SERVICE_MAX {
        return Err(Refusal::invalid(format!(
            "invalid number of tasks {tasks}: at most {TASKS_PER_SERVICE_MAX}"
        )));
    }
    match spec.mode {
        ServiceMode::Replicated { .. } | ServiceMode::Global => Ok(()),
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => {
            if spec.update.is_some() || spec.rollback.is_some() {
                return Err(Refusal::invalid(
                    "job-mode services cannot have update options set",
                ));
            }
            Ok(())
        }
    }
}

fn update(config: &UpdateConfig, what: &str) -> Result<(), Refusal> {
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(Refusal::invalid(format!(
            "TaskSpec: {what}-maxfailureratio cannot be less than 0 or bigger than 1"
        )));
    }
    if what == "rollback" && config.failure_action == FailureAction::Rollback {
        return Err(Refusal::invalid(
            "TaskSpec: rollback-failure-action cannot be rollback",
        ));
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), Refusal> {
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if port.target == 0 {
            return Err(Refusal::invalid(
                "EndpointSpec: a published port needs a target port",
            ));
        }
        if port.mode == PublishMode::Ingress && endpoint.mode == EndpointMode::Dnsrr {
            return Err(Refusal::invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        // Several dynamic ports may lead to one target; the same number twice cannot be told apart.
        if port.published != 0 && !published.insert((port.protocol, port.published)) {
            return Err(Refusal::invalid(
                "EndpointSpec: duplicate published ports provided",
            ));
        }
    }
    Ok(())
}

/// A spec is kept in memory by every manager, many times over with its history.
fn size(spec: &ServiceSpec) -> Result<(), Refusal> {
    let bytes = wire::service_spec_bytes(spec);
    if bytes > SPEC_BYTES_MAX {
        return Err(Refusal::invalid(format!(
            "the service spec has {bytes} bytes: at most {SPEC_BYTES_MAX}; large files belong into configs"
        )));
    }
    Ok(())
}

/// Whether the cluster's policy allows what a service may do to its hosts.
fn privileges(state: &State, spec: &ServiceSpec) -> Result<(), Refusal> {
    let labels = state
        .cluster()
        .map(|cluster| &cluster.spec.annotations.labels);
    let policy = labels.and_then(|labels| labels.get(ALLOW_PRIVILEGED));
    if spec.task.container.host.privileged && policy.is_some_and(|policy| policy == "false") {
        return Err(Refusal::precondition(format!(
            "privileged services are not allowed in this cluster: its label {ALLOW_PRIVILEGED} is false"
        )));
    }
    Ok(())
}

/// A new task that waits for the old one's host port, which waits for the new task, would wait for ever.
fn host_ports_can_be_replaced(state: &State, spec: &ServiceSpec) -> Result<(), Refusal> {
    let fixed = |port: &PortConfig| port.mode == PublishMode::Host && port.published != 0;
    let start_first =
        |config: &Option<UpdateConfig>| config.is_some_and(|c| c.order == UpdateOrder::StartFirst);
    if !spec.endpoint.ports.iter().any(fixed)
        || !(start_first(&spec.update) || start_first(&spec.rollback))
    {
        return Ok(());
    }
    const CLASH: &str = "EndpointSpec: a port published in host mode can't be used with the update order start-first";
    match spec.mode {
        ServiceMode::Global => Err(Refusal::invalid(format!(
            "{CLASH} in a global service: both tasks would need it on the same node"
        ))),
        ServiceMode::Replicated { replicas } => {
            let fitting = state.nodes();
            let fitting = fitting.filter(|node| node_fits(&spec.task.placement, node));
            let nodes = fitting.count() as u64;
            // With no node at all the service waits for one, whatever the order.
            if nodes > 0 && replicas >= nodes {
                return Err(Refusal::invalid(format!(
                    "{CLASH} by {replicas} replicas on {nodes} nodes: no node would be left for a new task beside the \
                     old ones"
                )));
            }
            Ok(())
        }
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => Ok(()),
    }
}

fn references(state: &State, task: &TaskSpec) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for attachment in &task.networks {
        match &attachment.target {
            NetworkTarget::Node(name) if name == "host" || name == "bridge" || name == "none" => {
                if task.networks.len() > 1 && name != "bridge" {
                    return Err(Refusal::invalid(format!(
                        "a service attached to the network {name} can't be attached to other networks"
                    )));
                }
            }
            NetworkTarget::Node(name) => return Err(Refusal::not_found("network", name)),
            NetworkTarget::Cluster(id) => {
                let network = state
                    .network(id)
                    .ok_or_else(|| Refusal::not_found("network", id))?;
                if network.spec.ingress {
                    return Err(Refusal::invalid(format!(
                        "Service cannot be explicitly attached to the ingress network {:?}",
                        network.spec.annotations.name
                    )));
                }
                if !seen.insert(id) {
                    return Err(Refusal::invalid(format!(
                        "network {:?} is named twice",
                        network.spec.annotations.name
                    )));
                }
                let subnets = network.allocated.iter().flat_map(|given| &given.subnets);
                let ranges: Vec<_> = subnets.map(|subnet| subnet.range).collect();
                if let Some(address) = attachment.addresses.iter().find(|address| {
                    !ranges.is_empty() && !ranges.iter().any(|range| range.contains(*address))
                }) {
                    return Err(Refusal::invalid(format!(
                        "address {address} is not part of network {:?}",
                        network.spec.annotations.name
                    )));
                }
            }
        }
    }
    let missing = |kind: &str, names: Vec<&str>| {
        let noun = if names.len() == 1 {
            kind.to_owned()
        } else {
            format!("{kind}s")
        };
        Err(Refusal::invalid(format!(
            "{noun} not found: {}",
            names.join(", ")
        )))
    };
    let secrets = task
        .container
        .secrets
        .iter()
        .filter(|r| state.secret(&r.id).is_none());
    let secrets: Vec<_> = secrets.map(|r| r.name.as_str()).collect();
    if !secrets.is_empty() {
        return missing("secret", secrets);
    }
    let configs = task
        .container
        .configs
        .iter()
        .filter(|r| state.config(&r.id).is_none());
    let configs: Vec<_> = configs.map(|r| r.name.as_str()).collect();
    if !configs.is_empty() {
        return missing("config", configs);
    }
    Ok(())
}

/// Checks that no other service has the ports that this one asks for (SwarmKit's `checkPortConflicts`).
fn service_ports(
    state: &State,
    id: Option<&ServiceId>,
    endpoint: &EndpointSpec,
) -> Result<(), Refusal> {
    match state.port_clash(id, &endpoint.ports) {
        None => Ok(()),
        Some(clash) => Err(Refusal::invalid(clash.to_string())),
    }
}
