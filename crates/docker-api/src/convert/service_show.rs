//! Services and tasks as docker shows them; what is written here reads back as the same spec.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use shoal_api::{
    NetworkId, TaskState, Timestamp,
    object::{Meta, Network, Service, Task},
    spec::{
        ContainerTaskSpec, Driver, EndpointMode, EndpointSpec, FailureAction, FileTarget,
        GenericResource, HealthConfig, Mount, MountKind, NetworkTarget, PortConfig, PublishMode,
        ReadOnlyDepth, Resources, RestartCondition, ServiceMode, ServiceSpec, TaskSpec,
        UpdateConfig, UpdateOrder,
    },
};

use super::{
    network,
    time::{instant, nanos},
};

/// `ID`, `Version` and times, common to all cluster objects.
pub(crate) fn object(id: &str, meta: &Meta) -> Value {
    json!({
        "ID": id,
        "Version": {"Index": meta.version},
        "CreatedAt": instant(meta.created_at),
        "UpdatedAt": instant(meta.updated_at),
    })
}

/// A service; `tasks` are its own, for `ServiceStatus`, when that is wanted.
pub(crate) fn service(service: &Service, tasks: Option<&[Task]>) -> Value {
    let mut answer = object(service.id.as_str(), &service.meta);
    answer["Spec"] = spec(&service.spec);
    if let Some(previous) = &service.previous_spec {
        answer["PreviousSpec"] = spec(previous);
    }
    answer["Endpoint"] = match &service.endpoint {
        None => json!({"Spec": {}}),
        Some(endpoint) => {
            let mut shown = json!({"Spec": endpoint_spec(&endpoint.spec)});
            if !endpoint.ports.is_empty() {
                shown["Ports"] = endpoint.ports.iter().map(port).collect();
            }
            if !endpoint.virtual_ips.is_empty() {
                shown["VirtualIPs"] = endpoint
                    .virtual_ips
                    .iter()
                    .map(|vip| json!({"NetworkID": vip.network.as_str(), "Addr": vip.addr}))
                    .collect();
            }
            shown
        }
    };
    if let Some(update) = &service.update_status {
        let mut status = json!({
            "State": update.state.as_str(),
            "StartedAt": instant(update.started_at),
            "Message": update.message,
        });
        if let Some(at) = update.completed_at {
            status["CompletedAt"] = json!(instant(at));
        }
        answer["UpdateStatus"] = status;
    }
    if let Some(job) = &service.job {
        answer["JobStatus"] = json!({
            "JobIteration": {"Index": job.iteration},
            "LastExecution": instant(job.last_execution),
        });
    }
    if let Some(tasks) = tasks {
        answer["ServiceStatus"] = service_status(service, tasks);
    }
    answer
}

/// How many tasks run, should run, and have completed (SwarmKit `controlapi` `ListServiceStatuses`).
fn service_status(service: &Service, tasks: &[Task]) -> Value {
    let iteration = service.job.map(|job| job.iteration);
    let current = |task: &&Task| task.job_iteration == iteration;
    let running = tasks
        .iter()
        .filter(|task| task.status.state == TaskState::Running)
        .count();
    let completed = tasks
        .iter()
        .filter(current)
        .filter(|task| task.status.state == TaskState::Complete)
        .count();
    let wanted = |until: TaskState| {
        let wanted = tasks
            .iter()
            .filter(current)
            .filter(|task| task.desired_state <= until)
            .filter(|task| until < TaskState::Complete || task.status.state != until)
            .count();
        u64::try_from(wanted).unwrap_or(u64::MAX)
    };
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => wanted(TaskState::Running),
        ServiceMode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => max_concurrent
            .min(total_completions.saturating_sub(u64::try_from(completed).unwrap_or(u64::MAX))),
        // Those that are still to complete; clients add the others.
        ServiceMode::GlobalJob => wanted(TaskState::Complete),
    };
    json!({"RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed})
}

/// A service spec.
pub(crate) fn spec(spec: &ServiceSpec) -> Value {
    let mut answer = json!({
        "Name": spec.annotations.name,
        "Labels": spec.annotations.labels,
        "TaskTemplate": task_spec(&spec.task),
        "Mode": mode(spec.mode),
        "EndpointSpec": endpoint_spec(&spec.endpoint),
    });
    if let Some(update) = &spec.update {
        answer["UpdateConfig"] = update_config(update);
    }
    if let Some(rollback) = &spec.rollback {
        answer["RollbackConfig"] = update_config(rollback);
    }
    answer
}

/// Fills in what a user did not say, for `?insertDefaults=true`.
pub(crate) fn with_defaults(service: &mut Value) {
    for spec in ["Spec", "PreviousSpec"] {
        let Some(Value::Object(spec)) = service.get_mut(spec) else {
            continue;
        };
        for config in ["UpdateConfig", "RollbackConfig"] {
            spec.entry(config)
                .or_insert_with(|| update_config(&UpdateConfig::default()));
        }
    }
}

fn mode(mode: ServiceMode) -> Value {
    match mode {
        ServiceMode::Replicated { replicas } => json!({"Replicated": {"Replicas": replicas}}),
        ServiceMode::Global => json!({"Global": {}}),
        ServiceMode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => json!({"ReplicatedJob": {
            "MaxConcurrent": max_concurrent,
            "TotalCompletions": total_completions,
        }}),
        ServiceMode::GlobalJob => json!({"GlobalJob": {}}),
    }
}

/// Docker's name of the mode, as in filters and lists.
pub(crate) fn mode_name(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    }
}

