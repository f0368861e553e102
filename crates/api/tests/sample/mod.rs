//! Arbitrary values of all domain types, from a seed: every field of every type gets values.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use shoal_api::{
    Actor, ClusterId, ConfigId, NetworkId, NodeId, ObjectId, SecretId, ServiceId, TaskId,
    TaskState, Timestamp, Words, network::*, object::*, spec::*, table::Table, tunnel::*,
};

/// SplitMix64.
pub(crate) struct Generator(u64);

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("less than a usize")
    }
}

pub(crate) trait Sample {
    fn sample(g: &mut Generator) -> Self;
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(impl Sample for $kind {
        fn sample(g: &mut Generator) -> Self {
            // Small, zero and extreme numbers take different shapes on the wire.
            match g.below(4) { 0 => 0, 1 => Self::MAX, 2 => (g.next() % 100) as Self, _ => g.next() as Self }
        }
    })*};
}
numbers!(u8, u16, u32, u64, u128, i64);

macro_rules! ids {
    ($($kind:ty),*) => {$(impl Sample for $kind {
        fn sample(g: &mut Generator) -> Self {
            Self::from_bits((u128::from(g.next()) << 64) | u128::from(g.next()))
        }
    })*};
}
ids!(
    ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId
);

macro_rules! structs {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(impl Sample for $name {
        fn sample(g: &mut Generator) -> Self {
            Self { $($field: Sample::sample(g)),* }
        }
    })*};
}

macro_rules! enums {
    ($($name:ident { $($variant:expr),* $(,)? })*) => {$(impl Sample for $name {
        fn sample(g: &mut Generator) -> Self {
            let variants: &[fn(&mut Generator) -> Self] = &[$($variant),*];
            variants[g.below(variants.len())](g)
        }
    })*};
}

enums! {
    bool { |_| false, |_| true }
    String { |_| Self::new(), |_| "web".to_owned(), |_| "naïve ☃\n\"\\".to_owned(), |g| g.next().to_string() }
    IpAddr {
        |g| Ipv4Addr::from_bits(u32::sample(g)).into(),
        |g| Ipv6Addr::from_bits((u128::from(g.next()) << 64) | 1).into(),
    }
    Actor {
        |_| Self::User, |_| Self::Orchestrator, |_| Self::Allocator, |_| Self::Scheduler, |_| Self::Agent,
        |_| Self::Dispatcher, |_| Self::Reaper,
    }
    TaskState { |g| Self::ALL[g.below(Self::ALL.len())] }
    Affinity { |_| Self::None, |_| Self::Source }
    Availability { |_| Self::Active, |_| Self::Pause, |_| Self::Drain }
    DependencyCondition { |_| Self::Started, |_| Self::Healthy, |_| Self::CompletedSuccessfully }
    EndpointMode { |_| Self::Vip, |_| Self::Dnsrr }
    FailureAction { |_| Self::Pause, |_| Self::Continue, |_| Self::Rollback }
    MountKind { |_| Self::Bind, |_| Self::Volume, |_| Self::Tmpfs }
    NodeRole { |_| Self::Worker, |_| Self::Manager }
    NodeState { |_| Self::Unknown, |_| Self::Down, |_| Self::Ready, |_| Self::Disconnected }
    Protocol { |_| Self::Tcp, |_| Self::Udp, |_| Self::Sctp }
    PublishMode { |_| Self::Ingress, |_| Self::Host }
    PullPolicy { |_| Self::Auto, |_| Self::Always, |_| Self::Missing, |_| Self::Never }
    ReadOnlyDepth { |_| Self::AsPossible, |_| Self::Itself, |_| Self::All }
    RestartCondition { |_| Self::None, |_| Self::OnFailure, |_| Self::Any }
    UpdateOrder { |_| Self::StopFirst, |_| Self::StartFirst }
    UpdateState {
        |_| Self::Updating, |_| Self::Paused, |_| Self::Completed, |_| Self::RollbackStarted,
        |_| Self::RollbackPaused, |_| Self::RollbackCompleted,
    }
    ServiceMode {
        |g| Self::Replicated { replicas: Sample::sample(g) },
        |_| Self::Global,
        |g| Self::ReplicatedJob { max_concurrent: Sample::sample(g), total_completions: Sample::sample(g) },
        |_| Self::GlobalJob,
    }
    GenericResource { |g| Self::Discrete(Sample::sample(g)), |g| Self::Named(Sample::sample(g)) }
    NetworkTarget { |g| Self::Cluster(Sample::sample(g)), |g| Self::Node(Sample::sample(g)) }
    Object {
        |g| Self::Node(Sample::sample(g)), |g| Self::Service(Sample::sample(g)), |g| Self::Task(Sample::sample(g)),
        |g| Self::Network(Sample::sample(g)), |g| Self::Secret(Sample::sample(g)),
        |g| Self::Config(Sample::sample(g)), |g| Self::Cluster(Sample::sample(g)),
    }
    ObjectKey {
        |g| Self::Node(Sample::sample(g)), |g| Self::Service(Sample::sample(g)), |g| Self::Task(Sample::sample(g)),
        |g| Self::Network(Sample::sample(g)), |g| Self::Secret(Sample::sample(g)),
        |g| Self::Config(Sample::sample(g)), |_| Self::Cluster,
    }
    Expect { |_| Self::Absent, |g| Self::Version(Sample::sample(g)) }
    Change {
        |g| Self::Put { object: Box::new(Sample::sample(g)), expect: Sample::sample(g) },
        |g| Self::Delete { key: Sample::sample(g), expect: Sample::sample(g) },
    }
}

