//! The container of a service's tasks.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use shoal_api::spec::{
    ContainerTaskSpec, FileTarget, HealthConfig, Mount, MountKind, ReadOnlyDepth,
};

use super::{Refusal, image::is_reference};

/// Shortest time of a health check that is not 0 (SwarmKit's `validateHealthCheckConfig`).
const HEALTH_TIME_MIN: Duration = Duration::from_millis(1);

/// Checks the container by itself.
pub(super) fn container(container: &ContainerTaskSpec) -> Result<(), Refusal> {
    if container.image.is_empty() {
        return Err(Refusal::invalid(
            "ContainerSpec: image reference must be provided",
        ));
    }
    if !is_reference(&container.image) {
        return Err(Refusal::invalid(format!(
            "ContainerSpec: {:?} is not a valid repository/tag",
            container.image
        )));
    }
    mounts(&container.mounts)?;
    for variable in &container.env {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(Refusal::invalid(format!(
                "invalid environment variable: {variable}"
            )));
        }
    }
    if !container.dir.is_empty() && !container.dir.starts_with('/') {
        return Err(Refusal::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            container.dir
        )));
    }
    names(container)?;
    if let Some(health) = &container.healthcheck {
        healthcheck(health)?;
    }
    for limit in &container.ulimits {
        if limit.hard != -1 && (limit.soft > limit.hard || limit.soft == -1) {
            return Err(Refusal::invalid(format!(
                "invalid ulimit {}: soft limit must be less than or equal to hard limit: {} > {}",
                limit.name, limit.soft, limit.hard
            )));
        }
    }
    if let Some(adjustment) = container.oom_score_adj
        && !(-1000..=1000).contains(&adjustment)
    {
        return Err(Refusal::invalid(format!(
            "invalid value {adjustment}, range for oom score adj is [-1000, 1000]"
        )));
    }
    let secrets = container.secrets.iter();
    let secrets = secrets.map(|s| (s.name.as_str(), &s.target));
    let secrets = targets_differ("secret", "/run/secrets/", secrets)?;
    let configs = container.configs.iter();
    let configs = configs.map(|c| (c.name.as_str(), &c.target));
    let configs = targets_differ("config", "/", configs)?;
    let mounts = container.mounts.iter();
    let mut taken: BTreeSet<&str> = mounts.map(|m| m.target.trim_end_matches('/')).collect();
    let twice = secrets
        .iter()
        .chain(&configs)
        .find(|path| !taken.insert(path.as_str()));
    match twice {
        Some(path) => Err(Refusal::invalid(format!(
            "ContainerSpec: duplicate mount point: {path}"
        ))),
        None => Ok(()),
    }
}

/// Checks what names machines: hostname, further hosts, resolvers.
fn names(container: &ContainerTaskSpec) -> Result<(), Refusal> {
    let hostname = &container.hostname;
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    // What a template becomes is known on the node.
    let fixed = !hostname.is_empty() && !hostname.contains("{{");
    if fixed && (hostname.len() > 253 || !hostname.split('.').all(is_label)) {
        return Err(Refusal::invalid(format!(
            "invalid hostname format: {hostname}"
        )));
    }
    for line in &container.hosts {
        let mut words = line.split_whitespace();
        let address = words.next().map(str::parse::<IpAddr>);
        if !matches!(address, Some(Ok(_))) || words.next().is_none() {
            return Err(Refusal::invalid(format!(
                "invalid host entry '{line}': expected an address and at least one name"
            )));
        }
    }
    for server in container.dns.iter().flat_map(|dns| &dns.nameservers) {
        if server.parse::<IpAddr>().is_err() {
            return Err(Refusal::invalid(format!(
                "bad nameserver address: {server}"
            )));
        }
    }
    Ok(())
}

