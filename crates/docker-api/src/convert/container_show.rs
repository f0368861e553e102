//! Containers as `docker ps` and `docker inspect` want them.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde_json::{Map, Value, json};
use shoal_api::{
    Timestamp,
    container::{
        ContainerInspect, ContainerState, ContainerStatus, ContainerSummary, DeviceRequest,
        EndpointInfo, ExecInspect, HealthCheck, HostSpec, MountKind, MountPoint, MountSpec,
        NetworkMode, NetworkSettings, Port, PublishedPort, ReadOnlyDepth, Resources, RestartPolicy,
        Stats,
    },
};

use super::{
    container_create::{BLKIO_DEVICES, set},
    time::{human_duration, instant, nanos},
};

/// One element of `GET /containers/json`.
pub(crate) fn summary(container: &ContainerSummary, now: Timestamp) -> Value {
    let mut row = json!({
        "Id": container.id.as_str(),
        "Names": std::iter::once(&container.name).chain(&container.link_names).map(|name| format!("/{name}")).collect::<Vec<_>>(),
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": container.command,
        "Created": container.created.seconds(),
        "Ports": container.ports.iter().map(published).collect::<Vec<_>>(),
        "Labels": container.labels,
        "State": container.state.status.as_str(),
        "Status": status_line(&container.state, now),
        "HostConfig": {"NetworkMode": container.network_mode},
        "NetworkSettings": {"Networks": endpoints(&container.networks)},
        "Mounts": container.mounts.iter().map(mount_point).collect::<Vec<_>>(),
    });
    if let Some(size) = container.size_rw {
        row["SizeRw"] = json!(size);
    }
    if let Some(size) = container.size_root_fs {
        row["SizeRootFs"] = json!(size);
    }
    row
}

/// `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`, … (moby `daemon/container/state.go` `String`).
pub(crate) fn status_line(state: &ContainerState, now: Timestamp) -> String {
    let since = |at| human_duration(now.since(at));
    match state.status {
        ContainerStatus::Created => "Created".to_owned(),
        ContainerStatus::Running => {
            let health = match &state.health {
                None => String::new(),
                Some(health) => match health.status {
                    shoal_api::container::HealthStatus::Starting => {
                        " (health: starting)".to_owned()
                    }
                    status => format!(" ({})", status.as_str()),
                },
            };
            format!("Up {}{health}", since(state.started_at))
        }
        ContainerStatus::Paused => format!("Up {} (Paused)", since(state.started_at)),
        ContainerStatus::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
        ContainerStatus::Removing => "Removal In Progress".to_owned(),
        ContainerStatus::Dead => "Dead".to_owned(),
        ContainerStatus::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
    }
}

fn published(port: &PublishedPort) -> Value {
    let mut row = json!({
        "PrivatePort": port.container_port,
        "Type": port.protocol.as_str(),
    });
    if let Some(host_port) = port.host_port {
        row["IP"] = json!(host_ip(port.host_ip));
        row["PublicPort"] = json!(host_port);
    }
    row
}

fn host_ip(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string())
}

fn mount_point(mount: &MountPoint) -> Value {
    let mut row = json!({
        "Type": mount.kind,
        "Source": mount.source,
        "Destination": mount.destination,
        "Mode": mount.mode,
        "RW": mount.rw,
        "Propagation": mount.propagation,
    });
    if !mount.name.is_empty() {
        row["Name"] = json!(mount.name);
    }
    if !mount.driver.is_empty() {
        row["Driver"] = json!(mount.driver);
    }
    row
}

