//! Service specs as clients send them.

use shoal_api::{
    NetworkId,
    object::Network,
    spec::{
        Annotations, ConfigReference, ContainerTaskSpec, DnsConfig, Driver, EndpointMode,
        EndpointSpec, FailureAction, FileTarget, GenericResource, HealthConfig, HostOptions, Mount,
        MountKind, NetworkAttachmentSpec, NetworkTarget, Placement, Platform, PortConfig, Protocol,
        PublishMode, PullAuth, ResourceRequirements, Resources, RestartCondition, RestartPolicy,
        SecretReference, ServiceMode, ServiceSpec, TaskSpec, Ulimit, UpdateConfig, UpdateOrder,
    },
};

use super::container_create::read_only_depth;
use crate::{
    backend::{ApiError, ApiResult, LocalNetwork},
    fields::Fields,
    resolve::resolve,
};

/// Networks of the node itself that a service may name.
pub(crate) const NODE_NETWORKS: [&str; 3] = ["bridge", "host", "none"];

/// The networks that a service may name.
pub(crate) struct Networks {
    /// Those of the cluster.
    pub(crate) cluster: Vec<Network>,
    /// Those of this node; clients name its own ones by the ids that they have here.
    pub(crate) node: Vec<LocalNetwork>,
}

/// Reads a service spec.
pub(crate) fn read_service(body: &[u8], networks: &Networks) -> ApiResult<ServiceSpec> {
    let mut f = Fields::body(body)?;
    let annotations = read_annotations(&mut f)?;
    let mut task_fields = f
        .object("TaskTemplate")?
        .ok_or_else(|| ApiError::invalid("TaskTemplate: missing task template"))?;
    let mut task = read_task(&mut task_fields, networks)?;
    task_fields.finish()?;
    // Where services had their networks before API 1.25.
    let outer = read_attachments(&mut f, networks)?;
    if task.networks.is_empty() {
        task.networks = outer;
    }
    let mut spec = ServiceSpec {
        annotations,
        task,
        mode: read_mode(f.object_or_empty("Mode")?)?,
        update: f.object("UpdateConfig")?.map(read_update).transpose()?,
        rollback: f.object("RollbackConfig")?.map(read_update).transpose()?,
        endpoint: read_endpoint(f.object_or_empty("EndpointSpec")?)?,
        ..ServiceSpec::default()
    };
    f.finish()?;
    // What docker's API has no field for.
    spec.apply_labels()
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(spec)
}

/// Reads name and labels.
pub(crate) fn read_annotations(f: &mut Fields) -> ApiResult<Annotations> {
    Ok(Annotations {
        name: f.get("Name")?,
        labels: f.get("Labels")?,
    })
}

fn read_mode(mut f: Fields) -> ApiResult<ServiceMode> {
    let replicated = f.object("Replicated")?;
    let global = f.object("Global")?;
    let replicated_job = f.object("ReplicatedJob")?;
    let global_job = f.object("GlobalJob")?;
    f.finish()?;
    match (replicated, global, replicated_job, global_job) {
        (None, None, None, None) => Ok(ServiceMode::default()),
        (Some(mut f), None, None, None) => {
            let replicas = f.take("Replicas")?.unwrap_or(1);
            f.finish()?;
            Ok(ServiceMode::Replicated { replicas })
        }
        (None, Some(f), None, None) => f.finish().map(|()| ServiceMode::Global),
        (None, None, Some(mut f), None) => {
            // As SwarmKit: a missing number is the other one, or 1.
            let max: Option<u64> = f.take("MaxConcurrent")?;
            let total: Option<u64> = f.take("TotalCompletions")?;
            f.finish()?;
            let max_concurrent = max.unwrap_or(1);
            Ok(ServiceMode::ReplicatedJob {
                max_concurrent,
                total_completions: total.unwrap_or(max_concurrent),
            })
        }
        (None, None, None, Some(f)) => f.finish().map(|()| ServiceMode::GlobalJob),
        _ => Err(ApiError::invalid("must specify only one service mode")),
    }
}

fn read_update(mut f: Fields) -> ApiResult<UpdateConfig> {
    let default = UpdateConfig::default();
    let config = UpdateConfig {
        parallelism: f.get("Parallelism")?,
        delay: f.nanos("Delay")?.unwrap_or_default(),
        failure_action: f.word(
            "FailureAction",
            &[
                ("pause", FailureAction::Pause),
                ("continue", FailureAction::Continue),
                ("rollback", FailureAction::Rollback),
            ],
        )?,
        monitor: f
            .nanos("Monitor")?
            .filter(|monitor| !monitor.is_zero())
            .unwrap_or(default.monitor),
        max_failure_ratio: f.get("MaxFailureRatio")?,
        order: f.word(
            "Order",
            &[
                ("stop-first", UpdateOrder::StopFirst),
                ("start-first", UpdateOrder::StartFirst),
            ],
        )?,
    };
    f.finish()?;
    Ok(config)
}

