//! Specs and their parts.

use super::{DecodeError, Field, bridge, enums, messages, oneof};
use crate::{
    network::Subnet,
    spec::{
        Affinity, Annotations, Availability, ClusterSpec, ConfigReference, ConfigSpec,
        ContainerTaskSpec, Dependency, DependencyCondition, Device, DnsConfig, Driver,
        EndpointMode, EndpointSpec, FailureAction, FileTarget, FixedAddress, GenericResource,
        HealthConfig, HostOptions, IpamConfig, Mount, MountKind, NetworkAttachmentSpec,
        NetworkSpec, NetworkTarget, NodeRole, NodeSpec, Placement, Platform, PortConfig, Protocol,
        PublishMode, PullAuth, PullPolicy, ReadOnlyDepth, ResourceRequirements, Resources,
        RestartCondition, RestartPolicy, SecretReference, SecretSpec, ServiceMode, ServiceSpec,
        TaskSpec, Ulimit, UpdateConfig, UpdateOrder,
    },
    wire,
};

enums! {
    Affinity { None, Source }
    Availability { Active, Pause, Drain }
    DependencyCondition { Started, Healthy, CompletedSuccessfully }
    EndpointMode { Vip, Dnsrr }
    FailureAction { Pause, Continue, Rollback }
    MountKind { Bind, Volume, Tmpfs }
    NodeRole { Worker, Manager }
    Protocol { Tcp, Udp, Sctp }
    PublishMode { Ingress, Host }
    PullPolicy { Auto, Always, Missing, Never }
    ReadOnlyDepth { AsPossible, Itself, All }
    RestartCondition { None, OnFailure, Any }
    UpdateOrder { StopFirst, StartFirst }
}

messages! {
    Annotations { name, labels }
    ServiceSpec {
        annotations, task, mode, update, rollback, endpoint, progress_deadline, depends_on, depends_on_timeout,
    }
    TaskSpec { container, resources, restart, placement, networks, log_driver, force_update, attached_container }
    ContainerTaskSpec {
        image, labels, command, args, hostname, env, dir, user, groups, tty, open_stdin, read_only, init, mounts,
        stop_signal, stop_grace_period, healthcheck, hosts, dns, secrets, configs, sysctls, cap_add, cap_drop, ulimits,
        oom_score_adj, pull_auth, host,
    }
    HostOptions {
        privileged, devices, device_cgroup_rules, cdi_devices, security_opt, shm_size_bytes, ipc_mode, pid_mode, uts_mode,
        userns_mode, cgroupns_mode, cgroup_parent, domainname, pull_policy, cpuset_cpus, memory_swap_bytes,
        memory_swappiness, oom_kill_disable,
    }
    Device { host_path, container_path, permissions }
    Dependency { service, condition, required }
    Mount {
        kind, source, target, read_only, propagation, create_source, no_copy, subpath, labels, driver,
        tmpfs_size_bytes, tmpfs_mode, non_recursive, tmpfs_options, read_only_depth,
    }
    Driver { name, options }
    HealthConfig { test, interval, timeout, retries, start_period, start_interval }
    DnsConfig { nameservers, search, options }
    Ulimit { name, soft, hard }
    FileTarget { name, uid, gid, mode }
    SecretReference { id, name, target }
    ConfigReference { id, name, target }
    ResourceRequirements { limits, reservations }
    Resources { nano_cpus, memory_bytes, pids, generic }
    RestartPolicy { condition, delay, max_attempts, window, backoff }
    Placement { constraints, spread, max_replicas, platforms, stay_with_volumes }
    Platform { os, architecture }
    NetworkAttachmentSpec { target, aliases, addresses, driver_options }
    UpdateConfig { parallelism, delay, failure_action, monitor, max_failure_ratio, order }
    EndpointSpec { mode, ports, addresses, affinity }
    FixedAddress { network, address }
    PortConfig { name, protocol, target, published, mode, proxy_protocol, local, host_ip }
    NodeSpec { annotations, role, availability }
    NetworkSpec { annotations, driver, internal, attachable, ingress, ipv6, ipam }
    IpamConfig { subnet, ip_range, gateway }
    SecretSpec { annotations, data, templating }
    ConfigSpec { annotations, data, templating }
    ClusterSpec {
        annotations, task_history_limit, snapshot_interval, heartbeat_period, cert_expiry, default_address_pools,
        subnet_size, data_path_port, autolock, force_rotate,
    }
    Subnet { range, gateway }
}

oneof!(NetworkTarget in network_target { Cluster, Node });
oneof!(GenericResource in generic_resource { Discrete, Named });

impl Field<wire::generic_resource::Names> for Vec<String> {
    fn to_wire(&self) -> wire::generic_resource::Names {
        wire::generic_resource::Names {
            names: self.clone(),
        }
    }
    fn from_wire(wire: wire::generic_resource::Names) -> Result<Self, DecodeError> {
        Ok(wire.names)
    }
}

impl Field<wire::ServiceMode> for ServiceMode {
    fn to_wire(&self) -> wire::ServiceMode {
        use wire::service_mode::{Global, GlobalJob, Kind, Replicated, ReplicatedJob};
        let kind = match *self {
            Self::Replicated { replicas } => Kind::Replicated(Replicated { replicas }),
            Self::Global => Kind::Global(Global {}),
            Self::ReplicatedJob {
                max_concurrent,
                total_completions,
            } => Kind::ReplicatedJob(ReplicatedJob {
                max_concurrent,
                total_completions,
            }),
            Self::GlobalJob => Kind::GlobalJob(GlobalJob {}),
        };
        wire::ServiceMode { kind: Some(kind) }
    }

    fn from_wire(wire: wire::ServiceMode) -> Result<Self, DecodeError> {
        use wire::service_mode::{Kind, Replicated, ReplicatedJob};
        let kind = wire
            .kind
            .ok_or_else(|| DecodeError::missing().within("kind"))?;
        Ok(match kind {
            Kind::Replicated(Replicated { replicas }) => Self::Replicated { replicas },
            Kind::Global(_) => Self::Global,
            Kind::ReplicatedJob(ReplicatedJob {
                max_concurrent,
                total_completions,
            }) => Self::ReplicatedJob {
                max_concurrent,
                total_completions,
            },
            Kind::GlobalJob(_) => Self::GlobalJob,
        })
    }
}
bridge!(ServiceMode);

impl Field<String> for PullAuth {
    fn to_wire(&self) -> String {
        self.0.clone()
    }
    fn from_wire(wire: String) -> Result<Self, DecodeError> {
        Ok(Self(wire))
    }
}