/// The answer of `GET /containers/{id}/json`.
pub(crate) fn inspect(container: &ContainerInspect) -> Value {
    let spec = &container.spec;
    let mut answer = json!({
        "Id": container.id.as_str(),
        "Created": instant(container.created),
        "Path": container.path,
        "Args": container.args,
        "State": state(&container.state),
        "Image": container.image_id,
        "ResolvConfPath": container.resolv_conf_path,
        "HostnamePath": container.hostname_path,
        "HostsPath": container.hosts_path,
        "LogPath": container.log_path,
        "Name": format!("/{}", container.name),
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if container.exec_ids.is_empty() { Value::Null } else { json!(container.exec_ids) },
        "HostConfig": host(&spec.host),
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {
                "LowerDir": joined(&container.graph.lower),
                "UpperDir": container.graph.upper,
                "WorkDir": container.graph.work,
                "MergedDir": container.graph.merged,
            },
        },
        "Mounts": container.mounts.iter().map(mount_point).collect::<Vec<_>>(),
        "Config": {
            "Hostname": spec.hostname.as_deref().unwrap_or_else(|| container.id.short()),
            "Domainname": spec.domainname.as_deref().unwrap_or_default(),
            "User": spec.user.as_deref().unwrap_or_default(),
            "AttachStdin": spec.attach_stdin,
            "AttachStdout": spec.attach_stdout,
            "AttachStderr": spec.attach_stderr,
            "Tty": spec.tty,
            "OpenStdin": spec.open_stdin,
            "StdinOnce": spec.stdin_once,
            "Env": spec.env,
            "Cmd": spec.cmd,
            "Image": spec.image,
            "Volumes": if spec.volumes.is_empty() { Value::Null } else { set(&spec.volumes) },
            "WorkingDir": spec.working_dir.as_deref().unwrap_or_default(),
            "Entrypoint": spec.entrypoint,
            "OnBuild": null,
            "Labels": spec.labels,
        },
        "NetworkSettings": network_settings(&container.network),
    });
    let config = &mut answer["Config"];
    if !spec.exposed_ports.is_empty() {
        config["ExposedPorts"] = set(&spec.exposed_ports);
    }
    if let Some(signal) = &spec.stop_signal {
        config["StopSignal"] = json!(signal);
    }
    if let Some(timeout) = spec.stop_timeout {
        config["StopTimeout"] = json!(i64::try_from(timeout.as_secs()).unwrap_or(-1));
    }
    if let Some(check) = &spec.healthcheck {
        config["Healthcheck"] = health_check(check);
    }
    if let Some(size) = container.size_rw {
        answer["SizeRw"] = json!(size);
    }
    if let Some(size) = container.size_root_fs {
        answer["SizeRootFs"] = json!(size);
    }
    answer
}

fn joined(paths: &[impl AsRef<Path>]) -> String {
    // overlayfs lists the topmost layer first.
    let paths: Vec<_> = paths
        .iter()
        .rev()
        .map(|path| path.as_ref().to_string_lossy())
        .collect();
    paths.join(":")
}

fn state(state: &ContainerState) -> Value {
    let mut answer = json!({
        "Status": state.status.as_str(),
        "Running": matches!(
            state.status,
            ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting
        ),
        "Paused": state.status == ContainerStatus::Paused,
        "Restarting": state.status == ContainerStatus::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == ContainerStatus::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": instant(state.started_at),
        "FinishedAt": instant(state.finished_at),
    });
    if let Some(health) = &state.health {
        let log: Vec<Value> = health
            .log
            .iter()
            .map(|probe| {
                json!({
                    "Start": instant(probe.start),
                    "End": instant(probe.end),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                })
            })
            .collect();
        answer["Health"] = json!({
            "Status": health.status.as_str(),
            "FailingStreak": health.failing_streak,
            "Log": log,
        });
    }
    answer
}

/// A health check; zeros are what was not said.
pub(crate) fn health_check(check: &HealthCheck) -> Value {
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
        if let Some(value) = value {
            answer.insert(name.to_owned(), json!(nanos(value)));
        }
    }
    if let Some(retries) = check.retries {
        answer.insert("Retries".to_owned(), json!(retries));
    }
    Value::Object(answer)
}

/// A network mode as the API writes it.
pub(crate) fn network_mode(mode: &NetworkMode) -> String {
    match mode {
        NetworkMode::Default => "bridge".to_owned(),
        NetworkMode::None => "none".to_owned(),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::Container(container) => format!("container:{container}"),
        NetworkMode::Network(network) => network.clone(),
    }
}