/// Checks mounts; the texts are those of moby's `daemon/cluster/executor/container/validate.go`, which comes later.
fn mounts(mounts: &[Mount]) -> Result<(), Refusal> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        let (source, target) = (&mount.source, &mount.target);
        if !target.starts_with('/') {
            return Err(Refusal::invalid(format!(
                "invalid mount target, must be an absolute path: {target}"
            )));
        }
        // What a template becomes is known on the node.
        let fixed = !source.contains("{{");
        match mount.kind {
            MountKind::Bind if fixed && !source.starts_with('/') => {
                return Err(Refusal::invalid(format!(
                    "invalid bind mount source, must be an absolute path: {source}"
                )));
            }
            MountKind::Volume if fixed && source.starts_with('/') => {
                return Err(Refusal::invalid(format!(
                    "invalid volume mount source, must not be an absolute path: {source}"
                )));
            }
            MountKind::Tmpfs if !source.is_empty() => {
                return Err(Refusal::invalid(
                    "invalid tmpfs source, source must be empty",
                ));
            }
            MountKind::Bind | MountKind::Volume if !mount.tmpfs_options.is_empty() => {
                return Err(Refusal::invalid(format!(
                    "invalid mount {target}: only a tmpfs has tmpfs options"
                )));
            }
            MountKind::Volume | MountKind::Tmpfs
                if mount.non_recursive || mount.read_only_depth != ReadOnlyDepth::AsPossible =>
            {
                return Err(Refusal::invalid(format!(
                    "invalid mount {target}: only a bind mount is recursive or not"
                )));
            }
            MountKind::Bind
                if !mount.read_only && mount.read_only_depth != ReadOnlyDepth::AsPossible =>
            {
                return Err(Refusal::invalid(format!(
                    "invalid mount {target}: only a read-only mount is so up to some depth"
                )));
            }
            _ => {}
        }
        if let Some(wrong) = mount.tmpfs_options.iter().find(|it| !is_tmpfs_option(it)) {
            return Err(Refusal::invalid(format!(
                "invalid tmpfs option {wrong:?}: expected uid=N, gid=N, nr_inodes=N, or one of {}",
                TMPFS_FLAGS.join(", ")
            )));
        }
        if !targets.insert(target.trim_end_matches('/')) {
            return Err(Refusal::invalid(format!(
                "ContainerSpec: duplicate mount point: {target}"
            )));
        }
    }
    Ok(())
}

/// Options of a tmpfs that are a word alone.
const TMPFS_FLAGS: [&str; 8] = [
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "noatime",
    "nodiratime",
];

fn is_tmpfs_option(option: &str) -> bool {
    match option.split_once('=') {
        None => TMPFS_FLAGS.contains(&option),
        Some(("uid" | "gid" | "nr_inodes", value)) => value.parse::<u32>().is_ok(),
        Some(_) => false,
    }
}

fn healthcheck(health: &HealthConfig) -> Result<(), Refusal> {
    for (name, time) in [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ] {
        if !time.is_zero() && time < HEALTH_TIME_MIN {
            return Err(Refusal::invalid(format!(
                "ContainerSpec: {name} in HealthConfig cannot be less than {}ms",
                HEALTH_TIME_MIN.as_millis()
            )));
        }
    }
    let kind = health.test.first().map(String::as_str);
    if !matches!(kind, None | Some("" | "NONE" | "CMD" | "CMD-SHELL")) {
        return Err(Refusal::invalid(format!(
            "ContainerSpec: unknown type {:?} in HealthConfig: expected NONE, CMD or CMD-SHELL",
            kind.unwrap_or_default()
        )));
    }
    Ok(())
}

/// Checks that no two files have one place, and tells the places.
fn targets_differ<'a>(
    kind: &str,
    base: &str,
    references: impl Iterator<Item = (&'a str, &'a FileTarget)>,
) -> Result<Vec<String>, Refusal> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    for (name, target) in references {
        if name.is_empty() || target.name.is_empty() {
            return Err(Refusal::invalid(format!("malformed {kind} reference")));
        }
        let path = if target.name.starts_with('/') {
            target.name.clone()
        } else {
            format!("{base}{}", target.name)
        };
        if path.split('/').any(|part| part == "..") {
            return Err(Refusal::invalid(format!(
                "malformed {kind} reference: invalid target '{}'",
                target.name
            )));
        }
        if let Some((_, other)) = seen.iter().find(|(taken, _)| *taken == path) {
            return Err(Refusal::invalid(format!(
                "{kind} references '{other}' and '{name}' have a conflicting target: '{}'",
                target.name
            )));
        }
        seen.push((path, name));
    }
    Ok(seen.into_iter().map(|(path, _)| path).collect())
}
