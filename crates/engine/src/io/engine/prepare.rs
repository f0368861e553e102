//! Everything that has to lie ready before a shim is asked for.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use shoal_api::container::{ContainerSpec, HostSpec, NetworkMode, Propagation};

use super::joined::Links;
use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::capabilities::CapabilitySet;
use crate::core::config::ConfigError;
use crate::core::etc;
use crate::core::limits::Throttle;
use crate::core::logging::{self, Driver, Subject};
use crate::core::mounts::{self, Planned, ReadyMount};
use crate::core::oci::{self, DeviceNode, Netns, Surroundings};
use crate::core::propagation;
use crate::io::network::{NetworkReady, NetworkRequest};
use crate::io::{cdi, devices, filters};
use crate::shim::protocol::{
    LAUNCH_NAME, Launch, LogFile, LogSetup, Populate, RemoteLog, STAGE_NAME, Staged, Supervise,
};

/// Where a container starts.
pub(super) struct NetworkSpace {
    pub netns: Netns,
    pub loopback_only: bool,
    /// For the port, if that makes the network.
    pub request: Option<NetworkRequest>,
}

impl Engine {
    /// Says in which namespace a container starts: one that the port makes, or one where no network is needed.
    pub(super) fn network_space(
        &self,
        entry: &Entry,
        record: &Record,
    ) -> Result<NetworkSpace, EngineError> {
        let spec = &record.spec;
        let native = |netns, loopback_only| NetworkSpace {
            netns,
            loopback_only,
            request: None,
        };
        match &spec.host.network_mode {
            NetworkMode::None => Ok(native(Netns::Inherited, true)),
            NetworkMode::Host => Ok(native(Netns::Host, false)),
            NetworkMode::Container(other) => {
                let other = self.find(other)?.record();
                if !other.state.status.is_up() {
                    return Err(EngineError::Conflict(format!(
                        "cannot join network of a non running container: {}",
                        other.id
                    )));
                }
                Ok(native(
                    Netns::At(format!("/proc/{}/ns/net", other.state.pid).into()),
                    false,
                ))
            }
            mode @ (NetworkMode::Default | NetworkMode::Network(_)) => {
                let request = NetworkRequest {
                    container: entry.id.clone(),
                    name: record.name.clone(),
                    hostname: record.hostname.clone(),
                    labels: spec.labels.clone(),
                    netns: self.netns_of(&entry.id),
                    mode: mode.clone(),
                    endpoints: spec.endpoints.clone(),
                    exposed_ports: spec.exposed_ports.clone(),
                    port_bindings: spec.host.port_bindings.clone(),
                    publish_all_ports: spec.host.publish_all_ports,
                    dns: spec.host.dns.clone(),
                    dns_search: spec.host.dns_search.clone(),
                    dns_options: spec.host.dns_options.clone(),
                };
                Ok(NetworkSpace {
                    netns: Netns::At(request.netns.clone()),
                    loopback_only: false,
                    request: Some(request),
                })
            }
        }
    }

    pub(super) fn uses_port(record: &Record) -> bool {
        matches!(
            record.spec.host.network_mode,
            NetworkMode::Default | NetworkMode::Network(_)
        )
    }

    /// Makes the run directory; returns what the shim itself must know. Blocks.
    pub(super) fn supervise_of(
        &self,
        entry: &Entry,
        record: &Record,
    ) -> Result<Supervise, EngineError> {
        super::make_private(&entry.run_dir)?;
        let spec = &record.spec;
        Ok(Supervise {
            id: entry.id.to_string(),
            start: record.start,
            container_dir: entry.dir.clone(),
            run_dir: entry.run_dir.clone(),
            tty: spec.tty,
            console_size: spec.host.console_size,
            open_stdin: spec.open_stdin,
            stdin_once: spec.stdin_once,
            log: log_setup(entry, record)?,
            cgroups: self.inner.cgroups.dirs(&self.group_of(record)),
            own_pids: matches!(spec.host.pid_mode.as_deref(), None | Some("" | "private")),
        })
    }

