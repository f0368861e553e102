//! What the API needs from the container engine of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use shoal_api::{
    Timestamp,
    build::{BuildOptions, CommitOptions, ImportOptions, SearchResult},
    container::{
        ChangeKind, ContainerFilter, ContainerId, ContainerInspect, ContainerSpec, ContainerStatus,
        ContainerSummary, EndpointSpec, Event, ExecInspect, ExecSpec, LogLine, LogQuery, PathStat,
        ProcessList, Resources, RestartPolicy, Stats, Volume, VolumeSpec,
    },
    image::{
        Distribution, ImageHistory, ImageInspect, ImageRemoved, ImageSummary, Platform,
        RegistryAuth,
    },
    spec::IpamConfig,
};

use super::{ApiError, ApiResult, Attached, ByteStream, ItemStream, Progress};
use crate::filters::has_label;

/// A container was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedContainer {
    /// Its identity.
    pub id: ContainerId,
    /// What the user should know, in docker's words.
    pub warnings: Vec<String>,
}

/// What `POST /containers/{id}/wait` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// It does not run; already true of a container that never started.
    #[default]
    NotRunning,
    /// It ends after now.
    NextExit,
    /// It is gone.
    Removed,
}

/// How a waited-for container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitResult {
    /// Exit code.
    pub exit_code: i32,
    /// Why the wait itself went wrong; empty if it did not.
    pub error: String,
}

/// Which streams a client attaches to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// Feed standard input.
    pub stdin: bool,
    /// Receive standard output.
    pub stdout: bool,
    /// Receive standard error.
    pub stderr: bool,
    /// First what was written so far.
    pub logs: bool,
    /// Then what is written from now on.
    pub stream: bool,
    /// Keys that detach, docker's grammar; `None` is `ctrl-p,ctrl-q`.
    pub detach_keys: Option<String>,
}

/// What `docker update` changes; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerUpdate {
    /// Limits; absent members stay as they are.
    pub resources: Resources,
    /// Restart policy.
    pub restart: Option<RestartPolicy>,
}

/// How to unpack an archive into a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Refuse to replace a directory by something else, and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Everything becomes the container's user's.
    pub copy_uid_gid: bool,
}

/// Which unused things a prune may take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneFilter {
    /// Images: also those with a name. Volumes: also those that the user named.
    pub all: bool,
    /// Builds: what may be left of what only they need.
    pub keep_bytes: u64,
    /// Only what was made before.
    pub until: Option<Timestamp>,
    /// `key` or `key=value`, all of which it must have.
    pub label: Vec<String>,
    /// `key` or `key=value`, none of which it may have.
    pub label_not: Vec<String>,
}

impl PruneFilter {
    /// Whether the filter takes a thing of this age with these labels.
    pub fn takes(&self, created: Timestamp, labels: &BTreeMap<String, String>) -> bool {
        self.until.is_none_or(|until| created < until)
            && self.label.iter().all(|wanted| has_label(labels, wanted))
            && !self.label_not.iter().any(|label| has_label(labels, label))
    }
}

/// What a prune took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids or names.
    pub deleted: Vec<String>,
    /// Bytes given back.
    pub space_reclaimed: u64,
}

/// What an image prune took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedImages {
    /// Names and images that are gone, in order.
    pub removed: Vec<ImageRemoved>,
    /// Bytes given back.
    pub space_reclaimed: u64,
}

/// Driver option that shows the VXLAN identifiers of an overlay.
pub const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// A network of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Identity, 64 hexadecimal digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// `bridge`, `host`, `null`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it has no way out.
    pub internal: bool,
    /// Whether it has IPv6.
    pub ipv6: bool,
    /// Whether it has no IPv4.
    pub without_ipv4: bool,
    /// Subnets in force.
    pub ipam: Vec<IpamConfig>,
    /// Whether plain containers may join it, of a network of the cluster.
    pub attachable: bool,
    /// Whether it is the cluster's ingress network.
    pub ingress: bool,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses that no container is given, by what the user calls them.
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Whether it is but a configuration for others.
    pub config_only: bool,
    /// The network whose configuration it has.
    pub config_from: Option<String>,
    /// Running containers in it, by id.
    pub containers: BTreeMap<String, NetworkMember>,
}