fn host(host: &HostSpec) -> Value {
    // A list that Go prints as `null` when it is nil.
    let list = |items: &[String]| {
        if items.is_empty() {
            Value::Null
        } else {
            json!(items)
        }
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let bindings: Map<String, Value> = host
        .port_bindings
        .iter()
        .map(|(port, bindings)| {
            let bindings: Vec<Value> = bindings
                .iter()
                .map(|binding| {
                    let ports = match binding.host_ports {
                        None => String::new(),
                        Some((first, last)) if first == last => first.to_string(),
                        Some((first, last)) => format!("{first}-{last}"),
                    };
                    let ip = binding.host_ip.map(|ip| ip.to_string());
                    json!({"HostIp": ip.unwrap_or_default(), "HostPort": ports})
                })
                .collect();
            (port.to_string(), json!(bindings))
        })
        .collect();
    let mut answer = json!({
        "Binds": list(&host.binds),
        "ContainerIDFile": "",
        "LogConfig": {
            "Type": host.log.driver.as_deref().unwrap_or("json-file"),
            "Config": host.log.options,
        },
        "NetworkMode": network_mode(&host.network_mode),
        "PortBindings": bindings,
        "RestartPolicy": restart(&host.restart),
        "AutoRemove": host.auto_remove,
        "VolumeDriver": text(&host.volume_driver),
        "VolumesFrom": list(&host.volumes_from),
        "ConsoleSize": host.console_size.unwrap_or_default(),
        "CapAdd": list(&host.cap_add),
        "CapDrop": list(&host.cap_drop),
        "CgroupnsMode": host.cgroupns_mode.as_deref().unwrap_or("private"),
        "Dns": host.dns,
        "DnsOptions": host.dns_options,
        "DnsSearch": host.dns_search,
        "ExtraHosts": list(&host.extra_hosts),
        "GroupAdd": list(&host.group_add),
        "IpcMode": host.ipc_mode.as_deref().unwrap_or("private"),
        "Cgroup": "",
        "CgroupParent": text(&host.cgroup_parent),
        "Links": list(&host.links),
        "OomScoreAdj": host.oom_score_adj,
        "PidMode": text(&host.pid_mode),
        "Privileged": host.privileged,
        "PublishAllPorts": host.publish_all_ports,
        "ReadonlyRootfs": host.readonly_rootfs,
        "SecurityOpt": list(&host.security_opt),
        "UTSMode": text(&host.uts_mode),
        "UsernsMode": text(&host.userns_mode),
        "ShmSize": host.shm_size.unwrap_or(64 << 20),
        "Runtime": host.runtime.as_deref().unwrap_or("shoal"),
        "Isolation": "",
        "MaskedPaths": host.masked_paths,
        "ReadonlyPaths": host.readonly_paths,
        "Devices": host.devices.iter().map(|device| json!({
            "PathOnHost": device.host_path,
            "PathInContainer": device.container_path,
            "CgroupPermissions": device.permissions,
        })).collect::<Vec<_>>(),
        "DeviceCgroupRules": list(&host.device_cgroup_rules),
        "DeviceRequests": device_requests(&host.device_requests),
        "Ulimits": host.ulimits.iter().map(|limit| json!({
            "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard,
        })).collect::<Vec<_>>(),
    });
    resources(&host.resources, &mut answer);
    if !host.mounts.is_empty() {
        answer["Mounts"] = host.mounts.iter().map(mount).collect();
    }
    for (name, map) in [
        ("Tmpfs", &host.tmpfs),
        ("Sysctls", &host.sysctls),
        ("StorageOpt", &host.storage_opt),
        ("Annotations", &host.annotations),
    ] {
        if !map.is_empty() {
            answer[name] = json!(map);
        }
    }
    if let Some(init) = host.init {
        answer["Init"] = json!(init);
    }
    answer
}

fn restart(policy: &RestartPolicy) -> Value {
    let (name, retries) = match policy {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { max_retries } => ("on-failure", *max_retries),
    };
    json!({"Name": name, "MaximumRetryCount": retries})
}

fn resources(limits: &Resources, answer: &mut Value) {
    let numbers = json!({
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "Memory": limits.memory_bytes.unwrap_or(0),
        "NanoCpus": limits.nano_cpus.unwrap_or(0),
        "BlkioWeight": limits.blkio_weight.unwrap_or(0),
        "CpuPeriod": limits.cpu_period_us.unwrap_or(0),
        "CpuQuota": limits.cpu_quota_us.unwrap_or(0),
        "CpuRealtimePeriod": limits.cpu_realtime_period_us.unwrap_or(0),
        "CpuRealtimeRuntime": limits.cpu_realtime_runtime_us.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.as_deref().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.as_deref().unwrap_or_default(),
        "MemoryReservation": limits.memory_reservation_bytes.unwrap_or(0),
        "MemorySwap": limits.memory_swap_bytes.unwrap_or(0),
        "MemorySwappiness": limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "PidsLimit": limits.pids,
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
    });
    if let (Value::Object(answer), Value::Object(numbers)) = (answer, numbers) {
        answer.extend(numbers);
        for (name, amount) in BLKIO_DEVICES {
            let devices: Vec<Value> = limits
                .blkio_devices
                .get(name)
                .into_iter()
                .flatten()
                .filter_map(|device| device.rsplit_once(':'))
                .map(|(path, value)| json!({"Path": path, amount: value.parse::<u64>().unwrap_or(0)}))
                .collect();
            answer.insert(name.to_owned(), json!(devices));
        }
    }
}

fn device_requests(requests: &[DeviceRequest]) -> Value {
    if requests.is_empty() {
        return Value::Null;
    }
    let show = |request: &DeviceRequest| {
        json!({
            "Driver": request.driver,
            "Count": request.count,
            "DeviceIDs": request.device_ids,
            "Capabilities": request.capabilities,
            "Options": request.options,
        })
    };
    requests.iter().map(show).collect()
}

fn mount(mount: &MountSpec) -> Value {
    let mut answer = match &mount.kind {
        MountKind::Bind {
            source,
            propagation,
            non_recursive,
            create_source,
            read_only_depth,
        } => {
            let mut options = json!({
                "Propagation": propagation.as_str(),
                "NonRecursive": non_recursive,
                "CreateMountpoint": create_source,
            });
            match read_only_depth {
                ReadOnlyDepth::AsPossible => {}
                ReadOnlyDepth::Itself => options["ReadOnlyNonRecursive"] = json!(true),
                ReadOnlyDepth::All => options["ReadOnlyForceRecursive"] = json!(true),
            }
            json!({"Type": "bind", "Source": source, "BindOptions": options})
        }
        MountKind::Volume {
            name,
            no_copy,
            labels,
            driver,
            driver_opts,
            subpath,
        } => json!({
            "Type": "volume",
            "Source": name.as_deref().unwrap_or_default(),
            "VolumeOptions": {
                "NoCopy": no_copy,
                "Labels": labels,
                "Subpath": subpath.as_deref().unwrap_or_default(),
                "DriverConfig": {
                    "Name": driver.as_deref().unwrap_or_default(),
                    "Options": driver_opts,
                },
            },
        }),
        MountKind::Tmpfs { size, mode } => json!({
            "Type": "tmpfs",
            "TmpfsOptions": {"SizeBytes": size.unwrap_or(0), "Mode": mode.unwrap_or(0)},
        }),
        MountKind::Image { source, subpath } => json!({
            "Type": "image",
            "Source": source,
            "ImageOptions": {"Subpath": subpath.as_deref().unwrap_or_default()},
        }),
    };
    answer["Target"] = json!(mount.target);
    answer["ReadOnly"] = json!(mount.read_only);
    answer
}

fn network_settings(network: &NetworkSettings) -> Value {
    let ports: Map<String, Value> = network
        .ports
        .iter()
        .map(|(port, published)| (port.to_string(), port_bindings(port, published)))
        .collect();
    // The members besides `Networks` are those of the default bridge, as docker keeps them for old clients.
    let default = network.networks.get("bridge");
    let mut answer = json!({
        "Bridge": "",
        "SandboxID": network.sandbox_id,
        "SandboxKey": network.sandbox.as_deref().unwrap_or_else(|| Path::new("")),
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "Networks": endpoints(&network.networks),
    });
    let addresses = default.map_or_else(|| endpoint(&EndpointInfo::default()), endpoint);
    for name in [
        "EndpointID",
        "Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "MacAddress",
    ] {
        answer[name] = addresses[name].clone();
    }
    answer
}

fn port_bindings(_port: &Port, published: &[PublishedPort]) -> Value {
    let bindings: Vec<Value> = published
        .iter()
        .filter_map(|port| {
            let host_port = port.host_port?;
            Some(json!({"HostIp": host_ip(port.host_ip), "HostPort": host_port.to_string()}))
        })
        .collect();
    if bindings.is_empty() {
        Value::Null
    } else {
        json!(bindings)
    }
}

fn endpoints(networks: &BTreeMap<String, EndpointInfo>) -> Value {
    Value::Object(
        networks
            .iter()
            .map(|(name, info)| (name.clone(), endpoint(info)))
            .collect(),
    )
}

/// One endpoint, as seen in inspect and list.
pub(crate) fn endpoint(info: &EndpointInfo) -> Value {
    let text = |value: Option<String>| value.unwrap_or_default();
    let spec = &info.spec;
    let mut ipam = Map::new();
    if let Some(address) = spec.ipv4 {
        ipam.insert("IPv4Address".to_owned(), json!(address));
    }
    if let Some(address) = spec.ipv6 {
        ipam.insert("IPv6Address".to_owned(), json!(address));
    }
    if !spec.link_local.is_empty() {
        ipam.insert("LinkLocalIPs".to_owned(), json!(spec.link_local));
    }
    let list = |items: &[String]| {
        if items.is_empty() {
            Value::Null
        } else {
            json!(items)
        }
    };
    json!({
        "IPAMConfig": if ipam.is_empty() { Value::Null } else { Value::Object(ipam) },
        "Links": list(&spec.links),
        "Aliases": list(&spec.aliases),
        "MacAddress": info.mac_address.as_ref().or(spec.mac_address.as_ref()).map_or("", String::as_str),
        "DriverOpts": if spec.driver_opts.is_empty() { Value::Null } else { json!(spec.driver_opts) },
        "GwPriority": spec.gw_priority,
        "NetworkID": info.network_id,
        "EndpointID": info.endpoint_id,
        "Gateway": text(info.gateway.map(|a| a.to_string())),
        "IPAddress": text(info.ipv4.map(|a| a.to_string())),
        "IPPrefixLen": if info.ipv4.is_some() { info.ipv4_prefix_len } else { 0 },
        "IPv6Gateway": text(info.ipv6_gateway.map(|a| a.to_string())),
        "GlobalIPv6Address": text(info.ipv6.map(|a| a.to_string())),
        "GlobalIPv6PrefixLen": if info.ipv6.is_some() { info.ipv6_prefix_len } else { 0 },
        "DNSNames": list(&info.dns_names),
    })
}

/// The answer of `GET /exec/{id}/json`.
pub(crate) fn exec(exec: &ExecInspect) -> Value {
    let (entrypoint, arguments) = exec
        .spec
        .cmd
        .split_first()
        .map_or((String::new(), Vec::new()), |(first, rest)| {
            (first.clone(), rest.to_vec())
        });
    json!({
        "ID": exec.id,
        "Running": exec.running,
        "ExitCode": exec.exit_code,
        "ProcessConfig": {
            "tty": exec.spec.tty,
            "entrypoint": entrypoint,
            "arguments": arguments,
            "privileged": exec.spec.privileged,
            "user": exec.spec.user.as_deref().unwrap_or_default(),
        },
        "OpenStdin": exec.spec.attach_stdin,
        "OpenStderr": exec.spec.attach_stderr,
        "OpenStdout": exec.spec.attach_stdout,
        "CanRemove": false,
        "ContainerID": exec.container.as_str(),
        "DetachKeys": exec.spec.detach_keys.as_deref().unwrap_or_default(),
        "Pid": exec.pid,
    })
}

/// One sample of `GET /containers/{id}/stats`, with the one before it.
pub(crate) fn stats(id: &str, name: &str, now: &Stats, before: Option<&Stats>) -> Value {
    let cpu = |stats: &Stats| {
        json!({
            "cpu_usage": {
                "total_usage": stats.cpu.total_ns,
                "usage_in_kernelmode": stats.cpu.kernel_ns,
                "usage_in_usermode": stats.cpu.user_ns,
            },
            "system_cpu_usage": stats.cpu.system_ns,
            "online_cpus": stats.cpu.online_cpus,
            "throttling_data": {
                "periods": stats.cpu.periods,
                "throttled_periods": stats.cpu.throttled_periods,
                "throttled_time": stats.cpu.throttled_ns,
            },
        })
    };
    let networks: Map<String, Value> = now
        .networks
        .iter()
        .map(|(name, counters)| (name.clone(), json!(counters)))
        .collect();
    let mut pids = json!({"current": now.pids.current});
    if let Some(limit) = now.pids.limit {
        pids["limit"] = json!(limit);
    }
    json!({
        "id": id,
        "name": format!("/{name}"),
        "read": instant(now.read),
        "preread": instant(before.map_or(Timestamp::ZERO, |before| before.read)),
        "pids_stats": pids,
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": 0, "minor": 0, "op": "read", "value": now.blkio.read_bytes},
                {"major": 0, "minor": 0, "op": "write", "value": now.blkio.write_bytes},
            ],
            "io_serviced_recursive": null,
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(now),
        "precpu_stats": before.map_or_else(|| cpu(&Stats::default()), cpu),
        "memory_stats": {
            "usage": now.memory.usage_bytes,
            "limit": now.memory.limit_bytes,
            "stats": now.memory.stats,
        },
        "networks": networks,
    })
}
/// The kernel's mode as Go's `fs.FileMode`, which docker's client reads.
pub(crate) fn go_file_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special = special.iter().filter(|(have, _)| mode & have != 0);
    special.fold(kind | mode & 0o777, |mode, (_, bit)| mode | bit)
}
