//! The body of `POST /containers/create`, and of `POST /containers/{id}/update`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde_json::{Map, Value};
use shoal_api::container::{
    ContainerSpec, DeviceRequest, DeviceSpec, EndpointSpec, HealthCheck, HostSpec, LogConfig,
    MountKind, MountSpec, NetworkMode, Port, PortBinding, Propagation, ReadOnlyDepth, Resources,
    RestartPolicy, Ulimit,
};

use crate::{
    backend::{ApiError, ApiResult, ContainerUpdate},
    fields::Fields,
};

/// Reads a create body; the name comes from the query.
pub(crate) fn read_container(body: &[u8], name: Option<String>) -> ApiResult<ContainerSpec> {
    let mut f = Fields::body(body)?;
    let mut host = read_host(f.object_or_empty("HostConfig")?)?;
    if f.get::<bool>("NetworkDisabled")? && host.network_mode == NetworkMode::Default {
        host.network_mode = NetworkMode::None;
    }
    let mut endpoints = read_endpoints(f.object_or_empty("NetworkingConfig")?, &mut f)?;
    // Old clients name the runtime beside the host's part.
    host.runtime = host.runtime.or(f.text("Runtime")?);
    match &host.network_mode {
        // Clients call the default network by its place; its name is `bridge`.
        NetworkMode::Default => {
            if let Some(endpoint) = endpoints.remove("default") {
                endpoints.entry("bridge".to_owned()).or_insert(endpoint);
            }
        }
        // And they name these although nothing is attached.
        NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => {
            endpoints.retain(|_, endpoint| *endpoint != EndpointSpec::default());
        }
        NetworkMode::Network(name) => {
            if let Some(endpoint) = endpoints.remove("default") {
                endpoints.entry(name.clone()).or_insert(endpoint);
            }
        }
    }
    let spec = ContainerSpec {
        name,
        image: f
            .text("Image")?
            .ok_or_else(|| ApiError::invalid("no command specified"))?,
        entrypoint: words(&mut f, "Entrypoint")?,
        // Go's client sends an empty list for "not said".
        cmd: words(&mut f, "Cmd")?.filter(|cmd| !cmd.is_empty()),
        env: f.get("Env")?,
        working_dir: f.text("WorkingDir")?,
        user: f.text("User")?,
        hostname: f.text("Hostname")?,
        domainname: f.text("Domainname")?,
        labels: f.get("Labels")?,
        tty: f.get("Tty")?,
        open_stdin: f.get("OpenStdin")?,
        stdin_once: f.get("StdinOnce")?,
        attach_stdin: f.get("AttachStdin")?,
        attach_stdout: f.get("AttachStdout")?,
        attach_stderr: f.get("AttachStderr")?,
        stop_signal: f.text("StopSignal")?,
        stop_timeout: f
            .take::<i64>("StopTimeout")?
            .map(|seconds| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)),
        healthcheck: read_health(&mut f)?,
        exposed_ports: f
            .get::<BTreeMap<Port, Value>>("ExposedPorts")?
            .into_keys()
            .collect(),
        volumes: f
            .get::<BTreeMap<String, Value>>("Volumes")?
            .into_keys()
            .collect(),
        host,
        endpoints,
    };
    // Fields of images and of Windows that every client carries along.
    f.ignore(&["ArgsEscaped", "OnBuild", "Shell"]);
    f.finish()?;
    Ok(spec)
}

/// Reads the body of an update: limits and the restart policy.
pub(crate) fn read_update(body: &[u8]) -> ApiResult<ContainerUpdate> {
    let mut f = Fields::body(body)?;
    let resources = read_resources(&mut f)?;
    let restart = f.object("RestartPolicy")?.map(read_restart).transpose()?;
    f.ignore(&["CgroupParent", "Devices", "DeviceCgroupRules", "Ulimits"]);
    f.finish()?;
    Ok(ContainerUpdate { resources, restart })
}

/// A list of words, or one word as old clients send it.
fn words(f: &mut Fields, name: &str) -> ApiResult<Option<Vec<String>>> {
    match f.take::<Value>(name)? {
        None => Ok(None),
        Some(Value::String(word)) => Ok(Some(vec![word])),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|error| f.invalid(name, error)),
    }
}

