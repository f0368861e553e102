//! Limits of a container that runs: what a change comes to, and what the kernel is to be told.

use oci_spec::runtime::LinuxDeviceCgroup;
use shoal_api::container::Resources;

use super::config::ConfigError;

/// Period of the CPU quota in µs, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Processes a container may have unless its spec says otherwise: enough for any service, too few for a fork bomb.
const PIDS_DEFAULT: i64 = 4096;

/// A limit on one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// As the Engine API calls it: `BlkioDeviceReadBps` and so on.
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// A file of a control group and what to write into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitWrite {
    /// Controller, for version 1.
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
}

/// Lays a change over the limits that a container has, with docker's checks.
pub fn update(have: &Resources, change: &Resources) -> Result<Resources, ConfigError> {
    let mut new = have.clone();
    if have.nano_cpus.is_some() && change.cpu_period_us.is_some() {
        return Err(ConfigError::Conflict(
            "CPU Period cannot be updated as NanoCPUs has already been set",
        ));
    }
    if have.nano_cpus.is_some() && change.cpu_quota_us.is_some() {
        return Err(ConfigError::Conflict(
            "CPU Quota cannot be updated as NanoCPUs has already been set",
        ));
    }
    if change.nano_cpus.is_some() && have.cpu_quota_us.is_some() {
        return Err(ConfigError::Conflict(
            "Nano CPUs cannot be updated as CPU Quota has already been set",
        ));
    }
    if change.nano_cpus.is_some() && have.cpu_period_us.is_some() {
        return Err(ConfigError::Conflict(
            "Nano CPUs cannot be updated as CPU Period has already been set",
        ));
    }
    if let Some(memory) = change.memory_bytes
        && change.memory_swap_bytes.is_none()
    {
        // What the memory limit of now stands for as long as nobody says otherwise.
        let swap = have
            .memory_swap_bytes
            .or_else(|| i64::try_from(have.memory_bytes?.saturating_mul(2)).ok());
        if swap.is_some_and(|swap| swap > 0 && memory > swap.cast_unsigned()) {
            return Err(ConfigError::MemoryAboveSwap);
        }
        new.memory_swap_bytes = swap;
    }
    macro_rules! take {
        ($($field:ident),*) => {
            $(if change.$field.is_some() { new.$field.clone_from(&change.$field); })*
        };
    }
    take!(
        memory_bytes,
        memory_reservation_bytes,
        memory_swap_bytes,
        memory_swappiness,
        nano_cpus,
        cpu_shares,
        cpu_quota_us,
        cpu_period_us,
        cpu_realtime_period_us,
        cpu_realtime_runtime_us,
        cpuset_cpus,
        cpuset_mems,
        pids,
        blkio_weight
    );
    Ok(new)
}

/// What to write into the groups of a new container, whose limits are these; `swap` says that the kernel can limit it.
/// Version 2 takes the rules for devices as a program, see [`super::device_program`].
pub fn of_new(
    limits: &Resources,
    throttles: &[Throttle],
    rules: &[LinuxDeviceCgroup],
    version: u8,
    swap: bool,
) -> Vec<LimitWrite> {
    let mut all = limits.clone();
    all.pids = all.pids.or(Some(PIDS_DEFAULT));
    // As much swap again as memory, unless said otherwise.
    let twice = all.memory_bytes.map(|bytes| bytes.saturating_mul(2));
    let twice = twice.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    all.memory_swap_bytes = all.memory_swap_bytes.or(twice);
    let mut writes = writes(&all, version, swap);
    let mut put = |controller, file, value| {
        writes.push(LimitWrite {
            controller,
            file,
            value,
        });
    };
    if version == 2 {
        for throttle in throttles {
            let Throttle {
                major, minor, rate, ..
            } = throttle;
            let key = match throttle.kind.as_str() {
                "BlkioDeviceReadBps" => "rbps",
                "BlkioDeviceWriteBps" => "wbps",
                "BlkioDeviceReadIOps" => "riops",
                _ => "wiops",
            };
            put("blkio", "io.max", format!("{major}:{minor} {key}={rate}"));
        }
        return writes;
    }
    for throttle in throttles {
        let Throttle {
            major, minor, rate, ..
        } = throttle;
        let file = match throttle.kind.as_str() {
            "BlkioDeviceReadBps" => "blkio.throttle.read_bps_device",
            "BlkioDeviceWriteBps" => "blkio.throttle.write_bps_device",
            "BlkioDeviceReadIOps" => "blkio.throttle.read_iops_device",
            _ => "blkio.throttle.write_iops_device",
        };
        put("blkio", file, format!("{major}:{minor} {rate}"));
    }
    if limits.oom_kill_disable {
        put("memory", "memory.oom_control", "1".to_owned());
    }
    for rule in rules {
        let file = if rule.allow() {
            "devices.allow"
        } else {
            "devices.deny"
        };
        put("devices", file, rule.to_string());
    }
    writes
}

