//! Sets of capabilities, and Docker's arithmetic with them.

use oci_spec::runtime::Capability;

/// Docker's default set.
const DEFAULT: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability the kernel has, in the kernel's order: the index is the bit.
const ALL_CAPABILITIES: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// A set of capabilities; bit n is the kernel's capability n, as `/proc/<pid>/status` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySet(pub u64);

/// There is no capability of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: unknown capability: {name:?}")]
pub struct UnknownCapability {
    /// `CapAdd` or `CapDrop`.
    pub field: &'static str,
    pub name: String,
}

impl CapabilitySet {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self((1 << ALL_CAPABILITIES.len()) - 1);

    /// What a container has by default.
    pub fn docker_default() -> Self {
        Self::those(DEFAULT.iter().copied())
    }

    /// Docker's arithmetic over `--cap-add` and `--cap-drop`: `ALL` first, then drops, then adds. Names come with or
    /// without `CAP_`, in any case.
    pub fn of(add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let unknown = |field| move |name| UnknownCapability { field, name };
        let (add_all, added) = parse(add).map_err(unknown("CapAdd"))?;
        let (drop_all, dropped) = parse(drop).map_err(unknown("CapDrop"))?;
        let base = match (add_all, drop_all) {
            (true, _) => Self::ALL,
            (false, true) => Self::NONE,
            (false, false) => Self::docker_default(),
        };
        Ok(Self(base.0 & !dropped | added))
    }

    /// Those of a list.
    pub fn those(capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let bits = capabilities.into_iter().map(bit);
        Self(bits.fold(0, |all, bit| all | bit))
    }

    pub fn contains(self, capability: Capability) -> bool {
        self.0 & bit(capability) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Capability> {
        ALL_CAPABILITIES
            .iter()
            .copied()
            .filter(move |&capability| self.contains(capability))
    }
}

fn bit(capability: Capability) -> u64 {
    let index = ALL_CAPABILITIES
        .iter()
        .position(|&known| known == capability);
    1 << index.expect("the table has every variant")
}

/// Whether `ALL` was among them, and the bits of the others.
fn parse(names: &[String]) -> Result<(bool, u64), String> {
    let mut all = false;
    let mut bits = 0;
    for name in names {
        let upper = name.to_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            all = true;
        } else {
            let found = ALL_CAPABILITIES
                .iter()
                .find(|known| known.to_string().trim_start_matches("CAP_") == bare);
            bits |= bit(*found.ok_or_else(|| name.clone())?);
        }
    }
    Ok((all, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_arithmetic_is_dockers() {
        let set = |add: &[&str], drop: &[&str]| {
            let own = |names: &[&str]| {
                names
                    .iter()
                    .map(|&name| name.to_owned())
                    .collect::<Vec<_>>()
            };
            CapabilitySet::of(&own(add), &own(drop)).map(|set| format!("{:016x}", set.0))
        };
        assert_eq!(set(&[], &[]).as_deref(), Ok("00000000a80425fb"));
        assert_eq!(set(&["ALL"], &[]).as_deref(), Ok("000001ffffffffff"));
        assert_eq!(set(&[], &["all"]).as_deref(), Ok("0000000000000000"));
        assert_eq!(
            set(&["net_admin"], &["ALL"]).as_deref(),
            Ok("0000000000001000")
        );
        assert_eq!(
            set(&["CAP_SYS_ADMIN"], &["MKNOD"]).as_deref(),
            Ok("00000000a02425fb")
        );
        assert_eq!(
            set(&["root"], &[]),
            Err(UnknownCapability {
                field: "CapAdd",
                name: "root".into()
            })
        );
    }

    #[test]
    fn every_capability_has_its_bit() {
        assert_eq!(
            CapabilitySet::ALL
                .iter()
                .fold(0, |bits, capability| bits | bit(capability)),
            CapabilitySet::ALL.0
        );
    }
}