fn read_health(f: &mut Fields) -> ApiResult<Option<HealthCheck>> {
    let Some(mut h) = f.object("Healthcheck")? else {
        return Ok(None);
    };
    if h.is_zero() {
        return Ok(None);
    }
    let some = |duration: Option<Duration>| duration.filter(|d| !d.is_zero());
    let health = HealthCheck {
        test: h.get("Test")?,
        interval: some(h.nanos("Interval")?),
        timeout: some(h.nanos("Timeout")?),
        start_period: some(h.nanos("StartPeriod")?),
        start_interval: some(h.nanos("StartInterval")?),
        retries: h
            .take::<i64>("Retries")?
            .map(|n| {
                u32::try_from(n).map_err(|_| {
                    ApiError::invalid(if n < 0 {
                        "Retries in Healthcheck cannot be negative"
                    } else {
                        "Retries in Healthcheck are too many"
                    })
                })
            })
            .transpose()?
            .filter(|n| *n > 0),
    };
    h.finish()?;
    Ok(Some(health))
}

fn read_endpoints(
    mut networking: Fields,
    container: &mut Fields,
) -> ApiResult<BTreeMap<String, EndpointSpec>> {
    let mut endpoints = BTreeMap::new();
    for (network, f) in networking.named_objects("EndpointsConfig")? {
        endpoints.insert(network, read_endpoint(f)?);
    }
    networking.finish()?;
    // Before API 1.44 the hardware address was the container's.
    if let Some(mac) = container.text("MacAddress")? {
        if endpoints.is_empty() {
            endpoints.insert("default".to_owned(), EndpointSpec::default());
        }
        if let Some(endpoint) = endpoints.values_mut().next() {
            endpoint.mac_address.get_or_insert(mac);
        }
    }
    Ok(endpoints)
}

/// Reads the settings of one endpoint, as create and `network connect` send them.
pub(crate) fn read_endpoint(mut f: Fields) -> ApiResult<EndpointSpec> {
    let mut ipam = f.object_or_empty("IPAMConfig")?;
    let endpoint = EndpointSpec {
        aliases: f.get("Aliases")?,
        links: f.get("Links")?,
        ipv4: ipam.parse("IPv4Address")?,
        ipv6: ipam.parse("IPv6Address")?,
        link_local: ipam.get("LinkLocalIPs")?,
        mac_address: f.text("MacAddress")?,
        driver_opts: f.get("DriverOpts")?,
        gw_priority: f.get("GwPriority")?,
    };
    ipam.finish()?;
    // What the engine decides; clients send back what they inspected.
    f.ignore(&[
        "NetworkID",
        "EndpointID",
        "Gateway",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "DNSNames",
    ]);
    f.finish()?;
    Ok(endpoint)
}

