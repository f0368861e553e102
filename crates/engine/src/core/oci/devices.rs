//! Devices: nodes in the container and who may use which.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use shoal_api::container::HostSpec;

/// A device of the host, as the container shall see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    pub block: bool,
    pub major: i64,
    pub minor: i64,
    /// Permission bits and owner of the node.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Some of `rwm`.
    pub access: String,
}

/// Nodes that every container gets from the runtime.
const ALWAYS: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/urandom",
    "/dev/random",
];

/// What every container may do: make any node, but use these alone (null, zero, full, random, urandom, tty, console, ptmx
/// and the terminals behind it).
const HARMLESS: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

pub(super) fn nodes(devices: &[DeviceNode]) -> Vec<LinuxDevice> {
    let own = devices
        .iter()
        .filter(|node| !ALWAYS.iter().any(|path| node.path == PathBuf::from(path)));
    own.map(|node| {
        LinuxDeviceBuilder::default()
            .path(node.path.clone())
            .typ(kind(node.block))
            .major(node.major)
            .minor(node.minor)
            .file_mode(node.mode)
            .uid(node.uid)
            .gid(node.gid)
            .build()
            .expect("every required field is given")
    })
    .collect()
}

fn kind(block: bool) -> LinuxDeviceType {
    if block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

/// Docker's rules: make any node, use only the harmless ones (null, zero, full, random, urandom, tty, console, ptmx, terminals)
/// and those asked for; with all rights all of them.
pub fn rules(host: &HostSpec, devices: &[DeviceNode]) -> Vec<LinuxDeviceCgroup> {
    if host.privileged {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")];
    rules.extend(HARMLESS.iter().filter_map(|text| parse_rule(text)));
    rules.extend(devices.iter().map(|node| {
        let (major, minor) = (Some(node.major), Some(node.minor));
        rule(true, kind(node.block), major, minor, &node.access)
    }));
    let own = host.device_cgroup_rules.iter();
    rules.extend(own.filter_map(|text| parse_rule(text)));
    rules
}

/// `c 1:3 rwm`, with `a` for both kinds and `*` for any number.
pub(crate) fn parse_rule(text: &str) -> Option<LinuxDeviceCgroup> {
    let words: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = words.as_slice() else {
        return None;
    };
    let kind = match *kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return None,
    };
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => digits.parse::<u32>().ok().map(|n| Some(i64::from(n))),
    };
    let (major, minor) = numbers.split_once(':')?;
    is_access(access).then_some(())?;
    Some(rule(true, kind, number(major)?, number(minor)?, access))
}

/// Some of `rwm`, none twice.
pub(crate) fn is_access(text: &str) -> bool {
    let once = |letter: char| text.matches(letter).count() <= 1;
    !text.is_empty() && text.chars().all(|c| "rwm".contains(c)) && "rwm".chars().all(once)
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut builder = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind)
        .access(access);
    if let Some(major) = major {
        builder = builder.major(major);
    }
    if let Some(minor) = minor {
        builder = builder.minor(minor);
    }
    builder.build().expect("no field is required")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_three_words() {
        let told = |text: &str| parse_rule(text).map(|rule| rule.to_string());
        assert_eq!(told("c 1:3 rwm").as_deref(), Some("c 1:3 rwm"));
        assert_eq!(told("b *:7 r").as_deref(), Some("b *:7 r"));
        for wrong in [
            "x 1:3 r", "c 1 r", "c 1:3", "c 1:3 rr", "c 1:3 x", "c -1:3 r", "c 1:3 r ",
        ] {
            assert_eq!(told(wrong), None, "{wrong}");
        }
    }
}
