//! What this host is.

use shoal_engine::core::logging::Driver;
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::statfs::statfs};
use shoal_api::{
    container::EventKind,
    id::{IdSource, RandomIds},
};
use shoal_docker_api::{
    ApiError,
    backend::{ApiResult, EngineInfo, KernelLimits},
};

use super::EngineApi;
use shoal_engine::io::cdi_watch;

use crate::{config::Reloadable, listeners};

impl EngineApi {
    /// What `docker info` tells.
    pub(super) fn describe(&self) -> ApiResult<EngineInfo> {
        let live = self.config.live();
        let counts = self.engine.counts();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (operating_system, os_version) = operating_system();
        let root = &self.config.data_root;
        let backing = backing_file_system(root).to_owned();
        let id = engine_id(root)
            .map_err(|error| ApiError::internal(format!("cannot read the engine's id: {error}")))?;
        let failure = self.engine.self_test_failure();
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| count(cpus.get()));
        let version = self.engine.cgroup_version();
        let mut security_options = vec!["name=seccomp,profile=builtin".to_owned()];
        if version == 2 {
            security_options.push("name=cgroupns".to_owned());
        }
        let limits = kernel_limits(version == 2);
        let ipv4_forwarding = is_on("/proc/sys/net/ipv4/ip_forward");
        Ok(EngineInfo {
            id,
            name: self.config.hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            containers_running: count(counts.running),
            containers_paused: count(counts.paused),
            containers_stopped: count(counts.stopped),
            images: count(self.images().list().len()),
            storage_driver: "overlay2".to_owned(),
            storage_status: vec![
                ("Backing Filesystem".to_owned(), backing),
                (
                    "Load Balancing".to_owned(),
                    self.networks.lb_driver().to_owned(),
                ),
            ],
            root_dir: root.clone(),
            kernel_version: kernel_version(),
            operating_system,
            os_version,
            architecture: std::env::consts::ARCH.to_owned(),
            cpus,
            memory_bytes: memory_bytes(),
            cgroup_version: version.to_string(),
            cgroup_driver: "cgroupfs".to_owned(),
            security_options,
            log_drivers: Driver::NAMES.map(str::to_owned).to_vec(),
            network_drivers: ["bridge", "host", "null", "overlay"]
                .map(str::to_owned)
                .into(),
            registry_mirrors: live.registry_mirrors.clone(),
            default_log_driver: {
                let driver = self.config.defaults.log_driver.clone();
                driver.unwrap_or_else(|| "json-file".to_owned())
            },
            limits,
            ipv4_forwarding,
            open_files: count(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)),
            tasks: count(
                tokio::runtime::Handle::try_current()
                    .map_or(0, |runtime| runtime.metrics().num_alive_tasks()),
            ),
            event_listeners: count(self.history.listeners()),
            labels: live.labels.clone(),
            insecure_registries: live.insecure_registries.iter().cloned().collect(),
            http_proxy: proxy("HTTP_PROXY"),
            https_proxy: proxy("HTTPS_PROXY"),
            no_proxy: proxy("NO_PROXY"),
            debug: live.debug,
            cdi_spec_dirs: self.config.cdi_spec_dirs.clone(),
            cdi_devices: cdi_watch::names(&self.config.cdi_spec_dirs)
                .into_iter()
                .collect(),
            warnings: failure
                .map(|reason| format!("WARNING: no container can run on this host: {reason}"))
                .into_iter()
                .chain(listeners::warnings(&self.config))
                .chain(limits.warnings())
                .chain(
                    (!ipv4_forwarding).then(|| "WARNING: IPv4 forwarding is disabled".to_owned()),
                )
                .collect(),
            default_address: default_address(&self.config.interface_prefix),
        })
    }
}

impl EngineApi {
    /// Tells listeners that the configuration was read again, as docker does: with all that may have changed.
    pub(crate) fn tell_reload(&self, live: &Reloadable) {
        let list = |items: &[String]| serde_json::json!(items).to_string();
        let number = |count: Option<u32>, usual: u32| count.unwrap_or(usual).to_string();
        let attributes = [
            ("name", self.config.hostname()),
            ("debug", live.debug.to_string()),
            ("labels", list(&live.labels)),
            ("insecure-registries", list(&live.insecure_registries)),
            ("registry-mirrors", list(&live.registry_mirrors)),
            ("live-restore", "true".to_owned()),
            (
                "max-concurrent-downloads",
                number(live.max_concurrent_downloads, DOWNLOADS_USUAL),
            ),
            (
                "max-concurrent-uploads",
                number(live.max_concurrent_uploads, UPLOADS_USUAL),
            ),
        ];
        let attributes = attributes
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        // Without an id there is nobody that the event could be about.
        match engine_id(&self.config.data_root) {
            Ok(id) => self
                .engine
                .publish(EventKind::Daemon, "reload", &id, attributes),
            Err(error) => tracing::warn!(%error, "cannot read the engine's id"),
        }
    }
}

/// Layers that docker downloads and uploads at the same time unless it is told otherwise.
const DOWNLOADS_USUAL: u32 = 3;
const UPLOADS_USUAL: u32 = 5;