/// What to write so that these limits hold, for version 1 or 2 of control groups.
pub fn writes(limits: &Resources, version: u8, swap: bool) -> Vec<LimitWrite> {
    let mut writes = Vec::new();
    let v2 = version == 2;
    let mut put = |controller, v1: &'static str, unified: &'static str, value: String| {
        writes.push(LimitWrite {
            controller,
            file: if v2 { unified } else { v1 },
            value,
        });
    };
    if let Some(memory) = limits.memory_bytes {
        put(
            "memory",
            "memory.limit_in_bytes",
            "memory.max",
            memory.to_string(),
        );
        let sum = limits.memory_swap_bytes;
        if swap && let Some(sum) = sum {
            let unified = match u64::try_from(sum) {
                Ok(sum) => sum.saturating_sub(memory).to_string(),
                Err(_) => "max".to_owned(),
            };
            let value = if v2 { unified } else { sum.to_string() };
            put(
                "memory",
                "memory.memsw.limit_in_bytes",
                "memory.swap.max",
                value,
            );
        }
    }
    if let Some(bytes) = limits.memory_reservation_bytes {
        put(
            "memory",
            "memory.soft_limit_in_bytes",
            "memory.low",
            bytes.to_string(),
        );
    }
    if let (Some(swappiness), false) = (limits.memory_swappiness, v2) {
        put("memory", "memory.swappiness", "", swappiness.to_string());
    }
    let quota = match limits.nano_cpus {
        Some(nano) => {
            let quota = u128::from(nano) * u128::from(CPU_PERIOD_US) / 1_000_000_000;
            Some((i64::try_from(quota).unwrap_or(i64::MAX), CPU_PERIOD_US))
        }
        None => limits
            .cpu_quota_us
            .map(|quota| (quota, limits.cpu_period_us.unwrap_or(CPU_PERIOD_US))),
    };
    if let Some((quota, period)) = quota {
        if v2 {
            let quota = match u64::try_from(quota) {
                Ok(quota) => quota.to_string(),
                Err(_) => "max".to_owned(),
            };
            put("cpu", "", "cpu.max", format!("{quota} {period}"));
        } else {
            put("cpu", "cpu.cfs_period_us", "", period.to_string());
            put("cpu", "cpu.cfs_quota_us", "", quota.to_string());
        }
    }
    if let Some(shares) = limits.cpu_shares {
        // The conversion that runc documents: 2-262144 onto 1-10000.
        let weight = 1 + shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142;
        let value = if v2 { weight } else { shares };
        put("cpu", "cpu.shares", "cpu.weight", value.to_string());
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        put("cpuset", "cpuset.cpus", "cpuset.cpus", cpus.clone());
    }
    if let Some(mems) = &limits.cpuset_mems {
        put("cpuset", "cpuset.mems", "cpuset.mems", mems.clone());
    }
    if let Some(pids) = limits.pids {
        let value = match u64::try_from(pids) {
            Ok(pids) if pids > 0 => pids.to_string(),
            _ => "max".to_owned(),
        };
        put("pids", "pids.max", "pids.max", value);
    }
    if let Some(weight) = limits.blkio_weight {
        put(
            "blkio",
            "blkio.bfq.weight",
            "io.bfq.weight",
            weight.to_string(),
        );
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(limits: &Resources, version: u8) -> Vec<String> {
        writes(limits, version, true)
            .into_iter()
            .map(|write| format!("{} {}", write.file, write.value))
            .collect()
    }

    #[test]
    fn each_version_of_control_groups_has_its_files() {
        let limits = Resources {
            memory_bytes: Some(100),
            memory_swap_bytes: Some(150),
            nano_cpus: Some(500_000_000),
            cpu_shares: Some(1024),
            pids: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            text(&limits, 1),
            [
                "memory.limit_in_bytes 100",
                "memory.memsw.limit_in_bytes 150",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_quota_us 50000",
                "cpu.shares 1024",
                "pids.max max",
            ]
        );
        assert_eq!(
            text(&limits, 2),
            [
                "memory.max 100",
                "memory.swap.max 50",
                "cpu.max 50000 100000",
                "cpu.weight 39",
                "pids.max max",
            ]
        );
    }

    #[test]
    fn a_new_container_has_limits_that_nobody_asked_for() {
        let limits = Resources {
            memory_bytes: Some(100),
            oom_kill_disable: true,
            ..Resources::default()
        };
        let throttle = Throttle {
            kind: "BlkioDeviceWriteBps".into(),
            major: 8,
            minor: 1,
            rate: 7,
        };
        let rule = crate::core::oci::parse_rule("c 1:* rw").expect("a rule");
        let text = |version| -> Vec<String> {
            of_new(
                &limits,
                std::slice::from_ref(&throttle),
                std::slice::from_ref(&rule),
                version,
                true,
            )
            .into_iter()
            .map(|write| format!("{} {}", write.file, write.value))
            .collect()
        };
        assert_eq!(
            text(1),
            [
                "memory.limit_in_bytes 100",
                "memory.memsw.limit_in_bytes 200",
                "pids.max 4096",
                "blkio.throttle.write_bps_device 8:1 7",
                "memory.oom_control 1",
                "devices.allow c 1:* rw",
            ]
        );
        assert_eq!(
            text(2),
            [
                "memory.max 100",
                "memory.swap.max 100",
                "pids.max 4096",
                "io.max 8:1 wbps=7",
            ]
        );
    }

    #[test]
    fn a_limit_grows_only_together_with_its_swap() {
        let have = Resources {
            memory_bytes: Some(100),
            ..Resources::default()
        };
        let to = |memory: u64, swap: Option<i64>| {
            let change = Resources {
                memory_bytes: Some(memory),
                memory_swap_bytes: swap,
                ..Resources::default()
            };
            update(&have, &change).map(|new| (new.memory_bytes, new.memory_swap_bytes))
        };
        assert_eq!(to(150, None), Ok((Some(150), Some(200))));
        assert_eq!(
            to(300, None)
                .expect_err("it is more than the swap")
                .to_string(),
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        );
        assert_eq!(to(300, Some(-1)), Ok((Some(300), Some(-1))));
    }
}
