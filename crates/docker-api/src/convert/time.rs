//! Times and durations as docker writes and reads them.

use std::time::Duration;

use shoal_api::Timestamp;

/// A time of an object; never is Go's zero time.
pub(crate) fn instant(at: Timestamp) -> String {
    if at == Timestamp::ZERO {
        "0001-01-01T00:00:00Z".to_owned()
    } else {
        at.to_string()
    }
}

/// RFC 3339 with all nine digits, so that log lines align (moby `jsonmessage.RFC3339NanoFixed`).
pub(crate) fn instant_fixed(at: Timestamp) -> String {
    let whole = Timestamp(at.0 - at.0.rem_euclid(1_000_000_000)).to_string();
    let nanos = at.0.rem_euclid(1_000_000_000);
    format!("{}.{nanos:09}Z", whole.trim_end_matches('Z'))
}

/// Nanoseconds as Go writes a `time.Duration`.
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// `seconds[.nanos]` of the era, as clients send `since` and `until`, or RFC 3339.
pub(crate) fn parse_instant(text: &str) -> Option<Timestamp> {
    if let Some(at) = Timestamp::parse_rfc3339(text) {
        return Some(at);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(nanos)
        .map(Timestamp)
}

/// A Go duration, `1h30m`, `1.5s`, `300ms`.
pub(crate) fn parse_go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("h", 3_600.0),
        ("m", 60.0),
        ("s", 1.0),
        ("d", 86_400.0),
    ];
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (name, unit) = UNITS.iter().find(|(name, _)| rest.starts_with(name))?;
        seconds += number * unit;
        rest = &rest[name.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// A duration for people (`github.com/docker/go-units` `HumanDuration`).
pub(crate) fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Go rounds hours, and only them.
    let hours = (seconds + 1_800) / 3_600;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., 0..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1_440) => format!("{} weeks", hours / 24 / 7),
        (.., 1_440..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3_600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_docker_ps() {
        let of = |seconds| human_duration(Duration::from_secs(seconds));
        assert_eq!(of(0), "Less than a second");
        assert_eq!(of(1), "1 second");
        assert_eq!(of(59), "59 seconds");
        assert_eq!(of(60), "About a minute");
        assert_eq!(of(179), "2 minutes");
        assert_eq!(of(3_600), "About an hour");
        assert_eq!(of(5_400), "2 hours");
        assert_eq!(of(86_400 * 3), "3 days");
        assert_eq!(of(86_400 * 20), "2 weeks");
        assert_eq!(of(86_400 * 90), "3 months");
        assert_eq!(of(86_400 * 365 * 3), "3 years");
    }

    #[test]
    fn instants_are_read_as_clients_send_them() {
        let of = |text| parse_instant(text).map(|at| at.0);
        assert_eq!(of("1"), Some(1_000_000_000));
        assert_eq!(of("1.5"), Some(1_500_000_000));
        assert_eq!(of("1.000000001"), Some(1_000_000_001));
        assert_eq!(of("1970-01-01T00:00:02Z"), Some(2_000_000_000));
        for text in ["", "x", "1.x", "1.0000000001", "99999999999999"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn fixed_times_have_nine_digits() {
        assert_eq!(
            instant_fixed(Timestamp(1_500_000_000)),
            "1970-01-01T00:00:01.500000000Z"
        );
        assert_eq!(
            parse_go_duration("1h30m1.5s"),
            Some(Duration::from_millis(5_401_500))
        );
        assert_eq!(parse_go_duration("5"), None);
    }
}