fn update_config(config: &UpdateConfig) -> Value {
    json!({
        "Parallelism": config.parallelism,
        "Delay": nanos(config.delay),
        "FailureAction": match config.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        },
        "Monitor": nanos(config.monitor),
        // Shortest, as Go writes a float32, and not all the digits of its double.
        "MaxFailureRatio": config.max_failure_ratio.to_string().parse::<f64>().unwrap_or_default(),
        "Order": match config.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        },
    })
}

fn endpoint_spec(endpoint: &EndpointSpec) -> Value {
    let mut answer = json!({"Mode": match endpoint.mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    }});
    if !endpoint.ports.is_empty() {
        answer["Ports"] = endpoint.ports.iter().map(port).collect();
    }
    answer
}

fn port(port: &PortConfig) -> Value {
    let mut answer = json!({
        "Protocol": port.protocol.as_str(),
        "TargetPort": port.target,
        "PublishMode": match port.mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        },
    });
    if !port.name.is_empty() {
        answer["Name"] = json!(port.name);
    }
    if port.published != 0 {
        answer["PublishedPort"] = json!(port.published);
    }
    answer
}

/// What a task runs.
pub(crate) fn task_spec(spec: &TaskSpec) -> Value {
    let placement = &spec.placement;
    let mut shown_placement = Map::new();
    if !placement.constraints.is_empty() {
        shown_placement.insert("Constraints".to_owned(), json!(placement.constraints));
    }
    if !placement.spread.is_empty() {
        let preferences: Vec<Value> = placement
            .spread
            .iter()
            .map(|by| json!({"Spread": {"SpreadDescriptor": by}}))
            .collect();
        shown_placement.insert("Preferences".to_owned(), json!(preferences));
    }
    if placement.max_replicas != 0 {
        shown_placement.insert("MaxReplicas".to_owned(), json!(placement.max_replicas));
    }
    if !placement.platforms.is_empty() {
        let platforms: Vec<Value> = placement
            .platforms
            .iter()
            .map(|p| json!({"Architecture": p.architecture, "OS": p.os}))
            .collect();
        shown_placement.insert("Platforms".to_owned(), json!(platforms));
    }
    let restart = &spec.restart;
    let mut answer = json!({
        "ContainerSpec": container(&spec.container),
        "Resources": {
            "Limits": resources(&spec.resources.limits),
            "Reservations": resources(&spec.resources.reservations),
        },
        "RestartPolicy": {
            "Condition": match restart.condition {
                RestartCondition::None => "none",
                RestartCondition::OnFailure => "on-failure",
                RestartCondition::Any => "any",
            },
            "Delay": nanos(restart.delay),
            "MaxAttempts": restart.max_attempts,
            "Window": nanos(restart.window),
        },
        "Placement": shown_placement,
        "ForceUpdate": spec.force_update,
        "Runtime": "container",
    });
    if !spec.networks.is_empty() {
        answer["Networks"] = spec
            .networks
            .iter()
            .map(|attachment| {
                let mut shown = json!({"Target": match &attachment.target {
                    NetworkTarget::Cluster(id) => id.as_str(),
                    NetworkTarget::Node(name) => name,
                }});
                if !attachment.aliases.is_empty() {
                    shown["Aliases"] = json!(attachment.aliases);
                }
                if !attachment.driver_options.is_empty() {
                    shown["DriverOpts"] = json!(attachment.driver_options);
                }
                shown
            })
            .collect();
    }
    if let Some(log) = &spec.log_driver {
        answer["LogDriver"] = driver(log);
    }
    answer
}