/// A container's place in a local network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkMember {
    /// Name of the container.
    pub name: String,
    /// Identity of the endpoint.
    pub endpoint_id: String,
    /// Hardware address.
    pub mac_address: String,
    /// Address with the prefix of the subnet.
    pub ipv4: Option<IpNet>,
    /// Address with the prefix of the subnet.
    pub ipv6: Option<IpNet>,
}

/// What `network create` can say of a network of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalNetworkSpec {
    /// Name.
    pub name: String,
    /// Driver, `bridge` if the user did not say.
    pub driver: String,
    /// Whether it has no way out.
    pub internal: bool,
    /// Whether it has IPv6.
    pub ipv6: bool,
    /// Whether it has no IPv4.
    pub without_ipv4: bool,
    /// Subnets asked for; empty lets the engine choose.
    pub ipam: Vec<IpamConfig>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses that no container is to be given, by what the user calls them.
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Whether it is to be but a configuration for others.
    pub config_only: bool,
    /// The network whose configuration it is to have.
    pub config_from: Option<String>,
}

/// Program versions, for `docker version`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineVersion {
    /// Version of Shoal.
    pub version: String,
    /// Commit it was built of.
    pub git_commit: String,
    /// When it was built, RFC 3339; may be empty.
    pub build_time: String,
    /// Release of the kernel.
    pub kernel_version: String,
    /// Go's name of the operating system: `linux`.
    pub os: String,
    /// Go's name of the processor: `amd64`, `arm64`.
    pub arch: String,
}

/// The state of the engine, for `docker info`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineInfo {
    /// Identity of this installation.
    pub id: String,
    /// Hostname.
    pub name: String,
    /// Version of Shoal.
    pub version: String,
    /// Containers that run.
    pub containers_running: u64,
    /// Containers that are paused.
    pub containers_paused: u64,
    /// Containers that do not run.
    pub containers_stopped: u64,
    /// Number of images.
    pub images: u64,
    /// Storage driver: `overlay2`.
    pub storage_driver: String,
    /// Lines of `docker info` below the storage driver.
    pub storage_status: Vec<(String, String)>,
    /// `/var/lib/shoal`.
    pub root_dir: PathBuf,
    /// Release of the kernel.
    pub kernel_version: String,
    /// `Debian GNU/Linux 13 (trixie)`.
    pub operating_system: String,
    /// Version of that.
    pub os_version: String,
    /// The kernel's name of the processor: `x86_64`.
    pub architecture: String,
    /// Processors.
    pub cpus: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `name=seccomp,profile=builtin`, …
    pub security_options: Vec<String>,
    /// Names of log drivers.
    pub log_drivers: Vec<String>,
    /// Names of network drivers.
    pub network_drivers: Vec<String>,
    /// Labels of the engine's configuration.
    pub labels: Vec<String>,
    /// Registries spoken to without TLS: names and prefixes.
    pub insecure_registries: BTreeSet<String>,
    /// Registries that are asked before Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// Log driver of containers that name none.
    pub default_log_driver: String,
    /// Limits that this kernel can set.
    pub limits: KernelLimits,
    /// Whether this host forwards packets.
    pub ipv4_forwarding: bool,
    /// Files that the daemon has open.
    pub open_files: u64,
    /// What the daemon does side by side; docker's word for it is goroutines.
    pub tasks: u64,
    /// Those who listen to events.
    pub event_listeners: u64,
    /// Proxy for HTTP, if any.
    pub http_proxy: String,
    /// Proxy for HTTPS, if any.
    pub https_proxy: String,
    /// Hosts reached without a proxy.
    pub no_proxy: String,
    /// Whether debug logs are on.
    pub debug: bool,
    /// Where specifications of devices are (CDI).
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Names of the devices that are specified there.
    pub cdi_devices: Vec<String>,
    /// What the user should know of this host.
    pub warnings: Vec<String>,
    /// Address with which the host reaches the world, for the default of `swarm init`.
    pub default_address: Option<IpAddr>,
}

/// Limits that this kernel can set on containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelLimits {
    /// Memory.
    pub memory: bool,
    /// Memory and swap together.
    pub swap: bool,
    /// Time of processors per period.
    pub cpu_quota: bool,
    /// Weight among others.
    pub cpu_shares: bool,
    /// Which processors.
    pub cpuset: bool,
    /// Number of processes.
    pub pids: bool,
    /// Leaving a container alone that is out of memory.
    pub oom_kill_disable: bool,
}