fn read_host(mut f: Fields) -> ApiResult<HostSpec> {
    let mode = |f: &mut Fields, name: &str| f.text(name);
    let host = HostSpec {
        binds: f.get("Binds")?,
        mounts: f
            .objects("Mounts")?
            .into_iter()
            .map(read_mount)
            .collect::<ApiResult<_>>()?,
        tmpfs: f.get("Tmpfs")?,
        volumes_from: f.get("VolumesFrom")?,
        volume_driver: f.text("VolumeDriver")?,
        network_mode: read_network_mode(f.text("NetworkMode")?.as_deref().unwrap_or_default()),
        port_bindings: read_port_bindings(&mut f)?,
        publish_all_ports: f.get("PublishAllPorts")?,
        links: f.get("Links")?,
        dns: f.get::<Vec<IpAddr>>("Dns")?,
        dns_search: f.get("DnsSearch")?,
        dns_options: f.get("DnsOptions")?,
        extra_hosts: f.get("ExtraHosts")?,
        restart: read_restart(f.object_or_empty("RestartPolicy")?)?,
        auto_remove: f.get("AutoRemove")?,
        privileged: f.get("Privileged")?,
        cap_add: f.get("CapAdd")?,
        cap_drop: f.get("CapDrop")?,
        security_opt: f.get("SecurityOpt")?,
        readonly_rootfs: f.get("ReadonlyRootfs")?,
        devices: f
            .objects("Devices")?
            .into_iter()
            .map(read_device)
            .collect::<ApiResult<_>>()?,
        device_cgroup_rules: f.get("DeviceCgroupRules")?,
        device_requests: f
            .objects("DeviceRequests")?
            .into_iter()
            .map(read_device_request)
            .collect::<ApiResult<_>>()?,
        ulimits: f
            .objects("Ulimits")?
            .into_iter()
            .map(read_ulimit)
            .collect::<ApiResult<_>>()?,
        sysctls: f.get("Sysctls")?,
        resources: read_resources(&mut f)?,
        shm_size: f
            .amount("ShmSize")
            .map_err(|_| ApiError::invalid("SHM size can not be less than 0"))?,
        init: f.take("Init")?,
        log: read_log(f.object_or_empty("LogConfig")?)?,
        group_add: f.get("GroupAdd")?,
        pid_mode: mode(&mut f, "PidMode")?,
        ipc_mode: mode(&mut f, "IpcMode")?,
        uts_mode: mode(&mut f, "UTSMode")?,
        userns_mode: mode(&mut f, "UsernsMode")?,
        cgroupns_mode: mode(&mut f, "CgroupnsMode")?,
        cgroup_parent: f.text("CgroupParent")?,
        oom_score_adj: f.get("OomScoreAdj")?,
        console_size: f
            .take::<(u16, u16)>("ConsoleSize")?
            .filter(|size| *size != (0, 0)),
        runtime: f.text("Runtime")?,
        annotations: f.get("Annotations")?,
        storage_opt: f.get("StorageOpt")?,
        masked_paths: f.take("MaskedPaths")?,
        readonly_paths: f.take("ReadonlyPaths")?,
    };
    // These concern Windows, or are the client's own.
    f.ignore(&[
        "ContainerIDFile",
        "Cgroup",
        "CpuCount",
        "CpuPercent",
        "IOMaximumIOps",
        "IOMaximumBandwidth",
    ]);
    match f.text("Isolation")?.as_deref() {
        None | Some("default") => {}
        Some(other) => {
            return Err(f.invalid(
                "Isolation",
                format!("{other:?} - linux only supports 'default'"),
            ));
        }
    }
    f.finish()?;
    Ok(host)
}

/// Reads a network mode as the API writes it.
pub(crate) fn read_network_mode(text: &str) -> NetworkMode {
    match text {
        "" | "default" => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => match other.strip_prefix("container:") {
            Some(container) => NetworkMode::Container(container.to_owned()),
            None => NetworkMode::Network(other.to_owned()),
        },
    }
}

fn read_restart(mut f: Fields) -> ApiResult<RestartPolicy> {
    let name = f.text("Name")?;
    let max_retries = f.amount("MaximumRetryCount").map_err(|_| {
        ApiError::invalid("invalid restart policy: maximum retry count cannot be negative")
    })?;
    let max_retries = max_retries.unwrap_or(0);
    let policy = match name.as_deref() {
        None | Some("no") => RestartPolicy::No,
        Some("always") => RestartPolicy::Always,
        Some("unless-stopped") => RestartPolicy::UnlessStopped,
        Some("on-failure") => RestartPolicy::OnFailure {
            max_retries: u32::try_from(max_retries)
                .map_err(|_| f.invalid("MaximumRetryCount", "too large"))?,
        },
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or \
                 'unless-stopped'"
            )));
        }
    };
    if max_retries > 0 && !matches!(policy, RestartPolicy::OnFailure { .. }) {
        return Err(ApiError::invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    f.finish()?;
    Ok(policy)
}

fn read_log(mut f: Fields) -> ApiResult<LogConfig> {
    let log = LogConfig {
        driver: f.text("Type")?,
        options: f.get("Config")?,
    };
    f.finish()?;
    Ok(log)
}

fn read_port_bindings(f: &mut Fields) -> ApiResult<BTreeMap<Port, Vec<PortBinding>>> {
    let bindings: BTreeMap<Port, Option<Vec<Map<String, Value>>>> = f.get("PortBindings")?;
    let text = |binding: &Map<String, Value>, name: &str| -> ApiResult<String> {
        match binding.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.trim().to_owned()),
            Some(other) => Err(f.invalid("PortBindings", format!("{name} is {other}"))),
        }
    };
    bindings
        .into_iter()
        .map(|(port, bindings)| {
            // A port with no binding at all is one for the engine to choose.
            let bindings = bindings
                .filter(|bindings| !bindings.is_empty())
                .unwrap_or_else(|| vec![Map::new()]);
            let bindings = bindings
                .iter()
                .map(|binding| {
                    let (ip, ports) = (text(binding, "HostIp")?, text(binding, "HostPort")?);
                    Ok(PortBinding {
                        host_ip: if ip.is_empty() {
                            None
                        } else {
                            Some(ip.parse().map_err(|_| {
                                ApiError::invalid(format!("invalid IP address: {ip:?}"))
                            })?)
                        },
                        host_ports: read_port_range(&ports).map_err(|()| {
                            ApiError::invalid(format!("invalid port specification: {ports:?}"))
                        })?,
                    })
                })
                .collect::<ApiResult<_>>()?;
            Ok((port, bindings))
        })
        .collect()
}