    /// Writes the launch description, and makes the files that [`write_etc`] fills. Blocks.
    pub(super) fn prepare(
        &self,
        entry: &Entry,
        record: &Record,
        space: &NetworkSpace,
    ) -> Result<Links, EngineError> {
        let links = self.links(record)?;
        let host = &record.spec.host;
        let mut staged = Vec::new();
        let mut mounts = self.ready_mounts(entry, record, &mut staged)?;
        let pid_namespace = self.joined_namespace(host.pid_mode.as_deref(), "pid")?;
        let ipc_namespace = self.joined_namespace(host.ipc_mode.as_deref(), "ipc")?;
        let shm = Path::new("/dev/shm");
        let own_shm = mounts.iter().any(|mount| mount.target == shm);
        let shared = match &ipc_namespace {
            Some((_, pid)) => {
                staged.push(Staged::Shm { pid: *pid });
                Some(stage_path(entry, staged.len()))
            }
            None if host.ipc_mode.as_deref() == Some("host") && shm.exists() => {
                Some(shm.to_owned())
            }
            None => None,
        };
        if let Some(source) = shared.filter(|_| !own_shm) {
            mounts.push(ReadyMount {
                target: shm.to_owned(),
                kind: "bind",
                source,
                options: mounts::bind_options(false, Default::default(), false),
            });
        }
        let populate = populate(record)?;
        let injected = cdi::inject(&self.inner.config.cdi_spec_dirs, &host.device_requests)?;
        mounts.extend(injected.mounts);
        let mut devices = devices_of(host)?;
        devices.retain(|have| injected.nodes.iter().all(|new| new.path != have.path));
        devices.extend(injected.nodes);
        let around = Surroundings {
            cgroup: Path::new("/").join(self.group_of(record)),
            netns: space.netns.clone(),
            hostname: record.hostname.clone(),
            mounts,
            cpus: std::thread::available_parallelism()
                .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1)),
            pid_namespace: pid_namespace.map(|(path, _)| path),
            ipc_namespace: ipc_namespace.map(|(path, _)| path),
            devices,
            kernel: kernel_version(),
            bounding: Some(crate::shim::bounding()),
            link_env: links.env.clone(),
        };
        let mut spec = record.spec.clone();
        oci::overlay_env(&mut spec.env, &injected.edits.env);
        let groups = injected.edits.additional_gids.iter();
        spec.host.group_add.extend(groups.map(u32::to_string));
        let mut oci = oci::spec(&spec, &around)?;
        oci::add_hooks(&mut oci, &injected.edits.hooks);
        self.put_filter(&entry.run_dir, &spec, &oci)?;
        let rules = oci::rules(&spec.host, &around.devices);
        let group = self.group_of(record);
        let limits = &spec.host.resources;
        let cgroups = &self.inner.cgroups;
        let made = cgroups.make(&group, limits, &throttles(host)?, &rules);
        made.map_err(|err| EngineError::Groups(err.to_string()))?;
        let launch = Launch {
            spec: oci,
            user: spec.user.clone().unwrap_or_default(),
            group_add: spec.host.group_add.clone(),
            layers: record.layers.clone(),
            // Nobody will look at the files again, so they need not reach the disk.
            volatile: spec.host.auto_remove,
            populate,
            loopback_only: space.loopback_only,
            staged,
            init: spec.host.init == Some(true),
            probe: false,
        };
        write_launch(&entry.run_dir, &launch)?;
        Ok(links)
    }

    /// Puts the program of the container's filter into its run directory, if that is the default one.
    pub(super) fn put_filter(
        &self,
        run_dir: &Path,
        spec: &ContainerSpec,
        oci: &Spec,
    ) -> Result<(), EngineError> {
        let bounding = oci.process().as_ref().and_then(|process| {
            let capabilities = process.capabilities().as_ref()?;
            capabilities.bounding().clone()
        });
        let profile = oci
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref());
        let written = match profile {
            Some(_) if oci::has_default_filter(spec)? => {
                let capabilities = CapabilitySet::those(bounding.unwrap_or_default());
                self.inner.filters.put(run_dir, capabilities)
            }
            Some(profile) => filters::put_own(run_dir, profile),
            None => filters::clear(run_dir),
        };
        written.map_err(EngineError::io("make the system call filter in", run_dir))
    }

    fn ready_mounts(
        &self,
        entry: &Entry,
        record: &Record,
        staged: &mut Vec<Staged>,
    ) -> Result<Vec<ReadyMount>, EngineError> {
        let planned = mounts::plan(&record.spec, &record.inherited)?;
        let mut ready = Vec::with_capacity(planned.len() + 3);
        let taken = |target: &str| {
            planned
                .iter()
                .any(|mount| mount.target == Path::new(target))
        };
        for name in ETC_FILES {
            let path = entry.dir.join(name);
            let target = format!("/etc/{name}");
            let mut file = File::options();
            let made = file.create(true).truncate(false).append(true).open(&path);
            made.map_err(EngineError::io("create", &path))?;
            if !taken(&target) {
                let options = mounts::bind_options(
                    record.spec.host.readonly_rootfs,
                    Default::default(),
                    false,
                );
                ready.push(ReadyMount {
                    target: target.into(),
                    kind: "bind",
                    source: path,
                    options,
                });
            }
        }
        // The plan is a function of the spec, so it has the order it had when the mount points were made.
        for (planned, point) in planned.into_iter().zip(&record.mounts) {
            let (kind, source, options) = match planned.what {
                Planned::Bind {
                    source,
                    propagation,
                    non_recursive,
                    read_only_depth,
                    ..
                } => {
                    check_propagation(&source, propagation)?;
                    let below = planned.read_only
                        && mounts::is_read_only_below(read_only_depth, kernel_version())?;
                    let mut inside = propagation;
                    if matches!(propagation, Propagation::Rshared | Propagation::Shared) {
                        staged.push(Staged::Shared {
                            source: source.clone(),
                            target: planned.target.clone(),
                            recursive: !non_recursive,
                            read_only: planned.read_only,
                            read_only_below: below,
                        });
                        // Only its place; the shared one comes over it.
                        inside = Propagation::Rslave;
                    }
                    let mut options =
                        mounts::bind_options(planned.read_only, inside, non_recursive);
                    if below {
                        // The runtime's word for it.
                        options.push("rro".into());
                    }
                    ("bind", source, options)
                }
                Planned::Volume {
                    subpath: Some(path),
                    ..
                } => {
                    staged.push(Staged::Subpath {
                        volume: point.source.clone(),
                        path,
                    });
                    (
                        "bind",
                        stage_path(entry, staged.len()),
                        mounts::bind_options(planned.read_only, Default::default(), false),
                    )
                }
                Planned::Image { subpath, .. } => {
                    let image = self.mountable(&point.name)?;
                    let layers = image.layers;
                    staged.push(Staged::Image { layers, subpath });
                    (
                        "bind",
                        stage_path(entry, staged.len()),
                        mounts::bind_options(true, Default::default(), false),
                    )
                }
                Planned::Volume { .. } => (
                    "bind",
                    point.source.clone(),
                    mounts::bind_options(planned.read_only, Default::default(), false),
                ),
                Planned::Tmpfs { mut options } => {
                    if planned.read_only && !options.iter().any(|option| option == "ro") {
                        options.push("ro".into());
                    }
                    ("tmpfs", PathBuf::from("tmpfs"), options)
                }
            };
            ready.push(ReadyMount {
                target: planned.target,
                kind,
                source,
                options,
            });
        }
        Ok(ready)
    }
}

