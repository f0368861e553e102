//! Names of images, in docker's normal form.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Digest;

/// The registry meant when a name has none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Docker's limit for domain and path together.
const NAME_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;

/// The name of an image: registry, repository, and tag or digest or both.
///
/// Parsing normalises as docker does (`busybox` is `docker.io/library/busybox`); a missing tag
/// stays missing until [`Reference::or_latest`]. Prints in full; [`Reference::familiar`] prints
/// what a user would type. Grammar: distribution's `reference` package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not the name of an image; the texts are docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    #[error("invalid reference format")]
    Format(String),
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    #[error("repository name must not be more than {NAME_LENGTH_MAX} characters")]
    TooLong,
}

impl Reference {
    /// The registry's host, and its port if one was given.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry, `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest if there is one, else the tag, else `latest`.
    pub fn selector(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.clone().unwrap_or_else(|| "latest".to_owned()),
        }
    }

    /// The same name with `:latest` if it had neither tag nor digest.
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository with this digest and no tag, `repo@sha256:…`.
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Whether both name the same repository of the same registry.
    pub fn same_repository(&self, other: &Self) -> bool {
        self.domain == other.domain && self.path == other.path
    }

    /// The repository as a user would type it: `busybox`, `127.0.0.1:5000/web`.
    pub fn familiar_name(&self) -> String {
        match (self.domain.as_str(), self.path.strip_prefix("library/")) {
            (DEFAULT_DOMAIN, Some(short)) if !short.contains('/') => short.to_owned(),
            (DEFAULT_DOMAIN, _) => self.path.clone(),
            (domain, _) => format!("{domain}/{}", self.path),
        }
    }

    /// The whole name as a user would type it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.domain, self.path)))
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let format = || InvalidReference::Format(text.to_owned());
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidReference::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| format())?)),
        };
        // A colon after the last slash starts the tag; one before it belongs to the registry's port.
        let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            None => (rest, None),
            Some(colon) => (
                &rest[..after_slash + colon],
                Some(&rest[after_slash + colon + 1..]),
            ),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(format());
        }

        let (domain, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, path.to_owned())
            }
            _ => (DEFAULT_DOMAIN, name.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            DEFAULT_DOMAIN
        } else {
            domain
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidReference::UpperCase(path));
        }
        if !is_domain(domain) || !path.split('/').all(is_path_component) {
            return Err(format());
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        if domain.len() + 1 + path.len() > NAME_LENGTH_MAX {
            return Err(InvalidReference::TooLong);
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A host name, IPv4 or bracketed IPv6 address, with or without a port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if domain.starts_with('[') {
        match domain.find(']') {
            Some(end) => {
                let host = &domain[1..end];
                if !host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') || host.is_empty() {
                    return false;
                }
                (
                    "v6",
                    domain[end + 1..]
                        .strip_prefix(':')
                        .or_else(|| (domain.len() == end + 1).then_some("0")),
                )
            }
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, Some("0")),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label)
        && port.is_some_and(|port| {
            port.len() <= 5 && port.parse::<u16>().is_ok() && !port.starts_with('+')
        })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = component.as_bytes();
    let mut at = 0;
    loop {
        let start = at;
        while bytes.get(at).copied().is_some_and(alphanumeric) {
            at += 1;
        }
        if at == start {
            return false;
        }
        match &bytes[at..] {
            [] => return true,
            [b'_', b'_', ..] => at += 2,
            [b'.' | b'_', ..] => at += 1,
            [b'-', ..] => {
                while bytes.get(at) == Some(&b'-') {
                    at += 1;
                }
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, full: &str, familiar: &str) {
        let reference = text.parse::<Reference>().unwrap().or_latest();
        assert_eq!(reference.to_string(), full);
        assert_eq!(reference.familiar(), familiar);
        assert_eq!(full.parse::<Reference>().unwrap(), reference);
    }

    #[test]
    fn names_take_dockers_normal_form() {
        check(
            "busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        );
        check(
            "library/busybox:1",
            "docker.io/library/busybox:1",
            "busybox:1",
        );
        check("me/app", "docker.io/me/app:latest", "me/app:latest");
        check(
            "index.docker.io/me/app",
            "docker.io/me/app:latest",
            "me/app:latest",
        );
        check(
            "localhost/app",
            "localhost/app:latest",
            "localhost/app:latest",
        );
        check(
            "127.0.0.1:5000/a/b__c-d:v1.0",
            "127.0.0.1:5000/a/b__c-d:v1.0",
            "127.0.0.1:5000/a/b__c-d:v1.0",
        );
        check(
            "[::1]:5000/app",
            "[::1]:5000/app:latest",
            "[::1]:5000/app:latest",
        );
        let digest = format!("sha256:{}", "0".repeat(64));
        check(
            &format!("busybox@{digest}"),
            &format!("docker.io/library/busybox@{digest}"),
            &format!("busybox@{digest}"),
        );
        check(
            &format!("r.io/busybox:1@{digest}"),
            &format!("r.io/busybox:1@{digest}"),
            &format!("r.io/busybox:1@{digest}"),
        );
    }

    #[test]
    fn bad_names_are_refused_in_dockers_words() {
        for bad in [
            "",
            ":",
            "a b",
            "-a",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a@sha256:12",
            "a___b",
            "x:y/z",
            "a..b",
            "../a",
            "a:b:c",
            "[::1/app",
        ] {
            assert_eq!(
                bad.parse::<Reference>().unwrap_err().to_string(),
                "invalid reference format",
                "{bad}"
            );
        }
        assert_eq!(
            "BusyBox".parse::<Reference>().unwrap_err().to_string(),
            "invalid reference format: repository name (BusyBox) must be lowercase"
        );
        assert!("a".repeat(64).parse::<Reference>().is_err());
        assert_eq!(
            "r/".repeat(140).trim_end_matches('/').parse::<Reference>(),
            Err(InvalidReference::TooLong)
        );
    }
}
