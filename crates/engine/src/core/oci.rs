//! The OCI runtime spec of a container: what Docker's defaults and the user's wishes come to.

mod devices;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Hook, HookBuilder, Hooks, Linux, LinuxBuilder, LinuxCapabilitiesBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    User,
};
use shoal_api::container::{ContainerSpec, Ulimit};

pub use devices::{DeviceNode, rules};
pub(crate) use devices::{is_access, parse_rule};

use super::capabilities::{CapabilitySet, UnknownCapability};
use super::cdi::HookEdit;
use super::mounts::ReadyMount;
use super::seccomp;
use super::security::{self, Filter, SecurityError};

const SHM_DEFAULT: u64 = 64 << 20;
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden from containers (list of moby, 2026).
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Visible but not writable.
pub const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Which network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Netns {
    /// The host's own.
    Host,
    /// That of the process which starts the container.
    #[default]
    Inherited,
    /// The one at this path.
    At(PathBuf),
}

/// What the spec depends on besides the user's wishes.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Path of the container's cgroup below the root of every hierarchy.
    pub cgroup: PathBuf,
    pub netns: Netns,
    /// Host name, if the container has one of its own.
    pub hostname: String,
    /// User mounts and the engine's own files, in the order of mounting.
    pub mounts: Vec<ReadyMount>,
    /// Processors that exist: per-processor files to be masked.
    pub cpus: u32,
    /// Namespaces of other containers, at these paths.
    pub pid_namespace: Option<PathBuf>,
    pub ipc_namespace: Option<PathBuf>,
    pub devices: Vec<DeviceNode>,
    /// Version of the kernel.
    pub kernel: (u32, u32),
    /// What the engine itself may hand on; absent means everything.
    pub bounding: Option<CapabilitySet>,
    /// Variables that links bring.
    pub link_env: Vec<String>,
}

/// The names in an option do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    #[error("invalid ulimit type: {0}")]
    Ulimit(String),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("no command specified")]
    NoCommand,
}

/// The command line: entry point and command.
pub fn command(spec: &ContainerSpec) -> Result<Vec<String>, OciError> {
    let args: Vec<String> = spec
        .entrypoint
        .iter()
        .flatten()
        .chain(spec.cmd.iter().flatten())
        .cloned()
        .collect();
    if args.is_empty() {
        Err(OciError::NoCommand)
    } else {
        Ok(args)
    }
}

/// Builds the spec of a container whose image configuration is merged in already.
pub fn spec(spec: &ContainerSpec, around: &Surroundings) -> Result<Spec, OciError> {
    let capabilities = if spec.host.privileged {
        CapabilitySet::ALL
    } else {
        CapabilitySet::of(&spec.host.cap_add, &spec.host.cap_drop)?
    };
    let most = around.bounding.unwrap_or(CapabilitySet::ALL);
    let capabilities = CapabilitySet(capabilities.0 & most.0);
    let security = security::parse(&spec.host.security_opt)?;
    let filter = match security.filter {
        // With all rights a filter would only be in the way.
        _ if spec.host.privileged => None,
        Filter::Unconfined => None,
        Filter::Default => Some(seccomp::default_profile(capabilities)),
        Filter::Custom(profile) => Some(profile.filter(capabilities, around.kernel)),
    };
    let mut oci = SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path("merged")
                .readonly(spec.host.readonly_rootfs)
                .build()
                .expect("complete"),
        )
        .process(process(spec, around, capabilities)?)
        .mounts(mounts(spec, around))
        .linux(linux(spec, around))
        .build()
        .expect("every required field is given");
    if let Some(linux) = oci.linux_mut() {
        linux.set_seccomp(filter);
    }
    if let Some(process) = oci.process_mut() {
        process.set_no_new_privileges(security.no_new_privileges.then_some(true));
    }
    // The crate's defaults are a host name of its own and empty texts.
    let own = spec.host.uts_mode.as_deref() != Some("host");
    oci.set_hostname(own.then(|| around.hostname.clone()));
    oci.set_domainname(
        spec.domainname
            .clone()
            .filter(|domain| own && !domain.is_empty()),
    );
    oci.set_annotations(None);
    Ok(oci)
}

