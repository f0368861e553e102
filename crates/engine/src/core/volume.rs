//! Options of volumes: what is to be mounted where a volume's files are (moby `volume/local`).

use std::collections::BTreeMap;

/// What a volume with options mounts on its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// As in mount(8): a device, an export, a directory for `bind`.
    pub device: String,
    /// `nfs`, `tmpfs`, …; `none` for a bind mount.
    pub kind: String,
    /// `MS_*` of mount(2), without those of propagation.
    pub flags: libc::c_ulong,
    /// `MS_*` of propagation, which take a call of their own.
    pub propagation: libc::c_ulong,
    /// Options for the file system.
    pub data: Vec<String>,
}

/// Options that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    #[error("invalid option: {0:?}")]
    Unknown(String),
    #[error("missing required option: {0:?}")]
    Missing(&'static str),
    #[error("quota size requested but no quota support")]
    Quota,
    #[error("invalid mount option {0:?} of the volume: it cannot be honoured")]
    Flag(String),
}

/// The options that must come with each.
const NEEDS: [(&str, &[&str]); 3] = [
    ("device", &["type"]),
    ("type", &["device"]),
    ("o", &["device", "type"]),
];

/// Reads the options of `volume create`; `None` if there is nothing to mount.
pub fn volume_mount(
    options: &BTreeMap<String, String>,
) -> Result<Option<VolumeMount>, InvalidOptions> {
    if let Some(name) = options
        .keys()
        .find(|name| !matches!(name.as_str(), "type" | "o" | "device" | "size"))
    {
        return Err(InvalidOptions::Unknown(name.clone()));
    }
    if options
        .get("size")
        .is_some_and(|size| !matches!(size.as_str(), "" | "0"))
    {
        return Err(InvalidOptions::Quota);
    }
    for (name, needed) in NEEDS {
        if !options.contains_key(name) {
            continue;
        }
        if let Some(missing) = needed.iter().find(|other| !options.contains_key(**other)) {
            return Err(InvalidOptions::Missing(missing));
        }
    }
    let Some(device) = options.get("device") else {
        return Ok(None);
    };
    let mut mount = VolumeMount {
        device: device.clone(),
        kind: options.get("type").cloned().unwrap_or_default(),
        flags: 0,
        propagation: 0,
        data: Vec::new(),
    };
    let given = options.get("o").map(String::as_str).unwrap_or_default();
    for option in given.split(',').filter(|option| !option.is_empty()) {
        match option {
            "defaults" => {}
            // Neither makes sense for a file system that is mounted when a container needs it.
            "remount" | "move" => return Err(InvalidOptions::Flag(option.to_owned())),
            other => match flag(other) {
                Some((true, bits)) => mount.flags |= bits,
                Some((false, bits)) => mount.flags &= !bits,
                None => match propagation(other) {
                    Some(bits) => mount.propagation |= bits,
                    None => mount.data.push(other.to_owned()),
                },
            },
        }
    }
    Ok(Some(mount))
}

impl VolumeMount {
    /// Whether a directory of the host is shown, rather than a file system of its own.
    pub fn is_bind(&self) -> bool {
        self.flags & libc::MS_BIND != 0
    }

    /// The host that `addr=` names, for a file system of the network; the kernel wants a number.
    pub fn address(&self) -> Option<&str> {
        if !matches!(self.kind.as_str(), "nfs" | "nfs4" | "cifs") {
            return None;
        }
        self.data
            .iter()
            .find_map(|option| option.strip_prefix("addr="))
    }

    /// Puts a number in the place of that host.
    pub fn set_address(&mut self, address: &str) {
        for option in &mut self.data {
            if option.starts_with("addr=") {
                *option = format!("addr={address}");
            }
        }
    }
}

