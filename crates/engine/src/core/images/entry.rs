//! Names of archive entries: where each may lie, and which of them are whiteouts.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The name of an archive entry after lexical cleaning: relative, without `.`, `..` and doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryPath {
    /// The root of the archive itself.
    Root,
    /// `name` within `parent`; an empty parent is the root.
    Child { parent: PathBuf, name: OsString },
}

/// The entry may not be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    #[error("archive entry {0:?} lies outside the archive")]
    Outside(PathBuf),
    #[error("archive entry {0:?} has an invalid name")]
    Name(PathBuf),
}

/// What an entry does to the layers below (OCI image specification, "Whiteouts").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// Nothing; it is an ordinary entry.
    None,
    /// Hides the entry of this name.
    Hide(&'a OsStr),
    /// Hides everything in its directory.
    Opaque,
    /// Bookkeeping of the AUFS driver, without meaning to anybody else.
    Ignored,
}

impl EntryPath {
    /// Cleans the name of an entry, or the target of a hard link.
    pub fn parse(raw: &[u8]) -> Result<Self, InvalidEntry> {
        let path = || PathBuf::from(OsStr::from_bytes(raw));
        if raw.contains(&0) {
            return Err(InvalidEntry::Name(path()));
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop().ok_or_else(|| InvalidEntry::Outside(path()))?;
                }
                part => parts.push(part),
            }
        }
        let Some(name) = parts.pop() else {
            return Ok(Self::Root);
        };
        Ok(Self::Child {
            parent: parts.iter().map(|part| OsStr::from_bytes(part)).collect(),
            name: OsStr::from_bytes(name).to_owned(),
        })
    }

    /// The whole cleaned path.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Root => PathBuf::new(),
            Self::Child { parent, name } => parent.join(name),
        }
    }
}

impl<'a> Whiteout<'a> {
    /// Classifies an entry by its last component, and by those above: below a whiteout there is nothing.
    pub fn of(parent: &'a Path, name: &'a OsStr) -> Result<Self, InvalidEntry> {
        for above in parent {
            match Self::of_component(above)? {
                Self::None => {}
                Self::Ignored => return Ok(Self::Ignored),
                Self::Hide(_) | Self::Opaque => {
                    return Err(InvalidEntry::Name(parent.join(name)));
                }
            }
        }
        Self::of_component(name)
    }

    fn of_component(name: &'a OsStr) -> Result<Self, InvalidEntry> {
        let bytes = name.as_bytes();
        let Some(hidden) = bytes.strip_prefix(b".wh.") else {
            return Ok(Self::None);
        };
        match hidden {
            b".wh..opq" => Ok(Self::Opaque),
            _ if hidden.starts_with(b".wh.") => Ok(Self::Ignored),
            b"" | b"." | b".." => Err(InvalidEntry::Name(Path::new(name).to_owned())),
            hidden => Ok(Self::Hide(OsStr::from_bytes(hidden))),
        }
    }
}

/// Whether an extended attribute of an archive entry is set on the unpacked file.
///
/// `trusted.overlay.*` and its like steer overlayfs itself, and `security.*` other than file
/// capabilities belongs to the host's policy; an image has no say in either.
pub fn xattr_is_kept(name: &str) -> bool {
    match name.split_once('.') {
        Some(("user", rest)) => !rest.starts_with("overlay.") && !rest.is_empty(),
        Some(("security", rest)) => rest == "capability",
        Some(("system", rest)) => rest == "posix_acl_access" || rest == "posix_acl_default",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, cleaned: &str) {
        assert_eq!(
            EntryPath::parse(raw.as_bytes()).unwrap().to_path(),
            Path::new(cleaned)
        );
    }

    #[test]
    fn names_are_cleaned() {
        check("./", "");
        check("/", "");
        check("./a//b/", "a/b");
        check("/etc/passwd", "etc/passwd");
        check("a/../b", "b");
    }

    #[test]
    fn names_that_climb_out_are_refused() {
        for bad in ["..", "../a", "a/../../b", "/..", "./../etc"] {
            assert!(
                matches!(
                    EntryPath::parse(bad.as_bytes()),
                    Err(InvalidEntry::Outside(_))
                ),
                "{bad}"
            );
        }
        assert!(matches!(
            EntryPath::parse(b"a\0b"),
            Err(InvalidEntry::Name(_))
        ));
    }

    #[test]
    fn whiteouts_are_told_by_their_names() {
        let below = |parent: &'static str, name: &'static str| {
            Whiteout::of(Path::new(parent), OsStr::new(name))
        };
        let of = |name| below("", name);
        assert_eq!(of("a"), Ok(Whiteout::None));
        assert_eq!(of(".wh.a"), Ok(Whiteout::Hide(OsStr::new("a"))));
        assert_eq!(of(".wh..wh..opq"), Ok(Whiteout::Opaque));
        assert_eq!(of(".wh..wh.plnk"), Ok(Whiteout::Ignored));
        for bad in [".wh.", ".wh..", ".wh..."] {
            assert!(of(bad).is_err(), "{bad}");
            assert!(below(bad, "a").is_err(), "{bad}");
        }
        assert_eq!(below("a/b", "c"), Ok(Whiteout::None));
        assert_eq!(below(".wh..wh.plnk", "1.2"), Ok(Whiteout::Ignored));
        assert!(below("a/.wh.b", "c").is_err());
        assert!(below(".wh..wh..opq", "c").is_err());
    }

    #[test]
    fn attributes_that_steer_the_host_are_dropped() {
        assert!(xattr_is_kept("user.mime_type") && xattr_is_kept("security.capability"));
        for bad in [
            "trusted.overlay.redirect",
            "trusted.x",
            "user.overlay.opaque",
            "security.selinux",
            "",
            "user",
        ] {
            assert!(!xattr_is_kept(bad), "{bad}");
        }
    }
}
