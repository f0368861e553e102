//! Times, sizes and ids as docker prints them for people.

use std::time::Duration;

use shoal_api::Timestamp;

/// Characters of a shortened id.
const SHORT: usize = 12;

/// The first characters of an id, without its digest's algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..SHORT).unwrap_or(id)
}

/// `text`, at most `width` characters, its end replaced by `…`.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// A span of time in about one unit, as go-units' `HumanDuration`.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let minutes = seconds / 60;
    let hours = (span.as_secs_f64() / 3600.0).round() as u64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// How long ago `when` is, with `ago`.
pub(crate) fn ago(now: Timestamp, when: Timestamp) -> String {
    format!("{} ago", duration(now.since(when)))
}

/// Reads a time of the API; never is the era's start.
pub(crate) fn time(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).unwrap_or_default()
}

/// Bytes with decimal units and three digits, as go-units' `HumanSizeWithPrecision(size, 3)`.
pub(crate) fn size(bytes: u64) -> String {
    scaled(
        bytes as f64,
        1000.0,
        &["B", "kB", "MB", "GB", "TB", "PB", "EB"],
        3,
    )
}

/// Bytes with binary units and four digits, as go-units' `BytesSize`.
pub(crate) fn binary_size(bytes: u64) -> String {
    scaled(
        bytes as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
        4,
    )
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    // Go's %.{digits}g: that many significant digits, no zeros at the end.
    let whole = value.abs().max(1.0).log10().floor() as usize + 1;
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_one_unit() {
        let seen: Vec<_> = [
            0, 1, 59, 60, 119, 120, 3_540, 3_600, 7_200, 90_000, 172_800, 1_300_000, 9_000_000,
            90_000_000,
        ]
        .map(|seconds| duration(Duration::from_secs(seconds)))
        .into();
        expect_test::expect![[r#"
            Less than a second; 1 second; 59 seconds; About a minute; About a minute; 2 minutes; 59 minutes; About an hour; 2 hours; 25 hours; 2 days; 2 weeks; 3 months; 2 years"#]]
        .assert_eq(&seen.join("; "));
    }

    #[test]
    fn sizes_have_three_digits() {
        let seen: Vec<_> = [0, 999, 1_000, 1_536, 13_256_000, 187_654_321, 5_000_000_000]
            .map(size)
            .into();
        assert_eq!(seen.join(" "), "0B 999B 1kB 1.54kB 13.3MB 188MB 5GB");
        assert_eq!(binary_size(8_311_480_320), "7.741GiB");
        assert_eq!(binary_size(256 << 20), "256MiB");
    }

    #[test]
    fn ids_and_names_are_shortened() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(
            ellipsis("\"sleep infinity and more\"", 20),
            "\"sleep infinity and…"
        );
    }
}
