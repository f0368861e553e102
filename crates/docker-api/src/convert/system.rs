//! Versions, the state of the engine, events, the use of the disk.

use serde_json::{Map, Value, json};
use shoal_api::{
    Timestamp,
    container::{Event, EventKind},
    object::Cluster,
};

use super::{cluster, container_show, image, time::instant, volume};
use crate::{
    API_VERSION, API_VERSION_MIN,
    backend::{DiskUsage, EngineInfo, EngineVersion, LocalNodeState, SwarmInfo, TlsInfo},
};

/// The answer of `GET /version`.
pub(crate) fn version(version: &EngineVersion) -> Value {
    json!({
        "Platform": {"Name": "Shoal"},
        "Components": [{
            "Name": "Engine",
            "Version": version.version,
            "Details": {
                "ApiVersion": API_VERSION,
                "Arch": version.arch,
                "BuildTime": version.build_time,
                "Experimental": "false",
                "GitCommit": version.git_commit,
                "GoVersion": "none",
                "KernelVersion": version.kernel_version,
                "MinAPIVersion": API_VERSION_MIN,
                "Os": version.os,
            },
        }],
        "Version": version.version,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": API_VERSION_MIN,
        "GitCommit": version.git_commit,
        "GoVersion": "none",
        "Os": version.os,
        "Arch": version.arch,
        "KernelVersion": version.kernel_version,
        "BuildTime": version.build_time,
    })
}

/// What a manager adds to `GET /info`.
#[derive(Debug, Clone)]
pub(crate) struct ClusterSummary {
    pub(crate) nodes: usize,
    pub(crate) managers: usize,
    pub(crate) cluster: Cluster,
    pub(crate) tls: TlsInfo,
}

/// The answer of `GET /info`.
pub(crate) fn info(
    info: &EngineInfo,
    swarm: &SwarmInfo,
    summary: Option<&ClusterSummary>,
    now: Timestamp,
) -> Value {
    let mut warnings = info.warnings.clone();
    if let Some(summary) = summary
        && summary.managers == 2
    {
        warnings.push(
            "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n         no fault \
             tolerance, and poses a high risk to lose control over the cluster.\n         Refer to \
             https://docs.docker.com/engine/swarm/admin_guide/ to configure the\n         Swarm for fault-tolerance."
                .to_owned(),
        );
    }
    let total = info.containers_running + info.containers_paused + info.containers_stopped;
    let mut registries: Map<String, Value> = info
        .insecure_registries
        .iter()
        .map(|name| {
            let config = json!({"Name": name, "Mirrors": [], "Secure": false, "Official": false});
            (name.clone(), config)
        })
        .collect();
    registries.insert(
        "docker.io".to_owned(),
        json!({"Name": "docker.io", "Mirrors": info.registry_mirrors, "Secure": true, "Official": true}),
    );
    json!({
        "ID": info.id,
        "Containers": total,
        "ContainersRunning": info.containers_running,
        "ContainersPaused": info.containers_paused,
        "ContainersStopped": info.containers_stopped,
        "Images": info.images,
        "Driver": info.storage_driver,
        "DriverStatus": info.storage_status,
        "Plugins": {
            "Volume": ["local"],
            "Network": info.network_drivers,
            "Authorization": null,
            "Log": info.log_drivers,
        },
        "MemoryLimit": info.limits.memory,
        "SwapLimit": info.limits.swap,
        "CpuCfsPeriod": info.limits.cpu_quota,
        "CpuCfsQuota": info.limits.cpu_quota,
        "CPUShares": info.limits.cpu_shares,
        "CPUSet": info.limits.cpuset,
        "PidsLimit": info.limits.pids,
        "IPv4Forwarding": info.ipv4_forwarding,
        "BridgeNfIptables": false,
        "BridgeNfIp6tables": false,
        "Debug": info.debug,
        "NFd": info.open_files,
        "OomKillDisable": info.limits.oom_kill_disable,
        "NGoroutines": info.tasks,
        "SystemTime": instant(now),
        "LoggingDriver": info.default_log_driver,
        "CgroupDriver": info.cgroup_driver,
        "CgroupVersion": info.cgroup_version,
        "NEventsListener": info.event_listeners,
        "KernelVersion": info.kernel_version,
        "OperatingSystem": info.operating_system,
        "OSVersion": info.os_version,
        "OSType": "linux",
        "Architecture": info.architecture,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": registries,
            "Mirrors": if info.registry_mirrors.is_empty() { Value::Null } else { json!(info.registry_mirrors) },
        },
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "GenericResources": null,
        "DockerRootDir": info.root_dir,
        "HttpProxy": info.http_proxy,
        "HttpsProxy": info.https_proxy,
        "NoProxy": info.no_proxy,
        "Name": info.name,
        "Labels": info.labels,
        "ExperimentalBuild": false,
        "ServerVersion": info.version,
        "Runtimes": {"shoal": {"path": "shoal-shim"}},
        "DefaultRuntime": "shoal",
        "Swarm": swarm_block(swarm, summary),
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "shoal-init",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": info.security_options,
        "CDISpecDirs": info.cdi_spec_dirs,
        "DiscoveredDevices": info.cdi_devices.iter().map(|name| json!({
            "Source": "cdi", "ID": name,
        })).collect::<Vec<_>>(),
        "FirewallBackend": {"Driver": "nftables"},
        "Warnings": if warnings.is_empty() { Value::Null } else { json!(warnings) },
    })
}

