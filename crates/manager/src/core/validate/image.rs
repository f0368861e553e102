//! Names of images: the grammar of docker's references (`distribution/reference`).

/// Bytes of a name without tag and digest.
const NAME_BYTES_MAX: usize = 255;

/// Whether a text is `[domain[:port]/]path[:tag][@digest]`.
pub(super) fn is_reference(text: &str) -> bool {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to the domain's port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, path)) if is_domain_like(first) => (Some(first), path),
        _ => (None, name),
    };
    name.len() <= NAME_BYTES_MAX
        && domain.is_none_or(is_domain)
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

/// Whether the first part of a name is a registry rather than the first part of a path.
fn is_domain_like(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.chars().any(|c| c.is_ascii_uppercase())
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        edge(label.chars().next())
            && edge(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let is_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or dashes.
fn is_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(is_word).filter(|part| !part.is_empty());
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && separators
            .into_iter()
            .all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let bytes = match algorithm {
        "sha256" => 32,
        "sha512" => 64,
        _ => return false,
    };
    hex.len() == 2 * bytes
        && hex
            .bytes()
            .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_names_are_names_and_others_are_not() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for name in [
            "nginx",
            "nginx:1.25-alpine",
            "library/nginx",
            "localhost/app",
            "localhost:5000/a/b/c:x_1",
            "Registry.example:443/app",
            "[2001:db8::1]:5000/app",
            "a__b/c---d.e",
            &format!("nginx@{digest}"),
            &format!("registry.example/app:1@{digest}"),
        ] {
            assert!(is_reference(name), "{name}");
        }
        for name in [
            "",
            "Nginx",
            "nginx:",
            "nginx::1",
            "nginx latest",
            "nginx!!",
            "a//b",
            "/nginx",
            "nginx/",
            "a_._b",
            "-a",
            "nginx@sha256:12",
            "nginx@md5:00",
            "registry.example:99999/app",
            "-x.example/app",
            &"a".repeat(256),
            &format!("nginx:{}", "t".repeat(129)),
        ] {
            assert!(!is_reference(name), "{name}");
        }
    }
}
