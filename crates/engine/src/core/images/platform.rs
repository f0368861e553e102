//! Which of several builds of an image fits this host.

use shoal_api::image::Platform;

/// The platform of the machine this binary was built for.
pub fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }
}

/// Parses `os/arch[/variant]`, or `None` if it is not of that form.
pub fn parse_platform(text: &str) -> Option<Platform> {
    let mut parts = text.split('/');
    let (os, architecture) = (parts.next()?, parts.next()?);
    let variant = parts.next().unwrap_or_default();
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if parts.next().is_some() || !word(os) || !word(architecture) {
        return None;
    }
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        other => other,
    };
    Some(Platform {
        os: os.to_lowercase(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    })
}

/// Returns the index of the build that fits `wanted` best: same system and processor, the highest
/// variant that is not above the wanted one. The first wins a tie.
pub fn choose_platform<'a>(
    wanted: &Platform,
    offered: impl IntoIterator<Item = &'a Platform>,
) -> Option<usize> {
    let mut best: Option<(u32, usize)> = None;
    for (index, platform) in offered.into_iter().enumerate() {
        if platform.os != wanted.os || platform.architecture != wanted.architecture {
            continue;
        }
        let (limit, rank) = (variant_rank(wanted), variant_rank(platform));
        if rank <= limit && best.is_none_or(|(best, _)| rank > best) {
            best = Some((rank, index));
        }
    }
    best.map(|(_, index)| index)
}

/// The number in `v7`; an absent variant means the processor's usual baseline.
fn variant_rank(platform: &Platform) -> u32 {
    let number = platform
        .variant
        .strip_prefix('v')
        .and_then(|digits| digits.parse().ok());
    number.unwrap_or(match platform.architecture.as_str() {
        "arm64" => 8,
        "arm" => 7,
        _ => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(wanted: &str, offered: &[&str]) -> Option<usize> {
        let offered: Vec<_> = offered
            .iter()
            .map(|text| parse_platform(text).unwrap())
            .collect();
        choose_platform(&parse_platform(wanted).unwrap(), &offered)
    }

    #[test]
    fn the_best_variant_not_above_the_wanted_one_is_chosen() {
        assert_eq!(
            choose("linux/amd64", &["linux/arm64", "linux/amd64"]),
            Some(1)
        );
        assert_eq!(
            choose("linux/amd64", &["linux/amd64/v3", "linux/amd64"]),
            Some(1)
        );
        assert_eq!(
            choose(
                "linux/arm/v7",
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]
            ),
            Some(1)
        );
        assert_eq!(choose("linux/arm64", &["linux/arm64/v8"]), Some(0));
        assert_eq!(
            choose("linux/amd64", &["windows/amd64", "unknown/unknown"]),
            None
        );
    }

    #[test]
    fn a_platform_has_two_or_three_parts() {
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert_eq!(parse_platform(bad), None, "{bad}");
        }
        assert_eq!(
            parse_platform("linux/x86_64").unwrap().architecture,
            "amd64"
        );
    }
}
