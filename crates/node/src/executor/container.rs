//! A task's container in the engine's terms.

use std::collections::BTreeMap;

use shoal_api::{
    container::{
        ContainerSpec, DeviceRequest, DeviceSpec, EndpointSpec, HealthCheck, HostSpec, LogConfig,
        MountKind, MountSpec, NetworkMode, Port, PortBinding, PortProtocol, Propagation, Resources,
        Ulimit,
    },
    network::{NetworkView, Protocol},
    object::Task,
    spec::{self, ContainerTaskSpec, GenericResource, NetworkTarget, PublishMode},
};

use crate::network::TASK_LABEL;

/// Why a task cannot be a container here.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContainerError {
    #[error("invalid {field} {value:?}: expected {expected}")]
    Invalid {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("network {0} is not known on this node yet")]
    NoNetwork(String),
}

/// Builds what the engine is asked for: `wanted` is the task's container with its templates filled in, `files` are
/// secrets and configs as (host path, container path).
pub(super) fn container_spec(
    task: &Task,
    wanted: &ContainerTaskSpec,
    view: &NetworkView,
    files: &[(String, String)],
) -> Result<ContainerSpec, ContainerError> {
    let mut mounts = Vec::new();
    // What a tmpfs has options for goes another way, see `tmpfs`.
    for mount in &wanted.mounts {
        if mount.tmpfs_options.is_empty() {
            mounts.push(mount_spec(mount)?);
        }
    }
    mounts.extend(files.iter().map(|(source, target)| MountSpec {
        target: target.clone(),
        read_only: true,
        kind: MountKind::Bind {
            source: source.clone(),
            propagation: Propagation::Rprivate,
            non_recursive: false,
            create_source: false,
            read_only_depth: Default::default(),
        },
    }));
    let (network_mode, endpoints) = networks(task, view)?;

    let mut labels = wanted.labels.clone();
    let node = task
        .node
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    for (label, value) in [
        ("com.docker.swarm.task", String::new()),
        (TASK_LABEL, task.id.to_string()),
        ("com.docker.swarm.task.name", task.name()),
        ("com.docker.swarm.node.id", node),
        ("com.docker.swarm.service.id", task.service.to_string()),
        (
            "com.docker.swarm.service.name",
            task.service_name.to_string(),
        ),
    ] {
        labels.insert(label.to_owned(), value);
    }

    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(ContainerSpec {
        name: Some(task.name()),
        image: wanted.image.clone(),
        entrypoint: (!wanted.command.is_empty()).then(|| wanted.command.clone()),
        cmd: (!wanted.args.is_empty()).then(|| wanted.args.clone()),
        env: environment(task, wanted),
        working_dir: some(&wanted.dir),
        user: some(&wanted.user),
        hostname: some(&wanted.hostname),
        domainname: some(&wanted.host.domainname),
        labels,
        tty: wanted.tty,
        open_stdin: wanted.open_stdin,
        stop_signal: some(&wanted.stop_signal),
        stop_timeout: wanted.stop_grace_period,
        healthcheck: wanted.healthcheck.as_ref().map(health_check),
        host: host_spec(task, wanted, mounts, network_mode)?,
        endpoints,
        ..ContainerSpec::default()
    })
}

/// The container's environment, with the names or amounts of the generic resources that are the task's
/// (SwarmKit's `api/genericresource/string.go`, moby's prefix).
fn environment(task: &Task, wanted: &ContainerTaskSpec) -> Vec<String> {
    let assigned = task.assigned.iter().flat_map(|assigned| &assigned.generic);
    let assigned = assigned.map(|(kind, amount)| {
        let value = match amount {
            GenericResource::Discrete(amount) => amount.to_string(),
            GenericResource::Named(names) => names.join(","),
        };
        format!("DOCKER_RESOURCE_{}={value}", kind.to_uppercase())
    });
    wanted.env.iter().cloned().chain(assigned).collect()
}

fn health_check(wanted: &spec::HealthConfig) -> HealthCheck {
    let some = |time: std::time::Duration| (!time.is_zero()).then_some(time);
    HealthCheck {
        test: wanted.test.clone(),
        interval: some(wanted.interval),
        timeout: some(wanted.timeout),
        start_period: some(wanted.start_period),
        start_interval: some(wanted.start_interval),
        retries: (wanted.retries > 0).then_some(wanted.retries),
    }
}