/// Whether the container's filter is the default one and nobody's own.
pub fn has_default_filter(spec: &ContainerSpec) -> Result<bool, OciError> {
    let filter = security::parse(&spec.host.security_opt)?.filter;
    Ok(!spec.host.privileged && matches!(filter, Filter::Default))
}

fn process(
    spec: &ContainerSpec,
    around: &Surroundings,
    capabilities: CapabilitySet,
) -> Result<Process, OciError> {
    let set: Capabilities = capabilities.iter().collect();
    let mut caps = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .build()
        .expect("every required field is given");
    // The crate's defaults are not empty.
    caps.set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    let cwd = spec
        .working_dir
        .as_deref()
        .filter(|dir| !dir.is_empty())
        .unwrap_or("/");
    let rlimits = spec
        .host
        .ulimits
        .iter()
        .map(rlimit)
        .collect::<Result<Vec<_>, _>>()?;
    let mut process = ProcessBuilder::default()
        .terminal(spec.tty)
        .user(User::default())
        .args(command(spec)?)
        .env(environment(spec, around))
        .cwd(cwd)
        .capabilities(caps)
        .oom_score_adj(spec.host.oom_score_adj)
        .build()
        .expect("every required field is given");
    process.set_rlimits((!rlimits.is_empty()).then_some(rlimits));
    Ok(process)
}

/// PATH, HOSTNAME and TERM as Docker gives them, and the user's variables over them.
fn environment(spec: &ContainerSpec, around: &Surroundings) -> Vec<String> {
    let mut env = vec![
        PATH_DEFAULT.to_owned(),
        format!("HOSTNAME={}", around.hostname),
    ];
    env.extend(around.link_env.iter().cloned());
    if spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    overlay_env(&mut env, &spec.env);
    env
}

/// Lays variables over others by name; a bare name removes.
pub fn overlay_env(env: &mut Vec<String>, over: &[String]) {
    for entry in over {
        let key = entry.split('=').next().unwrap_or_default();
        let old = env
            .iter()
            .position(|have| have.split('=').next() == Some(key));
        match (old, entry.contains('=')) {
            (Some(at), true) => env[at].clone_from(entry),
            (None, true) => env.push(entry.clone()),
            (Some(at), false) => drop(env.remove(at)),
            (None, false) => {}
        }
    }
}

fn rlimit(limit: &Ulimit) -> Result<PosixRlimit, OciError> {
    let kind = match limit.name.as_str() {
        "as" => PosixRlimitType::RlimitAs,
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return Err(OciError::Ulimit(limit.name.clone())),
    };
    // -1 is RLIM_INFINITY, all bits set.
    let (soft, hard) = (limit.soft.cast_unsigned(), limit.hard.cast_unsigned());
    Ok(PosixRlimitBuilder::default()
        .typ(kind)
        .soft(soft)
        .hard(hard)
        .build()
        .expect("every field is given"))
}

fn mounts(spec: &ContainerSpec, around: &Surroundings) -> Vec<Mount> {
    let shm = format!("size={}", spec.host.shm_size.unwrap_or(SHM_DEFAULT));
    let (sysfs, cgroup): (&[&str], &[&str]) = if spec.host.privileged {
        (
            &["nosuid", "noexec", "nodev", "rw"],
            &["rw", "nosuid", "noexec", "nodev", "relatime"],
        )
    } else {
        (
            &["nosuid", "noexec", "nodev", "ro"],
            &["ro", "nosuid", "noexec", "nodev", "relatime"],
        )
    };
    let own: &[(&str, &str, &str, &[&str])] = &[
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        ("/sys", "sysfs", "sysfs", sysfs),
        ("/sys/fs/cgroup", "cgroup", "cgroup", cgroup),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
    ];
    let taken: BTreeSet<&Path> = around
        .mounts
        .iter()
        .map(|mount| mount.target.as_path())
        .collect();
    let own = own
        .iter()
        .filter(|(target, ..)| !taken.contains(Path::new(target)))
        .map(|(target, kind, source, options)| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            build_mount(PathBuf::from(target), kind, PathBuf::from(source), options)
        });
    own.chain(around.mounts.iter().map(|mount| {
        build_mount(
            mount.target.clone(),
            mount.kind,
            mount.source.clone(),
            mount.options.clone(),
        )
    }))
    .collect()
}