/// Refuses to share what the host does not share.
fn check_propagation(source: &Path, wanted: Propagation) -> Result<(), EngineError> {
    if matches!(wanted, Propagation::Rprivate | Propagation::Private) {
        return Ok(());
    }
    let path = std::fs::canonicalize(source).map_err(EngineError::io("resolve", source))?;
    let info = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(EngineError::io("read", "/proc/self/mountinfo"))?;
    propagation::check(&info, &path, wanted)
        .map_err(|error| EngineError::Invalid(error.to_string()))
}

/// Where the shim puts the source of a mount that was staged as the `count`th.
fn stage_path(entry: &Entry, count: usize) -> PathBuf {
    entry.run_dir.join(STAGE_NAME).join((count - 1).to_string())
}

fn devices_of(host: &HostSpec) -> Result<Vec<DeviceNode>, EngineError> {
    let mut found = if host.privileged {
        devices::all()
    } else {
        Vec::new()
    };
    for wish in &host.devices {
        let wished = devices::wished(wish)?;
        found.retain(|have| wished.iter().all(|new| new.path != have.path));
        found.extend(wished);
    }
    Ok(found)
}

fn throttles(host: &HostSpec) -> Result<Vec<Throttle>, EngineError> {
    let mut found = Vec::new();
    for (kind, wishes) in &host.resources.blkio_devices {
        for wish in wishes {
            let invalid = || EngineError::Invalid(format!("no such block device: {wish}"));
            let (path, rate) = wish.rsplit_once(':').ok_or_else(invalid)?;
            let (major, minor) = devices::block_numbers(path).ok_or_else(invalid)?;
            found.push(Throttle {
                kind: kind.clone(),
                major,
                minor,
                rate: rate.parse().map_err(|_| invalid())?,
            });
        }
    }
    Ok(found)
}