fn mount_spec(mount: &spec::Mount) -> Result<MountSpec, ContainerError> {
    let (source, target) = (mount.source.clone(), mount.target.clone());
    let kind = match mount.kind {
        spec::MountKind::Bind => MountKind::Bind {
            source,
            propagation: propagation(&mount.propagation)?,
            non_recursive: mount.non_recursive,
            create_source: mount.create_source,
            read_only_depth: mount.read_only_depth,
        },
        spec::MountKind::Volume => MountKind::Volume {
            name: (!source.is_empty()).then_some(source),
            no_copy: mount.no_copy,
            labels: mount.labels.clone(),
            driver: mount.driver.as_ref().map(|driver| driver.name.clone()),
            driver_opts: mount
                .driver
                .as_ref()
                .map(|driver| driver.options.clone())
                .unwrap_or_default(),
            subpath: (!mount.subpath.is_empty()).then(|| mount.subpath.clone()),
        },
        spec::MountKind::Tmpfs => MountKind::Tmpfs {
            size: (mount.tmpfs_size_bytes > 0).then_some(mount.tmpfs_size_bytes),
            mode: (mount.tmpfs_mode > 0).then_some(mount.tmpfs_mode),
        },
    };
    Ok(MountSpec {
        target,
        read_only: mount.read_only,
        kind,
    })
}

/// Mounts of memory with options of their own, as `docker run --tmpfs` has them: all in one text, by target.
fn tmpfs(mounts: &[spec::Mount]) -> BTreeMap<String, String> {
    let with_options = mounts
        .iter()
        .filter(|mount| !mount.tmpfs_options.is_empty());
    let options = |mount: &spec::Mount| {
        let mut all = mount.tmpfs_options.clone();
        if mount.tmpfs_size_bytes > 0 {
            all.push(format!("size={}", mount.tmpfs_size_bytes));
        }
        if mount.tmpfs_mode > 0 {
            all.push(format!("mode={:o}", mount.tmpfs_mode));
        }
        if mount.read_only {
            all.push("ro".to_owned());
        }
        (mount.target.clone(), all.join(","))
    };
    with_options.map(options).collect()
}

fn propagation(text: &str) -> Result<Propagation, ContainerError> {
    use Propagation as P;
    if text.is_empty() {
        return Ok(P::default());
    }
    [
        P::Rprivate,
        P::Private,
        P::Rshared,
        P::Shared,
        P::Rslave,
        P::Slave,
    ]
    .into_iter()
    .find(|propagation| propagation.as_str() == text)
    .ok_or_else(|| ContainerError::Invalid {
        field: "mount propagation",
        value: text.to_owned(),
        expected: "rprivate, private, rshared, shared, rslave or slave",
    })
}

/// Where the container is connected: to the cluster networks that were allocated for it, else to one of this node.
fn networks(
    task: &Task,
    view: &NetworkView,
) -> Result<(NetworkMode, BTreeMap<String, EndpointSpec>), ContainerError> {
    let mut endpoints = BTreeMap::new();
    let mut first = None;
    for attachment in &task.networks {
        let slice = view.networks.get(&attachment.network);
        let Some(slice) = slice.filter(|slice| slice.endpoints.contains(&task.id)) else {
            return Err(ContainerError::NoNetwork(attachment.network.to_string()));
        };
        let endpoint = EndpointSpec {
            aliases: attachment.aliases.clone(),
            ..EndpointSpec::default()
        };
        endpoints.insert(slice.name.clone(), endpoint);
        first.get_or_insert_with(|| slice.name.clone());
    }
    if let Some(first) = first {
        return Ok((NetworkMode::Network(first), endpoints));
    }
    let of_node = task
        .spec
        .networks
        .iter()
        .find_map(|attachment| match &attachment.target {
            NetworkTarget::Node(name) => Some(name.as_str()),
            NetworkTarget::Cluster(_) => None,
        });
    let mode = match of_node {
        None | Some("bridge") => NetworkMode::Default,
        Some("host") => NetworkMode::Host,
        Some("none") => NetworkMode::None,
        Some(name) => NetworkMode::Network(name.to_owned()),
    };
    Ok((mode, endpoints))
}