/// Release of the kernel.
pub(super) fn kernel_version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Go's name of a processor that Rust names so.
pub(super) fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Whether a switch of the kernel is on.
fn is_on(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

/// Limits that the cgroup controllers of this host can set.
fn kernel_limits(unified: bool) -> KernelLimits {
    let root = Path::new("/sys/fs/cgroup");
    if unified {
        let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &str| text.split_whitespace().any(|known| known == name);
        return KernelLimits {
            memory: has("memory"),
            // Groups other than the root have the file if the kernel accounts for swap.
            swap: has("memory") && has_swap_file(root),
            cpu_quota: has("cpu"),
            cpu_shares: has("cpu"),
            cpuset: has("cpuset"),
            pids: has("pids"),
            oom_kill_disable: false,
        };
    }
    let has = |controller: &str, file: &str| root.join(controller).join(file).exists();
    KernelLimits {
        memory: has("memory", "memory.limit_in_bytes"),
        swap: has("memory", "memory.memsw.limit_in_bytes"),
        cpu_quota: has("cpu", "cpu.cfs_quota_us"),
        cpu_shares: has("cpu", "cpu.shares"),
        cpuset: has("cpuset", "cpuset.cpus"),
        pids: has("pids", "cgroup.procs"),
        oom_kill_disable: has("memory", "memory.oom_control"),
    }
}

fn has_swap_file(root: &Path) -> bool {
    let groups = fs::read_dir(root).into_iter().flatten().flatten();
    groups
        .take(64)
        .any(|group| group.path().join("memory.swap.max").exists())
}

/// Name and version of the distribution.
fn operating_system() -> (String, String) {
    let paths = ["/etc/os-release", "/usr/lib/os-release"];
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok());
    let mut values = parse_os_release(&text.unwrap_or_default());
    let name = values
        .remove("PRETTY_NAME")
        .unwrap_or_else(|| "Linux".to_owned());
    (name, values.remove("VERSION_ID").unwrap_or_default())
}

fn parse_os_release(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        Some((key.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Bytes of memory.
fn memory_bytes() -> u64 {
    parse_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_memory(text: &str) -> u64 {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Name of the file system that holds `path`, as docker writes it.
fn backing_file_system(path: &Path) -> &'static str {
    // Magic numbers of `linux/magic.h`.
    match statfs(path).map(|at| at.filesystem_type().0) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x794c_7630) => "overlayfs",
        Ok(0x2fc1_2fc1) => "zfs",
        Ok(0xf2f5_2010) => "f2fs",
        _ => "<unknown>",
    }
}

/// Identity of this installation, made when it is first asked for.
fn engine_id(data_root: &Path) -> io::Result<String> {
    let path = data_root.join("engine-id");
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let bits = format!("{:032x}", RandomIds.next_bits());
    let id = [
        &bits[..8],
        &bits[8..12],
        &bits[12..16],
        &bits[16..20],
        &bits[20..],
    ]
    .join("-");
    fs::write(path, &id)?;
    Ok(id)
}

/// The address with which this host reaches the world, or the first that is not loopback or of our own interfaces.
fn default_address(own_prefix: &str) -> Option<IpAddr> {
    routed_address().or_else(|| first_address(own_prefix))
}

/// The source address of the default route. Connecting a UDP socket chooses one and sends nothing; the destinations
/// are reserved for documentation (RFC 5737, RFC 3849).
fn routed_address() -> Option<IpAddr> {
    let pairs: [(IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    let source = |(any, far): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    pairs.into_iter().find_map(source)
}

fn first_address(own_prefix: &str) -> Option<IpAddr> {
    let interfaces = getifaddrs().ok()?.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && !interface.interface_name.starts_with(own_prefix)
    });
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        let v6 = || {
            let ip = address.as_sockaddr_in6()?.ip();
            (!ip.is_unicast_link_local()).then_some(IpAddr::V6(ip))
        };
        v4.or_else(v6)
    });
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    v4.into_iter().chain(v6).next()
}

/// A proxy of the environment, without the password that may be in it.
fn proxy(name: &str) -> String {
    let lower = name.to_lowercase();
    let value = std::env::var(name)
        .or_else(|_| std::env::var(lower))
        .unwrap_or_default();
    hide_password(&value)
}

fn hide_password(url: &str) -> String {
    match url
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, host)) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host_are_understood() {
        assert_eq!(
            parse_memory("MemTotal:        8010072 kB\nMemFree: 1 kB\n"),
            8_010_072 * 1024
        );
        assert_eq!(parse_memory(""), 0);
        let release = parse_os_release(
            "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID='13'\nID=debian\n",
        );
        assert_eq!(release["PRETTY_NAME"], "Debian GNU/Linux 13 (trixie)");
        assert_eq!(release["VERSION_ID"], "13");
        assert_eq!(go_arch("x86_64"), "amd64");
        assert!(memory_bytes() > 0);
        assert!(!kernel_version().is_empty());
    }

    #[test]
    fn passwords_of_proxies_are_not_shown() {
        assert_eq!(
            hide_password("http://me:secret@proxy:3128"),
            "http://xxxxx:xxxxx@proxy:3128"
        );
        assert_eq!(hide_password("http://proxy:3128"), "http://proxy:3128");
        assert_eq!(hide_password(""), "");
    }
}
