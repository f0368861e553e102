//! What docker refuses before it makes or updates a container, in its words (moby `daemon/container.go` and
//! `daemon_unix.go`; the texts are those that its daemon was heard to say).

use std::time::Duration;

use shoal_api::container::{ContainerSpec, HealthCheck, MountKind, Resources};

use crate::backend::{ApiError, ApiResult};

/// Least memory of a container.
const MEMORY_BYTES_MIN: u64 = 6 << 20;
/// Least time of a health check.
const HEALTH_TIME_MIN: Duration = Duration::from_millis(1);

/// Processors of this host; a container cannot have more.
fn processors() -> u64 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn refuse<T>(text: impl Into<String>) -> ApiResult<T> {
    Err(ApiError::invalid(text))
}

/// Checks what a create body says.
pub(crate) fn container(spec: &ContainerSpec) -> ApiResult<()> {
    if let Some(bad) = spec
        .env
        .iter()
        .find(|text| text.is_empty() || text.starts_with('='))
    {
        return refuse(format!("invalid environment variable: {bad}"));
    }
    if let Some(dir) = &spec.working_dir
        && !dir.starts_with('/')
    {
        return refuse(format!(
            "the working directory '{dir}' is invalid, it needs to be an absolute path"
        ));
    }
    if let Some(check) = &spec.healthcheck {
        health(check)?;
    }
    let host = &spec.host;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return refuse(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    for extra in &host.extra_hosts {
        if extra
            .split_once([':', '='])
            .is_none_or(|(name, address)| name.is_empty() || address.is_empty())
        {
            return refuse(format!("bad format for add-host: \"{extra}\""));
        }
    }
    for mount in &host.mounts {
        let kind = match mount.kind {
            MountKind::Bind { .. } => "bind",
            MountKind::Volume { .. } => "volume",
            MountKind::Tmpfs { .. } => "tmpfs",
            MountKind::Image { .. } => "image",
        };
        if mount.target.is_empty() {
            return refuse(format!(
                "invalid mount config for type \"{kind}\": field Target must not be empty"
            ));
        }
    }
    resources(&host.resources, false, processors())
}

/// Checks limits; `update` has those that are set already behind it.
pub(crate) fn update(limits: &Resources) -> ApiResult<()> {
    resources(limits, true, processors())
}

fn health(check: &HealthCheck) -> ApiResult<()> {
    for (name, time) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if time.is_some_and(|time| time < HEALTH_TIME_MIN) {
            return refuse(format!("{name} in Healthcheck cannot be less than 1ms"));
        }
    }
    Ok(())
}

fn resources(limits: &Resources, update: bool, processors: u64) -> ApiResult<()> {
    let memory = limits.memory_bytes.unwrap_or(0);
    let reservation = limits.memory_reservation_bytes.unwrap_or(0);
    // -1 is without end.
    let swap = u64::try_from(limits.memory_swap_bytes.unwrap_or(0)).unwrap_or(0);
    let refused = [
        (
            memory != 0 && memory < MEMORY_BYTES_MIN,
            "Minimum memory limit allowed is 6MB",
        ),
        (
            memory > 0 && swap > 0 && swap < memory,
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            memory == 0 && swap > 0 && !update,
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            reservation > 0 && reservation < MEMORY_BYTES_MIN,
            "Minimum memory reservation allowed is 6MB",
        ),
        (
            memory > 0 && reservation > memory,
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            limits.nano_cpus.is_some() && limits.cpu_period_us.is_some(),
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        (
            limits.nano_cpus.is_some() && limits.cpu_quota_us.is_some(),
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            limits
                .cpu_period_us
                .is_some_and(|period| !(1_000..=1_000_000).contains(&period)),
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        (
            limits
                .cpu_quota_us
                .is_some_and(|quota| (1..1_000).contains(&quota)),
            "CPU cfs quota can not be less than 1ms (i.e. 1000)",
        ),
    ];
    if let Some((_, text)) = refused.into_iter().find(|(wrong, _)| *wrong) {
        return refuse(text);
    }
    if let Some(share) = limits.nano_cpus
        && share > processors.saturating_mul(1_000_000_000)
    {
        return refuse(format!(
            "Range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs available"
        ));
    }
    if let Some(text) = &limits.cpuset_cpus {
        let wanted = set(text).ok_or_else(|| {
            ApiError::invalid(format!(
                "Invalid value {text} for cpuset cpus: invalid format: {text}"
            ))
        })?;
        if wanted.last().is_some_and(|last| *last >= processors) {
            return refuse(format!(
                "Requested CPUs are not available - requested {text}, available: 0-{}",
                processors.saturating_sub(1)
            ));
        }
    }
    if let Some(text) = &limits.cpuset_mems
        && set(text).is_none()
    {
        return refuse(format!(
            "Invalid value {text} for cpuset mems: invalid format: {text}"
        ));
    }
    Ok(())
}

/// Reads `0-2,5`; `None` if it is not of that form.
fn set(text: &str) -> Option<std::collections::BTreeSet<u64>> {
    /// More processors than a kernel has, so that a range cannot fill the memory.
    const NUMBER_MAX: u64 = 8_192;
    let mut all = std::collections::BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > NUMBER_MAX {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(limits: Resources) -> String {
        resources(&limits, false, 2).map_or_else(|error| error.message, |()| String::new())
    }

    #[test]
    fn limits_are_checked_as_docker_does() {
        let none = Resources::default;
        assert_eq!(said(none()), "");
        for (limits, text) in [
            (
                Resources {
                    memory_bytes: Some(1024),
                    ..none()
                },
                "Minimum memory limit allowed is 6MB",
            ),
            (
                Resources {
                    memory_swap_bytes: Some(1 << 30),
                    ..none()
                },
                "You should always set the Memory limit",
            ),
            (
                Resources {
                    memory_bytes: Some(64 << 20),
                    memory_swap_bytes: Some(32 << 20),
                    ..none()
                },
                "Minimum memoryswap limit should be larger",
            ),
            (
                Resources {
                    nano_cpus: Some(3_000_000_000),
                    ..none()
                },
                "Range of CPUs is from 0.01 to 2.00",
            ),
            (
                Resources {
                    cpuset_cpus: Some("0-2".to_owned()),
                    ..none()
                },
                "Requested CPUs are not available - requested 0-2, available: 0-1",
            ),
            (
                Resources {
                    cpuset_cpus: Some("0-9999999999".to_owned()),
                    ..none()
                },
                "Invalid value 0-9999999999 for cpuset cpus",
            ),
            (
                Resources {
                    cpu_quota_us: Some(10),
                    ..none()
                },
                "CPU cfs quota can not be less",
            ),
        ] {
            let seen = said(limits);
            assert!(seen.starts_with(text), "{seen}");
        }
        let good = Resources {
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(-1),
            cpuset_cpus: Some("0,1".to_owned()),
            cpu_quota_us: Some(-1),
            ..none()
        };
        assert_eq!(said(good), "");
    }
}