fn flag(option: &str) -> Option<(bool, libc::c_ulong)> {
    Some(match option {
        "ro" => (true, libc::MS_RDONLY),
        "rw" => (false, libc::MS_RDONLY),
        "nosuid" => (true, libc::MS_NOSUID),
        "suid" => (false, libc::MS_NOSUID),
        "nodev" => (true, libc::MS_NODEV),
        "dev" => (false, libc::MS_NODEV),
        "noexec" => (true, libc::MS_NOEXEC),
        "exec" => (false, libc::MS_NOEXEC),
        "sync" => (true, libc::MS_SYNCHRONOUS),
        "async" => (false, libc::MS_SYNCHRONOUS),
        "dirsync" => (true, libc::MS_DIRSYNC),
        "mand" => (true, libc::MS_MANDLOCK),
        "nomand" => (false, libc::MS_MANDLOCK),
        "noatime" => (true, libc::MS_NOATIME),
        "atime" => (false, libc::MS_NOATIME),
        "nodiratime" => (true, libc::MS_NODIRATIME),
        "diratime" => (false, libc::MS_NODIRATIME),
        "relatime" => (true, libc::MS_RELATIME),
        "norelatime" => (false, libc::MS_RELATIME),
        "strictatime" => (true, libc::MS_STRICTATIME),
        "nostrictatime" => (false, libc::MS_STRICTATIME),
        "bind" => (true, libc::MS_BIND),
        "rbind" => (true, libc::MS_BIND | libc::MS_REC),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<libc::c_ulong> {
    Some(match option {
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        _ => return None,
    })
}

/// Whether `path` is where something is mounted, by the text of `/proc/self/mountinfo` (proc(5)).
pub fn is_mount_point(mountinfo: &str, path: &str) -> bool {
    let at = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    at.map(unescaped).any(|at| at == path)
}

/// Spaces and the like are written as `\040`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let number = (*first == b'\\')
            .then(|| std::str::from_utf8(rest.get(1..4)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Option<VolumeMount>, String> {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        volume_mount(&options.iter().map(pair).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_those_of_mount() {
        assert_eq!(read(&[]), Ok(None));
        let nfs = [
            ("type", "nfs"),
            ("o", "addr=h,ro,nolock,soft"),
            ("device", ":/x"),
        ];
        let mut nfs = read(&nfs).unwrap().unwrap();
        assert_eq!((nfs.flags, nfs.address()), (libc::MS_RDONLY, Some("h")));
        nfs.set_address("10.0.0.1");
        assert_eq!(nfs.data, ["addr=10.0.0.1", "nolock", "soft"]);
        let bind = [("type", "none"), ("o", "bind,rslave"), ("device", "/x")];
        let bind = read(&bind).unwrap().unwrap();
        assert!(bind.is_bind() && bind.data.is_empty());
        assert_eq!(bind.propagation, libc::MS_SLAVE | libc::MS_REC);
        let tmpfs = [
            ("type", "tmpfs"),
            ("o", "size=1m,uid=7"),
            ("device", "tmpfs"),
        ];
        let tmpfs = read(&tmpfs).unwrap().unwrap();
        assert_eq!(
            (tmpfs.data.join(",").as_str(), tmpfs.address()),
            ("size=1m,uid=7", None)
        );
    }

    #[test]
    fn options_are_checked_in_dockers_words() {
        let refused = |options: &[(&str, &str)]| read(options).unwrap_err();
        assert_eq!(refused(&[("foo", "b")]), "invalid option: \"foo\"");
        assert_eq!(
            refused(&[("type", "nfs")]),
            "missing required option: \"device\""
        );
        assert_eq!(
            refused(&[("device", "d")]),
            "missing required option: \"type\""
        );
        assert_eq!(
            refused(&[("o", "ro")]),
            "missing required option: \"device\""
        );
        assert_eq!(
            refused(&[("size", "1g")]),
            "quota size requested but no quota support"
        );
        let remount = [("type", "none"), ("device", "/"), ("o", "remount")];
        assert!(refused(&remount).contains("\"remount\""));
    }

    #[test]
    fn mount_points_are_found_under_their_written_names() {
        let info =
            "22 1 0:21 / /a rw - tmpfs tmpfs rw\n23 1 0:22 / /b\\040c\\134d rw - tmpfs tmpfs rw\n";
        assert!(is_mount_point(info, "/a") && is_mount_point(info, "/b c\\d"));
        assert!(!is_mount_point(info, "/b") && !is_mount_point("", "/"));
    }
}