/// `""`, `0`, `8080`, `8080-8090`.
fn read_port_range(text: &str) -> Result<Option<(u16, u16)>, ()> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (
        first.parse().map_err(|_| ())?,
        last.parse().map_err(|_| ())?,
    );
    if first == 0 || first > last {
        return Err(());
    }
    Ok(Some((first, last)))
}

fn read_device_request(mut f: Fields) -> ApiResult<DeviceRequest> {
    let request = DeviceRequest {
        driver: f.text("Driver")?.unwrap_or_default(),
        count: f.get("Count")?,
        device_ids: f.get("DeviceIDs")?,
        capabilities: f.get("Capabilities")?,
        options: f.get("Options")?,
    };
    f.finish()?;
    Ok(request)
}

fn read_device(mut f: Fields) -> ApiResult<DeviceSpec> {
    let host_path: String = f.get("PathOnHost")?;
    let device = DeviceSpec {
        container_path: f
            .text("PathInContainer")?
            .unwrap_or_else(|| host_path.clone()),
        host_path,
        permissions: f
            .text("CgroupPermissions")?
            .unwrap_or_else(|| "rwm".to_owned()),
    };
    f.finish()?;
    Ok(device)
}

fn read_ulimit(mut f: Fields) -> ApiResult<Ulimit> {
    let ulimit = Ulimit {
        name: f.get("Name")?,
        soft: f.get("Soft")?,
        hard: f.get("Hard")?,
    };
    f.finish()?;
    Ok(ulimit)
}

/// Reads limits of processes from a JSON array; empty text is none.
pub(crate) fn read_ulimits(text: &str) -> ApiResult<Vec<Ulimit>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let body = format!(r#"{{"Ulimits":{text}}}"#);
    let mut fields = Fields::body(body.as_bytes())?;
    let list = fields.objects("Ulimits")?;
    list.into_iter().map(read_ulimit).collect()
}

fn read_resources(f: &mut Fields) -> ApiResult<Resources> {
    // -1 and 0 are both "not said" where a kernel default exists.
    let positive =
        |value: Option<i64>| value.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let resources = Resources {
        memory_bytes: f.amount("Memory")?,
        memory_reservation_bytes: f.amount("MemoryReservation")?,
        memory_swap_bytes: f.take::<i64>("MemorySwap")?.filter(|n| *n != 0),
        memory_swappiness: f
            .take::<i64>("MemorySwappiness")?
            .and_then(|n| u64::try_from(n).ok()),
        kernel_memory_tcp_bytes: f.amount("KernelMemoryTCP")?,
        oom_kill_disable: f.get("OomKillDisable")?,
        nano_cpus: f.amount("NanoCpus")?,
        cpu_shares: positive(f.take("CpuShares")?),
        cpu_quota_us: f.take::<i64>("CpuQuota")?.filter(|n| *n != 0),
        cpu_period_us: f.amount("CpuPeriod")?,
        cpu_realtime_period_us: f.amount("CpuRealtimePeriod")?,
        cpu_realtime_runtime_us: f.take::<i64>("CpuRealtimeRuntime")?.filter(|n| *n != 0),
        cpuset_cpus: f.text("CpusetCpus")?,
        cpuset_mems: f.text("CpusetMems")?,
        pids: f.take::<i64>("PidsLimit")?.filter(|n| *n != 0),
        blkio_weight: f.take::<u16>("BlkioWeight")?.filter(|n| *n != 0),
        blkio_devices: read_blkio(f)?,
    };
    // Obsolete since Linux 5.4, and without effect in docker since API 1.42.
    f.ignore(&["KernelMemory"]);
    Ok(resources)
}

/// Limits of the kind `--device-read-bps` and their members.
pub(crate) const BLKIO_DEVICES: [(&str, &str); 5] = [
    ("BlkioWeightDevice", "Weight"),
    ("BlkioDeviceReadBps", "Rate"),
    ("BlkioDeviceWriteBps", "Rate"),
    ("BlkioDeviceReadIOps", "Rate"),
    ("BlkioDeviceWriteIOps", "Rate"),
];

