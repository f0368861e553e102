//! Names of images as people write them.

/// Splits `name[:tag][@digest]`.
pub(crate) fn split(reference: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash belongs to the registry's port.
    match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..]), digest),
        _ => (rest, None, digest),
    }
}

/// The reference with `:latest` where neither tag nor digest is given.
pub(crate) fn with_default_tag(reference: &str) -> String {
    match split(reference) {
        (name, None, None) => format!("{name}:latest"),
        _ => reference.to_owned(),
    }
}

/// The reference as docker shows it in lists of services and tasks: no digest where there is a tag, no `docker.io`.
pub(crate) fn familiar(reference: &str) -> String {
    let short = reference
        .strip_prefix("docker.io/library/")
        .or_else(|| reference.strip_prefix("docker.io/"))
        .unwrap_or(reference);
    match split(short) {
        (name, Some(tag), _) => format!("{name}:{tag}"),
        (name, None, Some(digest)) => format!("{name}@{digest}"),
        (name, None, None) => name.to_owned(),
    }
}

/// The server of a reference, `docker.io` when none is named.
pub(crate) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split() {
        assert_eq!(split("a"), ("a", None, None));
        assert_eq!(split("r:5000/a/b"), ("r:5000/a/b", None, None));
        assert_eq!(
            split("r:5000/a:1@sha256:f"),
            ("r:5000/a", Some("1"), Some("sha256:f"))
        );
        assert_eq!(with_default_tag("r:5000/a"), "r:5000/a:latest");
        assert_eq!(with_default_tag("a@sha256:f"), "a@sha256:f");
        assert_eq!(familiar("docker.io/library/nginx:1@sha256:f"), "nginx:1");
        assert_eq!(registry("r:5000/a"), "r:5000");
        assert_eq!(registry("me/a"), "docker.io");
    }
}