/// Major and minor number.
fn kernel_version() -> (u32, u32) {
    let release =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Volumes that are still empty get what the image has at their place.
fn populate(record: &Record) -> Result<Vec<Populate>, EngineError> {
    let planned = mounts::plan(&record.spec, &record.inherited)?;
    let fresh =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    Ok(planned
        .into_iter()
        .zip(&record.mounts)
        .filter(|(mount, point)| {
            let whole = matches!(
                mount.what,
                Planned::Volume {
                    no_copy: false,
                    subpath: None,
                    ..
                }
            );
            whole && fresh(&point.source)
        })
        .map(|(mount, point)| Populate {
            target: mount.target,
            volume: point.source.clone(),
        })
        .collect())
}

pub(super) fn write_launch(run_dir: &Path, launch: &Launch) -> Result<(), EngineError> {
    let path = run_dir.join(LAUNCH_NAME);
    let json = serde_json::to_vec(launch).map_err(|err| EngineError::Invalid(err.to_string()))?;
    std::fs::write(&path, json).map_err(EngineError::io("write", path))
}

/// Files that every container has in `/etc`, in the order of [`etc_files`].
const ETC_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Writes what the network and the links say into the files that the container sees in `/etc`. Blocks.
pub(super) fn write_etc(
    entry: &Entry,
    record: &Record,
    space: &NetworkSpace,
    ready: &NetworkReady,
    links: &Links,
) -> Result<(), EngineError> {
    let texts = etc_files(record, space, ready, links)?;
    for (name, text) in ETC_FILES.into_iter().zip(texts) {
        let path = entry.dir.join(name);
        std::fs::write(&path, text).map_err(EngineError::io("write", path))?;
    }
    Ok(())
}

fn etc_files(
    record: &Record,
    space: &NetworkSpace,
    ready: &NetworkReady,
    links: &Links,
) -> Result<[String; 3], EngineError> {
    let spec = &record.spec;
    let gateway = ready
        .settings
        .networks
        .values()
        .find_map(|endpoint| endpoint.gateway)
        .map(IpAddr::V4);
    let extra = spec
        .host
        .extra_hosts
        .iter()
        .map(|text| {
            etc::parse_extra_host(text, gateway)
                .ok_or_else(|| EngineError::Invalid(format!("bad format for add-host: {text:?}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut hosts = match space.netns {
        Netns::Host => std::fs::read_to_string("/etc/hosts").unwrap_or_else(|_| etc::hosts(&[])),
        Netns::Inherited | Netns::At(_) => etc::hosts(&ready.hosts),
    };
    etc::push_hosts(&mut hosts, &extra);
    etc::push_hosts(&mut hosts, &links.hosts);
    // A network with a resolver of its own knows about `--dns` and its kin, and says all of the file.
    let host_spec = &spec.host;
    let none = [".".to_owned()];
    let (servers, search, options) = if ready.nameservers.is_empty() {
        let search = host_spec.dns_search.as_slice();
        (&host_spec.dns, search, &host_spec.dns_options)
    } else {
        let search = ready.search.as_slice();
        let search = if search.is_empty() { &none[..] } else { search };
        (&ready.nameservers, search, &ready.options)
    };
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolv = etc::resolv_conf(&host, servers, search, options);
    Ok([format!("{}\n", record.hostname), hosts, resolv])
}

/// Where the log of a container is.
pub(super) fn log_path(entry: &Entry) -> PathBuf {
    entry.dir.join(format!("{}-json.log", entry.id))
}

fn log_setup(entry: &Entry, record: &Record) -> Result<LogSetup, EngineError> {
    let log = &record.spec.host.log;
    let driver = Driver::of(log).map_err(ConfigError::from)?;
    let subject = subject(record);
    let attributes = subject.attributes();
    let file = logging::files(log).map(|limits| LogFile {
        path: log_path(entry),
        max_size: limits.max_size,
        max_files: limits.max_files,
        compact: driver != Driver::JsonFile,
        compress: limits.compress,
        attributes: match driver {
            Driver::JsonFile if !attributes.is_empty() => {
                serde_json::to_string(&attributes).unwrap_or_default()
            }
            _ => String::new(),
        },
    });
    let remote = match driver {
        Driver::Syslog => Some(RemoteLog::Syslog {
            target: logging::syslog(log).map_err(ConfigError::from)?,
            tag: subject.tag(),
            pid: std::process::id(),
        }),
        Driver::Journald => {
            let own = [
                ("CONTAINER_ID", entry.id.short()),
                ("CONTAINER_ID_FULL", entry.id.as_str()),
                ("CONTAINER_NAME", record.name.as_str()),
                ("IMAGE_NAME", record.spec.image.as_str()),
            ];
            let tag = subject.tag();
            let own = own.into_iter().chain([
                ("CONTAINER_TAG", tag.as_str()),
                ("SYSLOG_IDENTIFIER", tag.as_str()),
            ]);
            let mut fields: Vec<(String, String)> = own
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            // The journal's names are upper case, digits and underscores.
            let name = |key: &str| {
                let clean = |c: char| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_uppercase()
                    } else {
                        '_'
                    }
                };
                key.chars()
                    .map(clean)
                    .collect::<String>()
                    .trim_start_matches('_')
                    .to_owned()
            };
            fields.extend(
                attributes
                    .into_iter()
                    .map(|(key, value)| (name(&key), value)),
            );
            Some(RemoteLog::Journal { fields })
        }
        Driver::JsonFile | Driver::Local | Driver::None => None,
    };
    let buffer = logging::buffer(log).filter(|_| file.is_some() || remote.is_some());
    Ok(LogSetup {
        file,
        remote,
        buffer,
    })
}

/// A container, as its log tells of it.
pub(super) fn subject(record: &Record) -> Subject<'_> {
    Subject {
        id: record.id.as_str(),
        name: &record.name,
        image_id: &record.image_id,
        spec: &record.spec,
    }
}