fn read_blkio(f: &mut Fields) -> ApiResult<BTreeMap<String, Vec<String>>> {
    let mut limits = BTreeMap::new();
    for (name, amount) in BLKIO_DEVICES {
        let devices = f
            .objects(name)?
            .into_iter()
            .map(|mut f| {
                let device = format!("{}:{}", f.get::<String>("Path")?, f.get::<u64>(amount)?);
                f.finish()?;
                Ok(device)
            })
            .collect::<ApiResult<Vec<_>>>()?;
        if !devices.is_empty() {
            limits.insert(name.to_owned(), devices);
        }
    }
    Ok(limits)
}

/// How far down a bind mount is read-only; inside, why that cannot be.
pub(super) fn read_only_depth(bind: &mut Fields) -> ApiResult<Result<ReadOnlyDepth, &'static str>> {
    let said = (
        bind.get("ReadOnlyNonRecursive")?,
        bind.get("ReadOnlyForceRecursive")?,
    );
    Ok(match said {
        (false, false) => Ok(ReadOnlyDepth::AsPossible),
        (true, false) => Ok(ReadOnlyDepth::Itself),
        (false, true) => Ok(ReadOnlyDepth::All),
        (true, true) => {
            Err("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
        }
    })
}

fn read_mount(mut f: Fields) -> ApiResult<MountSpec> {
    let source = f.text("Source")?;
    let said = f.text("Type")?.unwrap_or_default();
    // In docker's words (moby `volume/mounts/validate.go`).
    let refused =
        |why: &str| ApiError::invalid(format!("invalid mount config for type \"{said}\": {why}"));
    let target = f
        .text("Target")?
        .ok_or_else(|| refused("field Target must not be empty"))?;
    let mut bind = f.object_or_empty("BindOptions")?;
    let mut volume = f.object_or_empty("VolumeOptions")?;
    let mut tmpfs = f.object_or_empty("TmpfsOptions")?;
    let mut image = f.object_or_empty("ImageOptions")?;
    let kind = match said.as_str() {
        "bind" => MountKind::Bind {
            source: source.ok_or_else(|| refused("field Source must not be empty"))?,
            propagation: bind.word("Propagation", &PROPAGATIONS)?,
            non_recursive: bind.get("NonRecursive")?,
            create_source: bind.get("CreateMountpoint")?,
            read_only_depth: read_only_depth(&mut bind)?.map_err(refused)?,
        },
        "volume" => {
            let mut driver = volume.object_or_empty("DriverConfig")?;
            let kind = MountKind::Volume {
                name: source,
                no_copy: volume.get("NoCopy")?,
                labels: volume.get("Labels")?,
                driver: driver.text("Name")?,
                driver_opts: driver.get("Options")?,
                subpath: volume.text("Subpath")?,
            };
            driver.finish()?;
            kind
        }
        "image" => MountKind::Image {
            source: source.ok_or_else(|| refused("field Source must not be empty"))?,
            subpath: image.text("Subpath")?,
        },
        "tmpfs" if source.is_some() => return Err(refused("field Source must not be specified")),
        "tmpfs" => MountKind::Tmpfs {
            size: tmpfs.amount("SizeBytes")?,
            mode: tmpfs.take::<u32>("Mode")?.filter(|mode| *mode != 0),
        },
        _ => return Err(refused("mount type unknown")),
    };
    let mount = MountSpec {
        target,
        read_only: f.get("ReadOnly")?,
        kind,
    };
    // A hint of Docker Desktop.
    f.ignore(&["Consistency"]);
    for rest in [bind, volume, tmpfs, image, f] {
        rest.finish()?;
    }
    Ok(mount)
}

const PROPAGATIONS: [(&str, Propagation); 6] = [
    ("rprivate", Propagation::Rprivate),
    ("private", Propagation::Private),
    ("rshared", Propagation::Rshared),
    ("shared", Propagation::Shared),
    ("rslave", Propagation::Rslave),
    ("slave", Propagation::Slave),
];

/// Ports as docker's `ExposedPorts` and `Volumes` write sets.
pub(crate) fn set<T: ToString>(items: &BTreeSet<T>) -> Value {
    Value::Object(
        items
            .iter()
            .map(|item| (item.to_string(), Value::Object(Map::new())))
            .collect(),
    )
}