fn driver(driver: &Driver) -> Value {
    let mut answer = json!({"Name": driver.name});
    if !driver.options.is_empty() {
        answer["Options"] = json!(driver.options);
    }
    answer
}

/// Amounts of resources, of a spec or of a node.
pub(crate) fn resources(resources: &Resources) -> Value {
    let mut answer = Map::new();
    for (name, amount) in [
        ("NanoCPUs", resources.nano_cpus),
        ("MemoryBytes", resources.memory_bytes),
        ("Pids", resources.pids),
    ] {
        if amount != 0 {
            answer.insert(name.to_owned(), json!(amount));
        }
    }
    if !resources.generic.is_empty() {
        let mut generic = Vec::new();
        for (kind, amount) in &resources.generic {
            match amount {
                GenericResource::Discrete(value) => {
                    generic.push(json!({"DiscreteResourceSpec": {"Kind": kind, "Value": value}}))
                }
                GenericResource::Named(names) => generic.extend(
                    names
                        .iter()
                        .map(|name| json!({"NamedResourceSpec": {"Kind": kind, "Value": name}})),
                ),
            }
        }
        answer.insert("GenericResources".to_owned(), json!(generic));
    }
    Value::Object(answer)
}

fn container(spec: &ContainerTaskSpec) -> Value {
    let mut answer = Map::new();
    let mut put = |name: &str, value: Value| {
        answer.insert(name.to_owned(), value);
    };
    put("Image", json!(spec.image));
    for (name, list) in [
        ("Command", &spec.command),
        ("Args", &spec.args),
        ("Env", &spec.env),
        ("Groups", &spec.groups),
        ("Hosts", &spec.hosts),
        ("CapabilityAdd", &spec.cap_add),
        ("CapabilityDrop", &spec.cap_drop),
    ] {
        if !list.is_empty() {
            put(name, json!(list));
        }
    }
    for (name, text) in [
        ("Hostname", &spec.hostname),
        ("Dir", &spec.dir),
        ("User", &spec.user),
        ("StopSignal", &spec.stop_signal),
    ] {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    for (name, flag) in [
        ("TTY", spec.tty),
        ("OpenStdin", spec.open_stdin),
        ("ReadOnly", spec.read_only),
    ] {
        if flag {
            put(name, json!(true));
        }
    }
    for (name, map) in [("Labels", &spec.labels), ("Sysctls", &spec.sysctls)] {
        if !map.is_empty() {
            put(name, json!(map));
        }
    }
    if let Some(init) = spec.init {
        put("Init", json!(init));
    }
    if !spec.mounts.is_empty() {
        put("Mounts", spec.mounts.iter().map(mount).collect());
    }
    if let Some(period) = spec.stop_grace_period {
        put("StopGracePeriod", json!(nanos(period)));
    }
    if let Some(check) = &spec.healthcheck {
        put("Healthcheck", health(check));
    }
    put(
        "DNSConfig",
        spec.dns.as_ref().map_or_else(
            || json!({}),
            |dns| {
                json!({
                    "Nameservers": dns.nameservers,
                    "Search": dns.search,
                    "Options": dns.options,
                })
            },
        ),
    );
    if !spec.secrets.is_empty() {
        let secrets = spec.secrets.iter().map(|secret| {
            json!({
                "File": file(&secret.target),
                "SecretID": secret.id.as_str(),
                "SecretName": secret.name,
            })
        });
        put("Secrets", secrets.collect());
    }
    if !spec.configs.is_empty() {
        let configs = spec.configs.iter().map(|config| {
            json!({
                "File": file(&config.target),
                "ConfigID": config.id.as_str(),
                "ConfigName": config.name,
            })
        });
        put("Configs", configs.collect());
    }
    if !spec.ulimits.is_empty() {
        let limits = spec
            .ulimits
            .iter()
            .map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}));
        put("Ulimits", limits.collect());
    }
    if let Some(adjust) = spec.oom_score_adj {
        put("OomScoreAdj", json!(adjust));
    }
    put("Isolation", json!("default"));
    Value::Object(answer)
}

fn file(target: &FileTarget) -> Value {
    json!({"Name": target.name, "UID": target.uid, "GID": target.gid, "Mode": target.mode})
}

fn health(check: &HealthConfig) -> Value {
    let mut answer = Map::new();
    if !check.test.is_empty() {
        answer.insert("Test".to_owned(), json!(check.test));
    }
    for (name, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if !value.is_zero() {
            answer.insert(name.to_owned(), json!(nanos(value)));
        }
    }
    if check.retries != 0 {
        answer.insert("Retries".to_owned(), json!(check.retries));
    }
    Value::Object(answer)
}

