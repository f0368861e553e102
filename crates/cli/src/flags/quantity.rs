//! Durations, sizes and CPUs.

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

/// Reads a duration as Go does (`1h30m`, `500ms`), in nanoseconds.
pub(crate) fn duration(text: &str) -> Result<i64> {
    let invalid =
        || anyhow!("invalid duration {text:?}: expected for instance 10s, 1m30s or 500ms");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(invalid()),
            };
        rest = &rest[letters..];
    }
    if total > i64::MAX as f64 {
        return Err(invalid());
    }
    let nanoseconds = total.round() as i64;
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

/// Writes nanoseconds as Go does: `1m30s`, `500ms`, `0s`.
pub(crate) fn show_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |unit: u64, name: &str| {
        let text = format!("{:.9}", total as f64 / unit as f64);
        format!(
            "{sign}{}{name}",
            text.trim_end_matches('0').trim_end_matches('.')
        )
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let (hours, rest) = (total / 3_600_000_000_000, total % 3_600_000_000_000);
            let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
            let text = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
            let seconds = text.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// Reads a size in bytes, units of 1024: `512m`, `1.5g`, `64MiB`, `100`.
pub(crate) fn bytes(text: &str) -> Result<i64> {
    let invalid = || anyhow!("invalid size: '{text}'");
    let trimmed = text.trim();
    if trimmed == "-1" {
        return Ok(-1);
    }
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let number: f64 = trimmed[..digits].parse().map_err(|_| invalid())?;
    let shift = match trimmed[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(invalid()),
    };
    let bytes = number * 2_f64.powi(shift);
    if !(0.0..i64::MAX as f64).contains(&bytes) {
        return Err(invalid());
    }
    Ok(bytes as i64)
}

/// Reads a number of CPUs as billionths: `0.5`, `2`.
pub(crate) fn cpus(text: &str) -> Result<i64> {
    let number: f64 = text
        .trim()
        .parse()
        .map_err(|_| anyhow!("failed to parse {text:?} as a rational number"))?;
    let nano = number * 1e9;
    if !(0.0..i64::MAX as f64).contains(&nano) {
        bail!("invalid number of CPUs {text:?}");
    }
    if (nano - nano.round()).abs() > 1e-3 {
        bail!("value is too precise");
    }
    Ok(nano.round() as i64)
}

/// Reads a resource limit, `nofile=1024:2048` or `nofile=1024`.
pub(crate) fn ulimit(text: &str) -> Result<Value> {
    let Some((name, limits)) = text.split_once('=') else {
        bail!("invalid ulimit argument: {text}");
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| -> Result<i64> {
        if text == "unlimited" {
            return Ok(-1);
        }
        text.parse()
            .map_err(|_| anyhow!("invalid ulimit value in {limits:?}"))
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft > hard || soft == -1) {
        bail!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
    }
    Ok(json!({"Name": name, "Soft": soft, "Hard": hard}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, shown) in [
            ("10s", "10s"),
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("90s", "1m30s"),
            ("500ms", "500ms"),
            ("1500us", "1.5ms"),
            ("0", "0s"),
            ("-2m", "-2m0s"),
        ] {
            assert_eq!(show_duration(duration(text).unwrap()), shown, "{text}");
        }
        for text in ["", "10", "s", "1d", "1h-2m", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_cpus_are_read() {
        assert_eq!(bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(bytes("1.5g").unwrap(), 3 << 29);
        assert_eq!(bytes("100").unwrap(), 100);
        assert!(bytes("12x").is_err() && bytes("").is_err() && bytes("-5").is_err());
        assert_eq!(cpus(".5").unwrap(), 500_000_000);
        assert!(cpus("0.0000000001").is_err() && cpus("two").is_err());
    }

    #[test]
    fn ulimits_have_one_or_two_numbers() {
        assert_eq!(
            ulimit("nofile=5:9").unwrap().to_string(),
            r#"{"Hard":9,"Name":"nofile","Soft":5}"#
        );
        assert_eq!(ulimit("core=-1").unwrap()["Hard"], -1);
        assert!(ulimit("nofile").is_err() && ulimit("nofile=9:5").is_err());
    }
}
