//! Values of labels.

use std::time::Duration;

use crate::spec::{Dependency, DependencyCondition, FixedAddress, PullPolicy};

pub(super) fn flag(text: &str) -> Option<bool> {
    // What Go's `strconv.ParseBool` takes, as docker's own labels and flags do.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn list(text: &str) -> Vec<String> {
    let separator = if text.contains('\n') { '\n' } else { ',' };
    let items = text.split(separator).map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    items.map(str::to_owned).collect()
}

/// `1h30m`, `1.5s`, `500ms`, `0`: Go's durations, not negative.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        let part = Duration::try_from_secs_f64(number * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    Some(total)
}

/// `front=10.0.5.9`: a network and an address in it.
pub(super) fn fixed_address(text: &str) -> Option<FixedAddress> {
    let (network, address) = text.split_once('=')?;
    let address = address.trim().parse().ok()?;
    let network = network.trim().to_owned();
    (!network.is_empty()).then_some(FixedAddress { network, address })
}

/// `64m`, `1gb`, `1024`: docker's sizes, in powers of 1024.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

pub(super) fn pull_policy(text: &str) -> Option<PullPolicy> {
    use PullPolicy as P;
    [P::Auto, P::Always, P::Missing, P::Never]
        .into_iter()
        .find(|policy| policy.as_str() == text)
}

/// `SERVICE[:CONDITION][:optional]`.
pub(super) fn dependency(text: &str) -> Option<Dependency> {
    let mut parts = text.split(':');
    let service = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let rest: Vec<&str> = parts.collect();
    let (condition, required) = match rest[..] {
        [] => (DependencyCondition::default(), true),
        ["optional"] => (DependencyCondition::default(), false),
        [condition] => (condition.parse().ok()?, true),
        [condition, "optional"] => (condition.parse().ok()?, false),
        _ => return None,
    };
    Some(Dependency {
        service,
        condition,
        required,
    })
}

/// An option as nodes know them; a profile of system calls is JSON here, nobody reads files for a label.
pub(super) fn is_security_option(text: &str) -> bool {
    // The colon is docker's old separator.
    match text.split_once('=').or_else(|| text.split_once(':')) {
        None => ["no-new-privileges", "disable"].contains(&text),
        Some(("no-new-privileges", value)) => flag(value).is_some(),
        Some(("seccomp", "" | "builtin" | "unconfined")) => true,
        Some(("seccomp", profile)) => profile.starts_with('{'),
        Some((key, _)) => ["apparmor", "label"].contains(&key),
    }
}

/// `c 10:200 rwm`, numbers may be `*`.
pub(super) fn is_device_rule(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, numbers, access] = words[..] else {
        return false;
    };
    let is_number = |text: &str| text == "*" || text.parse::<u32>().is_ok();
    matches!(kind, "a" | "b" | "c")
        && numbers
            .split_once(':')
            .is_some_and(|(major, minor)| is_number(major) && is_number(minor))
        && !access.is_empty()
        && access.chars().all(|c| "rwm".contains(c))
}

/// `vendor.com/class=name` (CNCF Container Device Interface, "fully-qualified device name").
pub(super) fn is_cdi_name(text: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
    };
    text.split_once('/')
        .and_then(|(vendor, rest)| Some((vendor, rest.split_once('=')?)))
        .is_some_and(|(vendor, (class, name))| word(vendor) && word(class) && word(name))
}

/// `0-3,5`.
pub(super) fn is_cpu_list(text: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    text.split(',').all(|part| match part.split_once('-') {
        None => number(part).is_some(),
        Some((from, to)) => number(from)
            .zip(number(to))
            .is_some_and(|(from, to)| from <= to),
    })
}
