//! A container's spec made whole: the image's configuration merged in, and what the engine cannot honour refused.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use shoal_api::container::{ContainerSpec, HealthCheck, MountKind, NetworkMode, Port};
use shoal_api::image::ImageConfig;

use super::oci;
use super::{links, logging, security};

/// A wish the engine does not fulfil. Never passed over in silence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{field} is not supported yet: {value}")]
    Unsupported { field: &'static str, value: String },
    #[error("{field} is invalid: {value}")]
    Invalid { field: &'static str, value: String },
    #[error("conflicting options: {0}")]
    Conflict(&'static str),
    /// Docker's own words.
    #[error("{0}")]
    Plain(String),
    #[error(
        "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
    )]
    MemoryAboveSwap,
    #[error("minimum memory limit allowed is 6MB")]
    MemoryTooSmall,
    #[error(transparent)]
    Security(#[from] security::SecurityError),
    #[error(transparent)]
    Log(#[from] logging::LogError),
}

/// Least memory a container can be limited to, as in Docker.
const MEMORY_MIN: u64 = 6 << 20;

/// Lays the user's spec over what the image says, by Docker's rules.
pub fn merge(mut spec: ContainerSpec, image: &ImageConfig) -> ContainerSpec {
    if spec.entrypoint.is_none() {
        // A new entry point takes the image's command away, since that was meant for the old one.
        spec.entrypoint.clone_from(&image.entrypoint);
        if spec.cmd.as_ref().is_none_or(Vec::is_empty) {
            spec.cmd.clone_from(&image.cmd);
        }
    }
    // A bare name stays, and keeps the image's variable out.
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let own: BTreeSet<String> = spec.env.iter().map(|entry| name(entry)).collect();
    let inherited = image.env.iter().filter(|entry| !own.contains(&name(entry)));
    spec.env.extend(inherited.cloned());
    if spec.working_dir.as_ref().is_none_or(String::is_empty) {
        spec.working_dir = Some(image.working_dir.clone()).filter(|dir| !dir.is_empty());
    }
    if spec.user.as_ref().is_none_or(String::is_empty) {
        spec.user = Some(image.user.clone()).filter(|user| !user.is_empty());
    }
    for (key, value) in &image.labels {
        spec.labels
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    spec.exposed_ports.extend(
        image
            .exposed_ports
            .iter()
            .filter_map(|port| port.parse::<Port>().ok()),
    );
    spec.volumes.extend(image.volumes.iter().cloned());
    if spec.stop_signal.is_none() {
        spec.stop_signal.clone_from(&image.stop_signal);
    }
    spec.healthcheck = merge_health(spec.healthcheck, image.healthcheck.as_ref());
    spec
}

fn merge_health(own: Option<HealthCheck>, image: Option<&HealthCheck>) -> Option<HealthCheck> {
    let Some(mut own) = own else {
        return image.cloned();
    };
    if let Some(image) = image {
        if own.test.is_empty() {
            own.test.clone_from(&image.test);
        }
        own.interval = own.interval.or(image.interval);
        own.timeout = own.timeout.or(image.timeout);
        own.start_period = own.start_period.or(image.start_period);
        own.start_interval = own.start_interval.or(image.start_interval);
        own.retries = own.retries.or(image.retries);
    }
    Some(own)
}

/// Refuses what is wrong or not supported.
pub fn check(spec: &ContainerSpec) -> Result<(), ConfigError> {
    let host = &spec.host;
    let unsupported = |wished: bool, field: &'static str, value: String| {
        if wished {
            Err(ConfigError::Unsupported { field, value })
        } else {
            Ok(())
        }
    };
    let driver = host.volume_driver.clone().unwrap_or_default();
    unsupported(
        !matches!(driver.as_str(), "" | "local"),
        "HostConfig.VolumeDriver",
        driver,
    )?;
    for link in &host.links {
        if links::parse(link).is_none() {
            return Err(ConfigError::Plain(format!("invalid link format: {link}")));
        }
    }
    for device in &host.devices {
        if !device.container_path.starts_with("/dev/") {
            return Err(ConfigError::Invalid {
                field: "HostConfig.Devices.PathInContainer",
                value: format!("{:?} is not below /dev", device.container_path),
            });
        }
        if !oci::is_access(&device.permissions) {
            return Err(ConfigError::Plain(format!(
                "invalid device mode: {}",
                device.permissions
            )));
        }
    }
    for rule in &host.device_cgroup_rules {
        if oci::parse_rule(rule).is_none() {
            return Err(ConfigError::Plain(format!(
                "invalid device cgroup rule format: '{rule}'"
            )));
        }
    }
    if !host.storage_opt.is_empty() {
        return Err(ConfigError::Plain(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
                .into(),
        ));
    }
    let runtime = host.runtime.clone().unwrap_or_default();
    if !matches!(runtime.as_str(), "" | "runc" | "shoal") {
        let text = format!("unknown or invalid runtime name: {runtime}");
        return Err(ConfigError::Plain(text));
    }
    modes(spec)?;
    security::parse(&host.security_opt)?;
    logging::check(&host.log)?;
    mounts(spec)?;
    sysctls(spec)?;
    limits(spec)
}

fn modes(spec: &ContainerSpec) -> Result<(), ConfigError> {
    let host = &spec.host;
    let mode = |field: &'static str, mode: &Option<String>, known: &[&str]| match mode.as_deref() {
        Some(mode) if !mode.is_empty() && !known.contains(&mode) => Err(ConfigError::Invalid {
            field,
            value: mode.to_owned(),
        }),
        _ => Ok(()),
    };
    let own = |mode: &Option<String>| {
        let other = mode.as_deref()?.strip_prefix("container:");
        other.filter(|other| !other.is_empty()).map(drop)
    };
    if own(&host.pid_mode).is_none() {
        mode("HostConfig.PidMode", &host.pid_mode, &["host", "private"])?;
    }
    if own(&host.ipc_mode).is_none() {
        let known = ["private", "shareable", "host"];
        mode("HostConfig.IpcMode", &host.ipc_mode, &known)?;
    }
    mode("HostConfig.UTSMode", &host.uts_mode, &["host"])?;
    mode("HostConfig.UsernsMode", &host.userns_mode, &["host"])?;
    mode(
        "HostConfig.CgroupnsMode",
        &host.cgroupns_mode,
        &["private", "host"],
    )?;
    if host.uts_mode.as_deref() == Some("host") && spec.hostname.is_some() {
        return Err(ConfigError::Conflict("hostname and the UTS mode"));
    }
    let shared = matches!(
        host.network_mode,
        NetworkMode::Host | NetworkMode::Container(_)
    );
    if shared && !host.sysctls.keys().all(|key| !key.starts_with("net.")) {
        return Err(ConfigError::Conflict("net sysctls and the network mode"));
    }
    if matches!(host.network_mode, NetworkMode::Container(_)) {
        if !host.port_bindings.is_empty() || host.publish_all_ports {
            return Err(ConfigError::Conflict(
                "port publishing and the container type network mode",
            ));
        }
        if spec.hostname.is_some() {
            return Err(ConfigError::Conflict("hostname and the network mode"));
        }
    }
    if host.auto_remove && host.restart != shoal_api::container::RestartPolicy::No {
        let text = "can't create 'AutoRemove' container with restart policy";
        return Err(ConfigError::Plain(text.into()));
    }
    Ok(())
}

fn mounts(spec: &ContainerSpec) -> Result<(), ConfigError> {
    for mount in &spec.host.mounts {
        match &mount.kind {
            MountKind::Volume {
                driver: Some(driver),
                ..
            } if !matches!(driver.as_str(), "" | "local") => {
                return Err(ConfigError::Unsupported {
                    field: "Mounts.VolumeOptions.DriverConfig",
                    value: driver.clone(),
                });
            }
            MountKind::Volume {
                subpath: Some(subpath),
                ..
            } if !is_local(subpath) => {
                return Err(ConfigError::Plain(format!(
                    "invalid mount config for type \"volume\": subpath must be a relative path within the volume: {subpath}"
                )));
            }
            MountKind::Image {
                subpath: Some(subpath),
                ..
            } if !is_local(subpath) => {
                return Err(ConfigError::Plain(format!(
                    "invalid mount config for type \"image\": subpath must be a relative path within the image: {subpath}"
                )));
            }
            MountKind::Bind { .. }
            | MountKind::Volume { .. }
            | MountKind::Tmpfs { .. }
            | MountKind::Image { .. } => {}
        }
    }
    Ok(())
}

/// Relative, and never above where it begins.
fn is_local(path: &str) -> bool {
    let mut depth = 0_i32;
    Path::new(path).components().all(|part| {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth -= 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
        depth >= 0
    })
}

/// Kernel parameters that a namespace of the container's own keeps from the host (runc's list).
fn sysctls(spec: &ContainerSpec) -> Result<(), ConfigError> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let host = &spec.host;
    let ipc = host.ipc_mode.as_deref() != Some("host");
    let uts = host.uts_mode.as_deref() != Some("host");
    for name in host.sysctls.keys() {
        let separate = name.starts_with("net.")
            || (ipc && (IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.")))
            || (uts && name == "kernel.domainname");
        if !separate {
            return Err(ConfigError::Plain(format!(
                "sysctl {name:?} is not in a separate kernel namespace"
            )));
        }
    }
    Ok(())
}

fn limits(spec: &ContainerSpec) -> Result<(), ConfigError> {
    let limits = &spec.host.resources;
    let unsupported = |wished: bool, field: &'static str, value: String| {
        if wished {
            Err(ConfigError::Unsupported { field, value })
        } else {
            Ok(())
        }
    };
    if limits.memory_swappiness.is_some_and(|value| value > 100) {
        return Err(ConfigError::Plain(format!(
            "invalid value: {}, valid memory swappiness range is 0-100",
            limits.memory_swappiness.unwrap_or_default()
        )));
    }
    unsupported(
        limits.kernel_memory_tcp_bytes.is_some(),
        "HostConfig.KernelMemoryTCP",
        format!("{:?}", limits.kernel_memory_tcp_bytes),
    )?;
    unsupported(
        limits.cpu_realtime_period_us.is_some(),
        "HostConfig.CpuRealtimePeriod",
        format!("{:?}", limits.cpu_realtime_period_us),
    )?;
    unsupported(
        limits.cpu_realtime_runtime_us.is_some(),
        "HostConfig.CpuRealtimeRuntime",
        format!("{:?}", limits.cpu_realtime_runtime_us),
    )?;
    if limits
        .blkio_weight
        .is_some_and(|weight| !(10..=1000).contains(&weight))
    {
        return Err(ConfigError::Plain(
            "range of blkio weight is from 10 to 1000".into(),
        ));
    }
    if limits
        .memory_bytes
        .is_some_and(|memory| memory < MEMORY_MIN)
    {
        return Err(ConfigError::MemoryTooSmall);
    }
    if limits.nano_cpus.is_some()
        && (limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some())
    {
        return Err(ConfigError::Conflict(
            "Nano CPUs and CPU Period or Quota cannot both be set",
        ));
    }
    if let (Some(memory), Some(swap)) = (limits.memory_bytes, limits.memory_swap_bytes)
        && swap >= 0
        && swap.cast_unsigned() < memory
    {
        return Err(ConfigError::Conflict(
            "minimum memoryswap limit should be larger than memory limit",
        ));
    }
    Ok(())
}

/// A size as the log options write it: `10m`, `64k`, `1g`, plain bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, unit) = match number.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => (digits, number.as_bytes()[number.len() - 1]),
        None => (number, b'b'),
    };
    let shift = match unit {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => 0,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            env: vec!["A=1".into(), "B=2".into()],
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["default".into()]),
            user: "app".into(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn a_new_entry_point_takes_the_images_command_away() {
        let run = |change: fn(&mut ContainerSpec)| {
            let mut spec = ContainerSpec::default();
            change(&mut spec);
            let merged = merge(spec, &image());
            (
                merged.entrypoint.unwrap_or_default(),
                merged.cmd.unwrap_or_default(),
            )
        };
        assert_eq!(run(|_| {}), (vec!["/entry".into()], vec!["default".into()]));
        assert_eq!(
            run(|spec| spec.cmd = Some(vec!["x".into()])),
            (vec!["/entry".into()], vec!["x".into()])
        );
        assert_eq!(
            run(|spec| spec.entrypoint = Some(vec!["/e".into()])),
            (vec!["/e".into()], vec![])
        );
        assert_eq!(run(|spec| spec.entrypoint = Some(vec![])), (vec![], vec![]));
    }

    #[test]
    fn variables_are_replaced_by_name() {
        let spec = ContainerSpec {
            env: vec!["B=3".into(), "A".into(), "C=4".into()],
            ..ContainerSpec::default()
        };
        assert_eq!(merge(spec, &image()).env, ["B=3", "A", "C=4"]);
    }

    fn refused(change: impl FnOnce(&mut ContainerSpec), expect: Expect) {
        let mut spec = ContainerSpec::default();
        change(&mut spec);
        expect.assert_eq(&check(&spec).expect_err("it is refused").to_string());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        assert_eq!(check(&ContainerSpec::default()), Ok(()));
        refused(
            |spec| spec.host.pid_mode = Some("odd".into()),
            expect!["HostConfig.PidMode is invalid: odd"],
        );
        refused(
            |spec| spec.host.device_cgroup_rules.push("c 1:3".into()),
            expect!["invalid device cgroup rule format: 'c 1:3'"],
        );
        refused(
            |spec| {
                let sysctls = &mut spec.host.sysctls;
                sysctls.insert("vm.swappiness".into(), "1".into());
            },
            expect![[r#"sysctl "vm.swappiness" is not in a separate kernel namespace"#]],
        );
        refused(
            |spec| spec.host.resources.blkio_weight = Some(5),
            expect!["range of blkio weight is from 10 to 1000"],
        );
        refused(
            |spec| spec.host.resources.memory_bytes = Some(1),
            expect!["minimum memory limit allowed is 6MB"],
        );
        refused(
            |spec| {
                spec.host.log.options.insert("odd".into(), "true".into());
            },
            expect!["unknown log opt 'odd' for json-file log driver"],
        );
        refused(
            |spec| spec.host.security_opt.push("odd=mine".into()),
            expect![[r#"invalid --security-opt 2: "odd=mine""#]],
        );
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            ["10m", "5", "2KB", "1GiB", "x"].map(parse_size),
            [Some(10 << 20), Some(5), Some(2048), Some(1 << 30), None]
        );
    }
}