fn swarm_block(swarm: &SwarmInfo, summary: Option<&ClusterSummary>) -> Value {
    let managers: Vec<Value> = swarm
        .remote_managers
        .iter()
        .map(|manager| {
            let id = manager.node_id.as_ref().map(|id| id.as_str());
            json!({"NodeID": id.unwrap_or_default(), "Addr": manager.addr})
        })
        .collect();
    let mut answer = json!({
        "NodeID": swarm.node_id.as_ref().map(|id| id.as_str()).unwrap_or_default(),
        "NodeAddr": swarm.node_addr.map(|addr| addr.to_string()).unwrap_or_default(),
        "LocalNodeState": swarm.state.as_str(),
        "ControlAvailable": swarm.control_available,
        "Error": swarm.error,
        "RemoteManagers": if managers.is_empty() { Value::Null } else { json!(managers) },
    });
    if let Some(summary) = summary {
        answer["Nodes"] = json!(summary.nodes);
        answer["Managers"] = json!(summary.managers);
        answer["Cluster"] = cluster::cluster_info(&summary.cluster, &summary.tls);
    }
    answer
}

/// The `Swarm` header of `/_ping`.
pub(crate) fn swarm_header(swarm: &SwarmInfo) -> &'static str {
    match (swarm.state, swarm.control_available) {
        (LocalNodeState::Inactive, _) => "inactive",
        (LocalNodeState::Locked, _) => "locked",
        (LocalNodeState::Pending, true) => "pending/manager",
        (LocalNodeState::Pending, false) => "pending/worker",
        (LocalNodeState::Active, true) => "active/manager",
        (LocalNodeState::Active, false) => "active/worker",
        (LocalNodeState::Error, _) => "error",
    }
}

/// Docker's word for the kind of thing an event is about.
pub(crate) fn event_kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Container => "container",
        EventKind::Image => "image",
        EventKind::Volume => "volume",
        EventKind::Network => "network",
        EventKind::Service => "service",
        EventKind::Node => "node",
        EventKind::Secret => "secret",
        EventKind::Config => "config",
        EventKind::Task => "task",
        EventKind::Daemon => "daemon",
    }
}

/// One event; `scope` is `local` or `swarm`.
pub(crate) fn event(event: &Event, scope: &str) -> Value {
    let mut answer = json!({
        "Type": event_kind(event.kind),
        "Action": event.action,
        "Actor": {"ID": event.actor.id, "Attributes": event.actor.attributes},
        "scope": scope,
        "time": event.time.seconds(),
        "timeNano": event.time.0,
    });
    // What clients before API 1.22 read.
    match event.kind {
        EventKind::Container => {
            answer["status"] = json!(event.action);
            answer["id"] = json!(event.actor.id);
            answer["from"] = json!(event.actor.attributes.get("image"));
        }
        EventKind::Image => {
            answer["status"] = json!(event.action);
            answer["id"] = json!(event.actor.id);
        }
        _ => {}
    }
    answer
}

/// The answer of `GET /system/df`.
pub(crate) fn disk_usage(usage: &DiskUsage, now: Timestamp) -> Value {
    let users = |image: &shoal_api::image::ImageSummary| {
        let id = image.id.to_string();
        usage.containers.iter().filter(|c| c.image_id == id).count()
    };
    let is_step = |row: &&shoal_api::image::ImageSummary| {
        row.intermediate && row.repo_tags.is_empty() && row.repo_digests.is_empty()
    };
    let images: Vec<Value> = usage
        .images
        .iter()
        .filter(|row| !is_step(row))
        .map(|row| {
            let mut shown = image::summary(row);
            shown["Containers"] = json!(users(row));
            shown["SharedSize"] = json!(0);
            shown
        })
        .collect();
    let containers: Vec<Value> = usage
        .containers
        .iter()
        .map(|row| container_show::summary(row, now))
        .collect();
    let volumes: Vec<Value> = usage
        .volumes
        .iter()
        .map(|(row, bytes, users)| {
            let mut shown = volume::volume(row);
            shown["UsageData"] = json!({"Size": bytes, "RefCount": users});
            shown
        })
        .collect();
    // Steps of builds: images without a name that others were built of, and whose layers those have, too.
    let cache: Vec<Value> = usage
        .images
        .iter()
        .filter(is_step)
        .map(|row| {
            json!({
                "ID": row.id.hex(),
                "Parents": row.parent.iter().map(|id| id.hex()).collect::<Vec<_>>(),
                "Type": "regular",
                "Description": "step of a build",
                "InUse": false,
                "Shared": true,
                "Size": row.size,
                "CreatedAt": instant(row.created),
                "LastUsedAt": null,
                "UsageCount": 1,
            })
        })
        .collect();
    json!({
        "LayersSize": usage.layers_bytes,
        "Images": images,
        "Containers": containers,
        "Volumes": volumes,
        "BuildCache": cache,
    })
}