impl KernelLimits {
    /// What is missing, in docker's words (moby `daemon/info_unix.go`).
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let wanted = [
            (self.memory, "memory limit"),
            (self.swap, "swap limit"),
            (self.cpu_quota, "cpu cfs quota"),
            (self.cpu_quota, "cpu cfs period"),
            (self.cpu_shares, "cpu shares"),
            (self.cpuset, "cpuset"),
        ];
        wanted
            .into_iter()
            .filter(|(there, _)| !there)
            .map(|(_, what)| format!("WARNING: No {what} support"))
    }
}

/// What uses the disk, for `docker system df`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// Bytes of all layers, each counted once.
    pub layers_bytes: u64,
    /// All images.
    pub images: Vec<ImageSummary>,
    /// All containers with `size_rw`.
    pub containers: Vec<ContainerSummary>,
    /// Volumes with their bytes and the number of containers that use them.
    pub volumes: Vec<(Volume, u64, u64)>,
}

/// The engine of this host: containers, images, volumes, its own networks.
///
/// Wherever a container, image, volume or network is named, its id, a unique prefix of it, or its name will do.
/// Methods with a default body are parts of the API that an engine may lack; they answer 501.
#[async_trait]
pub trait EngineBackend: Send + Sync + 'static {
    /// Makes a container. A missing image is a 404 `No such image: …`, which makes the client pull it.
    async fn container_create(
        &self,
        spec: ContainerSpec,
        platform: Option<Platform>,
    ) -> ApiResult<CreatedContainer>;
    /// Lists containers, newest first.
    async fn container_list(&self, filter: ContainerFilter) -> ApiResult<Vec<ContainerSummary>>;
    /// All about one container; `size` asks for the bytes it uses.
    async fn container_inspect(&self, name: &str, size: bool) -> ApiResult<ContainerInspect>;
    /// Starts it; [`ApiError::not_modified`] when it runs already.
    async fn container_start(&self, name: &str) -> ApiResult<()>;
    /// Stops it: signal, grace, kill. `None` is what its spec says; [`Duration::MAX`] never kills.
    async fn container_stop(
        &self,
        name: &str,
        signal: Option<String>,
        grace: Option<Duration>,
    ) -> ApiResult<()>;
    /// Stops and starts it.
    async fn container_restart(
        &self,
        name: &str,
        signal: Option<String>,
        grace: Option<Duration>,
    ) -> ApiResult<()>;
    /// Sends a signal, by name or number; `None` is SIGKILL.
    async fn container_kill(&self, name: &str, signal: Option<String>) -> ApiResult<()>;
    /// Removes it; `force` kills it first, `volumes` takes its anonymous volumes too.
    async fn container_remove(&self, name: &str, force: bool, volumes: bool) -> ApiResult<()>;
    /// Removes the link by which `parent` calls another container `alias`.
    async fn container_unlink(&self, parent: &str, alias: &str) -> ApiResult<()>;
    /// Begins to wait. Once this has answered no end is missed; the inner future answers when the condition holds.
    async fn container_wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> ApiResult<BoxFuture<'static, ApiResult<WaitResult>>>;
    /// Gives it another name.
    async fn container_rename(&self, name: &str, new_name: &str) -> ApiResult<()>;
    /// Freezes it.
    async fn container_pause(&self, name: &str) -> ApiResult<()>;
    /// Thaws it.
    async fn container_unpause(&self, name: &str) -> ApiResult<()>;
    /// Its processes, as `ps` with these arguments (`-ef` if empty) shows them.
    async fn container_top(&self, name: &str, ps_args: &str) -> ApiResult<ProcessList>;
    /// Its use of resources now.
    async fn container_stats(&self, name: &str) -> ApiResult<Stats>;
    /// Its output so far and, with `follow`, from now on.
    async fn container_logs(&self, name: &str, query: LogQuery) -> ApiResult<ItemStream<LogLine>>;
    /// Attaches to its standard streams.
    async fn container_attach(&self, name: &str, options: AttachOptions) -> ApiResult<Attached>;
    /// Sets the size of its terminal.
    async fn container_resize(&self, name: &str, rows: u16, columns: u16) -> ApiResult<()>;
    /// Removes containers that do not run.
    async fn container_prune(&self, filter: PruneFilter) -> ApiResult<Pruned> {
        let stopped = ContainerFilter {
            all: true,
            size: true,
            label: filter.label.clone(),
            status: vec![
                ContainerStatus::Created,
                ContainerStatus::Exited,
                ContainerStatus::Dead,
            ],
            ..ContainerFilter::default()
        };
        let mut pruned = Pruned::default();
        for container in self.container_list(stopped).await? {
            let id = container.id.as_str();
            // One that was started meanwhile refuses, and stays.
            if filter.takes(container.created, &container.labels)
                && self.container_remove(id, false, false).await.is_ok()
            {
                pruned.deleted.push(id.to_owned());
                pruned.space_reclaimed += container.size_rw.unwrap_or(0);
            }
        }
        Ok(pruned)
    }
    /// Changes limits; answers warnings.
    async fn container_update(
        &self,
        _name: &str,
        _update: ContainerUpdate,
    ) -> ApiResult<Vec<String>> {
        Err(ApiError::not_implemented("updating a container's limits"))
    }
    /// What is at a path of it.
    async fn container_path_stat(&self, _name: &str, _path: &str) -> ApiResult<PathStat> {
        Err(ApiError::not_implemented("copying files"))
    }
    /// What is at a path of it, and that as tar, named by the last part of the path.
    async fn container_archive(
        &self,
        _name: &str,
        _path: &str,
    ) -> ApiResult<(PathStat, ByteStream)> {
        Err(ApiError::not_implemented("copying files"))
    }
    /// Unpacks a tar into one of its directories.
    async fn container_extract(
        &self,
        _name: &str,
        _path: &str,
        _options: ExtractOptions,
        _archive: ByteStream,
    ) -> ApiResult<()> {
        Err(ApiError::not_implemented("copying files"))
    }
    /// Its whole file system as tar.
    async fn container_export(&self, _name: &str) -> ApiResult<ByteStream> {
        Err(ApiError::not_implemented("exporting a container"))
    }
    /// Paths that differ from the image.
    async fn container_changes(&self, _name: &str) -> ApiResult<Vec<(PathBuf, ChangeKind)>> {
        Err(ApiError::not_implemented("listing a container's changes"))
    }

    /// Makes an exec; answers its id.
    async fn exec_create(&self, container: &str, spec: ExecSpec) -> ApiResult<String>;
    /// Starts it with its streams attached.
    async fn exec_attach(&self, id: &str) -> ApiResult<Attached>;
    /// Starts it and lets it run.
    async fn exec_start(&self, id: &str) -> ApiResult<()>;
    /// What is known of it.
    async fn exec_inspect(&self, id: &str) -> ApiResult<ExecInspect>;
    /// Sets the size of its terminal.
    async fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> ApiResult<()>;

    /// All images with a name, and with `all` the others too.
    async fn image_list(&self, all: bool) -> ApiResult<Vec<ImageSummary>>;
    /// All about one image.
    async fn image_inspect(&self, name: &str) -> ApiResult<ImageInspect>;
    /// How it was made, newest first.
    async fn image_history(&self, name: &str) -> ApiResult<Vec<ImageHistory>>;
    /// Removes a name, and the image with its last name.
    async fn image_remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> ApiResult<Vec<ImageRemoved>>;
    /// Gives an image another name.
    async fn image_tag(&self, name: &str, target: &str) -> ApiResult<()>;
    /// Pulls `name[:tag|@digest]`. An error before the first item becomes the answer's status.
    async fn image_pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        platform: Option<Platform>,
    ) -> ApiResult<ItemStream<Progress>>;
    /// Pushes `name[:tag]`.
    async fn image_push(
        &self,
        _reference: &str,
        _auth: Option<RegistryAuth>,
    ) -> ApiResult<ItemStream<Progress>> {
        Err(ApiError::not_implemented("pushing an image"))
    }
    /// Loads a `docker save` or OCI archive, compressed or not.
    async fn image_load(&self, archive: ByteStream) -> ApiResult<ItemStream<Progress>>;
    /// Writes images as one `docker save` archive.
    async fn image_save(&self, _names: Vec<String>) -> ApiResult<ByteStream> {
        Err(ApiError::not_implemented("saving images"))
    }
    /// Builds an image of a context: a tar archive, packed or not. An error before the first item becomes the answer's
    /// status.
    async fn image_build(
        &self,
        _options: BuildOptions,
        _context: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        Err(ApiError::not_implemented("building images"))
    }
    /// Forgets what builds left behind and nothing needs.
    async fn build_prune(&self, _filter: PruneFilter) -> ApiResult<Pruned> {
        Ok(Pruned::default())
    }
    /// Makes an image of a container; answers its id.
    async fn image_commit(&self, _container: &str, _options: CommitOptions) -> ApiResult<String> {
        Err(ApiError::not_implemented(
            "making an image of a container (commit)",
        ))
    }
    /// Makes an image of a file system's archive.
    async fn image_import(
        &self,
        _options: ImportOptions,
        _archive: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        Err(ApiError::not_implemented(
            "importing an image from a tar archive",
        ))
    }
    /// Asks a registry which repositories fit a term.
    async fn image_search(
        &self,
        _term: &str,
        _limit: u32,
        _auth: Option<RegistryAuth>,
    ) -> ApiResult<Vec<SearchResult>> {
        Err(ApiError::not_implemented("searching a registry"))
    }
    /// Removes images that no container uses.
    async fn image_prune(&self, filter: PruneFilter) -> ApiResult<PrunedImages>;
    /// Asks the registry what a name stands for.
    async fn distribution_inspect(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> ApiResult<Distribution>;
    /// Tries credentials against their registry.
    async fn registry_login(&self, _auth: RegistryAuth) -> ApiResult<()> {
        Err(ApiError::not_implemented("checking registry credentials"))
    }

    /// Makes a volume, or answers the one of that name.
    async fn volume_create(&self, spec: VolumeSpec) -> ApiResult<Volume>;
    /// All volumes.
    async fn volume_list(&self) -> ApiResult<Vec<Volume>>;
    /// One volume.
    async fn volume_inspect(&self, name: &str) -> ApiResult<Volume>;
    /// Removes it; `force` does not mind if it is not there.
    async fn volume_remove(&self, name: &str, force: bool) -> ApiResult<()>;
    /// Removes volumes that no container uses.
    async fn volume_prune(&self, filter: PruneFilter) -> ApiResult<Pruned> {
        let mut pruned = Pruned::default();
        for (volume, bytes, users) in self.disk_usage().await?.volumes {
            let wanted = users == 0
                && (filter.all || volume.anonymous)
                && filter.takes(volume.created, &volume.labels);
            if wanted && self.volume_remove(&volume.name, false).await.is_ok() {
                pruned.deleted.push(volume.name);
                pruned.space_reclaimed += bytes;
            }
        }
        Ok(pruned)
    }

    /// The networks of this host.
    async fn network_list(&self) -> ApiResult<Vec<LocalNetwork>>;
    /// Makes one; answers its id.
    async fn network_create(&self, _spec: LocalNetworkSpec) -> ApiResult<String> {
        Err(ApiError::not_implemented("creating a network of one host"))
    }
    /// Removes one.
    async fn network_remove(&self, _name: &str) -> ApiResult<()> {
        Err(ApiError::not_implemented("removing a network of one host"))
    }
    /// Attaches a container.
    async fn network_connect(
        &self,
        _network: &str,
        _container: &str,
        _endpoint: EndpointSpec,
    ) -> ApiResult<()> {
        Err(ApiError::not_implemented(
            "connecting a container to a network",
        ))
    }
    /// Detaches a container.
    async fn network_disconnect(
        &self,
        _network: &str,
        _container: &str,
        _force: bool,
    ) -> ApiResult<()> {
        Err(ApiError::not_implemented(
            "disconnecting a container from a network",
        ))
    }
    /// Removes networks that no container uses.
    async fn network_prune(&self, _filter: PruneFilter) -> ApiResult<Pruned> {
        Ok(Pruned::default())
    }

    /// Versions.
    async fn version(&self) -> ApiResult<EngineVersion>;
    /// State of the engine.
    async fn info(&self) -> ApiResult<EngineInfo>;
    /// What happened since `since` and, unless `until` is over, what happens from now on; ends at `until`.
    async fn events(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ApiResult<ItemStream<Event>>;
    /// What uses the disk.
    async fn disk_usage(&self) -> ApiResult<DiskUsage>;
}