fn read_endpoint(mut f: Fields) -> ApiResult<EndpointSpec> {
    let endpoint = EndpointSpec {
        mode: f.word(
            "Mode",
            &[("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)],
        )?,
        ports: f
            .objects("Ports")?
            .into_iter()
            .map(read_port)
            .collect::<ApiResult<_>>()?,
        ..EndpointSpec::default()
    };
    f.finish()?;
    Ok(endpoint)
}

fn read_port(mut f: Fields) -> ApiResult<PortConfig> {
    let port = PortConfig {
        name: f.get("Name")?,
        protocol: f.word(
            "Protocol",
            &[
                ("tcp", Protocol::Tcp),
                ("udp", Protocol::Udp),
                ("sctp", Protocol::Sctp),
            ],
        )?,
        target: f.get("TargetPort")?,
        published: f.get("PublishedPort")?,
        mode: f.word(
            "PublishMode",
            &[
                ("ingress", PublishMode::Ingress),
                ("host", PublishMode::Host),
            ],
        )?,
        ..PortConfig::default()
    };
    f.finish()?;
    Ok(port)
}

fn read_task(f: &mut Fields, networks: &Networks) -> ApiResult<TaskSpec> {
    match f.text("Runtime")?.as_deref() {
        None | Some("container") => {}
        Some(other) => {
            return Err(f.invalid("Runtime", format!("{other:?} is not supported")));
        }
    }
    let container = f.object("ContainerSpec")?.ok_or_else(|| {
        ApiError::invalid("ContainerSpec: missing, and only containers are supported")
    })?;
    Ok(TaskSpec {
        container: read_container(container)?,
        resources: read_requirements(f.object_or_empty("Resources")?)?,
        restart: f
            .object("RestartPolicy")?
            .map(read_restart)
            .transpose()?
            .unwrap_or_default(),
        placement: read_placement(f.object_or_empty("Placement")?)?,
        networks: read_attachments(f, networks)?,
        log_driver: f.object("LogDriver")?.map(read_driver).transpose()?,
        force_update: f.get("ForceUpdate")?,
        attached_container: String::new(),
    })
}

/// Reads a driver with its options.
pub(crate) fn read_driver(mut f: Fields) -> ApiResult<Driver> {
    let driver = Driver {
        name: f.get("Name")?,
        options: f.get("Options")?,
    };
    f.finish()?;
    Ok(driver)
}

fn read_restart(mut f: Fields) -> ApiResult<RestartPolicy> {
    let default = RestartPolicy::default();
    let policy = RestartPolicy {
        condition: f.word(
            "Condition",
            &[
                ("any", RestartCondition::Any),
                ("none", RestartCondition::None),
                ("on-failure", RestartCondition::OnFailure),
            ],
        )?,
        delay: f.nanos("Delay")?.unwrap_or(default.delay),
        max_attempts: f.get("MaxAttempts")?,
        window: f.nanos("Window")?.unwrap_or_default(),
        ..default
    };
    f.finish()?;
    Ok(policy)
}

fn read_placement(mut f: Fields) -> ApiResult<Placement> {
    let mut spread = Vec::new();
    for mut preference in f.objects("Preferences")? {
        let mut by = preference.object_or_empty("Spread")?;
        spread.push(by.text("SpreadDescriptor")?.ok_or_else(|| {
            by.invalid(
                "SpreadDescriptor",
                "a placement preference needs an attribute",
            )
        })?);
        by.finish()?;
        preference.finish()?;
    }
    let placement = Placement {
        // From a label.
        stay_with_volumes: false,
        constraints: f.get("Constraints")?,
        spread,
        max_replicas: f.get("MaxReplicas")?,
        platforms: f
            .objects("Platforms")?
            .into_iter()
            .map(|mut f| {
                let platform = Platform {
                    os: f.get("OS")?,
                    architecture: f.get("Architecture")?,
                };
                f.finish()?;
                Ok(platform)
            })
            .collect::<ApiResult<_>>()?,
    };
    f.finish()?;
    Ok(placement)
}

fn read_requirements(mut f: Fields) -> ApiResult<ResourceRequirements> {
    let requirements = ResourceRequirements {
        limits: read_resources(f.object_or_empty("Limits")?)?,
        reservations: read_resources(f.object_or_empty("Reservations")?)?,
    };
    f.finish()?;
    Ok(requirements)
}

fn read_resources(mut f: Fields) -> ApiResult<Resources> {
    let mut resources = Resources {
        nano_cpus: f.amount("NanoCPUs")?.unwrap_or(0),
        memory_bytes: f.amount("MemoryBytes")?.unwrap_or(0),
        pids: f.amount("Pids")?.unwrap_or(0),
        ..Resources::default()
    };
    for mut generic in f.objects("GenericResources")? {
        if let Some(mut named) = generic.object("NamedResourceSpec")? {
            let entry = resources
                .generic
                .entry(named.get("Kind")?)
                .or_insert_with(|| GenericResource::Named(Vec::new()));
            let GenericResource::Named(names) = entry else {
                return Err(named.invalid("Kind", "mixed discrete and named resources"));
            };
            names.push(named.get("Value")?);
            named.finish()?;
        }
        if let Some(mut discrete) = generic.object("DiscreteResourceSpec")? {
            let kind: String = discrete.get("Kind")?;
            let amount = discrete.get("Value")?;
            if resources
                .generic
                .insert(kind, GenericResource::Discrete(amount))
                .is_some()
            {
                return Err(discrete.invalid("Kind", "given twice"));
            }
            discrete.finish()?;
        }
        generic.finish()?;
    }
    f.finish()?;
    Ok(resources)
}

fn read_attachments(f: &mut Fields, networks: &Networks) -> ApiResult<Vec<NetworkAttachmentSpec>> {
    f.objects("Networks")?
        .into_iter()
        .map(|mut f| {
            let target: String = f.get("Target")?;
            let attachment = NetworkAttachmentSpec {
                target: read_target(&target, networks)?,
                aliases: f.get("Aliases")?,
                addresses: Vec::new(),
                driver_options: f.get("DriverOpts")?,
            };
            f.finish()?;
            Ok(attachment)
        })
        .collect()
}

fn read_target(text: &str, networks: &Networks) -> ApiResult<NetworkTarget> {
    let found = resolve(
        "network",
        &networks.cluster,
        text,
        |network| network.id.as_str(),
        |network| &network.spec.annotations.name,
    );
    match found {
        Ok(network) => Ok(NetworkTarget::Cluster(NetworkId::clone(&network.id))),
        Err(error) => {
            let mut node = networks.node.iter();
            let local = node.find(|network| network.id == text);
            let name = local.map_or(text, |network| &network.name);
            if NODE_NETWORKS.contains(&name) {
                Ok(NetworkTarget::Node(name.to_owned()))
            } else {
                Err(error)
            }
        }
    }
}

fn read_container(mut f: Fields) -> ApiResult<ContainerTaskSpec> {
    let mut dns = f.object_or_empty("DNSConfig")?;
    let container = ContainerTaskSpec {
        image: f.get("Image")?,
        labels: f.get("Labels")?,
        command: f.get("Command")?,
        args: f.get("Args")?,
        hostname: f.get("Hostname")?,
        env: f.get("Env")?,
        dir: f.get("Dir")?,
        user: f.get("User")?,
        groups: f.get("Groups")?,
        tty: f.get("TTY")?,
        open_stdin: f.get("OpenStdin")?,
        read_only: f.get("ReadOnly")?,
        init: f.take("Init")?,
        mounts: f
            .objects("Mounts")?
            .into_iter()
            .map(read_mount)
            .collect::<ApiResult<_>>()?,
        stop_signal: f.get("StopSignal")?,
        stop_grace_period: f.nanos("StopGracePeriod")?,
        healthcheck: f.object("Healthcheck")?.map(read_health).transpose()?,
        hosts: f.get("Hosts")?,
        dns: if dns.is_zero() {
            None
        } else {
            Some(DnsConfig {
                nameservers: dns.get("Nameservers")?,
                search: dns.get("Search")?,
                options: dns.get("Options")?,
            })
        },
        secrets: f
            .objects("Secrets")?
            .into_iter()
            .map(|mut f| {
                let secret = SecretReference {
                    id: read_id(&mut f, "SecretID")?,
                    name: f.get("SecretName")?,
                    target: read_file(&mut f)?,
                };
                f.finish()?;
                Ok(secret)
            })
            .collect::<ApiResult<_>>()?,
        configs: f
            .objects("Configs")?
            .into_iter()
            .map(|mut f| {
                let config = ConfigReference {
                    id: read_id(&mut f, "ConfigID")?,
                    name: f.get("ConfigName")?,
                    target: read_file(&mut f)?,
                };
                f.finish()?;
                Ok(config)
            })
            .collect::<ApiResult<_>>()?,
        sysctls: f.get("Sysctls")?,
        cap_add: f.get("CapabilityAdd")?,
        cap_drop: f.get("CapabilityDrop")?,
        ulimits: f
            .objects("Ulimits")?
            .into_iter()
            .map(|mut f| {
                let limit = Ulimit {
                    name: f.get("Name")?,
                    soft: f.get("Soft")?,
                    hard: f.get("Hard")?,
                };
                f.finish()?;
                Ok(limit)
            })
            .collect::<ApiResult<_>>()?,
        oom_score_adj: f.take("OomScoreAdj")?.filter(|adjust| *adjust != 0),
        // Travels in a header.
        pull_auth: PullAuth::default(),
        // Comes from labels.
        host: HostOptions::default(),
    };
    dns.finish()?;
    match f.text("Isolation")?.as_deref() {
        None | Some("default") => {}
        Some(other) => return Err(f.invalid("Isolation", format!("{other:?} is not linux's"))),
    }
    f.finish()?;
    Ok(container)
}

fn read_id<T>(f: &mut Fields, name: &str) -> ApiResult<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    f.parse(name)?
        .ok_or_else(|| f.invalid(name, "an id is needed"))
}

/// Reads where a secret or config appears; only files are supported.
fn read_file(f: &mut Fields) -> ApiResult<FileTarget> {
    let Some(mut file) = f.object("File")? else {
        return Err(f.invalid("File", "a target file is needed"));
    };
    let target = FileTarget {
        name: file.get("Name")?,
        uid: file.get("UID")?,
        gid: file.get("GID")?,
        mode: file.get("Mode")?,
    };
    file.finish()?;
    Ok(target)
}

fn read_health(mut f: Fields) -> ApiResult<HealthConfig> {
    let health = HealthConfig {
        test: f.get("Test")?,
        interval: f.nanos("Interval")?.unwrap_or_default(),
        timeout: f.nanos("Timeout")?.unwrap_or_default(),
        retries: f.get("Retries")?,
        start_period: f.nanos("StartPeriod")?.unwrap_or_default(),
        start_interval: f.nanos("StartInterval")?.unwrap_or_default(),
    };
    f.finish()?;
    Ok(health)
}

/// Options of a tmpfs as words, from lists of one or two: a flag, or a key and its value.
fn tmpfs_options(lists: &[Vec<String>]) -> ApiResult<Vec<String>> {
    let words = lists.iter().map(|words| match words.as_slice() {
        [flag] => Ok(flag.clone()),
        [key, value] => Ok(format!("{key}={value}")),
        _ => Err(ApiError::invalid(format!(
            "invalid TmpfsOptions.Options: {words:?} is neither a flag nor a key with a value"
        ))),
    });
    words.collect()
}

fn read_mount(mut f: Fields) -> ApiResult<Mount> {
    let kind = f.word(
        "Type",
        &[
            ("volume", MountKind::Volume),
            ("bind", MountKind::Bind),
            ("tmpfs", MountKind::Tmpfs),
        ],
    )?;
    let mut bind = f.object_or_empty("BindOptions")?;
    let mut volume = f.object_or_empty("VolumeOptions")?;
    let mut tmpfs = f.object_or_empty("TmpfsOptions")?;
    let mount = Mount {
        kind,
        source: f.get("Source")?,
        target: f.get("Target")?,
        read_only: f.get("ReadOnly")?,
        propagation: bind.get("Propagation")?,
        create_source: bind.get("CreateMountpoint")?,
        non_recursive: bind.get("NonRecursive")?,
        read_only_depth: read_only_depth(&mut bind)?.map_err(ApiError::invalid)?,
        no_copy: volume.get("NoCopy")?,
        subpath: volume.get("Subpath")?,
        labels: volume.get("Labels")?,
        driver: volume
            .object("DriverConfig")?
            .map(read_driver)
            .transpose()?,
        tmpfs_size_bytes: tmpfs.amount("SizeBytes")?.unwrap_or(0),
        tmpfs_mode: tmpfs.get("Mode")?,
        tmpfs_options: tmpfs_options(&tmpfs.get::<Vec<Vec<String>>>("Options")?)?,
    };
    // A hint of Docker Desktop.
    f.ignore(&["Consistency"]);
    for rest in [bind, volume, tmpfs, f] {
        rest.finish()?;
    }
    Ok(mount)
}