fn device(device: &spec::Device) -> DeviceSpec {
    DeviceSpec {
        host_path: device.host_path.clone(),
        container_path: device.container_path.clone(),
        permissions: device.permissions.clone(),
    }
}

fn host_spec(
    task: &Task,
    wanted: &ContainerTaskSpec,
    mounts: Vec<MountSpec>,
    network_mode: NetworkMode,
) -> Result<HostSpec, ContainerError> {
    let dns = wanted.dns.clone().unwrap_or_default();
    let servers = dns.nameservers.iter().map(|server| {
        server.parse().map_err(|_| ContainerError::Invalid {
            field: "DNS server",
            value: server.clone(),
            expected: "an IP address",
        })
    });
    let mut extra_hosts = Vec::new();
    for line in &wanted.hosts {
        // Lines are as in /etc/hosts; the engine wants `name:address`.
        let mut words = line.split_whitespace();
        let address = words.next().unwrap_or_default();
        extra_hosts.extend(words.map(|name| format!("{name}:{address}")));
    }
    let mut port_bindings = BTreeMap::<Port, Vec<PortBinding>>::new();
    for port in task
        .ports
        .iter()
        .filter(|port| port.mode == PublishMode::Host)
    {
        let protocol = match port.protocol {
            Protocol::Tcp => PortProtocol::Tcp,
            Protocol::Udp => PortProtocol::Udp,
            Protocol::Sctp => PortProtocol::Sctp,
        };
        let host_ports = (port.published != 0).then_some((port.published, port.published));
        let binding = PortBinding {
            host_ip: port.host_ip,
            host_ports,
        };
        port_bindings
            .entry(Port {
                number: port.target,
                protocol,
            })
            .or_default()
            .push(binding);
    }
    let limits = &task.spec.resources.limits;
    let host = &wanted.host;
    let some = |amount: u64| (amount > 0).then_some(amount);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let log = task.spec.log_driver.as_ref();
    Ok(HostSpec {
        mounts,
        network_mode,
        port_bindings,
        dns: servers.collect::<Result<Vec<_>, _>>()?,
        dns_search: dns.search,
        dns_options: dns.options,
        extra_hosts,
        cap_add: wanted.cap_add.clone(),
        cap_drop: wanted.cap_drop.clone(),
        readonly_rootfs: wanted.read_only,
        ulimits: wanted
            .ulimits
            .iter()
            .map(|limit| Ulimit {
                name: limit.name.clone(),
                soft: limit.soft,
                hard: limit.hard,
            })
            .collect(),
        sysctls: wanted.sysctls.clone(),
        resources: Resources {
            memory_bytes: some(limits.memory_bytes),
            memory_reservation_bytes: some(task.spec.resources.reservations.memory_bytes),
            nano_cpus: some(limits.nano_cpus),
            pids: (limits.pids > 0).then(|| i64::try_from(limits.pids).unwrap_or(i64::MAX)),
            cpuset_cpus: text(&host.cpuset_cpus),
            memory_swap_bytes: host.memory_swap_bytes,
            memory_swappiness: host.memory_swappiness,
            oom_kill_disable: host.oom_kill_disable,
            ..Resources::default()
        },
        init: wanted.init,
        tmpfs: tmpfs(&wanted.mounts),
        log: LogConfig {
            driver: log.map(|log| log.name.clone()),
            options: log.map(|log| log.options.clone()).unwrap_or_default(),
        },
        group_add: wanted.groups.clone(),
        privileged: host.privileged,
        devices: host.devices.iter().map(device).collect(),
        device_cgroup_rules: host.device_cgroup_rules.clone(),
        device_requests: if host.cdi_devices.is_empty() {
            Vec::new()
        } else {
            vec![DeviceRequest::named(host.cdi_devices.clone())]
        },
        security_opt: host.security_opt.clone(),
        shm_size: some(host.shm_size_bytes),
        ipc_mode: text(&host.ipc_mode),
        pid_mode: text(&host.pid_mode),
        uts_mode: text(&host.uts_mode),
        userns_mode: text(&host.userns_mode),
        cgroupns_mode: text(&host.cgroupns_mode),
        cgroup_parent: text(&host.cgroup_parent),
        oom_score_adj: wanted
            .oom_score_adj
            .map_or(0, |score| i32::try_from(score).unwrap_or_default()),
        ..HostSpec::default()
    })
}