structs! {
    Annotations { name, labels }
    ServiceSpec {
        annotations, task, mode, update, rollback, endpoint, progress_deadline, depends_on, depends_on_timeout,
    }
    TaskSpec { container, resources, restart, placement, networks, log_driver, force_update, attached_container }
    ContainerTaskSpec {
        image, labels, command, args, hostname, env, dir, user, groups, tty, open_stdin, read_only, init, mounts,
        stop_signal, stop_grace_period, healthcheck, hosts, dns, secrets, configs, sysctls, cap_add, cap_drop,
        ulimits, oom_score_adj, pull_auth, host,
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
    Meta { version, created_at, updated_at }
    Node { id, meta, spec, description, status, role, manager, availability_since }
    NodeDescription {
        hostname, platform, resources, engine_version, engine_labels, plugins, data_path_addr, certificate_issuer,
        volumes, tunnel_keys,
    }
    NodeStatus { state, message, addr, since }
    ManagerInfo { raft_id, addr }
    Service {
        id, meta, spec, spec_version, previous_spec, previous_spec_version, endpoint, update_status, job, revision, history,
    }
    Revision { number, spec, spec_version, replaced_at }
    ServiceEndpoint { spec, ports, virtual_ips }
    VirtualIp { network, addr }
    UpdateStatus { state, started_at, completed_at, message }
    JobStatus { iteration, last_execution }
    Task {
        id, meta, service, slot, node, spec_version, spec, service_name, desired_state, status, networks, ports,
        attempts, start_after, job_iteration, drained, service_labels, assigned,
    }
    TaskStatus { state, at, message, err, container, host_ports, running_since }
    ContainerStatus { container_id, pid, exit_code }
    TaskAttachment { network, addresses, aliases }
    Network { id, meta, spec, allocated }
    NetworkAllocation { vni, subnets }
    Secret { id, meta, spec }
    Config { id, meta, spec }
    Cluster {
        id, meta, spec, root_ca_cert, root_ca_key, worker_token, manager_token, blacklisted, last_raft_id,
        unlock_key, root_rotation, departed,
    }
    RootRotation { ca_cert, ca_key, cross_signed }
    Batch { actor, at, changes, wish }
    Wish { id, about, since }
    Granted { index, id, about }
    Wishes { forgotten, granted }
    NetworkView { version, data_path_port, peers, networks }
    Peer { underlay, hostname, tunnel_keys }
    TunnelKey { public, port }
    NetworkSlice {
        name, ingress, internal, encrypted, vni, mtu, subnets, attachable, labels, options, ip_ranges, endpoints,
        services,
    }
    Subnet { range, gateway }
    Endpoint { node, service, addresses, names, serving }
    ServiceSlice { name, vips, aliases, ports, named_ports, affinity }
    NamedPort { name, protocol, target }
    IngressPort { protocol, published, target, proxy_protocol, local, host_ip }
}

impl Sample for f32 {
    fn sample(g: &mut Generator) -> Self {
        (g.next() % 100) as Self / 100.0
    }
}

impl Sample for PublicKey {
    fn sample(g: &mut Generator) -> Self {
        Self(std::array::from_fn(|_| g.next() as u8))
    }
}

impl Sample for IpNet {
    fn sample(g: &mut Generator) -> Self {
        let addr = IpAddr::sample(g);
        let bits = g.below(if addr.is_ipv4() { 33 } else { 129 });
        Self::new(addr, u8::try_from(bits).expect("at most 128")).expect("a length that fits")
    }
}

impl Sample for Timestamp {
    fn sample(g: &mut Generator) -> Self {
        Self(Sample::sample(g))
    }
}

impl Sample for Duration {
    fn sample(g: &mut Generator) -> Self {
        Self::from_nanos(g.next() >> 1)
    }
}

impl<T: Sample> Sample for Box<[T]> {
    fn sample(g: &mut Generator) -> Self {
        Vec::sample(g).into()
    }
}

impl Sample for SharedLabels {
    fn sample(g: &mut Generator) -> Self {
        Labels::sample(g).into()
    }
}

impl Sample for Arc<str> {
    fn sample(g: &mut Generator) -> Self {
        String::sample(g).into()
    }
}

impl Sample for Words {
    fn sample(g: &mut Generator) -> Self {
        String::sample(g).into()
    }
}

impl<T: Sample> Sample for Box<T> {
    fn sample(g: &mut Generator) -> Self {
        Self::new(T::sample(g))
    }
}

impl<T: Sample> Sample for Arc<T> {
    fn sample(g: &mut Generator) -> Self {
        Self::new(T::sample(g))
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(g: &mut Generator) -> Self {
        bool::sample(g).then(|| T::sample(g))
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(g: &mut Generator) -> Self {
        (0..g.below(3)).map(|_| T::sample(g)).collect()
    }
}

impl<K: Sample + Ord, V: Sample> Sample for BTreeMap<K, V> {
    fn sample(g: &mut Generator) -> Self {
        (0..g.below(3))
            .map(|_| (K::sample(g), V::sample(g)))
            .collect()
    }
}

impl<K: Sample + Ord + Clone, V: Sample + Clone> Sample for Table<K, V> {
    fn sample(g: &mut Generator) -> Self {
        BTreeMap::sample(g).into_iter().collect()
    }
}

impl Sample for PullAuth {
    fn sample(g: &mut Generator) -> Self {
        Self(Sample::sample(g))
    }
}
