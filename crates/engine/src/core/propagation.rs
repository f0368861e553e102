//! Whether mounts can travel between the host and a container at a place of the host.

use std::path::{Path, PathBuf};

use shoal_api::container::Propagation;

/// Why they cannot, in docker's words (moby `daemon/oci_linux.go`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {} is mounted on {} but it is not a shared{} mount", path.display(), at.display(), if *.slave { " or slave" } else { "" })]
pub struct NotShared {
    /// What was to be bound.
    path: PathBuf,
    /// The mount that it lies on.
    at: PathBuf,
    /// Whether a slave would do.
    slave: bool,
}

/// Checks by `/proc/self/mountinfo` that what is wanted of a path can be had; the path has no links in it.
pub fn check(mountinfo: &str, path: &Path, wanted: Propagation) -> Result<(), NotShared> {
    let slave = match wanted {
        Propagation::Rprivate | Propagation::Private => return Ok(()),
        Propagation::Rshared | Propagation::Shared => false,
        Propagation::Rslave | Propagation::Slave => true,
    };
    let (mut at, mut good) = (PathBuf::from("/"), false);
    for line in mountinfo.lines() {
        let mut columns = line.split(' ').skip(4);
        let Some(point) = columns.next().map(unescape) else {
            continue;
        };
        // A later mount on the same place lies above the earlier one.
        if !path.starts_with(&point) || point.components().count() < at.components().count() {
            continue;
        }
        let mut tags = columns.skip(1).take_while(|tag| *tag != "-");
        good = tags.any(|tag| tag.starts_with("shared:") || (slave && tag.starts_with("master:")));
        at = point;
    }
    if good {
        return Ok(());
    }
    let path = path.to_owned();
    Err(NotShared { path, at, slave })
}

/// A path as the kernel writes it there: blanks and the like are octal numbers.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "20 1 8:1 / / rw - ext4 /dev/a rw\n\
        21 20 8:2 / /mnt rw,relatime shared:5 - ext4 /dev/b rw\n\
        22 20 8:3 / /mnt/in\\040side rw master:6 - ext4 /dev/c rw\n";

    fn said(path: &str, wanted: Propagation) -> String {
        let checked = check(INFO, Path::new(path), wanted);
        checked.map_or_else(|error| error.to_string(), |()| "good".to_owned())
    }

    #[test]
    fn the_nearest_mount_decides() {
        assert_eq!(said("/mnt/a", Propagation::Rshared), "good");
        assert_eq!(said("/mnt/a", Propagation::Rslave), "good");
        assert_eq!(said("/mnt/in side/x", Propagation::Rslave), "good");
        assert_eq!(
            said("/mnt/in side/x", Propagation::Shared),
            "path /mnt/in side/x is mounted on /mnt/in side but it is not a shared mount"
        );
        assert_eq!(
            said("/home", Propagation::Slave),
            "path /home is mounted on / but it is not a shared or slave mount"
        );
        assert_eq!(said("/home", Propagation::Rprivate), "good");
    }
}