fn build_mount(target: PathBuf, kind: &str, source: PathBuf, options: Vec<String>) -> Mount {
    let builder = MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options);
    builder.build().expect("every required field is given")
}

fn linux(spec: &ContainerSpec, around: &Surroundings) -> Linux {
    let host = &spec.host;
    let mut namespaces = vec![(LinuxNamespaceType::Mount, None)];
    let private = |mode: &Option<String>| mode.as_deref() != Some("host");
    if private(&host.pid_mode) {
        namespaces.push((LinuxNamespaceType::Pid, around.pid_namespace.clone()));
    }
    if private(&host.ipc_mode) {
        namespaces.push((LinuxNamespaceType::Ipc, around.ipc_namespace.clone()));
    }
    if private(&host.uts_mode) {
        namespaces.push((LinuxNamespaceType::Uts, None));
    }
    if private(&host.cgroupns_mode) {
        namespaces.push((LinuxNamespaceType::Cgroup, None));
    }
    match &around.netns {
        Netns::Host | Netns::Inherited => {}
        Netns::At(path) => namespaces.push((LinuxNamespaceType::Network, Some(path.clone()))),
    }
    let namespaces = namespaces.into_iter().map(|(kind, path)| {
        let mut builder = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            builder = builder.path(path);
        }
        builder.build().expect("every required field is given")
    });
    // With all rights nothing is hidden, unless somebody asks for it.
    let all = host.privileged.then(Vec::new);
    let masked = host
        .masked_paths
        .clone()
        .or(all.clone())
        .unwrap_or_else(|| {
            let throttle = (0..around.cpus)
                .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
            MASKED_PATHS
                .iter()
                .map(|&path| path.to_owned())
                .chain(throttle)
                .collect()
        });
    let readonly = host.readonly_paths.clone().or(all);
    let readonly =
        readonly.unwrap_or_else(|| READONLY_PATHS.iter().map(|&path| path.to_owned()).collect());
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.collect::<Vec<_>>())
        .cgroups_path(around.cgroup.clone())
        .masked_paths(masked)
        .readonly_paths(readonly)
        .build()
        .expect("every required field is given");
    let nodes = devices::nodes(&around.devices);
    linux.set_devices((!nodes.is_empty()).then_some(nodes));
    let sysctls = sysctls(spec, around);
    linux.set_sysctl((!sysctls.is_empty()).then(|| sysctls.into_iter().collect()));
    linux
}

/// With a network of its own a container may use low ports and send pings without capabilities, as in Docker.
fn sysctls(spec: &ContainerSpec, around: &Surroundings) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if matches!(around.netns, Netns::At(_))
        && !matches!(
            spec.host.network_mode,
            shoal_api::container::NetworkMode::Container(_)
        )
    {
        sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        sysctls.insert(
            "net.ipv4.ping_group_range".to_owned(),
            "0 2147483647".to_owned(),
        );
    }
    sysctls.extend(spec.host.sysctls.clone());
    sysctls
}

/// Adds programs of the host that the runtime calls.
pub fn add_hooks(oci: &mut Spec, edits: &[HookEdit]) {
    if edits.is_empty() {
        return;
    }
    let of = |name: &str| {
        let those = edits.iter().filter(|edit| edit.hook_name == name);
        let hooks: Vec<Hook> = those
            .map(|edit| {
                let mut hook = HookBuilder::default().path(&edit.path);
                if !edit.args.is_empty() {
                    hook = hook.args(edit.args.clone());
                }
                if !edit.env.is_empty() {
                    hook = hook.env(edit.env.clone());
                }
                if let Some(seconds) = edit.timeout {
                    hook = hook.timeout(seconds);
                }
                hook.build().expect("every required field is given")
            })
            .collect();
        (!hooks.is_empty()).then_some(hooks)
    };
    let mut hooks = Hooks::default();
    hooks
        .set_create_runtime(of("createRuntime"))
        .set_create_container(of("createContainer"))
        .set_start_container(of("startContainer"))
        .set_poststart(of("poststart"))
        .set_poststop(of("poststop"));
    oci.set_hooks(Some(hooks));
}

#[cfg(test)]
mod images;
#[cfg(test)]
mod tests;
