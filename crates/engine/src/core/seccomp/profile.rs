//! Filters that users bring along, in docker's form of them.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompOperator,
};
use serde::Deserialize;

use super::{arg_at, rule};
use crate::core::capabilities::CapabilitySet;

/// A profile as docker reads it (moby, `profiles/seccomp`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<Architecture>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: LinuxSeccompOperator,
}

/// When a rule holds, or does not.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile; an error says what is wrong with it.
    pub fn parse(json: &str) -> Result<Self, String> {
        let profile: Self = serde_json::from_str(json).map_err(|err| err.to_string())?;
        if profile.architectures.is_some() && profile.arch_map.is_some() {
            return Err(
                "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
                    .into(),
            );
        }
        for rule in profile.syscalls.iter().flatten() {
            let names = rule.names.as_ref().is_some_and(|names| !names.is_empty());
            if !rule.name.is_empty() && names {
                return Err(
                    "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'".into(),
                );
            }
        }
        Ok(profile)
    }

    /// The filter for a process with these capabilities on this version of the kernel.
    pub fn filter(&self, capabilities: CapabilitySet, kernel: (u32, u32)) -> LinuxSeccomp {
        let native = if cfg!(target_arch = "aarch64") {
            ("arm64", Arch::ScmpArchAarch64)
        } else {
            ("amd64", Arch::ScmpArchX86_64)
        };
        let architectures = match (&self.architectures, &self.arch_map) {
            (Some(list), _) if !list.is_empty() => list.clone(),
            (_, Some(map)) => map
                .iter()
                .filter(|entry| entry.architecture == native.1)
                .flat_map(|entry| {
                    let more = entry.sub_architectures.iter().flatten().copied();
                    std::iter::once(entry.architecture).chain(more)
                })
                .collect(),
            _ => vec![native.1],
        };
        let rules = self.syscalls.iter().flatten().filter(|rule| {
            rule.includes.holds(capabilities, native.0, kernel)
                && !rule.excludes.excludes(capabilities, native.0, kernel)
        });
        let rules = rules.map(|entry| {
            let mut names = entry.names.clone().unwrap_or_default();
            if names.is_empty() {
                names.push(entry.name.clone());
            }
            let args = entry.args.iter().flatten().map(argument).collect();
            rule(names, entry.action, entry.errno_ret, args)
        });
        let mut builder = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .architectures(architectures)
            .syscalls(rules.collect::<Vec<_>>());
        if let Some(errno) = self.default_errno_ret {
            builder = builder.default_errno_ret(errno);
        }
        builder.build().expect("every required field is given")
    }
}

fn argument(argument: &Argument) -> LinuxSeccompArg {
    let Argument {
        index,
        value,
        value_two,
        op,
    } = *argument;
    arg_at(index, op, value, Some(value_two))
}

impl Filter {
    fn has_capabilities(&self, have: CapabilitySet) -> impl Iterator<Item = bool> {
        self.caps.iter().flatten().map(move |name| {
            let one = CapabilitySet::of(std::slice::from_ref(name), &["ALL".to_owned()]);
            one.is_ok_and(|set| set.0 & have.0 == set.0)
        })
    }

    /// All that is named must hold.
    fn holds(&self, have: CapabilitySet, architecture: &str, kernel: (u32, u32)) -> bool {
        let arches = self.arches.as_ref().filter(|list| !list.is_empty());
        self.has_capabilities(have).all(|has| has)
            && arches.is_none_or(|list| list.iter().any(|name| name == architecture))
            && self.kernel().is_none_or(|min| kernel >= min)
    }

    /// Any that is named is enough.
    fn excludes(&self, have: CapabilitySet, architecture: &str, kernel: (u32, u32)) -> bool {
        let mut arches = self.arches.iter().flatten();
        self.has_capabilities(have).any(|has| has)
            || arches.any(|name| name == architecture)
            || self.kernel().is_some_and(|min| kernel >= min)
    }

    fn kernel(&self) -> Option<(u32, u32)> {
        let (major, minor) = self.min_kernel.as_deref()?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"name": "bpf", "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]
    }"#;

    fn names(capabilities: CapabilitySet) -> Vec<String> {
        let profile = Profile::parse(PROFILE).expect("a profile");
        let filter = profile.filter(capabilities, (6, 1));
        let rules = filter.syscalls().iter().flatten();
        rules.flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn rules_hold_by_capability_architecture_and_kernel() {
        assert_eq!(
            names(CapabilitySet::docker_default()),
            ["mkdir", "mkdirat", "mount", "clone"]
        );
        assert_eq!(names(CapabilitySet::ALL), ["mkdir", "mkdirat", "clone"]);
    }

    #[test]
    fn ambiguous_profiles_are_refused() {
        let both = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "archMap": []}"#;
        Profile::parse(both).expect_err("one of the two");
        Profile::parse(r#"{"defaultAction": "ALLOW"}"#).expect_err("no such action");
    }
}