fn mount(mount: &Mount) -> Value {
    let mut answer = json!({
        "Type": match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        },
        "Target": mount.target,
    });
    if !mount.source.is_empty() {
        answer["Source"] = json!(mount.source);
    }
    if mount.read_only {
        answer["ReadOnly"] = json!(true);
    }
    let mut bind = Map::new();
    if !mount.propagation.is_empty() {
        bind.insert("Propagation".to_owned(), json!(mount.propagation));
    }
    if mount.create_source {
        bind.insert("CreateMountpoint".to_owned(), json!(true));
    }
    if mount.non_recursive {
        bind.insert("NonRecursive".to_owned(), json!(true));
    }
    let depth = match mount.read_only_depth {
        ReadOnlyDepth::AsPossible => None,
        ReadOnlyDepth::Itself => Some("ReadOnlyNonRecursive"),
        ReadOnlyDepth::All => Some("ReadOnlyForceRecursive"),
    };
    bind.extend(depth.map(|depth| (depth.to_owned(), json!(true))));
    let mut volume = Map::new();
    if mount.no_copy {
        volume.insert("NoCopy".to_owned(), json!(true));
    }
    if !mount.subpath.is_empty() {
        volume.insert("Subpath".to_owned(), json!(mount.subpath));
    }
    if !mount.labels.is_empty() {
        volume.insert("Labels".to_owned(), json!(mount.labels));
    }
    if let Some(by) = &mount.driver {
        volume.insert("DriverConfig".to_owned(), driver(by));
    }
    let mut tmpfs = Map::new();
    if mount.tmpfs_size_bytes != 0 {
        tmpfs.insert("SizeBytes".to_owned(), json!(mount.tmpfs_size_bytes));
    }
    if mount.tmpfs_mode != 0 {
        tmpfs.insert("Mode".to_owned(), json!(mount.tmpfs_mode));
    }
    if !mount.tmpfs_options.is_empty() {
        let words = mount.tmpfs_options.iter();
        let words = words.map(|option| option.splitn(2, '=').collect::<Vec<_>>());
        tmpfs.insert("Options".to_owned(), json!(words.collect::<Vec<_>>()));
    }
    for (name, options) in [
        ("BindOptions", bind),
        ("VolumeOptions", volume),
        ("TmpfsOptions", tmpfs),
    ] {
        if !options.is_empty() {
            answer[name] = Value::Object(options);
        }
    }
    answer
}

/// A task; `networks` are those of the cluster, for its attachments.
pub(crate) fn task(task: &Task, networks: &BTreeMap<NetworkId, Network>) -> Value {
    let mut answer = object(task.id.as_str(), &task.meta);
    answer["Labels"] = json!({});
    answer["Spec"] = task_spec(&task.spec);
    answer["ServiceID"] = json!(task.service.as_str());
    if task.slot != 0 {
        answer["Slot"] = json!(task.slot);
    }
    if let Some(node) = &task.node {
        answer["NodeID"] = json!(node.as_str());
    }
    let status = &task.status;
    let at = if status.at == Timestamp::ZERO {
        task.meta.created_at
    } else {
        status.at
    };
    let mut shown = json!({
        "Timestamp": instant(at),
        "State": status.state.as_str(),
        "Message": status.message,
        "PortStatus": {},
    });
    if !status.err.is_empty() {
        shown["Err"] = json!(status.err);
    }
    if let Some(container) = &status.container {
        shown["ContainerStatus"] = json!({
            "ContainerID": container.container_id,
            "PID": container.pid,
            "ExitCode": container.exit_code,
        });
    }
    if !status.host_ports.is_empty() {
        let ports: Vec<Value> = status.host_ports.iter().map(port).collect();
        shown["PortStatus"] = json!({"Ports": ports});
    }
    answer["Status"] = shown;
    answer["DesiredState"] = json!(task.desired_state.as_str());
    if !task.networks.is_empty() {
        answer["NetworksAttachments"] = task
            .networks
            .iter()
            .map(|attachment| {
                let shown = networks.get(&attachment.network).map_or_else(
                    || json!({"ID": attachment.network.as_str()}),
                    network::object,
                );
                json!({"Network": shown, "Addresses": attachment.addresses})
            })
            .collect();
    }
    if let Some(assigned) = &task.assigned {
        answer["AssignedGenericResources"] = resources(assigned)["GenericResources"].take();
    }
    if let Some(iteration) = task.job_iteration {
        answer["JobIteration"] = json!({"Index": iteration});
    }
    answer
}
